//! What the CPU kernels share: reading tensors in place, building results row by row on all cores, and sums over rows.
#![allow(unsafe_code)]

use super::simd::vectorised;
use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, StorageRef, Tensor, bail};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::{Deref, Range};

/// Values that one task works on: 64 KiB stay in a core's own cache and outweigh the cost of starting a task.
const TILE: usize = 16 * 1024;
/// Columns that one task sums when rows are long.
const COLUMN_TILE: usize = 1024;

/// Whether the CPU kernels apply: `f32` in main memory. Everything else takes the plain composition.
pub(super) fn is_native(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32)
}

/// The values of a contiguous operand of a custom operation.
pub(super) fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a CPU kernel needs a contiguous operand, got strides {:?}", layout.stride()),
    }
}

/// All values of an operand's storage from its first one on, to be read by strides.
pub(super) fn strided_floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    Ok(&storage.as_slice::<f32>()?[layout.start_offset()..])
}

/// A tensor's values, borrowed for as long as this lives.
pub(super) struct Floats<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> Floats<'a> {
    /// Borrows a contiguous CPU tensor.
    pub(super) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cpu(values) = &*storage else { bail!("a CPU kernel needs a CPU tensor") };
        floats(values, layout)?;
        let start = layout.start_offset();
        let range = start..start + layout.shape().elem_count();
        Ok(Self { storage, range })
    }

    /// Borrows a CPU tensor from its first value on, whatever its strides.
    pub(super) fn strided(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cpu(values) = &*storage else { bail!("a CPU kernel needs a CPU tensor") };
        let range = layout.start_offset()..values.as_slice::<f32>()?.len();
        Ok(Self { storage, range })
    }
}

impl Deref for Floats<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            _ => &[],
        }
    }
}

/// A CPU tensor that takes over the values.
pub(super) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

/// Builds `rows · width` values; `write(first_row, values)` fills some whole rows, zero at first. Runs on all cores.
pub(super) fn build_rows(rows: usize, width: usize, write: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    build_rows_and_sum(rows, width, 0, |first, values, _| write(first, values)).0
}

/// As [`build_rows`], and each call adds to `sums` values that are totalled over all calls, in the order of the rows.
pub(super) fn build_rows_and_sum(
    rows: usize,
    width: usize,
    sums: usize,
    write: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> (Vec<f32>, Vec<f32>) {
    let length = rows * width;
    let tile = rows_per_tile(width);
    let mut values = Vec::with_capacity(length);
    let spare = &mut values.spare_capacity_mut()[..length];
    let run = |(index, part): (usize, &mut [MaybeUninit<f32>])| {
        let mut partial = vec![0.0; sums];
        write(index * tile, zeroed(part), &mut partial);
        partial
    };
    let chunk = (tile * width).max(1);
    let partials: Vec<Vec<f32>> = if length <= chunk {
        spare.chunks_mut(chunk).enumerate().map(run).collect()
    } else {
        spare.par_chunks_mut(chunk).enumerate().map(run).collect()
    };
    // SAFETY: the chunks cover the first `length` values, and each has been zeroed.
    unsafe { values.set_len(length) };
    (values, total(partials, sums))
}

/// Sums over rows, one result a column: `add(rows, columns, sums)` adds a block of them to `sums`. Runs on all cores.
pub(super) fn reduce_rows(
    rows: usize,
    width: usize,
    add: impl Fn(Range<usize>, Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    if width >= 2 * COLUMN_TILE {
        let mut sums = vec![0.0; width];
        sums.par_chunks_mut(COLUMN_TILE).enumerate().for_each(|(index, sums)| {
            let first = index * COLUMN_TILE;
            add(0..rows, first..first + sums.len(), sums);
        });
        return sums;
    }
    let tile = rows_per_tile(width);
    let run = |index: usize| {
        let mut partial = vec![0.0; width];
        add(index * tile..rows.min((index + 1) * tile), 0..width, &mut partial);
        partial
    };
    let tiles = rows.div_ceil(tile);
    let partials =
        if tiles <= 1 { (0..tiles).map(run).collect() } else { (0..tiles).into_par_iter().map(run).collect() };
    total(partials, width)
}

/// The sum of every column of a `rows × width` matrix: the gradient of a row that was added to each of them.
pub(super) fn column_sums(x: &[f32], width: usize) -> Vec<f32> {
    reduce_rows(x.len() / width.max(1), width, |rows, columns, sums| {
        for row in rows {
            add_assign(sums, &x[row * width + columns.start..row * width + columns.end]);
        }
    })
}

vectorised! {
    /// `y += x`.
    pub(super) fn add_assign<const FMA: bool>(y: &mut [f32], x: &[f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }
}

vectorised! {
    /// `y += a · x`, element by element.
    pub(super) fn add_product<const FMA: bool>(y: &mut [f32], a: &[f32], x: &[f32]) {
        for (y, (&a, &x)) in y.iter_mut().zip(a.iter().zip(x)) {
            *y = super::simd::mul_add::<FMA>(a, x, *y);
        }
    }
}

/// Fills memory that has no value yet with zeros: a cheap way to hand out plain slices, as the tile stays in cache.
fn zeroed(part: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    part.fill(MaybeUninit::new(0.0));
    // SAFETY: every value has just been written, and both slice types have the same layout.
    unsafe { &mut *(std::ptr::from_mut(part) as *mut [f32]) }
}

fn rows_per_tile(width: usize) -> usize {
    (TILE / width.max(1)).max(1)
}

fn total(partials: Vec<Vec<f32>>, width: usize) -> Vec<f32> {
    let mut partials = partials.into_iter();
    let mut sums = partials.next().unwrap_or_else(|| vec![0.0; width]);
    for partial in partials {
        add_assign(&mut sums, &partial);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_sums_are_exact_for_narrow_and_wide_matrices() {
        for (rows, width) in [(0, 3), (1, 1), (7, 5), (1000, 3), (300, 100), (3, 5000), (65, 2048)] {
            let x: Vec<f32> = (0..rows * width).map(|i| (i % 13) as f32).collect();
            let expected: Vec<f32> = (0..width).map(|c| (0..rows).map(|r| x[r * width + c]).sum()).collect();
            assert_eq!(column_sums(&x, width), expected, "{rows}x{width}");
        }
    }

    #[test]
    fn every_row_is_built_once_and_partial_sums_are_totalled() {
        for (rows, width) in [(0, 4), (1, 1), (5000, 17), (3, 40_000)] {
            let (values, sums) = build_rows_and_sum(rows, width, 1, |first, values, sums| {
                for (i, row) in values.chunks_mut(width).enumerate() {
                    row.fill((first + i) as f32);
                    sums[0] += 1.0;
                }
            });
            assert_eq!(values, (0..rows).flat_map(|r| vec![r as f32; width]).collect::<Vec<_>>());
            assert_eq!(sums, [rows as f32]);
        }
    }
}
