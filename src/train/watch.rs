//! What a run looks at between its epochs: the target, the [`Canary`], and from both when to stop ([`EarlyStop`]) and which
//! weights to leave.
//!
//! All that decides is in the checkpoints, the best weights included: a run that was killed stops where it would have stopped.

use std::collections::HashMap;

use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use super::canary::Canary;
use super::progress::{CanaryReport, Progress, StopReason};
use super::trainer::{TrainData, Trainer};
use crate::retrieval::RetrievalReport;
use crate::zero_shot::ZeroShotReport;
use crate::{Error, Result};

/// When a run ends before its last epoch, and what it leaves. The evaluation split is then measured before training and after
/// every epoch; the target is the mean recall ([`RetrievalReport::mean_recall`]).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EarlyStop {
    /// How many epochs in a row may bring no better target; `None` for any number.
    pub patience: Option<usize>,
    /// How many points the canary's top-1 may be below what it was before training; `None` for any number.
    pub canary_loss: Option<f64>,
    /// Which weights the run leaves.
    pub leave: Leave,
}

impl EarlyStop {
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if a bound can never be met.
    pub(super) fn check(&self) -> Result<()> {
        if self.patience == Some(0) {
            return Err(Error::argument("early_stop", "a patience of 0 epochs; at least 1 is needed"));
        }
        match self.canary_loss.filter(|loss| !(loss.is_finite() && *loss >= 0.0)) {
            Some(loss) => Err(Error::argument("early_stop", format!("a canary loss of {loss}; at least 0 is needed"))),
            None => Ok(()),
        }
    }
}

impl Default for EarlyStop {
    /// Three epochs of patience, a canary that may lose five points, and the best weights.
    fn default() -> Self {
        Self { patience: Some(3), canary_loss: Some(5.0), leave: Leave::Best }
    }
}

/// Which weights a run leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Leave {
    /// Those of the best target among the evaluations at which the canary had not lost too much; that may be the one before
    /// training.
    #[default]
    Best,
    /// The last ones, whatever was measured.
    Last,
}

/// What was seen so far. Fractions are kept as bits: a decimal number would lose the last of them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    /// The last epoch that was evaluated; 0 is before training.
    epoch: Option<usize>,
    /// The best target and its epoch.
    best: Option<(usize, u64)>,
    /// Epochs since then.
    waited: usize,
    /// The canary's top-1 and top-5 before training.
    canary: Option<[u64; 2]>,
    stopped: Option<StopReason>,
}

/// The state of watching.
#[derive(Default)]
pub(super) struct Watch {
    pub(super) canary: Option<Canary>,
    /// The canary's outputs of a frozen image tower.
    pooled: Option<Tensor>,
    pub(super) seen: Seen,
    /// The weights of the best target by name.
    pub(super) best: HashMap<String, Tensor>,
    after: Option<ZeroShotReport>,
}

impl Watch {
    /// Why the run has stopped, if it has.
    pub(super) fn stopped(&self) -> Option<StopReason> {
        self.seen.stopped
    }

    /// The epoch whose weights are the best.
    pub(super) fn best_epoch(&self) -> Option<usize> {
        self.seen.best.map(|(epoch, _)| epoch)
    }

    /// The first epoch (counted from 0) that is still to be trained or evaluated, of a run that has trained `trained` whole ones.
    pub(super) fn first_epoch(&self, trained: usize, stop: Option<&EarlyStop>) -> usize {
        match (stop, self.seen.epoch) {
            (None, _) | (_, None) => trained,
            (Some(_), Some(seen)) if self.seen.stopped.is_some() => seen.saturating_sub(1),
            (Some(_), Some(seen)) => trained.min(seen),
        }
    }

    /// The canary before and after, if there is one.
    pub(super) fn report(&self) -> Option<CanaryReport> {
        let (canary, after, [top1, top5]) = (self.canary.as_ref()?, self.after?, self.seen.canary?);
        let (images, classes) = canary.sizes();
        let before = ZeroShotReport { top1: f64::from_bits(top1), top5: f64::from_bits(top5), images, classes };
        Some(CanaryReport { before, after })
    }

    /// Takes note of an evaluation; gives whether its weights are the best so far.
    fn observe(&mut self, epoch: usize, target: f64, stop: &EarlyStop) -> bool {
        let before = self.seen.canary.map(|[top1, _]| f64::from_bits(top1));
        let lost = before.zip(self.after).map_or(0.0, |(before, after)| before - after.top1);
        let too_much = stop.canary_loss.is_some_and(|most| lost > most);
        let better = self.seen.best.is_none_or(|(_, best)| target > f64::from_bits(best));
        (self.seen.epoch, self.seen.waited) = (Some(epoch), if better { 0 } else { self.seen.waited + 1 });
        if too_much {
            self.seen.stopped = Some(StopReason::Canary);
        } else if stop.patience.is_some_and(|patience| self.seen.waited >= patience) {
            self.seen.stopped = Some(StopReason::Patience);
        }
        if better && !too_much {
            self.seen.best = Some((epoch, target.to_bits()));
        }
        better && !too_much
    }
}

impl Trainer<'_> {
    /// The same, watching a zero-shot task: it is measured before training and at every evaluation.
    #[must_use]
    pub fn with_canary(mut self, canary: Canary) -> Self {
        self.watch.canary = Some(canary);
        self
    }

    /// What is measured before the first step, unless a run that goes on measured it.
    pub(super) fn watch_start(&mut self, data: &TrainData<'_>, progress: &mut dyn FnMut(&Progress)) -> Result<()> {
        if self.config.early_stop.is_some() && !data.has_evaluation() {
            return Err(Error::argument("early_stop", "wants an evaluation split, and there is none"));
        }
        if self.taken > 0 {
            return Ok(());
        }
        if let Some(report) = self.measure_canary(0, progress)? {
            self.watch.seen.canary = Some([report.top1.to_bits(), report.top5.to_bits()]);
        }
        if let Some(stop) = self.config.early_stop
            && let Some(report) = data.evaluate(&self.model, self.config.workers, progress)?
        {
            progress(&Progress::Evaluated { epoch: 0, report });
            self.note(0, &report, &stop)?;
        }
        Ok(())
    }

    /// Measures what is due after `epoch`, counted from 1, and decides.
    pub(super) fn evaluate(
        &mut self,
        epoch: usize,
        data: &TrainData<'_>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Option<RetrievalReport>> {
        self.swap_average()?;
        let found = self.measure(epoch, data, progress);
        self.swap_average()?;
        let found = found?;
        if let (Some(reason), true) = (self.watch.seen.stopped, self.watch.seen.epoch == Some(epoch)) {
            progress(&Progress::Stopped { epoch, reason });
        }
        Ok(found)
    }

    fn measure(
        &mut self,
        epoch: usize,
        data: &TrainData<'_>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Option<RetrievalReport>> {
        let found = data.evaluate(&self.model, self.config.workers, progress)?;
        if let Some(report) = found {
            progress(&Progress::Evaluated { epoch, report });
        }
        self.watch.after = self.measure_canary(epoch, progress)?;
        if let (Some(stop), Some(report)) = (self.config.early_stop, found)
            && self.watch.seen.epoch.is_none_or(|seen| seen < epoch)
        {
            self.note(epoch, &report, &stop)?;
        }
        Ok(found)
    }

    /// Keeps the weights if they are the best so far.
    fn note(&mut self, epoch: usize, report: &RetrievalReport, stop: &EarlyStop) -> Result<()> {
        if self.watch.observe(epoch, report.mean_recall(), stop) && stop.leave == Leave::Best {
            let copy = |(name, var): &(String, Var)| Ok((name.clone(), var.as_detached_tensor().copy()?.detach()));
            self.watch.best = self.trainable.iter().map(copy).collect::<Result<_>>()?;
        }
        Ok(())
    }

    fn measure_canary(&mut self, epoch: usize, progress: &mut dyn FnMut(&Progress)) -> Result<Option<ZeroShotReport>> {
        let Some(canary) = &self.watch.canary else { return Ok(None) };
        let pooled = match self.watch.pooled.clone() {
            Some(pooled) => pooled,
            None => canary.pool(&self.model, self.config.workers, progress)?,
        };
        let report = canary.measure_pooled(&self.model, &pooled)?;
        if self.model.image_encoder().is_frozen() {
            self.watch.pooled = Some(pooled);
        }
        progress(&Progress::Canary { epoch, report });
        Ok(Some(report))
    }

    /// Puts the best weights into the model; gives what they come to, where they are not those that were measured last.
    pub(super) fn leave_best(
        &mut self,
        data: &TrainData<'_>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Option<RetrievalReport>> {
        if self.watch.best.is_empty() || self.watch.best_epoch() == self.watch.seen.epoch {
            return Ok(None);
        }
        for (name, var) in &self.trainable {
            let missing = || Error::argument("best", format!("has no weights of '{name}'"));
            let best = self.watch.best.get(name).ok_or_else(missing)?;
            var.set(&best.to_device(var.device())?.to_dtype(var.dtype())?)?;
        }
        let epoch = self.watch.best_epoch().unwrap_or_default();
        self.watch.after = self.measure_canary(epoch, progress)?;
        data.evaluate(&self.model, self.config.workers, progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canary(top1: f64) -> Option<ZeroShotReport> {
        Some(ZeroShotReport { top1, top5: 100.0, images: 10, classes: 2 })
    }

    #[test]
    fn patience_counts_epochs_without_a_better_target() {
        let stop = EarlyStop { patience: Some(2), ..EarlyStop::default() };
        let mut watch = Watch::default();
        let targets = [10.0, 12.0, 12.0, 13.0, 11.0, 13.0];
        let best: Vec<bool> = targets.iter().enumerate().map(|(epoch, &t)| watch.observe(epoch, t, &stop)).collect();
        assert_eq!(best, [true, true, false, true, false, false]);
        assert_eq!((watch.stopped(), watch.best_epoch()), (Some(StopReason::Patience), Some(3)));
        // A run that has stopped trains no more: it evaluates its last epoch again.
        assert_eq!(watch.first_epoch(5, Some(&stop)), 4);
    }

    #[test]
    fn a_canary_that_lost_too_much_stops_the_run_and_is_never_the_best() {
        let stop = EarlyStop { patience: None, canary_loss: Some(5.0), leave: Leave::Best };
        let mut watch = Watch::default();
        watch.seen.canary = Some([50f64.to_bits(), 100f64.to_bits()]);
        assert!(watch.observe(0, 10.0, &stop));
        watch.after = canary(45.0);
        assert!(watch.observe(1, 20.0, &stop) && watch.stopped().is_none());
        watch.after = canary(44.9);
        assert!(!watch.observe(2, 30.0, &stop));
        assert_eq!((watch.stopped(), watch.best_epoch()), (Some(StopReason::Canary), Some(1)));
    }

    #[test]
    fn what_was_seen_survives_its_file_bit_for_bit() {
        let seen = Seen { best: Some((3, (0.1f64 + 0.2).to_bits())), canary: Some([1, u64::MAX]), ..Seen::default() };
        let text = serde_json::to_string(&seen).unwrap();
        assert_eq!(serde_json::from_str::<Seen>(&text).unwrap(), seen);
    }
}
