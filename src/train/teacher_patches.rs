//! A teacher's patches as a student compares them with its own: on the student's grid, as wide as its tokens, and without what all
//! of them have in common.
//!
//! A token t of the teacher becomes (t − mean)·R of unit length, R a Gaussian matrix that never changes: cosines stay what they are but for some
//! hundredths (Johnson and Lindenstrauss 1984), and nothing has to be trained beside the model.

use candle_core::{DType, Device, Tensor};

use crate::nn::{PositionResize, interpolate_positions};
use crate::towers::PatchDepth;
use crate::weights::{Init, Params, RandomSource};
use crate::{ClipModel, Error, Result, ops};

/// A student's patches: how many P, and how wide E their tokens are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PatchShape {
    pub(super) count: usize,
    pub(super) width: usize,
}

impl PatchShape {
    /// The patches of `model`, whose image tower is trained.
    pub(super) fn of(model: &ClipModel) -> Result<Self> {
        let encoder = model.image_encoder();
        let fail = |message: &str| Error::argument("DistillLoss::patches", message.to_string());
        if encoder.is_frozen() {
            return Err(fail("cannot be compared: the image tower is frozen"));
        }
        let config = encoder.processor().config();
        let size = config.output_size().ok_or_else(|| fail("need images of one size; give the processor a crop"))?;
        let shape = (1, 3, size.height as usize, size.width as usize);
        let pixels = Tensor::zeros(shape, DType::F32, encoder.device())?;
        let (_, patches) = encoder.pooled_and_patches(&pixels, None, PatchDepth::TwoThirds)?;
        let (_, count, width) = patches.dims3()?;
        Ok(Self { count, width })
    }
}

/// Gathers the teacher's tokens of all images.
pub(super) struct PatchTargets {
    shape: PatchShape,
    /// (images,P,E) in f16, not centred yet.
    chunks: Vec<Tensor>,
    /// The sum of the chunks' tokens (E).
    sum: Option<Tensor>,
    /// The teacher's grid on the student's, and its width on the student's.
    maps: Option<(Tensor, Tensor)>,
}

impl PatchTargets {
    pub(super) fn new(shape: PatchShape) -> Self {
        Self { shape, chunks: Vec::new(), sum: None, maps: None }
    }

    /// Takes the tokens (B,P′,E′) of the next images.
    pub(super) fn push(&mut self, tokens: &Tensor) -> Result<()> {
        let PatchShape { count, width } = self.shape;
        let tokens = tokens.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let (batch, from_count, from_width) = tokens.dims3()?;
        if self.maps.is_none() {
            self.maps = Some((grid_map(from_count, count)?, width_map(from_width, width)?));
        }
        let Some((grid, map)) = &self.maps else { return Ok(()) };
        let tokens = tokens.contiguous()?.reshape((batch * from_count, from_width))?.matmul(map)?;
        let tokens = tokens.reshape((batch, from_count, width))?;
        let tokens = if from_count == count { tokens } else { grid.broadcast_matmul(&tokens)? };
        let sum = tokens.sum((0, 1))?;
        self.sum = Some(match self.sum.take() {
            Some(before) => (before + sum)?,
            None => sum,
        });
        self.chunks.push(tokens.to_dtype(DType::F16)?);
        Ok(())
    }

    /// Unit rows (images, P·E), f16.
    pub(super) fn finish(self) -> Result<Tensor> {
        let PatchShape { count, width } = self.shape;
        let images = self.chunks.iter().map(|chunk| chunk.dim(0)).sum::<candle_core::Result<usize>>()?;
        let none = || Error::argument("images", "there is none that can be read; give at least one");
        let mean = (self.sum.ok_or_else(none)? / (images * count) as f64)?;
        let unit = |chunk: Tensor| -> Result<Tensor> {
            let rows = chunk.to_dtype(DType::F32)?.broadcast_sub(&mean)?.reshape(((), width))?;
            Ok(ops::l2_normalize(&rows)?.to_dtype(DType::F16)?.reshape(((), count * width))?)
        };
        let chunks = self.chunks.into_iter().map(unit).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&chunks, 0)?)
    }
}

/// What makes `to` patches of a square of `from`: (to,from).
fn grid_map(from: usize, to: usize) -> Result<Tensor> {
    let side = (to as f64).sqrt().round() as usize;
    if side * side != to {
        let message =
            format!("are {to} of the student, no square; only square images can be compared with a teacher's");
        return Err(Error::argument("patches", message));
    }
    let all = Tensor::eye(from, DType::F32, &Device::Cpu)?;
    interpolate_positions(&all, 0, (side, side), PositionResize::BilinearAntialias)
}

/// A Gaussian matrix (from,to), the same in every run.
fn width_map(from: usize, to: usize) -> Result<Tensor> {
    let source = RandomSource::new(0, DType::F32, &Device::Cpu);
    let std = 1.0 / (to as f32).sqrt();
    Ok(Params::new(source).get("patches", &[from, to], Init::Normal { std })?.detach())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cosine(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn tokens_of_another_grid_and_width_keep_their_angles() {
        // Four images of 4×4 patches, 64 wide: the left half of each shows one thing, the right half another.
        let base = width_map(64, 2).unwrap().t().unwrap().to_vec2::<f32>().unwrap();
        let values = (0..4 * 16).flat_map(|patch| base[usize::from(patch % 4 >= 2)].clone()).collect();
        let tokens = Tensor::from_vec::<_, f32>(values, (4, 16, 64), &Device::Cpu).unwrap();
        let mut targets = PatchTargets::new(PatchShape { count: 4, width: 48 });
        for images in [tokens.narrow(0, 0, 1).unwrap(), tokens.narrow(0, 1, 3).unwrap()] {
            targets.push(&images).unwrap();
        }
        let rows = targets.finish().unwrap();
        assert_eq!((rows.dims(), rows.dtype()), (&[4, 4 * 48][..], DType::F16));
        let rows = rows.to_dtype(DType::F32).unwrap().reshape((16, 48)).unwrap().to_vec2::<f32>().unwrap();
        for (patch, row) in rows.iter().enumerate() {
            // Of two kinds as frequent, each lies opposite to the other around their mean.
            let same = if patch % 2 == 0 { 1.0 } else { -1.0 };
            assert!((cosine(row, &rows[0]) - same).abs() < 1e-2, "{patch}: {}", cosine(row, &rows[0]));
        }
    }

    #[test]
    fn what_is_no_square_of_patches_is_refused() {
        let tokens = |count| Tensor::ones((1, count, 4), DType::F32, &Device::Cpu).unwrap();
        let push = |to, from| PatchTargets::new(PatchShape { count: to, width: 4 }).push(&tokens(from));
        assert!(push(4, 9).is_ok());
        assert!(push(6, 9).unwrap_err().to_string().starts_with("patches: are 6"));
        assert!(push(4, 8).is_err());
        assert!(PatchTargets::new(PatchShape { count: 4, width: 4 }).finish().is_err());
    }
}
