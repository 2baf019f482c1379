//! CLIP's ResNet inside an open_clip model (`layers` is a list; reference: `modified_resnet.py`). The tower's parameters are
//! called as in the files; its pooling by attention ends in the projection, so nothing stands behind it.

use super::part::{ImagePart, PartSource, Projection};
use crate::encoder::ImageEncoderConfig;
use crate::towers::{ImagePooling, ImageTowerConfig, ResNetConfig};
use crate::weights::Renames;
use crate::{Error, Result};

/// How many times smaller than the image the last map is.
const REDUCTION: usize = 32;

/// The image half with a ResNet. Its activation is ReLU whatever `quick_gelu` says.
///
/// # Errors
/// When `layers` are not four numbers, or a value is of the wrong type.
pub(super) fn image_part(part: &PartSource<'_>) -> Result<ImagePart> {
    let (config, source) = (part.config(), &part.source);
    let size = |tensor: &str, axis: usize| source.shape(tensor).and_then(|shape| shape.get(axis)).copied();
    let mut depths = depths(part)?;
    for (index, depth) in depths.iter_mut().enumerate() {
        *depth = source.count(&format!("layer{}", index + 1)).filter(|&count| count > 0).unwrap_or(*depth);
    }
    let width = match size("conv3.weight", 0) {
        Some(width) => width,
        None => config.size("width", 64)?,
    };
    let head_width = config.size("head_width", 64)?;
    let image_size = config.side("image_size", 224)?;
    let grid =
        size("attnpool.positional_embedding", 0).map(|rows| (rows.saturating_sub(1) as f64).sqrt().round() as usize);
    let tower = ResNetConfig {
        depths,
        width,
        num_attention_heads: width.saturating_mul(32).checked_div(head_width).unwrap_or(0),
        output_size: size("attnpool.c_proj.weight", 0).unwrap_or(part.embed_dim),
        image_size: match grid {
            Some(grid) if grid != image_size / REDUCTION => grid.saturating_mul(REDUCTION),
            _ => image_size,
        },
        num_channels: size("conv1.weight", 1).unwrap_or(3),
    };
    Ok(ImagePart {
        config: ImageEncoderConfig { tower: ImageTowerConfig::ResNet(tower), pooling: ImagePooling::Pooler },
        renames: Renames::new(&[], &["*.num_batches_tracked"])?,
        projection: Projection::none(part.embed_dim),
    })
}

/// `layers`: how many bottlenecks each stage has.
fn depths(part: &PartSource<'_>) -> Result<[usize; 4]> {
    let layers = part.config().to_value().get("layers").cloned().unwrap_or_default();
    serde_json::from_value(layers.clone()).map_err(|_| {
        Error::file(part.config().path(), format!("vision_cfg.layers: expected four numbers, found {layers}"))
    })
}
