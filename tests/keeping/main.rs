//! Keeping what a model knew, and learning from one that knows more: teachers, WiSE-FT, canaries, early stops, pitfalls.

#[path = "../common/mod.rs"]
mod common;
mod patches;
mod pitfalls;
mod teacher;
mod watching;
mod wise_ft;

use std::path::Path;

use common::{Golden, relative_error};
use diptych::ClipModel;
use diptych::candle::Tensor;
use diptych::data::{LabelledImages, PairDataset, Split};
use diptych::image::image_crate::{Rgb, RgbImage};
use diptych::train::{Canary, Evaluation, Schedule, TrainConfig};

const COUNT: usize = 16;

/// Sixteen images with a caption each, of which the first two share one, and a class each for a canary.
struct Setting {
    folder: tempfile::TempDir,
    split: Split,
}

impl Setting {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let split = make_data(folder.path());
        Self { folder, split }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn canary(&self) -> Canary {
        canary(self.path())
    }
}

fn make_data(folder: &Path) -> Split {
    let (mut captions, mut labels) = (String::from("image,caption,split\n"), String::from("image,label\n"));
    for i in 0..COUNT {
        let level = |bit: usize| if i >> bit & 1 == 1 { 255 } else { 0 };
        let image = RgbImage::from_fn(8, 8, |x, _| {
            if x < 4 { Rgb([level(0), level(1), 128]) } else { Rgb([level(2), 128, level(3)]) }
        });
        image.save(folder.join(format!("{i}.png"))).unwrap();
        let word = ["photo", "of", "cat", "dog", "the", "two", "on", "grass"][i / 2];
        let letter = ["x", "q"][i % 2 * usize::from(i > 1)];
        captions += &format!("{i}.png,{word} {letter} {word},train\n");
        labels += &format!("{i}.png,{}\n", ["cat", "dog"][i % 2]);
    }
    std::fs::write(folder.join("labels.csv"), labels).unwrap();
    let path = folder.join("captions.csv");
    std::fs::write(&path, captions).unwrap();
    PairDataset::from_csv(path).unwrap().split("train").unwrap()
}

fn canary(folder: &Path) -> Canary {
    let data = LabelledImages::from_csv(folder.join("labels.csv")).unwrap();
    Canary::from_split(&data, &data.all(), folder).unwrap()
}

fn golden(name: &str) -> ClipModel {
    ClipModel::from_pretrained(Golden::named(name).dir()).unwrap()
}

fn student() -> ClipModel {
    golden("vtde_vit_bert").with_trainable(|_| true).unwrap()
}

fn config(epochs: usize) -> TrainConfig {
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

fn values(model: &ClipModel) -> Vec<(String, Vec<f32>)> {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1().unwrap();
    model.parameters().iter().map(|(name, tensor)| (name.to_string(), flat(&tensor))).collect()
}

fn distance(a: &ClipModel, b: &ClipModel) -> f64 {
    let (a, b) = (a.parameters(), b.parameters());
    let pairs = a.iter().filter(|(name, _)| !name.ends_with("k_proj.bias"));
    pairs.map(|(name, tensor)| relative_error(&tensor, &b.get(name).unwrap())).fold(0.0, f64::max)
}
