//! [`Window`], the square that a convolution slides over a feature map, and the arithmetic of where it lies.

use crate::{Error, Result};
use candle_core::Tensor;

/// A square window: its side, its step and the zeros around the map, the same in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Side k in places.
    pub size: usize,
    /// Places from one window to the next.
    pub stride: usize,
    /// Rows and columns of zeros on every side.
    pub padding: usize,
}

impl Window {
    /// A window of odd `size` whose middle stands on the places `0, stride, 2·stride, …`.
    #[must_use]
    pub fn centred(size: usize, stride: usize) -> Self {
        Self { size, stride, padding: size / 2 }
    }

    /// Windows side by side that neither overlap nor leave gaps.
    #[must_use]
    pub fn tiling(size: usize) -> Self {
        Self { size, stride: size, padding: 0 }
    }

    /// How many windows fit along `length` places; none where the first does not.
    #[must_use]
    pub fn count(&self, length: usize) -> usize {
        match (length + 2 * self.padding).checked_sub(self.size) {
            Some(rest) if self.stride > 0 && self.size > 0 => rest / self.stride + 1,
            _ => 0,
        }
    }

    /// The part of the window number `index` that lies on the map: offsets inside of the window.
    pub(super) fn inside(&self, index: usize, length: usize) -> std::ops::Range<usize> {
        let start = index * self.stride;
        let first = self.padding.saturating_sub(start).min(self.size);
        let last = (length + self.padding).saturating_sub(start).min(self.size);
        first..last.max(first)
    }

    /// The place on the map under `offset` of the window number `index`; `offset` comes from [`Window::inside`].
    pub(super) fn place(&self, index: usize, offset: usize) -> usize {
        index * self.stride + offset - self.padding
    }
}

/// A window on feature maps of known sizes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) batch: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
    pub(super) out_height: usize,
    pub(super) out_width: usize,
    pub(super) window: Window,
}

impl Grid {
    /// Checks that `x` is (B,H,W,C) and that the window fits at least once.
    pub(super) fn new(x: &Tensor, window: Window) -> Result<Self> {
        let &[batch, height, width, channels] = x.dims() else {
            return Err(Error::argument("x", format!("has shape {:?}, expected (B, H, W, C)", x.dims())));
        };
        let (out_height, out_width) = (window.count(height), window.count(width));
        if out_height == 0 || out_width == 0 {
            let Window { size, padding, .. } = window;
            let message =
                format!("a map of {height}×{width} is too small for a window of {size} with padding {padding}");
            return Err(Error::argument("x", message));
        }
        Ok(Self { batch, height, width, channels, out_height, out_width, window })
    }

    /// What a convolution of no maps, or of maps without channels, comes to: zeros with `outputs` channels.
    pub(super) fn zeros(&self, x: &Tensor, outputs: usize) -> Result<Tensor> {
        Ok(Tensor::zeros((self.batch, self.out_height, self.out_width, outputs), x.dtype(), x.device())?)
    }

    /// Values of one input map.
    pub(super) fn input_size(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Places of one output map.
    pub(super) fn positions(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Places under a window.
    pub(super) fn taps(&self) -> usize {
        self.window.size * self.window.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_counted_and_placed_as_in_pytorch() {
        assert_eq!(Window::centred(3, 2).count(224), 112);
        assert_eq!(Window::centred(7, 2).count(5), 3);
        assert_eq!(Window::tiling(2).count(7), 3);
        assert_eq!(Window::tiling(4).count(3), 0);
        let window = Window::centred(3, 1);
        assert_eq!((window.inside(0, 5), window.inside(2, 5), window.inside(4, 5)), (1..3, 0..3, 0..2));
        assert_eq!(window.place(0, 1), 0);
        assert_eq!(window.inside(0, 1), 1..2);
    }
}
