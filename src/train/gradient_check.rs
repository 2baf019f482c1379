//! The check of the first step: every trainable parameter has a finite gradient that is not all zero.
//!
//! candle cuts the graph in silence where an operation has no backward pass: `backward()` succeeds, and what lies upstream never
//! learns. This check turns that into an error with the names.

use candle_core::Var;
use candle_core::backprop::GradStore;

use super::norm::sum_of_squares;
use crate::weights::Pattern;
use crate::{ErrorKind, Result};

/// How many names an error lists of each kind.
const NAMED: usize = 12;

/// Checks the gradients of all `trainable` parameters at `step` (counted from 1, for the error).
///
/// `may_be_zero` are patterns of parameters whose gradient mathematics may make zero, such as
/// `*.k_proj.bias`: softmax does not see what is added to all keys. Theirs must be there and finite all the same.
///
/// # Errors
/// [`Training`](ErrorKind::Training) that names the parameters with no gradient, one that is not finite, or one that is all zero.
pub fn check_gradients(
    step: usize,
    trainable: &[(String, Var)],
    grads: &GradStore,
    may_be_zero: &[Pattern],
) -> Result<()> {
    let (mut none, mut infinite, mut zero) = (Vec::new(), Vec::new(), Vec::new());
    for (name, var) in trainable {
        let Some(grad) = grads.get(var) else {
            none.push(name.as_str());
            continue;
        };
        // The squares of f32 values neither overflow nor vanish in f64.
        let squares = sum_of_squares(grad)?;
        if !squares.is_finite() {
            infinite.push(name.as_str());
        } else if squares == 0.0 && !may_be_zero.iter().any(|pattern| pattern.matches(name)) {
            zero.push(name.as_str());
        }
    }
    let kinds =
        [("no gradient", none), ("a gradient that is not finite", infinite), ("a gradient of exactly zero", zero)];
    let found: Vec<String> = kinds.iter().filter(|(_, names)| !names.is_empty()).map(|(k, n)| describe(k, n)).collect();
    if found.is_empty() {
        return Ok(());
    }
    let message = format!("{}. Freeze what the forward pass does not use", found.join("; "));
    Err(ErrorKind::Training { step, message }.into())
}

fn describe(kind: &str, names: &[&str]) -> String {
    let more = if names.len() > NAMED { ", …" } else { "" };
    format!("{} parameters have {kind}: {}{more}", names.len(), names[..names.len().min(NAMED)].join(", "))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    fn var(values: &[f32]) -> Var {
        Var::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn parameters_that_do_not_learn_are_named() {
        let (good, zero, cut, wild) = (var(&[1.0]), var(&[1.0]), var(&[1.0]), var(&[0.0]));
        let loss = (good.as_tensor() + (zero.as_tensor() * zero.zeros_like().unwrap()).unwrap()).unwrap();
        let loss = (loss + cut.as_detached_tensor()).unwrap();
        // The slope of the logarithm at 0 is infinite.
        let loss = (loss + wild.log().unwrap()).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let names = ["good", "a.k_proj.bias", "cut", "wild"].map(String::from);
        let all: Vec<_> = names.into_iter().zip([good, zero, cut, wild]).collect();
        let text = check_gradients(1, &all, &grads, &[]).unwrap_err().to_string();
        assert!(
            text.contains("step 1") && text.contains("no gradient: cut") && text.contains("finite: wild"),
            "{text}"
        );
        assert!(text.contains("zero: a.k_proj.bias") && !text.contains("good"), "{text}");
        check_gradients(1, &all[..2], &grads, &[Pattern::new("*.k_proj.bias").unwrap()]).unwrap();
        check_gradients(1, &all[..1], &grads, &[]).unwrap();
    }

    #[test]
    fn the_smallest_and_largest_gradients_pass() {
        let all = [(String::from("tiny"), var(&[0.0])), (String::from("huge"), var(&[0.0, 0.0]))];
        let mut grads = GradStore::default();
        grads.insert(&all[0].1, Tensor::new(&[1e-45f32], &Device::Cpu).unwrap());
        grads.insert(&all[1].1, Tensor::new(&[f32::MAX, f32::MAX], &Device::Cpu).unwrap());
        check_gradients(1, &all, &grads, &[]).unwrap();
    }
}
