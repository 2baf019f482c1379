//! Image towers by timm's names (reference: `TimmModel` of `timm_model.py`): which tower, and the projection behind it. The
//! towers themselves are in [`families::timm`](super::super::timm).

use super::part::{ImagePart, PartSource, Projection, unsupported};
use crate::Result;
use crate::encoder::ImageEncoderConfig;
use crate::families::FamilySource;
use crate::project::MlpBias;
use crate::weights::Renames;

/// What a timm tower is made from.
pub(in crate::families) struct TimmSource<'a> {
    /// `timm_model_name`, without the tag behind a dot.
    pub(in crate::families) name: String,
    /// `timm_pool`: `avg`, `token`, `map`, empty for the architecture's own, ….
    pub(in crate::families) pool: String,
    /// Side of the square input in pixels (`image_size`); the architecture's own where the file says nothing.
    pub(in crate::families) image_size: Option<usize>,
    /// Width D of the shared space.
    pub(in crate::families) embed_dim: usize,
    /// `vision_cfg`, and the tensors below `visual.trunk.` by their names there.
    pub(in crate::families) source: FamilySource<'a>,
}

/// A timm tower without classifier.
#[derive(Debug)]
pub(in crate::families) struct TimmTower {
    /// The tower and its pooling: what timm's `forward_head(…, pre_logits=True)` gives.
    pub(in crate::families) config: ImageEncoderConfig,
    /// From the files' names below `visual.trunk.` to the tower's.
    pub(in crate::families) renames: Renames,
    /// Where the classifier stands below `visual.trunk.` (`head`, `head.fc`): where open_clip adds no projection it is a
    /// linear layer with a bias, `embed_dim` wide.
    pub(in crate::families) classifier: &'static str,
}

/// One architecture of timm: `Ok(None)` where the name is not one of its own.
type Maker = fn(&TimmSource<'_>) -> Result<Option<TimmTower>>;

/// The architectures there are.
const MAKERS: [Maker; 0] = [];

/// The image half with a timm tower.
///
/// # Errors
/// When there is no such tower, or an option is unknown.
pub(super) fn image_part(part: &PartSource<'_>, name: &str) -> Result<ImagePart> {
    let config = part.config();
    let timm = TimmSource {
        name: name.split('.').next().unwrap_or(name).to_string(),
        pool: config.text("timm_pool")?.unwrap_or_else(|| "avg".to_string()),
        image_size: Some(config.side("image_size", 224)?),
        embed_dim: part.embed_dim,
        source: FamilySource { config: config.clone(), tensors: part.source.below("trunk"), role: part.source.role },
    };
    let found = MAKERS.iter().find_map(|maker| maker(&timm).transpose()).transpose()?;
    let Some(TimmTower { config: tower, renames, classifier }) = found else {
        return Err(unsupported(config, "timm_model_name", name, "none of timm's towers"));
    };
    let projection = match config.text("timm_proj")?.as_deref() {
        None if config.has("timm_proj") => classifier_projection(classifier, part),
        Some("") => classifier_projection(classifier, part),
        None | Some("linear") => Projection::linear("head.proj", part.embed_dim, config.flag("timm_proj_bias", false)?),
        Some("mlp") => {
            let bias = if config.flag("timm_proj_bias", false)? { MlpBias::Both } else { MlpBias::First };
            Projection::mlp(["head.mlp.fc1", "head.mlp.fc2"], part.embed_dim, 2 * part.embed_dim, bias)
        }
        Some("none") => Projection::none(part.embed_dim),
        Some(other) => return Err(unsupported(config, "timm_proj", other, "linear, mlp, none and the empty text")),
    };
    Ok(ImagePart { config: tower, renames: renames.within("trunk"), projection })
}

fn classifier_projection(classifier: &str, part: &PartSource<'_>) -> Projection {
    Projection::linear(&format!("trunk.{classifier}"), part.embed_dim, true)
}
