//! What a run leaves for a person: logs that are whole at any moment, a page and a card that nothing in the data can break.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::Golden;
use diptych::ClipModel;
use diptych::data::{PairDataset, Split};
use diptych::image::image_crate::{Rgb, RgbImage};
use diptych::image::{DecodeOptions, decode};
use diptych::report::{AlphaCurve, Gallery, History, ModelCard, ReportPage, RunLog};
use diptych::retrieval::{Recall, RetrievalReport};
use diptych::train::{Evaluation, Progress, Schedule, Step, TrainConfig, TrainData, Trainer, WisePoint};
use serde_json::Value;

const CHILD: &str = "DIPTYCH_TEST_LOG_TO_BE_KILLED";
/// A caption and a name that would end a tag, an attribute, a table cell and a YAML scalar.
const NASTY: &str = "a \"dog\" & <script>alert('x')</script> | `cat`: #1 \u{202e}";

fn step(step: usize) -> Progress {
    Progress::Step(Step {
        epoch: 1 + step / 10,
        step,
        steps: 40,
        loss: 3.0 / step as f64,
        lr: 1e-3,
        grad_norm: 0.5,
        logit_scale: 14.0,
        pairs_per_second: 100.0,
    })
}

fn evaluated(epoch: usize, r1: f64) -> Progress {
    let recall = Recall { r1, r5: 2.0 * r1, r10: 3.0 * r1 };
    let report = RetrievalReport { text_to_image: recall, image_to_text: recall, images: 10, captions: 20 };
    Progress::Evaluated { epoch, report }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.ends_with('\n'), "the last line is not whole");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_lines_of_a_run_that_is_killed_are_whole_and_it_goes_on_behind_them() {
    if let Ok(path) = std::env::var(CHILD) {
        let mut log = RunLog::new().json_lines(path).unwrap();
        log.observe(&evaluated(0, 1.0));
        for i in 1.. {
            log.observe(&step(i));
            if i == 25 {
                std::process::abort();
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.jsonl");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "the_lines_of_a_run_that_is_killed_are_whole_and_it_goes_on_behind_them", "--nocapture"]);
    assert!(!child.env(CHILD, &path).output().unwrap().status.success());
    let found = lines(&path);
    assert_eq!(found.len(), 26, "every step is in the file, not in a buffer");
    assert_eq!((&found[0]["event"], &found[0]["epoch"]), (&"evaluation".into(), &0.into()));
    assert_eq!((&found[25]["step"], &found[25]["lr"]), (&25.into(), &1e-3.into()));
    assert_eq!(found[0]["text_to_image"]["r5"], 2.0);
    let mut log = RunLog::new().json_lines(&path).unwrap();
    log.observe(&step(26));
    log.scalar("canary", 55.5);
    log.check().unwrap();
    let found = lines(&path);
    assert_eq!((found.len(), &found[27]["name"], &found[27]["step"]), (28, &"canary".into(), &26.into()));
}

/// The data of each record; panics where the framing is broken.
fn records(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut found) = (bytes, Vec::new());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        found.push(&rest[12..12 + length]);
        rest = &rest[16 + length..];
    }
    found
}

#[test]
fn an_event_file_has_a_version_and_then_an_event_for_each_step() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = RunLog::new().tensorboard(folder.path().join("runs/a")).unwrap();
    log.observe(&evaluated(0, 1.0));
    (1..=12).for_each(|i| log.observe(&step(i)));
    let files: Vec<PathBuf> =
        std::fs::read_dir(folder.path().join("runs/a")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    assert!(files[0].file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents."));
    // Read while the run goes on.
    let bytes = std::fs::read(&files[0]).unwrap();
    let found = records(&bytes);
    assert_eq!(found.len(), 14);
    let has = |record: &[u8], text: &str| record.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(has(found[0], "brain.Event:2") && has(found[1], "text_to_image/recall_at_1"));
    assert!(found[2..].iter().all(|record| has(record, "train/loss") && has(record, "train/learning_rate")));
    log.check().unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn a_log_that_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.jsonl");
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    assert!(RunLog::new().json_lines(&path).is_err(), "a device is no log");
    let error = RunLog::new().tensorboard("/proc/diptych").unwrap_err().to_string();
    assert!(error.contains("/proc/diptych"), "{error}");
}

fn nasty_history() -> History {
    let mut history = History::default();
    history.observe(&evaluated(0, 1.0));
    (1..=30).for_each(|i| history.observe(&step(i)));
    history.observe(&evaluated(3, 12.3));
    history.scalar(NASTY, 50.0);
    history
}

#[test]
fn nothing_in_the_data_means_anything_in_the_page() {
    let history = nasty_history();
    let points = [0.0, 0.5, 1.0].map(|alpha| WisePoint { alpha, target: 20.0 + alpha, canary: Some(60.0 - alpha) });
    let curve = AlphaCurve { target: NASTY.into(), canary: NASTY.into(), points: points.into(), chosen: Some(0.5) };
    let picture = |right| diptych::report::Picture { name: NASTY.into(), jpeg: vec![1, 2, 3], score: 0.5, right };
    let found = diptych::report::Retrieved {
        caption: NASTY.into(),
        rank: 9,
        found: vec![picture(false)],
        own: Some(picture(true)),
    };
    let gallery = Gallery { best: vec![found.clone()], worst: vec![found], images: 10 };
    let page = ReportPage::new(NASTY, &history).note(NASTY).recipe([(NASTY.into(), NASTY.into())]);
    let html = page.command(NASTY).alpha(curve).gallery(&gallery).html();
    assert!(!html.contains("<script") && !html.contains("alert('x')"), "a script came through");
    assert!(!html.contains("\"dog\"") && html.matches("&lt;script&gt;").count() > 10);
    for outside in ["http://", "https://", "src=\"/", "@import", "url("] {
        assert!(!html.contains(outside), "the page is not on its own: {outside}");
    }
    for part in ["+11.3", "12.3 %", "data:image/jpeg;base64,AQID", "α = 0.5", "place 9", "class=\"right\"", "viewport"]
    {
        assert!(html.contains(part), "{part} is missing");
    }
    // Whatever opens is closed.
    for tag in ["div", "table", "tr", "td", "svg", "figure", "p", "span", "h2"] {
        let opened = html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

#[test]
fn an_empty_run_has_a_page_too() {
    let html = ReportPage::new("empty", &History::default()).html();
    assert!(html.contains("<h1>empty</h1>") && html.ends_with("</html>\n"));
}

/// Eight images with a caption each, four to train on.
fn make_data(folder: &Path) -> (Split, Split) {
    let mut csv = String::from("image,caption,split\n");
    for (i, word) in ["photo", "of", "cat", "dog", "the", "two", "on", "grass"].into_iter().enumerate() {
        let level = |bit: usize| if i >> bit & 1 == 1 { 255 } else { 0 };
        RgbImage::from_pixel(8, 8, Rgb([level(0), level(1), level(2)])).save(folder.join(format!("{i}.png"))).unwrap();
        csv += &format!("{i}.png,<{word}>,{}\n", if i < 4 { "train" } else { "test" });
    }
    let path = folder.join("captions.csv");
    std::fs::write(&path, csv).unwrap();
    let data = PairDataset::from_csv(path).unwrap();
    (data.split("train").unwrap(), data.split("test").unwrap())
}

#[test]
fn a_run_leaves_a_page_and_a_card_that_tell_nothing_of_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let (train, test) = make_data(folder.path());
    let model = ClipModel::from_pretrained(Golden::named("vtde_vit_bert").dir()).unwrap();
    let model = model.with_trainable(|_| true).unwrap();
    let config = TrainConfig {
        epochs: 2,
        batch_size: 2,
        schedule: Schedule::Constant,
        workers: 1,
        evaluation: Evaluation::EachEpoch,
        ..TrainConfig::default()
    };
    let trainer = Trainer::new(&model, config.clone()).unwrap();
    let data = TrainData::prepare(&model, &config, &train, folder.path(), Some(&test), |_| {}).unwrap();
    let mut log = RunLog::new();
    let before = data.evaluate(&model, 1, &mut |_| {}).unwrap().unwrap();
    log.observe(&Progress::Evaluated { epoch: 0, report: before });
    let report = trainer.fit_prepared(&data, |event| log.observe(event)).unwrap();
    let history = log.history();
    assert_eq!((history.steps(), history.before()), (4, Some(before)));
    assert_eq!(history.after(), report.evaluation);
    assert_eq!(history.evaluations.iter().map(|found| found.step).collect::<Vec<_>>(), [0, 2, 4]);

    let (images, captions) = data.embeddings(&model, 1, &mut |_| {}).unwrap().unwrap();
    let read = |i: usize| decode(&folder.path().join(&test.images()[i]).into(), &DecodeOptions::default());
    let gallery = Gallery::new(&test, &images, &captions, 3, read).unwrap();
    assert!(gallery.best.len() <= 3 && gallery.worst.len() <= 3);
    let placed = gallery.best.iter().chain(&gallery.worst);
    assert!(placed.clone().count() >= 3 && placed.flat_map(|r| &r.found).all(|p| !p.jpeg.is_empty()));

    let page = folder.path().join("report.html");
    ReportPage::new("run", history).gallery(&gallery).save(&page).unwrap();
    let card = ModelCard {
        name: "run".into(),
        base_models: vec![Golden::named("vtde_vit_bert").dir().to_string()],
        after: report.evaluation,
        ..ModelCard::default()
    };
    card.save(folder.path()).unwrap();
    for file in [page, folder.path().join("README.md")] {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains(folder.path().to_str().unwrap()) && !text.contains(env!("CARGO_MANIFEST_DIR")));
        assert!(!text.contains("<grass>"), "{}", file.display());
    }
}

#[test]
fn a_page_is_written_completely_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none/report.html");
    assert!(ReportPage::new("x", &History::default()).save(&path).is_err() && !path.exists());
    let names = || std::fs::read_dir(folder.path()).unwrap().count();
    ReportPage::new("x", &nasty_history()).save(folder.path().join("report.html")).unwrap();
    assert_eq!(names(), 1, "no temporary file stays");
}
