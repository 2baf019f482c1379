//! Benchmarks that know their arithmetic: after each, the rate, and its share of what the processors can do at most.

#[path = "../../examples/common/allocator.rs"]
mod allocator;
#[path = "../../examples/common/limit.rs"]
mod limit;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use diptych::Result;

/// Runs benchmarks, and relates them to the limit, which it measures first.
pub struct Meter {
    criterion: Criterion,
    limit: f64,
}

impl Meter {
    pub fn new() -> Self {
        allocator::keep_freed_memory();
        let threads = rayon::current_num_threads();
        let limit = limit::gflops(threads);
        println!("{threads} threads, {limit:.0} GFLOP/s at most\n");
        let criterion = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300));
        Self { criterion: criterion.measurement_time(Duration::from_secs(1)).configure_from_args(), limit }
    }

    /// Times `run`, which has so many multiplications and additions (0: its arithmetic is not what takes the time). What it returns is made
    /// outside of the time if `prepare` makes it.
    pub fn measure<P, T>(
        &mut self,
        name: &str,
        flops: f64,
        mut prepare: impl FnMut() -> Result<P>,
        mut run: impl FnMut(P) -> Result<T>,
    ) -> Result<()> {
        // Whatever is wrong shows here, once.
        run(prepare()?)?;
        let mut times = Vec::new();
        let mut group = self.criterion.benchmark_group("diptych");
        if flops > 0.0 {
            group.throughput(Throughput::Elements(flops as u64));
        }
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                let mut all = Duration::ZERO;
                for _ in 0..rounds {
                    let prepared = prepare().expect("what went well before");
                    let start = Instant::now();
                    black_box(run(prepared).expect("what went well before"));
                    let time = start.elapsed();
                    times.push(time.as_secs_f64());
                    all += time;
                }
                all
            });
        });
        group.finish();
        if flops > 0.0 && !times.is_empty() {
            times.sort_by(f64::total_cmp);
            let gflops = flops * 1e-9 / times[times.len() / 2];
            println!("{:24}{gflops:.0} GFLOP/s, {:.0} % of the limit\n", "", 100.0 * gflops / self.limit);
        }
        Ok(())
    }
}
