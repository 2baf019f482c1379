//! Which keys a query sees.

use crate::{Error, Result};
use std::sync::Arc;

/// What a token sees by its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttentionPattern {
    /// Every token.
    #[default]
    Full,
    /// Itself and the tokens before it.
    Causal,
}

/// Which keys each query sees: by position, and by which keys are padding. A query that sees no key gets zeros.
#[derive(Debug, Clone, Default)]
pub struct AttentionMask {
    pattern: AttentionPattern,
    padding: Option<KeyPadding>,
}

#[derive(Debug, Clone)]
struct KeyPadding {
    keep: Arc<[bool]>,
    batch: usize,
    length: usize,
}

impl AttentionMask {
    /// Every query sees every key.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Query i sees the keys 0..=i; needs as many queries as keys.
    #[must_use]
    pub fn causal() -> Self {
        Self { pattern: AttentionPattern::Causal, padding: None }
    }

    /// Also hides the keys that are padding. `keep` holds a value for each token, row after row; true keeps it.
    ///
    /// # Shapes
    /// keep (B,L) with B = `batch` and L = `length`.
    ///
    /// # Errors
    /// When `keep` does not hold `batch · length` values.
    pub fn with_key_padding(self, keep: impl Into<Arc<[bool]>>, batch: usize, length: usize) -> Result<Self> {
        let keep = keep.into();
        if batch.checked_mul(length) != Some(keep.len()) {
            return Err(Error::argument(
                "keep",
                format!("holds {} values, expected {batch} rows of {length} tokens", keep.len()),
            ));
        }
        Ok(Self { padding: Some(KeyPadding { keep, batch, length }), ..self })
    }

    /// What a token sees by its position.
    #[must_use]
    pub fn pattern(&self) -> AttentionPattern {
        self.pattern
    }

    /// Which keys are no padding, (B,L) row after row; `None` where all are kept.
    #[must_use]
    pub fn key_padding(&self) -> Option<&[bool]> {
        self.padding.as_ref().map(|padding| &*padding.keep)
    }

    pub(super) fn check(&self, batch: usize, queries: usize, keys: usize) -> Result<()> {
        if self.pattern == AttentionPattern::Causal && queries != keys {
            return Err(Error::argument(
                "mask",
                format!("a causal mask needs as many queries as keys, got {queries} and {keys}"),
            ));
        }
        match &self.padding {
            Some(padding) if (padding.batch, padding.length) != (batch, keys) => Err(Error::argument(
                "mask",
                format!("is for {} rows of {} keys, got {batch} rows of {keys}", padding.batch, padding.length),
            )),
            _ => Ok(()),
        }
    }

    /// The keys that matter, for every row of the batch.
    pub(super) fn spans(&self, batch: usize, keys: usize) -> Vec<KeySpan> {
        let Some(padding) = &self.padding else {
            return vec![KeySpan { first: 0, end: keys, holes: Vec::new() }; batch];
        };
        padding.keep.chunks(keys.max(1)).map(KeySpan::new).collect()
    }
}

/// The keys of one row of the batch: the first that is kept, the end of the last, and the hidden ones before that end.
#[derive(Debug, Clone)]
pub(super) struct KeySpan {
    pub(super) first: usize,
    pub(super) end: usize,
    pub(super) holes: Vec<usize>,
}

impl KeySpan {
    fn new(keep: &[bool]) -> Self {
        let end = keep.iter().rposition(|&keep| keep).map_or(0, |last| last + 1);
        let first = keep.iter().position(|&keep| keep).unwrap_or(0);
        let holes = (0..end).filter(|&key| !keep[key]).collect();
        Self { first, end, holes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_ends_at_the_last_kept_key_and_lists_the_holes_before_it() {
        let span = KeySpan::new(&[false, true, false, true, false, false]);
        assert_eq!((span.first, span.end, span.holes), (1, 4, vec![0, 2]));
        let empty = KeySpan::new(&[false; 3]);
        assert_eq!((empty.end, empty.holes.len()), (0, 0));
    }

    #[test]
    fn key_padding_of_another_size_is_refused() {
        assert!(AttentionMask::none().with_key_padding(vec![true; 5], 2, 3).is_err());
        let mask = AttentionMask::none().with_key_padding(vec![true; 6], 2, 3).unwrap();
        assert!(mask.check(2, 7, 3).is_ok());
        assert!(mask.check(3, 2, 2).is_err());
        assert!(AttentionMask::causal().check(1, 2, 3).is_err());
    }
}
