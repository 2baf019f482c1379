//! The moving average of weights (Polyak & Juditsky 1992): `θ̄ ← d θ̄ + (1 − d) θ` after each step, in f32.
//!
//! Over the first steps d is `(1 + t) / (10 + t)` where that is less, so that the start is soon forgotten.

use candle_core::{DType, Tensor, Var};

use crate::{Error, Result};

/// Averages of some variables.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    averages: Vec<(String, Var, Tensor)>,
}

impl Ema {
    /// Averages that start at the variables' values.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if `decay` is not in [0, 1).
    pub fn new(vars: &[(String, Var)], decay: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&decay) {
            return Err(Error::argument("ema", format!("is {decay}; it must be at least 0 and below 1")));
        }
        let average = |(name, var): &(String, Var)| Ok((name.clone(), var.clone(), wide(var)?));
        Ok(Self { decay, averages: vars.iter().map(average).collect::<Result<_>>()? })
    }

    /// Takes in the variables' values after step `step`, counted from 1.
    ///
    /// # Errors
    /// When candle fails.
    pub fn update(&mut self, step: usize) -> Result<()> {
        let step = step as f64;
        let decay = self.decay.min((1.0 + step) / (10.0 + step));
        for (_, var, average) in &mut self.averages {
            *average = ((&*average * decay)? + (wide(var)? * (1.0 - decay))?)?;
        }
        Ok(())
    }

    /// Exchanges the variables' values with their averages; a second call puts them back.
    ///
    /// # Errors
    /// When candle fails.
    pub fn swap(&mut self) -> Result<()> {
        for (_, var, average) in &mut self.averages {
            let value = wide(var)?;
            var.set(&average.to_dtype(var.dtype())?)?;
            *average = value;
        }
        Ok(())
    }

    /// The averages by name, to be saved.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.averages.iter().map(|(name, _, average)| (name.as_str(), average))
    }

    /// Puts saved averages back.
    pub(super) fn restore(&mut self, find: impl Fn(&str) -> Option<Tensor>) -> Result<()> {
        for (name, _, average) in &mut self.averages {
            let found = find(name).filter(|found| found.dims() == average.dims());
            *average =
                found.ok_or_else(|| Error::argument("state", format!("has no average of '{name}' that fits")))?;
        }
        Ok(())
    }
}

/// A copy of the value, f32: what an optimiser changes in place afterwards is not seen.
fn wide(var: &Var) -> Result<Tensor> {
    let value = var.as_detached_tensor();
    Ok(if value.dtype() == DType::F32 { value.copy()?.detach() } else { value.to_dtype(DType::F32)? })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn averages_follow_and_swap_back() {
        let var = Var::new(&[0f32], &Device::Cpu).unwrap();
        let mut ema = Ema::new(&[("v".to_string(), var.clone())], 0.5).unwrap();
        let value = |v: &Var| v.to_vec1::<f32>().unwrap()[0];
        var.set(&Tensor::new(&[1f32], &Device::Cpu).unwrap()).unwrap();
        // The first decay is 2/11, the tenth and all later ones 0.5.
        ema.update(1).unwrap();
        ema.swap().unwrap();
        assert!((value(&var) - 9.0 / 11.0).abs() < 1e-6);
        ema.swap().unwrap();
        assert_eq!(value(&var), 1.0);
        ema.update(10).unwrap();
        ema.swap().unwrap();
        assert!((value(&var) - 10.0 / 11.0).abs() < 1e-6);
        assert!(Ema::new(&[], 1.0).is_err());
    }
}
