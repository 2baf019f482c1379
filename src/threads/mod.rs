//! Which threads a model computes on, and which decode images for it.
//!
//! A model computes on one rayon pool: on its own, if [`Loader::threads`](crate::Loader::threads) asked for one, or on the caller's
//! (rayon's global pool, unless the call comes from inside another). Every public entry moves into that pool once, so that the
//! many short parallel passes of a tower need not wake it each time. Images are decoded by a second pool of as many threads, made
//! when the first image is embedded and shared by all calls: however many threads call a model, no more than twice its threads work.

mod ahead;

use std::sync::{Arc, OnceLock};

use candle_core::Device;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

pub(crate) use ahead::Ahead;

/// The threads of a model. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Threads {
    /// None: the caller's.
    compute: Option<Arc<ThreadPool>>,
    decode: Arc<OnceLock<Arc<ThreadPool>>>,
}

impl Threads {
    /// A pool of its own.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if `threads` is 0 or they cannot be started.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        Ok(Self { compute: Some(pool(threads, "compute")?), decode: Arc::default() })
    }

    /// Runs `f` in the pool and waits for it.
    pub(crate) fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.compute {
            Some(pool) => pool.install(f),
            // Into the caller's pool, unless the caller is there already.
            None => rayon::scope(|_| f()),
        }
    }

    /// As [`Threads::install`] where `device` is the CPU; other devices compute on threads of their own.
    pub(crate) fn install_on<R: Send>(&self, device: &Device, f: impl FnOnce() -> R + Send) -> R {
        if device.is_cpu() { self.install(f) } else { f() }
    }

    /// How many threads compute.
    pub(crate) fn count(&self) -> usize {
        self.compute.as_ref().map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads())
    }

    /// The threads that decode.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if they cannot be started.
    pub(crate) fn decoders(&self) -> Result<Arc<ThreadPool>> {
        match self.decode.get() {
            Some(pool) => Ok(pool.clone()),
            // Of two calls at once one may make a pool in vain.
            None => {
                let pool = pool(self.count(), "decode")?;
                Ok(self.decode.get_or_init(|| pool).clone())
            }
        }
    }
}

/// A pool of `threads` threads whose names begin with `name`.
///
/// # Errors
/// [`Argument`](crate::ErrorKind::Argument) if `threads` is 0 or they cannot be started.
pub(crate) fn pool(threads: usize, name: &'static str) -> Result<Arc<ThreadPool>> {
    if threads == 0 {
        return Err(Error::argument("threads", "is 0; at least 1 is needed"));
    }
    let named = ThreadPoolBuilder::new().num_threads(threads).thread_name(move |index| format!("{name} {index}"));
    let pool = named.build().map_err(|e| Error::argument("threads", format!("cannot start {threads}: {e}")))?;
    Ok(Arc::new(pool))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed_runs_on_as_many_threads_as_were_asked_for() {
        let threads = Threads::new(3).unwrap();
        assert_eq!((threads.count(), threads.install(rayon::current_num_threads)), (3, 3));
        assert_eq!(threads.decoders().unwrap().current_num_threads(), 3);
        // An entry inside another one stays where it is.
        let inside = threads.install(|| threads.install(rayon::current_thread_index));
        assert!(inside.is_some());
        assert!(Threads::new(0).err().unwrap().to_string().starts_with("threads: "));
    }

    #[test]
    fn without_a_pool_of_its_own_a_model_works_in_the_callers() {
        let (threads, callers) = (Threads::default(), pool(5, "caller").unwrap());
        let found = callers.install(|| (threads.install(rayon::current_num_threads), threads.count()));
        assert_eq!(found, (5, 5));
    }

    #[test]
    fn clones_share_the_threads_that_decode() {
        let threads = Threads::new(1).unwrap();
        let pools = (threads.decoders().unwrap(), threads.clone().decoders().unwrap());
        assert!(Arc::ptr_eq(&pools.0, &pools.1));
    }
}
