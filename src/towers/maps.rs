//! Image towers whose output is a feature map (B,H,W,C): CLIP's ResNet, ConvNeXt, FastViT, Swin.

use candle_core::Tensor;

use super::{Collect, ImageTower, TowerOutput};
use crate::Result;
use crate::nn::{map_mean, map_tokens};

/// What such a tower computes; [`MapTower`] makes an [`ImageTower`] of it.
pub(super) trait FeatureMaps: Send + Sync {
    /// The last map.
    ///
    /// # Shapes
    /// `pixel_values` (B,C,H,W) → (B,h,w,E); `note` gets the stem's map and every stage's.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn features(&self, pixel_values: &Tensor, note: Note<'_>) -> Result<Tensor>;

    /// One row an image of the last map: its mean, if the tower says no more.
    ///
    /// # Shapes
    /// (B,h,w,E) → (B,D).
    ///
    /// # Errors
    /// When shapes do not fit.
    fn pool(&self, map: &Tensor) -> Result<Tensor> {
        map_mean(map)
    }
}

/// Takes a map, and keeps it if it was asked for.
pub(super) type Note<'a> = &'a mut dyn FnMut(&Tensor) -> Result<()>;

/// An image tower of feature maps.
pub(super) struct MapTower<T>(pub(super) T);

impl<T: FeatureMaps> ImageTower for MapTower<T> {
    fn pooled(&self, pixel_values: &Tensor) -> Result<Tensor> {
        self.0.pool(&self.0.features(pixel_values, &mut |_| Ok(()))?)
    }

    fn forward(&self, pixel_values: &Tensor, collect: Collect) -> Result<TowerOutput> {
        let mut hidden_states = Vec::new();
        let map = self.0.features(pixel_values, &mut |map| {
            if collect == Collect::HiddenStates {
                hidden_states.push(map_tokens(map)?);
            }
            Ok(())
        })?;
        Ok(TowerOutput { last_hidden_state: map_tokens(&map)?, pooled: self.0.pool(&map)?, hidden_states })
    }
}
