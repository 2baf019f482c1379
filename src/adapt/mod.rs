//! Adapting a model with few numbers: low-rank adapters ([`LoraConfig`], [`ClipModel::with_lora`](crate::ClipModel::with_lora)),
//! and a linear layer on features that stay as they are ([`LinearProbe`]).

mod lbfgs;
mod linear_probe;
mod logistic;
mod lora;
mod peft;

pub use linear_probe::{LinearProbe, ProbeConfig};
pub use lora::LoraConfig;
