//! Random streams that depend on what they are for, never on the order in which they are drawn.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The stream of random numbers for `name` under `seed`.
pub(crate) fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(hash(name.bytes()));
    rng
}

/// FNV-1a, 64 bits: stable across platforms and releases, unlike the standard library's hasher.
pub(crate) fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// A number below `bound`, by the high half of a product: its bias is below `bound / 2^64`, and unlike a library's range it never
/// changes with a release.
pub(crate) fn below(rng: &mut impl RngCore, bound: usize) -> usize {
    ((u128::from(rng.next_u64()) * bound as u128) >> 64) as usize
}

/// A number from `low` up to `high`, all with the same probability: 53 random bits.
pub(crate) fn between(rng: &mut impl RngCore, low: f64, high: f64) -> f64 {
    low + (high - low) * ((rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64)
}
