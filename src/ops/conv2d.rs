//! Convolution of feature maps with the channels last: x (B,H,W,C), weight (O,C,k,k) as PyTorch stores it, y (B,H',W',O).
//!
//! `y[p] = Σ over offsets (i,j) and channels c of x[p·stride + (i,j) − padding, c] · weight[·, c, i, j]`, zeros outside of the
//! map. Some positions at a time, what lies under their windows is laid out as rows U (positions, k·k·C), and the rest is
//! products: `y = U Wᵀ`, `dW = dyᵀ U`, `dU = dy W`, which is added back to where the rows came from.
#![allow(unsafe_code)]

use super::kernel::{Floats, add_assign, build_rows, floats, is_native, tensor};
use super::product::{Matrix, Onto, Target, product_into};
use super::window::{Grid, Window};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp2, Layout, Result as CandleResult, Shape, Tensor};
use rayon::prelude::*;

/// Values that the rows of one task hold, about.
const SCRATCH: usize = 256 * 1024;
/// Positions that one product takes at least: with fewer, rearranging the weight would show.
const FEWEST_POSITIONS: usize = 128;

/// The convolution of every map with every filter, without a bias.
///
/// # Shapes
/// x (B,H,W,C), weight (O,C,k,k), window of size k → (B,H',W',O).
///
/// # Errors
/// When the shapes do not fit together, the map is smaller than the window, or the dtypes or devices differ.
pub fn conv2d(x: &Tensor, weight: &Tensor, window: Window) -> Result<Tensor> {
    let grid = Grid::new(x, window)?;
    let &[outputs, inputs, height, width] = weight.dims() else {
        return Err(Error::argument("weight", format!("has shape {:?}, expected (O, C, k, k)", weight.dims())));
    };
    if (inputs, height, width) != (grid.channels, window.size, window.size) {
        let message = format!(
            "has shape {:?}, expected {} channels and a window of {} for x {:?}",
            weight.dims(),
            grid.channels,
            window.size,
            x.dims()
        );
        return Err(Error::argument("weight", message));
    }
    if x.elem_count() == 0 || outputs == 0 {
        return grid.zeros(x, outputs);
    }
    if !is_native(&[x, weight]) {
        return plain(x, weight, window, 1);
    }
    Ok(x.contiguous()?.apply_op2(&weight.contiguous()?, Conv2d { grid, outputs })?)
}

/// The same by candle's convolution, whose channels come first.
///
/// Its backward pass takes the rows that no window reaches to be as many as such columns, so both are cut off before.
pub(super) fn plain(x: &Tensor, weight: &Tensor, window: Window, groups: usize) -> Result<Tensor> {
    let mut x = x.permute((0, 3, 1, 2))?;
    for axis in [2, 3] {
        let reached = (window.count(x.dim(axis)?).max(1) - 1) * window.stride + window.size;
        x = x.pad_with_zeros(axis, window.padding, window.padding)?.narrow(axis, 0, reached)?;
    }
    let y = x.contiguous()?.conv2d(weight, 0, window.stride, 1, groups)?;
    Ok(y.permute((0, 2, 3, 1))?.contiguous()?)
}

#[derive(Clone, Copy)]
struct Conv2d {
    grid: Grid,
    outputs: usize,
}

impl Conv2d {
    /// Values under one window.
    fn row(&self) -> usize {
        self.grid.taps() * self.grid.channels
    }

    /// Positions that one task takes.
    fn part(&self) -> usize {
        (SCRATCH / self.row().max(1)).max(FEWEST_POSITIONS).min(self.grid.positions())
    }

    /// Calls `run(place on the map, place in the row, values)` for every run of values under the window at `position`.
    fn runs(&self, position: usize, mut run: impl FnMut(usize, usize, usize)) {
        let Grid { height, width, channels, out_width, window, .. } = self.grid;
        let (row, column) = (position / out_width, position % out_width);
        let columns = window.inside(column, width);
        if columns.is_empty() {
            return;
        }
        for i in window.inside(row, height) {
            let place = (window.place(row, i) * width + window.place(column, columns.start)) * channels;
            run(place, (i * window.size + columns.start) * channels, columns.len() * channels);
        }
    }

    /// What lies under the windows at positions `first..` of one map, as rows.
    fn unfold(&self, map: &[f32], first: usize, rows: &mut [f32]) {
        rows.fill(0.0);
        for (position, row) in (first..).zip(rows.chunks_exact_mut(self.row())) {
            self.runs(position, |place, at, length| {
                row[at..at + length].copy_from_slice(&map[place..place + length]);
            });
        }
    }

    /// Adds rows to where [`Conv2d::unfold`] took them from.
    fn fold(&self, rows: &[f32], first: usize, map: &mut [f32]) {
        for (position, row) in (first..).zip(rows.chunks_exact(self.row())) {
            self.runs(position, |place, at, length| {
                add_assign(&mut map[place..place + length], &row[at..at + length]);
            });
        }
    }

    /// From (O,C,k·k) to (O,k·k,C), in which order the rows lie, or back.
    fn reordered(&self, weight: &[f32], back: bool) -> Vec<f32> {
        let (outer, inner) =
            if back { (self.grid.taps(), self.grid.channels) } else { (self.grid.channels, self.grid.taps()) };
        build_rows(self.outputs, self.row(), |first, filters| {
            let from = weight[first * self.row()..].chunks_exact(self.row());
            for (filter, from) in filters.chunks_exact_mut(self.row()).zip(from) {
                for (i, values) in filter.chunks_exact_mut(outer).enumerate() {
                    for (value, from) in values.iter_mut().zip(from[i..].iter().step_by(inner)) {
                        *value = *from;
                    }
                }
            }
        })
    }

    fn forward(&self, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let weight = self.reordered(weight, false);
        let weight = Matrix::new(&weight, self.outputs, self.row());
        let (positions, part) = (self.grid.positions(), self.part());
        let mut y = vec![0.0; self.grid.batch * positions * self.outputs];
        let maps = y.par_chunks_mut(positions * self.outputs).zip(x.par_chunks(self.grid.input_size()));
        let parts = maps.flat_map(|(y, map)| {
            y.par_chunks_mut(part * self.outputs).enumerate().map(move |(index, y)| (map, index * part, y))
        });
        parts.for_each_init(Vec::new, |rows, (map, first, y)| {
            let count = y.len() / self.outputs;
            rows.resize(count * self.row(), 0.0);
            self.unfold(map, first, rows);
            let rows = Matrix::new(rows, count, self.row());
            // SAFETY: `y` holds `count × outputs` values and is this task's alone.
            unsafe { product_into(Target::of(y, self.outputs), Onto::Nothing, 1.0, rows, weight.t()) };
        });
        y
    }

    /// dx and dW, where they are wanted. Each task takes whole maps.
    fn backward(&self, x: &[f32], weight: &[f32], grad: &[f32], wants: Wants) -> (Vec<f32>, Vec<f32>) {
        let weight = self.reordered(weight, false);
        let (input, output) = (self.grid.input_size(), self.grid.positions() * self.outputs);
        let share = self.grid.batch.div_ceil(rayon::current_num_threads()).max(1);
        let mut dx = vec![0.0; if wants.dx { x.len() } else { 0 }];
        let run = |x: &[f32], grad: &[f32], dx: Option<&mut [f32]>| {
            let mut dweight = vec![0.0; if wants.dweight { weight.len() } else { 0 }];
            let mut dx = dx.map(|dx| dx.chunks_exact_mut(input));
            for (map, grad) in x.chunks_exact(input).zip(grad.chunks_exact(output)) {
                let dmap = dx.as_mut().and_then(Iterator::next);
                self.backward_map(map, &weight, grad, dmap, &mut dweight);
            }
            dweight
        };
        let shares = x.par_chunks(share * input).zip(grad.par_chunks(share * output));
        let mut partials: Vec<Vec<f32>> = if wants.dx {
            shares.zip(dx.par_chunks_mut(share * input)).map(|((x, grad), dx)| run(x, grad, Some(dx))).collect()
        } else {
            shares.map(|(x, grad)| run(x, grad, None)).collect()
        };
        let mut dweight = if partials.is_empty() { Vec::new() } else { partials.remove(0) };
        partials.iter().for_each(|partial| add_assign(&mut dweight, partial));
        (dx, if wants.dweight { self.reordered(&dweight, true) } else { dweight })
    }

    /// Adds one map's share to dW (unless that is empty) and to its dx.
    fn backward_map(&self, map: &[f32], weight: &[f32], grad: &[f32], mut dx: Option<&mut [f32]>, dweight: &mut [f32]) {
        let part = self.part();
        let mut rows = vec![0.0; part * self.row()];
        let weight = Matrix::new(weight, self.outputs, self.row());
        for (index, grad) in grad.chunks(part * self.outputs).enumerate() {
            let count = grad.len() / self.outputs;
            let grad = Matrix::new(grad, count, self.outputs);
            let rows = &mut rows[..count * self.row()];
            if !dweight.is_empty() {
                self.unfold(map, index * part, rows);
                let rows = Matrix::new(rows, count, self.row());
                // SAFETY: `dweight` holds `outputs × row` values and is this task's alone.
                unsafe { product_into(Target::of(dweight, self.row()), Onto::Values, 1.0, grad.t(), rows) };
            }
            if let Some(dx) = &mut dx {
                // SAFETY: `rows` holds `count × row` values and is this task's alone.
                unsafe { product_into(Target::of(rows, self.row()), Onto::Nothing, 1.0, grad, weight) };
                self.fold(rows, index * part, dx);
            }
        }
    }
}

/// Which gradients are asked for.
#[derive(Clone, Copy)]
struct Wants {
    dx: bool,
    dweight: bool,
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let y = self.forward(floats(x, lx)?, floats(w, lw)?);
        let Grid { batch, out_height, out_width, .. } = self.grid;
        Ok((CpuStorage::F32(y), (batch, out_height, out_width, self.outputs).into()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let wants = Wants { dx: x.track_op(), dweight: w.track_op() };
        let (dx, dweight) = self.backward(&Floats::of(x)?, &Floats::of(w)?, &Floats::of(&grad)?, wants);
        let dx = wants.dx.then(|| tensor(dx, x.shape())).transpose()?;
        Ok((dx, wants.dweight.then(|| tensor(dweight, w.shape())).transpose()?))
    }
}
