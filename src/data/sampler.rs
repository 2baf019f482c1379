//! Which image comes when, and with which of its captions: functions of the seed, the epoch and the image alone, so that a
//! run can be repeated, resumed, and spread over any number of threads.

use crate::random::below;

/// The random choices of a training run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    seed: u64,
}

impl Sampler {
    /// The choices that follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The indices `0..count` in the order of `epoch` (Fisher–Yates).
    #[must_use]
    pub fn order(&self, epoch: usize, count: usize) -> Vec<usize> {
        let mut rng = crate::random::stream(self.seed, &format!("order/{epoch}"));
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, below(&mut rng, last + 1));
        }
        order
    }

    /// Which of its `count` captions image `image` has in `epoch`: an index below `count`, or 0 if there is none.
    #[must_use]
    pub fn caption(&self, epoch: usize, image: usize, count: usize) -> usize {
        below(&mut crate::random::stream(self.seed, &format!("caption/{epoch}/{image}")), count.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_a_permutation_that_depends_on_seed_and_epoch_only() {
        let order = Sampler::new(7).order(3, 1000);
        assert_eq!(order, Sampler::new(7).order(3, 1000));
        assert_ne!(order, Sampler::new(7).order(4, 1000));
        assert_ne!(order, Sampler::new(8).order(3, 1000));
        let mut sorted = order;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        assert!(Sampler::new(7).order(0, 0).is_empty());
    }

    #[test]
    fn every_caption_is_chosen_about_equally_often() {
        let sampler = Sampler::new(1);
        let mut counts = [0; 5];
        for epoch in 0..10 {
            for image in 0..500 {
                counts[sampler.caption(epoch, image, 5)] += 1;
            }
        }
        // 5000 draws: 1000 ± 28 each; five standard deviations.
        assert!(counts.iter().all(|&c| (860..1140).contains(&c)), "{counts:?}");
        assert_eq!(sampler.caption(0, 0, 0), 0);
    }

    #[test]
    fn positions_of_one_image_spread_over_the_epochs() {
        let sampler = Sampler::new(1);
        let mean =
            (0..400).map(|e| sampler.order(e, 64).iter().position(|&i| i == 0).unwrap()).sum::<usize>() as f64 / 400.0;
        // Uniform on 0..64: mean 31.5, standard error 0.92.
        assert!((mean - 31.5).abs() < 4.6, "{mean}");
    }
}
