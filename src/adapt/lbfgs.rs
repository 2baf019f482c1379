//! L-BFGS (Nocedal & Wright 2006, algorithms 7.4 and 7.5) with a backtracking line search, for smooth convex functions.

use std::collections::VecDeque;

use crate::Result;

/// Pairs of steps and gradient changes that are remembered.
const MEMORY: usize = 10;
/// The share of the slope's promise that a step must keep.
const ARMIJO: f64 = 1e-4;
/// A step that is halved so often leads nowhere.
const HALVINGS: usize = 30;
/// Where the gradient's largest part is below this, the lowest point is found.
const GRADIENT: f64 = 1e-6;
/// Where a step lowers the value by less than this share, nothing more is gained.
const GAIN: f64 = 1e-9;

struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
    rho: f64,
}

/// The lowest point of `value`, which gives the value and its gradient, from `x` on.
pub(super) fn minimize(
    mut x: Vec<f64>,
    max_iterations: usize,
    mut value: impl FnMut(&[f64]) -> Result<(f64, Vec<f64>)>,
) -> Result<Vec<f64>> {
    let (mut lowest, mut gradient) = value(&x)?;
    let mut pairs: VecDeque<Pair> = VecDeque::new();
    for _ in 0..max_iterations {
        if gradient.iter().all(|g| g.abs() < GRADIENT) {
            break;
        }
        let mut direction = direction(&gradient, &pairs);
        let mut slope = dot(&direction, &gradient);
        if slope >= 0.0 {
            pairs.clear();
            direction = gradient.iter().map(|g| -g).collect();
            slope = -dot(&gradient, &gradient);
        }
        let mut length = if pairs.is_empty() { 1f64.min(1.0 / slope.abs().sqrt()) } else { 1.0 };
        let mut found = None;
        for _ in 0..HALVINGS {
            let next: Vec<f64> = x.iter().zip(&direction).map(|(x, d)| x + length * d).collect();
            let (at_next, gradient) = value(&next)?;
            if at_next <= lowest + ARMIJO * length * slope {
                found = Some((next, at_next, gradient));
                break;
            }
            length /= 2.0;
        }
        let Some((next, at_next, new_gradient)) = found else { break };
        let step: Vec<f64> = next.iter().zip(&x).map(|(a, b)| a - b).collect();
        let change: Vec<f64> = new_gradient.iter().zip(&gradient).map(|(a, b)| a - b).collect();
        let curvature = dot(&step, &change);
        if curvature > 1e-12 * dot(&change, &change).sqrt() * dot(&step, &step).sqrt() {
            if pairs.len() == MEMORY {
                pairs.pop_front();
            }
            pairs.push_back(Pair { step, change, rho: 1.0 / curvature });
        }
        let gain = lowest - at_next;
        (x, lowest, gradient) = (next, at_next, new_gradient);
        if gain <= GAIN * lowest.abs().max(1e-12) {
            break;
        }
    }
    Ok(x)
}

/// Minus the gradient, times the inverse curvature that the pairs tell of (the two loops).
fn direction(gradient: &[f64], pairs: &VecDeque<Pair>) -> Vec<f64> {
    let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut alphas = Vec::with_capacity(pairs.len());
    for pair in pairs.iter().rev() {
        let alpha = pair.rho * dot(&pair.step, &q);
        add(&mut q, -alpha, &pair.change);
        alphas.push(alpha);
    }
    if let Some(last) = pairs.back() {
        let scale = 1.0 / (last.rho * dot(&last.change, &last.change));
        q.iter_mut().for_each(|q| *q *= scale);
    }
    for (pair, alpha) in pairs.iter().zip(alphas.into_iter().rev()) {
        let beta = pair.rho * dot(&pair.change, &q);
        add(&mut q, alpha - beta, &pair.step);
    }
    q
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], factor: f64, from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretched_bowl_is_descended() {
        // Σ kᵢ (xᵢ − i)² with curvatures from 1 to 1000, and a quartic so that it is no quadratic.
        let bowl = |x: &[f64]| {
            let curvature = |i: usize| 10f64.powf(3.0 * i as f64 / 9.0);
            let parts = x.iter().enumerate().map(|(i, x)| (curvature(i), x - i as f64));
            let value = parts.clone().map(|(k, d)| k * d * d + d.powi(4)).sum();
            Ok((value, parts.map(|(k, d)| 2.0 * k * d + 4.0 * d.powi(3)).collect()))
        };
        let found = minimize(vec![20.0; 10], 200, bowl).unwrap();
        assert!(found.iter().enumerate().all(|(i, x)| (x - i as f64).abs() < 1e-4), "{found:?}");
    }
}
