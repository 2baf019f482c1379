//! [`RunLog`]: what a run tells, kept for the report and written down as it happens.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::{EventFile, History, JsonLines};
use crate::train::Progress;
use crate::{Error, Result};

/// Listens to a run. Each step and each evaluation becomes a line of JSON and an event for TensorBoard, where they are asked for.
///
/// A log that cannot be written does not stop the run: nothing more is written, and [`RunLog::check`] says why.
///
/// # Examples
/// ```no_run
/// # fn main() -> diptych::Result<()> {
/// # let (model, config, train, test): (diptych::ClipModel, _, diptych::data::Split, diptych::data::Split) = todo!();
/// use diptych::report::{ReportPage, RunLog};
/// let mut log = RunLog::new().json_lines("run.jsonl")?.tensorboard("runs/first")?;
/// diptych::train::Trainer::new(&model, config)?.fit(&train, "photos", Some(&test), |event| log.observe(event))?;
/// ReportPage::new("My photos", log.history()).save("report.html")?;
/// log.check()
/// # }
/// ```
#[derive(Debug)]
pub struct RunLog {
    history: History,
    json: Option<JsonLines>,
    events: Option<EventFile>,
    started: Instant,
    failure: Option<Error>,
}

impl Default for RunLog {
    fn default() -> Self {
        Self { history: History::default(), json: None, events: None, started: Instant::now(), failure: None }
    }
}

impl RunLog {
    /// A log that keeps the history and writes nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Also writes JSON lines to `path` ([`JsonLines::open`]): `{"event": "step", …}` for each step, `{"event": "evaluation", …}` for
    /// each evaluation, with the seconds since the log began.
    ///
    /// # Errors
    /// As [`JsonLines::open`].
    pub fn json_lines(mut self, path: impl AsRef<Path>) -> Result<Self> {
        self.json = Some(JsonLines::open(path)?);
        Ok(self)
    }

    /// Also writes an event file for TensorBoard into `folder` ([`EventFile::create`]).
    ///
    /// # Errors
    /// As [`EventFile::create`].
    pub fn tensorboard(mut self, folder: impl AsRef<Path>) -> Result<Self> {
        self.events = Some(EventFile::create(folder)?);
        Ok(self)
    }

    /// Takes in what happened.
    pub fn observe(&mut self, event: &Progress) {
        self.history.observe(event);
        match event {
            Progress::Step(step) => {
                let line = json!({
                    "event": "step", "step": step.step, "steps": step.steps, "epoch": step.epoch, "loss": step.loss,
                    "lr": step.lr, "grad_norm": step.grad_norm, "logit_scale": step.logit_scale,
                    "pairs_per_second": rounded(step.pairs_per_second, 100.0),
                });
                let values = [
                    ("train/loss", step.loss),
                    ("train/learning_rate", step.lr),
                    ("train/gradient_norm", step.grad_norm),
                    ("train/logit_scale", step.logit_scale),
                    ("train/pairs_per_second", step.pairs_per_second),
                ];
                self.write(line, &values);
            }
            Progress::Evaluated { epoch, report } => {
                let mut line = json!({ "event": "evaluation", "step": self.history.steps(), "epoch": epoch });
                if let (Value::Object(line), Ok(Value::Object(found))) = (&mut line, serde_json::to_value(report)) {
                    line.extend(found);
                }
                let (text, image) = (report.text_to_image, report.image_to_text);
                let values = [
                    ("text_to_image/recall_at_1", text.r1),
                    ("text_to_image/recall_at_5", text.r5),
                    ("text_to_image/recall_at_10", text.r10),
                    ("image_to_text/recall_at_1", image.r1),
                    ("image_to_text/recall_at_5", image.r5),
                    ("image_to_text/recall_at_10", image.r10),
                ];
                self.write(line, &values);
            }
            _ => {}
        }
    }

    /// Takes in one value of a scalar that no event has (a zero-shot accuracy, say) at the last step; it gets a curve of its own.
    pub fn scalar(&mut self, name: &str, value: f64) {
        self.history.scalar(name, value);
        let line = json!({ "event": "scalar", "step": self.history.steps(), "name": name, "value": value });
        self.write(line, &[(name, value)]);
    }

    /// What the run did so far.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Seconds since the log began.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Whether all was written; to be asked at the end of a run.
    ///
    /// # Errors
    /// The first error of writing, with which the writing stopped.
    pub fn check(self) -> Result<()> {
        self.failure.map_or(Ok(()), Err)
    }

    fn write(&mut self, mut line: Value, values: &[(&str, f64)]) {
        line["seconds"] = rounded(self.seconds(), 1000.0);
        let step = self.history.steps();
        let mut outcome = self.json.as_mut().map_or(Ok(()), |json| json.add(&line));
        if let (Ok(()), Some(events)) = (&outcome, &mut self.events) {
            outcome = events.add(step, values);
        }
        if let Err(error) = outcome {
            (self.json, self.events) = (None, None);
            self.failure.get_or_insert(error);
        }
    }
}

/// `value` rounded to a part of one; `null` where it is not finite.
fn rounded(value: f64, parts: f64) -> Value {
    ((value * parts).round() / parts).into()
}
