//! What a person sees of a run while it goes on.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use diptych::train::{Half, Pitfall, Progress, Step, StopReason};
use indicatif::ProgressBar;

use crate::common::progress;

/// How often a line is printed where there is no terminal to draw a bar on.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// The run as a person sees it: one bar at a time on standard error, or a line now and then where that is a file.
#[derive(Default)]
pub struct Display {
    bar: Option<(String, ProgressBar)>,
    /// When and at which step this run began.
    began: Option<(Instant, usize)>,
    line: Option<Instant>,
}

impl Display {
    /// Shows what just happened.
    pub fn show(&mut self, event: &Progress) {
        match event {
            Progress::Pooling { half, done, total } => {
                let what = if *half == Half::Image { "images" } else { "texts" };
                self.bar(what, *total).set_position(*done as u64);
            }
            Progress::Step(step) => self.step(step),
            Progress::Skipped(skipped) => {
                self.clear();
                eprintln!("left out {skipped}");
            }
            Progress::Evaluated { epoch, report } => {
                self.clear();
                let (t, i) = (report.text_to_image, report.image_to_text);
                let when = if *epoch == 0 { "before".to_string() } else { format!("epoch {epoch}") };
                eprintln!(
                    "{when}: text→image R@1 {:.1} R@5 {:.1} R@10 {:.1}, image→text R@1 {:.1} R@5 {:.1} R@10 {:.1}",
                    t.r1, t.r5, t.r10, i.r1, i.r5, i.r10
                );
            }
            Progress::Canary { epoch, report } => {
                self.say(&format!("epoch {epoch}: canary top-1 {:.1}, top-5 {:.1}", report.top1, report.top5));
            }
            Progress::Stopped { epoch, reason: StopReason::Patience } => {
                self.say(&format!("stopped after epoch {epoch}: nothing better for too long"));
            }
            Progress::Stopped { epoch, reason: StopReason::Canary } => {
                self.say(&format!("stopped after epoch {epoch}: the canary lost too much"));
            }
            Progress::PassedOver { reason, .. } => self.say(&format!("passed over a checkpoint: {reason}")),
            Progress::Warning(warning) => {
                let option = match warning.pitfall {
                    Pitfall::DuplicateCaptions { .. } => " (--duplicates-match)",
                    _ => "",
                };
                self.say(&format!("warning: {warning}{option}"));
            }
            _ => {}
        }
    }

    fn say(&mut self, line: &str) {
        match &self.bar {
            Some((_, bar)) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    fn step(&mut self, step: &Step) {
        let now = Instant::now();
        let (began, first) = *self.began.get_or_insert((now, step.step));
        let left = match step.step - first {
            0 => "–".to_string(),
            done => time(now.duration_since(began).mul_f64((step.steps - step.step) as f64 / done as f64)),
        };
        let state =
            format!("loss {:.3}, rate {:.1e}, {:.1} images/s, {left} left", step.loss, step.lr, step.pairs_per_second);
        let bar = self.bar("steps", step.steps);
        bar.set_position(step.step as u64);
        bar.set_message(state.clone());
        let due = self.line.is_none_or(|line| now.duration_since(line) >= LINE_EVERY);
        if !std::io::stderr().is_terminal() && (due || step.step == step.steps) {
            eprintln!("step {} of {}, epoch {}: {state}", step.step, step.steps, step.epoch);
            self.line = Some(now);
        }
    }

    fn bar(&mut self, what: &str, total: usize) -> &ProgressBar {
        if self.bar.as_ref().is_none_or(|(shown, _)| shown != what) {
            self.clear();
        }
        &self.bar.get_or_insert_with(|| (what.to_string(), progress(total, what))).1
    }

    /// Takes the bar away.
    pub fn clear(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// A span of time as a person says it.
pub fn time(span: Duration) -> String {
    let seconds = span.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}
