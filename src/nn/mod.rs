//! Blocks made of [`ops`](crate::ops), shared by every tower.

mod attention;
mod attentional_pool;
mod block;
mod conv;
mod grid_rope;
mod layers;
mod map_head;
mod mlp;
mod norm;
mod patch_embed;
mod position;
mod ragged;
mod recompute;
mod relative_positions;
mod rope;

pub use attention::{Attend, Attention, AttentionConfig, BlockExtra, QkvBias};
pub use attentional_pool::{AttentionalPool, AttentionalPoolConfig};
pub use block::{BlockConfig, Encoder, NormPosition};
pub use conv::{BatchNorm2d, Channels, Conv2d, SqueezeExcite, channels_last, map_mean, map_tokens};
pub use grid_rope::{GridAxes, GridRope};
pub use layers::{LayerNorm, Linear};
pub use map_head::MapHead;
pub use mlp::{Mlp, MlpKind};
pub use norm::Norm;
pub use patch_embed::PatchEmbed;
pub use position::{PositionResize, interpolate_positions};
pub use ragged::Ragged;
pub use relative_positions::{RelativePositions, pair_biases, way_count};
pub use rope::Rope;
