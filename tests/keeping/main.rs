//! Keeping what a model knew, and learning from one that knows more: teachers, WiSE-FT, canaries, early stops, pitfalls.

#[path = "../common/mod.rs"]
mod common;
mod patches;
mod pitfalls;
#[path = "../common/runs.rs"]
mod runs;
mod teacher;
mod teacher_patches;
mod watching;
mod wise_ft;

use std::path::Path;

use common::Golden;
use diptych::ClipModel;
use diptych::data::{LabelledImages, PairDataset, Split};
use diptych::train::Canary;
use runs::{COUNT, config, distance, image, model, values, word};

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
        image(i).save(folder.join(format!("{i}.png"))).unwrap();
        let word = word(i);
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
    model(|_| true)
}
