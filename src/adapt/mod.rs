//! Adapting a model with few numbers: low-rank adapters ([`LoraConfig`], [`ClipModel::with_lora`](crate::ClipModel::with_lora)).

mod lora;
mod peft;

pub use lora::LoraConfig;
