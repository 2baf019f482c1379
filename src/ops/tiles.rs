//! The innermost loop of products with packed weights: a tile of R rows and C vectors of columns stays in registers while the inputs
//! go by, `c[r][n] += Σₖ a[r][k] · b[k][n]`.
//!
//! One loop, three sets of vectors: AVX-512 (8 rows of 48 columns), AVX2 with FMA (4 of 24), and arrays of four, which the compiler
//! turns into what else there is (NEON). The set is chosen at run time. Sums run over k in order, so that how a product is cut
//! into tiles changes no bit.
#![allow(unsafe_code)]

/// Vectors of columns in a tile.
pub(super) const VECTORS: usize = 3;

/// Inputs by which weights are asked for before they are needed: as long as memory takes.
const AHEAD: usize = 24;

/// What a tile reads and writes.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// R rows of `depth` values, `a_stride` apart.
    pub(super) a: *const f32,
    pub(super) a_stride: usize,
    /// `depth` rows of weights, `b_stride` apart.
    pub(super) b: *const f32,
    pub(super) b_stride: usize,
    pub(super) depth: usize,
    /// R rows of sums that exist already, `c_stride` apart.
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
    /// Columns in the last vector.
    pub(super) last: usize,
}

/// Adds a product to a tile.
///
/// # Safety
/// The processor has the kernel's instructions; what [`Tile`] describes lies inside memory, for as many rows and columns as the kernel
/// has, and nothing else uses `c` meanwhile.
pub(super) type Kernel = unsafe fn(Tile);

/// The kernels for this processor.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    /// Most rows of a tile.
    pub(super) rows: usize,
    /// Columns of a vector.
    pub(super) lanes: usize,
    pick: fn(usize, usize) -> Kernel,
}

impl Kernels {
    /// The best that this processor has.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f") {
                return Self { rows: 8, lanes: Avx512::LANES, pick: avx512 };
            }
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                return Self { rows: 4, lanes: Avx2::LANES, pick: avx2 };
            }
        }
        Self { rows: 4, lanes: Portable::LANES, pick: portable }
    }

    /// The kernel for tiles of `rows` rows (1 to [`Kernels::rows`]) and `vectors` vectors (1 to [`VECTORS`]).
    pub(super) fn kernel(self, rows: usize, vectors: usize) -> Kernel {
        (self.pick)(rows, vectors)
    }
}

/// A set of vector instructions.
///
/// # Safety
/// Its functions need the processor to have them, and their pointers to lie inside memory.
trait Vectors {
    type V: Copy;
    const LANES: usize;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    /// The first `n` values, and zeros.
    unsafe fn load_part(p: *const f32, n: usize) -> Self::V;
    /// Adds to the values at `p`.
    unsafe fn add_to(p: *mut f32, v: Self::V);
    /// Adds the first `n`.
    unsafe fn add_part_to(p: *mut f32, v: Self::V, n: usize);
    /// Asks for the line at an address, which may lie anywhere.
    fn prefetch(p: *const f32);
    /// a·b + c
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
}

/// # Safety
/// As [`Kernel`] says.
#[inline(always)]
unsafe fn tile<S: Vectors, const R: usize, const C: usize>(tile: Tile) {
    // SAFETY: promised by the caller.
    unsafe { if tile.last == S::LANES { sums::<S, R, C, true>(tile) } else { sums::<S, R, C, false>(tile) } }
}

/// # Safety
/// As [`Kernel`] says; `FULL` if the last vector is.
#[inline(always)]
unsafe fn sums<S: Vectors, const R: usize, const C: usize, const FULL: bool>(tile: Tile) {
    let Tile { mut a, a_stride, mut b, b_stride, depth, c: out, c_stride, last } = tile;
    // SAFETY: the caller promises that all of these lie inside memory, and the instructions.
    unsafe {
        let mut sums = [[S::splat(0.0); C]; R];
        for _ in 0..depth {
            let mut weights = [S::splat(0.0); C];
            for (c, weights) in weights.iter_mut().enumerate() {
                let p = b.add(c * S::LANES);
                S::prefetch(p.wrapping_add(AHEAD * b_stride));
                *weights = if FULL || c + 1 < C { S::load(p) } else { S::load_part(p, last) };
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = S::splat(*a.add(r * a_stride));
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = S::fma(x, weights, *sum);
                }
            }
            a = a.add(1);
            b = b.add(b_stride);
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (c, v) in sums.into_iter().enumerate() {
                let p = out.add(r * c_stride + c * S::LANES);
                if FULL || c + 1 < C { S::add_to(p, v) } else { S::add_part_to(p, v, last) }
            }
        }
    }
}

/// A function that picks among a set's kernels, instances of the caller's `tile`; the last one stands for any larger number.
macro_rules! kernels {
    ($name:ident, $set:ty, $(#[$feature:meta])? $($rows:literal)+) => {
        fn $name(rows: usize, vectors: usize) -> Kernel {
            $(#[$feature])?
            unsafe fn run<const R: usize, const C: usize>(t: Tile) {
                // SAFETY: promised by the caller.
                unsafe { tile::<$set, R, C>(t) }
            }
            match (rows, vectors) {
                $(($rows, 1) => run::<$rows, 1>,
                ($rows, 2) => run::<$rows, 2>,
                ($rows, _) => run::<$rows, VECTORS>,)+
                _ => unreachable_kernel,
            }
        }
    };
}
pub(super) use kernels;

/// Stands where no tile of such a size is ever cut.
unsafe fn unreachable_kernel(_: Tile) {}

#[cfg(target_arch = "x86_64")]
kernels!(avx512, Avx512, #[target_feature(enable = "avx512f")] 1 2 3 4 5 6 7 8);
#[cfg(target_arch = "x86_64")]
kernels!(avx2, Avx2, #[target_feature(enable = "avx2,fma")] 1 2 3 4);
kernels!(portable, Portable, 1 2 3 4);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vectors;
    use std::arch::x86_64::*;

    pub(super) struct Avx512;

    // SAFETY of every function: the trait's promise.
    impl Vectors for Avx512 {
        type V = __m512;
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            // SAFETY: as above.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            // SAFETY: as above.
            unsafe { _mm512_loadu_ps(p) }
        }

        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> __m512 {
            // SAFETY: as above; lanes that are not asked for are not touched.
            unsafe { _mm512_maskz_loadu_ps(((1u32 << n) - 1) as u16, p) }
        }

        #[inline(always)]
        unsafe fn add_to(p: *mut f32, v: __m512) {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(p, _mm512_add_ps(_mm512_loadu_ps(p), v)) }
        }

        #[inline(always)]
        unsafe fn add_part_to(p: *mut f32, v: __m512, n: usize) {
            let mask = ((1u32 << n) - 1) as u16;
            // SAFETY: as above; lanes that are not asked for are not touched.
            unsafe { _mm512_mask_storeu_ps(p, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, p), v)) }
        }

        #[inline(always)]
        fn prefetch(p: *const f32) {
            // SAFETY: a hint; it reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }

        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: as above.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
    }

    pub(super) struct Avx2;

    /// −1 in the first `n` lanes.
    #[inline(always)]
    fn mask(n: usize) -> __m256i {
        let lanes: [i32; 8] = std::array::from_fn(|i| if i < n { -1 } else { 0 });
        // SAFETY: both types are 32 bytes without a meaning of their own.
        unsafe { std::mem::transmute(lanes) }
    }

    impl Vectors for Avx2 {
        type V = __m256;
        const LANES: usize = 8;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m256 {
            // SAFETY: as above.
            unsafe { _mm256_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            // SAFETY: as above.
            unsafe { _mm256_loadu_ps(p) }
        }

        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> __m256 {
            // SAFETY: as above; lanes that are not asked for are not touched.
            unsafe { _mm256_maskload_ps(p, mask(n)) }
        }

        #[inline(always)]
        unsafe fn add_to(p: *mut f32, v: __m256) {
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(p, _mm256_add_ps(_mm256_loadu_ps(p), v)) }
        }

        #[inline(always)]
        unsafe fn add_part_to(p: *mut f32, v: __m256, n: usize) {
            // SAFETY: as above; lanes that are not asked for are not touched.
            unsafe { _mm256_maskstore_ps(p, mask(n), _mm256_add_ps(_mm256_maskload_ps(p, mask(n)), v)) }
        }

        #[inline(always)]
        fn prefetch(p: *const f32) {
            // SAFETY: a hint; it reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }

        #[inline(always)]
        unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: as above.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
    }
}
#[cfg(target_arch = "x86_64")]
use x86::{Avx2, Avx512};

struct Portable;

impl Vectors for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 4] {
        [x; 4]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 4] {
        // SAFETY: the trait's promise.
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> [f32; 4] {
        // SAFETY: the trait's promise, of the first n.
        std::array::from_fn(|i| if i < n { unsafe { *p.add(i) } } else { 0.0 })
    }

    #[inline(always)]
    unsafe fn add_to(p: *mut f32, v: [f32; 4]) {
        // SAFETY: the trait's promise.
        unsafe { Self::add_part_to(p, v, 4) }
    }

    #[inline(always)]
    unsafe fn add_part_to(p: *mut f32, v: [f32; 4], n: usize) {
        for (i, v) in v.into_iter().take(n).enumerate() {
            // SAFETY: the trait's promise, of the first n.
            unsafe { *p.add(i) += v };
        }
    }

    #[inline(always)]
    fn prefetch(_: *const f32) {}

    #[inline(always)]
    unsafe fn fma(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        const FUSED: bool = cfg!(target_arch = "aarch64");
        std::array::from_fn(|i| super::simd::mul_add::<FUSED>(a[i], b[i], c[i]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_of_every_set_sums_its_tile_and_touches_nothing_else() {
        let mut sets = vec![Kernels { rows: 4, lanes: Portable::LANES, pick: portable }, Kernels::detect()];
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            sets.push(Kernels { rows: 4, lanes: Avx2::LANES, pick: avx2 });
        }
        let depth = 9;
        for set in sets {
            for rows in 1..=set.rows {
                for columns in 1..=VECTORS * set.lanes {
                    let (vectors, stride) = (columns.div_ceil(set.lanes), VECTORS * set.lanes + 1);
                    let a: Vec<f32> = (0..depth * rows).map(|i| (i % 7) as f32 - 3.0).collect();
                    let b: Vec<f32> = (0..depth * columns).map(|i| (i % 5) as f32 - 2.0).collect();
                    let mut c = vec![1.0; rows * stride];
                    let last = columns - (vectors - 1) * set.lanes;
                    let (a_at, b_at, c_at) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
                    let tile = Tile {
                        a: a_at,
                        a_stride: depth,
                        b: b_at,
                        b_stride: columns,
                        depth,
                        c: c_at,
                        c_stride: stride,
                        last,
                    };
                    // SAFETY: the sizes are those of the vectors above.
                    unsafe { set.kernel(rows, vectors)(tile) };
                    for (i, &c) in c.iter().enumerate() {
                        let (r, n) = (i / stride, i % stride);
                        let sum: f32 =
                            (0..depth).map(|k| a[r * depth + k] * b.get(k * columns + n).unwrap_or(&0.0)).sum();
                        assert_eq!(c, if n < columns { 1.0 + sum } else { 1.0 }, "{rows} rows, {columns} columns");
                    }
                }
            }
        }
    }
}
