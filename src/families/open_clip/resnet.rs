//! CLIP's ResNet inside an open_clip model (`layers` is a list; reference: `modified_resnet.py`).

use super::part::{ImagePart, PartSource, unsupported};
use crate::Result;

/// The image half with a ResNet.
///
/// # Errors
/// When an option is unknown.
pub(super) fn image_part(part: &PartSource<'_>) -> Result<ImagePart> {
    Err(unsupported(part.config(), "layers", "a list (ResNet)", "a number (vision transformer)"))
}
