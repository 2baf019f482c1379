//! Images to pixel values, as the checkpoint's own processor makes them.
//!
//! ```text
//! path | bytes | DynamicImage ──decode──▶ RGB (H,W,3) u8 ──resize──▶ u8 ──crop, rescale, normalise──▶ pixel_values (B,C,H,W) f32
//! ```
//!
//! [`ImageProcessor`] runs the steps that an [`ImageProcessorConfig`] lists. [`ImageProcessorConfig::from_folder`] reads
//! that from a model folder in Hugging Face's layout, [`ImageProcessorConfig::from_open_clip`] from open_clip's.
//! [`NaflexProcessor`] makes patches of an image's own proportions, as SigLIP 2's NaFlex checkpoints take them.
//!
//! The references are the PIL-based processors of transformers 5.23, and the inference transform of open_clip 3.3 on
//! torchvision 0.26, both on Pillow 13: the pixel values of lossless files are the same, bit by bit.
//!
//! # Where this differs from the reference
//! - **JPEG** and lossy WebP are decoded by another decoder, whose colours differ by up to 4 of 255 levels; on photos
//!   that are enlarged, two or three pixel values in ten million by up to 6.
//! - **JPEG at a reduced size** is not offered: that decoder has no such mode (and it would change the pixels).
//! - **CMYK JPEG** is converted before open_clip's resize, not after it.
//! - **16-bit grey** keeps its upper 8 bits, as 16-bit colour does in both; Pillow clips it at 255 and gives a white image.
//! - **Grey, palette, transparent and CMYK images** are converted to RGB by every processor. In the reference those
//!   without `do_convert_rgb` (ViT, DeiT, BEiT) fail on them; here they drop the alpha channel.
//! - **EXIF orientation** is applied, unless [`Orientation::AsStored`] is asked for; the reference applies it to paths, and
//!   leaves it to the caller for decoded images.
//! - **Transparency** is laid on white by the processors with `do_convert_rgb`, as transformers does with images that Pillow
//!   has opened; open_clip's weights the colours with it in the resize and drops it, see [`Transparency`].

mod augment;
mod augmented;
mod color;
mod config;
mod decode;
mod fields;
mod filter;
mod hugging_face;
mod layout;
mod naflex;
mod open_clip;
mod processor;
mod resize;
mod rgb;
mod source;

pub use augment::{Augment, Blur, CropChoice, Flip, FlipChoice, ResizedCrop, View};
pub use color::{ColorJitter, ColorStep};
pub use config::{CropRounding, ImageProcessorConfig, ImageSize, Normalize, Resize, ResizeTo, Transparency};
pub use decode::{DecodeOptions, ImageInput, Orientation, decode};
pub use filter::Filter;
pub use hugging_face::ProcessorClass;
pub use naflex::{NaflexBatch, NaflexConfig, NaflexProcessor};
pub use processor::{ImageProcessor, PixelArray};
pub use resize::resize;
pub use source::{ImageSource, ImageStore};

/// The `image` crate underneath, re-exported so that an application never mixes versions.
pub use ::image as image_crate;
