//! [`History`]: what a run did, small enough to be kept whole and drawn.

use crate::retrieval::RetrievalReport;
use crate::train::{Progress, Step};

/// How many points a [`Series`] has at most.
const MOST_POINTS: usize = 2048;

/// A curve of any length in bounded memory: when it is full, neighbours are replaced by their mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    points: Vec<(f64, f64)>,
    /// How many values a point is the mean of.
    stride: usize,
    pending: (usize, f64, f64),
}

impl Default for Series {
    fn default() -> Self {
        Self { points: Vec::new(), stride: 1, pending: (0, 0.0, 0.0) }
    }
}

impl Series {
    /// Adds the value `y` at `x`; one that is not finite is left out.
    pub fn push(&mut self, x: f64, y: f64) {
        if !(x.is_finite() && y.is_finite()) {
            return;
        }
        let (count, sum_x, sum_y) = self.pending;
        self.pending = (count + 1, sum_x + x, sum_y + y);
        if self.pending.0 < self.stride {
            return;
        }
        let (count, sum_x, sum_y) = std::mem::take(&mut self.pending);
        self.points.push((sum_x / count as f64, sum_y / count as f64));
        if self.points.len() == MOST_POINTS {
            let mean = |p: &[(f64, f64)]| ((p[0].0 + p[1].0) / 2.0, (p[0].1 + p[1].1) / 2.0);
            self.points = self.points.chunks_exact(2).map(mean).collect();
            self.stride *= 2;
        }
    }

    /// The points, from left to right.
    #[must_use]
    pub fn points(&self) -> &[(f64, f64)] {
        &self.points
    }
}

/// One evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The epoch it follows; 0 for one before the first step.
    pub epoch: usize,
    /// The steps taken by then.
    pub step: usize,
    /// What it found.
    pub report: RetrievalReport,
}

/// What a run did: curves over its steps, and its evaluations.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct History {
    /// The loss of each step.
    pub loss: Series,
    /// The heads' learning rate.
    pub rate: Series,
    /// The gradients' norm before clipping.
    pub gradient_norm: Series,
    /// The factor of the cosines.
    pub logit_scale: Series,
    /// Pairs a second.
    pub pairs_per_second: Series,
    /// Scalars of other names, as [`RunLog::scalar`](super::RunLog::scalar) got them, in the order of their first values.
    pub scalars: Vec<(String, Series)>,
    /// The evaluations in order.
    pub evaluations: Vec<Measured>,
    /// The last step, if there was one.
    pub last: Option<Step>,
}

impl History {
    /// Takes in what happened.
    pub fn observe(&mut self, event: &Progress) {
        match event {
            Progress::Step(step) => {
                let x = step.step as f64;
                self.loss.push(x, step.loss);
                self.rate.push(x, step.lr);
                self.gradient_norm.push(x, step.grad_norm);
                self.logit_scale.push(x, step.logit_scale);
                self.pairs_per_second.push(x, step.pairs_per_second);
                self.last = Some(*step);
            }
            Progress::Evaluated { epoch, report } => {
                self.evaluations.push(Measured { epoch: *epoch, step: self.steps(), report: *report });
            }
            _ => {}
        }
    }

    /// Adds a value of a scalar of any other name at the last step.
    pub fn scalar(&mut self, name: &str, value: f64) {
        let x = self.steps() as f64;
        let place = self.scalars.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            self.scalars.push((name.to_string(), Series::default()));
            self.scalars.len() - 1
        });
        self.scalars[place].1.push(x, value);
    }

    /// The steps taken so far.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.last.map_or(0, |step| step.step)
    }

    /// The evaluation before the first step.
    #[must_use]
    pub fn before(&self) -> Option<RetrievalReport> {
        self.evaluations.iter().find(|found| found.epoch == 0).map(|found| found.report)
    }

    /// The last evaluation after a step.
    #[must_use]
    pub fn after(&self) -> Option<RetrievalReport> {
        self.evaluations.iter().rev().find(|found| found.epoch > 0).map(|found| found.report)
    }

    /// How many steps make an epoch, as far as the run went.
    pub(super) fn steps_per_epoch(&self) -> f64 {
        let whole = self.evaluations.iter().rev().find(|found| found.epoch > 0 && found.step > 0);
        let whole = whole.map(|found| found.step as f64 / found.epoch as f64);
        whole.or_else(|| self.last.map(|last| last.step as f64 / last.epoch.max(1) as f64)).unwrap_or(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_keeps_its_shape_in_bounded_memory() {
        let mut series = Series::default();
        for i in 0..1_000_000 {
            series.push(f64::from(i), 2.0 * f64::from(i));
        }
        series.push(f64::NAN, 1.0);
        series.push(1.0, f64::INFINITY);
        let points = series.points();
        assert!((MOST_POINTS / 4..MOST_POINTS).contains(&points.len()), "{}", points.len());
        assert!(points.iter().all(|(x, y)| (y - 2.0 * x).abs() < 1e-6 * y.abs()));
        assert!(points[0].0 < 2000.0 && points.last().unwrap().0 > 997_000.0);
    }
}
