//! [`Embeddings`]: rows of unit length.

/// Rows of unit length (N,D).
#[derive(Debug, Clone)]
pub struct Embeddings {}
