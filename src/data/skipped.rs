//! What a data set may lose: samples that cannot be used are left out, listed, and limited in number.

use std::fmt;

/// How many samples an error names.
const NAMED: usize = 5;

/// How many samples may be unusable before that is an error: the larger of a share and a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// The share of all samples, from 0 to 1.
    pub share: f64,
    /// The number that is allowed whatever the share, for small data sets.
    pub at_least: usize,
}

impl Default for Tolerance {
    /// One in a hundred, and three in any case.
    fn default() -> Self {
        Self { share: 0.01, at_least: 3 }
    }
}

impl Tolerance {
    /// The first unusable sample is an error.
    pub const NONE: Self = Self { share: 0.0, at_least: 0 };

    /// How many of `total` samples may be unusable.
    #[must_use]
    pub fn allowed(&self, total: usize) -> usize {
        self.at_least.max((self.share * total as f64) as usize)
    }

    /// The error's message if `skipped` are more than allowed of `total`; `what` says what they are.
    pub(crate) fn exceeded<'s>(
        &self,
        what: &str,
        total: usize,
        count: usize,
        skipped: impl Iterator<Item = &'s Skipped>,
    ) -> Option<String> {
        if count <= self.allowed(total) {
            return None;
        }
        let mut named: Vec<String> = skipped.take(NAMED).map(|s| format!("\n  {s}")).collect();
        if count > named.len() {
            named.push(String::from("\n  …"));
        }
        let allowed = self.allowed(total);
        let named = named.concat();
        Some(format!("{count} of {total} {what}, {allowed} allowed; repair or remove them, or allow more:{named}"))
    }
}

/// A sample that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Which: an image's name, or a file and line.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_or_a_few_are_allowed_and_more_are_named() {
        let tolerance = Tolerance::default();
        assert_eq!((tolerance.allowed(10), tolerance.allowed(1000)), (3, 10));
        assert_eq!(Tolerance::NONE.allowed(1000), 0);
        assert_eq!(Tolerance { share: f64::NAN, at_least: 1 }.allowed(1000), 1);
        let skipped: Vec<_> =
            (0..7).map(|i| Skipped { name: format!("{i}.jpg"), reason: String::from("is empty") }).collect();
        assert_eq!(tolerance.exceeded("images", 10, 3, skipped.iter()), None);
        let message = tolerance.exceeded("images cannot be read", 10, 7, skipped.iter()).unwrap();
        assert!(message.starts_with("7 of 10 images") && message.contains("4.jpg: is empty"), "{message}");
        assert!(!message.contains("5.jpg") && message.contains("…"), "{message}");
    }
}
