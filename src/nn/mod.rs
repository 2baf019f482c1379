//! Blocks made of [`ops`](crate::ops), shared by every tower.

mod block;
mod conv;
mod layers;
mod mlp;
mod patch_embed;
mod position;
mod rope;

pub use block::{BlockConfig, Encoder, NormPosition};
pub use conv::{BatchNorm2d, Channels, Conv2d, SqueezeExcite, channels_last, map_mean, map_tokens};
pub use layers::{LayerNorm, Linear};
pub use mlp::{Mlp, MlpKind};
pub use patch_embed::PatchEmbed;
pub use position::interpolate_positions;
pub use rope::Rope;
