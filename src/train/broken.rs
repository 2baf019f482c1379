//! Training images that cannot be read.
//!
//! Such an image is left out and its batch is smaller by one. Another image in its place would stand in the epoch twice, perhaps twice in
//! one batch as its own negative, or move all that follow; a smaller batch leaves order, steps and learning rates as they are. So a
//! run repeats whatever the number of workers, and goes on bit for bit from a checkpoint.

use std::collections::BTreeMap;

use crate::data::{Skipped, Tolerance};
use crate::{Error, ErrorKind, Result};

/// The images left out so far, by their index.
pub(super) struct Broken {
    tolerance: Tolerance,
    total: usize,
    found: BTreeMap<usize, Skipped>,
}

impl Broken {
    /// None so far, of `total` images.
    pub(super) fn new(tolerance: Tolerance, total: usize) -> Self {
        Self { tolerance, total, found: BTreeMap::new() }
    }

    /// Notes an image; tells whether it was new. More than allowed are an error that names the first ones.
    pub(super) fn note(&mut self, index: usize, name: &str, reason: &str) -> Result<Option<&Skipped>> {
        if self.found.contains_key(&index) {
            return Ok(None);
        }
        self.found.insert(index, Skipped { name: name.to_string(), reason: reason.to_string() });
        let what = "training images cannot be read";
        match self.tolerance.exceeded(what, self.total, self.found.len(), self.found.values()) {
            Some(message) => Err(Error::argument("broken_images", message)),
            None => Ok(self.found.get(&index)),
        }
    }

    /// Each image's index and what is wrong with it.
    pub(super) fn reasons(&self) -> impl Iterator<Item = (usize, &str)> {
        self.found.iter().map(|(&index, skipped)| (index, skipped.reason.as_str()))
    }

    /// The images in the order of the split.
    pub(super) fn list(&self) -> impl Iterator<Item = &Skipped> {
        self.found.values()
    }
}

/// What is wrong with an image, without its name.
pub(super) fn reason(error: &Error) -> String {
    match error.kind() {
        ErrorKind::Image { message, .. } => message.clone(),
        _ => error.to_string(),
    }
}

/// An image that cannot be read is a value, so that loading goes on; any other error ends it.
pub(super) fn readable<T>(image: Result<T>) -> Result<Result<T>> {
    match image {
        Err(error) if !matches!(error.kind(), ErrorKind::Image { .. }) => Err(error),
        image => Ok(image),
    }
}
