//! Image towers by the names that timm gives them, as open_clip's `TimmModel` builds them: the convolutional ones in [`convnext`]
//! and [`fastvit`].
//!
//! What a name fixes stands in each file's table. The shapes of the tensors decide sizes where there are tensors.

mod convnext;
mod fastvit;

use super::open_clip::{TimmSource, TimmTower, unsupported};
use crate::Result;

/// One architecture of timm: `Ok(None)` where the name is not one of its own.
pub(super) type Maker = fn(&TimmSource<'_>) -> Result<Option<TimmTower>>;

/// The architectures there are.
pub(super) const MAKERS: [Maker; 2] = [convnext::tower, fastvit::tower];

/// One size of a tensor in the files, else what the name stands for.
fn size(timm: &TimmSource<'_>, tensor: &str, axis: usize, named: usize) -> usize {
    timm.source.shape(tensor).and_then(|shape| shape.get(axis)).copied().unwrap_or(named)
}

/// How many numbered things the files have below `prefix`, else what the name stands for.
fn count(timm: &TimmSource<'_>, prefix: &str, named: usize) -> usize {
    timm.source.count(prefix).filter(|&count| count > 0).unwrap_or(named)
}

/// Refuses another pooling than the mean over the last map, which is the convolutional towers' own: an empty `timm_pool` means
/// the architecture's own only where open_clip adds a projection (reference: `TimmModel.__init__`).
fn require_mean(timm: &TimmSource<'_>) -> Result<()> {
    let config = &timm.source.config;
    let projected = match config.text("timm_proj")?.as_deref() {
        Some("linear" | "mlp") => true,
        None => !config.has("timm_proj"),
        Some(_) => false,
    };
    match timm.pool.as_str() {
        "avg" => Ok(()),
        "" if projected => Ok(()),
        other => Err(unsupported(config, "timm_pool", other, "avg")),
    }
}
