//! Training on data with files that cannot be read: they are left out, listed and limited, and nothing else changes.

mod common;

use std::path::Path;

use common::Golden;
use diptych::candle::Tensor;
use diptych::data::{PairDataset, Split, Tolerance};
use diptych::image::Augment;
use diptych::image::image_crate::{Rgb, RgbImage};
use diptych::train::{CheckpointConfig, Evaluation, Progress, Schedule, TrainConfig, TrainReport, Trainer};
use diptych::{ClipModel, ErrorKind};

const COUNT: usize = 16;

/// Sixteen images with a caption each; those in `broken` are no images.
fn make_data(folder: &Path, broken: &[usize]) -> Split {
    let mut csv = String::from("image,caption,split\n");
    for i in 0..COUNT {
        let level = |bit: usize| if i >> bit & 1 == 1 { 255 } else { 0 };
        let image = RgbImage::from_fn(8, 8, |x, _| {
            if x < 4 { Rgb([level(0), level(1), 128]) } else { Rgb([level(2), 128, level(3)]) }
        });
        let path = folder.join(format!("{i}.png"));
        image.save(&path).unwrap();
        if broken.contains(&i) {
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        }
        let word = ["photo", "of", "cat", "dog", "the", "two", "on", "grass"][i / 2];
        csv += &format!("{i}.png,{word} {} {word},train\n", ["x", "q"][i % 2]);
    }
    let path = folder.join("captions.csv");
    std::fs::write(&path, csv).unwrap();
    PairDataset::open(path).unwrap().split("train").unwrap()
}

fn model(trainable: impl Fn(&str) -> bool) -> ClipModel {
    ClipModel::from_pretrained(Golden::named("vtde_vit_bert").dir()).unwrap().with_trainable(trainable).unwrap()
}

fn is_head(name: &str) -> bool {
    !name.starts_with("text_model.") && !name.starts_with("vision_model.")
}

fn config(epochs: usize) -> TrainConfig {
    TrainConfig {
        epochs,
        batch_size: 8,
        lr: 1e-3,
        tower_lr: 5e-4,
        schedule: Schedule::WarmupCosine { warmup_steps: 4 },
        evaluation: Evaluation::AtEnd,
        ..TrainConfig::default()
    }
}

fn values(model: &ClipModel) -> Vec<(String, Vec<f32>)> {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1().unwrap();
    model.parameters().iter().map(|(name, tensor)| (name.to_string(), flat(&tensor))).collect()
}

fn names(report: &TrainReport) -> Vec<&str> {
    report.skipped.iter().map(|skipped| skipped.name.as_str()).collect()
}

#[test]
fn broken_images_are_left_out_and_listed_whatever_the_workers() {
    let folder = tempfile::tempdir().unwrap();
    let split = make_data(folder.path(), &[2, 11, 12]);
    for trainable in [|_: &str| true, is_head] {
        let run = |workers, augment: &str| {
            let (model, mut told) = (model(trainable), Vec::new());
            let note = |p: &Progress| {
                if let Progress::Skipped(skipped) = p {
                    told.push(skipped.clone());
                }
            };
            let config = TrainConfig { workers, augment: augment.parse().unwrap(), ..config(3) };
            let report = Trainer::new(&model, config).unwrap().fit(&split, folder.path(), None, note).unwrap();
            assert_eq!(names(&report), ["2.png", "11.png", "12.png"]);
            assert!(report.skipped[0].reason.contains("truncated"), "{}", report.skipped[0]);
            assert_eq!((report.steps, told.len()), (6, 3));
            assert!(report.loss.is_finite());
            values(&model)
        };
        let first = run(1, "");
        assert!(first == run(4, ""));
        let all = "flip,jitter=1,gray=0.3";
        let augmented = run(1, all);
        assert!(augmented == run(4, all) && augmented != first);
        let resized = "resized-crop=0.4,flip,jitter,gray";
        assert!(run(1, resized) == run(4, resized));
    }
}

#[test]
fn what_is_left_trains_as_a_batch_without_the_broken_ones_does() {
    let folder = tempfile::tempdir().unwrap();
    let broken = [2, 11];
    let all = make_data(folder.path(), &broken);
    let good: Vec<usize> = (0..COUNT).filter(|i| !broken.contains(i)).collect();
    let pick = |i: &usize| (all.images()[*i].clone(), all.captions()[*i].clone());
    let (images, captions) = good.iter().map(pick).unzip();
    let without = Split::new(images, captions).unwrap();
    // One batch is the whole split: only the order of its pairs differs.
    let run = |split: &Split| {
        let model = model(|_| true);
        let config = TrainConfig { batch_size: split.image_count(), schedule: Schedule::Constant, ..config(1) };
        Trainer::new(&model, config).unwrap().fit(split, folder.path(), None, |_| {}).unwrap().loss
    };
    assert!((run(&all) - run(&without)).abs() < 1e-5);
}

#[test]
fn too_many_broken_images_stop_the_run_with_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let split = make_data(folder.path(), &[2, 3, 11, 12]);
    for trainable in [|_: &str| true, is_head] {
        let run = |broken_images| {
            let model = model(trainable);
            let config = TrainConfig { broken_images, ..config(2) };
            Trainer::new(&model, config).unwrap().fit(&split, folder.path(), None, |_| {})
        };
        let error = run(Tolerance::default()).unwrap_err().to_string();
        assert!(error.contains("4 of 16 training images") && error.contains("3 allowed"), "{error}");
        assert!(error.contains("11.png: the file is truncated"), "{error}");
        assert!(run(Tolerance::NONE).unwrap_err().to_string().contains("1 of 16"));
        assert_eq!(run(Tolerance { share: 0.25, at_least: 0 }).unwrap().skipped.len(), 4);
    }
}

#[test]
fn missing_images_count_as_broken_ones_unless_all_are_missing_or_one_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let split = make_data(folder.path(), &[11]);
    for name in ["2.png", "5.png"] {
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    for trainable in [|_: &str| true, is_head] {
        let run = |broken_images, folder: &Path, measured: Option<&Split>| {
            let model = model(trainable);
            let config = TrainConfig { broken_images, ..config(2) };
            Trainer::new(&model, config).unwrap().fit(&split, folder, measured, |_| {})
        };
        let report = run(Tolerance::default(), folder.path(), None).unwrap();
        assert_eq!(names(&report), ["2.png", "5.png", "11.png"]);
        assert!(report.skipped[0].reason.contains("no such file"), "{}", report.skipped[0]);
        let error = run(Tolerance::NONE, folder.path(), None).unwrap_err().to_string();
        assert!(error.contains("1 of 16 training images") && error.contains("2.png"), "{error}");
        let error = run(Tolerance::default(), folder.path(), Some(&split)).unwrap_err().to_string();
        assert!(error.contains("2 of 16 images are not there"), "{error}");
        let elsewhere = tempfile::tempdir().unwrap();
        let error = run(Tolerance { share: 1.0, at_least: 0 }, elsewhere.path(), None).unwrap_err().to_string();
        assert!(error.contains("16 of 16 images are not there") && error.contains("give the folder"), "{error}");
    }
}

#[test]
fn a_batch_of_broken_images_alone_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let split = make_data(folder.path(), &(0..COUNT).collect::<Vec<_>>());
    let model = model(|_| true);
    let config = TrainConfig { broken_images: Tolerance { share: 1.0, at_least: 0 }, ..config(1) };
    let error = Trainer::new(&model, config).unwrap().fit(&split, folder.path(), None, |_| {}).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Training { step: 1, .. }), "{error}");
    assert!(error.to_string().contains("no image of the batch can be read"), "{error}");
}

#[test]
fn what_is_measured_may_not_be_broken() {
    let folder = tempfile::tempdir().unwrap();
    let split = make_data(folder.path(), &[5]);
    for trainable in [|_: &str| true, is_head] {
        let model = model(trainable);
        let trainer = Trainer::new(&model, config(1)).unwrap();
        let error = trainer.fit(&split, folder.path(), Some(&split), |_| {}).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Image { .. }), "{error}");
        assert!(error.to_string().contains("5.png"), "{error}");
    }
}

#[test]
fn a_run_with_broken_images_goes_on_to_the_very_same_weights_and_report() {
    let folder = tempfile::tempdir().unwrap();
    let split = make_data(folder.path(), &[2, 11]);
    let run = |checkpoints: Option<CheckpointConfig>, stop_after: usize| {
        let model = model(|_| true);
        let augment: Augment = "flip,jitter".parse().unwrap();
        let config = TrainConfig { checkpoints, augment, ..config(4) };
        let scale = model.trainable().into_iter().find(|(name, _)| name == "logit_scale").unwrap().1;
        // A loss that is not finite ends the run as a crash would.
        let note = |p: &Progress| {
            if matches!(p, Progress::Step(step) if step.step == stop_after) {
                scale.set(&(scale.as_detached_tensor() * f64::NAN).unwrap()).unwrap();
            }
        };
        let report = Trainer::new(&model, config).unwrap().fit(&split, folder.path(), None, note);
        report.map(|report| (values(&model), report.skipped))
    };
    let expected = run(None, usize::MAX).unwrap();
    assert_eq!(expected.1.len(), 2);
    let run_folder = folder.path().join("run");
    let checkpoints =
        |resume| Some(CheckpointConfig { every: 1, keep: 1, resume, ..CheckpointConfig::new(&run_folder) });
    run(checkpoints(false), 7).unwrap_err();
    // The step that is left sees one of the two at most; the checkpoint knows the others.
    assert!(run(checkpoints(true), usize::MAX).unwrap() == expected);
    assert!(run(checkpoints(true), usize::MAX).unwrap() == expected);
}
