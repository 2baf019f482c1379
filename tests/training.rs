//! The trainer on a tiny dual encoder: it learns, it repeats, it leaves the frozen alone, and it stops where it must.

mod common;
#[path = "common/runs.rs"]
mod runs;

use std::path::Path;

use diptych::candle::Var;
use diptych::data::{PairDataset, Sampler, Split, Tolerance};
use diptych::image::ImageInput;
use diptych::loss::ClipLoss;
use diptych::train::{
    Evaluation, Half, Optimizer, ParamGroup, Precision, Progress, TrainConfig, Trainer, evaluate_retrieval,
};
use diptych::weights::Activations;
use diptych::{ClipModel, ErrorKind, LogitScale};
use runs::{COUNT, image, model, values, word};

/// Sixteen images of two colours, each with two captions of its own, and a model that has seen none.
struct Setting {
    folder: tempfile::TempDir,
    split: Split,
}

impl Setting {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut csv = String::from("image,caption,split\n");
        for i in 0..COUNT {
            image(i).save(folder.path().join(format!("{i}.png"))).unwrap();
            let word = word(i);
            let letter = ["x", "q"][i % 2];
            csv += &format!("{i}.png,{word} {letter} {word},train\n{i}.png,{letter} {letter} {word},train\n");
        }
        let path = folder.path().join("captions.csv");
        std::fs::write(&path, csv).unwrap();
        let split = PairDataset::from_csv(path).unwrap().split("train").unwrap();
        Self { folder, split }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

fn in_tower(name: &str) -> bool {
    name.starts_with("text_model.") || name.starts_with("vision_model.")
}

/// Larger rates: a few epochs are enough to learn.
fn config(epochs: usize) -> TrainConfig {
    TrainConfig { lr: 1e-2, tower_lr: 5e-3, ..runs::config(epochs) }
}

fn variable(model: &ClipModel, wanted: &str) -> Var {
    model.trainable().into_iter().find(|(name, _)| name == wanted).unwrap().1
}

#[test]
fn training_everything_learns_the_pairs() {
    let setting = Setting::new();
    let model = model(|_| true);
    let before = evaluate_retrieval(&model, &setting.split, setting.path(), 2, |_| {}).unwrap();
    let mut losses = Vec::new();
    let note = |p: &Progress| {
        if let Progress::Step(step) = p {
            losses.push(step.loss);
        }
    };
    let trainer = Trainer::new(&model, config(60)).unwrap();
    let report = trainer.fit(&setting.split, setting.path(), Some(&setting.split), note).unwrap();
    assert_eq!((report.steps, losses.len()), (120, 120));
    let found = report.evaluation.unwrap();
    assert!(report.loss < losses[0] / 2.0, "{} from {}", report.loss, losses[0]);
    assert!(found.text_to_image.r1 > before.text_to_image.r1 + 30.0, "{before:?} → {found:?}");
    // The trained model alone says the same as the trainer's evaluation.
    assert_eq!(evaluate_retrieval(&model, &setting.split, setting.path(), 1, |_| {}).unwrap(), found);
}

#[test]
fn frozen_towers_run_once_and_stay_as_they_are() {
    let setting = Setting::new();
    let model = model(|name| !in_tower(name));
    let before = values(&model);
    let (mut images, mut texts, mut evaluations) = (0, 0, 0);
    let note = |p: &Progress| match p {
        Progress::Pooling { half: Half::Image, done, total } => {
            assert_eq!((*done, *total), (COUNT, COUNT));
            images += 1;
        }
        Progress::Pooling { half: Half::Text, .. } => texts += 1,
        Progress::Evaluated { .. } => evaluations += 1,
        _ => {}
    };
    let config = TrainConfig { evaluation: Evaluation::EachEpoch, ..config(5) };
    let trainer = Trainer::new(&model, config).unwrap();
    trainer.fit(&setting.split, setting.path(), Some(&setting.split), note).unwrap();
    assert_eq!((images, texts, evaluations), (1, 1, 5));
    for ((name, before), (_, after)) in before.iter().zip(values(&model)) {
        assert_eq!(*before != after, !in_tower(name), "{name}");
    }
}

#[test]
fn kept_outputs_train_as_a_loop_over_the_whole_model_does() {
    let setting = Setting::new();
    let (model, own) = (model(|name| !in_tower(name)), model(|name| !in_tower(name)));
    let config = config(2);
    let trainer = Trainer::new(&model, config.clone()).unwrap();
    trainer.fit(&setting.split, setting.path(), None, |_| {}).unwrap();

    let groups = ParamGroup::split_decay(own.trainable(), config.lr, config.weight_decay);
    let mut optimizer = Optimizer::new(groups.to_vec(), config.optimizer).unwrap();
    let sampler = Sampler::new(config.seed);
    for epoch in 0..2 {
        for (b, chosen) in sampler.order(epoch, COUNT).chunks(config.batch_size).enumerate() {
            let inputs: Vec<ImageInput> =
                chosen.iter().map(|&i| setting.path().join(&setting.split.images()[i]).into()).collect();
            let pixel_values =
                own.image_encoder().processor().pixel_values(&inputs, own.image_encoder().device()).unwrap();
            let caption = |&i: &usize| setting.split.captions()[i][sampler.caption(epoch, i, 2)].clone();
            let tokens = own.text_encoder().tokenize(&chosen.iter().map(caption).collect::<Vec<_>>()).unwrap();
            let output = own.forward(&pixel_values, &tokens).unwrap();
            let loss = ClipLoss::new().from_logits(&output.logits_per_image).unwrap();
            optimizer.step(&loss.backward().unwrap(), config.schedule.factor(epoch * 2 + b, 4)).unwrap();
            own.clamp_logit_scale(0.0, LogitScale::LARGEST).unwrap();
        }
    }
    for ((name, found), (_, expected)) in values(&model).iter().zip(values(&own)) {
        let worst = found.iter().zip(&expected).map(|(f, e)| (f - e).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{name} differs by {worst}");
    }
}

#[test]
fn a_run_repeats_whatever_the_threads_and_the_memory() {
    let setting = Setting::new();
    let run = |workers, image_cache_bytes, seed| {
        let model = model(|_| true);
        let augment = "flip".parse().unwrap();
        let config = TrainConfig { workers, image_cache_bytes, seed, augment, ..config(3) };
        Trainer::new(&model, config).unwrap().fit(&setting.split, setting.path(), None, |_| {}).unwrap();
        values(&model)
    };
    let first = run(1, 0, 0);
    assert_eq!(first, run(3, 1 << 20, 0));
    assert_eq!(first, run(2, 1000, 0));
    assert_ne!(first, run(1, 0, 1));
}

#[test]
fn a_run_that_recomputes_ends_with_the_same_weights() {
    let setting = Setting::new();
    let run = |activations| {
        let model = model(|_| true);
        let config = TrainConfig { activations, ..config(2) };
        Trainer::new(&model, config).unwrap().fit(&setting.split, setting.path(), None, |_| {}).unwrap();
        values(&model)
    };
    assert_eq!(run(Activations::Stored), run(Activations::Recomputed));
}

#[test]
fn a_run_in_bf16_learns_and_leaves_f32_weights() {
    let setting = Setting::new();
    let run = |precision, micro_batch| {
        let model = model(|_| true);
        let config = TrainConfig { precision, micro_batch, ..config(15) };
        let trainer = Trainer::new(&model, config).unwrap();
        let loss = trainer.fit(&setting.split, setting.path(), None, |_| {}).unwrap().loss;
        assert!(model.trainable().iter().all(|(_, var)| var.dtype() == diptych::candle::DType::F32));
        (loss, values(&model))
    };
    let ((wide, in_f32), (short, in_bf16)) = (run(Precision::Parameters, None), run(Precision::Bf16, Some(3)));
    assert!(short < 0.8 * (COUNT as f64 / 2.0).ln() && (short - wide).abs() < 0.3, "{wide} {short}");
    assert_ne!(in_f32, in_bf16);
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_with_the_images() {
    let setting = Setting::new();
    let model = model(|name| !in_tower(name));
    let scale = variable(&model, "logit_scale");
    scale.set(&(scale.as_detached_tensor() * f64::NAN).unwrap()).unwrap();
    let trainer = Trainer::new(&model, config(1)).unwrap();
    let error = trainer.fit(&setting.split, setting.path(), None, |_| {}).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Training { step: 1, .. }), "{error}");
    let first = Sampler::new(0).order(0, COUNT)[0];
    assert!(error.to_string().contains(&format!("{first}.png")), "{error}");
}

#[test]
fn the_first_step_refuses_parameters_that_would_not_learn() {
    let setting = Setting::new();
    let model = model(|name| !in_tower(name));
    // A factor of exp(-∞) = 0: the loss is ln 8 whatever the features are.
    let scale = variable(&model, "logit_scale");
    scale.set(&(scale.ones_like().unwrap() * f64::NEG_INFINITY).unwrap()).unwrap();
    let trainer = Trainer::new(&model, config(1)).unwrap();
    let error = trainer.fit(&setting.split, setting.path(), None, |_| {}).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Training { step: 1, .. }), "{error}");
    assert!(error.to_string().contains("visual_projection.weight"), "{error}");
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let setting = Setting::new();
    assert!(Trainer::new(&model(|_| false), config(1)).is_err());
    let model = model(|_| true);
    let too_large = TrainConfig { batch_size: COUNT + 1, ..config(1) };
    let error = Trainer::new(&model, too_large).unwrap().fit(&setting.split, setting.path(), None, |_| {}).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Argument { argument: "batch_size", .. }), "{error}");
    std::fs::remove_file(setting.path().join("5.png")).unwrap();
    let strict = TrainConfig { broken_images: Tolerance::NONE, ..config(1) };
    let error = Trainer::new(&model, strict).unwrap().fit(&setting.split, setting.path(), None, |_| {}).unwrap_err();
    assert!(error.to_string().contains("5.png"), "{error}");
}

#[test]
fn a_quote_that_is_never_closed_loses_no_row_in_silence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("captions.csv");
    std::fs::write(&path, "image,caption,split\na.jpg,\"a b,train\nb.jpg,\"c d,train\n").unwrap();
    let error = PairDataset::from_csv(&path).unwrap_err().to_string();
    assert!(error.contains("line 2"), "{error}");
}
