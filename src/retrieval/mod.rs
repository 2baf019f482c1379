//! Retrieval: exact search among embeddings, and recall as a pure function of similarities.

mod recall;
mod search;

pub use recall::{CaptionPairs, Recall, RetrievalReport, ranks, recall_at_k};
pub use search::{Hit, top_k};

pub(crate) use recall::two_decimals;

use candle_core::{DType, Device, Tensor};

use crate::{Embeddings, Error, Result};

/// How many similarities are held at once: 64 MiB of f32.
const BLOCK_VALUES: usize = 1 << 24;

/// Calls `each` with blocks of whole rows of the similarities of `queries` (Q) and `gallery` (G), as the index of the block's
/// first row and its values (rows·G), so that the matrix never exists as a whole.
pub(crate) fn for_each_block(
    queries: &Embeddings,
    gallery: &Embeddings,
    mut each: impl FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    queries.check_comparable(gallery)?;
    let columns = gallery.tensor()?;
    let rows = (BLOCK_VALUES / gallery.len().max(1)).max(1);
    for start in (0..queries.len()).step_by(rows) {
        let block = queries.cosine_block(start, rows.min(queries.len() - start), &columns)?;
        each(start, &block.flatten_all()?.to_vec1::<f32>()?)?;
    }
    Ok(())
}

/// The values of a (Q,G) matrix on the host, row by row, and G.
fn host_matrix(similarity: &Tensor) -> Result<(Vec<f32>, usize)> {
    let &[_, columns] = similarity.dims() else {
        return Err(Error::argument("similarity", format!("expected (Q, G), found {:?}", similarity.dims())));
    };
    let values = similarity.detach().to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    Ok((values, columns))
}
