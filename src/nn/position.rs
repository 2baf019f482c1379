//! Learned position embeddings, carried to another grid.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How position embeddings are carried to another grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionResize {
    /// PyTorch's `interpolate(mode="bicubic", align_corners=False)`, which Hugging Face's ViT, DeiT, CLIP, SigLIP and DINOv2 call.
    #[default]
    Bicubic,
    /// The same with `antialias=True` (open_clip's `resize_pos_embed`, timm's `resample_abs_pos_embed`).
    BicubicAntialias,
    /// `mode="bilinear"` with `antialias=True` (SigLIP2 NaFlex).
    BilinearAntialias,
}

/// Carries the position embeddings of a square grid to `rows`×`columns`; the first `prefix` rows (class token and the like)
/// stay as they are.
///
/// Interpolation is linear in the embeddings, so it is one product with a constant matrix, and gradients pass.
///
/// # Shapes
/// (prefix+G·G, E) → (prefix+rows·columns, E).
///
/// # Errors
/// When the table holds no square grid after its prefix.
pub fn interpolate_positions(
    table: &Tensor,
    prefix: usize,
    (rows, columns): (usize, usize),
    resize: PositionResize,
) -> Result<Tensor> {
    let (count, _) = table.dims2()?;
    let grid = (count.saturating_sub(prefix) as f64).sqrt().round() as usize;
    if grid * grid + prefix != count {
        let message = format!("{count} positions are not {prefix} and a square grid");
        return Err(Error::argument("position embeddings", message));
    }
    if (rows, columns) == (grid, grid) {
        return Ok(table.clone());
    }
    let (vertical, horizontal) = (resize.weights(grid, rows), resize.weights(grid, columns));
    let mut matrix = vec![0f32; rows * columns * grid * grid];
    for (i, from_row) in vertical.iter().enumerate() {
        for (j, from_column) in horizontal.iter().enumerate() {
            let row = &mut matrix[(i * columns + j) * grid * grid..][..grid * grid];
            for (y, wy) in from_row {
                for (x, wx) in from_column {
                    row[y * grid + x] += (wy * wx) as f32;
                }
            }
        }
    }
    let matrix = Tensor::from_vec(matrix, (rows * columns, grid * grid), table.device())?.to_dtype(table.dtype())?;
    let patches = matrix.matmul(&table.narrow(0, prefix, grid * grid)?.contiguous()?)?;
    Ok(Tensor::cat(&[table.narrow(0, 0, prefix)?, patches], 0)?)
}

impl PositionResize {
    /// For each output position the (input index, weight) that it is made of.
    fn weights(self, input: usize, output: usize) -> Vec<Vec<(usize, f64)>> {
        match self {
            Self::Bicubic => cubic_weights(input, output),
            Self::BicubicAntialias => antialias_weights(input, output, 2.0, |x| keys(x, -0.5)),
            Self::BilinearAntialias => antialias_weights(input, output, 1.0, |x| (1.0 - x).max(0.0)),
        }
    }
}

/// The cubic kernel of Keys (1981) at distance `x` ≥ 0.
fn keys(x: f64, a: f64) -> f64 {
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}

/// Four weights each: the cubic kernel with a = −0.75, edges repeated.
fn cubic_weights(input: usize, output: usize) -> Vec<Vec<(usize, f64)>> {
    let scale = input as f64 / output as f64;
    let row = |i: usize| {
        let center = scale * (i as f64 + 0.5) - 0.5;
        let first = center.floor() - 1.0;
        let weight = |k: usize| keys((first + k as f64 - center).abs(), -0.75);
        let index = |k: usize| (first as i64 + k as i64).clamp(0, input as i64 - 1) as usize;
        (0..4).map(|k| (index(k), weight(k))).collect()
    };
    (0..output).map(row).collect()
}

/// A kernel that widens as the grid shrinks, its weights brought to a sum of one; what lies outside of the grid is left out
/// (reference: `UpSampleKernel.cpp` of PyTorch, `_compute_indices_min_size_weights_aa`).
fn antialias_weights(input: usize, output: usize, support: f64, kernel: impl Fn(f64) -> f64) -> Vec<Vec<(usize, f64)>> {
    let scale = input as f64 / output as f64;
    let width = scale.max(1.0);
    let row = |i: usize| {
        let center = scale * (i as f64 + 0.5);
        let first = ((center - support * width + 0.5).floor().max(0.0)) as usize;
        let last = ((center + support * width + 0.5).floor() as usize).min(input);
        let weights: Vec<f64> = (first..last).map(|j| kernel(((j as f64 - center + 0.5) / width).abs())).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().enumerate().map(|(k, w)| (first + k, w / sum)).collect()
    };
    (0..output).map(row).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn a_constant_table_stays_constant_and_the_prefix_is_untouched() -> Result<()> {
        let mut values = vec![2f32; 17];
        values[0] = 9.0;
        let table = Tensor::from_vec(values, (17, 1), &Device::Cpu)?;
        let out = interpolate_positions(&table, 1, (3, 7), PositionResize::Bicubic)?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(out.len(), 22);
        assert_eq!(out[0], 9.0);
        assert!(out[1..].iter().all(|v| (v - 2.0).abs() < 1e-6), "{out:?}");
        Ok(())
    }

    #[test]
    fn numbers_of_pytorch() -> Result<()> {
        // torch.nn.functional.interpolate(torch.arange(9.).reshape(1,1,3,3)**2, size=(2,2), mode="bicubic")
        let table = Tensor::from_vec((0..9).map(|v| (v * v) as f32).collect(), (9, 1), &Device::Cpu)?;
        let out = interpolate_positions(&table, 0, (2, 2), PositionResize::Bicubic)?.flatten_all()?.to_vec1::<f32>()?;
        let expected = TORCH;
        for (a, b) in out.iter().zip(expected) {
            assert!((a - b).abs() < 1e-4, "{out:?}");
        }
        Ok(())
    }

    #[test]
    fn numbers_of_pytorch_with_antialiasing() -> Result<()> {
        // The same with antialias=True, to (2, 2) and to (4, 4)[0], and with mode="bilinear" to (2, 2).
        let table = Tensor::from_vec((0..9).map(|v| (v * v) as f32).collect(), (9, 1), &Device::Cpu)?;
        let cases = [
            (PositionResize::BicubicAntialias, (2, 2), &AA_CUBIC_2[..]),
            (PositionResize::BicubicAntialias, (4, 4), &AA_CUBIC_4[..]),
            (PositionResize::BilinearAntialias, (2, 2), &AA_LINEAR_2[..]),
        ];
        for (resize, grid, expected) in cases {
            let out = interpolate_positions(&table, 0, grid, resize)?.flatten_all()?.to_vec1::<f32>()?;
            for (a, b) in out.iter().zip(expected) {
                assert!((a - b).abs() < 1e-4, "{resize:?} {grid:?}: {out:?}");
            }
        }
        Ok(())
    }

    const AA_CUBIC_2: [f32; 4] = [2.871_166_5, 8.197_848, 30.284_525, 47.044_525];
    const AA_CUBIC_4: [f32; 4] = [-0.506_014_7, -0.228_327_5, 1.267_337_2, 3.043_328_3];
    const AA_LINEAR_2: [f32; 4] = [4.593_750_5, 9.906_251, 29.906_25, 44.593_75];
    const TORCH: [f32; 4] = [1.430_755_6, 6.522_369_4, 32.397_37, 53.180_756];

    #[test]
    fn gradients_reach_the_table() -> Result<()> {
        let table = Var::ones((5, 2), candle_core::DType::F32, &Device::Cpu)?;
        let grads = interpolate_positions(&table, 1, (3, 3), PositionResize::Bicubic)?.sum_all()?.backward()?;
        let total = grads.get(&table).map(|g| g.sum_all()?.to_scalar::<f32>()).transpose()?;
        assert!((total.unwrap_or(0.0) - 20.0).abs() < 1e-3, "{total:?}");
        Ok(())
    }

    #[test]
    fn a_table_without_a_square_grid_is_refused() -> Result<()> {
        let table = Tensor::zeros((7, 2), candle_core::DType::F32, &Device::Cpu)?;
        assert!(interpolate_positions(&table, 1, (2, 2), PositionResize::Bicubic).is_err());
        Ok(())
    }
}
