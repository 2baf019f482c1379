//! [`Pattern`]: a glob over names, where `*` stands for any characters (dots too) and `?` for one.

use std::str::FromStr;

use crate::{Error, Result};

/// A glob over parameter or tensor names: `*` stands for any number of any characters, dots too, `?` for exactly one.
///
/// # Examples
/// ```
/// let pattern: diptych::weights::Pattern = "vision_model.embeddings.*".parse()?;
/// assert!(pattern.matches("vision_model.embeddings.patch_embedding.weight"));
/// assert!(!pattern.matches("text_model.embeddings.token_embedding.weight"));
/// # Ok::<(), diptych::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<char>);

impl Pattern {
    /// The pattern written as `glob`.
    ///
    /// # Errors
    /// If `glob` is empty: it would match no name at all.
    pub fn new(glob: &str) -> Result<Self> {
        if glob.trim().is_empty() {
            return Err(Error::argument(
                "pattern",
                "is empty; write a name, or a part of one with '*', as in 'vision_model.*'",
            ));
        }
        Ok(Self(glob.trim().chars().collect()))
    }

    /// Whether the pattern matches the whole of `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut at, mut in_name) = (0, 0);
        // Where to go on when the text after the last star does not fit: the star takes one character more.
        let mut last_star = None;
        while in_name < name.len() {
            match self.0.get(at) {
                Some('*') => {
                    at += 1;
                    last_star = Some((at, in_name));
                }
                Some(&c) if c == '?' || c == name[in_name] => {
                    at += 1;
                    in_name += 1;
                }
                _ => {
                    let Some((after, taken)) = last_star else { return false };
                    last_star = Some((after, taken + 1));
                    (at, in_name) = (after, taken + 1);
                }
            }
        }
        self.0[at..].iter().all(|&c| c == '*')
    }
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(glob: &str) -> Result<Self> {
        Self::new(glob)
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|c| write!(f, "{c}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(glob: &str, name: &str) -> bool {
        Pattern::new(glob).unwrap().matches(name)
    }

    #[test]
    fn a_star_takes_any_characters_and_a_question_mark_exactly_one() {
        assert!(matches("*", ""));
        assert!(matches("a.*", "a.b.c"));
        assert!(matches("*.bias", "x.y.bias"));
        assert!(matches("*a*b*", "xxaxxbabx"));
        assert!(matches("layers.?.w", "layers.7.w"));
        assert!(matches("*ab", "aab"));
        assert!(matches("exact", "exact"));
        assert!(!matches("exact", "exactly"));
        assert!(!matches("a.*", "a"));
        assert!(!matches("layers.?.w", "layers.10.w"));
        assert!(!matches("*.bias", "x.bias2"));
    }

    #[test]
    fn many_stars_do_not_take_exponential_time() {
        assert!(!matches(&"*a".repeat(40), &"a".repeat(39)));
        assert!(!matches(&format!("{}b", "*a".repeat(200)), &"a".repeat(2000)));
    }

    #[test]
    fn an_empty_pattern_is_refused() {
        assert!(Pattern::new(" ").unwrap_err().to_string().contains("is empty"));
    }
}
