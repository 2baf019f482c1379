//! What a person sees of a run while it goes on.

use diptych::train::{Half, Progress};
use indicatif::ProgressBar;

use crate::common::progress;

/// The run as a person sees it: one bar at a time on standard error.
#[derive(Default)]
pub struct Display {
    bar: Option<(String, ProgressBar)>,
}

impl Display {
    /// Shows what just happened.
    pub fn show(&mut self, event: &Progress) {
        match event {
            Progress::Pooling { half, done, total } => {
                let what = if *half == Half::Image { "images" } else { "texts" };
                self.bar(what, *total).set_position(*done as u64);
            }
            Progress::Skipped(skipped) => {
                self.clear();
                eprintln!("left out {skipped}");
            }
            Progress::Step(step) => {
                let bar = self.bar("steps", step.steps);
                bar.set_position(step.step as u64);
                bar.set_message(format!("loss {:.3}, {:.1} pairs/s", step.loss, step.pairs_per_second));
            }
            Progress::Evaluated { epoch, report } => {
                self.clear();
                let (t, i) = (report.text_to_image, report.image_to_text);
                eprintln!(
                    "epoch {epoch}: text→image R@1 {:.1} R@5 {:.1} R@10 {:.1}, image→text R@1 {:.1} R@5 {:.1} R@10 {:.1}",
                    t.r1, t.r5, t.r10, i.r1, i.r5, i.r10
                );
            }
            _ => {}
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
