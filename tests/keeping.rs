//! Keeping what a model knew, and learning from one that knows more: teachers, WiSE-FT, canaries, early stops, pitfalls.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Golden, relative_error};
use diptych::adapt::LoraConfig;
use diptych::candle::{Device, Tensor};
use diptych::data::{LabelledImages, PairDataset, Split};
use diptych::image::image_crate::{Rgb, RgbImage};
use diptych::loss::{ClipLoss, DistillLoss, Loss, Pairs, Teacher};
use diptych::train::{
    Canary, CheckpointConfig, Duplicates, EarlyStop, Evaluation, Half, Leave, Pitfall, Progress, Schedule, StopReason,
    TeacherConfig, TeacherView, TrainConfig, TrainData, TrainReport, Trainer, WiseFt,
};
use diptych::{ClipModel, LogitScale};

const COUNT: usize = 16;
const CHILD: &str = "DIPTYCH_TEST_STOPPING_RUN_TO_BE_KILLED";

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

/// Another architecture, image size and tokenizer than the student's.
fn teacher() -> ClipModel {
    golden("clip").with_trainable(|_| false).unwrap()
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

fn distilling(epochs: usize) -> TrainConfig {
    TrainConfig { loss: Loss::Distill(DistillLoss::new(None)), ..config(epochs) }
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

/// The divergence between two models on all pairs of the setting.
fn divergence(student: &ClipModel, teacher: &ClipModel, setting: &Setting) -> f64 {
    let files: Vec<PathBuf> = setting.split.images().iter().map(|image| setting.path().join(image)).collect();
    let (texts, _) = setting.split.flat_captions();
    let embed = |model: &ClipModel| {
        let images = model.embed_images(files.clone()).unwrap().tensor().unwrap();
        (images, model.embed_texts(&texts).unwrap().tensor().unwrap())
    };
    let ((image_embeds, text_embeds), (images, captions)) = (embed(teacher), embed(student));
    let teacher = Teacher { image_embeds, text_embeds, logit_scale: teacher.logit_scale().unwrap() };
    let scale = Tensor::new(student.logit_scale().unwrap() as f32, &Device::Cpu).unwrap();
    let pairs = Pairs { teacher: Some(&teacher), ..Pairs::new(&images, &captions, &scale) };
    f64::from(DistillLoss::new(None).of(&pairs).unwrap().to_scalar::<f32>().unwrap())
}

#[test]
fn a_student_comes_to_see_the_pairs_as_its_teacher_does() {
    let setting = Setting::new();
    let (model, teacher) = (student(), teacher());
    let before = divergence(&model, &teacher, &setting);
    let kept = values(&teacher);
    let recipe = TrainConfig { lr: 1e-2, tower_lr: 5e-3, batch_size: COUNT, ..distilling(60) };
    let trainer = Trainer::new(&model, recipe).unwrap().with_teacher(&teacher, TeacherConfig::default());
    let report = trainer.fit(&setting.split, setting.path(), None, |_| {}).unwrap();
    let after = divergence(&model, &teacher, &setting);
    assert!(after < 0.5 * before, "{before} to {after}");
    // The run's own loss is the divergence of the last step's weights: the teacher was asked about the right pairs.
    assert!((report.loss / after - 1.0).abs() < 0.5, "{} and {after}", report.loss);
    assert!(values(&teacher) == kept, "the teacher changed");
}

#[test]
fn the_first_loss_is_the_divergence_from_the_teacher() {
    let setting = Setting::new();
    let (model, teacher) = (student(), teacher());
    let expected = divergence(&model, &teacher, &setting);
    for micro_batch in [None, Some(3)] {
        let recipe = TrainConfig { batch_size: COUNT, micro_batch, ..distilling(1) };
        let model = student();
        let trainer = Trainer::new(&model, recipe).unwrap().with_teacher(&teacher, TeacherConfig::default());
        let loss = trainer.fit(&setting.split, setting.path(), None, |_| {}).unwrap().loss;
        assert!((loss / expected - 1.0).abs() < 1e-4, "{loss} and {expected}");
    }
}

#[test]
fn a_loss_and_its_teacher_come_together() {
    let setting = Setting::new();
    let model = student();
    let fit = |trainer: Trainer<'_>| {
        trainer.fit(&setting.split, setting.path(), None, |_| {}).unwrap_err().to_string()
    };
    let error = fit(Trainer::new(&model, distilling(1)).unwrap());
    assert!(error.contains("wants a teacher"), "{error}");
    let error = fit(Trainer::new(&model, config(1)).unwrap().with_teacher(&teacher(), TeacherConfig::default()));
    assert!(error.contains("does not look at the teacher"), "{error}");
    // Prepared data carries its teacher along.
    let (recipe, teacher) = (distilling(1), teacher());
    let data = TrainData::prepare(&model, &recipe, &setting.split, setting.path(), None, |_| {}).unwrap();
    assert!(Trainer::new(&model, recipe.clone()).unwrap().fit_prepared(&data, |_| {}).is_err());
    let data = data.with_teacher(&teacher, &TeacherConfig::default(), &recipe, setting.path(), |_| {}).unwrap();
    assert!(Trainer::new(&model, recipe).unwrap().fit_prepared(&data, |_| {}).unwrap().loss.is_finite());
}

#[test]
fn a_teacher_that_was_asked_before_is_not_asked_again() {
    let setting = Setting::new();
    let cache = setting.path().join("teacher.safetensors");
    let run = |teacher: &ClipModel, cache: Option<PathBuf>| {
        let (model, mut images) = (student(), 0);
        let teaching = TeacherConfig { cache, ..TeacherConfig::default() };
        let count = |p: &Progress| {
            images += usize::from(matches!(p, Progress::Pooling { half: Half::Image, .. }));
        };
        let trainer = Trainer::new(&model, distilling(1)).unwrap().with_teacher(teacher, teaching);
        trainer.fit(&setting.split, setting.path(), None, count).unwrap();
        (values(&model), images)
    };
    let (plain, asked) = run(&teacher(), None);
    assert!(asked > 0);
    assert_eq!(run(&teacher(), Some(cache.clone())), (plain.clone(), asked));
    assert_eq!(run(&teacher(), Some(cache.clone())), (plain.clone(), 0));
    // Another teacher's rows are no use, and are made anew.
    let other = golden("siglip").with_trainable(|_| false).unwrap();
    let (found, asked) = run(&other, Some(cache.clone()));
    assert!(asked > 0 && found != plain);
    assert_eq!(run(&other, Some(cache.clone())), (found, 0));
    // Nor are those of other captions.
    let mut csv = String::from("image,caption,split\n");
    (0..COUNT).for_each(|i| csv += &format!("{i}.png,the dog,train\n"));
    std::fs::write(setting.path().join("other.csv"), csv).unwrap();
    let split = PairDataset::from_csv(setting.path().join("other.csv")).unwrap().split("train").unwrap();
    let (model, mut asked) = (student(), 0);
    let teaching = TeacherConfig { cache: Some(cache.clone()), ..TeacherConfig::default() };
    let trainer = Trainer::new(&model, distilling(1)).unwrap().with_teacher(&other, teaching);
    let count = |p: &Progress| asked += usize::from(matches!(p, Progress::Pooling { .. }));
    trainer.fit(&split, setting.path(), None, count).unwrap();
    assert!(asked > 0);
    // A file of something else is not written over.
    let weights = setting.path().join("weights.safetensors");
    std::fs::copy(Golden::named("clip").path.join("model.safetensors"), &weights).unwrap();
    let before = std::fs::read(&weights).unwrap();
    let teaching = TeacherConfig { cache: Some(weights.clone()), ..TeacherConfig::default() };
    let trainer = Trainer::new(&model, distilling(1)).unwrap().with_teacher(&other, teaching);
    let error = trainer.fit(&split, setting.path(), None, |_| {}).unwrap_err().to_string();
    assert!(error.contains("weights.safetensors") && error.contains("no file of a teacher's rows"), "{error}");
    assert!(std::fs::read(&weights).unwrap() == before);
}

#[test]
fn a_teacher_may_see_the_views_that_its_student_sees() {
    let setting = Setting::new();
    let run = |view, workers| {
        let model = student();
        let recipe = TrainConfig { augment: "flip".parse().unwrap(), workers, ..distilling(2) };
        let teaching = TeacherConfig { view, cache: None };
        let trainer = Trainer::new(&model, recipe).unwrap().with_teacher(&teacher(), teaching);
        trainer.fit(&setting.split, setting.path(), None, |_| {}).unwrap();
        values(&model)
    };
    let same = run(TeacherView::Same, 1);
    assert!(same != run(TeacherView::Plain, 1));
    assert!(same == run(TeacherView::Same, 4), "the number of workers matters");
}

#[test]
fn the_line_between_two_models_starts_and_ends_at_them() {
    let setting = Setting::new();
    let model = student();
    let wise = WiseFt::before(&model).unwrap();
    let recipe = TrainConfig { lr: 1e-2, tower_lr: 5e-3, ..config(3) };
    Trainer::new(&model, recipe).unwrap().fit(&setting.split, setting.path(), None, |_| {}).unwrap();
    let at = |alpha| wise.at(&model, alpha).unwrap();
    assert!(values(&at(0.0)) == values(&student()), "α = 0 is not the model before");
    assert!(values(&at(1.0)) == values(&model), "α = 1 is not the model after");
    assert!(at(0.5).trainable().is_empty());
    for (((name, before), (_, between)), (_, after)) in
        values(&student()).iter().zip(&values(&at(0.25))).zip(&values(&model))
    {
        for ((b, x), a) in before.iter().zip(between).zip(after) {
            assert!((x - (0.75 * b + 0.25 * a)).abs() <= 1e-6 * b.abs().max(a.abs()).max(1e-3), "{name}: {b} {x} {a}");
        }
    }
    assert!(wise.at(&model, 1.5).unwrap_err().to_string().starts_with("alpha"));
    // What was frozen when it was remembered cannot be gone back to.
    let frozen = WiseFt::before(&golden("vtde_vit_bert").with_trainable(|n| n == "logit_scale").unwrap()).unwrap();
    assert!(frozen.at(&model, 0.5).unwrap_err().to_string().contains("was frozen"));
}

#[test]
fn adapters_are_merged_before_the_line_is_drawn() {
    let setting = Setting::new();
    let adapted = || golden("vtde_vit_bert").with_lora(&LoraConfig::new(2).unwrap()).unwrap();
    let model = adapted();
    let wise = WiseFt::before(&model).unwrap();
    let recipe = TrainConfig { lr: 0.05, tower_lr: 0.05, ..config(4) };
    Trainer::new(&model, recipe).unwrap().fit(&setting.split, setting.path(), None, |_| {}).unwrap();
    let (before, after) = (golden("vtde_vit_bert"), model.clone().merge_lora().unwrap());
    assert!(distance(&after, &before) > 1e-2);
    let half = wise.at(&model, 0.5).unwrap();
    assert_eq!(distance(&wise.at(&model, 0.0).unwrap(), &before), 0.0);
    assert_eq!(distance(&wise.at(&model, 1.0).unwrap(), &after), 0.0);
    let name = "vision_model.encoder.layers.0.self_attn.q_proj.weight";
    let get = |model: &ClipModel| model.parameters().get(name).unwrap();
    let mean = ((get(&before) + get(&after)).unwrap() * 0.5).unwrap();
    assert!(relative_error(&get(&half), &mean) < 1e-6);
}

#[test]
fn a_curve_measures_both_ends_and_every_alpha_once() {
    let model = student();
    let wise = WiseFt::before(&model).unwrap();
    let mut calls = 0;
    let curve = wise.curve(&model, &[0.5, 1.0, 0.5], |_| {
        calls += 1;
        Ok((f64::from(calls), Some(50.0)))
    });
    let curve = curve.unwrap();
    assert_eq!(curve.points.iter().map(|p| p.alpha).collect::<Vec<_>>(), [0.0, 0.5, 1.0]);
    assert_eq!((calls, curve.choose(WiseFt::CANARY_LOSS).unwrap().alpha), (3, 1.0));
    assert!(wise.curve(&model, &[0.5], |_| Ok((f64::NAN, None))).is_err());
    assert!(wise.curve(&model, &[2.0], |_| Ok((1.0, None))).is_err());
}

/// What happened, as far as watching goes.
#[derive(Default)]
struct Heard {
    evaluated: Vec<usize>,
    canary: Vec<(usize, f64)>,
    stopped: Option<(usize, StopReason)>,
}

impl Heard {
    fn hear(&mut self, event: &Progress) {
        match event {
            Progress::Evaluated { epoch, .. } => self.evaluated.push(*epoch),
            Progress::Canary { epoch, report } => self.canary.push((*epoch, report.top1)),
            Progress::Stopped { epoch, reason } => self.stopped = Some((*epoch, *reason)),
            _ => {}
        }
    }
}

#[test]
fn a_canary_is_measured_before_training_and_at_every_evaluation() {
    let setting = Setting::new();
    for frozen_images in [true, false] {
        let model = golden("vtde_vit_bert")
            .with_trainable(|name| !frozen_images || !name.starts_with("vision_model."))
            .unwrap();
        let expected = setting.canary().measure(&model, 1, |_| {}).unwrap();
        let mut heard = Heard::default();
        let recipe = TrainConfig { evaluation: Evaluation::EachEpoch, ..config(3) };
        let trainer = Trainer::new(&model, recipe).unwrap().with_canary(setting.canary());
        let report = trainer.fit(&setting.split, setting.path(), None, |p| heard.hear(p)).unwrap();
        assert_eq!(heard.canary.iter().map(|c| c.0).collect::<Vec<_>>(), [0, 1, 2, 3]);
        let found = report.canary.unwrap();
        assert_eq!(found.before, expected);
        assert_eq!(found.after, setting.canary().measure(&model, 1, |_| {}).unwrap());
        assert_eq!((heard.canary[0].1, heard.canary[3].1), (found.before.top1, found.after.top1));
        assert!(report.stopped.is_none() && report.best_epoch.is_none());
    }
    assert!(Canary::new(vec!["a".into()], vec![], vec![]).is_err());
    assert!(Canary::new(vec!["a".into()], vec!["x.png".into()], vec![1]).is_err());
}

/// A rate at which the target goes up and down.
fn restless(epochs: usize) -> TrainConfig {
    TrainConfig { lr: 2e-2, tower_lr: 2e-2, schedule: Schedule::Constant, ..config(epochs) }
}

fn stop_early(folder: &Path, leave: Leave, checkpoints: Option<CheckpointConfig>, die: usize) -> (ClipModel, TrainReport, Heard) {
    let split = make_data(folder);
    let model = student();
    let stop = EarlyStop { patience: Some(2), canary_loss: None, leave };
    let recipe = TrainConfig { early_stop: Some(stop), checkpoints, ema: Some(0.5), ..restless(40) };
    let trainer = Trainer::new(&model, recipe).unwrap().with_canary(canary(folder));
    let mut heard = Heard::default();
    let note = |event: &Progress| {
        heard.hear(event);
        if matches!(event, Progress::Step(step) if step.step == die) {
            std::process::abort();
        }
    };
    let report = trainer.fit(&split, folder, Some(&split), note).unwrap();
    (model, report, heard)
}

#[test]
fn a_run_without_progress_stops_and_leaves_the_best_weights() {
    let folder = tempfile::tempdir().unwrap();
    let (model, report, heard) = stop_early(folder.path(), Leave::Best, None, usize::MAX);
    let (epoch, reason) = heard.stopped.expect("40 epochs of this should not all bring something new");
    let best = report.best_epoch.unwrap();
    assert_eq!((report.stopped, reason), (Some(StopReason::Patience), StopReason::Patience));
    assert_eq!((epoch, report.steps), (best + 2, 2 * (best + 2)));
    assert_eq!(heard.evaluated, (0..=epoch).collect::<Vec<_>>());
    // What is left is what the report says, and is not what was last.
    let split = make_data(folder.path());
    let found = diptych::train::evaluate_retrieval(&model, &split, folder.path(), 1, |_| {}).unwrap();
    assert_eq!(report.evaluation, Some(found));
    assert_eq!(report.canary.unwrap().after, canary(folder.path()).measure(&model, 1, |_| {}).unwrap());
    let (last, last_report, _) = stop_early(folder.path(), Leave::Last, None, usize::MAX);
    assert_eq!((last_report.steps, last_report.best_epoch), (report.steps, report.best_epoch));
    assert!(values(&last) != values(&model));
    assert!(found.mean_recall() > last_report.evaluation.unwrap().mean_recall());
}

#[test]
fn a_run_that_is_killed_stops_where_it_would_have_stopped() {
    let kept = |folder: &Path, resume| CheckpointConfig {
        every: 3,
        keep: 2,
        resume,
        ..CheckpointConfig::new(folder.join("run"))
    };
    if let Ok(folder) = std::env::var(CHILD) {
        let folder = PathBuf::from(folder);
        let die = std::fs::read_to_string(folder.join("die")).unwrap().parse().unwrap();
        stop_early(&folder, Leave::Best, Some(kept(&folder, true)), die);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (expected, report, heard) = stop_early(folder.path(), Leave::Best, None, usize::MAX);
    // Before the first evaluation after a checkpoint, and with the stop in sight.
    for die in [4, report.steps - 1] {
        std::fs::write(folder.path().join("die"), die.to_string()).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "a_run_that_is_killed_stops_where_it_would_have_stopped", "--nocapture"]);
        let status = child.env(CHILD, folder.path()).output().unwrap().status;
        assert!(!status.success(), "the child should have died at step {die}");
    }
    for again in ["goes on", "is over"] {
        let (found, after, events) = stop_early(folder.path(), Leave::Best, Some(kept(folder.path(), true)), usize::MAX);
        assert!(values(&found) == values(&expected), "the weights differ in a run that {again}");
        assert_eq!((after.steps, after.best_epoch, after.stopped), (report.steps, report.best_epoch, report.stopped));
        assert_eq!((after.evaluation, after.canary), (report.evaluation, report.canary), "{again}");
        assert_eq!(events.stopped, heard.stopped, "{again}");
    }
    // A run with another canary, or none, is another run.
    let model = student();
    let recipe = TrainConfig {
        early_stop: Some(EarlyStop { patience: Some(2), canary_loss: None, leave: Leave::Best }),
        checkpoints: Some(kept(folder.path(), true)),
        ema: Some(0.5),
        ..restless(40)
    };
    let split = make_data(folder.path());
    let error = Trainer::new(&model, recipe).unwrap().fit(&split, folder.path(), Some(&split), |_| {}).unwrap_err();
    assert!(error.to_string().contains("another recipe"), "{error}");
}

#[test]
fn a_canary_that_falls_ends_the_run_and_what_it_knew_is_left() {
    let setting = Setting::new();
    let model = student();
    // A rule that any loss breaks: the canary may not even stay as it is.
    let stop = EarlyStop { patience: None, canary_loss: Some(-1.0), leave: Leave::Best };
    let recipe = TrainConfig { early_stop: Some(stop), ..restless(5) };
    let mut heard = Heard::default();
    let trainer = Trainer::new(&model, recipe).unwrap().with_canary(setting.canary());
    let report = trainer.fit(&setting.split, setting.path(), Some(&setting.split), |p| heard.hear(p)).unwrap();
    assert_eq!(heard.stopped, Some((1, StopReason::Canary)));
    assert_eq!((report.best_epoch, report.steps), (Some(0), 2));
    assert!(values(&model) == values(&student()), "the weights from before training should be back");
    // Without an evaluation split there is no target to stop by.
    let error = Trainer::new(&model, TrainConfig { early_stop: Some(stop), ..config(1) })
        .unwrap()
        .fit(&setting.split, setting.path(), None, |_| {})
        .unwrap_err();
    assert!(error.to_string().starts_with("early_stop"), "{error}");
}

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
    let whole = TrainConfig { batch_size: COUNT, ..config(3) };
    assert_eq!(duplicates(&pitfalls(whole.clone(), |_| {}).0), 3);
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
    let free = TrainConfig { loss: Loss::SigLip(diptych::loss::SigLipLoss::new()), ..still };
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

#[test]
fn dropped_patches_depend_on_neither_workers_nor_chunks_and_touch_training_alone() {
    let setting = Setting::new();
    let run = |patch_keep, workers, micro_batch, frozen: bool| {
        let model = golden("vtde_vit_bert")
            .with_trainable(|name| !frozen || !name.starts_with("vision_model."))
            .unwrap();
        let recipe = TrainConfig { patch_keep, workers, micro_batch, augment: "flip".parse().unwrap(), ..config(2) };
        Trainer::new(&model, recipe).unwrap().fit(&setting.split, setting.path(), None, |_| {}).unwrap();
        model
    };
    let some = run(0.5, 1, None, false);
    assert!(values(&some) == values(&run(0.5, 4, None, false)), "the number of workers matters");
    assert!(distance(&some, &run(0.5, 2, Some(3), false)) < 1e-3);
    assert!(distance(&some, &run(1.0, 1, None, false)) > 1e-3);
    assert!(values(&run(0.5, 1, None, true)) == values(&run(1.0, 1, None, true)), "a frozen tower looks at all");
    let model = student();
    let none = Trainer::new(&model, TrainConfig { patch_keep: 0.0, ..config(1) }).unwrap();
    let error = none.fit(&setting.split, setting.path(), None, |_| {}).unwrap_err().to_string();
    assert!(error.starts_with("patch_keep"), "{error}");
    // A tower that has no patches to do without says so.
    let model = golden("oc_rn").with_trainable(|_| true).unwrap();
    let resnet = Trainer::new(&model, TrainConfig { patch_keep: 0.5, ..config(1) }).unwrap();
    let error = resnet.fit(&setting.split, setting.path(), None, |_| {}).unwrap_err().to_string();
    assert!(error.starts_with("patch_keep"), "{error}");
}
