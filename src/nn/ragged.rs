//! [`Ragged`]: the rows of a batch without what nobody reads at their ends, laid end to end.
//!
//! (B,L,E) with lengths l₁ … l_B becomes (1,T,E), T = Σ lᵢ. What works on single tokens (linear layers, norms, MLPs) is left as it
//! is and computes T tokens instead of B·L; attention keeps the texts apart. The same numbers come out.

use candle_core::{DType, Tensor};

use super::Rope;
use crate::ops::{self, AttentionMask};
use crate::{Error, Result};

/// How many tokens of each row are computed.
#[derive(Debug, Clone)]
pub struct Ragged {
    lengths: Vec<usize>,
    /// L of the padded batch.
    length: usize,
}

impl Ragged {
    /// What has to be computed of `x` (B,L,E) under `mask`, if that is less than all of it: the tokens that are no padding, or, of
    /// a causal mask, those up to the position that is read in each row. On the CPU in f32; elsewhere padding costs less than
    /// what it takes to leave it out.
    #[must_use]
    pub fn of(x: &Tensor, mask: &AttentionMask, read: Option<&[usize]>) -> Option<Self> {
        let &[batch, length, _] = x.dims() else { return None };
        if !x.device().is_cpu() || x.dtype() != DType::F32 {
            return None;
        }
        let lengths = mask.live_lengths(batch, length, read)?;
        lengths.iter().any(|&live| live < length).then_some(Self { lengths, length })
    }

    /// The places in B·L of the tokens that stay.
    fn places(&self) -> impl Iterator<Item = usize> {
        let length = self.length;
        let row = move |(row, &live): (usize, &usize)| (0..live).map(move |column| row * length + column);
        self.lengths.iter().enumerate().flat_map(row)
    }

    fn index(&self, places: impl Iterator<Item = usize>, x: &Tensor) -> Result<Tensor> {
        let places: Vec<u32> = places.map(|place| place as u32).collect();
        let count = places.len();
        Ok(Tensor::from_vec(places, count, x.device())?)
    }

    /// The tokens that stay.
    ///
    /// # Shapes
    /// `x` (B,L,E) → (1,T,E).
    ///
    /// # Errors
    /// When x has other sizes than those this was made for.
    pub fn pack(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, length, _) = x.dims3()?;
        if (batch, length) != (self.lengths.len(), self.length) {
            let message = format!("has shape {:?}, expected ({}, {}, E)", x.dims(), self.lengths.len(), self.length);
            return Err(Error::argument("x", message));
        }
        Ok(x.flatten(0, 1)?.index_select(&self.index(self.places(), x)?, 0)?.unsqueeze(0)?)
    }

    /// The padded batch again, with zeros where nothing was computed.
    ///
    /// # Shapes
    /// `x` (1,T,E) → (B,L,E).
    ///
    /// # Errors
    /// When x has another number of tokens.
    pub fn unpack(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, size) = (self.lengths.len(), x.dim(2)?);
        let places = self.index(self.places(), x)?;
        let zeros = Tensor::zeros((batch * self.length, size), x.dtype(), x.device())?;
        Ok(zeros.index_add(&places, &x.squeeze(0)?, 0)?.reshape((batch, self.length, size))?)
    }

    /// The token at `positions[i]` of each text i.
    ///
    /// # Shapes
    /// `x` (1,T,E) → (1,B,E).
    ///
    /// # Errors
    /// When a position is not below its text's length.
    pub fn select(&self, x: &Tensor, positions: &[usize]) -> Result<Tensor> {
        let mut start = 0;
        let mut places = Vec::with_capacity(positions.len());
        for (&position, &live) in positions.iter().zip(&self.lengths) {
            if position >= live {
                let message = format!("position {position} of a text of {live} tokens");
                return Err(Error::argument("positions", message));
            }
            places.push(start + position);
            start += live;
        }
        Ok(x.index_select(&self.index(places.into_iter(), x)?, 1)?)
    }

    /// The mask for the texts end to end, by what `mask` hides by position.
    ///
    /// # Errors
    /// Never for the mask that this was made for.
    pub fn mask(&self, mask: &AttentionMask) -> Result<AttentionMask> {
        mask.by_position().with_texts(self.lengths.as_slice(), self.lengths.as_slice())
    }

    /// The mask where each text asks with one token, which sees all that is left of it.
    ///
    /// # Errors
    /// Never.
    pub fn mask_of_one(&self) -> Result<AttentionMask> {
        AttentionMask::none().with_texts(vec![1; self.lengths.len()], self.lengths.as_slice())
    }

    /// The angles of the tokens that stay, (T,D).
    ///
    /// # Errors
    /// When the tables are shorter than a text.
    pub fn rope(&self, rope: &Rope) -> Result<Rope> {
        rope.at(&self.lengths.iter().flat_map(|&live| 0..live).collect::<Vec<_>>())
    }
}

/// Where one token of each row of a batch is read.
#[derive(Clone, Copy)]
pub(super) struct Selection<'a> {
    pub(super) positions: &'a [usize],
    /// How the rows lie, if they are laid end to end.
    pub(super) ragged: Option<&'a Ragged>,
}

impl Selection<'_> {
    /// The tokens, as an attention's queries: (B,1,E), or (1,B,E) of texts end to end.
    pub(super) fn of(self, x: &Tensor) -> Result<Tensor> {
        match self.ragged {
            Some(ragged) => ragged.select(x, self.positions),
            None => Ok(ops::select_tokens(x, self.positions)?.unsqueeze(1)?),
        }
    }

    /// Turns them by the angles of their positions.
    pub(super) fn turn(self, rope: &Rope, query: &Tensor) -> Result<Tensor> {
        match self.ragged {
            Some(_) => rope.at(self.positions)?.apply(query),
            None => rope.apply_at(query, self.positions),
        }
    }

    /// (B,E) of them.
    pub(super) fn rows(self, x: &Tensor) -> Result<Tensor> {
        Ok(x.squeeze(usize::from(self.ragged.is_none()))?)
    }
}
