//! Recomputation instead of storage (Chen et al. 2016, arXiv 1604.06174): a part of the forward pass keeps its input alone and
//! runs once more when the backward pass comes to it.
//!
//! candle's backward pass gives an operation's gradients to its arguments, of which there are three at most; a block of a tower
//! has sixteen parameters and more. So the operation has two arguments, its input and the end of a chain of links, one
//! for each variable that the part reads:
//!
//! ```text
//! v₁ ─▶ link₁ ─▶ link₂ ─▶ … ─▶ part(x, linkₙ) ─▶ y
//!        v₂ ─────▲
//! ```
//! The part's backward pass works out all gradients and leaves them with the links, which candle visits afterwards. A caller sees
//! nothing of it: `loss.backward()` has the same gradients as without, bit for bit but for variables that several parts read, whose sums
//! have another order.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, DType, Layout, MetalStorage, Result as CandleResult, Shape, Storage, Tensor,
    Var, bail,
};

use crate::Result;
use crate::ops::is_tracked;

/// A part of the forward pass. It must give the same every time, and must not depend on `x` but through its argument.
type Part = Arc<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

/// `part(x)`, whose intermediate results are forgotten and worked out again in the backward pass.
///
/// # Errors
/// What `part` fails with.
pub(crate) fn recompute(
    x: &Tensor,
    part: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let part: Part = Arc::new(part);
    // Cut off from what comes before, the graph leads to the part's own variables.
    let y = part(&x.detach())?;
    let variables: Vec<Var> = y
        .sorted_nodes()
        .into_iter()
        .filter(|node| node.is_variable())
        .map(Var::from_tensor)
        .collect::<CandleResult<_>>()?;
    let y = y.detach();
    if variables.is_empty() && !is_tracked(x) {
        return Ok(y);
    }
    let left: Left = Arc::new(Mutex::new(vec![None; variables.len()]));
    let mut chain = Tensor::zeros((), DType::F32, x.device())?;
    for (place, variable) in variables.iter().enumerate() {
        let result = Ready::new(&chain)?;
        chain = variable.apply_op2(&chain, Link { result, left: left.clone(), place })?;
    }
    Ok(x.apply_op2(&chain, Recomputed { result: Ready::new(&y)?, part, variables, left })?)
}

/// The gradients that a part leaves with its links.
type Left = Arc<Mutex<Vec<Option<Tensor>>>>;

fn lock(left: &Left) -> std::sync::MutexGuard<'_, Vec<Option<Tensor>>> {
    left.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The result of an operation, known before the operation is applied; whoever applies it takes it away.
struct Ready(Mutex<Option<Tensor>>);

impl Ready {
    fn new(result: &Tensor) -> Result<Self> {
        // A storage of its own: what is handed out is the whole storage.
        Ok(Self(Mutex::new(Some(result.force_contiguous()?))))
    }

    fn take(&self) -> CandleResult<Tensor> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(result) => Ok(result),
            None => bail!("a recomputed part is applied once"),
        }
    }
}

/// Hands a variable the gradient that was left for it.
struct Link {
    result: Ready,
    left: Left,
    place: usize,
}

/// The part as an operation.
struct Recomputed {
    result: Ready,
    part: Part,
    variables: Vec<Var>,
    left: Left,
}

/// The forward passes of both operations: they hand out what is ready.
macro_rules! hand_out {
    () => {
        fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> CandleResult<(CpuStorage, Shape)> {
            let y = self.result.take()?;
            let (storage, layout) = y.storage_and_layout();
            match &*storage {
                Storage::Cpu(storage) => Ok((storage.try_clone(layout)?, y.shape().clone())),
                _ => bail!("a recomputed part gave a tensor of another device"),
            }
        }

        fn cuda_fwd(
            &self,
            _: &CudaStorage,
            _: &Layout,
            _: &CudaStorage,
            _: &Layout,
        ) -> CandleResult<(CudaStorage, Shape)> {
            let y = self.result.take()?;
            let (storage, layout) = y.storage_and_layout();
            match &*storage {
                Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, y.shape().clone())),
                _ => bail!("a recomputed part gave a tensor of another device"),
            }
        }

        fn metal_fwd(
            &self,
            _: &MetalStorage,
            _: &Layout,
            _: &MetalStorage,
            _: &Layout,
        ) -> CandleResult<(MetalStorage, Shape)> {
            let y = self.result.take()?;
            let (storage, layout) = y.storage_and_layout();
            match &*storage {
                Storage::Metal(storage) => Ok((storage.try_clone(layout)?, y.shape().clone())),
                _ => bail!("a recomputed part gave a tensor of another device"),
            }
        }
    };
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        "recompute_link"
    }

    hand_out!();

    fn bwd(
        &self,
        _: &Tensor,
        before: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let own = lock(&self.left)[self.place].take();
        Ok((own, is_tracked(before).then(|| grad.clone())))
    }
}

impl CustomOp2 for Recomputed {
    fn name(&self) -> &'static str {
        "recompute"
    }

    hand_out!();

    fn bwd(
        &self,
        x: &Tensor,
        chain: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        // Where nothing trains x, the part has no graph to it.
        let leaf = if is_tracked(x) { Var::from_tensor(&x.detach())?.into_inner() } else { x.clone() };
        let y = (self.part)(&leaf).map_err(candle_core::Error::wrap)?;
        let mut grads = (y * grad)?.sum_all()?.backward()?;
        let mut left = lock(&self.left);
        for (left, variable) in left.iter_mut().zip(&self.variables) {
            *left = grads.remove(variable);
        }
        let dx = if is_tracked(x) { grads.remove(&leaf) } else { None };
        Ok((dx, is_tracked(chain).then(|| chain.zeros_like()).transpose()?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn wave(count: usize, seed: f64) -> Tensor {
        let values: Vec<f32> = (0..count).map(|i| (i as f64 * 0.7 + seed).sin() as f32).collect();
        Tensor::from_vec(values, (count / 4, 4), &Device::Cpu).unwrap()
    }

    fn bits(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn gradients_are_those_of_the_plain_graph_bit_for_bit_and_may_be_asked_for_twice() {
        let x = Var::from_tensor(&wave(12, 0.1)).unwrap();
        let weights: Vec<Var> = (0..3).map(|i| Var::from_tensor(&wave(16, f64::from(i))).unwrap()).collect();
        let used = weights.clone();
        let part = move |x: &Tensor| -> Result<Tensor> {
            let h = x.matmul(used[0].as_tensor())?.tanh()?;
            Ok((h.matmul(used[1].as_tensor())? + x)?)
        };
        let finish = |y: &Tensor| (y.matmul(weights[0].as_tensor()).unwrap().sqr().unwrap()).sum_all().unwrap();
        let plain = finish(&part(&x.sqr().unwrap()).unwrap());
        let other = finish(&recompute(&x.sqr().unwrap(), part).unwrap());
        assert_eq!(bits(&plain), bits(&other));
        let expected = plain.backward().unwrap();
        for _ in 0..2 {
            let found = other.backward().unwrap();
            for variable in [&x, &weights[0], &weights[1]] {
                assert_eq!(bits(found.get(variable).unwrap()), bits(expected.get(variable).unwrap()));
            }
            assert!(found.get(&weights[2]).is_none());
        }
    }

    #[test]
    fn what_nothing_trains_has_no_graph() {
        let (x, weight) = (wave(12, 0.1), wave(16, 1.0));
        let frozen = weight.clone();
        let y = recompute(&x, move |x| Ok(x.matmul(&frozen)?)).unwrap();
        assert!(!is_tracked(&y));
        let variable = Var::from_tensor(&weight).unwrap();
        let trained = variable.clone();
        // The input alone is no variable's, or the weight alone.
        let y = recompute(&x, move |x| Ok(x.matmul(trained.as_tensor())?)).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        let expected = x.t().unwrap().matmul(&y.ones_like().unwrap()).unwrap();
        assert_eq!(bits(grads.get(&variable).unwrap()), bits(&expected));
        let y = recompute(&variable, move |w| Ok(x.matmul(w)?)).unwrap();
        assert_eq!(y.sum_all().unwrap().backward().unwrap().get(&variable).unwrap().dims(), [4, 4]);
    }
}
