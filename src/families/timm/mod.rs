//! Image towers by the names that timm gives them, as open_clip's `TimmModel` builds them: the transformers in [`vit`], [`eva`],
//! [`vitamin`] and [`swin`], the convolutional ones in [`convnext`] and [`fastvit`].
//!
//! What a name fixes stands in each file's table. The shapes of the tensors decide sizes where there are tensors; the number of
//! heads, which no shape tells, is the named architecture's, or what `timm_model_kwargs` in `vision_cfg` says (open_clip does
//! not write it; tests with small towers do).

mod convnext;
mod eva;
mod fastvit;
mod pool;
mod sizes;
mod swin;
mod vit;
mod vitamin;

use super::open_clip::{TimmSource, TimmTower, unsupported};
use crate::Result;
use pool::{Pool, PoolRules};
use sizes::Sizes;

/// One architecture of timm: `Ok(None)` where the name is not one of its own.
pub(super) type Maker = fn(&TimmSource<'_>) -> Result<Option<TimmTower>>;

/// The architectures there are.
pub(super) const MAKERS: [Maker; 6] =
    [vit::tower, eva::tower, vitamin::tower, swin::tower, convnext::tower, fastvit::tower];

/// One size of a tensor in the files, else what the name stands for.
fn size(timm: &TimmSource<'_>, tensor: &str, axis: usize, named: usize) -> usize {
    timm.source.shape(tensor).and_then(|shape| shape.get(axis)).copied().unwrap_or(named)
}

/// How many numbered things the files have below `prefix`, else what the name stands for.
fn count(timm: &TimmSource<'_>, prefix: &str, named: usize) -> usize {
    timm.source.count(prefix).filter(|&count| count > 0).unwrap_or(named)
}

/// Whether open_clip puts a projection of its own behind the tower.
fn is_projected(timm: &TimmSource<'_>) -> Result<bool> {
    let config = &timm.source.config;
    Ok(match config.text("timm_proj")?.as_deref() {
        Some("linear" | "mlp") => true,
        None => !config.has("timm_proj"),
        Some(_) => false,
    })
}

/// Refuses another pooling than the mean over the last map, which is the convolutional towers' own: an empty `timm_pool` means
/// the architecture's own only where open_clip adds a projection (reference: `TimmModel.__init__`).
fn require_mean(timm: &TimmSource<'_>) -> Result<()> {
    let config = &timm.source.config;
    let projected = is_projected(timm)?;
    match timm.pool.as_str() {
        "avg" => Ok(()),
        "" if projected => Ok(()),
        other => Err(unsupported(config, "timm_pool", other, "avg")),
    }
}
