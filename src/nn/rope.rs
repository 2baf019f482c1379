//! Rotary positions for attention: the tables of cosines and sines, and how they turn queries and keys.

use candle_core::{DType, Device, Tensor};

use crate::ops::{self, RotaryPairs};
use crate::{Error, Result};

/// Tables of angles, one row a position. Constants: nothing in them is trained.
///
/// Su et al. 2021, <https://arxiv.org/abs/2104.09864>.
#[derive(Debug, Clone)]
pub struct Rope {
    cos: Tensor,
    sin: Tensor,
    pairs: RotaryPairs,
}

impl Rope {
    /// Tables that somebody else computed, over all D columns of a head (so each angle stands twice, where `pairs` says).
    ///
    /// # Shapes
    /// cos and sin (L,D).
    ///
    /// # Errors
    /// When the tables are not (L,D) both, or D is odd.
    pub fn new(cos: Tensor, sin: Tensor, pairs: RotaryPairs) -> Result<Self> {
        match (cos.dims(), sin.dims()) {
            (&[rows, width], &[other, also]) if (rows, width) == (other, also) && width.is_multiple_of(2) => {
                Ok(Self { cos, sin, pairs })
            }
            (cos, sin) => {
                let message = format!("tables of shapes {cos:?} and {sin:?}, expected (L, D) twice with an even D");
                Err(Error::argument("rope", message))
            }
        }
    }

    /// The tables of positions 0..`length` on a line: the angle of pair i at position p is `p · base^(−2i/D)`.
    ///
    /// # Errors
    /// When `width` (D, columns of a head) is odd, or the base is no positive number.
    pub fn line(length: usize, width: usize, base: f64, pairs: RotaryPairs, device: &Device) -> Result<Self> {
        if width == 0 || !width.is_multiple_of(2) || !(base > 0.0 && base.is_finite()) {
            let message = format!("{width} columns a head and base {base}; they must be even and positive");
            return Err(Error::argument("rope", message));
        }
        let (mut cos, mut sin) = (Vec::with_capacity(length * width), Vec::with_capacity(length * width));
        // The reference takes frequencies and angles in f32.
        let frequency = |i: usize| 1.0 / (base as f32).powf((2 * i) as f32 / width as f32);
        for position in 0..length {
            for column in 0..width {
                let i = match pairs {
                    RotaryPairs::Halves => column % (width / 2),
                    RotaryPairs::Interleaved => column / 2,
                };
                let angle = position as f32 * frequency(i);
                cos.push(angle.cos());
                sin.push(angle.sin());
            }
        }
        let table = |values| Tensor::from_vec(values, (length, width), device);
        Self::new(table(cos)?, table(sin)?, pairs)
    }

    /// The same tables after `count` tokens that are not turned: class and register tokens before the patches.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn after_prefix(self, count: usize) -> Result<Self> {
        if count == 0 {
            return Ok(self);
        }
        let shape = (count, self.cos.dim(1)?);
        let (dtype, device) = (self.cos.dtype(), self.cos.device().clone());
        let cos = Tensor::cat(&[Tensor::ones(shape, dtype, &device)?, self.cos], 0)?;
        let sin = Tensor::cat(&[Tensor::zeros(shape, dtype, &device)?, self.sin], 0)?;
        Ok(Self { cos, sin, pairs: self.pairs })
    }

    /// The tables in another type.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        Ok(Self { cos: self.cos.to_dtype(dtype)?, sin: self.sin.to_dtype(dtype)?, pairs: self.pairs })
    }

    /// Positions that the tables hold.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cos.dims()[0]
    }

    /// Whether there is no position at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Turns the queries or keys of all tokens.
    ///
    /// # Shapes
    /// (B,L,E) → (B,L,E), heads side by side in E; L as many as the tables' rows.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        ops::rotary(x, &self.cos, &self.sin, self.pairs)
    }

    /// Turns one token a row of the batch, row i being at `positions[i]`: the query of a pooled token.
    ///
    /// # Shapes
    /// (B,1,E) → (B,1,E).
    ///
    /// # Errors
    /// When there are not B positions, or one is past the tables.
    pub fn apply_at(&self, x: &Tensor, positions: &[usize]) -> Result<Tensor> {
        let (batch, one, size) = x.dims3()?;
        if one != 1 || batch != positions.len() {
            let message = format!("{positions:?} for tokens {:?}", x.dims());
            return Err(Error::argument("positions", message));
        }
        // The batch takes the place of the tokens.
        Ok(self.at(positions)?.apply(&x.reshape((1, batch, size))?)?.reshape((batch, 1, size))?)
    }

    /// The tables whose row i is that of position `positions[i]`.
    ///
    /// # Errors
    /// When a position is past the tables.
    pub fn at(&self, positions: &[usize]) -> Result<Self> {
        if let Some(position) = positions.iter().find(|&&position| position >= self.len()) {
            return Err(Error::argument("positions", format!("{position}, but there are {} angles", self.len())));
        }
        let rows: Vec<u32> = positions.iter().map(|&position| position as u32).collect();
        let rows = Tensor::from_vec(rows, positions.len(), self.cos.device())?;
        let (cos, sin) = (self.cos.index_select(&rows, 0)?, self.sin.index_select(&rows, 0)?);
        Ok(Self { cos, sin, pairs: self.pairs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_after_the_prefix_is_turned_as_the_first_of_the_line() -> Result<()> {
        let line = Rope::line(3, 4, 100.0, RotaryPairs::Interleaved, &Device::Cpu)?;
        let rope = line.clone().after_prefix(2)?;
        assert_eq!(rope.len(), 5);
        let x = Tensor::arange(0f32, 40., &Device::Cpu)?.reshape((1, 5, 8))?;
        let turned = rope.apply(&x)?;
        let rest = line.apply(&x.narrow(1, 2, 3)?)?;
        let values = |t: Tensor| t.flatten_all()?.to_vec1::<f32>();
        assert_eq!(values(turned.narrow(1, 2, 3)?)?, values(rest)?);
        assert_eq!(values(turned.narrow(1, 0, 2)?)?, values(x.narrow(1, 0, 2)?)?);
        let one = rope.apply_at(&x.narrow(1, 4, 1)?, &[4])?;
        assert_eq!(values(one)?, values(turned.narrow(1, 4, 1)?)?);
        Ok(())
    }

    #[test]
    fn lengths_stay_and_only_the_distance_matters() -> Result<()> {
        for pairs in [RotaryPairs::Halves, RotaryPairs::Interleaved] {
            let rope = Rope::line(9, 6, 10_000.0, pairs, &Device::Cpu)?;
            let x = Tensor::new(&[[[0.3f32, -1.2, 0.7, 0.5, 2.0, -0.1]]], &Device::Cpu)?.repeat((1, 9, 1))?;
            let y = rope.apply(&x)?;
            let dot = |i: usize, j: usize| -> Result<f32> {
                Ok((y.narrow(1, i, 1)? * y.narrow(1, j, 1)?)?.sum_all()?.to_scalar()?)
            };
            assert!((dot(4, 4)? - dot(0, 0)?).abs() < 1e-5);
            assert!((dot(1, 4)? - dot(5, 8)?).abs() < 1e-5);
        }
        Ok(())
    }

    #[test]
    fn tables_that_do_not_fit_are_refused() -> Result<()> {
        assert!(Rope::line(3, 5, 100.0, RotaryPairs::Halves, &Device::Cpu).is_err());
        assert!(Rope::line(3, 4, f64::NAN, RotaryPairs::Halves, &Device::Cpu).is_err());
        let rope = Rope::line(3, 4, 100.0, RotaryPairs::Halves, &Device::Cpu)?;
        assert!(rope.apply(&Tensor::zeros((1, 4, 8), DType::F32, &Device::Cpu)?).is_err());
        assert!(rope.apply(&Tensor::zeros((1, 3, 6), DType::F32, &Device::Cpu)?).is_err());
        assert!(rope.apply_at(&Tensor::zeros((1, 1, 8), DType::F32, &Device::Cpu)?, &[3]).is_err());
        Ok(())
    }
}
