//! [`Ahead`]: the results of a job for every item of a source, worked out ahead on other threads, delivered in the source's order.
//!
//! The consumer's thread draws items from the source and hands them to a pool, each with a channel for its one result; it waits for
//! the channels in turn. So the source may be lazy and need not be `Send`, the order does not depend on the threads, any thread
//! takes the next item, and what has been drawn and not delivered is bounded.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use rayon::ThreadPool;

use crate::{Error, Result};

/// What is done with an item, given its place in the source.
type Job<I, T> = Arc<dyn Fn(usize, I) -> Result<T> + Send + Sync>;

/// Results in order. Dropping it drops what is waiting for a thread; a job that runs comes to its end.
pub(crate) struct Ahead<S: Iterator, T> {
    source: std::iter::Fuse<std::iter::Enumerate<S>>,
    job: Job<S::Item, T>,
    pool: Arc<ThreadPool>,
    pending: VecDeque<(usize, Receiver<Result<T>>)>,
    most: usize,
    stopped: Arc<AtomicBool>,
}

impl<S, T> Ahead<S, T>
where
    S: Iterator,
    S::Item: Send + 'static,
    T: Send + 'static,
{
    /// At most `most` items (and at least one) are drawn before their results are asked for; none is before the first call.
    pub(crate) fn new(
        source: S,
        pool: Arc<ThreadPool>,
        most: usize,
        job: impl Fn(usize, S::Item) -> Result<T> + Send + Sync + 'static,
    ) -> Self {
        let (source, job) = (source.enumerate().fuse(), Arc::new(job));
        Self { source, job, pool, pending: VecDeque::new(), most: most.max(1), stopped: Arc::default() }
    }

    /// Hands out items until as many as may be are under way.
    pub(crate) fn fill(&mut self) {
        while self.pending.len() < self.most {
            let Some((index, item)) = self.source.next() else { return };
            let (sender, receiver) = sync_channel(1);
            let (job, stopped) = (self.job.clone(), self.stopped.clone());
            self.pool.spawn_fifo(move || {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let result = catch_unwind(AssertUnwindSafe(|| job(index, item)));
                // Nobody waits for it any more: so be it.
                let _ = sender.send(result.unwrap_or_else(|panic| Err(panicked(index, &*panic))));
            });
            self.pending.push_back((index, receiver));
        }
    }

    /// The results of the next `size` items, fewer at the end, in order; `None` after the last. The first error ends it.
    pub(crate) fn batch(&mut self, size: usize) -> Option<Result<Vec<T>>> {
        let mut batch = Vec::with_capacity(size.min(self.most));
        while batch.len() < size {
            match self.next() {
                Some(Ok(result)) => batch.push(result),
                Some(Err(error)) => return Some(Err(error)),
                None => break,
            }
        }
        (!batch.is_empty()).then_some(Ok(batch))
    }

    /// Ends it: what waits is dropped.
    fn stop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.pending.clear();
    }
}

impl<S, T> Iterator for Ahead<S, T>
where
    S: Iterator,
    S::Item: Send + 'static,
    T: Send + 'static,
{
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        self.fill();
        let (index, receiver) = self.pending.pop_front()?;
        let ended = |_| Err(Error::argument("job", format!("ended before item {index} was done")));
        let result = receiver.recv().unwrap_or_else(ended);
        match &result {
            Ok(_) => self.fill(),
            Err(_) => self.stop(),
        }
        Some(result)
    }
}

impl<S: Iterator, T> Drop for Ahead<S, T> {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

fn panicked(index: usize, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Error::argument("job", format!("panicked at item {index}: {}", text.unwrap_or("no message")))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::threads::pool;

    #[test]
    fn a_slow_item_keeps_no_other_thread_from_working() {
        let started = AtomicUsize::new(0);
        let job = move |index, ()| {
            started.fetch_add(1, Ordering::SeqCst);
            let waiting = Instant::now();
            while index == 0 && started.load(Ordering::SeqCst) < 8 {
                assert!(waiting.elapsed() < Duration::from_secs(60), "the others wait for this one");
                std::thread::yield_now();
            }
            Ok(index)
        };
        let ahead = Ahead::new(std::iter::repeat_n((), 8), pool(2, "test").unwrap(), 8, job);
        assert_eq!(ahead.map(Result::unwrap).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn nothing_is_drawn_before_it_is_asked_for_and_no_more_than_the_limit_then() {
        let drawn = std::cell::Cell::new(0);
        let source = (0..100).inspect(|_| drawn.set(drawn.get() + 1));
        let mut ahead = Ahead::new(source, pool(2, "test").unwrap(), 5, |_, i: usize| Ok(i));
        assert_eq!(drawn.get(), 0);
        for i in 0..100 {
            assert_eq!(ahead.next().unwrap().unwrap(), i);
            assert!(drawn.get() <= i + 6, "{} at {i}", drawn.get());
        }
        assert!(ahead.next().is_none());
    }

    #[test]
    fn a_panic_is_an_error_with_its_message_and_the_pool_works_on() {
        let pool = pool(1, "test").unwrap();
        let job = |index, ()| if index == 2 { panic!("in a test") } else { Ok(index) };
        let mut ahead = Ahead::new(std::iter::repeat_n((), 9), pool.clone(), 4, job);
        assert_eq!(ahead.batch(2).unwrap().unwrap(), [0, 1]);
        let message = ahead.batch(2).unwrap().unwrap_err().to_string();
        assert_eq!(message, "job: panicked at item 2: in a test");
        assert!(ahead.batch(2).is_none() && ahead.next().is_none());
        assert_eq!(Ahead::new(0..3, pool, 4, |_, i: i32| Ok(i)).batch(9).unwrap().unwrap(), [0, 1, 2]);
    }
}
