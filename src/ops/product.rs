//! Matrix products on slices, by the `gemm` crate: strided operands, a bias in the same pass, all cores.
#![allow(unsafe_code)]

use gemm::Parallelism;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Multiplications below which a product stays on the calling thread.
pub(super) const PARALLEL_FROM: usize = 512 * 1024;
/// Left rows up to which it is faster to compute the transposed product: otherwise the whole right operand would be
/// rearranged for the sake of a few rows.
const FEW_ROWS: usize = 64;
/// Rows from which the rearranging of the right operand, done once a task, no longer shows.
const LONG_PART: usize = 1024;

/// A matrix to read: element (i, j) lies at `data[i · row_stride + j · column_stride]`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `columns` values, one after another.
    pub(super) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns, 1)
    }

    /// A view with any strides. Slicing checks here, once, that every element lies inside `data`.
    pub(super) fn strided(
        data: &'a [f32],
        rows: usize,
        columns: usize,
        row_stride: usize,
        column_stride: usize,
    ) -> Self {
        let length =
            if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + (columns - 1) * column_stride + 1 };
        Self { data: &data[..length], rows, columns, row_stride, column_stride }
    }

    /// The transpose, without moving anything.
    pub(super) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn row_range(self, first: usize, rows: usize) -> Self {
        Self::strided(&self.data[first * self.row_stride..], rows, self.columns, self.row_stride, self.column_stride)
    }
}

/// Where a product goes: `rows` starting every `row_stride` values, columns next to each other.
///
/// It is a pointer so that threads may fill disjoint columns of the same rows, in memory without values yet.
#[derive(Clone, Copy)]
pub(super) struct Target {
    start: *mut f32,
    row_stride: usize,
    column_stride: usize,
}

// SAFETY: a target is only an address; whoever writes through it promises to keep to its own elements.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// Memory that becomes a tensor of rows of `row_stride` values.
    pub(super) fn new(values: &mut [MaybeUninit<f32>], row_stride: usize) -> Self {
        Self { start: values.as_mut_ptr().cast(), row_stride, column_stride: 1 }
    }

    /// Memory that has values, as rows of `row_stride` values.
    pub(super) fn of(values: &mut [f32], row_stride: usize) -> Self {
        Self { start: values.as_mut_ptr(), row_stride, column_stride: 1 }
    }

    /// The part that starts at an element.
    ///
    /// # Safety
    /// The element lies inside the memory.
    pub(super) unsafe fn at(self, row: usize, column: usize) -> Self {
        // SAFETY: promised by the caller.
        Self { start: unsafe { self.start.add(row * self.row_stride + column * self.column_stride) }, ..self }
    }

    /// Its first element.
    pub(super) fn pointer(self) -> *mut f32 {
        self.start
    }

    /// The first `length` places of a row.
    ///
    /// # Safety
    /// They lie inside the memory, next to each other, and nothing else uses them while the slice lives.
    pub(super) unsafe fn row<'a>(self, row: usize, length: usize) -> &'a mut [MaybeUninit<f32>] {
        // SAFETY: promised by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.row_stride).cast(), length) }
    }

    /// Sets part of a row to zero.
    ///
    /// # Safety
    /// The row's first `length` values lie inside the memory, in consecutive places, and nothing else uses them meanwhile.
    pub(super) unsafe fn zero_row(self, row: usize, length: usize) {
        // SAFETY: promised by the caller.
        unsafe { std::ptr::write_bytes(self.start.add(row * self.row_stride), 0, length) }
    }
}

/// What becomes of the values that the target holds already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Onto {
    /// They are overwritten (and may have no value yet).
    Nothing,
    /// The product is added to them.
    Values,
}

/// `target = scale · a · b`, or `target += …`, on the calling thread.
///
/// # Safety
/// `a.rows × b.columns` elements of the target lie inside its memory, nothing else uses them meanwhile, and with
/// [`Onto::Values`] they have values.
pub(super) unsafe fn product_into(target: Target, onto: Onto, scale: f32, a: Matrix, b: Matrix) {
    // A wrong inner size would read outside of an operand: cut to the common part.
    let inner = a.columns.min(b.rows);
    // SAFETY: the operands' elements lie inside their slices (checked by `Matrix::strided`); the target is the caller's promise.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            inner,
            target.start,
            target.column_stride as isize,
            target.row_stride as isize,
            onto == Onto::Values,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// `a · b`, with `bias` (one value a column) added to every row. Runs on all cores.
pub(super) fn product(a: Matrix, b: Matrix, bias: Option<&[f32]>) -> Vec<f32> {
    let (rows, columns) = (a.rows, b.columns);
    let work = rows * columns * a.columns;
    if work == 0 {
        return (0..rows).flat_map(|_| bias.map_or_else(|| vec![0.0; columns], <[f32]>::to_vec)).collect();
    }
    let threads = if work < PARALLEL_FROM { 1 } else { rayon::current_num_threads() };
    let mut values = Vec::with_capacity(rows * columns);
    let spare = &mut values.spare_capacity_mut()[..rows * columns];
    if rows <= FEW_ROWS && b.row_stride == 1 {
        few_rows(spare, a, b, bias, threads);
    } else if rows >= columns || threads == 1 {
        let part = row_part(rows, threads);
        let run = |(index, out): (usize, &mut [MaybeUninit<f32>])| {
            let onto = prefill(out, bias);
            let a = a.row_range(index * part, out.len() / columns);
            // SAFETY: the chunk is this task's alone and holds the rows of this part; `prefill` gave it values if they are read.
            unsafe { product_into(Target::new(out, columns), onto, 1.0, a, b) };
        };
        if threads == 1 { run((0, spare)) } else { spare.par_chunks_mut(part * columns).enumerate().for_each(run) }
    } else {
        // Wide results are cut along their columns; the bias is there before any thread starts.
        let onto = prefill(spare, bias);
        let target = Target::new(spare, columns);
        let part = columns.div_ceil(threads).next_multiple_of(16);
        (0..columns.div_ceil(part)).into_par_iter().for_each(|index| {
            let first = index * part;
            let b = b.t().row_range(first, part.min(columns - first)).t();
            // SAFETY: each task writes its own columns, which lie inside the memory.
            unsafe { product_into(target.at(0, first), onto, 1.0, a, b) };
        });
    }
    // SAFETY: the tasks wrote all `rows · columns` elements.
    unsafe { values.set_len(rows * columns) };
    values
}

/// Rows of one task: an equal share, or an even part of it where shares are long, so that a core that is late with one
/// does not hold up the others.
fn row_part(rows: usize, threads: usize) -> usize {
    let mut part = rows.div_ceil(threads);
    while threads > 1 && part >= 2 * LONG_PART {
        part = part.div_ceil(2);
    }
    part
}

/// The product for few rows: computed column by column into scratch memory, so that the right operand is read where it
/// lies, then written out by rows.
fn few_rows(out: &mut [MaybeUninit<f32>], a: Matrix, b: Matrix, bias: Option<&[f32]>, threads: usize) {
    let (rows, columns) = (a.rows, b.columns);
    let part = columns.div_ceil(threads).next_multiple_of(16);
    let target = Target::new(out, columns);
    let run = |index: usize| {
        let first = index * part;
        let width = part.min(columns - first);
        let b = b.t().row_range(first, width).t();
        let mut scratch = Vec::with_capacity(rows * width);
        let transposed = Target { start: scratch.as_mut_ptr(), row_stride: 1, column_stride: rows };
        // SAFETY: the scratch memory holds `rows × width` elements and is this task's alone; all are written.
        unsafe {
            product_into(transposed, Onto::Nothing, 1.0, a, b);
            scratch.set_len(rows * width);
        }
        for row in 0..rows {
            for column in 0..width {
                let value = scratch[column * rows + row] + bias.map_or(0.0, |bias| bias[first + column]);
                // SAFETY: each task writes its own columns, which lie inside the memory.
                unsafe { target.at(row, first + column).start.write(value) };
            }
        }
    };
    let parts = columns.div_ceil(part);
    if parts == 1 { run(0) } else { (0..parts).into_par_iter().for_each(run) }
}

/// Writes the bias into every row, if there is one.
fn prefill(out: &mut [MaybeUninit<f32>], bias: Option<&[f32]>) -> Onto {
    let Some(bias) = bias else { return Onto::Nothing };
    for row in out.chunks_mut(bias.len()) {
        for (value, &bias) in row.iter_mut().zip(bias) {
            value.write(bias);
        }
    }
    Onto::Values
}
