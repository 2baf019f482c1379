//! Where weights come from and where they go: folders and the hub, safetensors, names, and saving.
//!
//! [`resolve`] turns a folder or an id of the hub into a [`Folder`]; [`Checkpoint`] opens its tensors; [`Renames`] says what
//! they are called in memory; [`CheckpointSource`] hands them to the layers, which ask for them through [`Params`]. Saving
//! ([`save_folder`], [`save_safetensors`]) is complete or does not happen.

mod activations;
mod checkpoint;
mod decode;
mod entry;
mod folder;
mod hub;
#[cfg(feature = "hub")]
mod hub_blob;
mod hub_cache;
#[cfg(feature = "hub")]
mod hub_fetch;
#[cfg(feature = "hub")]
mod hub_http;
mod layout;
mod names;
mod param_source;
mod parameters;
mod params;
mod pattern;
#[cfg(feature = "pickle")]
mod pickle;
mod quantized;
mod random;
mod save;
mod source;
mod tensor_file;
#[cfg(feature = "pickle")]
mod torch_file;
#[cfg(feature = "pickle")]
mod zip;

pub use activations::Activations;
pub use checkpoint::{Checkpoint, TensorDescription};
pub use folder::Folder;
pub(crate) use hub::resolve_tokenizer;
pub use hub::{Download, HubOptions, Progress, resolve};
pub use layout::Layout;
pub use names::Renames;
pub(crate) use names::View;
pub use param_source::{Adapter, Init, ParamSource};
pub use parameters::Parameters;
pub use params::Params;
pub use pattern::Pattern;
pub(crate) use quantized::save_quantized;
pub use random::{RandomSource, VarBuilderSource};
pub(crate) use save::sync_folder;
pub use save::{check_save_target, save_folder, save_safetensors, write_atomic};
pub use source::CheckpointSource;
pub(crate) use source::{Stored, as_stored};
