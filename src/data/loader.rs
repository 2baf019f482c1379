//! Loading on worker threads: a job runs for every index of an order, batches come out in that order.
//!
//! Worker `w` of `n` does the positions `w, w + n, w + 2n, …` and sends them through its own bounded channel; the consumer takes
//! from the channels in turn. So the order is that of the list whatever the number of workers, and no more than
//! `batch_size · prefetch + 2 · workers` results exist before they are asked for.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

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

/// An iterator over batches that worker threads prepare ahead. The first error ends it; dropping it stops the workers
/// after the item each is busy with.
pub struct BatchLoader<T> {
    channels: Vec<Receiver<Result<T>>>,
    workers: Vec<JoinHandle<()>>,
    next: usize,
    count: usize,
    batch_size: usize,
}

impl<T: Send + 'static> BatchLoader<T> {
    /// Starts the workers: `job` is called once for each index in `order`.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if `batch_size` or `workers` is 0, or no thread can be started.
    pub fn new<J>(order: Vec<usize>, config: LoaderConfig, job: J) -> Result<Self>
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
        let count = match last {
            LastBatch::Keep => order.len(),
            LastBatch::Drop => order.len() / batch_size * batch_size,
        };
        let workers = workers.min(count.max(1));
        let capacity = batch_size.saturating_mul(prefetch).div_ceil(workers).clamp(1, count.max(1));
        let shared = Arc::new((order, job));
        let mut loader = Self { channels: Vec::new(), workers: Vec::new(), next: 0, count, batch_size };
        for worker in 0..workers {
            let (sender, receiver) = sync_channel(capacity);
            let shared = shared.clone();
            let run = move || work(&shared.0[..count], worker, workers, &shared.1, &sender);
            let thread = std::thread::Builder::new().name(format!("loader {worker}")).spawn(run);
            loader.workers.push(thread.map_err(|e| Error::argument("workers", format!("cannot start a thread: {e}")))?);
            loader.channels.push(receiver);
        }
        Ok(loader)
    }

    /// How many batches are still to come.
    #[must_use]
    pub fn remaining(&self) -> usize {
        (self.count - self.next).div_ceil(self.batch_size)
    }

    fn batch(&mut self) -> Result<Vec<T>> {
        let end = self.count.min(self.next + self.batch_size);
        let mut batch = Vec::with_capacity(end - self.next);
        for position in self.next..end {
            let received = self.channels[position % self.channels.len()].recv();
            // A worker hangs up before its last item only by a panic in the job.
            let item =
                received.map_err(|_| Error::argument("job", format!("panicked before item {position} was loaded")))?;
            batch.push(item?);
        }
        self.next = end;
        Ok(batch)
    }
}

impl<T: Send + 'static> Iterator for BatchLoader<T> {
    type Item = Result<Vec<T>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.count {
            return None;
        }
        let batch = self.batch();
        if batch.is_err() {
            self.count = self.next;
            self.channels.clear();
        }
        Some(batch)
    }
}

impl<T> Drop for BatchLoader<T> {
    fn drop(&mut self) {
        // Hanging up first makes every waiting `send` fail, so that the workers end.
        self.channels.clear();
        for worker in self.workers.drain(..) {
            // A panic was reported when its item was due.
            let _ = worker.join();
        }
    }
}

fn work<T>(
    order: &[usize],
    first: usize,
    stride: usize,
    job: &impl Fn(usize) -> Result<T>,
    sender: &SyncSender<Result<T>>,
) {
    for &index in order.iter().skip(first).step_by(stride) {
        let item = job(index);
        let failed = item.is_err();
        if sender.send(item).is_err() || failed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
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
        // 5 · 2 ahead and 2 a worker as documented, 2 for rounding up, 5 in the consumer's batch.
        assert!(most.load(SeqCst) <= 10 + 6 + 2 + 5, "{}", most.load(SeqCst));
        assert_eq!(alive.load(SeqCst), 0);
    }

    #[test]
    fn zero_sizes_are_errors_and_an_empty_order_is_no_batch() {
        assert!(BatchLoader::new(vec![0], config(0, 1), Ok).is_err());
        assert!(BatchLoader::new(vec![0], config(1, 0), Ok).is_err());
        assert!(BatchLoader::new(vec![], config(1, 2), Ok).unwrap().next().is_none());
    }
}
