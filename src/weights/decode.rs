//! From the little-endian bytes of a file to numbers: `count` elements of a stored type, converted on the way.
//!
//! The bytes are read in blocks, several at a time, each straight into its place: no second copy of a tensor exists.

use candle_core::{DType, Device, Tensor, Var};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use crate::ops::{bytes_of, from_little_endian, zeros};

/// How many elements one thread reads at a time.
const BLOCK: usize = 1 << 18;
/// How many elements are read at a time that are converted then.
const PART: usize = 1 << 15;
/// How many half-precision numbers are widened at a time: they stay in the nearest cache.
pub(super) const HALVES: usize = 1 << 10;
/// From here on f16 rounds to infinity.
const LARGEST_HALF: f32 = 65_520.0;

/// Fills a buffer with the bytes from an offset of a file on.
pub(super) type ReadAt<'a> = &'a (dyn Fn(&mut [u8], u64) -> std::io::Result<()> + Sync);

/// The elements of one tensor in row-major order.
pub(super) enum Values {
    U8(Vec<u8>),
    U32(Vec<u32>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    F32(Vec<f32>),
    F64(Vec<f64>),
}

impl Values {
    /// Reads `count` elements stored as `stored` from `offset` on. Half- and double-precision numbers are converted at once
    /// if `wanted` is [`DType::F32`]; other conversions are left to [`Values::into_tensor`]. `None` for a type without one.
    pub(super) fn read(
        read: ReadAt,
        offset: u64,
        count: usize,
        stored: Dtype,
        wanted: DType,
    ) -> std::io::Result<Option<Self>> {
        let to_f32 = wanted == DType::F32 || stored == Dtype::F32;
        Ok(Some(match stored {
            _ if to_f32 && is_float(stored) => {
                let mut values = zeros(count);
                let width = stored.bitsize() / 8;
                values.par_chunks_mut(BLOCK).enumerate().try_for_each(|(block, out)| {
                    read_floats(read, offset + (block * BLOCK * width) as u64, stored, out)
                })?;
                Self::F32(values)
            }
            Dtype::F16 => Self::F16(blocks(read, offset, count, |b, o| each(b, o, f16::from_le_bytes))?),
            Dtype::BF16 => Self::BF16(blocks(read, offset, count, |b, o| each(b, o, bf16::from_le_bytes))?),
            Dtype::F64 => Self::F64(blocks(read, offset, count, |b, o| each(b, o, f64::from_le_bytes))?),
            Dtype::BOOL | Dtype::U8 => Self::U8(blocks(read, offset, count, |b, o| each(b, o, u8::from_le_bytes))?),
            Dtype::U32 => Self::U32(blocks(read, offset, count, |b, o| each(b, o, u32::from_le_bytes))?),
            Dtype::I16 => Self::I16(blocks(read, offset, count, |b, o| each(b, o, i16::from_le_bytes))?),
            Dtype::I32 => Self::I32(blocks(read, offset, count, |b, o| each(b, o, i32::from_le_bytes))?),
            Dtype::I64 => Self::I64(blocks(read, offset, count, |b, o| each(b, o, i64::from_le_bytes))?),
            _ => return Ok(None),
        }))
    }

    /// Rounds f32 to what f16 can hold, unless some value is too large for that.
    pub(super) fn round_to_half(&mut self) {
        let Self::F32(values) = self else { return };
        if !values.par_chunks(BLOCK).all(|block| block.iter().all(|value| value.abs() < LARGEST_HALF)) {
            return;
        }
        values.par_chunks_mut(BLOCK).for_each(|block| {
            for part in block.chunks_mut(HALVES) {
                halves(part)[..part.len()].convert_to_f32_slice(part);
            }
        });
    }

    /// The elements of the axes `shape`, row-major, which lie `strides` elements apart in these. Every place that they name
    /// must be there, and no axis may be empty.
    #[cfg_attr(not(feature = "pickle"), allow(dead_code))]
    pub(super) fn gather(self, shape: &[usize], strides: &[usize]) -> Self {
        macro_rules! gather {
            ($($variant:ident)*) => { match self { $(Self::$variant(v) => Self::$variant(gather(&v, shape, strides))),* } };
        }
        gather!(U8 U32 I16 I32 I64 F16 BF16 F32 F64)
    }

    /// A tensor of these elements, converted to `dtype`.
    pub(super) fn into_tensor(self, shape: &[usize], dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        macro_rules! tensor {
            ($($variant:ident)*) => { match self { $(Self::$variant(v) => Tensor::from_vec(v, shape, device)?),* } };
        }
        tensor!(U8 U32 I16 I32 I64 F16 BF16 F32 F64).to_dtype(dtype)
    }

    /// A variable of these elements. Where they are of type `dtype` already, it takes them over without a copy.
    pub(super) fn into_var(self, shape: &[usize], dtype: DType, device: &Device) -> candle_core::Result<Var> {
        match (self, dtype) {
            (Self::F16(v), DType::F16) => Var::from_vec(v, shape, device),
            (Self::BF16(v), DType::BF16) => Var::from_vec(v, shape, device),
            (Self::F32(v), DType::F32) => Var::from_vec(v, shape, device),
            (Self::F64(v), DType::F64) => Var::from_vec(v, shape, device),
            (other, _) => Var::from_tensor(&other.into_tensor(shape, dtype, device)?),
        }
    }
}

/// Whether [`read_floats`] reads this type.
pub(super) fn is_float(stored: Dtype) -> bool {
    matches!(stored, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
}

/// Fills `out` with floats stored as `stored` from `offset` on; f32 without a copy between.
pub(super) fn read_floats(read: ReadAt, mut offset: u64, stored: Dtype, out: &mut [f32]) -> std::io::Result<()> {
    if stored == Dtype::F32 {
        read(bytes_of(out), offset)?;
        from_little_endian(out);
        return Ok(());
    }
    let width = stored.bitsize() / 8;
    let mut bytes = vec![0; width * PART.min(out.len())];
    for part in out.chunks_mut(PART) {
        let bytes = &mut bytes[..width * part.len()];
        read(bytes, offset)?;
        offset += bytes.len() as u64;
        match stored {
            Dtype::F16 => widen(bytes.as_chunks().0, part, f16::from_le_bytes),
            Dtype::BF16 => widen(bytes.as_chunks().0, part, bf16::from_le_bytes),
            // Rounding to the nearest f32 is what is asked for.
            #[allow(clippy::cast_possible_truncation)]
            _ => each(bytes.as_chunks().0, part, |x| f64::from_le_bytes(x) as f32),
        }
    }
    Ok(())
}

/// The f16 nearest to each of at most [`HALVES`] numbers, and zeros after them.
pub(super) fn halves(values: &[f32]) -> [f16; HALVES] {
    let mut halves = [f16::ZERO; HALVES];
    halves[..values.len()].convert_from_f32_slice(values);
    halves
}

/// Reads `count` elements of `WIDTH` bytes each, block by block and in parallel.
fn blocks<T: Copy + Default + Send, const WIDTH: usize>(
    read: ReadAt,
    offset: u64,
    count: usize,
    convert: impl Fn(&[[u8; WIDTH]], &mut [T]) + Sync,
) -> std::io::Result<Vec<T>> {
    let mut values = vec![T::default(); count];
    values.par_chunks_mut(BLOCK).enumerate().try_for_each_init(Vec::new, |bytes, (block, out)| {
        bytes.resize(out.len() * WIDTH, 0);
        read(bytes, offset + (block * BLOCK * WIDTH) as u64)?;
        convert(bytes.as_chunks().0, out);
        Ok::<(), std::io::Error>(())
    })?;
    Ok(values)
}

fn gather<T: Copy>(values: &[T], shape: &[usize], strides: &[usize]) -> Vec<T> {
    let mut places = vec![0];
    for (&size, &stride) in shape.iter().zip(strides) {
        places = places.iter().flat_map(|place| (0..size).map(move |i| place + i * stride)).collect();
    }
    places.into_iter().map(|place| values[place]).collect()
}

fn each<T, const WIDTH: usize>(bytes: &[[u8; WIDTH]], out: &mut [T], convert: impl Fn([u8; WIDTH]) -> T) {
    for (value, bytes) in out.iter_mut().zip(bytes) {
        *value = convert(*bytes);
    }
}

/// Half-precision numbers to f32 by the processor's own instructions, which `half` offers for slices.
fn widen<T: Copy + Default>(bytes: &[[u8; 2]], out: &mut [f32], convert: impl Fn([u8; 2]) -> T + Copy)
where
    [T]: HalfFloatSliceExt,
{
    let mut halves = [T::default(); HALVES];
    for (bytes, out) in bytes.chunks(HALVES).zip(out.chunks_mut(HALVES)) {
        let halves = &mut halves[..bytes.len()];
        each(bytes, halves, convert);
        halves.convert_to_f32_slice(out);
    }
}
