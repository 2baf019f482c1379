//! The batches of an epoch: images, one caption of each, and what a teacher makes of them, without what cannot be read.

use super::halves::{EpochImages, NextImages};
use super::progress::Progress;
use super::step::Batch;
use super::teacher::TeacherEpoch;
use super::trainer::{TrainData, Trainer};
use crate::data::{Sampler, Split};
use crate::{Error, ErrorKind, Result};

/// What the batches of an epoch are made of.
pub(super) struct EpochBatches<'d> {
    pub(super) epoch: usize,
    pub(super) sampler: Sampler,
    pub(super) images: EpochImages<'d>,
    pub(super) teacher: Option<TeacherEpoch<'d>>,
}

impl Trainer<'_> {
    /// The next batch of an epoch, whose images `chosen` are: those that the model and its teacher can read.
    pub(super) fn next_batch(
        &mut self,
        of_epoch: &mut EpochBatches<'_>,
        chosen: &[usize],
        data: &TrainData<'_>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Batch> {
        let (train, epoch, sampler) = (data.train, of_epoch.epoch, of_epoch.sampler);
        let mut next = of_epoch.images.next(&self.model, chosen)?;
        self.note_broken(&next.broken, data, progress)?;
        let seen = of_epoch.teacher.as_mut().map(|teacher| teacher.next(chosen)).transpose()?;
        if let Some(seen) = &seen {
            self.note_broken(&seen.broken, data, progress)?;
            next = next.only(&seen.indices)?;
        }
        let NextImages { indices, images, .. } = next;
        let images = images.ok_or_else(|| self.none_left(chosen, train))?;
        let caption = |&i: &usize| (i, sampler.caption(epoch, i, train.captions()[i].len()));
        let captions: Vec<(usize, usize)> = indices.iter().map(caption).collect();
        let texts = data.texts.batch(&self.model, train.captions(), &captions)?;
        let device = self.model.image_encoder().device();
        let teacher = match (&of_epoch.teacher, seen) {
            (Some(teacher), Some(seen)) => {
                let mut teacher = teacher.of(seen, &captions, device)?;
                teacher.patches = teacher.patches.map(|patches| images.kept_patches(&patches)).transpose()?;
                Some(teacher)
            }
            _ => None,
        };
        Ok(Batch { images, texts, captions, teacher })
    }

    /// Counts training images that cannot be read, and tells of new ones.
    pub(super) fn note_broken(
        &mut self,
        broken: &[(usize, String)],
        data: &TrainData<'_>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<()> {
        for (index, reason) in broken {
            // A checkpoint of another data set may say anything.
            let name = data.train.images().get(*index).map_or("?", String::as_str);
            if let Some(skipped) = self.broken.note(*index, name, reason)? {
                progress(&Progress::Skipped(skipped.clone()));
            }
        }
        Ok(())
    }

    fn none_left(&self, chosen: &[usize], train: &Split) -> Error {
        let names: Vec<&str> = chosen.iter().take(8).map(|&i| train.images()[i].as_str()).collect();
        let message = format!("no image of the batch can be read: {}; choose larger batches", names.join(", "));
        ErrorKind::Training { step: self.taken + 1, message }.into()
    }
}
