//! Random streams that depend on what they are for, never on the order in which they are drawn.

use rand::SeedableRng;
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
