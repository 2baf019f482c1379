//! Reading and writing checkpoints, and finding them on the hub.

mod checkpoint;
mod hub;
#[cfg(feature = "pickle")]
mod pickle;
mod save;

use std::collections::HashMap;
use std::path::Path;

use diptych::candle::Tensor;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Writes tensors given as (name, type, shape, bytes) with the format's own crate.
fn write(path: &Path, tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) {
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap()))
        .collect();
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    std::fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

/// The bytes of f32 numbers.
fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// All numbers of a tensor of f32.
fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}
