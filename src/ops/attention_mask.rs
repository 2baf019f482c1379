//! Which keys a query sees, and what is added to its scores.

use crate::{Error, Result};
use candle_core::Tensor;
use std::ops::Range;
use std::sync::Arc;

/// What a token sees by its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttentionPattern {
    /// Every token.
    #[default]
    Full,
    /// Itself and the tokens before it.
    Causal,
    /// Itself and the tokens at most so many places away, on both sides (ModernBERT's local attention).
    Local(usize),
}

impl AttentionPattern {
    /// The keys that query number `query` sees, of `keys`.
    #[inline(always)]
    pub(super) fn keys_of(self, query: usize, keys: usize) -> Range<usize> {
        let (start, end) = match self {
            Self::Full => (0, keys),
            Self::Causal => (0, keys.min(query + 1)),
            Self::Local(reach) => (query.saturating_sub(reach), keys.min(query.saturating_add(reach + 1))),
        };
        start.min(end)..end
    }
}

/// Which keys each query sees: by position, and by which keys are padding; and what is added to its scores, where positions
/// are relative. A query that sees no key gets zeros.
#[derive(Debug, Clone, Default)]
pub struct AttentionMask {
    pattern: AttentionPattern,
    padding: Option<KeyPadding>,
    bias: Option<Tensor>,
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
        Self { pattern: AttentionPattern::Causal, ..Self::default() }
    }

    /// Query i sees the keys at most `reach` places from i, on both sides; needs as many queries as keys.
    #[must_use]
    pub fn local(reach: usize) -> Self {
        Self { pattern: AttentionPattern::Local(reach), ..Self::default() }
    }

    /// Also adds `bias` to the scaled scores, before the softmax: MPNet's and T5's relative positions. It gets a gradient.
    ///
    /// # Shapes
    /// bias (H,L,S): heads, queries, keys; the same for every row of the batch.
    ///
    /// # Errors
    /// When the bias has another rank.
    pub fn with_bias(self, bias: Tensor) -> Result<Self> {
        if bias.rank() != 3 {
            return Err(Error::argument("bias", format!("has shape {:?}, expected (H, L, S)", bias.dims())));
        }
        Ok(Self { bias: Some(bias), ..self })
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

    /// What is added to the scores, (H,L,S).
    #[must_use]
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    pub(super) fn check(&self, batch: usize, heads: usize, queries: usize, keys: usize) -> Result<()> {
        if self.pattern != AttentionPattern::Full && queries != keys {
            return Err(Error::argument(
                "mask",
                format!("a causal or local mask needs as many queries as keys, got {queries} and {keys}"),
            ));
        }
        if let Some(bias) = self.bias.as_ref().filter(|bias| bias.dims() != [heads, queries, keys]) {
            let message = format!("has shape {:?}, expected ({heads}, {queries}, {keys})", bias.dims());
            return Err(Error::argument("bias", message));
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
            return vec![KeySpan { end: keys, holes: Vec::new() }; batch];
        };
        padding.keep.chunks(keys.max(1)).map(KeySpan::new).collect()
    }
}

/// The keys of one row of the batch: the end of the last that is kept, and the hidden ones before that end, in order.
#[derive(Debug, Clone)]
pub(super) struct KeySpan {
    pub(super) end: usize,
    pub(super) holes: Vec<usize>,
}

impl KeySpan {
    fn new(keep: &[bool]) -> Self {
        let end = keep.iter().rposition(|&keep| keep).map_or(0, |last| last + 1);
        let holes = (0..end).filter(|&key| !keep[key]).collect();
        Self { end, holes }
    }

    /// The hidden keys among `keys`.
    #[inline(always)]
    pub(super) fn holes_in(&self, keys: &Range<usize>) -> &[usize] {
        let [start, end] = [keys.start, keys.end].map(|key| self.holes.partition_point(|&hole| hole < key));
        &self.holes[start..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_ends_at_the_last_kept_key_and_lists_the_holes_before_it() {
        let span = KeySpan::new(&[false, true, false, true, false, false]);
        assert_eq!((span.end, &span.holes[..], span.holes_in(&(1..4))), (4, &[0, 2][..], &[2][..]));
        let empty = KeySpan::new(&[false; 3]);
        assert_eq!((empty.end, empty.holes.len()), (0, 0));
    }

    #[test]
    fn key_padding_of_another_size_is_refused() {
        assert!(AttentionMask::none().with_key_padding(vec![true; 5], 2, 3).is_err());
        let mask = AttentionMask::none().with_key_padding(vec![true; 6], 2, 3).unwrap();
        assert!(mask.check(2, 1, 7, 3).is_ok());
        assert!(mask.check(3, 1, 2, 2).is_err());
        assert!(AttentionMask::causal().check(1, 1, 2, 3).is_err());
        assert!(AttentionMask::local(4).check(1, 1, 2, 3).is_err());
    }
}
