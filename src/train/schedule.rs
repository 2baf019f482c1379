//! The learning rate's course over a run, as a factor of the peak rate.

use serde::{Deserialize, Serialize};

/// How the learning rate changes from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Schedule {
    /// The peak rate at every step.
    Constant,
    /// A linear rise over the first steps times half a cosine from 1 to 0 over all steps (Loshchilov & Hutter 2017, eq. 5, without
    /// restarts): `min(1, (step + 1) / warmup_steps) · (1 + cos(π · step / steps)) / 2`.
    WarmupCosine {
        /// Steps of the rise; 0 for none.
        warmup_steps: usize,
    },
}

impl Schedule {
    /// The factor of the peak rate at `step` (counted from 0) of `steps`; 0 from `steps` on, except for a constant rate.
    #[must_use]
    pub fn factor(&self, step: usize, steps: usize) -> f64 {
        match *self {
            Self::Constant => 1.0,
            Self::WarmupCosine { .. } if step >= steps => 0.0,
            Self::WarmupCosine { warmup_steps } => {
                let rise = ((step + 1) as f64 / warmup_steps.max(1) as f64).min(1.0);
                let progress = step as f64 / steps as f64;
                rise * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls_as_in_the_formula() {
        let schedule = Schedule::WarmupCosine { warmup_steps: 50 };
        // min(1, (s + 1) / 50) * 0.5 * (1 + cos(pi * s / 330)), worked out with numpy for these steps.
        for (step, expected) in [(0, 0.02), (24, 0.493_503_0), (49, 0.946_578_7), (165, 0.5), (329, 2.265_7e-5)] {
            assert!((schedule.factor(step, 330) - expected).abs() < 1e-6, "{step}: {}", schedule.factor(step, 330));
        }
        assert_eq!(schedule.factor(330, 330), 0.0);
        assert_eq!(schedule.factor(0, 0), 0.0);
    }

    #[test]
    fn no_warm_up_starts_at_the_peak() {
        assert_eq!(Schedule::WarmupCosine { warmup_steps: 0 }.factor(0, 10), 1.0);
        assert_eq!(Schedule::Constant.factor(99, 10), 1.0);
    }
}
