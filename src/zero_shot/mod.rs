//! Zero-shot classification: labels become prompts by [`Template`]s, prompts become one weight a class in a
//! [`ZeroShotHead`], and images are classified by their cosine with these weights.

mod classifier;
mod head;
mod templates;

pub use classifier::ZeroShot;
pub use head::{Classification, ZeroShotHead, ZeroShotReport};
pub use templates::{Template, prompts};

pub(crate) use head::{best_first, check_labels, softmax};
