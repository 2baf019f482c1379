//! What this machine's processors can do at most: multiply-adds in registers that wait for nothing but each other.

use std::hint::black_box;
use std::time::Instant;

/// GFLOP/s on so many threads; the best of a few tries.
pub fn gflops(threads: usize) -> f64 {
    const ROUNDS: usize = 1 << 25;
    let tries = (0..5).map(|_| {
        let start = Instant::now();
        let operations: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| multiply_adds(ROUNDS))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap_or(0)).sum()
        });
        operations as f64 / start.elapsed().as_secs_f64() * 1e-9
    });
    tries.fold(0.0, f64::max)
}

/// Runs `rounds` rounds and returns how many operations they were.
fn multiply_adds(rounds: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") {
            // SAFETY: the processor has just said that it has these instructions.
            return unsafe { x86::widest(rounds) };
        }
        if has!("avx2") && has!("fma") {
            // SAFETY: as above.
            return unsafe { x86::wide(rounds) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    return arm::wide(rounds);
    #[cfg(not(target_arch = "aarch64"))]
    chains(rounds, 1, 0.001f32, |sum| sum * 0.999 + 0.001)
}

/// Chains of vectors that do not wait for one another.
const CHAINS: usize = 12;

/// Applies `step` to every chain, again and again.
#[inline(always)]
fn chains<V: Copy>(rounds: usize, lanes: usize, start: V, step: impl Fn(V) -> V) -> usize {
    let mut sums = black_box([start; CHAINS]);
    for _ in 0..rounds {
        // Not `map`: nothing that stands between lets instructions of the caller's in.
        for sum in &mut sums {
            *sum = step(*sum);
        }
    }
    black_box(sums);
    2 * rounds * CHAINS * lanes
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_set1_ps};
    use std::hint::black_box;

    #[target_feature(enable = "avx512f")]
    pub fn widest(rounds: usize) -> usize {
        let (by, plus) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
        super::chains(rounds, 16, plus, |sum| _mm512_fmadd_ps(sum, by, plus))
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn wide(rounds: usize) -> usize {
        let (by, plus) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
        super::chains(rounds, 8, plus, |sum| _mm256_fmadd_ps(sum, by, plus))
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::{vdupq_n_f32, vfmaq_f32};
    use std::hint::black_box;

    pub fn wide(rounds: usize) -> usize {
        // SAFETY: every processor of this kind has these instructions.
        let (by, plus) = unsafe { (vdupq_n_f32(black_box(0.999)), vdupq_n_f32(black_box(0.001))) };
        super::chains(rounds, 4, plus, |sum| unsafe { vfmaq_f32(plus, sum, by) })
    }
}
