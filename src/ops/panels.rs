//! A weight matrix laid out for products on the CPU: panels of 48 outputs, each row-major over the inputs.
//!
//! W (N,K) becomes ⌈N/48⌉ panels (K,48), the last one as narrow as it must be, one after another: `N·K` numbers, the same
//! ones. A product reads each panel in the order in which it lies, for a few rows of x at a time ([`tiles`](super::tiles)), and is cut
//! after [`DEPTH`] inputs, so that panel and rows stay in a core's second cache. Nothing is rearranged.

#![allow(unsafe_code)]

use super::activation::{self, Activation};
use super::memory::zeros;
use super::packed::{Epilogue, Rows};
use super::product::{Matrix, Onto, PARALLEL_FROM, Target, product_into};
use super::simd::vectorised;
use super::tiles::{Kernels, Tile, VECTORS};
use crate::Result;
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Outputs of one panel: a tile's columns with the widest vectors.
pub(super) const WIDTH: usize = 48;
/// Inputs after which a product is cut: that much of a panel is 72 KiB.
const DEPTH: usize = 384;
/// Rows that one task multiplies at most: as long as the inputs are cut, these are 288 KiB.
const ROWS: usize = 192;
/// Inputs of a square that is turned round at a time.
const BLOCK: usize = 16;

/// W (N,K) in panels.
pub(super) struct Panels {
    values: Vec<f32>,
    outputs: usize,
    inputs: usize,
}

impl Panels {
    /// Packs row-major (N,K), of which `rows` gives the rows of one panel at a time.
    pub(super) fn new(outputs: usize, inputs: usize, rows: Rows) -> Result<Self> {
        let mut values = zeros::<f32>(outputs * inputs);
        let panels = values.par_chunks_mut((WIDTH * inputs).max(1)).enumerate();
        panels.try_for_each_init(Vec::new, |scratch, (index, panel)| {
            scratch.resize(panel.len(), 0.0);
            rows(index * WIDTH, scratch)?;
            turn(scratch, panel, inputs);
            Ok::<(), crate::Error>(())
        })?;
        Ok(Self { values, outputs, inputs })
    }

    /// Row-major (N,K) again, bit for bit.
    pub(super) fn unpack(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.values.len()];
        let inputs = self.inputs;
        values.par_chunks_mut((WIDTH * inputs).max(1)).enumerate().for_each(|(index, rows)| {
            let (panel, width) = self.panel(index);
            for (output, row) in rows.chunks_exact_mut(inputs).enumerate() {
                for (input, value) in row.iter_mut().enumerate() {
                    *value = panel[input * width + output];
                }
            }
        });
        values
    }

    /// The numbers of a panel and how many outputs it has.
    fn panel(&self, index: usize) -> (&[f32], usize) {
        let width = WIDTH.min(self.outputs - index * WIDTH);
        (&self.values[index * WIDTH * self.inputs..][..width * self.inputs], width)
    }

    /// `f(x · Wᵀ + bias + residual)` for `x` (rows,K) and `residual` (rows,N); the activation is applied to what has just been
    /// computed. Runs on all cores, and gives the same bits on any number of them.
    pub(super) fn product(&self, x: &[f32], epilogue: Epilogue<'_>) -> Vec<f32> {
        let (outputs, inputs) = (self.outputs, self.inputs);
        let rows = x.len() / inputs.max(1);
        if rows * outputs == 0 {
            return Vec::new();
        }
        let mut values = Vec::with_capacity(rows * outputs);
        let target = Target::new(&mut values.spare_capacity_mut()[..rows * outputs], outputs);
        let job = Job { panels: self, x, kernels: Kernels::detect(), epilogue, target };
        share_out(rows, outputs.div_ceil(WIDTH), rows * outputs * inputs, |rows, panels| job.run(rows, panels));
        // SAFETY: the tasks wrote all `rows · outputs` elements.
        unsafe { values.set_len(rows * outputs) };
        values
    }

    /// `grad · W` for `grad` (rows,N): what flows back to x.
    pub(super) fn backward(&self, grad: &[f32]) -> Vec<f32> {
        let (outputs, inputs) = (self.outputs, self.inputs);
        let rows = grad.len() / outputs.max(1);
        let mut values = vec![0.0; rows * inputs];
        let part = rows.div_ceil(rayon::current_num_threads()).clamp(1, ROWS);
        values.par_chunks_mut((part * inputs).max(1)).enumerate().for_each(|(block, out)| {
            let count = out.len() / inputs;
            for index in 0..outputs.div_ceil(WIDTH) {
                let (panel, width) = self.panel(index);
                let start = block * part * outputs + index * WIDTH;
                let a = Matrix::strided(&grad[start..], count, width, outputs, 1);
                let b = Matrix::new(panel, inputs, width).t();
                // SAFETY: the chunk is this task's alone, has values, and holds these rows.
                unsafe { product_into(Target::of(out, inputs), Onto::Values, 1.0, a, b) };
            }
        });
        values
    }
}

/// Tasks a thread, where rows are few: who is late with one holds up the others for less.
const TASKS: usize = 4;

/// Calls `run` for blocks of rows and of panels, which cover all and have nothing in common, on all cores if a product of so many
/// multiplications is worth it.
pub(super) fn share_out(rows: usize, panels: usize, work: usize, run: impl Fn(Range<usize>, Range<usize>) + Sync) {
    let threads = if work < PARALLEL_FROM { 1 } else { rayon::current_num_threads() };
    // Few rows share out the panels; many are shared out themselves.
    let (rows_each, panels_each) = match rows {
        _ if threads == 1 => (ROWS, panels),
        ..=ROWS => (rows, panels.div_ceil(threads * TASKS)),
        _ => (rows.div_ceil(threads * rows.div_ceil(threads * ROWS)).next_multiple_of(8), panels),
    };
    let across = panels.div_ceil(panels_each.max(1));
    let run = |task: usize| {
        let (row, panel) = (task / across * rows_each, task % across * panels_each);
        run(row..rows.min(row + rows_each), panel..panels.min(panel + panels_each));
    };
    let tasks = rows.div_ceil(rows_each.max(1)) * across;
    if threads == 1 { (0..tasks).for_each(run) } else { (0..tasks).into_par_iter().for_each(run) }
}

/// A product under way.
struct Job<'a> {
    panels: &'a Panels,
    /// (rows,K)
    x: &'a [f32],
    kernels: Kernels,
    epilogue: Epilogue<'a>,
    target: Target,
}

impl Job<'_> {
    /// Some rows times some panels. No two tasks may share a row and a panel.
    fn run(&self, rows: Range<usize>, panels: Range<usize>) {
        let inputs = self.panels.inputs;
        for start in (0..inputs).step_by(DEPTH) {
            let depth = DEPTH.min(inputs - start);
            for index in panels.clone() {
                let (panel, width) = self.panels.panel(index);
                // SAFETY: these rows and columns lie inside the memory and are this task's alone.
                let out = unsafe { self.target.at(rows.start, index * WIDTH) };
                if start == 0 {
                    self.begin(out, rows.clone(), index * WIDTH..index * WIDTH + width);
                }
                self.add_product(out, rows.clone(), &panel[start * width..][..depth * width], start..start + depth);
                if let (Some(activation), true) = (self.epilogue.activation, start + depth == inputs) {
                    // SAFETY: the rows lie inside the memory, are this task's alone, and have values.
                    (0..rows.len()).for_each(|row| unsafe { activate(activation, out.row(row, width)) });
                }
            }
        }
    }

    /// Adds the product of some rows and inputs with a part of a panel, (inputs, width), tile by tile.
    fn add_product(&self, out: Target, rows: Range<usize>, part: &[f32], inputs: Range<usize>) {
        let Kernels { rows: height, lanes, .. } = self.kernels;
        let width = part.len() / inputs.len();
        for column in (0..width).step_by(VECTORS * lanes) {
            let columns = (width - column).min(VECTORS * lanes);
            let vectors = columns.div_ceil(lanes);
            for row in rows.clone().step_by(height) {
                let count = height.min(rows.end - row);
                let x = &self.x[row * self.panels.inputs..][..count * self.panels.inputs];
                // SAFETY: x has `count` rows with these inputs, the part as many rows of `width` values, and the target these rows
                // and columns, which have values and are this task's alone.
                unsafe {
                    self.kernels.kernel(count, vectors)(Tile {
                        a: x[inputs.start..].as_ptr(),
                        a_stride: self.panels.inputs,
                        b: part[column..].as_ptr(),
                        b_stride: width,
                        depth: inputs.len(),
                        c: out.at(row - rows.start, column).pointer(),
                        c_stride: self.panels.outputs,
                        last: columns - (vectors - 1) * lanes,
                    });
                }
            }
        }
    }

    /// Gives rows and columns the values that products are added to.
    fn begin(&self, out: Target, rows: Range<usize>, columns: Range<usize>) {
        let bias = self.epilogue.bias.map(|bias| &bias[columns.clone()]);
        for row in rows.clone() {
            let residual = self.epilogue.residual.map(|x| &x[row * self.panels.outputs..][columns.clone()]);
            // SAFETY: promised by who calls: this task's own, inside the memory.
            let values = unsafe { out.row(row - rows.start, columns.len()) };
            match (bias, residual) {
                (None, None) => values.fill(MaybeUninit::new(0.0)),
                (Some(one), None) | (None, Some(one)) => {
                    values.iter_mut().zip(one).for_each(|(value, &one)| _ = value.write(one));
                }
                (Some(bias), Some(residual)) => {
                    let both = bias.iter().zip(residual);
                    values.iter_mut().zip(both).for_each(|(value, (b, r))| _ = value.write(b + r));
                }
            }
        }
    }
}

/// Applies the activation to a row of at most [`WIDTH`] values.
///
/// # Safety
/// All of them have values.
unsafe fn activate(activation: Activation, row: &mut [MaybeUninit<f32>]) {
    // SAFETY: promised by the caller; both slice types have the same layout.
    let row = unsafe { &mut *(std::ptr::from_mut(row) as *mut [f32]) };
    let mut before = [0.0; WIDTH];
    let before = &mut before[..row.len()];
    before.copy_from_slice(row);
    activation::forward(activation, before, row);
}

vectorised! {
    /// Rows (width,K) to a panel (K,width), a square of 16 at a time: its lines stay in the nearest cache.
    fn turn<const FMA: bool>(rows: &[f32], panel: &mut [f32], inputs: usize) {
        let width = panel.len() / inputs;
        for first in (0..inputs).step_by(BLOCK) {
            let block = first..inputs.min(first + BLOCK);
            for top in (0..width).step_by(BLOCK) {
                let part = top..width.min(top + BLOCK);
                if part.len() == BLOCK && block.len() == BLOCK {
                    let mut square = [[0.0; BLOCK]; BLOCK];
                    for (line, output) in square.iter_mut().zip(part) {
                        line.copy_from_slice(&rows[output * inputs + first..][..BLOCK]);
                    }
                    for (column, input) in block.clone().enumerate() {
                        let out = &mut panel[input * width + top..][..BLOCK];
                        for (value, line) in out.iter_mut().zip(&square) {
                            *value = line[column];
                        }
                    }
                } else {
                    for output in part {
                        block.clone().for_each(|input| panel[input * width + output] = rows[output * inputs + input]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::packed::copy_rows;
    use super::*;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0).collect()
    }

    #[test]
    fn packing_loses_nothing_and_products_both_ways_are_exact_to_rounding() {
        for (rows, outputs, inputs) in
            [(1, 1, 1), (0, 5, 3), (3, 96, 16), (50, 200, 33), (7, 97, 400), (600, 130, 65), (12, 61, 769)]
        {
            let (weight, x, bias) = (values(outputs * inputs, 1), values(rows * inputs, 2), values(outputs, 3));
            let panels = Panels::new(outputs, inputs, &copy_rows(&weight, inputs)).expect("panels");
            assert_eq!(panels.unpack(), weight);
            let residual = values(rows * outputs, 5);
            let activation = Some(Activation::Relu);
            let y = panels.product(&x, Epilogue { bias: Some(&bias), residual: Some(&residual), activation });
            assert_eq!(y.len(), rows * outputs);
            for (i, &y) in y.iter().enumerate() {
                let (row, output) = (i / outputs, i % outputs);
                let dot: f64 =
                    (0..inputs).map(|k| f64::from(x[row * inputs + k]) * f64::from(weight[output * inputs + k])).sum();
                let expected = (dot + f64::from(bias[output]) + f64::from(residual[i])).max(0.0);
                assert!(
                    (f64::from(y) - expected).abs() < 1e-5 * inputs.max(10) as f64,
                    "{rows}x{outputs}x{inputs}: {y} {expected}"
                );
            }
            let grad = values(rows * outputs, 4);
            for (i, &dx) in panels.backward(&grad).iter().enumerate() {
                let (row, input) = (i / inputs, i % inputs);
                let expected: f64 = (0..outputs)
                    .map(|n| f64::from(grad[row * outputs + n]) * f64::from(weight[n * inputs + input]))
                    .sum();
                assert!((f64::from(dx) - expected).abs() < 1e-4, "{rows}x{outputs}x{inputs}: {dx} {expected}");
            }
        }
    }
}
