//! Keeping a run in checkpoints, and going on from them.

use std::path::PathBuf;

use candle_core::Var;

use super::checkpoint::{self, CheckpointConfig, Place, Tensors};
use super::ema::Ema;
use super::progress::Progress;
use super::trainer::{TrainData, Trainer};
use crate::{Error, Result};

impl Trainer<'_> {
    /// What two runs must have in common for one to go on where the other stopped.
    fn recipe(&self) -> String {
        let mut recipe = self.config.recipe();
        if let Some(canary) = &self.watch.canary {
            recipe += &format!(", canary: {:016x}", canary.key());
        }
        recipe
    }

    /// Writes a checkpoint if one is due.
    pub(super) fn keep(&self, steps: usize, data: &TrainData<'_>) -> Result<()> {
        let Some(config) = &self.config.checkpoints else { return Ok(()) };
        if !self.taken.is_multiple_of(config.every) && self.taken != steps {
            return Ok(());
        }
        self.write(config, data)
    }

    pub(super) fn write(&self, config: &CheckpointConfig, data: &TrainData<'_>) -> Result<()> {
        let place = Place {
            step: self.taken,
            loss_bits: self.loss_sum.to_bits(),
            broken: self.broken.reasons().map(|(i, reason)| (i, reason.to_string())).collect(),
            recipe: self.recipe(),
            data: Some(data.fingerprint.clone()),
            seen: self.watch.seen.clone(),
        };
        let weights = self.trainable.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
        let ema = self.ema.iter().flat_map(Ema::tensors).map(|(name, t)| (name.to_string(), t.clone())).collect();
        let (optimizer, best) = (self.optimizer.state()?.into_iter().collect(), self.watch.best.clone());
        let tensors = Tensors { weights, optimizer, ema, best };
        checkpoint::save(config, &place, &tensors)
    }

    /// Goes on from the newest checkpoint, or sees to it that there is none; returns the images that could not be read until then.
    pub(super) fn begin(
        &mut self,
        config: &CheckpointConfig,
        data: &TrainData<'_>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Vec<(usize, String)>> {
        if !config.resume {
            if checkpoint::list(&config.folder)?.is_empty() {
                return Ok(Vec::new());
            }
            let message = "holds checkpoints of another run; resume it, or choose another folder";
            return Err(Error::file(&config.folder, message));
        }
        let passed_over = |checkpoint: PathBuf, error: Error| {
            progress(&Progress::PassedOver { checkpoint, reason: error.to_string() });
        };
        let newest = checkpoint::newest(&config.folder, passed_over)?;
        let Some((path, place, tensors)) = newest else { return Ok(Vec::new()) };
        let recipe = self.recipe();
        if place.recipe != recipe {
            let changed = differences(&place.recipe, &recipe).join("; ");
            let message = format!("is of another recipe ({changed}); go on with its recipe, or choose another folder");
            return Err(Error::file(&path, message));
        }
        // Older checkpoints do not say of what data they are.
        if place.data.is_some_and(|then| then != data.fingerprint) {
            let message = "is of other training data: names of images or captions differ; go on with the data it began with, or \
                           choose another folder";
            return Err(Error::file(&path, message));
        }
        let same = tensors.weights.len() == self.trainable.len();
        let fits = |(name, var): &(String, Var)| tensors.weights.get(name).is_some_and(|t| t.dims() == var.dims());
        if !same || !self.trainable.iter().all(fits) {
            return Err(Error::file(&path, "is of a model with other trainable parameters"));
        }
        for (name, var) in &self.trainable {
            var.set(&tensors.weights[name].to_device(var.device())?.to_dtype(var.dtype())?)?;
        }
        self.optimizer.restore(place.step, &tensors.optimizer)?;
        if let Some(ema) = &mut self.ema {
            ema.restore(|name| tensors.ema.get(name).cloned())?;
        }
        (self.watch.seen, self.watch.best) = (place.seen, tensors.best);
        (self.taken, self.loss_sum) = (place.step, f64::from_bits(place.loss_bits));
        Ok(place.broken)
    }
}

/// The fields in which two recipes differ, as "epochs: 5 then, 10 now".
fn differences(then: &str, now: &str) -> Vec<String> {
    let (then, now) = (fields(then), fields(now));
    let value = |of: &[(String, String)], name: &str| {
        of.iter().find(|(found, _)| found == name).map_or("nothing".to_string(), |(_, value)| value.clone())
    };
    let gone = then.iter().filter(|(name, _)| now.iter().all(|(found, _)| found != name));
    let names = now.iter().chain(gone).map(|(name, _)| name);
    let pairs = names.map(|name| (name, value(&then, name), value(&now, name)));
    pairs
        .filter(|(_, then, now)| then != now)
        .map(|(name, then, now)| format!("{name}: {then} then, {now} now"))
        .collect()
}

/// The fields of a recipe and their values: what stands between the commas that are within no brackets but the recipe's own.
fn fields(recipe: &str) -> Vec<(String, String)> {
    let inner = recipe.split_once('{').map_or(recipe, |(_, inner)| inner);
    let (mut parts, mut depth) = (vec![String::new()], 0usize);
    for c in inner.chars() {
        match c {
            '{' | '(' | '[' => depth += 1,
            // The recipe's own end.
            '}' if depth == 0 => continue,
            '}' | ')' | ']' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    let pair = |part: &String| part.split_once(':').map(|(name, value)| (name.trim().into(), value.trim().into()));
    parts.iter().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{Schedule, TrainConfig};

    #[test]
    fn only_what_differs_between_two_recipes_is_said() {
        let then = TrainConfig { epochs: 5, ..TrainConfig::default() };
        let now = TrainConfig { epochs: 10, schedule: Schedule::WarmupCosine { warmup_steps: 7 }, ..then.clone() };
        let found = differences(&then.recipe(), &(now.recipe() + ", canary: 0f"));
        let schedule = "schedule: WarmupCosine { warmup_steps: 50 } then, WarmupCosine { warmup_steps: 7 } now";
        assert_eq!(found, ["epochs: 5 then, 10 now", schedule, "canary: nothing then, 0f now"]);
        assert_eq!(fields(&then.recipe()).last().unwrap(), &("early_stop".to_string(), "None".to_string()));
    }
}
