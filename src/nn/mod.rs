//! Blocks made of [`ops`](crate::ops), shared by every tower.

mod block;
mod gated_block;
mod layers;
mod mlp;
mod norm;
mod patch_embed;
mod position;
mod rope;

pub use block::{BlockConfig, Encoder, NormPosition};
pub use gated_block::{AttentionScale, GatedBlock, GatedBlockConfig};
pub use layers::{LayerNorm, Linear};
pub use mlp::{Mlp, MlpKind};
pub use norm::{Norm, NormKind};
pub use patch_embed::PatchEmbed;
pub use position::interpolate_positions;
pub use rope::Rope;
