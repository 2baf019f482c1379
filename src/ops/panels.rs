//! A weight matrix laid out for products on the CPU: panels of 96 outputs, each row-major over the inputs.
//!
//! W (N,K) becomes ⌈N/96⌉ panels (K,96), the last one as narrow as it must be, one after another: `N·K` numbers, the same
//! ones. `gemm`'s kernels compute 48 outputs at a time and read a panel in the order in which it lies; nothing is rearranged
//! for few rows, and for many once a block of rows. Against (N,K) as files hold it that is 1.1 times as fast for a
//! batch of images, 1.2 for one image, and 1.5 for one text (Zen 4, AVX-512).

#![allow(unsafe_code)]

use super::activation::{self, Activation};
use super::memory::zeros;
use super::packed::Rows;
use super::product::{Matrix, Onto, PARALLEL_FROM, Target, product_into};
use super::simd::vectorised;
use crate::Result;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Outputs of one panel: two registers' worth of every kernel's columns, and a panel of 768 inputs is 288 KiB.
const WIDTH: usize = 96;
/// Rows that one task multiplies with one panel: with their inputs they stay in a core's second cache.
const ROWS: usize = 256;
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

    /// `f(x · Wᵀ + bias)` for `x` (rows,K); the activation is applied to what has just been computed. Runs on all cores, and
    /// gives the same bits on any number of them.
    pub(super) fn product(&self, x: &[f32], bias: Option<&[f32]>, activation: Option<Activation>) -> Vec<f32> {
        let (outputs, inputs) = (self.outputs, self.inputs);
        let rows = x.len() / inputs.max(1);
        if rows * outputs == 0 {
            return Vec::new();
        }
        let part = rows.div_ceil(rows.div_ceil(ROWS)).next_multiple_of(8);
        let panels = outputs.div_ceil(WIDTH);
        let tasks = rows.div_ceil(part) * panels;
        let mut values = Vec::with_capacity(rows * outputs);
        let target = Target::new(&mut values.spare_capacity_mut()[..rows * outputs], outputs);
        let run = |task: usize| {
            let (first, index) = (task / panels * part, task % panels);
            let count = part.min(rows - first);
            let (panel, width) = self.panel(index);
            let a = Matrix::new(&x[first * inputs..][..count * inputs], count, inputs);
            let bias = bias.map(|bias| &bias[index * WIDTH..][..width]);
            // SAFETY: each task has rows and columns of its own, which lie inside the memory.
            unsafe {
                let target = target.at(first, index * WIDTH);
                (0..count).for_each(|row| fill(target.row(row, width), bias));
                product_into(target, Onto::Values, 1.0, a, Matrix::new(panel, inputs, width));
                if let Some(activation) = activation {
                    (0..count).for_each(|row| activate(activation, target.row(row, width)));
                }
            }
        };
        if tasks == 1 || rows * outputs * inputs < PARALLEL_FROM {
            (0..tasks).for_each(run);
        } else {
            (0..tasks).into_par_iter().for_each(run);
        }
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

fn fill(row: &mut [MaybeUninit<f32>], bias: Option<&[f32]>) {
    match bias {
        None => row.fill(MaybeUninit::new(0.0)),
        Some(bias) => {
            for (value, &bias) in row.iter_mut().zip(bias) {
                value.write(bias);
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
        for (rows, outputs, inputs) in [(1, 1, 1), (0, 5, 3), (3, 96, 16), (50, 200, 33), (7, 97, 40), (600, 130, 65)] {
            let (weight, x, bias) = (values(outputs * inputs, 1), values(rows * inputs, 2), values(outputs, 3));
            let panels = Panels::new(outputs, inputs, &copy_rows(&weight, inputs)).expect("panels");
            assert_eq!(panels.unpack(), weight);
            let y = panels.product(&x, Some(&bias), Some(Activation::Relu));
            assert_eq!(y.len(), rows * outputs);
            for (i, &y) in y.iter().enumerate() {
                let (row, output) = (i / outputs, i % outputs);
                let dot: f64 =
                    (0..inputs).map(|k| f64::from(x[row * inputs + k]) * f64::from(weight[output * inputs + k])).sum();
                let expected = (dot + f64::from(bias[output])).max(0.0);
                assert!((f64::from(y) - expected).abs() < 1e-4, "{rows}x{outputs}x{inputs}: {y} {expected}");
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
