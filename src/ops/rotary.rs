//! Rotary position embedding: every pair (a, b) of a head's columns is turned by an angle that belongs to its token.
//!
//! With tables cos and sin (L,D): `y_a = x_a·cos_a − x_b·sin_a`, `y_b = x_b·cos_b + x_a·sin_b`. Su et al. 2021,
//! <https://arxiv.org/abs/2104.09864>. Backward: `dx_a = dy_a·cos_a + dy_b·sin_b`, `dx_b = dy_b·cos_b − dy_a·sin_a`.

use super::kernel::{Floats, build_rows, floats, is_native, tensor};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp3, D, Layout, Result as CandleResult, Shape, Tensor};
use serde::{Deserialize, Serialize};

/// Which columns of a head are a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RotaryPairs {
    /// Column i and column i + D/2 (`rotate_half` of transformers: ModernBERT).
    Halves,
    /// Columns 2i and 2i + 1 (`rot` of timm: EVA02, PE).
    Interleaved,
}

impl RotaryPairs {
    /// The columns of pair `i` of a head that is `width` wide.
    #[inline(always)]
    fn columns(self, i: usize, width: usize) -> (usize, usize) {
        match self {
            Self::Halves => (i, i + width / 2),
            Self::Interleaved => (2 * i, 2 * i + 1),
        }
    }
}

/// Turns queries or keys by the angles of their positions. The tables are constants: they get no gradient.
///
/// # Shapes
/// x (B,L,E), cos and sin (L,D) → (B,L,E), heads of D columns side by side in E.
///
/// # Errors
/// When the tables are not (L,D) with an even D that divides E, or dtypes or devices differ.
pub fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor, pairs: RotaryPairs) -> Result<Tensor> {
    let &[batch, length, size] = x.dims() else {
        return Err(Error::argument("x", format!("has shape {:?}, expected (B, L, E)", x.dims())));
    };
    let width = cos.dims().last().copied().unwrap_or(0);
    if width == 0 || width % 2 != 0 || size % width != 0 || cos.dims() != [length, width] {
        let message = format!(
            "has shape {:?}, expected ({length}, D) with an even D that divides {size}, as x is {:?}",
            cos.dims(),
            x.dims()
        );
        return Err(Error::argument("cos", message));
    }
    if sin.dims() != cos.dims() {
        return Err(Error::argument("sin", format!("has shape {:?}, cos has {:?}", sin.dims(), cos.dims())));
    }
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let (cos, sin) = (cos.detach(), sin.detach());
    if is_native(&[x, &cos, &sin]) {
        let op = Rotary { pairs, width };
        return Ok(x.contiguous()?.apply_op3(&cos.contiguous()?, &sin.contiguous()?, op)?);
    }
    let heads = x.contiguous()?.reshape((batch, length, size / width, width))?;
    let [cos, sin] = [cos, sin].map(|table| table.unsqueeze(1));
    let turned = heads.broadcast_mul(&cos?)?.add(&quarter_turn(&heads, pairs)?.broadcast_mul(&sin?)?)?;
    Ok(turned.reshape((batch, length, size))?)
}

/// (x_a, x_b) → (−x_b, x_a) for every pair, by candle's operations.
fn quarter_turn(x: &Tensor, pairs: RotaryPairs) -> CandleResult<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    match pairs {
        RotaryPairs::Halves => {
            let [a, b] = [0, half].map(|start| x.narrow(D::Minus1, start, half));
            Tensor::cat(&[b?.neg()?, a?], D::Minus1)
        }
        RotaryPairs::Interleaved => {
            let mut shape = x.dims().to_vec();
            shape.pop();
            shape.extend([half, 2]);
            let split = x.reshape(shape)?;
            let [a, b] = [0, 1].map(|column| split.narrow(D::Minus1, column, 1));
            Tensor::cat(&[b?.neg()?, a?], D::Minus1)?.reshape(x.shape())
        }
    }
}

struct Rotary {
    pairs: RotaryPairs,
    /// Columns of one head.
    width: usize,
}

impl Rotary {
    /// Runs `pair(x_a, x_b, table_a, table_b)` over every pair; a table entry is (cos, sin).
    fn turn(
        &self,
        x: &[f32],
        (cos, sin): (&[f32], &[f32]),
        size: usize,
        pair: impl Fn([f32; 2], [f32; 2], [f32; 2]) -> [f32; 2] + Sync,
    ) -> Vec<f32> {
        let width = self.width;
        let length = cos.len() / width;
        build_rows(x.len() / size, size, |first, y| {
            for (row, (y, x)) in y.chunks_exact_mut(size).zip(x[first * size..].chunks_exact(size)).enumerate() {
                let start = (first + row) % length * width;
                let (cos, sin) = (&cos[start..start + width], &sin[start..start + width]);
                for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    for i in 0..width / 2 {
                        let (a, b) = self.pairs.columns(i, width);
                        [y[a], y[b]] = pair([x[a], x[b]], [cos[a], cos[b]], [sin[a], sin[b]]);
                    }
                }
            }
        })
    }
}

impl CustomOp3 for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        cos: &CpuStorage,
        lc: &Layout,
        sin: &CpuStorage,
        ls: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let size = lx.shape().dims3()?.2;
        let tables = (floats(cos, lc)?, floats(sin, ls)?);
        let y = self
            .turn(floats(x, lx)?, tables, size, |[xa, xb], [ca, cb], [sa, sb]| [xa * ca - xb * sa, xb * cb + xa * sb]);
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (grads, cos, sin) = (Floats::of(&grad)?, Floats::of(cos)?, Floats::of(sin)?);
        let dx = self.turn(&grads, (&cos, &sin), x.dim(2)?, |[ga, gb], [ca, cb], [sa, sb]| {
            [ga * ca + gb * sb, gb * cb - ga * sa]
        });
        Ok((Some(tensor(dx, x.shape())?), None, None))
    }
}
