//! What tests of training share: images that differ, a recipe for them, and how far apart two models are.
#![allow(dead_code)] // each test file uses its share

use diptych::ClipModel;
use diptych::candle::Tensor;
use diptych::image::image_crate::{Rgb, RgbImage};
use diptych::train::{Evaluation, Schedule, TrainConfig};

use crate::common::{Golden, relative_error};

/// How many images there are.
pub const COUNT: usize = 16;

/// The `i`-th of sixteen images of two colours.
pub fn image(i: usize) -> RgbImage {
    let level = |bit: usize| if i >> bit & 1 == 1 { 255 } else { 0 };
    let (left, right) = (Rgb([level(0), level(1), 128]), Rgb([level(2), 128, level(3)]));
    RgbImage::from_fn(8, 8, |x, _| if x < 4 { left } else { right })
}

/// A word for each two images, of the golden tokenizers' vocabulary.
pub fn word(i: usize) -> &'static str {
    ["photo", "of", "cat", "dog", "the", "two", "on", "grass"][i / 2]
}

/// A tiny dual encoder of which the chosen parameters are trained.
pub fn model(trainable: impl Fn(&str) -> bool) -> ClipModel {
    ClipModel::from_pretrained(Golden::named("vtde_vit_bert").dir()).unwrap().with_trainable(trainable).unwrap()
}

/// Two steps an epoch.
pub fn config(epochs: usize) -> TrainConfig {
    TrainConfig {
        epochs,
        batch_size: 8,
        lr: 1e-3,
        tower_lr: 5e-4,
        schedule: Schedule::WarmupCosine { warmup_steps: 4 },
        workers: 2,
        evaluation: Evaluation::AtEnd,
        ..TrainConfig::default()
    }
}

/// Every parameter's values.
pub fn values(model: &ClipModel) -> Vec<(String, Vec<f32>)> {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1().unwrap();
    model.parameters().iter().map(|(name, tensor)| (name.to_string(), flat(&tensor))).collect()
}

/// The largest difference of any parameter's values, over its largest value.
pub fn distance(a: &ClipModel, b: &ClipModel) -> f64 {
    let (a, b) = (a.parameters(), b.parameters());
    // Keys' biases have a gradient that is rounding alone.
    let pairs = a.iter().filter(|(name, _)| !name.ends_with("k_proj.bias"));
    pairs.map(|(name, tensor)| relative_error(&tensor, &b.get(name).unwrap())).fold(0.0, f64::max)
}
