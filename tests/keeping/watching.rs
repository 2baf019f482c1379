//! Canaries and early stops, killed runs included.

use std::path::{Path, PathBuf};
use std::process::Command;

use diptych::ClipModel;
use diptych::image::ImageSource;
use diptych::train::{
    Canary, CheckpointConfig, EarlyStop, Evaluation, Leave, Progress, Schedule, StopReason, TrainConfig, TrainReport,
    Trainer,
};

use crate::{Setting, canary, config, golden, make_data, student, values};

const CHILD: &str = "DIPTYCH_TEST_STOPPING_RUN_TO_BE_KILLED";

/// What happened, as far as watching goes.
#[derive(Default)]
struct Heard {
    evaluated: Vec<usize>,
    targets: Vec<f64>,
    canary: Vec<(usize, f64)>,
    stopped: Option<(usize, StopReason)>,
}

impl Heard {
    fn hear(&mut self, event: &Progress) {
        match event {
            Progress::Evaluated { epoch, report } => {
                self.evaluated.push(*epoch);
                self.targets.push(report.mean_recall());
            }
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
    assert!(Canary::new(vec!["a".into()], vec![ImageSource::File("x.png".into())], vec![1]).is_err());
}

/// A rate at which the target goes up and down.
fn restless(epochs: usize) -> TrainConfig {
    TrainConfig { lr: 2e-2, tower_lr: 2e-2, schedule: Schedule::Constant, ..config(epochs) }
}

fn stop_early(
    folder: &Path,
    leave: Leave,
    checkpoints: Option<CheckpointConfig>,
    die: usize,
) -> (ClipModel, TrainReport, Heard) {
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
    assert!(heard.targets.iter().all(|&target| target <= found.mean_recall()), "{:?}", heard.targets);
    assert!(heard.targets[..best].iter().all(|&target| target < found.mean_recall()), "{:?}", heard.targets);
    assert_eq!(last_report.evaluation.unwrap().mean_recall(), heard.targets[epoch]);
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
        child.args(["--exact", "watching::a_run_that_is_killed_stops_where_it_would_have_stopped", "--nocapture"]);
        let status = child.env(CHILD, folder.path()).output().unwrap().status;
        assert!(!status.success(), "the child should have died at step {die}");
    }
    for again in ["goes on", "is over"] {
        let (found, after, events) =
            stop_early(folder.path(), Leave::Best, Some(kept(folder.path(), true)), usize::MAX);
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
    // A canary that knows what the model says of each image: it starts at 100 %, and any change is a loss.
    let files = || setting.split.images().iter().map(|image| setting.path().join(image));
    let found = model.zero_shot(&["cat", "dog"]).unwrap().classify_all(files()).unwrap();
    let targets = found.iter().map(|classes| usize::from(classes[0].label == "dog")).collect();
    let own = Canary::new(vec!["cat".into(), "dog".into()], files().map(ImageSource::File).collect(), targets).unwrap();
    let stop = EarlyStop { patience: None, canary_loss: Some(0.0), leave: Leave::Best };
    let recipe = TrainConfig { early_stop: Some(stop), ..restless(40) };
    let mut heard = Heard::default();
    let trainer = Trainer::new(&model, recipe).unwrap().with_canary(own.clone());
    let report = trainer.fit(&setting.split, setting.path(), Some(&setting.split), |p| heard.hear(p)).unwrap();
    let (epoch, reason) = heard.stopped.expect("training should change what the model says of some image");
    assert_eq!((reason, report.stopped, report.steps), (StopReason::Canary, Some(StopReason::Canary), 2 * epoch));
    assert!(heard.canary[..epoch].iter().all(|&(_, top1)| top1 == 100.0) && heard.canary[epoch].1 < 100.0);
    assert!(report.best_epoch.unwrap() < epoch);
    assert_eq!(own.measure(&model, 1, |_| {}).unwrap().top1, 100.0, "weights that had lost something are left");
    // Without an evaluation split there is no target to stop by.
    let error = Trainer::new(&model, TrainConfig { early_stop: Some(stop), ..config(1) })
        .unwrap()
        .fit(&setting.split, setting.path(), None, |_| {})
        .unwrap_err();
    assert!(error.to_string().starts_with("early_stop"), "{error}");
    for wrong in [EarlyStop { patience: Some(0), ..stop }, EarlyStop { canary_loss: Some(-1.0), ..stop }] {
        let recipe = TrainConfig { early_stop: Some(wrong), ..config(1) };
        let trainer = Trainer::new(&model, recipe).unwrap();
        let outcome = trainer.fit(&setting.split, setting.path(), Some(&setting.split), |_| {});
        assert!(outcome.unwrap_err().to_string().starts_with("early_stop"));
    }
}
