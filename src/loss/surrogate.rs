//! A value whose gradients are known already, as a tensor that candle's backward pass can start from.

use candle_core::{DType, Tensor};

use crate::Result;

/// `value` as a function of the variables `v` with the gradients `g` (f32, of their shape): `value + Σ ⟨g, v − sg(v)⟩`, where
/// sg is a constant. The sums are zero, their slopes are `g`.
///
/// candle has no backward pass that starts from a gradient; this is one. What is not tracked costs nothing.
pub(crate) fn with_gradients(value: &Tensor, parts: &[(&Tensor, Tensor)]) -> Result<Tensor> {
    let mut value = value.detach();
    for (v, g) in parts.iter().filter(|(v, _)| crate::ops::is_tracked(v)) {
        let v = v.to_dtype(DType::F32)?;
        // ⟨g, v⟩ alone would carry a value that has to be taken off again, and its rounding with it.
        let zero = (&v - v.detach())?;
        value = (value + (zero * g.detach())?.sum_all()?)?;
    }
    Ok(value)
}
