//! A matrix of 8-bit integers laid out for [`integer_tiles`](super::integer_tiles): panels of 48 outputs, in which four inputs of
//! each output lie next to each other.
//!
//! W (N,K) becomes ⌈N/48⌉ panels (⌈K/4⌉,48,4), filled up with zeros. Rows of x are read as they lie, and what follows the sums (scales,
//! bias, residual, activation) is done to a tile while it is in the nearest cache.
#![allow(unsafe_code)]

use super::activation;
use super::integer_tiles::{GROUP, Kernels, MOST_ROWS, STEP, Tile};
use super::packed::Epilogue;
use super::panels::{WIDTH, share_out};
use super::product::Target;
use super::quantized::{QuantizedRows, RowScale};
use super::simd::vectorised;
use rayon::prelude::*;
use std::ops::Range;

/// Bytes that a vector reads at once, where they lie on a boundary of their own.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([i8; 64]);

/// W (N,K) in panels.
pub(super) struct IntegerPanels {
    lines: Vec<Line>,
    kernels: Kernels,
    outputs: usize,
    inputs: usize,
}

/// What a matrix knows of its outputs.
#[derive(Clone, Copy)]
pub(super) struct Channels<'a> {
    /// What a unit of each is.
    pub(super) scales: &'a [f32],
    /// Σₖ qₙₖ.
    pub(super) sums: &'a [i32],
}

impl IntegerPanels {
    /// Lays out row-major (N,K).
    pub(super) fn new(kernels: Kernels, integers: &[i8], outputs: usize, inputs: usize) -> Self {
        let mut panels = Self { lines: Vec::new(), kernels, outputs, inputs };
        let groups = panels.groups();
        panels.lines = vec![Line([0; 64]); outputs.next_multiple_of(STEP) * groups * GROUP / 64];
        let rows = integers.par_chunks((WIDTH * inputs).max(1));
        panels.bytes_mut().par_chunks_mut((WIDTH * groups * GROUP).max(1)).zip(rows).for_each(|(panel, rows)| {
            let width = panel.len() / (groups * GROUP);
            for (group, line) in panel.chunks_exact_mut(width * GROUP).enumerate() {
                for (row, place) in rows.chunks_exact(inputs).zip(line.as_chunks_mut::<GROUP>().0) {
                    let rest = &row[group * GROUP..];
                    match rest.first_chunk() {
                        Some(four) => *place = *four,
                        None => place[..rest.len()].copy_from_slice(rest),
                    }
                }
            }
        });
        panels
    }

    /// Row-major (N,K) again.
    pub(super) fn integers(&self) -> Vec<i8> {
        let mut integers = vec![0; self.outputs * self.inputs];
        for (output, row) in integers.chunks_exact_mut(self.inputs).enumerate() {
            for (group, four) in row.chunks_mut(GROUP).enumerate() {
                four.copy_from_slice(&self.bytes()[self.place(output, group)..][..four.len()]);
            }
        }
        integers
    }

    /// The largest integer that a row may hold.
    pub(super) fn largest(&self) -> u8 {
        self.kernels.largest
    }

    /// How many groups of inputs there are.
    fn groups(&self) -> usize {
        self.inputs.div_ceil(GROUP)
    }

    /// The first byte of a panel, and its outputs, filled up.
    fn panel(&self, index: usize) -> (usize, usize) {
        let width = WIDTH.min(self.outputs.next_multiple_of(STEP) - index * WIDTH);
        (index * WIDTH * self.groups() * GROUP, width)
    }

    /// Where four inputs of an output lie.
    fn place(&self, output: usize, group: usize) -> usize {
        let (start, width) = self.panel(output / WIDTH);
        start + (group * width + output % WIDTH) * GROUP
    }

    fn bytes(&self) -> &[i8] {
        // SAFETY: the same memory, borrowed for as long; lines are bytes without gaps.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * 64) }
    }

    fn bytes_mut(&mut self) -> &mut [i8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * 64) }
    }

    /// `f(x · Wᵀ + bias + residual)` for rows of x, which are [`QuantizedRows`] that end on a whole group. Runs on all cores, and
    /// gives the same bits on any number of them.
    pub(super) fn product(&self, x: &QuantizedRows, channels: Channels<'_>, epilogue: Epilogue<'_>) -> Vec<f32> {
        let rows = x.scales.len();
        let mut values = Vec::with_capacity(rows * self.outputs);
        let target = Target::new(&mut values.spare_capacity_mut()[..rows * self.outputs], self.outputs);
        let job = Job { panels: self, x, channels, epilogue, target };
        let work = rows * self.outputs * self.inputs;
        share_out(rows, self.outputs.div_ceil(WIDTH), work, |rows, panels| job.run(&rows, panels));
        // SAFETY: the tasks wrote all `rows · outputs` elements.
        unsafe { values.set_len(rows * self.outputs) };
        values
    }
}

/// A product under way.
struct Job<'a> {
    panels: &'a IntegerPanels,
    x: &'a QuantizedRows,
    channels: Channels<'a>,
    epilogue: Epilogue<'a>,
    target: Target,
}

impl Job<'_> {
    /// Some rows times some panels. No two tasks may share a row and a panel.
    fn run(&self, rows: &Range<usize>, panels: Range<usize>) {
        let Self { panels: weight, x, .. } = self;
        let (groups, stride) = (weight.groups(), x.stride);
        let (mut sums, mut numbers) = ([0; MOST_ROWS * WIDTH], [[0.0; MOST_ROWS * WIDTH]; 2]);
        for index in panels {
            let (start, width) = weight.panel(index);
            let panel = &weight.bytes()[start..][..groups * width * GROUP];
            for row in rows.clone().step_by(weight.kernels.rows) {
                let count = weight.kernels.rows.min(rows.end - row);
                let a = x.integers[row * stride..][..count * stride].as_ptr();
                let c = sums.as_mut_ptr();
                let tile = Tile {
                    a,
                    a_stride: stride,
                    b: panel.as_ptr(),
                    b_stride: width * GROUP,
                    groups,
                    c,
                    c_stride: WIDTH,
                };
                // SAFETY: `count` rows of x have `stride`, at least `groups` groups, of bytes; the panel has `groups` rows of
                // `width` groups; the sums have a place for `MOST_ROWS` rows of `WIDTH`.
                unsafe { weight.kernels.sums(count, width, tile) };
                let columns = index * WIDTH..weight.outputs.min((index + 1) * WIDTH);
                self.finish(&sums[..count * WIDTH], row, columns, &mut numbers);
            }
        }
    }

    /// Writes what becomes of a tile's sums; what `numbers` holds before does not matter.
    fn finish(
        &self,
        sums: &[i32],
        row: usize,
        columns: Range<usize>,
        [before, after]: &mut [[f32; MOST_ROWS * WIDTH]; 2],
    ) {
        let (outputs, width) = (self.panels.outputs, columns.len());
        let Epilogue { bias, residual, activation } = self.epilogue;
        let channels =
            Channels { scales: &self.channels.scales[columns.clone()], sums: &self.channels.sums[columns.clone()] };
        let (bias, residual) =
            (bias.map(|bias| &bias[columns.clone()]), residual.map(|all| &all[row * outputs + columns.start..]));
        let mut done = &mut before[..sums.len()];
        let scales = &self.x.scales[row..][..sums.len() / WIDTH];
        scale_tile(sums, scales, channels, (bias, residual, outputs), done);
        if let Some(activation) = activation {
            activation::forward(activation, done, &mut after[..sums.len()]);
            done = &mut after[..sums.len()];
        }
        for (line, values) in done.as_chunks::<WIDTH>().0.iter().enumerate() {
            // SAFETY: the row and its columns lie inside the memory and are this task's alone.
            unsafe {
                let out = self.target.at(row + line, columns.start);
                if width == WIDTH {
                    out.pointer().cast::<[f32; WIDTH]>().write(*values);
                } else {
                    out.row(0, width).iter_mut().zip(values).for_each(|(out, &value)| _ = out.write(value));
                }
            }
        }
    }
}

vectorised! {
    /// `y = s·sₙ·(sum − z·Σq) + bₙ + r` for rows of [`WIDTH`] sums, of which the first ones, as many as there are channels, count;
    /// residuals are rows of the given stride.
    fn scale_tile<const FMA: bool>(
        sums: &[i32],
        rows: &[RowScale],
        channels: Channels<'_>,
        added: (Option<&[f32]>, Option<&[f32]>, usize),
        y: &mut [f32],
    ) {
        let (bias, residual, stride) = added;
        for (index, (row, (sums, y))) in rows.iter().zip(sums.chunks_exact(WIDTH).zip(y.chunks_exact_mut(WIDTH))).enumerate() {
            let each = sums.iter().zip(channels.sums).zip(channels.scales);
            for (y, ((&sum, &weights), &channel)) in y.iter_mut().zip(each) {
                *y = (sum - row.zero * weights) as f32 * (row.scale * channel);
            }
            if let Some(bias) = bias {
                y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
            if let Some(residual) = residual {
                let residual = &residual[index * stride..][..channels.scales.len()];
                y.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
            }
        }
    }
}
