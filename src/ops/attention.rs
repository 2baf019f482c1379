//! Multi-head scaled dot-product attention: `softmax(Q Kᵀ / √D) V` for each head, heads interleaved in the last dimension.
//!
//! q (B,L,E), k and v (B,S,E), E = H·D: head h owns the columns h·D..(h+1)·D, so nothing is transposed or copied.
//! Vaswani et al. 2017, <https://arxiv.org/abs/1706.03762>. The backward pass computes the probabilities P anew:
//! `dV = Pᵀ dO`, `dP = dO Vᵀ`, `dS = P ∘ (dP − rowsum(P ∘ dP)) / √D`, `dQ = dS K`, `dK = dSᵀ Q`. A bias on the scores that is
//! trained (relative positions) takes the plain composition, which gives it its gradient; a constant one takes the kernel.
#![allow(unsafe_code)]

use super::attention_mask::{AttentionMask, AttentionPattern, KeySpan, Row};
use super::kernel::{Floats, add_assign, is_native, strided_floats, tensor};
use super::product::{Matrix, Onto, PARALLEL_FROM, Target, product_into};
use super::simd::{exp, maximum, sum, sum2, vectorised};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result as CandleResult, Shape, Tensor};
use rayon::prelude::*;

/// Multi-head attention, scaled by 1/√D with D = E / `num_heads`. A query that sees no key gets zeros.
///
/// # Shapes
/// q (B,L,E), k (B,S,E), v (B,S,E) → (B,L,E), S keys (usually S = L).
///
/// # Errors
/// When the shapes do not fit together, `num_heads` does not divide E, or the mask is for other sizes.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, num_heads: usize, mask: &AttentionMask) -> Result<Tensor> {
    let sizes = Sizes::check(q, k, v, num_heads)?;
    mask.check(sizes.batch, num_heads, sizes.queries, sizes.keys)?;
    if q.elem_count() == 0 || sizes.keys == 0 {
        return Ok(q.zeros_like()?);
    }
    if !is_native(&[q, k, v]) || mask.bias().is_some_and(|bias| bias.track_op() || !is_native(&[bias])) {
        return plain(q, k, v, sizes, mask);
    }
    let rows = mask.rows(sizes.batch, sizes.queries, sizes.keys);
    let bias = mask.bias().map(Tensor::contiguous).transpose()?;
    let op = Attention { sizes, rows, pattern: mask.pattern(), bias };
    Ok(dense_rows(q)?.apply_op3(&dense_rows(k)?, &dense_rows(v)?, op)?)
}

/// The kernel reads any strides as long as the values of a token lie next to each other.
fn dense_rows(x: &Tensor) -> CandleResult<Tensor> {
    if x.stride()[2] == 1 { Ok(x.clone()) } else { x.contiguous() }
}

/// The same by candle's operations, text by text.
fn plain_texts(q: &Tensor, k: &Tensor, v: &Tensor, sizes: Sizes, mask: &AttentionMask) -> Result<Tensor> {
    let text = |row: Row| {
        let of = |x: &Tensor, first: usize, length: usize| x.narrow(1, first, length)?.contiguous();
        let (q, k, v) =
            (of(q, row.first_query, row.queries)?, of(k, row.first_key, row.keys)?, of(v, row.first_key, row.keys)?);
        let mut alone = mask.by_position();
        if let Some(bias) = mask.bias() {
            alone = alone.with_bias(bias.narrow(1, 0, row.queries)?.narrow(2, 0, row.keys)?)?;
        }
        plain(&q, &k, &v, Sizes { queries: row.queries, keys: row.keys, ..sizes }, &alone)
    };
    let texts = mask.rows(1, sizes.queries, sizes.keys).into_iter().map(text).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&texts, 1)?)
}

/// The same by candle's operations; half precision takes its softmax in `f32`.
fn plain(q: &Tensor, k: &Tensor, v: &Tensor, sizes: Sizes, mask: &AttentionMask) -> Result<Tensor> {
    if mask.texts().is_some() {
        return plain_texts(q, k, v, sizes, mask);
    }
    let Sizes { batch, queries, keys, heads, width } = sizes;
    let split = |x: &Tensor, length: usize| x.reshape((batch, length, heads, width))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(q, queries)?, split(k, keys)?, split(v, keys)?);
    let dtype = q.dtype();
    let mut scores = (q.matmul(&k.t()?)? * (width as f64).sqrt().recip())?;
    if dtype != DType::F64 {
        scores = scores.to_dtype(DType::F32)?;
    }
    if let Some(bias) = mask.bias() {
        scores = scores.broadcast_add(&bias.to_dtype(scores.dtype())?)?;
    }
    let unmasked = mask.pattern() == AttentionPattern::Full && mask.key_padding().is_none();
    let probabilities = if unmasked {
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?
    } else {
        let (seen, blind) = dense_mask(sizes, mask);
        let seen = Tensor::from_vec(seen, (batch, 1, queries, keys), scores.device())?.to_dtype(scores.dtype())?;
        let blind = Tensor::from_vec(blind, (batch, 1, queries, 1), scores.device())?.to_dtype(scores.dtype())?;
        // Hidden scores fall to −1e9 before the maximum is taken, and their weights are exactly zero.
        let hidden = ((&seen - 1.0)? * 1e9)?;
        let scores = scores.broadcast_mul(&seen)?.broadcast_add(&hidden)?;
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?.broadcast_mul(&seen)?;
        weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?.broadcast_add(&blind)?)?
    };
    let out = probabilities.to_dtype(dtype)?.matmul(&v)?;
    Ok(out.transpose(1, 2)?.contiguous()?.reshape((batch, queries, heads * width))?)
}

/// (B,L,S) with 1 where a query sees a key, and (B,L) with 1 where it sees none.
fn dense_mask(sizes: Sizes, mask: &AttentionMask) -> (Vec<u8>, Vec<u8>) {
    let Sizes { batch, queries, keys, .. } = sizes;
    let mut seen = Vec::with_capacity(batch * queries * keys);
    let mut blind = Vec::with_capacity(batch * queries);
    for row in 0..batch * queries {
        let (b, query) = (row / queries, row % queries);
        let start = seen.len();
        seen.extend((0..keys).map(|key| {
            let by_position = mask.pattern().keys_of(query, keys).contains(&key);
            u8::from(by_position && mask.key_padding().is_none_or(|keep| keep[b * keys + key]))
        }));
        blind.push(u8::from(seen[start..].iter().all(|&seen| seen == 0)));
    }
    (seen, blind)
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    /// Columns of one head.
    width: usize,
}

impl Sizes {
    fn check(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Self> {
        let &[batch, queries, size] = q.dims() else {
            return Err(Error::argument("q", format!("has shape {:?}, expected (B, L, E)", q.dims())));
        };
        for (name, x) in [("k", k), ("v", v)] {
            if x.rank() != 3 || (x.dims()[0], x.dims()[2]) != (batch, size) || x.dims() != k.dims() {
                return Err(Error::argument(
                    name,
                    format!(
                        "has shape {:?}, expected ({batch}, S, {size}) for q {:?} and k {:?}",
                        x.dims(),
                        q.dims(),
                        k.dims()
                    ),
                ));
            }
        }
        if heads == 0 || size % heads != 0 {
            return Err(Error::argument("num_heads", format!("{heads} heads do not divide the hidden size {size}")));
        }
        Ok(Self { batch, queries, keys: k.dims()[1], heads, width: size / heads })
    }
}

/// One of q, k, v in memory: the values of a token lie next to each other.
#[derive(Clone, Copy)]
struct View<'a> {
    data: &'a [f32],
    batch_stride: usize,
    row_stride: usize,
}

impl<'a> View<'a> {
    fn new(data: &'a [f32], layout: &Layout) -> Self {
        Self { data, batch_stride: layout.stride()[0], row_stride: layout.stride()[1] }
    }

    /// `rows` tokens of one head, from the `first` on.
    fn head(self, task: Task, first: usize, rows: usize) -> Matrix<'a> {
        let start = task.row.batch * self.batch_stride + first * self.row_stride + task.head * task.width;
        Matrix::strided(&self.data[start..], rows, task.width, self.row_stride, 1)
    }
}

/// One head of one row of the batch, or of one text.
#[derive(Clone, Copy)]
struct Task<'a> {
    row: &'a Row,
    head: usize,
    width: usize,
}

impl Task<'_> {
    /// The queries of this head, of `x` (B,L,E).
    fn queries<'a>(&self, x: View<'a>) -> Matrix<'a> {
        x.head(*self, self.row.first_query, self.row.queries)
    }

    /// The keys of this head that matter, of `x` (B,S,E).
    fn keys<'a>(&self, x: View<'a>) -> Matrix<'a> {
        x.head(*self, self.row.first_key, self.row.span.end)
    }
}

/// Results of L tokens a row of the batch, written by many tasks at once.
struct Results {
    values: Vec<f32>,
    length: usize,
    size: usize,
}

impl Results {
    fn new(batch: usize, length: usize, size: usize) -> Self {
        Self { values: Vec::with_capacity(batch * length * size), length, size }
    }

    fn target(&mut self) -> Target {
        Target::new(self.values.spare_capacity_mut(), self.size)
    }

    /// # Safety
    /// Every value has been written.
    unsafe fn finish(mut self, batch: usize) -> Vec<f32> {
        // SAFETY: the capacity is there, the values are promised by the caller.
        unsafe { self.values.set_len(batch * self.length * self.size) };
        self.values
    }
}

struct Attention {
    sizes: Sizes,
    rows: Vec<Row>,
    pattern: AttentionPattern,
    /// Added to the scaled scores, (H,L,S); contiguous, and nothing trains it.
    bias: Option<Tensor>,
}

/// The bias of all heads, (H,L,S).
#[derive(Clone, Copy)]
struct Bias<'a> {
    values: &'a [f32],
    queries: usize,
    keys: usize,
}

impl Attention {
    /// Calls `run(task, scratch)` for every head of every row, on all cores.
    fn for_each_head(&self, scratch: usize, run: impl Fn(Task, &mut [f32]) + Sync) {
        let Sizes { heads, width, .. } = self.sizes;
        let largest = self.rows.iter().map(|row| row.queries * row.keys).max().unwrap_or(0);
        let work = |memory: &mut Vec<f32>, index: usize| {
            run(Task { row: &self.rows[index / heads], head: index % heads, width }, memory);
        };
        let tasks = self.rows.len() * heads;
        if tasks * largest * width < PARALLEL_FROM {
            let mut memory = vec![0.0; scratch * largest];
            return (0..tasks).for_each(|index| work(&mut memory, index));
        }
        (0..tasks).into_par_iter().for_each_init(|| vec![0.0; scratch * largest], work);
    }

    /// The values of the bias.
    fn bias_values(&self) -> CandleResult<Option<Floats<'_>>> {
        self.bias.as_ref().map(Floats::of).transpose()
    }

    fn bias<'a>(&self, values: Option<&'a Floats<'_>>) -> Option<Bias<'a>> {
        let dims = self.bias.as_ref()?.dims();
        Some(Bias { values: values?, queries: dims[1], keys: dims[2] })
    }

    /// The probabilities of one head, (queries, span.end), into scratch memory.
    fn probabilities(&self, task: Task, q: Matrix, k: Matrix, bias: Option<Bias<'_>>, p: &mut [f32]) {
        let (span, scale) = (&task.row.span, (task.width as f32).sqrt().recip());
        // SAFETY: `p` holds queries · span.end initialised values and is this task's alone.
        unsafe { product_into(Target::of(p, span.end), Onto::Nothing, scale, q, k.t()) };
        if let Some(Bias { values, queries, keys }) = bias {
            let bias = &values[task.head * queries * keys..][..queries * keys];
            for (row, bias) in p.chunks_exact_mut(span.end).zip(bias.chunks_exact(keys)) {
                add_assign(row, &bias[..span.end]);
            }
        }
        if !span.holes.is_empty() {
            for row in p.chunks_exact_mut(span.end) {
                span.holes.iter().for_each(|&key| row[key] = f32::NEG_INFINITY);
            }
        }
        softmax_rows(p, span, self.pattern);
    }
}

vectorised! {
    fn softmax_rows<const FMA: bool>(scores: &mut [f32], span: &KeySpan, pattern: AttentionPattern) {
        for (query, row) in scores.chunks_exact_mut(span.end).enumerate() {
            let keys = pattern.keys_of(query, span.end);
            let holes = span.holes_in(&keys);
            row[..keys.start].fill(0.0);
            row[keys.end..].fill(0.0);
            let start = keys.start;
            let seen = &mut row[keys];
            if holes.len() == seen.len() {
                seen.fill(0.0);
                continue;
            }
            let largest = maximum(seen);
            for score in seen.iter_mut() {
                *score = exp::<FMA>(*score - largest);
            }
            for &key in holes {
                seen[key - start] = 0.0;
            }
            let scale = sum(seen, |v| v).recip();
            for weight in seen {
                *weight *= scale;
            }
        }
    }
}

vectorised! {
    /// The gradient of the scores, in place of the gradient of the probabilities.
    fn softmax_backward_rows<const FMA: bool>(p: &[f32], dp: &mut [f32], width: usize, scale: f32) {
        for (p, dp) in p.chunks_exact(width).zip(dp.chunks_exact_mut(width)) {
            let inner = sum2(p, dp, |p, dp| p * dp);
            for (dp, &p) in dp.iter_mut().zip(p) {
                *dp = p * (*dp - inner) * scale;
            }
        }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let Sizes { batch, queries: length, heads, width, .. } = self.sizes;
        let q = View::new(strided_floats(q, lq)?, lq);
        let k = View::new(strided_floats(k, lk)?, lk);
        let v = View::new(strided_floats(v, lv)?, lv);
        let bias = self.bias_values()?;
        let bias = self.bias(bias.as_ref());
        let mut out = Results::new(batch, length, heads * width);
        let target = out.target();
        self.for_each_head(1, |task, memory| {
            let &Row { batch, first_query, queries, ref span, .. } = task.row;
            // SAFETY: each task writes the columns of its own head in the queries of its own row, all inside `out`.
            unsafe {
                let out = target.at(batch * length + first_query, task.head * width);
                if span.end == 0 {
                    (0..queries).for_each(|row| out.zero_row(row, width));
                    return;
                }
                let p = &mut memory[..queries * span.end];
                self.probabilities(task, task.queries(q), task.keys(k), bias, p);
                product_into(out, Onto::Nothing, 1.0, Matrix::new(p, queries, span.end), task.keys(v));
            }
        });
        // SAFETY: the tasks covered every head of every row.
        let values = unsafe { out.finish(batch) };
        Ok((CpuStorage::F32(values), lq.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Sizes { batch, queries: length, keys: key_length, heads, width } = self.sizes;
        let grad = dense_rows(grad)?;
        let values = [Floats::strided(q)?, Floats::strided(k)?, Floats::strided(v)?, Floats::strided(&grad)?];
        let [qs, ks, vs, grads] = [(q, 0), (k, 1), (v, 2), (&grad, 3)].map(|(t, i)| View::new(&values[i], t.layout()));
        let bias = self.bias_values()?;
        let bias = self.bias(bias.as_ref());
        let mut results = [length, key_length, key_length].map(|length| Results::new(batch, length, heads * width));
        let [dq, dk, dv] = results.each_mut().map(Results::target);
        let scale = (width as f32).sqrt().recip();
        self.for_each_head(2, |task, memory| {
            let &Row { batch, first_query, queries, first_key, keys, ref span } = task.row;
            let end = span.end;
            let (p, dp) = memory.split_at_mut(memory.len() / 2);
            let (p, dp) = (&mut p[..queries * end], &mut dp[..queries * end]);
            let (q, k, v, grad) = (task.queries(qs), task.keys(ks), task.keys(vs), task.queries(grads));
            // SAFETY: each task writes the columns of its own head in the queries and keys of its own row, all inside the
            // results; the scratch memory is its own and initialised.
            unsafe {
                let dq = dq.at(batch * length + first_query, task.head * width);
                let [dk, dv] = [dk, dv].map(|target| target.at(batch * key_length + first_key, task.head * width));
                (end..keys).for_each(|row| [dk, dv].iter().for_each(|target| target.zero_row(row, width)));
                if end == 0 {
                    (0..queries).for_each(|row| dq.zero_row(row, width));
                    return;
                }
                self.probabilities(task, q, k, bias, p);
                product_into(dv, Onto::Nothing, 1.0, Matrix::new(p, queries, end).t(), grad);
                product_into(Target::of(dp, end), Onto::Nothing, 1.0, grad, v.t());
                softmax_backward_rows(p, dp, end, scale);
                let ds = Matrix::new(dp, queries, end);
                product_into(dq, Onto::Nothing, 1.0, ds, k);
                product_into(dk, Onto::Nothing, 1.0, ds.t(), q);
            }
        });
        // SAFETY: the tasks covered every head of every row.
        let [dq, dk, dv] = results.map(|result| unsafe { result.finish(batch) });
        let give = |x: &Tensor, values: Vec<f32>| x.track_op().then(|| tensor(values, x.shape())).transpose();
        Ok((give(q, dq)?, give(k, dk)?, give(v, dv)?))
    }
}
