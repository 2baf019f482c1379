//! Resampling of 8-bit RGB images, equal to Pillow's `Image.resize` byte for byte.
//!
//! Every output pixel is a weighted mean of the input pixels under a filter that is stretched by the reduction factor:
//! `out[x] = Σ w[x,i]·in[i]`, with weights rounded to 22-bit fixed point, along one axis, then along the other, and rounded
//! to 8 bits in between. An axis whose length stays as it is gets no pass. `Filter::Nearest` takes the pixel under the
//! centre instead.
//!
//! Which axis comes first shows in the bytes. Up to version 12 it was always the rows; Pillow 13 starts with the columns where
//! the height shrinks by more than twice as many pixels as the width (python-pillow/Pillow#9549).
//!
//! Reference: Pillow 13, `src/libImaging/Resample.c` and `Geometry.c` (for the nearest pixel).

use std::borrow::Cow;
use std::ops::Range;

use super::config::ImageSize;
use super::filter::Filter;
use crate::ops::simd::vectorised;
use crate::{Error, Result};
use ::image::RgbImage;

/// Weights are integers in units of 2⁻²²: 32 bits less 8 for the pixel and 2 for sums below 0 and above 1.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// One half, in the units of the sums: what makes the final shift round to nearest.
const HALF: i32 = 1 << (PRECISION_BITS - 1);

/// A rectangle of pixels inside an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) top: u32,
    pub(crate) left: u32,
    pub(crate) height: u32,
    pub(crate) width: u32,
}

impl Window {
    pub(crate) fn whole(size: ImageSize) -> Self {
        Self { top: 0, left: 0, height: size.height, width: size.width }
    }
}

/// `image` resized to `size` with `filter`, as `PIL.Image.resize` does it.
///
/// # Shapes
/// (H,W,3) → (`size.height`, `size.width`, 3), 8 bits a channel.
///
/// # Errors
/// If `image` or `size` has no pixels.
pub fn resize(image: &RgbImage, size: ImageSize, filter: Filter) -> Result<RgbImage> {
    if image.width() == 0 || image.height() == 0 {
        return Err(Error::argument("image", "an image without pixels cannot be resized"));
    }
    if size.height == 0 || size.width == 0 {
        return Err(Error::argument("size", format!("{size} has no pixels; give a height and a width of at least 1")));
    }
    resize_window(image, size, filter, Window::whole(size))
}

/// The part `window` of `image` resized to `size`; the rest is never computed.
///
/// `image` and `size` must have pixels, and `window` must lie inside `size`.
pub(crate) fn resize_window(image: &RgbImage, size: ImageSize, filter: Filter, window: Window) -> Result<RgbImage> {
    let horizontal = Axis { input: image.width(), output: size.width, start: window.left, length: window.width };
    let vertical = Axis { input: image.height(), output: size.height, start: window.top, length: window.height };
    let bytes = if filter == Filter::Nearest {
        nearest(image, horizontal, vertical)
    } else {
        let columns = Weights::new(horizontal, filter);
        // Square images that become squares need the weights once.
        let rows =
            if vertical == horizontal { Cow::Borrowed(&columns) } else { Cow::Owned(Weights::new(vertical, filter)) };
        let image = Part {
            bytes: Cow::Borrowed(image.as_raw().as_slice()),
            stride: image.width() as usize * 3,
            top: 0,
            left: 0,
        };
        if columns_first(horizontal, vertical) {
            let low = vertical_pass(&image, &rows, columns.span());
            horizontal_pass(&low, &columns, 0..rows.runs.len()).bytes.into_owned()
        } else {
            let narrow = horizontal_pass(&image, &columns, rows.span());
            vertical_pass(&narrow, &rows, 0..columns.runs.len()).bytes.into_owned()
        }
    };
    RgbImage::from_raw(window.width, window.height, bytes)
        .ok_or_else(|| Error::argument("size", format!("an image of {size} pixels does not fit into memory")))
}

/// One axis of a resize: its length before and after, and which part of the result is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Axis {
    input: u32,
    output: u32,
    start: u32,
    length: u32,
}

impl Axis {
    /// Input pixels an output pixel.
    fn scale(self) -> f64 {
        f64::from(self.input) / f64::from(self.output)
    }

    /// For every wanted output pixel the input pixel under its centre.
    fn nearest(self) -> Vec<usize> {
        let scale = self.scale();
        // Summed up step by step, not multiplied: the rounding errors of the sum decide ties as they do in Pillow.
        let mut position = scale * 0.5;
        let mut indices = Vec::with_capacity(self.length as usize);
        for output in 0..self.start + self.length {
            if output >= self.start {
                indices.push((position as usize).min(self.input as usize - 1));
            }
            position += scale;
        }
        indices
    }
}

/// The weights of one axis: for every output pixel a run of input pixels.
#[derive(Debug, Clone)]
struct Weights {
    /// First input pixel and number of input pixels of each output pixel.
    runs: Vec<(usize, usize)>,
    /// `stride` weights an output pixel.
    weights: Vec<i32>,
    stride: usize,
}

impl Weights {
    fn new(axis: Axis, filter: Filter) -> Self {
        if axis.input == axis.output {
            let runs = (axis.start..axis.start + axis.length).map(|x| (x as usize, 1)).collect::<Vec<_>>();
            return Self { weights: vec![1 << PRECISION_BITS; runs.len()], runs, stride: 1 };
        }
        let scale = axis.scale();
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let stride = support.ceil() as usize * 2 + 1;
        let mut runs = Vec::with_capacity(axis.length as usize);
        let mut weights = vec![0; axis.length as usize * stride];
        let mut exact = Vec::with_capacity(stride);
        for (output, row) in (axis.start..).zip(weights.chunks_exact_mut(stride)) {
            let center = (f64::from(output) + 0.5) * scale;
            let start = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(axis.input as usize);
            exact.clear();
            exact.extend((start..end).map(|x| filter.weight((x as f64 - center + 0.5) * (1.0 / stretch))));
            let total = exact.iter().sum::<f64>();
            for (weight, &exact) in row.iter_mut().zip(&exact) {
                *weight = fixed_point(if total == 0.0 { exact } else { exact / total });
            }
            runs.push((start, end - start));
        }
        Self { runs, weights, stride }
    }

    /// The input pixels that any of the runs reads.
    fn span(&self) -> Range<usize> {
        let start = self.runs.iter().map(|&(start, _)| start).min().unwrap_or(0);
        start..self.runs.iter().map(|&(start, n)| start + n).max().unwrap_or(0)
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.runs.iter().zip(self.weights.chunks_exact(self.stride)).map(|(&(start, n), row)| (start, &row[..n]))
    }

    /// Whether this axis only moves pixels.
    fn is_copy(&self) -> bool {
        self.stride == 1
    }
}

/// Rounded to the nearest multiple of 2⁻²², halves away from zero.
fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1_u32 << PRECISION_BITS);
    (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Whether Pillow 13 goes along the columns first.
fn columns_first(horizontal: Axis, vertical: Axis) -> bool {
    let loss = |axis: Axis| i64::from(axis.input) - i64::from(axis.output);
    loss(vertical) > 0 && loss(vertical) > 2 * loss(horizontal)
}

/// Some rows and columns of an image, and where in it they begin.
struct Part<'a> {
    bytes: Cow<'a, [u8]>,
    /// Bytes a row.
    stride: usize,
    top: usize,
    left: usize,
}

impl Part<'_> {
    /// The bytes from the given pixel of the image on.
    fn starting_at(&self, row: usize, column: usize) -> &[u8] {
        &self.bytes[(row - self.top) * self.stride + (column - self.left) * 3..]
    }
}

/// Resizes `rows` of `part` along the rows. What comes out begins at the wanted columns' first.
fn horizontal_pass(part: &Part, columns: &Weights, rows: Range<usize>) -> Part<'static> {
    let stride = columns.runs.len() * 3;
    let first = columns.span().start;
    let mut bytes = vec![0; rows.len() * stride];
    for (row, out) in rows.clone().zip(bytes.chunks_exact_mut(stride.max(1))) {
        let pixels = part.starting_at(row, first);
        if columns.is_copy() {
            out.copy_from_slice(&pixels[..stride]);
        } else {
            horizontal(pixels, first, columns, out);
        }
    }
    Part { bytes: Cow::Owned(bytes), stride, top: rows.start, left: 0 }
}

/// Resizes `columns` of `part` along the columns. What comes out begins at the wanted rows' first.
fn vertical_pass(part: &Part, rows: &Weights, columns: Range<usize>) -> Part<'static> {
    let stride = columns.len() * 3;
    let mut bytes = vec![0; rows.runs.len() * stride];
    for ((start, weights), out) in rows.iter().zip(bytes.chunks_exact_mut(stride.max(1))) {
        let pixels = part.starting_at(start, columns.start);
        if rows.is_copy() {
            out.copy_from_slice(&pixels[..stride]);
        } else {
            vertical(pixels, part.stride, weights, out);
        }
    }
    Part { bytes: Cow::Owned(bytes), stride, top: 0, left: columns.start }
}

vectorised! {
    /// One row, of which `pixels` begins at column `first`: every output pixel is the weighted sum of its run.
    fn horizontal<const FMA: bool>(pixels: &[u8], first: usize, columns: &Weights, out: &mut [u8]) {
        for ((start, weights), out) in columns.iter().zip(out.chunks_exact_mut(3)) {
            let run = &pixels[(start - first) * 3..];
            // Four bytes of each pixel make a vector; the last belongs to the next pixel, and nobody reads its sum.
            let mut sums = [HALF; 4];
            let last = weights.len() - 1;
            for (pixel, &weight) in run[..last * 3 + 1].windows(4).step_by(3).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (sum, &value) in sums.iter_mut().zip(&run[last * 3..last * 3 + 3]) {
                *sum += i32::from(value) * weights[last];
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = to_u8(sum);
            }
        }
    }
}

vectorised! {
    /// One output row: the weighted sum of rows that lie `stride` bytes apart, a stretch of columns at a time so that the sums
    /// stay in registers.
    fn vertical<const FMA: bool>(rows: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) {
        const LANES: usize = 32;
        let mut stretches = out.chunks_exact_mut(LANES);
        let mut column = 0;
        for out in &mut stretches {
            let mut sums = [HALF; LANES];
            for (row, &weight) in rows.chunks(stride).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(&row[column..column + LANES]) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = to_u8(sum);
            }
            column += LANES;
        }
        for (offset, out) in stretches.into_remainder().iter_mut().enumerate() {
            let column = rows.iter().skip(column + offset).step_by(stride);
            *out = to_u8(column.zip(weights).fold(HALF, |sum, (&value, &weight)| sum + i32::from(value) * weight));
        }
    }
}

fn nearest(image: &RgbImage, horizontal: Axis, vertical: Axis) -> Vec<u8> {
    let columns = horizontal.nearest();
    let stride = image.width() as usize * 3;
    let mut output = Vec::with_capacity(vertical.length as usize * columns.len() * 3);
    for y in vertical.nearest() {
        let row = &image.as_raw()[y * stride..(y + 1) * stride];
        for x in &columns {
            output.extend_from_slice(&row[x * 3..x * 3 + 3]);
        }
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(width: u32, height: u32) -> RgbImage {
        let mut state = 1_u32;
        RgbImage::from_fn(width, height, |_, _| {
            ::image::Rgb([(); 3].map(|()| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            }))
        })
    }

    #[test]
    fn a_window_of_the_result_is_the_same_part_of_the_whole_result() {
        let window = Window { top: 7, left: 3, height: 20, width: 17 };
        for (image, size) in [
            (noise(53, 37), ImageSize { height: 61, width: 24 }),
            (noise(37, 80), ImageSize { height: 31, width: 35 }),
            (noise(37, 31), ImageSize { height: 31, width: 21 }),
        ] {
            for filter in Filter::ALL {
                let whole = resize(&image, size, filter).unwrap();
                let part = resize_window(&image, size, filter, window).unwrap();
                for (x, y, pixel) in part.enumerate_pixels() {
                    assert_eq!(pixel, whole.get_pixel(x + window.left, y + window.top), "{size} {filter:?} at {x},{y}");
                }
            }
        }
    }

    #[test]
    fn an_unchanged_size_gives_the_same_bytes() {
        let image = noise(19, 23);
        for filter in Filter::ALL {
            assert_eq!(resize(&image, ImageSize { height: 23, width: 19 }, filter).unwrap(), image, "{filter:?}");
        }
    }

    #[test]
    fn one_colour_stays_that_colour() {
        let image = RgbImage::from_pixel(31, 12, ::image::Rgb([0, 128, 255]));
        for filter in Filter::ALL {
            let small = resize(&image, ImageSize { height: 5, width: 50 }, filter).unwrap();
            assert!(small.pixels().all(|pixel| pixel.0 == [0, 128, 255]), "{filter:?}");
        }
    }

    #[test]
    fn sizes_without_pixels_are_errors() {
        let none = ImageSize { height: 0, width: 4 };
        assert!(resize(&noise(3, 3), none, Filter::Box).unwrap_err().to_string().starts_with("size: "));
        let some = ImageSize { height: 4, width: 4 };
        assert!(resize(&RgbImage::new(0, 3), some, Filter::Box).unwrap_err().to_string().starts_with("image: "));
    }
}
