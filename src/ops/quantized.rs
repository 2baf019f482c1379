//! A weight matrix of 8-bit integers, and products of dynamically quantised rows with it.
//!
//! Each output's weights are `sₙ·qₙₖ` with `q` in −127…127 and `sₙ = max|wₙ| / 127`; each row of x is `s·(u − z)` with `u` in
//! 0…255, from its own smallest and largest value (0 among them). Then `y = s·sₙ·(Σ u·q − z·Σ q) + b`: the sums are exact
//! integers, by [tiles of our own](super::integer_tiles) on x86 with AVX2, elsewhere by `rten-gemm`'s kernels (NEON dot product, i8mm). Where
//! pairs of products are added in 16 bits and would saturate (AVX2 without VNNI), `u` keeps to 0…127, so that no pair exceeds
//! 2·127·127 < 2¹⁵.

use super::activation;
use super::integer_panels::{Channels, IntegerPanels};
use super::integer_tiles::{GROUP, Kernels};
use super::kernel::build_rows;
use super::packed::{Epilogue, Rows};
use super::simd::{maximum, mul_add, sum, vectorised};
use crate::{Error, Result};
use rayon::prelude::*;
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmUninitOptions, PackedBMatrix};
use rten_tensor::NdTensorView;

/// Rows of a weight that are quantised at a time.
const PART: usize = 64;
/// Rows that are quantised, multiplied and scaled together: their 32-bit sums stay in the last cache.
const ROWS: usize = 256;
/// Below this many inputs or outputs a product is no product's worth of time, and small layers decide (gates, biases).
const SMALLEST: usize = 16;
/// Inputs up to which a sum of products cannot leave 32 bits: 2³¹ / (255·127).
const LARGEST: usize = 66_000;

/// W (N,K) as integers.
pub(super) struct Quantized {
    form: Form,
    scales: Vec<f32>,
    /// Σₖ qₙₖ.
    sums: Vec<i32>,
    outputs: usize,
    inputs: usize,
}

/// How the integers lie in memory.
enum Form {
    Tiles(IntegerPanels),
    Library(PackedBMatrix<i8>),
}

/// Rows of x as integers.
pub(super) struct QuantizedRows {
    /// Row-major, each row filled up with zeros to `stride`.
    pub(super) integers: Vec<u8>,
    pub(super) stride: usize,
    pub(super) scales: Vec<RowScale>,
}

/// A row's integers are `scale·(u − zero)`.
#[derive(Clone, Copy, Default)]
pub(super) struct RowScale {
    pub(super) scale: f32,
    pub(super) zero: i32,
}

impl Quantized {
    /// Whether a matrix of this size is worth it.
    pub(super) fn takes(outputs: usize, inputs: usize) -> bool {
        outputs >= SMALLEST && (SMALLEST..=LARGEST).contains(&inputs)
    }

    /// Quantises row-major (N,K), of which `rows` gives some rows at a time, each row by its own largest value. Rows of zeros have
    /// scale 0.
    pub(super) fn new(outputs: usize, inputs: usize, rows: Rows) -> Result<Self> {
        let (mut integers, mut scales) = (vec![0i8; outputs * inputs], vec![0.0; outputs]);
        let blocks = integers.par_chunks_mut((PART * inputs).max(1)).zip(scales.par_chunks_mut(PART)).enumerate();
        blocks.try_for_each_init(Vec::new, |scratch, (block, (integers, scales))| {
            scratch.resize(integers.len(), 0.0);
            rows(block * PART, scratch)?;
            let each = integers.chunks_exact_mut(inputs).zip(scratch.chunks_exact(inputs)).zip(scales);
            each.for_each(|((q, w), scale)| *scale = quantize_weights(w, q));
            Ok::<(), Error>(())
        })?;
        Ok(Self::from_integers(&integers, scales, outputs, inputs))
    }

    /// Packs integers (N,K) in −127…127 and their scales (N).
    pub(super) fn from_integers(integers: &[i8], scales: Vec<f32>, outputs: usize, inputs: usize) -> Self {
        Self::packed(Kernels::all().first().copied(), integers, scales, outputs, inputs)
    }

    /// For the given kernels, or for the library's.
    fn packed(kernels: Option<Kernels>, integers: &[i8], scales: Vec<f32>, outputs: usize, inputs: usize) -> Self {
        let sums = integers.par_chunks(inputs.max(1)).map(|q| q.iter().map(|&q| i32::from(q)).sum()).collect();
        let form = match kernels {
            Some(kernels) => Form::Tiles(IntegerPanels::new(kernels, integers, outputs, inputs)),
            None => {
                let matrix = NdTensorView::from_data([outputs, inputs], integers);
                Form::Library(GemmExecutor::<u8, i8, i32>::default().prepack_b(matrix.transposed()))
            }
        };
        Self { form, scales, sums, outputs, inputs }
    }

    /// The integers (N,K), read out of the packed form; the library's by its product with the unit matrix.
    pub(super) fn integers(&self) -> Result<Vec<i8>> {
        let (outputs, inputs) = (self.outputs, self.inputs);
        let packed = match &self.form {
            Form::Tiles(panels) => return Ok(panels.integers()),
            Form::Library(packed) => packed,
        };
        let mut integers = vec![0i8; outputs * inputs];
        for first in (0..inputs).step_by(ROWS) {
            let rows = ROWS.min(inputs - first);
            let mut unit = vec![0u8; rows * inputs];
            (0..rows).for_each(|row| unit[row * inputs + first + row] = 1);
            for (row, columns) in self.sums_of(packed, &unit, rows)?.chunks_exact(outputs).enumerate() {
                // The integers that were packed are 8 bits wide.
                #[allow(clippy::cast_possible_truncation)]
                columns.iter().enumerate().for_each(|(n, &q)| integers[n * inputs + first + row] = q as i8);
            }
        }
        Ok(integers)
    }

    /// One scale an output.
    pub(super) fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The numbers that the integers stand for, row-major (N,K).
    pub(super) fn unpack(&self) -> Result<Vec<f32>> {
        let integers = self.integers()?;
        let rows = integers.par_chunks(self.inputs.max(1)).zip(&self.scales);
        Ok(rows.flat_map_iter(|(q, &scale)| q.iter().map(move |&q| f32::from(q) * scale)).collect())
    }

    /// Σₖ u·q, row-major (rows,N).
    fn sums_of(&self, packed: &PackedBMatrix<i8>, x: &[u8], rows: usize) -> Result<Vec<i32>> {
        let mut sums = Vec::with_capacity(rows * self.outputs);
        let x = GemmInputA::Unpacked(NdTensorView::from_data([rows, self.inputs], x));
        let options = GemmUninitOptions::default();
        let out = &mut sums.spare_capacity_mut()[..rows * self.outputs];
        let executor = GemmExecutor::<u8, i8, i32>::default();
        executor
            .gemm_uninit(out, x, GemmInputB::Packed(packed), options)
            .map_err(|error| Error::argument("weight", format!("the integer product failed: {error}")))?;
        #[allow(unsafe_code)]
        // SAFETY: the product, which succeeded, wrote all of them.
        unsafe {
            sums.set_len(rows * self.outputs);
        }
        Ok(sums)
    }

    /// `f(x · Wᵀ + bias + residual)` for `x` (rows,K). A row with a value that is not finite becomes NaN.
    pub(super) fn product(&self, x: &[f32], epilogue: Epilogue<'_>) -> Result<Vec<f32>> {
        let inputs = self.inputs;
        match &self.form {
            Form::Tiles(panels) => {
                let x = QuantizedRows::new(x, inputs, inputs.next_multiple_of(GROUP), panels.largest().into());
                Ok(panels.product(&x, Channels { scales: &self.scales, sums: &self.sums }, epilogue))
            }
            Form::Library(packed) => {
                let largest = if GemmExecutor::<u8, i8, i32>::default().may_saturate() { 127.0 } else { 255.0 };
                let mut y = Vec::with_capacity(x.len() / inputs * self.outputs);
                for (index, block) in x.chunks(ROWS * inputs).enumerate() {
                    let residual = epilogue.residual.map(|residual| &residual[index * ROWS * self.outputs..]);
                    let x = QuantizedRows::new(block, inputs, inputs, largest);
                    y.extend(self.library_product(packed, &x, Epilogue { residual, ..epilogue })?);
                }
                Ok(y)
            }
        }
    }

    /// The same of a block of rows, by the library.
    fn library_product(
        &self,
        packed: &PackedBMatrix<i8>,
        x: &QuantizedRows,
        epilogue: Epilogue<'_>,
    ) -> Result<Vec<f32>> {
        let Epilogue { bias, residual, activation } = epilogue;
        let (outputs, rows) = (self.outputs, x.scales.len());
        let sums = self.sums_of(packed, &x.integers, rows)?;
        Ok(build_rows(rows, outputs, |first, y| {
            let mut before = vec![0.0; if activation.is_some() { outputs } else { 0 }];
            for (row, y) in (first..).zip(y.chunks_exact_mut(outputs)) {
                let sums = &sums[row * outputs..][..outputs];
                let line = if activation.is_some() { &mut *before } else { &mut *y };
                scale_row(sums, &self.sums, &self.scales, x.scales[row], line);
                add_to(line, bias);
                add_to(line, residual.map(|residual| &residual[row * outputs..][..outputs]));
                if let Some(activation) = activation {
                    activation::forward(activation, &before, y);
                }
            }
        }))
    }
}

impl QuantizedRows {
    /// Rows of `inputs` values to integers of at most `largest`, on all cores.
    fn new(x: &[f32], inputs: usize, stride: usize, largest: f32) -> Self {
        let rows = x.len() / inputs;
        let (mut integers, mut scales) = (vec![0u8; rows * stride], vec![RowScale::default(); rows]);
        let each = integers.par_chunks_mut(stride).zip(x.par_chunks(inputs)).zip(scales.par_iter_mut());
        each.with_min_len(8).for_each(|((u, x), scale)| *scale = quantize_row(x, u, largest));
        Self { integers, stride, scales }
    }
}

fn add_to(y: &mut [f32], x: Option<&[f32]>) {
    if let Some(x) = x {
        super::kernel::add_assign(y, x);
    }
}

/// Writes a row's integers and returns their scale.
fn quantize_row(x: &[f32], u: &mut [u8], largest: f32) -> RowScale {
    let (low, high, finite) = extent(x);
    let range = high - low;
    if !finite || !range.is_finite() {
        return RowScale { scale: f32::NAN, zero: 0 };
    }
    if range == 0.0 {
        return RowScale::default();
    }
    let scale = range / largest;
    let zero = (-low / scale).round();
    to_bytes(x, u, 1.0 / scale, zero, largest);
    // Between 0 and 255.
    #[allow(clippy::cast_possible_truncation)]
    RowScale { scale, zero: zero as i32 }
}

/// Writes a row's integers and returns their scale.
fn quantize_weights(w: &[f32], q: &mut [i8]) -> f32 {
    let (low, high, _) = extent(w);
    let scale = high.max(-low) / 127.0;
    if scale > 0.0 {
        to_integers(w, q, scale);
    }
    scale
}

vectorised! {
    /// `q = round(w / scale)`, kept between −127 and 127.
    fn to_integers<const FMA: bool>(w: &[f32], q: &mut [i8], scale: f32) {
        for (q, &w) in q.iter_mut().zip(w) {
            // A cast of a float saturates, and NaN becomes 0.
            #[allow(clippy::cast_possible_truncation)]
            let integer = (w / scale).round_ties_even().clamp(-127.0, 127.0) as i8;
            *q = integer;
        }
    }
}

vectorised! {
    /// The smallest and the largest of all values and 0, and whether all are finite.
    fn extent<const FMA: bool>(x: &[f32]) -> (f32, f32, bool) {
        // 0·x is 0 for every finite x.
        let finite = sum(x, |v| v * 0.0) == 0.0;
        (-lowest(x).max(0.0), maximum(x).max(0.0), finite)
    }
}

/// The largest of the negated values.
#[inline(always)]
fn lowest(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 32];
    let (chunks, rest) = x.as_chunks::<32>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, -v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, -v);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

vectorised! {
    /// `u = round(x / scale) + zero`, kept between 0 and `largest`.
    fn to_bytes<const FMA: bool>(x: &[f32], u: &mut [u8], inverse: f32, zero: f32, largest: f32) {
        // Adding 2²³ leaves the rounded integer in the low bits of the mantissa.
        const ROUND: f32 = 8_388_608.0;
        for (u, &x) in u.iter_mut().zip(x) {
            let value = mul_add::<FMA>(x, inverse, zero);
            let value = if value > 0.0 { value } else { 0.0 };
            let value = if value < largest { value } else { largest };
            *u = ((value + ROUND).to_bits() & 0xff) as u8;
        }
    }
}

vectorised! {
    /// `y = s·sₙ·(sum − z·Σq)`.
    fn scale_row<const FMA: bool>(sums: &[i32], weights: &[i32], scales: &[f32], row: RowScale, y: &mut [f32]) {
        let RowScale { scale, zero } = row;
        for (y, ((&sum, &weights), &channel)) in y.iter_mut().zip(sums.iter().zip(weights).zip(scales)) {
            *y = (sum - zero * weights) as f32 * (scale * channel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::activation::Activation;
    use super::super::packed::copy_rows;
    use super::*;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 11 + i / 7) % 101) as f32 / 50.0 - 1.0).collect()
    }

    #[test]
    fn integers_survive_packing_and_weights_are_within_half_a_step() -> Result<()> {
        for (outputs, inputs) in [(16, 16), (33, 70), (130, 300)] {
            let weight = values(outputs * inputs, 1);
            let quantized = Quantized::new(outputs, inputs, &copy_rows(&weight, inputs))?;
            for other in forms(&quantized) {
                assert_eq!(other.integers()?, quantized.integers()?);
            }
            let again = Quantized::from_integers(&quantized.integers()?, quantized.scales().to_vec(), outputs, inputs);
            assert_eq!(quantized.integers()?, again.integers()?);
            for (row, (found, exact)) in quantized.unpack()?.chunks(inputs).zip(weight.chunks(inputs)).enumerate() {
                let half = 0.501 * quantized.scales()[row];
                assert!(found.iter().zip(exact).all(|(a, b)| (a - b).abs() <= half), "row {row}");
            }
        }
        Ok(())
    }

    #[test]
    fn products_are_those_of_the_rounded_numbers_even_where_every_product_is_the_largest() -> Result<()> {
        let (outputs, inputs) = (32, 128);
        let largest = vec![1.0; outputs * inputs];
        let quantized = Quantized::new(outputs, inputs, &copy_rows(&largest, inputs))?;
        let x = vec![1.0; 3 * inputs];
        for quantized in forms(&quantized) {
            for y in quantized.product(&x, Epilogue::default())? {
                assert!((y - inputs as f32).abs() < 1e-3, "{y}");
            }
        }
        for (outputs, inputs) in [(32, 128), (61, 50), (200, 31)] {
            let weight = values(outputs * inputs, 5);
            let quantized = Quantized::new(outputs, inputs, &copy_rows(&weight, inputs))?;
            for quantized in forms(&quantized) {
                for rows in [1, 5, 300] {
                    check_product(&quantized, rows)?;
                }
            }
        }
        Ok(())
    }

    /// The same integers for each of this processor's kernels, and for the library's.
    fn forms(quantized: &Quantized) -> Vec<Quantized> {
        let Quantized { scales, outputs, inputs, .. } = quantized;
        let integers = quantized.integers().expect("integers");
        let kernels = Kernels::all().into_iter().map(Some).chain([None]);
        kernels.map(|kernels| Quantized::packed(kernels, &integers, scales.clone(), *outputs, *inputs)).collect()
    }

    fn check_product(quantized: &Quantized, rows: usize) -> Result<()> {
        let (outputs, inputs, rounded) = (quantized.outputs, quantized.inputs, quantized.unpack()?);
        let (x, bias, residual) = (values(rows * inputs, 7), values(outputs, 9), values(rows * outputs, 3));
        let activation = Some(Activation::Relu);
        let y = quantized.product(&x, Epilogue { bias: Some(&bias), residual: Some(&residual), activation })?;
        assert_eq!(y.len(), rows * outputs);
        for (i, &y) in y.iter().enumerate() {
            let (row, output) = (i / outputs, i % outputs);
            let dot: f32 = (0..inputs).map(|k| x[row * inputs + k] * rounded[output * inputs + k]).sum();
            // Each x is off by half a step of 2/127 at most.
            let room: f32 = (0..inputs).map(|k| rounded[output * inputs + k].abs() / 127.0).sum();
            let expected = (dot + bias[output] + residual[i]).max(0.0);
            assert!((y - expected).abs() < room, "{y} {expected}");
        }
        Ok(())
    }

    #[test]
    fn rows_without_extent_give_the_bias_and_rows_that_are_not_finite_nan() -> Result<()> {
        let quantized = Quantized::new(16, 16, &copy_rows(&values(16 * 16, 1), 16))?;
        let bias = values(16, 2);
        let mut x = vec![0.0; 48];
        x[16] = f32::NAN;
        x[40] = f32::INFINITY;
        for quantized in forms(&quantized) {
            let y = quantized.product(&x, Epilogue { bias: Some(&bias), ..Epilogue::default() })?;
            assert_eq!(y[..16], bias);
            assert!(y[16..].iter().all(|y| y.is_nan()));
        }
        Ok(())
    }
}
