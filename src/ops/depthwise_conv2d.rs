//! Depthwise convolution of feature maps with the channels last: every channel has a filter of its own.
//!
//! x (B,H,W,C), weight (C,1,k,k) as PyTorch stores it: `y[p, c] = Σ over offsets (i,j) of x[p·stride + (i,j) − padding, c] ·
//! weight[c, 0, i, j]`, zeros outside of the map. With O = m·C filters, channel c is read by the filters c·m..(c+1)·m.
//! The kernels go over channels innermost, which lie next to each other.

use super::conv2d::plain;
use super::kernel::{Floats, add_product, build_rows, floats, is_native, reduce_rows, tensor};
use super::simd::{mul_add, vectorised};
use super::window::{Grid, Window};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp2, Layout, Result as CandleResult, Shape, Tensor};
use std::ops::Range;

/// The convolution of every channel with its own filters, without a bias.
///
/// # Shapes
/// x (B,H,W,C), weight (m·C,1,k,k), window of size k → (B,H',W',m·C).
///
/// # Errors
/// When the shapes do not fit together, the map is smaller than the window, or the dtypes or devices differ.
pub fn depthwise_conv2d(x: &Tensor, weight: &Tensor, window: Window) -> Result<Tensor> {
    let grid = Grid::new(x, window)?;
    let channels = grid.channels;
    let filters = match *weight.dims() {
        [filters, 1, height, width]
            if (height, width) == (window.size, window.size) && channels > 0 && filters % channels == 0 =>
        {
            filters
        }
        _ => {
            let message = format!(
                "has shape {:?}, expected (a multiple of {channels}, 1, {}, {}) for x {:?}",
                weight.dims(),
                window.size,
                window.size,
                x.dims()
            );
            return Err(Error::argument("weight", message));
        }
    };
    if x.elem_count() == 0 || filters == 0 {
        return grid.zeros(x, filters);
    }
    if !is_native(&[x, weight]) {
        return plain(x, weight, window, channels);
    }
    let x = if filters == channels { x.contiguous()? } else { repeat_channels(x, filters / channels)? };
    let grid = Grid { channels: filters, ..grid };
    Ok(x.apply_op2(&weight.contiguous()?, DepthwiseConv2d { grid })?)
}

/// The mean of every `size`×`size` square; rows and columns that fill no square are left out.
///
/// # Shapes
/// (B,H,W,C) → (B,⌊H/size⌋,⌊W/size⌋,C).
///
/// # Errors
/// When the map is smaller than a square.
pub fn average_pool2d(x: &Tensor, size: usize) -> Result<Tensor> {
    let grid = Grid::new(x, Window::tiling(size))?;
    let shape = (grid.channels, 1, size, size);
    let weight = Tensor::full(1.0 / (size * size) as f32, shape, x.device())?.to_dtype(x.dtype())?;
    depthwise_conv2d(x, &weight, Window::tiling(size))
}

/// Every channel `times` times, one after the other.
fn repeat_channels(x: &Tensor, times: usize) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let repeated = x.unsqueeze(4)?.broadcast_as((batch, height, width, channels, times))?.contiguous()?;
    Ok(repeated.reshape((batch, height, width, channels * times))?)
}

struct DepthwiseConv2d {
    grid: Grid,
}

/// Channels whose sums stay in registers.
const BLOCK: usize = 32;

/// The sum over `taps` of `a[tap.0..] · b[tap.1..]`, channel by channel, into `out`.
#[inline(always)]
fn sum_taps<const FMA: bool>(taps: &[(usize, usize)], a: &[f32], b: &[f32], out: &mut [f32]) {
    let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
    let done = blocks.len() * BLOCK;
    for (index, block) in blocks.iter_mut().enumerate() {
        let first = index * BLOCK;
        let mut sums = [0.0f32; BLOCK];
        for &(at, bt) in taps {
            let a = &a[at + first..at + first + BLOCK];
            let b = &b[bt + first..bt + first + BLOCK];
            for i in 0..BLOCK {
                sums[i] = mul_add::<FMA>(a[i], b[i], sums[i]);
            }
        }
        *block = sums;
    }
    if !rest.is_empty() {
        rest.fill(0.0);
        for &(at, bt) in taps {
            let (a, b) = (&a[at + done..], &b[bt + done..]);
            for (value, (&a, &b)) in rest.iter_mut().zip(a.iter().zip(b)) {
                *value = mul_add::<FMA>(a, b, *value);
            }
        }
    }
}

vectorised! {
    /// Rows `first..` of the output (all maps counted through).
    fn forward_rows<const FMA: bool>(grid: &Grid, x: &[f32], weight: &[f32], first: usize, y: &mut [f32]) {
        let Grid { height, width, channels, out_height, out_width, window, .. } = *grid;
        let mut taps = Vec::with_capacity(grid.taps());
        for (row, y) in (first..).zip(y.chunks_exact_mut(out_width * channels)) {
            let map = &x[row / out_height * grid.input_size()..][..grid.input_size()];
            let row = row % out_height;
            for (column, y) in y.chunks_exact_mut(channels).enumerate() {
                taps.clear();
                for i in window.inside(row, height) {
                    for j in window.inside(column, width) {
                        let place = window.place(row, i) * width + window.place(column, j);
                        taps.push((place * channels, (i * window.size + j) * channels));
                    }
                }
                sum_taps::<FMA>(&taps, map, weight, y);
            }
        }
    }
}

vectorised! {
    /// Rows `first..` of dx (all maps counted through): every place gathers from the windows that it lies under.
    fn backward_rows<const FMA: bool>(grid: &Grid, grad: &[f32], weight: &[f32], first: usize, dx: &mut [f32]) {
        let Grid { height, width, channels, out_height, out_width, window, .. } = *grid;
        let size = out_height * out_width * channels;
        let mut taps = Vec::with_capacity(grid.taps());
        for (row, dx) in (first..).zip(dx.chunks_exact_mut(width * channels)) {
            let map = &grad[row / height * size..][..size];
            let row = row % height;
            for (column, dx) in dx.chunks_exact_mut(channels).enumerate() {
                taps.clear();
                for i in 0..window.size {
                    let Some(from_row) = reader(window, row, i, out_height) else { continue };
                    for j in 0..window.size {
                        let Some(from_column) = reader(window, column, j, out_width) else { continue };
                        let place = from_row * out_width + from_column;
                        taps.push((place * channels, (i * window.size + j) * channels));
                    }
                }
                sum_taps::<FMA>(&taps, map, weight, dx);
            }
        }
    }
}

/// The window that reads `place` at `offset`, if there is one.
#[inline(always)]
fn reader(window: Window, place: usize, offset: usize, count: usize) -> Option<usize> {
    let start = (place + window.padding).checked_sub(offset)?;
    (start % window.stride == 0 && start / window.stride < count).then_some(start / window.stride)
}

impl DepthwiseConv2d {
    /// From (C,k·k) to (k·k,C), or back.
    fn transposed(from: &[f32], columns: usize) -> Vec<f32> {
        let rows = from.len() / columns.max(1);
        (0..from.len()).map(|i| from[i % rows * columns + i / rows]).collect()
    }

    /// dW as (k·k,C).
    fn weight_gradient(&self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        let grid = self.grid;
        let rows = grid.batch * grid.out_height;
        reduce_rows(rows, grid.taps() * grid.channels, |rows, columns, sums| {
            for row in rows {
                self.add_row_gradient(x, grad, row, &columns, sums);
            }
        })
    }

    /// Adds what one row of the output gives to the part `part` of dW (k·k,C).
    fn add_row_gradient(&self, x: &[f32], grad: &[f32], row: usize, part: &Range<usize>, sums: &mut [f32]) {
        let Grid { height, width, channels, out_height, out_width, window, .. } = self.grid;
        let map = &x[row / out_height * self.grid.input_size()..][..self.grid.input_size()];
        let grad = &grad[row * out_width * channels..][..out_width * channels];
        let row = row % out_height;
        let rows = window.inside(row, height);
        for tap in part.start / channels..part.end.div_ceil(channels) {
            let (i, j) = (tap / window.size, tap % window.size);
            if !rows.contains(&i) {
                continue;
            }
            // The channels of this tap that belong to the part.
            let from = part.start.max(tap * channels) - tap * channels;
            let to = part.end.min((tap + 1) * channels) - tap * channels;
            let start = tap * channels + from - part.start;
            let sums = &mut sums[start..start + to - from];
            for (column, grad) in grad.chunks_exact(channels).enumerate() {
                if window.inside(column, width).contains(&j) {
                    let place = (window.place(row, i) * width + window.place(column, j)) * channels;
                    add_product(sums, &grad[from..to], &map[place + from..place + to]);
                }
            }
        }
    }
}

impl CustomOp2 for DepthwiseConv2d {
    fn name(&self) -> &'static str {
        "depthwise_conv2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (x, grid) = (floats(x, lx)?, self.grid);
        let weight = Self::transposed(floats(w, lw)?, grid.taps());
        let Grid { batch, channels, out_height, out_width, .. } = grid;
        let y = build_rows(batch * out_height, out_width * channels, |first, y| {
            forward_rows(&grid, x, &weight, first, y);
        });
        Ok((CpuStorage::F32(y), (batch, out_height, out_width, channels).into()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let (grad, grid) = (grad.contiguous()?, self.grid);
        let grads = Floats::of(&grad)?;
        let dx = x.track_op().then(|| {
            let weight = Self::transposed(&Floats::of(w)?, grid.taps());
            let dx = build_rows(grid.batch * grid.height, grid.width * grid.channels, |first, dx| {
                backward_rows(&grid, &grads, &weight, first, dx);
            });
            tensor(dx, x.shape())
        });
        let dweight = w.track_op().then(|| {
            let gradient = self.weight_gradient(&Floats::of(x)?, &grads);
            tensor(Self::transposed(&gradient, grid.channels), w.shape())
        });
        Ok((dx.transpose()?, dweight.transpose()?))
    }
}
