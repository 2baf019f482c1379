//! Fifty training steps against PyTorch: the same weights, batches and order give the same losses and the same weights.
//!
//! `tests/python/make_training_golden.py` and `check_training.py` write the reference; `training_steps.py` says what is in it.

mod common;

use std::collections::HashMap;
use std::path::Path;

use common::{golden_root, relative_error};
use diptych::candle::{DType, Device, Tensor};
use diptych::loss::{ClipLoss, Loss, Pairs, SigLipLoss};
use diptych::text::TokenBatch;
use diptych::train::{Optimizer, OptimizerConfig, ParamGroup};
use diptych::weights::Activations;
use diptych::{ClipModel, LogitScale};

const DECAY: f64 = 0.05;

type Tensors = HashMap<String, Tensor>;

fn load(path: &Path) -> Tensors {
    diptych::candle::safetensors::load(path, &Device::Cpu).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Trains the model of `start` as PyTorch did in `run` of `reference`; returns it with its losses.
fn train(start: &Path, reference: &Tensors, run: &str, activations: Activations) -> (ClipModel, Vec<f64>) {
    let frozen = run.ends_with("frozen");
    let model = ClipModel::from_pretrained(start.to_str().unwrap()).unwrap();
    let model = model.with_trainable(|name| !frozen || !name.starts_with("vision_model.")).unwrap();
    let model = model.with_activations(activations).unwrap();
    let loss = match run.split('_').next() {
        Some("clip") => Loss::Clip(ClipLoss::new()),
        _ => Loss::SigLip(SigLipLoss::new()),
    };
    let rate: f64 = reference["rate"].to_scalar().unwrap();
    let groups = ParamGroup::split_decay(model.trainable(), rate, DECAY);
    let mut optimizer = Optimizer::new(groups.to_vec(), OptimizerConfig::default()).unwrap();
    let count = reference["input_ids"].dim(0).unwrap();
    let of = |name: &str, i: usize| reference.get(name).map(|t| t.get(i).unwrap());
    let mut losses = Vec::new();
    for step in 0..reference[&format!("{run}.losses")].dim(0).unwrap() {
        let i = step % count;
        let tokens = TokenBatch::from_tensors(&of("input_ids", i).unwrap(), of("attention_mask", i).as_ref()).unwrap();
        let output = model.forward(&of("pixel_values", i).unwrap(), &tokens).unwrap();
        let pairs = Pairs::new(&output.image_embeds, &output.text_embeds, &output.logit_scale);
        let value = loss.of(&Pairs { logit_bias: output.logit_bias.as_ref(), ..pairs }).unwrap();
        optimizer.step(&value.backward().unwrap(), 1.0).unwrap();
        if loss.bounds_scale() {
            model.clamp_logit_scale(0.0, LogitScale::LARGEST).unwrap();
        }
        losses.push(f64::from(value.to_scalar::<f32>().unwrap()));
    }
    (model, losses)
}

/// The model that PyTorch ended with: the files of `start` with the changes of `run`.
fn last(start: &Path, reference: &Tensors, run: &str) -> ClipModel {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(start).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let whole = start.with_file_name(format!("last_{run}")).join("model.safetensors");
    let mut weights = load(&if whole.is_file() { whole } else { start.join("model.safetensors") });
    for (name, change) in reference {
        if let Some(name) = name.strip_prefix(&format!("{run}.change.")) {
            let weight = weights.get_mut(name).unwrap_or_else(|| panic!("no weight {name}"));
            *weight = (&*weight + change.to_dtype(DType::F32).unwrap()).unwrap();
        }
    }
    let path = folder.path().join("model.safetensors");
    std::fs::remove_file(&path).unwrap();
    diptych::candle::safetensors::save(&weights, path).unwrap();
    ClipModel::from_pretrained(folder.path().to_str().unwrap()).unwrap()
}

/// Every run of `reference`; `change` bounds the error of a tensor's change against its largest change.
fn check(start: &Path, reference: &Tensors, activations: Activations, change: f64) {
    let mut runs: Vec<&str> = reference.keys().filter_map(|name| name.strip_suffix(".losses")).collect();
    runs.sort_unstable();
    assert!(runs.len() >= 2, "{runs:?}");
    for run in runs {
        let (model, losses) = train(start, reference, run, activations);
        let expected: Vec<f64> = reference[&format!("{run}.losses")].to_vec1().unwrap();
        let error = losses.iter().zip(&expected).map(|(l, e)| (l - e).abs() / e.abs());
        let worst_loss = error.fold(0.0, f64::max);
        assert!(worst_loss < 1e-4, "{run}: losses {losses:?}, PyTorch's {expected:?}");
        let (last, start) = (last(start, reference, run), ClipModel::from_pretrained(start.to_str().unwrap()).unwrap());
        let (last, start) = (last.parameters(), start.parameters());
        let (mut worst_weight, mut worst_change) = ((0.0, String::new()), (0.0, String::new()));
        for (name, found) in model.parameters().iter().filter(|(name, _)| !name.ends_with("k_proj.bias")) {
            let (expected, before) = (last.get(name).unwrap(), start.get(name).unwrap());
            let error = relative_error(&found, &expected);
            if error > worst_weight.0 {
                worst_weight = (error, name.to_string());
            }
            if model.trainable().iter().any(|(trained, _)| trained == name) {
                let moved = relative_error(&(&found - &before).unwrap(), &(&expected - &before).unwrap());
                if moved > worst_change.0 {
                    worst_change = (moved, name.to_string());
                }
            } else {
                assert_eq!(error, 0.0, "{run}: frozen {name} moved");
            }
        }
        println!("{run} {activations:?}: loss {worst_loss:.1e}, weights {worst_weight:?}, changes {worst_change:?}");
        assert!(worst_weight.0 < 1e-3, "{run}: {worst_weight:?}");
        assert!(worst_change.0 < change, "{run}: change of {worst_change:?}");
    }
}

#[test]
fn fifty_steps_of_tiny_models_equal_pytorchs() {
    for name in ["clip", "siglip"] {
        let reference = load(&golden_root().join(format!("training_{name}/training.safetensors")));
        check(&golden_root().join(name), &reference, Activations::Stored, 0.05);
    }
}

#[test]
fn fifty_steps_with_recomputation_are_the_same_bits() {
    let start = golden_root().join("clip");
    let reference = load(&golden_root().join("training_clip/training.safetensors"));
    let runs = [Activations::Stored, Activations::Recomputed].map(|a| train(&start, &reference, "clip_full", a));
    assert_eq!(runs[0].1, runs[1].1);
    let bits = |model: &ClipModel| -> Vec<(String, Vec<f32>)> {
        let flat = |t: Tensor| t.flatten_all().unwrap().to_vec1().unwrap();
        model.parameters().iter().map(|(name, t)| (name.to_string(), flat(t))).collect()
    };
    assert_eq!(bits(&runs[0].0), bits(&runs[1].0));
}

/// Written and run by `tests/python/check_training.py`: MiniLM and ViT-S.
#[test]
#[ignore = "needs TRAINING_FOLDER, which check_training.py writes"]
fn fifty_steps_of_the_folder_equal_pytorchs() {
    let folder = std::env::var("TRAINING_FOLDER").expect("TRAINING_FOLDER names what check_training.py wrote");
    let reference = load(&Path::new(&folder).join("training.safetensors"));
    check(&Path::new(&folder).join("start"), &reference, Activations::Stored, 0.2);
}
