//! Names with braces, as WebDataset's users write them: `shard-{000..012}.tar`, `{train,extra}/{0..3}.tar`.

use crate::{Error, Result};

/// More names than any data set has shards; a slip of the pen should not take all memory.
const MOST: usize = 1_000_000;

/// All names that `text` stands for, the last braces counting fastest. A range's numbers have as many digits as its first one, if that begins
/// with 0.
pub(super) fn expand(text: &str) -> Result<Vec<String>> {
    let Some(open) = text.find('{') else { return Ok(vec![text.to_string()]) };
    let wrong = |what: String| Error::argument("path", format!("'{text}': {what}; write for example {{000..012}}"));
    let close = text[open..].find('}').ok_or_else(|| wrong("a brace is not closed".to_string()))? + open;
    let (before, inside) = (&text[..open], &text[open + 1..close]);
    let words: Vec<String> = match inside.split_once("..") {
        Some((first, last)) => {
            let number = |digits: &str| digits.parse::<usize>().map_err(|_| wrong(format!("'{digits}' is no number")));
            let (from, to) = (number(first)?, number(last)?);
            if from > to || to - from >= MOST {
                return Err(wrong(format!("{from}..{to} must rise, by less than {MOST}")));
            }
            let width = if first.starts_with('0') { first.len() } else { 0 };
            (from..=to).map(|number| format!("{number:0width$}")).collect()
        }
        None => inside.split(',').map(str::to_string).collect(),
    };
    let rest = expand(&text[close + 1..])?;
    if words.len().saturating_mul(rest.len()) > MOST {
        return Err(wrong(format!("these are more than {MOST} names")));
    }
    Ok(words.iter().flat_map(|word| rest.iter().map(move |rest| format!("{before}{word}{rest}"))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_lists_are_spelled_out_in_order() {
        assert_eq!(expand("s-{008..010}.tar").unwrap(), ["s-008.tar", "s-009.tar", "s-010.tar"]);
        assert_eq!(expand("{a,b}/{0..1}").unwrap(), ["a/0", "a/1", "b/0", "b/1"]);
        assert_eq!(expand("plain").unwrap(), ["plain"]);
        for wrong in ["{3..1}", "{0..x}", "{0..", "{0..99999999}", "{0..999}{0..9999}"] {
            assert!(expand(wrong).unwrap_err().to_string().starts_with("path"), "{wrong}");
        }
    }
}
