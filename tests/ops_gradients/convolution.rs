//! Convolutions and averages of feature maps.

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use diptych::ops::{self, Window};

use super::{check, operand};

/// A convolution as a sum of products, one for each place under the window. `weight` (O,C,k,k), or (m·C,1,k,k) depthwise.
fn plain_convolution(x: &Tensor, weight: &Tensor, window: Window, depthwise: bool) -> CandleResult<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let filters = weight.dim(0)?;
    let (rows, columns) = (window.count(height), window.count(width));
    let padded =
        x.pad_with_zeros(1, window.padding, window.padding)?.pad_with_zeros(2, window.padding, window.padding)?;
    let places = |count: usize, offset: usize| {
        let places = (0..count).map(|i| (i * window.stride + offset) as u32).collect::<Vec<_>>();
        Tensor::from_vec(places, count, x.device())
    };
    let mut sum = Tensor::zeros((batch, rows, columns, filters), x.dtype(), x.device())?;
    for i in 0..window.size {
        for j in 0..window.size {
            let under = padded.index_select(&places(rows, i)?, 1)?.index_select(&places(columns, j)?, 2)?;
            let weight = weight.narrow(2, i, 1)?.narrow(3, j, 1)?.contiguous()?.reshape((filters, ()))?;
            let part = if depthwise {
                let times = filters / channels;
                let shape = (batch, rows, columns, channels, times);
                let repeated = under.unsqueeze(4)?.broadcast_as(shape)?.contiguous()?;
                repeated.reshape((batch, rows, columns, filters))?.broadcast_mul(&weight.flatten_all()?)?
            } else {
                let product = under.reshape(((), channels))?.matmul(&weight.t()?)?;
                product.reshape((batch, rows, columns, filters))?
            };
            sum = (sum + part)?;
        }
    }
    Ok(sum)
}

#[test]
fn convolutions_agree_with_their_definition() {
    let windows =
        [Window::centred(3, 1), Window::centred(3, 2), Window::tiling(2), Window::centred(1, 2), Window::centred(7, 2)];
    for window in windows {
        for (batch, height, width, channels, filters) in [(2, 5, 4, 3, 5), (1, 7, 7, 1, 1), (3, 2, 9, 6, 2)] {
            let name = format!("conv2d {window:?} on {batch}x{height}x{width}x{channels}");
            let size = window.size;
            let x = operand(1, &[batch, height, width, channels]);
            check(
                &name,
                &[x.clone(), operand(2, &[filters, channels, size, size])],
                |x| ops::conv2d(&x[0], &x[1], window),
                |x| plain_convolution(&x[0], &x[1], window, false),
            );
            for times in [1, 2] {
                check(
                    &format!("depthwise {name} times {times}"),
                    &[x.clone(), operand(2, &[channels * times, 1, size, size])],
                    |x| ops::depthwise_conv2d(&x[0], &x[1], window),
                    |x| plain_convolution(&x[0], &x[1], window, true),
                );
            }
        }
    }
}

#[test]
fn convolutions_of_several_parts_agree_with_their_definition() {
    // More positions than one product takes; channels beyond a block; a weight wide enough to be summed by columns.
    let window = Window::centred(3, 1);
    let operands = [operand(1, &[2, 14, 15, 40]), operand(2, &[33, 40, 3, 3])];
    let reference = |x: &[Tensor], depthwise| plain_convolution(&x[0], &x[1], window, depthwise);
    check("conv2d", &operands, |x| ops::conv2d(&x[0], &x[1], window), |x| reference(x, false));
    let operands = [operand(1, &[2, 4, 5, 230]), operand(2, &[230, 1, 3, 3])];
    check("depthwise", &operands, |x| ops::depthwise_conv2d(&x[0], &x[1], window), |x| reference(x, true));
}

#[test]
fn no_maps_give_no_maps() {
    for dtype in [DType::F32, DType::F64] {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
        let (x, window) = (zeros(&[0, 5, 4, 3]), Window::centred(3, 2));
        assert_eq!(ops::conv2d(&x, &zeros(&[7, 3, 3, 3]), window).unwrap().dims(), [0, 3, 2, 7]);
        assert_eq!(ops::depthwise_conv2d(&x, &zeros(&[6, 1, 3, 3]), window).unwrap().dims(), [0, 3, 2, 6]);
        assert!(ops::conv2d(&x, &zeros(&[7, 2, 3, 3]), window).is_err());
        assert!(ops::depthwise_conv2d(&x, &zeros(&[7, 1, 3, 3]), window).is_err());
        assert!(ops::conv2d(&x.narrow(1, 0, 1).unwrap(), &zeros(&[7, 3, 2, 2]), Window::tiling(2)).is_err());
    }
}

#[test]
fn an_average_leaves_out_what_fills_no_square() {
    let x = operand(1, &[2, 5, 4, 3]);
    let mean = |x: &[Tensor]| {
        let squares = x[0].narrow(1, 0, 4)?.contiguous()?.reshape(&[2, 2, 2, 2, 2, 3])?;
        squares.sum(4)?.sum(2)? * 0.25
    };
    check("average_pool2d", &[x], |x| ops::average_pool2d(&x[0], 2), mean);
}
