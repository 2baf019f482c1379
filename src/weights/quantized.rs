//! Weights that a file holds as 8-bit integers: reading, checking, writing.
//!
//! The tensor `NAME` (N,…) is of I8, integers in −127…127, and `NAME_scale` (N) of F32: row n stands for the numbers
//! `NAME_scale[n] · NAME[n]`.

use std::path::Path;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use rayon::prelude::*;
use safetensors::Dtype;

use super::checkpoint::Checkpoint;
use super::decode::{HALVES, Values, halves};
use super::entry::Entry;
use super::parameters::Parameters;
use super::save::save_entries;
use crate::ops::{Weight, zeros};
use crate::{Error, Result};

/// What the name of integers is followed by in that of their scales.
const SCALES: &str = "_scale";

impl Checkpoint {
    /// Whether the tensor `name` is of 8-bit integers.
    pub(super) fn is_quantized(&self, name: &str) -> bool {
        self.info(name).is_some_and(|info| info.dtype == Dtype::I8)
    }

    /// Whether the tensor `name` holds the scales of another one, which is of integers.
    pub(super) fn is_scales(&self, name: &str) -> bool {
        name.strip_suffix(SCALES).is_some_and(|name| self.is_quantized(name))
    }

    /// Whether some tensor is of 8-bit integers with scales, as a quantised model is saved.
    pub(crate) fn holds_quantized(&self) -> bool {
        self.names().any(|name| self.is_scales(name))
    }

    /// What keeps a tensor of 8-bit integers from being read, if anything does: it is no matrix, or its scales are not there.
    pub(super) fn scales_problem(&self, name: &str) -> Option<String> {
        let rows = self.info(name)?.shape.first().copied();
        let found = self.info(&scales_name(name)).map(|info| (info.dtype, info.shape));
        match (rows, found) {
            (None, _) => Some("is of 8-bit integers and no matrix".to_string()),
            (Some(rows), None) => {
                Some(format!("is of 8-bit integers, but their scales '{}' ({rows}) are missing", scales_name(name)))
            }
            (Some(rows), Some((Dtype::F32, [scales]))) if *scales == rows => None,
            (Some(rows), Some((dtype, shape))) => Some(format!(
                "is of 8-bit integers, whose scales '{}' are {dtype} {shape:?} instead of F32 [{rows}]",
                scales_name(name)
            )),
        }
    }

    /// The integers (N,…) of a tensor of them, and their scales (N).
    pub(super) fn integers(&self, name: &str) -> Result<(Vec<i8>, Vec<f32>)> {
        let (file, stored) = self.find(name)?;
        let fail = |error: &dyn std::fmt::Display| Self::unreadable(file, name, error);
        if let Some(problem) = self.scales_problem(name) {
            return Err(Error::file(file.path(), format!("tensor '{name}' {problem}; save the model again")));
        }
        let integers = file.integers(stored).map_err(|error| fail(&error))?;
        let scales = match self.values(&scales_name(name), None, DType::F32)? {
            Values::F32(scales) if scales.iter().all(|scale| scale.is_finite() && *scale >= 0.0) => scales,
            _ => return Err(fail(&"a scale is negative or not finite; the file is damaged")),
        };
        if integers.contains(&i8::MIN) {
            return Err(fail(&"an integer is -128, where the smallest is -127; the file is damaged"));
        }
        Ok((integers, scales))
    }
}

/// The numbers that integers (N,…) with scales (N) stand for.
pub(super) fn dequantized((integers, scales): (Vec<i8>, Vec<f32>)) -> Values {
    let inputs = integers.len() / scales.len().max(1);
    let mut values = zeros::<f32>(integers.len());
    let rows = values.par_chunks_mut(inputs.max(1)).zip(integers.par_chunks(inputs.max(1))).zip(&scales);
    rows.for_each(|((row, integers), scale)| {
        row.iter_mut().zip(integers).for_each(|(value, &integer)| *value = f32::from(integer) * scale);
    });
    Values::F32(values)
}

/// Writes parameters of which some are integers: `NAME` (N,…) of I8 and `NAME_scale` (N) of F32. The others become F16 where that
/// holds their numbers exactly.
pub(crate) fn save_quantized(path: &Path, parameters: &Parameters) -> Result<()> {
    let mut entries = Vec::new();
    for (name, weight) in parameters.weights() {
        if let Weight::Packed(packed) = weight
            && let Some(scales) = packed.scales()
        {
            let scales = Tensor::new(scales, &Device::Cpu)?;
            entries.push((scales_name(name), Entry::of(&scales)));
            entries.push((name.to_string(), Entry::Integers(packed.clone())));
        } else {
            let tensor = weight.to_tensor()?;
            let dtype = if fits_halves(&tensor)? { DType::F16 } else { tensor.dtype() };
            entries.push((name.to_string(), Entry::Tensor(tensor.detach(), dtype)));
        }
    }
    save_entries(path, entries, &[])
}

/// The name of the scales of the integers `name`.
fn scales_name(name: &str) -> String {
    format!("{name}{SCALES}")
}

/// Whether f16 holds every number of a tensor of f32 in main memory exactly.
fn fits_halves(tensor: &Tensor) -> Result<bool> {
    if tensor.dtype() != DType::F32 || !tensor.device().is_cpu() {
        return Ok(false);
    }
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        return Ok(false);
    };
    Ok(values[start..end].chunks(HALVES).all(|part| {
        let kept = halves(part);
        part.iter().zip(kept).all(|(value, kept)| value.to_bits() == kept.to_f32().to_bits())
    }))
}
