//! The innermost loop of products of 8-bit integers: a tile of R rows and C vectors of columns stays in registers while the
//! inputs go by, four at a time, `c[r][n] = Σₖ a[r][k] · b[k][n]`, exactly.
//!
//! Three sets of instructions, chosen at run time: AVX-512 VNNI (8 rows of 48 columns), AVX-VNNI and AVX2 (4 rows of 24). AVX2 alone
//! adds pairs of products in 16 bits, which holds as long as the rows' integers keep to 0…127. Other processors have no
//! set here.
#![allow(unsafe_code)]

/// Vectors of columns in a tile.
#[cfg(target_arch = "x86_64")]
const VECTORS: usize = 3;
/// Inputs that one instruction multiplies.
pub(super) const GROUP: usize = 4;
/// Most rows that a tile of any set has.
pub(super) const MOST_ROWS: usize = 8;
/// Columns come in multiples of this.
pub(super) const STEP: usize = 16;

/// What a tile reads and writes.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// R rows of `groups` groups, `a_stride` bytes apart.
    pub(super) a: *const u8,
    pub(super) a_stride: usize,
    /// `groups` rows of groups, one a column, `b_stride` bytes apart.
    pub(super) b: *const i8,
    pub(super) b_stride: usize,
    pub(super) groups: usize,
    /// R rows of sums to be written, `c_stride` apart.
    pub(super) c: *mut i32,
    pub(super) c_stride: usize,
}

/// Writes a tile's sums.
///
/// # Safety
/// The processor has the kernel's instructions; what [`Tile`] describes lies inside memory, for as many rows and columns as the kernel
/// has, and nothing else uses `c` meanwhile.
type Kernel = unsafe fn(Tile);

/// The kernels for this processor.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    /// Most rows of a tile.
    pub(super) rows: usize,
    /// The largest integer that a row may hold.
    pub(super) largest: u8,
    /// Columns of a vector.
    lanes: usize,
    pick: fn(usize, usize) -> Kernel,
}

impl Kernels {
    /// Those that this processor has, best first.
    pub(super) fn all() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") && has!("avx512bw") && has!("avx512vnni") {
                found.push(Self { rows: 8, largest: 255, lanes: x86::Avx512Vnni::LANES, pick: avx512_vnni });
            }
            if has!("avx2") && has!("avxvnni") {
                found.push(Self { rows: 4, largest: 255, lanes: x86::AvxVnni::LANES, pick: avx_vnni });
            }
            if has!("avx2") {
                found.push(Self { rows: 4, largest: 127, lanes: x86::Avx2::LANES, pick: avx2 });
            }
        }
        found
    }

    /// The sums of `rows` rows, 1 to [`Kernels::rows`], and `columns` columns, a multiple of [`STEP`].
    ///
    /// # Safety
    /// What `tile` describes lies inside memory, for so many rows and columns, and nothing else uses `c` meanwhile.
    pub(super) unsafe fn sums(self, rows: usize, columns: usize, tile: Tile) {
        #[cfg(target_arch = "x86_64")]
        for column in (0..columns).step_by(VECTORS * self.lanes) {
            let vectors = (columns - column).min(VECTORS * self.lanes) / self.lanes;
            // SAFETY: promised by the caller; the kernel is of this processor's, as `all` found.
            unsafe {
                let (b, c) = (tile.b.add(column * GROUP), tile.c.add(column));
                (self.pick)(rows, vectors)(Tile { b, c, ..tile });
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (self.lanes, self.pick, rows, columns, tile);
    }
}

/// A set of vector instructions.
///
/// # Safety
/// Its functions need the processor to have them, and their pointers to lie inside memory.
#[cfg(target_arch = "x86_64")]
trait Vectors {
    type V: Copy;
    const LANES: usize;
    unsafe fn zero() -> Self::V;
    /// Four bytes in every lane.
    unsafe fn splat(p: *const u8) -> Self::V;
    unsafe fn load(p: *const i8) -> Self::V;
    unsafe fn store(p: *mut i32, v: Self::V);
    /// Asks for the line at an address, which may lie anywhere.
    fn prefetch(p: *const i8);
    /// c + Σ a·b over each lane's four bytes, those of `a` without a sign.
    unsafe fn dot(c: Self::V, a: Self::V, b: Self::V) -> Self::V;
}

/// Bytes by which weights are asked for before they are needed: as long as memory takes.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 24 * 192;

/// # Safety
/// As [`Kernel`] says.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn tile<S: Vectors, const R: usize, const C: usize>(tile: Tile) {
    let Tile { mut a, a_stride, mut b, b_stride, groups, c: out, c_stride } = tile;
    // SAFETY: the caller promises that all of these lie inside memory, and the instructions.
    unsafe {
        let mut sums = [[S::zero(); C]; R];
        for _ in 0..groups {
            let mut weights = [S::zero(); C];
            for (c, weights) in weights.iter_mut().enumerate() {
                let p = b.add(c * S::LANES * GROUP);
                S::prefetch(p.wrapping_add(AHEAD));
                *weights = S::load(p);
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = S::splat(a.add(r * a_stride));
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = S::dot(*sum, x, weights);
                }
            }
            a = a.add(GROUP);
            b = b.add(b_stride);
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (c, v) in sums.into_iter().enumerate() {
                S::store(out.add(r * c_stride + c * S::LANES), v);
            }
        }
    }
}

/// Stands where no tile of such a size is ever cut.
#[cfg(target_arch = "x86_64")]
unsafe fn unreachable_kernel(_: Tile) {}

#[cfg(target_arch = "x86_64")]
use super::tiles::kernels;
#[cfg(target_arch = "x86_64")]
kernels!(avx512_vnni, x86::Avx512Vnni, #[target_feature(enable = "avx512f,avx512bw,avx512vnni")] 1 2 3 4 5 6 7 8);
#[cfg(target_arch = "x86_64")]
kernels!(avx_vnni, x86::AvxVnni, #[target_feature(enable = "avx2,avxvnni")] 1 2 3 4);
#[cfg(target_arch = "x86_64")]
kernels!(avx2, x86::Avx2, #[target_feature(enable = "avx2")] 1 2 3 4);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vectors;
    use std::arch::x86_64::*;

    pub(super) struct Avx512Vnni;

    // SAFETY of every function: the trait's promise.
    impl Vectors for Avx512Vnni {
        type V = __m512i;
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn zero() -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_setzero_si512() }
        }

        #[inline(always)]
        unsafe fn splat(p: *const u8) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
        }

        #[inline(always)]
        unsafe fn load(p: *const i8) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_loadu_si512(p.cast()) }
        }

        #[inline(always)]
        unsafe fn store(p: *mut i32, v: __m512i) {
            // SAFETY: as above.
            unsafe { _mm512_storeu_si512(p.cast(), v) }
        }

        #[inline(always)]
        fn prefetch(p: *const i8) {
            // SAFETY: a hint; it reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p) }
        }

        #[inline(always)]
        unsafe fn dot(c: __m512i, a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_dpbusd_epi32(c, a, b) }
        }
    }

    /// Sets of eight lanes, which differ in how they multiply.
    macro_rules! eight_lanes {
        ($name:ident, |$c:ident, $a:ident, $b:ident| $dot:expr) => {
            pub(super) struct $name;

            // SAFETY of every function: the trait's promise.
            impl Vectors for $name {
                type V = __m256i;
                const LANES: usize = 8;

                #[inline(always)]
                unsafe fn zero() -> __m256i {
                    // SAFETY: as above.
                    unsafe { _mm256_setzero_si256() }
                }

                #[inline(always)]
                unsafe fn splat(p: *const u8) -> __m256i {
                    // SAFETY: as above.
                    unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
                }

                #[inline(always)]
                unsafe fn load(p: *const i8) -> __m256i {
                    // SAFETY: as above.
                    unsafe { _mm256_loadu_si256(p.cast()) }
                }

                #[inline(always)]
                unsafe fn store(p: *mut i32, v: __m256i) {
                    // SAFETY: as above.
                    unsafe { _mm256_storeu_si256(p.cast(), v) }
                }

                #[inline(always)]
                fn prefetch(p: *const i8) {
                    // SAFETY: a hint; it reads nothing.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(p) }
                }

                #[inline(always)]
                unsafe fn dot($c: __m256i, $a: __m256i, $b: __m256i) -> __m256i {
                    // SAFETY: as above.
                    unsafe { $dot }
                }
            }
        };
    }

    eight_lanes!(AvxVnni, |c, a, b| _mm256_dpbusd_avx_epi32(c, a, b));
    // Pairs in 16 bits, then pairs of pairs in 32.
    eight_lanes!(Avx2, |c, a, b| {
        _mm256_add_epi32(c, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)))
    });
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_of_every_set_sums_its_tile_exactly_and_touches_nothing_else() {
        let groups = 9;
        for set in Kernels::all() {
            for rows in 1..=set.rows {
                for columns in (STEP..=4 * STEP).step_by(STEP) {
                    // The largest products are among them, next to each other.
                    let extreme = |i: usize| (i / 64).is_multiple_of(2);
                    let a: Vec<u8> = (0..groups * GROUP * rows)
                        .map(|i| if extreme(i) { set.largest } else { (i * 37 % 128) as u8 })
                        .collect();
                    let b: Vec<i8> = (0..groups * GROUP * columns)
                        .map(|i| if extreme(i) { -127 } else { (i * 11 % 255) as i8 })
                        .collect();
                    let stride = columns + 1;
                    let mut c = vec![-1; rows * stride];
                    let (a_at, b_at, c_at) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
                    let (a_stride, b_stride) = (groups * GROUP, columns * GROUP);
                    let tile = Tile { a: a_at, a_stride, b: b_at, b_stride, groups, c: c_at, c_stride: stride };
                    // SAFETY: the sizes are those of the vectors above.
                    unsafe { set.sums(rows, columns, tile) };
                    for (i, &c) in c.iter().enumerate() {
                        let (r, n) = (i / stride, i % stride);
                        let product = |k: usize| {
                            let weight = b[(k / GROUP * columns + n) * GROUP + k % GROUP];
                            i32::from(a[r * groups * GROUP + k]) * i32::from(weight)
                        };
                        let expected = if n < columns { (0..groups * GROUP).map(product).sum() } else { -1 };
                        assert_eq!(c, expected, "{rows} rows, {columns} columns");
                    }
                }
            }
        }
    }
}
