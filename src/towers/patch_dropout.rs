//! [`PatchDropout`]: in training an image tower looks at some patches only (FLIP, Li et al. 2022, arXiv 2212.00794, section 3;
//! open_clip's `PatchDropout`). A step costs less, and little is lost; class tokens and registers are always kept.

use candle_core::Tensor;

use crate::random::below;
use crate::{Error, Result};

/// Which patches of each of B images are kept. They are drawn from a number an image, so that they do not depend on the batch,
/// the number of workers or the device.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchDropout {
    keep: f64,
    draws: Vec<u64>,
}

impl PatchDropout {
    /// Keeps the share `keep` of each image's patches, drawn from its number in `draws`.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if `keep` is not above 0 and at most 1.
    pub fn new(keep: f64, draws: Vec<u64>) -> Result<Self> {
        if keep > 0.0 && keep <= 1.0 {
            return Ok(Self { keep, draws });
        }
        Err(Error::argument("patch_keep", format!("is {keep}; it must be above 0 and at most 1")))
    }

    /// The same of some of the images.
    #[must_use]
    pub(crate) fn rows(&self, rows: impl IntoIterator<Item = usize>) -> Self {
        Self { keep: self.keep, draws: rows.into_iter().map(|row| self.draws[row]).collect() }
    }

    /// The patches of image `draw` that are kept, in order: of `count` the share rounded down, at least one.
    fn kept(&self, draw: u64, count: usize) -> Vec<usize> {
        let mut rng = crate::random::stream(draw, "patches");
        let keep = ((count as f64 * self.keep) as usize).clamp(1, count.max(1));
        let mut patches: Vec<usize> = (0..count).collect();
        for i in 0..keep.min(count) {
            let other = i + below(&mut rng, count - i);
            patches.swap(i, other);
        }
        patches.truncate(keep);
        patches.sort_unstable();
        patches
    }

    /// The first `prefix` tokens and the patches kept behind them, with the graph.
    ///
    /// # Shapes
    /// `tokens` (B,prefix+P,E) → (B,prefix+K,E).
    ///
    /// # Errors
    /// When there are not as many images as draws.
    pub(crate) fn apply(&self, tokens: &Tensor, prefix: usize) -> Result<Tensor> {
        let (batch, length, size) = tokens.dims3()?;
        if batch != self.draws.len() || length <= prefix {
            let message = format!("{} images with {length} tokens for {} draws", batch, self.draws.len());
            return Err(Error::argument("patch_dropout", message));
        }
        let mut rows = Vec::new();
        for (image, &draw) in self.draws.iter().enumerate() {
            let kept = self.kept(draw, length - prefix).into_iter().map(|patch| prefix + patch);
            rows.extend((0..prefix).chain(kept).map(|token| (image * length + token) as u32));
        }
        let (count, rows) = (rows.len() / batch, Tensor::new(rows, tokens.device())?);
        let flat = tokens.contiguous()?.reshape((batch * length, size))?;
        Ok(flat.index_select(&rows, 0)?.reshape((batch, count, size))?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_prefix_stays_and_the_share_of_patches_is_kept() {
        let values: Vec<f32> = (0..2 * 10).map(|i| i as f32).collect();
        let tokens = Tensor::from_vec(values, (2, 10, 1), &Device::Cpu).unwrap();
        let dropout = PatchDropout::new(0.5, vec![7, 8]).unwrap();
        let kept = dropout.apply(&tokens, 2).unwrap().squeeze(2).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!((kept[0].len(), &kept[0][..2], &kept[1][..2]), (6, &[0.0, 1.0][..], &[10.0, 11.0][..]));
        assert!(kept.iter().all(|row| row.windows(2).all(|pair| pair[0] < pair[1])), "{kept:?}");
        // An image's patches are its own, whatever else is in the batch.
        let alone = dropout.rows(1..2).apply(&tokens.narrow(0, 1, 1).unwrap(), 2).unwrap();
        assert_eq!(alone.squeeze(2).unwrap().to_vec2::<f32>().unwrap()[0], kept[1]);
        // So they are without the prefix: what a teacher says of each patch is chosen alike.
        let patches = dropout.apply(&tokens.narrow(1, 2, 8).unwrap(), 0).unwrap().squeeze(2).unwrap().to_vec2::<f32>();
        assert_eq!(patches.unwrap(), kept.iter().map(|row| row[2..].to_vec()).collect::<Vec<_>>());
        let all = PatchDropout::new(1.0, vec![7, 8]).unwrap().apply(&tokens, 2).unwrap();
        assert_eq!(all.flatten_all().unwrap().to_vec1::<f32>().unwrap(), (0..20).map(|i| i as f32).collect::<Vec<_>>());
        assert!(PatchDropout::new(0.0, vec![]).is_err() && PatchDropout::new(f64::NAN, vec![]).is_err());
        assert!(dropout.apply(&tokens.narrow(0, 0, 1).unwrap(), 2).is_err());
    }

    #[test]
    fn every_patch_is_kept_about_equally_often() {
        let mut counts = [0; 8];
        let dropout = PatchDropout::new(0.25, vec![]).unwrap();
        for draw in 0..4000 {
            dropout.kept(draw, 8).into_iter().for_each(|patch| counts[patch] += 1);
        }
        // 1000 ± 27 each; five standard deviations.
        assert!(counts.iter().all(|&count| (863..1137).contains(&count)), "{counts:?}");
    }
}
