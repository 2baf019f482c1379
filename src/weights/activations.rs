//! [`Activations`]: what a forward pass leaves for the backward pass.

/// What training keeps of a transformer tower's forward pass for its backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activations {
    /// All intermediate results: fastest.
    #[default]
    Stored,
    /// Each block's input alone; the block runs once more when the backward pass comes to it. The gradients are the same bits, the
    /// forward pass is paid twice.
    Recomputed,
}
