//! [`top_k`]: exact nearest neighbours by cosine.

use std::cmp::Ordering;

use rayon::prelude::*;

use crate::retrieval::for_each_block;
use crate::{Embeddings, Error, Result};

/// One item found by a search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// The item's row in the gallery.
    pub index: usize,
    /// Its cosine with the query, in [-1, 1].
    pub score: f32,
}

/// The `k` rows of `gallery` closest to each query, best first; of equal scores the lower index comes first.
///
/// The search is exact and holds a block of similarities at a time, never all of them.
///
/// # Shapes
/// `queries` (Q,D), `gallery` (G,D) → Q lists of min(k, G) hits.
///
/// # Errors
/// When `k` is 0, the widths differ, or the rows were made by different models.
pub fn top_k(queries: &Embeddings, gallery: &Embeddings, k: usize) -> Result<Vec<Vec<Hit>>> {
    if k == 0 {
        return Err(Error::argument("k", "is 0; ask for one item at least"));
    }
    if gallery.is_empty() {
        queries.check_comparable(gallery)?;
        return Ok(vec![Vec::new(); queries.len()]);
    }
    let mut found = Vec::with_capacity(queries.len());
    for_each_block(queries, gallery, |_, block| {
        found.par_extend(block.par_chunks(gallery.len()).map(|scores| best(scores, k)));
        Ok(())
    })?;
    Ok(found)
}

/// The best `k` of a row, in linear time: candidates are collected and cut back to `k` whenever there are twice as many.
fn best(scores: &[f32], k: usize) -> Vec<Hit> {
    let order = |a: &Hit, b: &Hit| -> Ordering { b.score.total_cmp(&a.score).then(a.index.cmp(&b.index)) };
    let most = k.saturating_mul(2);
    let mut hits = Vec::with_capacity(most.min(scores.len()));
    let mut floor = f32::NEG_INFINITY;
    for (index, &score) in scores.iter().enumerate() {
        // One equal to the k-th best so far has the higher index and comes after it.
        if score > floor {
            hits.push(Hit { index, score });
            if hits.len() == most {
                floor = hits.select_nth_unstable_by(k - 1, order).1.score;
                hits.truncate(k);
            }
        }
    }
    hits.sort_unstable_by(order);
    hits.truncate(k);
    hits
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    fn embeddings(rows: &[[f32; 2]]) -> Embeddings {
        Embeddings::from_features(&Tensor::from_slice(rows.as_flattened(), (rows.len(), 2), &Device::Cpu).unwrap())
            .unwrap()
    }

    #[test]
    fn the_closest_rows_come_best_first_and_equal_ones_by_index() {
        let gallery = embeddings(&[[0.0, 1.0], [1.0, 0.0], [3.0, 4.0], [2.0, 0.0]]);
        let hits = top_k(&embeddings(&[[1.0, 0.0], [0.0, 1.0]]), &gallery, 3).unwrap();
        let found: Vec<Vec<(usize, f32)>> =
            hits.iter().map(|hits| hits.iter().map(|hit| (hit.index, hit.score)).collect()).collect();
        assert_eq!(found, [[(1, 1.0), (3, 1.0), (2, 0.6)], [(0, 1.0), (2, 0.8), (1, 0.0)]]);
    }

    #[test]
    fn more_than_there_are_gives_all_of_them() {
        let gallery = embeddings(&[[0.0, 1.0], [1.0, 0.0]]);
        let hits = top_k(&gallery, &gallery, 10).unwrap();
        assert_eq!(hits[1].iter().map(|hit| hit.index).collect::<Vec<_>>(), [1, 0]);
        let none = gallery.select(&[]).unwrap();
        assert_eq!(top_k(&gallery, &none, 1).unwrap(), vec![Vec::new(); 2]);
        assert!(top_k(&none, &gallery, 1).unwrap().is_empty());
        assert!(top_k(&gallery, &gallery, 0).unwrap_err().to_string().starts_with("k: is 0"));
    }

    #[test]
    fn a_search_equals_sorting_everything() {
        // Each row comes several times, so that equal scores meet the places where candidates are cut.
        let angle = |i: usize| ((i % 90) as f32 * 2.399_963).sin_cos();
        let rows: Vec<[f32; 2]> = (0..500).map(|i| angle(i).into()).collect();
        let gallery = embeddings(&rows);
        let cosine = gallery.cosine(&gallery).unwrap().to_vec2::<f32>().unwrap();
        for (hits, scores) in top_k(&gallery, &gallery, 7).unwrap().iter().zip(&cosine) {
            let mut sorted: Vec<usize> = (0..scores.len()).collect();
            sorted.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            assert_eq!(hits.iter().map(|hit| hit.index).collect::<Vec<_>>(), sorted[..7]);
        }
    }
}
