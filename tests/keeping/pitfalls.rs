//! Pitfalls are named.

use diptych::loss::{ClipLoss, Loss, SigLipLoss};
use diptych::train::{Duplicates, Half, Pitfall, Progress, TrainConfig, TrainReport, Trainer};
use diptych::{ClipModel, LogitScale};

use crate::{COUNT, Setting, config, student};

fn pitfalls(recipe: TrainConfig, prepare: impl FnOnce(&ClipModel)) -> (Vec<Pitfall>, TrainReport) {
    let setting = Setting::new();
    let model = student();
    prepare(&model);
    let mut heard = Vec::new();
    let note = |event: &Progress| {
        if let Progress::Warning(warning) = event {
            heard.push(warning.clone());
        }
    };
    let report = Trainer::new(&model, recipe).unwrap().fit(&setting.split, setting.path(), None, note).unwrap();
    assert_eq!(heard, report.warnings);
    (heard.into_iter().map(|warning| warning.pitfall).collect(), report)
}

#[test]
fn captions_that_come_twice_in_a_batch_are_named_once_an_epoch() {
    let duplicates = |found: &[Pitfall]| {
        found.iter().filter(|p| matches!(p, Pitfall::DuplicateCaptions { repeated: 1, pairs: COUNT })).count()
    };
    let whole = TrainConfig { batch_size: COUNT, loss: Loss::SigLip(SigLipLoss::new()), ..config(3) };
    assert_eq!(duplicates(&pitfalls(whole.clone(), |_| {}).0), 3);
    let harmless = TrainConfig { loss: Loss::Clip(ClipLoss::new()), ..whole.clone() };
    assert_eq!(duplicates(&pitfalls(harmless, |_| {}).0), 0);
    let told = TrainConfig { duplicates: Duplicates::Positives, ..whole };
    assert_eq!(duplicates(&pitfalls(told, |_| {}).0), 0);
}

#[test]
fn a_scale_at_its_bound_is_named() {
    let at = |log: f64| {
        move |model: &ClipModel| {
            let scale = model.trainable().into_iter().find(|(name, _)| name == "logit_scale").unwrap().1;
            scale.set(&scale.as_detached_tensor().affine(0.0, log).unwrap()).unwrap();
        }
    };
    let saturated = |found: &[Pitfall]| found.iter().filter(|p| matches!(p, Pitfall::SaturatedScale { .. })).count();
    // At rate zero the scale stays where it is.
    let still = TrainConfig { lr: 0.0, tower_lr: 0.0, weight_decay: 0.0, ..config(2) };
    assert_eq!(saturated(&pitfalls(still.clone(), at(LogitScale::LARGEST)).0), 2);
    assert_eq!(saturated(&pitfalls(still.clone(), at(3.0)).0), 0);
    let free = TrainConfig { loss: Loss::SigLip(SigLipLoss::new()), ..still };
    assert_eq!(saturated(&pitfalls(free, at(LogitScale::LARGEST)).0), 0);
}

#[test]
fn a_collapse_is_named_with_its_figures() {
    // A last bias far larger than anything else makes all images one point.
    let flatten = |model: &ClipModel| {
        for (name, var) in model.trainable() {
            if name.starts_with("vision_model.") && name.ends_with("embeddings.patch_embedding.weight") {
                var.set(&var.zeros_like().unwrap()).unwrap();
            }
        }
    };
    let still = TrainConfig { lr: 1e-9, tower_lr: 1e-9, loss: Loss::Clip(ClipLoss::new()), ..config(2) };
    let (found, report) = pitfalls(still.clone(), flatten);
    let collapsed: Vec<_> = found.iter().filter(|p| matches!(p, Pitfall::Collapse { half: Half::Image, .. })).collect();
    assert_eq!(collapsed.len(), 2, "{found:?}");
    assert!(report.geometry.unwrap().image_uniformity > -0.01, "{:?}", report.geometry);
    assert!(report.warnings.iter().any(|w| w.to_string().contains("embeddings of images are almost the same")));
}
