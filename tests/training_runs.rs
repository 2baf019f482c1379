//! Long runs on small machines: the gradient cache, accumulation, checkpoints, averages, rates of single layers.

mod common;
#[path = "common/runs.rs"]
mod runs;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Golden, relative_error};
use diptych::candle::Tensor;
use diptych::data::{PairDataset, Sampler, Split};
use diptych::image::ImageInput;
use diptych::loss::{ClipLoss, Loss, SigLipLoss};
use diptych::train::{
    AdamWConfig, CachedSide, CheckpointConfig, Duplicates, GradientSum, GroupRule, OptimizerConfig, ParamGroup,
    Progress, Schedule, Selection, Sgd, SgdConfig, TrainConfig, Trainer, cached_backward,
};
use diptych::weights::Pattern;
use diptych::{ClipModel, ErrorKind};
use runs::{COUNT, config, distance, image, model, values, word};

const CHILD: &str = "DIPTYCH_TEST_RUN_TO_BE_KILLED";

/// Sixteen images, each with a caption of its own but for two that share one.
fn make_data(folder: &Path) -> Split {
    let mut csv = String::from("image,caption,split\n");
    for i in 0..COUNT {
        image(i).save(folder.join(format!("{i}.png"))).unwrap();
        let word = word(i);
        let letter = ["x", "q"][i % 2 * usize::from(i != 3)];
        csv += &format!("{i}.png,{word} {letter} {word},train\n");
    }
    let path = folder.join("captions.csv");
    std::fs::write(&path, csv).unwrap();
    PairDataset::from_csv(path).unwrap().split("train").unwrap()
}

/// One step of gradient descent, so that weights differ as gradients do.
fn one_step(folder: &Path, split: &Split, config: TrainConfig) -> ClipModel {
    let model = model(|_| true);
    let optimizer = OptimizerConfig::Sgd(SgdConfig::default());
    let config = TrainConfig { optimizer, lr: 0.1, tower_lr: 0.1, schedule: Schedule::Constant, ..config };
    Trainer::new(&model, config).unwrap().fit(split, folder, None, |_| {}).unwrap();
    model
}

#[test]
fn the_gradient_cache_equals_the_whole_batch() {
    let folder = tempfile::tempdir().unwrap();
    let split = make_data(folder.path());
    for loss in [Loss::Clip(ClipLoss::new()), Loss::SigLip(SigLipLoss::new())] {
        let run = |micro_batch| {
            let config = TrainConfig { batch_size: COUNT, micro_batch, loss: loss.clone(), ..config(1) };
            one_step(folder.path(), &split, config)
        };
        let whole = run(None);
        assert!(distance(&whole, &model(|_| true)) > 1e-3);
        for chunk in [1, 5, 8] {
            let error = distance(&run(Some(chunk)), &whole);
            assert!(error < 1e-5, "{loss:?}, {chunk} rows at a time: {error:.1e}");
        }
    }
}

#[test]
fn cached_gradients_equal_those_of_the_whole_batch() {
    let golden = Golden::named("clip");
    let model = ClipModel::from_pretrained(golden.dir()).unwrap().with_trainable(|_| true).unwrap();
    let (tokens, pixels) = (golden.tokens(), golden.pixels().clone());
    let texts = |rows: std::ops::Range<usize>| {
        model.project_text(&model.text_encoder().pooled(&tokens.select(&rows.collect::<Vec<_>>())?)?)
    };
    let images = |rows: std::ops::Range<usize>| {
        model.project_image(&model.image_encoder().pooled(&pixels.narrow(0, rows.start, rows.len())?)?)
    };
    let count = tokens.batch().min(pixels.dim(0).unwrap());
    let loss = |images: &Tensor, texts: &Tensor| {
        ClipLoss::new().from_logits(&model.output(images.clone(), texts.clone())?.logits_per_image)
    };
    let whole = loss(&images(0..count).unwrap(), &texts(0..count).unwrap()).unwrap();
    let grads = whole.backward().unwrap();
    let sides = [CachedSide { rows: count, encode: &images }, CachedSide { rows: count, encode: &texts }];
    let trainable = model.trainable();
    let (value, cached) = cached_backward(&sides[0], &sides[1], 1, &trainable, loss).unwrap();
    assert!(relative_error(&value, &whole) < 1e-5);
    for (name, var) in trainable.iter().filter(|(name, _)| !name.ends_with("k_proj.bias")) {
        let error = relative_error(cached.get(var).unwrap(), grads.get(var).unwrap());
        assert!(error < 1e-5, "{name}: {error:.1e}");
    }
    assert!(cached_backward(&sides[0], &sides[1], 0, &trainable, loss).is_err());
}

#[test]
fn accumulated_batches_are_the_mean_of_their_gradients() {
    let folder = tempfile::tempdir().unwrap();
    let split = make_data(folder.path());
    let both = one_step(folder.path(), &split, TrainConfig { accumulate: 2, ..config(1) });
    let own = model(|_| true);
    let trainable = own.trainable();
    let mut sum = GradientSum::new(&trainable);
    let sampler = Sampler::new(0);
    for chosen in sampler.order(0, COUNT).chunks(8) {
        let files: Vec<ImageInput> = chosen.iter().map(|&i| folder.path().join(&split.images()[i]).into()).collect();
        let encoder = own.image_encoder();
        let pixel_values = encoder.processor().pixel_values(&files, encoder.device()).unwrap();
        let captions: Vec<&String> = chosen.iter().map(|&i| &split.captions()[i][0]).collect();
        let output = own.forward(&pixel_values, &own.text_encoder().tokenize(&captions).unwrap()).unwrap();
        let loss = ClipLoss::new().from_logits(&output.logits_per_image).unwrap();
        sum.add(&loss.backward().unwrap(), 0.5).unwrap();
    }
    let groups = ParamGroup::split_decay(own.trainable(), 0.1, config(1).weight_decay);
    Sgd::new(groups.to_vec(), SgdConfig::default()).unwrap().step(&sum.finish(), 1.0).unwrap();
    assert!(distance(&both, &own) < 1e-5, "{:.1e}", distance(&both, &own));
    let cached = one_step(folder.path(), &split, TrainConfig { accumulate: 2, micro_batch: Some(3), ..config(1) });
    assert!(distance(&cached, &both) < 1e-5);
    let mut steps = 0;
    let model = model(|_| true);
    let count = |p: &Progress| steps += usize::from(matches!(p, Progress::Step(_)));
    let trainer = Trainer::new(&model, TrainConfig { accumulate: 2, ..config(3) }).unwrap();
    assert_eq!(trainer.fit(&split, folder.path(), None, count).unwrap().steps, 3);
    assert_eq!(steps, 3);
    let too_many = Trainer::new(&model, TrainConfig { accumulate: 3, ..config(3) }).unwrap();
    assert!(too_many.fit(&split, folder.path(), None, |_| {}).unwrap_err().to_string().starts_with("accumulate"));
}

/// 40 steps with a checkpoint every 5, clipping, averages and augmentation: all that has a state.
fn long_run(folder: &Path, checkpoints: Option<CheckpointConfig>, die_after: usize) -> ClipModel {
    let (split, model, config) = (make_data(folder), model(|_| true), long_config(checkpoints));
    let note = |p: &Progress| {
        if matches!(p, Progress::Step(step) if step.step == die_after) {
            std::process::abort();
        }
    };
    let report = Trainer::new(&model, config).unwrap().fit(&split, folder, None, note).unwrap();
    assert!(report.steps == 40 && report.loss.is_finite());
    model
}

fn long_config(checkpoints: Option<CheckpointConfig>) -> TrainConfig {
    let optimizer = OptimizerConfig::AdamW(AdamWConfig { clip_norm: Some(1.0), ..AdamWConfig::default() });
    TrainConfig { optimizer, augment: "flip".parse().unwrap(), ema: Some(0.9), checkpoints, ..config(20) }
}

fn checkpoints(folder: &Path, resume: bool) -> CheckpointConfig {
    CheckpointConfig { every: 5, keep: 2, resume, ..CheckpointConfig::new(folder.join("run")) }
}

#[test]
fn a_run_that_is_killed_goes_on_to_the_very_same_weights() {
    if let Ok(folder) = std::env::var(CHILD) {
        let folder = PathBuf::from(folder);
        long_run(&folder, Some(checkpoints(&folder, false)), 17);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let expected = values(&long_run(folder.path(), None, usize::MAX));
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "a_run_that_is_killed_goes_on_to_the_very_same_weights", "--nocapture"]);
    let status = child.env(CHILD, folder.path()).output().unwrap().status;
    assert!(!status.success(), "the child should have died at step 17");
    let names = || {
        let mut names: Vec<String> = std::fs::read_dir(folder.path().join("run"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["step-00000010", "step-00000015"]);
    // A new run does not write over the old one.
    let split = make_data(folder.path());
    let other = model(|_| true);
    let fresh = TrainConfig { checkpoints: Some(checkpoints(folder.path(), false)), ..config(20) };
    let error = Trainer::new(&other, fresh.clone()).unwrap().fit(&split, folder.path(), None, |_| {}).unwrap_err();
    assert!(error.to_string().contains("resume"), "{error}");
    // Nor does another recipe go on from it.
    let changed = TrainConfig { checkpoints: Some(checkpoints(folder.path(), true)), ..fresh };
    let error = Trainer::new(&other, changed).unwrap().fit(&split, folder.path(), None, |_| {}).unwrap_err();
    assert!(error.to_string().contains("ema: Some(0.9) then, None now"), "{error}");
    // Nor does a run on other data.
    let captions = split.captions().iter().map(|of| vec![format!("{} too", of[0])]).collect();
    let renamed = Split::new(split.images().to_vec(), captions).unwrap();
    let config = long_config(Some(checkpoints(folder.path(), true)));
    let error = Trainer::new(&other, config).unwrap().fit(&renamed, folder.path(), None, |_| {}).unwrap_err();
    assert!(error.to_string().contains("other training data"), "{error}");

    let found = long_run(folder.path(), Some(checkpoints(folder.path(), true)), usize::MAX);
    assert!(values(&found) == expected, "the weights differ");
    assert_eq!(names(), ["step-00000035", "step-00000040"]);
    // And a run that is over is over, with the same weights.
    let again = long_run(folder.path(), Some(checkpoints(folder.path(), true)), usize::MAX);
    assert!(values(&again) == expected, "a finished run changed");
}

#[test]
fn a_loss_that_is_not_finite_leaves_the_last_good_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let split = make_data(folder.path());
    let model = model(|_| true);
    let scale = model.trainable().into_iter().find(|(name, _)| name == "logit_scale").unwrap().1;
    let config = TrainConfig {
        checkpoints: Some(CheckpointConfig { every: 2, ..checkpoints(folder.path(), false) }),
        ..config(4)
    };
    let poison = |p: &Progress| {
        if matches!(p, Progress::Step(step) if step.step == 3) {
            scale.set(&(scale.as_detached_tensor() * f64::NAN).unwrap()).unwrap();
        }
    };
    let error = Trainer::new(&model, config).unwrap().fit(&split, folder.path(), None, poison).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Training { step: 4, .. }), "{error}");
    assert!(error.to_string().contains(".png"), "{error}");
    let kept: Vec<_> = std::fs::read_dir(folder.path().join("run")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(kept, ["step-00000002"]);
}

#[test]
fn gradients_that_are_not_finite_name_step_and_images() {
    let folder = tempfile::tempdir().unwrap();
    let split = make_data(folder.path());
    let model = model(|_| true);
    // Logits of e^85 give a finite loss; features that are short besides take their slopes beyond f32.
    let vars = model.trainable();
    let note = |p: &Progress| {
        if matches!(p, Progress::Step(step) if step.step == 1) {
            for (name, var) in &vars {
                let value = var.as_detached_tensor();
                if name == "logit_scale" {
                    var.set(&value.affine(0.0, 85.0).unwrap()).unwrap();
                } else if name.starts_with("visual_projection.") {
                    var.set(&(value * 1e-6).unwrap()).unwrap();
                }
            }
        }
    };
    let outcome = Trainer::new(&model, config(2)).unwrap().fit(&split, folder.path(), None, note);
    let error = outcome.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Training { step: 2, .. }), "{error}");
    assert!(error.to_string().contains("the gradients are not finite"), "{error}");
    assert!(error.to_string().contains(".png"), "{error}");
}

#[test]
fn selections_name_what_is_trained() {
    let names = |selection: &str| -> Vec<String> {
        let model = selection.parse::<Selection>().unwrap().apply(model(|_| true)).unwrap();
        model.trainable().into_iter().map(|(name, _)| name).collect()
    };
    assert_eq!(names("all").len(), model(|_| true).trainable().len());
    assert!(names("projections").iter().all(|name| !name.contains("_model.")));
    assert!(names("lock-image").iter().all(|name| !name.starts_with("vision_model.")));
    assert!(names("lock-text").iter().any(|name| name.starts_with("vision_model.")));
    let last = names("last-1");
    let blocks: Vec<&String> = last.iter().filter(|name| name.contains("layers.")).collect();
    assert!(!blocks.is_empty() && blocks.iter().all(|name| name.contains("layers.1.")), "{blocks:?}");
    assert!(last.iter().all(|name| !name.contains("embeddings")), "{last:?}");
    assert!(last.iter().any(|name| name == "visual_projection.weight"));
    assert!("half".parse::<Selection>().unwrap_err().to_string().contains("last-N"));
}

#[test]
fn layers_move_at_their_own_rates() {
    let folder = tempfile::tempdir().unwrap();
    let split = make_data(folder.path());
    let before = values(&model(|_| true));
    let rule = |pattern: &str, lr| GroupRule { pattern: Pattern::new(pattern).unwrap(), lr, weight_decay: Some(0.0) };
    let groups = vec![rule("text_projection.*", Some(0.0)), rule("*.weight", None)];
    let model = model(|_| true);
    // AdamW's first step is the rate for every number whose gradient is not tiny.
    let config = TrainConfig { batch_size: COUNT, layer_decay: 0.5, groups, schedule: Schedule::Constant, ..config(1) };
    Trainer::new(&model, config).unwrap().fit(&split, folder.path(), None, |_| {}).unwrap();
    let after = values(&model);
    let moved = |wanted: &str| -> f64 {
        let (b, a) = (before.iter().find(|(n, _)| n == wanted), after.iter().find(|(n, _)| n == wanted));
        let pairs = b.unwrap().1.iter().zip(&a.unwrap().1);
        pairs.map(|(b, a)| f64::from((b - a).abs())).fold(0.0, f64::max)
    };
    assert_eq!(moved("text_projection.weight"), 0.0);
    let close = |found: f64, expected: f64| (found / expected - 1.0).abs() < 0.02;
    assert!(close(moved("visual_projection.weight"), 1e-3), "{}", moved("visual_projection.weight"));
    for (block, rate) in [(1, 5e-4 * 0.5), (0, 5e-4 * 0.25)] {
        let name = format!("vision_model.encoder.layers.{block}.mlp.fc1.weight");
        assert!(close(moved(&name), rate), "{name}: {} against {rate}", moved(&name));
    }
    let config = TrainConfig { layer_decay: 0.0, ..TrainConfig::default() };
    assert!(Trainer::new(&model, config).err().unwrap().to_string().starts_with("layer_decay"));
}

#[test]
fn pairs_with_one_caption_can_be_positives_of_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let split = make_data(folder.path());
    let loss = |duplicates| {
        let model = model(|_| true);
        // Cross-entropy does not see the difference where captions are the same to the letter; a yes or no does.
        let loss = Loss::SigLip(SigLipLoss::new());
        let config = TrainConfig { batch_size: COUNT, duplicates, loss, ..config(1) };
        Trainer::new(&model, config).unwrap().fit(&split, folder.path(), None, |_| {}).unwrap().loss
    };
    assert_ne!(loss(Duplicates::Positives), loss(Duplicates::Negatives));
}

#[test]
fn the_average_is_what_a_run_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let split = make_data(folder.path());
    let run = |ema| {
        let model = model(|_| true);
        Trainer::new(&model, TrainConfig { ema, ..config(4) })
            .unwrap()
            .fit(&split, folder.path(), None, |_| {})
            .unwrap();
        model
    };
    let (plain, averaged, last) = (run(None), run(Some(0.99)), run(Some(0.0)));
    assert!(distance(&averaged, &plain) > 1e-5);
    assert_eq!(distance(&last, &plain), 0.0, "an average without memory is the last value");
}
