//! Blocks made of [`ops`](crate::ops), shared by every tower.

mod attention;
mod attentional_pool;
mod block;
mod layers;
mod map_head;
mod mlp;
mod norm;
mod patch_embed;
mod position;
mod rope;

pub use attention::{Attend, Attention, AttentionConfig, BlockExtra, QkvBias};
pub use attentional_pool::{AttentionalPool, AttentionalPoolConfig};
pub use block::{BlockConfig, Encoder, NormPosition};
pub use layers::{LayerNorm, Linear};
pub use map_head::MapHead;
pub use mlp::{Mlp, MlpKind};
pub use norm::Norm;
pub use patch_embed::PatchEmbed;
pub use position::{PositionResize, interpolate_positions};
pub use rope::Rope;
