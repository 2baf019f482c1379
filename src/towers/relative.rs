//! Relative positions of T5 (Raffel et al. 2020, arXiv 1910.10683), which MPNet shares: a number a head for the distance of two
//! tokens, added to their score. Distances are counted in buckets: near ones one by one, far ones by their logarithm.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, ops};

/// How distances between tokens become rows of the table, which has a column a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelativePositions {
    /// Rows of the table: half of them for tokens before, half for tokens after.
    pub num_buckets: usize,
    /// From this distance on all are in the last bucket.
    pub max_distance: usize,
}

impl RelativePositions {
    /// Refuses numbers from which no buckets can be made.
    pub(super) fn check(&self) -> Result<()> {
        let exact = self.num_buckets / 4;
        if exact == 0 || self.num_buckets > 1 << 16 || self.max_distance <= exact || self.max_distance > 1 << 24 {
            let message = format!(
                "{} buckets up to distance {}: there must be at least 4, and a distance above a quarter of them",
                self.num_buckets, self.max_distance
            );
            return Err(Error::argument("relative_attention_num_buckets", message));
        }
        Ok(())
    }

    /// What is added to the scores of `length` tokens, with the graph of the table.
    ///
    /// # Shapes
    /// `table` (buckets,H) → (H,L,L).
    pub(super) fn bias(&self, table: &Tensor, length: usize) -> Result<Tensor> {
        let buckets: Vec<u32> =
            (0..length).flat_map(|query| (0..length).map(move |key| self.bucket(query, key))).collect();
        let values = ops::embedding(table, &buckets, (length, length))?;
        Ok(values.permute((2, 0, 1))?.contiguous()?)
    }

    /// Reference: `_relative_position_bucket` of transformers' `modeling_t5.py`, bidirectional; in f32 as there.
    fn bucket(&self, query: usize, key: usize) -> u32 {
        let half = self.num_buckets / 2;
        let (exact, distance) = (half / 2, query.abs_diff(key));
        let far = || {
            let ratio = (distance as f32 / exact as f32).ln() / (self.max_distance as f64 / exact as f64).ln() as f32;
            exact + (ratio * (half - exact) as f32) as usize
        };
        let bucket = if distance < exact { distance } else { far().min(half - 1) };
        (bucket + if key > query { half } else { 0 }) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_fall_into_the_buckets_of_transformers() {
        let relative = RelativePositions { num_buckets: 32, max_distance: 128 };
        // The first distance of each bucket from the ninth on, by T5Attention._relative_position_bucket.
        let firsts = [8, 12, 16, 23, 32, 46, 64, 91];
        for distance in 0..300usize {
            let expected = if distance < 8 { distance } else { 7 + firsts.iter().filter(|&&f| f <= distance).count() };
            assert_eq!(relative.bucket(distance, 0), expected as u32, "{distance} before");
            assert_eq!(relative.bucket(0, distance), (expected + if distance > 0 { 16 } else { 0 }) as u32);
        }
    }

    #[test]
    fn impossible_buckets_are_refused() {
        for (num_buckets, max_distance) in [(0, 128), (3, 128), (32, 8), (usize::MAX, 9), (32, usize::MAX)] {
            assert!(RelativePositions { num_buckets, max_distance }.check().is_err());
        }
        assert!(RelativePositions { num_buckets: 32, max_distance: 128 }.check().is_ok());
    }
}
