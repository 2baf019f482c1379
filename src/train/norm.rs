//! The size of gradients, summed in f64 and in a fixed order, so that it does not depend on the number of threads.

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Storage, Tensor, Var};
use rayon::prelude::*;

use crate::{ErrorKind, Result};

/// Numbers that one thread sums at a time.
const CHUNK: usize = 32 * 1024;

/// The global norm of the gradients of `vars`: the root of the sum of all squares. What has no gradient counts as 0.
///
/// # Errors
/// When candle cannot read a gradient.
pub fn gradient_norm<'a>(grads: &GradStore, vars: impl IntoIterator<Item = &'a Var>) -> Result<f64> {
    let mut squares = 0.0;
    for grad in vars.into_iter().filter_map(|var| grads.get(var)) {
        squares += sum_of_squares(grad)?;
    }
    Ok(squares.sqrt())
}

/// [`gradient_norm`], or an error of step `step` (counted from 1) that names the parameters whose gradient is not finite.
pub(super) fn finite_norm<'a>(
    grads: &GradStore,
    vars: impl Iterator<Item = (&'a str, &'a Var)> + Clone,
    step: usize,
) -> Result<f64> {
    let norm = gradient_norm(grads, vars.clone().map(|(_, var)| var))?;
    if norm.is_finite() {
        return Ok(norm);
    }
    let mut names = Vec::new();
    for (name, var) in vars {
        if let Some(grad) = grads.get(var)
            && !sum_of_squares(grad)?.is_finite()
        {
            names.push(name);
        }
    }
    let message = format!("the gradients are not finite, of: {}; a lower learning rate may help", names.join(", "));
    Err(ErrorKind::Training { step, message }.into())
}

/// The sum of a tensor's squares in f64, where those of f32 values neither overflow nor vanish: it is 0 only if every value
/// is, and finite only if every value is.
pub(super) fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    let (storage, layout) = tensor.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
        let sums: Vec<f64> = values[start..end].par_chunks(CHUNK).map(sum_chunk).collect();
        return Ok(sums.iter().sum());
    }
    drop(storage);
    Ok(tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar()?)
}

/// Eight sums side by side: what the compiler can turn into vector instructions.
fn sum_chunk(values: &[f32]) -> f64 {
    let mut sums = [0f64; 8];
    let (blocks, rest) = values.as_chunks::<8>();
    for block in blocks {
        for (sum, &value) in sums.iter_mut().zip(block) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    let rest: f64 = rest.iter().map(|&value| f64::from(value).powi(2)).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_sum_counts_every_value_in_any_layout() {
        let count = 3 * CHUNK + 13;
        let values = Tensor::from_vec(vec![0.5f32; count], count, &Device::Cpu).unwrap();
        assert_eq!(sum_of_squares(&values).unwrap(), count as f64 / 4.0);
        let part = values.narrow(0, 5, CHUNK + 3).unwrap();
        assert_eq!(sum_of_squares(&part).unwrap(), (CHUNK + 3) as f64 / 4.0);
        let table = Tensor::arange(0f32, 6.0, &Device::Cpu).unwrap().reshape((2, 3)).unwrap();
        assert_eq!(sum_of_squares(&table.t().unwrap()).unwrap(), 55.0);
        assert_eq!(sum_of_squares(&table.to_dtype(DType::BF16).unwrap()).unwrap(), 55.0);
        assert_eq!(
            sum_of_squares(&Tensor::new(3f32, &Device::Cpu).unwrap().broadcast_as((2, 2)).unwrap()).unwrap(),
            36.0
        );
    }

    #[test]
    fn one_nan_or_infinity_shows() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1f32; 100];
            values[57] = bad;
            assert!(!sum_of_squares(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap().is_finite());
        }
    }
}
