//! Learned position embeddings, carried to another grid.

use candle_core::Tensor;

use crate::{Error, Result};

/// Carries the position embeddings of a square grid to `rows`×`columns`, bicubically; the first `prefix` rows (class token
/// and the like) stay as they are.
///
/// The weights are those of PyTorch's `interpolate(mode="bicubic", align_corners=False)` without antialiasing, which is what
/// Hugging Face's ViT, DeiT, CLIP and DINOv2 call. Interpolation is linear in the embeddings, so it is one product with a
/// constant matrix, and gradients pass.
///
/// # Shapes
/// (prefix+G·G, E) → (prefix+rows·columns, E).
///
/// # Errors
/// When the table holds no square grid after its prefix.
pub fn interpolate_positions(table: &Tensor, prefix: usize, (rows, columns): (usize, usize)) -> Result<Tensor> {
    let (count, _) = table.dims2()?;
    let grid = (count.saturating_sub(prefix) as f64).sqrt().round() as usize;
    if grid * grid + prefix != count {
        let message = format!("{count} positions are not {prefix} and a square grid");
        return Err(Error::argument("position embeddings", message));
    }
    if (rows, columns) == (grid, grid) {
        return Ok(table.clone());
    }
    let (vertical, horizontal) = (cubic_weights(grid, rows), cubic_weights(grid, columns));
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

/// For each output position four (input index, weight): the cubic kernel of Keys (1981) with a = −0.75, edges repeated.
fn cubic_weights(input: usize, output: usize) -> Vec<[(usize, f64); 4]> {
    const A: f64 = -0.75;
    let near = |t: f64| ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0;
    let far = |t: f64| ((A * t - 5.0 * A) * t + 8.0 * A) * t - 4.0 * A;
    let scale = input as f64 / output as f64;
    (0..output)
        .map(|i| {
            let center = scale * (i as f64 + 0.5) - 0.5;
            let t = center - center.floor();
            let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
            let index = |k: usize| (center.floor() as i64 + k as i64 - 1).clamp(0, input as i64 - 1) as usize;
            std::array::from_fn(|k| (index(k), weights[k]))
        })
        .collect()
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
        let out = interpolate_positions(&table, 1, (3, 7))?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(out.len(), 22);
        assert_eq!(out[0], 9.0);
        assert!(out[1..].iter().all(|v| (v - 2.0).abs() < 1e-6), "{out:?}");
        Ok(())
    }

    #[test]
    fn numbers_of_pytorch() -> Result<()> {
        // torch.nn.functional.interpolate(torch.arange(9.).reshape(1,1,3,3)**2, size=(2,2), mode="bicubic")
        let table = Tensor::from_vec((0..9).map(|v| (v * v) as f32).collect(), (9, 1), &Device::Cpu)?;
        let out = interpolate_positions(&table, 0, (2, 2))?.flatten_all()?.to_vec1::<f32>()?;
        let expected = TORCH;
        for (a, b) in out.iter().zip(expected) {
            assert!((a - b).abs() < 1e-4, "{out:?}");
        }
        Ok(())
    }

    const TORCH: [f32; 4] = [1.430_755_6, 6.522_369_4, 32.397_37, 53.180_756];

    #[test]
    fn gradients_reach_the_table() -> Result<()> {
        let table = Var::ones((5, 2), candle_core::DType::F32, &Device::Cpu)?;
        let grads = interpolate_positions(&table, 1, (3, 3))?.sum_all()?.backward()?;
        let total = grads.get(&table).map(|g| g.sum_all()?.to_scalar::<f32>()).transpose()?;
        assert!((total.unwrap_or(0.0) - 20.0).abs() < 1e-3, "{total:?}");
        Ok(())
    }

    #[test]
    fn a_table_without_a_square_grid_is_refused() -> Result<()> {
        let table = Tensor::zeros((7, 2), candle_core::DType::F32, &Device::Cpu)?;
        assert!(interpolate_positions(&table, 1, (2, 2)).is_err());
        Ok(())
    }
}
