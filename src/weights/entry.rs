//! [`Entry`]: what becomes a tensor of a safetensors file, and its bytes.

use std::io::{self, Write};

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};

use crate::ops::PackedWeight;

/// How many numbers are turned into bytes at a time.
const BLOCK: usize = 1 << 16;

/// What becomes a tensor of a file.
pub(super) enum Entry {
    /// A tensor, as numbers of this type.
    Tensor(Tensor, DType),
    /// The integers of a packed weight.
    Integers(PackedWeight),
}

impl Entry {
    pub(super) fn of(tensor: &Tensor) -> Self {
        Self::Tensor(tensor.clone(), tensor.dtype())
    }

    pub(super) fn dims(&self) -> &[usize] {
        match self {
            Self::Tensor(tensor, _) => tensor.dims(),
            Self::Integers(packed) => packed.dims(),
        }
    }

    /// Bytes of a number.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::Tensor(_, dtype) => dtype.size_in_bytes(),
            Self::Integers(_) => 1,
        }
    }

    /// The format's name of the type; candle's, where it has none.
    pub(super) fn type_name(&self) -> std::result::Result<&'static str, &'static str> {
        match self {
            Self::Tensor(_, dtype) => type_name(*dtype).ok_or(dtype.as_str()),
            Self::Integers(_) => Ok("I8"),
        }
    }

    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Tensor(tensor, dtype) => write_tensor(out, &tensor.to_dtype(*dtype).map_err(io::Error::other)?),
            Self::Integers(packed) => match packed.integers().map_err(io::Error::other)? {
                Some(integers) => write_numbers(out, &integers, i8::to_le_bytes),
                None => Err(io::Error::other("a weight is not quantised")),
            },
        }
    }
}

fn type_name(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::F64 => "F64",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::I16 => "I16",
        DType::U32 => "U32",
        DType::U8 => "U8",
        _ => return None,
    })
}

fn write_tensor(out: &mut dyn Write, tensor: &Tensor) -> io::Result<()> {
    let tensor = tensor.to_device(&Device::Cpu).and_then(|t| t.contiguous()).map_err(io::Error::other)?;
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        return Err(io::Error::other("a tensor did not come to the CPU"));
    };
    match storage {
        CpuStorage::F32(v) => write_numbers(out, &v[start..end], f32::to_le_bytes),
        CpuStorage::F16(v) => write_numbers(out, &v[start..end], half::f16::to_le_bytes),
        CpuStorage::BF16(v) => write_numbers(out, &v[start..end], half::bf16::to_le_bytes),
        CpuStorage::F64(v) => write_numbers(out, &v[start..end], f64::to_le_bytes),
        CpuStorage::I64(v) => write_numbers(out, &v[start..end], i64::to_le_bytes),
        CpuStorage::I32(v) => write_numbers(out, &v[start..end], i32::to_le_bytes),
        CpuStorage::I16(v) => write_numbers(out, &v[start..end], i16::to_le_bytes),
        CpuStorage::U32(v) => write_numbers(out, &v[start..end], u32::to_le_bytes),
        CpuStorage::U8(v) => out.write_all(&v[start..end]),
        _ => Err(io::Error::other("a number type that safetensors does not know")),
    }
}

fn write_numbers<T: Copy, const WIDTH: usize>(
    out: &mut dyn Write,
    numbers: &[T],
    to_bytes: impl Fn(T) -> [u8; WIDTH],
) -> io::Result<()> {
    let mut bytes = vec![0; BLOCK.min(numbers.len()) * WIDTH];
    for block in numbers.chunks(BLOCK) {
        let bytes = &mut bytes[..block.len() * WIDTH];
        for (place, number) in bytes.as_chunks_mut().0.iter_mut().zip(block) {
            *place = to_bytes(*number);
        }
        out.write_all(bytes)?;
    }
    Ok(())
}
