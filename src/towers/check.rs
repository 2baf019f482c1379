//! What every tower refuses before it is built: sizes and depths that no tower has.

use crate::{Error, Result};

/// Refuses sizes that no tower can have, before they divide by zero or ask for the memory of the world.
pub(super) fn check_sizes(hidden_size: usize, heads: usize, eps: f64, sizes: &[(&'static str, usize)]) -> Result<()> {
    for &(name, size) in sizes.iter().chain(&[("hidden_size", hidden_size), ("num_attention_heads", heads)]) {
        let largest = if name == "num_hidden_layers" { 1 << 10 } else { 1 << 24 };
        if size == 0 || size > largest {
            return Err(Error::argument(name, format!("{size} is not between 1 and {largest}")));
        }
    }
    if !(eps > 0.0 && eps < 1.0) {
        return Err(Error::argument("layer_norm_eps", format!("{eps} is not between 0 and 1")));
    }
    if !hidden_size.is_multiple_of(heads) {
        let message = format!("{heads} heads do not divide hidden_size {hidden_size}");
        return Err(Error::argument("num_attention_heads", message));
    }
    Ok(())
}

/// Refuses a stage without blocks, or with more than any tower has.
pub(super) fn check_depth(depth: usize) -> Result<()> {
    const DEEPEST: usize = 1 << 10;
    if (1..=DEEPEST).contains(&depth) {
        return Ok(());
    }
    Err(Error::argument("depth", format!("{depth} blocks in a stage are not between 1 and {DEEPEST}")))
}
