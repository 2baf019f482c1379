//! Globs over parameter names.

/// Whether `name` is of the form of `pattern`, where `*` stands for any characters (dots too) and `?` for one.
///
/// ```
/// use diptych::train::matches_pattern;
/// assert!(matches_pattern("vision_model.embeddings.*", "vision_model.embeddings.patch_embedding.weight"));
/// assert!(!matches_pattern("*.k_proj.bias", "text_model.encoder.layers.0.self_attn.q_proj.bias"));
/// ```
#[must_use]
pub fn matches_pattern(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where the last star stands and how far it has eaten: on a mismatch it eats one character more.
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, eaten)) => {
                    star = Some((at, eaten + 1));
                    p = at + 1;
                    n = eaten + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks_match_as_in_a_shell() {
        for (pattern, name) in
            [("*", ""), ("a*c", "abbc"), ("a*c", "ac"), ("*.bias", "a.b.bias"), ("a?c*", "abc"), ("*ab*ab", "abab")]
        {
            assert!(matches_pattern(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("", "a"), ("a", "ab"), ("a?", "a"), ("*.bias", "bias"), ("a*b", "abc"), ("*ab*ab", "ab")]
        {
            assert!(!matches_pattern(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = "*a".repeat(50) + "b";
        assert!(!matches_pattern(&pattern, &"a".repeat(5000)));
    }
}
