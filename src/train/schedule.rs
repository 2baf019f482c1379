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
    /// A linear rise, then the peak rate: `min(1, (step + 1) / warmup_steps)`.
    WarmupConstant {
        /// Steps of the rise; 0 for none.
        warmup_steps: usize,
    },
    /// A linear rise times a line from 1 to 0 over all steps: `min(1, (step + 1) / warmup_steps) · (1 − step / steps)`.
    WarmupLinear {
        /// Steps of the rise; 0 for none.
        warmup_steps: usize,
    },
    /// A linear rise, the peak rate, and at the end a cool-down to 0 as one minus a root, `1 − √(t / cooldown_steps)` with t the
    /// steps into it (Hägele et al. 2024, arXiv 2405.18392, equation 1). A run may be prolonged from where its cool-down began.
    WarmupCooldown {
        /// Steps of the rise; 0 for none.
        warmup_steps: usize,
        /// Steps of the cool-down, counted from the end; 0 for none.
        cooldown_steps: usize,
    },
}

impl Schedule {
    /// The factor of the peak rate at `step` (counted from 0) of `steps`; 0 from `steps` on, except for constant rates.
    #[must_use]
    pub fn factor(&self, step: usize, steps: usize) -> f64 {
        let rise = |warmup_steps: usize| ((step + 1) as f64 / warmup_steps.max(1) as f64).min(1.0);
        let progress = step as f64 / steps.max(1) as f64;
        match *self {
            Self::Constant => 1.0,
            Self::WarmupConstant { warmup_steps } => rise(warmup_steps),
            _ if step >= steps => 0.0,
            Self::WarmupCosine { warmup_steps } => {
                rise(warmup_steps) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
            Self::WarmupLinear { warmup_steps } => rise(warmup_steps) * (1.0 - progress),
            Self::WarmupCooldown { warmup_steps, cooldown_steps } => {
                let into = (step + cooldown_steps).saturating_sub(steps) as f64;
                rise(warmup_steps) * (1.0 - (into / cooldown_steps.max(1) as f64).sqrt())
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
    fn lines_and_cool_downs_end_where_they_should() {
        let linear = Schedule::WarmupLinear { warmup_steps: 4 };
        assert_eq!([0, 3, 5, 9, 10].map(|s| linear.factor(s, 10)), [0.25, 0.7, 0.5, 1.0 - 0.9, 0.0]);
        let cool = Schedule::WarmupCooldown { warmup_steps: 2, cooldown_steps: 4 };
        assert_eq!([0, 1, 5, 6, 7, 10].map(|s| cool.factor(s, 10)), [0.5, 1.0, 1.0, 1.0, 0.5, 0.0]);
        assert_eq!(Schedule::WarmupConstant { warmup_steps: 2 }.factor(50, 10), 1.0);
        assert_eq!(Schedule::WarmupConstant { warmup_steps: 2 }.factor(0, 10), 0.5);
    }

    #[test]
    fn no_warm_up_starts_at_the_peak() {
        assert_eq!(Schedule::WarmupCosine { warmup_steps: 0 }.factor(0, 10), 1.0);
        assert_eq!(Schedule::Constant.factor(99, 10), 1.0);
    }
}
