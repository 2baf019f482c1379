//! Rotary positions on a grid: half of a head's angles turn with the row, half with the column.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::Rope;
use crate::ops::RotaryPairs;
use crate::{Error, Result};

/// Angles for a grid of patches, as EVA-02 and the Perception Encoder have them: at a patch in row y and column x, angle i of
/// each half is `c · base^(−i/n)` with n = D/4, where the coordinate `c = (y + offset) / rows · reference_grid` (or x and
/// columns). Pairs are interleaved.
///
/// Fang et al. 2023, arXiv 2303.11331, section 2; reference: `RotaryEmbeddingCat` of timm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridRope {
    /// The base of the frequencies.
    pub base: f64,
    /// Side of the grid that coordinates are scaled to, whatever the grid is.
    pub reference_grid: usize,
    /// The coordinate of the first row and column, before it is scaled.
    pub offset: f64,
    /// Which coordinate comes first.
    pub axes: GridAxes,
}

/// The order of the two coordinates in a head's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GridAxes {
    /// The row, then the column.
    RowFirst,
    /// The column, then the row.
    ColumnFirst,
}

impl Default for GridRope {
    /// EVA-02's.
    fn default() -> Self {
        Self { base: 10_000.0, reference_grid: 16, offset: 0.0, axes: GridAxes::RowFirst }
    }
}

impl GridRope {
    /// Refuses what no table can be made of: heads of `width` columns that four does not divide, a base or an offset that is no
    /// number to compute with, a grid of nothing.
    ///
    /// # Errors
    /// When it is one of these.
    pub fn check(&self, width: usize) -> Result<()> {
        let numbers = self.base > 0.0 && self.base.is_finite() && self.offset.is_finite();
        if width == 0 || !width.is_multiple_of(4) || !numbers || self.reference_grid == 0 {
            let message = format!("{self:?} with {width} columns a head: four divides them, and the base is positive");
            return Err(Error::argument("rope", message));
        }
        Ok(())
    }

    /// The tables for a grid of `rows`×`columns` patches and heads of `width` columns, row of the grid after row.
    ///
    /// # Shapes
    /// (rows·columns, width).
    ///
    /// # Errors
    /// As [`GridRope::check`].
    pub fn tables(&self, (rows, columns): (usize, usize), width: usize, device: &Device) -> Result<Rope> {
        self.check(width)?;
        // The reference takes coordinates, frequencies and angles in f32.
        let bands: Vec<f32> =
            (0..width / 4).map(|i| 1.0 / (self.base as f32).powf(i as f32 / (width / 4) as f32)).collect();
        let coordinates = |count: usize| -> Vec<f32> {
            let place = |i: usize| (i as f32 + self.offset as f32) / count as f32 * self.reference_grid as f32;
            (0..count).map(place).collect()
        };
        let (vertical, horizontal) = (coordinates(rows), coordinates(columns));
        let mut angles = Vec::with_capacity(rows * columns * width);
        for y in &vertical {
            for x in &horizontal {
                let (first, second) = match self.axes {
                    GridAxes::RowFirst => (y, x),
                    GridAxes::ColumnFirst => (x, y),
                };
                let both = bands.iter().map(|band| first * band).chain(bands.iter().map(|band| second * band));
                angles.extend(both.flat_map(|angle| [angle, angle]));
            }
        }
        let table = |of: fn(f32) -> f32| {
            Tensor::from_vec(angles.iter().copied().map(of).collect(), (rows * columns, width), device)
        };
        Rope::new(table(f32::cos)?, table(f32::sin)?, RotaryPairs::Interleaved)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn only_the_way_between_two_patches_matters() -> Result<()> {
        for axes in [GridAxes::RowFirst, GridAxes::ColumnFirst] {
            let rope = GridRope { axes, offset: 1.0, ..GridRope::default() }.tables((3, 3), 8, &Device::Cpu)?;
            let x = Tensor::new(&[[[0.3f32, -1.2, 0.7, 0.5, 2.0, -0.1, 0.4, 0.9]]], &Device::Cpu)?.repeat((1, 9, 1))?;
            let y = rope.apply(&x)?;
            let dot = |i: usize, j: usize| -> Result<f32> {
                Ok((y.narrow(1, i, 1)? * y.narrow(1, j, 1)?)?.sum_all()?.to_scalar()?)
            };
            assert!((dot(0, 4)? - dot(4, 8)?).abs() < 1e-5);
            assert!((dot(1, 2)? - dot(6, 7)?).abs() < 1e-5);
            assert!((dot(1, 2)? - dot(1, 4)?).abs() > 1e-2, "rows and columns turn other columns of a head");
        }
        Ok(())
    }

    #[test]
    fn coordinates_are_scaled_to_the_reference_grid() -> Result<()> {
        let rope = GridRope { reference_grid: 2, ..GridRope::default() };
        let (small, large) = (rope.tables((2, 2), 4, &Device::Cpu)?, rope.tables((4, 4), 4, &Device::Cpu)?);
        let x = Tensor::ones((1, 16, 4), DType::F32, &Device::Cpu)?;
        let row = |t: Tensor, i: usize| -> Result<Vec<f32>> { Ok(t.get(0)?.get(i)?.to_vec1()?) };
        // Patch (1, 1) of two by two is where patch (2, 2) of four by four is.
        assert_eq!(row(small.apply(&x.narrow(1, 0, 4)?)?, 3)?, row(large.apply(&x)?, 10)?);
        Ok(())
    }

    #[test]
    fn heads_that_cannot_be_quartered_are_refused() {
        assert!(GridRope::default().tables((2, 2), 6, &Device::Cpu).is_err());
        assert!(GridRope { base: f64::NAN, ..GridRope::default() }.tables((2, 2), 4, &Device::Cpu).is_err());
    }
}
