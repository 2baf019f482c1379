//! Hugging Face text towers inside an open_clip model (`hf_model_name`; reference: `hf_model.py`): tensors below
//! `transformer.`, the projection below `proj`.

use super::part::{PartSource, TextPart, unsupported};
use crate::Result;

/// The text half with a Hugging Face tower.
///
/// # Errors
/// When there is no such tower, or an option is unknown.
pub(super) fn text_part(part: &PartSource<'_>, name: &str) -> Result<TextPart> {
    Err(unsupported(part.config(), "hf_model_name", name, "none of Hugging Face's towers"))
}
