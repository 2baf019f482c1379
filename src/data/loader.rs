//! Loading on worker threads: a job runs for every index of an order, batches come out in that order.
//!
//! No more than `batch_size · prefetch + workers` results exist before they are asked for.

use crate::threads::{Ahead, pool};
use crate::{Error, Result};

/// What happens to a last batch that is not full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LastBatch {
    /// It is delivered, smaller than the others.
    #[default]
    Keep,
    /// It is left out (and never loaded): every batch has the same size.
    Drop,
}

/// How a [`BatchLoader`] works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Items in a batch.
    pub batch_size: usize,
    /// Worker threads.
    pub workers: usize,
    /// How many batches may be ready before they are asked for.
    pub prefetch: usize,
    /// What happens to an incomplete last batch.
    pub last: LastBatch,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        Self { batch_size: 32, workers, prefetch: 2, last: LastBatch::Keep }
    }
}

/// An iterator over batches that worker threads prepare ahead. The first error ends it, and so does a panic in the job, which is
/// an error too; dropping it stops the workers after the item each is busy with.
pub struct BatchLoader<T> {
    results: Ahead<std::vec::IntoIter<usize>, T>,
    next: usize,
    count: usize,
    batch_size: usize,
}

impl<T: Send + 'static> BatchLoader<T> {
    /// Starts the workers: `job` is called once for each index in `order`.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if `batch_size` or `workers` is 0, or no thread can be started.
    pub fn new<J>(mut order: Vec<usize>, config: LoaderConfig, job: J) -> Result<Self>
    where
        J: Fn(usize) -> Result<T> + Send + Sync + 'static,
    {
        let LoaderConfig { batch_size, workers, prefetch, last } = config;
        if batch_size == 0 {
            return Err(Error::argument("batch_size", "is 0; at least 1 is needed"));
        }
        if workers == 0 {
            return Err(Error::argument("workers", "is 0; at least 1 is needed"));
        }
        if last == LastBatch::Drop {
            order.truncate(order.len() / batch_size * batch_size);
        }
        let count = order.len();
        let workers = workers.min(count.max(1));
        let most = batch_size.saturating_mul(prefetch).saturating_add(workers);
        let mut results = Ahead::new(order.into_iter(), pool(workers, "loader")?, most, move |_, index| job(index));
        results.fill();
        Ok(Self { results, next: 0, count, batch_size })
    }

    /// How many batches are still to come.
    #[must_use]
    pub fn remaining(&self) -> usize {
        (self.count - self.next).div_ceil(self.batch_size)
    }
}

impl<T: Send + 'static> Iterator for BatchLoader<T> {
    type Item = Result<Vec<T>>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.results.batch(self.batch_size)?;
        match &batch {
            Ok(batch) => self.next += batch.len(),
            Err(_) => self.count = self.next,
        }
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::time::{Duration, Instant};

    use super::*;

    fn config(batch_size: usize, workers: usize) -> LoaderConfig {
        LoaderConfig { batch_size, workers, prefetch: 2, last: LastBatch::Keep }
    }

    #[test]
    fn batches_come_in_order_whatever_the_number_of_workers() {
        let order: Vec<usize> = (0..50).map(|i| i * 7 % 50).collect();
        for workers in [1, 4, 99] {
            // Later items are faster, so that workers overtake one another.
            let job = |index| {
                std::thread::sleep(Duration::from_micros(50 * (index % 5) as u64));
                Ok(index)
            };
            let batches: Vec<_> =
                BatchLoader::new(order.clone(), config(8, workers), job).unwrap().map(Result::unwrap).collect();
            assert_eq!(batches.len(), 7);
            assert_eq!(batches[6].len(), 2);
            assert_eq!(batches.concat(), order, "{workers} workers");
        }
    }

    #[test]
    fn an_incomplete_last_batch_can_be_left_out_without_loading_it() {
        let calls = Arc::new(AtomicUsize::new(0));
        let seen = calls.clone();
        let job = move |index| {
            seen.fetch_add(1, SeqCst);
            Ok(index)
        };
        let loader =
            BatchLoader::new((0..10).collect(), LoaderConfig { last: LastBatch::Drop, ..config(4, 3) }, job).unwrap();
        assert_eq!(loader.remaining(), 2);
        assert_eq!(loader.map(|b| b.unwrap().len()).collect::<Vec<_>>(), [4, 4]);
        assert_eq!(calls.load(SeqCst), 8);
    }

    #[test]
    fn an_error_arrives_with_its_batch_and_ends_the_loading() {
        let job = |index| if index == 9 { Err(Error::argument("image", "is broken")) } else { Ok(index) };
        for workers in [1, 4] {
            let mut loader = BatchLoader::new((0..40).collect(), config(4, workers), job).unwrap();
            assert_eq!(loader.next().unwrap().unwrap(), [0, 1, 2, 3]);
            assert_eq!(loader.next().unwrap().unwrap(), [4, 5, 6, 7]);
            assert!(loader.next().unwrap().unwrap_err().to_string().contains("is broken"));
            assert!(loader.next().is_none());
        }
    }

    #[test]
    fn a_panic_in_the_job_is_an_error_and_no_hang() {
        let job = |index| if index == 5 { panic!("in a test") } else { Ok(index) };
        let mut loader = BatchLoader::new((0..20).collect(), config(4, 2), job).unwrap();
        loader.next().unwrap().unwrap();
        assert!(loader.next().unwrap().unwrap_err().to_string().contains("panicked"));
        assert!(loader.next().is_none());
    }

    #[test]
    fn dropping_the_loader_stops_the_workers() {
        let calls = Arc::new(AtomicUsize::new(0));
        let seen = calls.clone();
        let job = move |index| {
            seen.fetch_add(1, SeqCst);
            std::thread::sleep(Duration::from_millis(1));
            Ok(index)
        };
        let started = Instant::now();
        let mut loader = BatchLoader::new((0..1_000_000).collect(), config(4, 4), job).unwrap();
        loader.next().unwrap().unwrap();
        drop(loader);
        // Time for the items that were under way.
        std::thread::sleep(Duration::from_millis(200));
        assert!(started.elapsed() < Duration::from_secs(20));
        let after = calls.load(SeqCst);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(calls.load(SeqCst), after, "a worker still runs");
    }

    #[test]
    fn what_is_loaded_ahead_is_bounded() {
        struct Item(Arc<AtomicUsize>);
        impl Drop for Item {
            fn drop(&mut self) {
                self.0.fetch_sub(1, SeqCst);
            }
        }
        let (alive, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (alive_in_job, most_in_job) = (alive.clone(), most.clone());
        let job = move |_| {
            most_in_job.fetch_max(alive_in_job.fetch_add(1, SeqCst) + 1, SeqCst);
            Ok(Item(alive_in_job.clone()))
        };
        let loader = BatchLoader::new((0..400).collect(), config(5, 3), job).unwrap();
        for batch in loader {
            std::thread::sleep(Duration::from_micros(300));
            drop(batch.unwrap());
        }
        // 5 · 2 ahead and 1 a worker as documented, 5 in the consumer's batch.
        assert!(most.load(SeqCst) <= 10 + 3 + 5, "{}", most.load(SeqCst));
        assert_eq!(alive.load(SeqCst), 0);
    }

    #[test]
    fn zero_sizes_are_errors_and_an_empty_order_is_no_batch() {
        assert!(BatchLoader::new(vec![0], config(0, 1), Ok).is_err());
        assert!(BatchLoader::new(vec![0], config(1, 0), Ok).is_err());
        assert!(BatchLoader::new(vec![], config(1, 2), Ok).unwrap().next().is_none());
    }
}
