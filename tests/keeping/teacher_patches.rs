//! A teacher whose patches a student compares its own with.

use std::path::PathBuf;

use diptych::ClipModel;
use diptych::loss::{DistillLoss, Loss};
use diptych::train::{Half, Progress, TeacherConfig, TeacherView, TrainConfig, TrainReport, Trainer};

use crate::{COUNT, Setting, config, distance, golden, student, values};

/// Of another width than the student, and with a grid of its own.
fn teacher() -> ClipModel {
    golden("clip").with_trainable(|_| false).unwrap()
}

fn comparing(epochs: usize, patches: f64) -> TrainConfig {
    let loss = Loss::Distill(DistillLoss::new(None).with_patches(patches));
    TrainConfig { loss, batch_size: COUNT, ..config(epochs) }
}

fn fit(
    model: &ClipModel,
    recipe: TrainConfig,
    teaching: TeacherConfig,
    setting: &Setting,
) -> diptych::Result<(TrainReport, usize)> {
    let mut asked = 0;
    let count = |p: &Progress| asked += usize::from(matches!(p, Progress::Pooling { half: Half::Image, .. }));
    let trainer = Trainer::new(model, recipe)?.with_teacher(&teacher(), teaching);
    let report = trainer.fit(&setting.split, setting.path(), None, count)?;
    Ok((report, asked))
}

/// The first step's loss, which is the loss of the weights that the run starts from.
fn first_loss(recipe: TrainConfig, setting: &Setting) -> f64 {
    fit(&student(), recipe, TeacherConfig::default(), setting).unwrap().0.loss
}

#[test]
fn patches_come_to_lie_as_the_teachers_do() {
    let setting = Setting::new();
    let recipe = |epochs| TrainConfig { lr: 1e-2, tower_lr: 5e-3, ..comparing(epochs, 1.0) };
    let without = first_loss(comparing(1, 0.0), &setting);
    let before = first_loss(recipe(1), &setting) - without;
    // Of fresh weights they lie anywhere, the mean cosine is about 0.
    assert!((0.5..1.5).contains(&before), "{before}");
    let after = fit(&student(), recipe(60), TeacherConfig::default(), &setting).unwrap().0.loss;
    assert!(after < 0.6 * before, "{before} to {after}");
    // The weight is a factor, and a batch in parts is the same batch.
    let twice = first_loss(comparing(1, 2.0), &setting) - without;
    assert!((twice - 2.0 * before).abs() < 1e-4, "{before} and {twice}");
    let parts = TrainConfig { micro_batch: Some(3), ..comparing(1, 1.0) };
    assert!((first_loss(parts, &setting) - without - before).abs() < 1e-4);
}

#[test]
fn a_batch_in_parts_and_dropped_patches_learn_the_same() {
    let setting = Setting::new();
    let run = |micro_batch| {
        let model = student();
        let recipe = TrainConfig { micro_batch, patch_keep: 0.5, ..comparing(2, 1.0) };
        fit(&model, recipe, TeacherConfig::default(), &setting).unwrap();
        model
    };
    let (whole, parts) = (run(None), run(Some(5)));
    assert!(distance(&whole, &parts) < 1e-4, "{}", distance(&whole, &parts));
    assert!(values(&whole) != values(&student()));
}

#[test]
fn patches_of_views_are_looked_at_once_and_kept() {
    let setting = Setting::new();
    let cache = setting.path().join("rows.safetensors");
    let run = |patches: f64, cache: Option<PathBuf>| {
        let model = student();
        let recipe =
            TrainConfig { augment: "resized-crop=0.3,flip".parse().unwrap(), views: Some(2), ..comparing(4, patches) };
        let (_, asked) = fit(&model, recipe, TeacherConfig { view: TeacherView::Same, cache }, &setting).unwrap();
        (values(&model), asked)
    };
    let (plain, asked) = run(1.0, None);
    assert!(asked > 0);
    assert!(run(1.0, Some(cache.clone())) == (plain.clone(), asked));
    assert!(run(1.0, Some(cache.clone())) == (plain, 0));
    // Rows without patches are of no use to who compares them.
    assert!(run(0.0, Some(cache.clone())).1 > 0);
    assert!(run(1.0, Some(cache)).1 > 0);
}

#[test]
fn patches_that_cannot_be_compared_are_refused() {
    let setting = Setting::new();
    let refused = |model: &ClipModel, recipe: TrainConfig, view| {
        fit(model, recipe, TeacherConfig { view, cache: None }, &setting).map(|_| ()).unwrap_err().to_string()
    };
    // Parts of an image that the teacher does not see, or sees anew in every epoch.
    let augment = "resized-crop=0.3".parse().unwrap();
    for view in [TeacherView::Plain, TeacherView::Same] {
        let recipe = TrainConfig { augment, ..comparing(1, 1.0) };
        assert!(refused(&student(), recipe, view).contains("say how many views"));
    }
    let recipe = TrainConfig { augment, views: Some(2), ..comparing(1, 1.0) };
    assert!(refused(&student(), recipe, TeacherView::Plain).contains("sees the same"));
    let frozen = student().with_trainable(|name| !name.starts_with("vision_model")).unwrap();
    assert!(refused(&frozen, comparing(1, 1.0), TeacherView::Plain).contains("the image tower is frozen"));
    assert!(refused(&student(), comparing(1, f64::NAN), TeacherView::Plain).contains("DistillLoss::patches"));
    let resnet = golden("oc_rn").with_trainable(|_| true).unwrap();
    assert!(refused(&resnet, comparing(1, 1.0), TeacherView::Plain).contains("only a vision transformer's"));
}
