//! Image towers by timm's names (reference: `TimmModel` of `timm_model.py`): which tower, and the projection behind it. The
//! towers themselves are in [`families::timm`](super::super::timm).

use super::part::{ImagePart, PartSource, Projection, unsupported};
use crate::Result;
use crate::encoder::ImageEncoderConfig;
use crate::families::{FamilySource, timm};
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

/// The image half with a timm tower.
///
/// # Errors
/// When there is no such tower, or an option is unknown.
pub(super) fn image_part(part: &PartSource<'_>, name: &str) -> Result<ImagePart> {
    let config = part.config();
    let tower = TimmSource {
        name: name.split('.').next().unwrap_or(name).to_string(),
        pool: config.text("timm_pool")?.unwrap_or_else(|| "avg".to_string()),
        image_size: Some(config.side("image_size", 224)?),
        source: FamilySource { config: config.clone(), tensors: part.source.below("trunk"), role: part.source.role },
    };
    let found = timm::MAKERS.iter().find_map(|maker| maker(&tower).transpose()).transpose()?;
    let Some(TimmTower { config: tower, renames, classifier }) = found else {
        return Err(unsupported(config, "timm_model_name", name, &timm::names()));
    };
    let own = |renames: Renames| -> Result<_> {
        // The classifier is the projection: names are seen below the trunk here, and below `visual.` by the heads.
        let projection = Projection::linear(&format!("trunk.{classifier}"), part.embed_dim, true);
        Ok((renames.ignore(&format!("{classifier}.*"))?, projection))
    };
    let (renames, projection) = match config.text("timm_proj")?.as_deref() {
        None if config.has("timm_proj") => own(renames)?,
        Some("") => own(renames)?,
        None | Some("linear") => {
            (renames, Projection::linear("head.proj", part.embed_dim, config.flag("timm_proj_bias", false)?))
        }
        Some("mlp") => {
            let bias = if config.flag("timm_proj_bias", false)? { MlpBias::Both } else { MlpBias::First };
            let names = ["head.mlp.fc1", "head.mlp.fc2"];
            (renames, Projection::mlp(names, part.embed_dim, 2 * part.embed_dim, bias))
        }
        Some("none") => (renames, Projection::none(part.embed_dim)),
        Some(other) => return Err(unsupported(config, "timm_proj", other, "linear, mlp, none and the empty text")),
    };
    Ok(ImagePart { config: tower, renames: renames.within("trunk"), projection })
}
