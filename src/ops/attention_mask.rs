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
    texts: Option<Texts>,
}

/// How many queries and keys each of several texts has that lie end to end in one row.
#[derive(Debug, Clone)]
struct Texts {
    queries: Arc<[usize]>,
    keys: Arc<[usize]>,
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

    /// For one row in which several texts lie end to end: text i has the next `queries[i]` queries and the next `keys[i]` keys, and
    /// sees itself alone. Positions, and the bias, count from each text's start.
    ///
    /// # Shapes
    /// q (1,L,E) and k (1,S,E), where L and S are the sums of `queries` and `keys`.
    ///
    /// # Errors
    /// When the lists differ in length, or the mask hides padding.
    pub fn with_texts(self, queries: impl Into<Arc<[usize]>>, keys: impl Into<Arc<[usize]>>) -> Result<Self> {
        let texts = Texts { queries: queries.into(), keys: keys.into() };
        if texts.queries.len() != texts.keys.len() {
            let message = format!("{} texts, but queries of {}", texts.keys.len(), texts.queries.len());
            return Err(Error::argument("queries", message));
        }
        if self.padding.is_some() {
            return Err(Error::argument("mask", "hides padding, which texts laid end to end do not have"));
        }
        Ok(Self { texts: Some(texts), ..self })
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

    /// The queries and keys of each text, where several lie end to end.
    pub(super) fn texts(&self) -> Option<(&[usize], &[usize])> {
        self.texts.as_ref().map(|texts| (&*texts.queries, &*texts.keys))
    }

    /// The same mask without padding and texts: what hides by position, and the bias.
    #[must_use]
    pub fn by_position(&self) -> Self {
        Self { pattern: self.pattern, bias: self.bias.clone(), ..Self::default() }
    }

    pub(super) fn check(&self, batch: usize, heads: usize, queries: usize, keys: usize) -> Result<()> {
        if let Some((q, k)) = self.texts() {
            return self.check_texts(q, k, [batch, heads, queries, keys]);
        }
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

    fn check_texts(&self, q: &[usize], k: &[usize], [batch, heads, queries, keys]: [usize; 4]) -> Result<()> {
        let sums = (q.iter().sum::<usize>(), k.iter().sum::<usize>());
        if batch != 1 || sums != (queries, keys) || (self.pattern != AttentionPattern::Full && q != k) {
            let message = format!(
                "is for one row of texts with {} queries and {} keys together, got {batch} rows of {queries} and {keys}",
                sums.0, sums.1
            );
            return Err(Error::argument("mask", message));
        }
        let longest = |lengths: &[usize]| lengths.iter().copied().max().unwrap_or(0);
        let fits = |bias: &&Tensor| match *bias.dims() {
            [h, l, s] => h == heads && l >= longest(q) && s >= longest(k),
            _ => false,
        };
        match self.bias.as_ref().filter(|bias| !fits(bias)) {
            Some(bias) => {
                let message =
                    format!("has shape {:?}, expected at least ({heads}, {}, {})", bias.dims(), longest(q), longest(k));
                Err(Error::argument("bias", message))
            }
            None => Ok(()),
        }
    }

    /// Where the queries and keys of every row of the batch, or of every text, are.
    pub(super) fn rows(&self, batch: usize, queries: usize, keys: usize) -> Vec<Row> {
        if let Some((q, k)) = self.texts() {
            let (mut first_query, mut first_key) = (0, 0);
            let row = |(&queries, &keys): (&usize, &usize)| {
                let span = KeySpan { end: keys, holes: Vec::new() };
                let row = Row { batch: 0, first_query, queries, first_key, keys, span };
                (first_query, first_key) = (first_query + queries, first_key + keys);
                row
            };
            return q.iter().zip(k).map(row).collect();
        }
        let row = |(batch, span)| Row { batch, first_query: 0, queries, first_key: 0, keys, span };
        match &self.padding {
            None => (0..batch).map(|b| row((b, KeySpan { end: keys, holes: Vec::new() }))).collect(),
            Some(padding) => padding.keep.chunks(keys.max(1)).map(KeySpan::new).enumerate().map(row).collect(),
        }
    }

    /// How many tokens of each row matter, where they are the row's first ones: those that are no padding; of a causal mask, those
    /// up to the position that is read. `None` where hidden tokens lie between others, or a position that is read is hidden.
    ///
    /// # Shapes
    /// `read`: one position a row, of B; rows of L = `length` tokens.
    #[must_use]
    pub fn live_lengths(&self, batch: usize, length: usize, read: Option<&[usize]>) -> Option<Vec<usize>> {
        let row = |row: Row| {
            let position = read.map(|read| read.get(row.batch).copied().unwrap_or(usize::MAX));
            let end = match position {
                Some(position) if self.pattern == AttentionPattern::Causal => {
                    row.span.end.min(position.saturating_add(1))
                }
                _ => row.span.end,
            };
            let whole = row.span.holes_in(&(0..end)).is_empty() && position.is_none_or(|position| position < end);
            (whole && end > 0).then_some(end)
        };
        self.rows(batch, length, length).into_iter().map(row).collect()
    }
}

/// The queries and keys that belong together: those of a row of the batch, or of a text among several in one row.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// Which row of the batch they lie in.
    pub(super) batch: usize,
    pub(super) first_query: usize,
    pub(super) queries: usize,
    pub(super) first_key: usize,
    pub(super) keys: usize,
    /// Which of the keys matter.
    pub(super) span: KeySpan,
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
