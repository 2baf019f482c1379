//! Recall at K in both directions, with several captions an image.
//!
//! The rank of a query is the place of its best right item in the gallery sorted by similarity, best first, where of equal
//! items the lower index comes first (the order of [`top_k`](crate::retrieval::top_k)). So equal scores are neither a gift
//! nor a penalty: a model that gives all items the same score does no better than chance.
//!
//! ```text
//! rank(q)     = |{ j : s(q,j) > s(q,r) }| + |{ j < r : s(q,j) = s(q,r) }|,   r = the right item with the largest score
//! recall at K = 100 · |{ q : rank(q) < K }| / Q
//! ```
//! An image counts as found if any of its captions is among the first K (Karpathy & Fei-Fei 2015, arXiv 1412.2306).

use candle_core::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize, Serializer};

use crate::retrieval::{for_each_block, host_matrix};
use crate::{Embeddings, Error, Result};

/// Which captions belong to which image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionPairs {
    image_of_caption: Vec<Vec<usize>>,
    captions_of_image: Vec<Vec<usize>>,
}

impl CaptionPairs {
    /// The pairs of `images` images, where caption `c` describes image `image_of_caption[c]`.
    ///
    /// # Errors
    /// When a caption names an image that is not there, or an image has no caption.
    pub fn new(images: usize, image_of_caption: &[usize]) -> Result<Self> {
        let mut captions_of_image = vec![Vec::new(); images];
        for (caption, &image) in image_of_caption.iter().enumerate() {
            let captions = captions_of_image.get_mut(image).ok_or_else(|| {
                let message = format!("caption {caption} names image {image}, but there are {images}");
                Error::argument("image_of_caption", message)
            })?;
            captions.push(caption);
        }
        if let Some(image) = captions_of_image.iter().position(Vec::is_empty) {
            return Err(Error::argument("image_of_caption", format!("image {image} has no caption")));
        }
        Ok(Self { image_of_caption: image_of_caption.iter().map(|&image| vec![image]).collect(), captions_of_image })
    }

    /// How many images there are.
    #[must_use]
    pub fn images(&self) -> usize {
        self.captions_of_image.len()
    }

    /// How many captions there are.
    #[must_use]
    pub fn captions(&self) -> usize {
        self.image_of_caption.len()
    }
}

/// Recall at 1, 5 and 10, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// How many queries have a right item in the first place.
    #[serde(serialize_with = "two_decimals")]
    pub r1: f64,
    /// How many have one among the first five.
    #[serde(serialize_with = "two_decimals")]
    pub r5: f64,
    /// How many have one among the first ten.
    #[serde(serialize_with = "two_decimals")]
    pub r10: f64,
}

impl Recall {
    /// The recall of queries of these ranks; 0 is the first place.
    #[must_use]
    pub fn from_ranks(ranks: &[usize]) -> Self {
        let [r1, r5, r10] = [1, 5, 10].map(|k| percent_within(ranks, k));
        Self { r1, r5, r10 }
    }
}

/// What an evaluation on captioned images found. Serialised, percentages have two decimals.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RetrievalReport {
    /// Each caption searches its image.
    pub text_to_image: Recall,
    /// Each image searches any of its captions.
    pub image_to_text: Recall,
    /// How many images there were.
    pub images: usize,
    /// How many captions there were.
    pub captions: usize,
}

impl RetrievalReport {
    /// Recall in both directions from embeddings. The similarities are worked out in blocks, so memory stays bounded.
    ///
    /// # Shapes
    /// `images` (N,D), `captions` (M,D), `pairs` of N images and M captions.
    ///
    /// # Errors
    /// When the numbers do not fit `pairs`, the widths differ, or the rows were made by different models.
    pub fn from_embeddings(images: &Embeddings, captions: &Embeddings, pairs: &CaptionPairs) -> Result<Self> {
        check_counts(pairs, images.len(), captions.len())?;
        let direction = |queries: &Embeddings, gallery: &Embeddings, relevant: &[Vec<usize>]| -> Result<Recall> {
            let mut ranks = Vec::with_capacity(queries.len());
            for_each_block(queries, gallery, |start, block| {
                ranks.extend(block_ranks(block, gallery.len(), &relevant[start..], start)?);
                Ok(())
            })?;
            Ok(Recall::from_ranks(&ranks))
        };
        Ok(Self {
            text_to_image: direction(captions, images, &pairs.image_of_caption)?,
            image_to_text: direction(images, captions, &pairs.captions_of_image)?,
            images: pairs.images(),
            captions: pairs.captions(),
        })
    }

    /// The mean of the six recalls, in percent: one number to compare models by, less noisy than any of them.
    #[must_use]
    pub fn mean_recall(&self) -> f64 {
        let sum = |recall: &Recall| recall.r1 + recall.r5 + recall.r10;
        (sum(&self.text_to_image) + sum(&self.image_to_text)) / 6.0
    }

    /// Recall in both directions from similarities or logits.
    ///
    /// # Shapes
    /// `logits_per_image` (N,M): rows are images, columns are captions.
    ///
    /// # Errors
    /// When the shape does not fit `pairs`, or a value is NaN.
    pub fn from_similarity(logits_per_image: &Tensor, pairs: &CaptionPairs) -> Result<Self> {
        let &[images, captions] = logits_per_image.dims() else {
            let message = format!("expected (N, M), found {:?}", logits_per_image.dims());
            return Err(Error::argument("logits_per_image", message));
        };
        check_counts(pairs, images, captions)?;
        Ok(Self {
            text_to_image: Recall::from_ranks(&ranks(&logits_per_image.t()?, &pairs.image_of_caption)?),
            image_to_text: Recall::from_ranks(&ranks(logits_per_image, &pairs.captions_of_image)?),
            images,
            captions,
        })
    }
}

/// The rank of each query's best right item: 0 where it comes first.
///
/// # Shapes
/// `similarity` (Q,G); `relevant`: Q lists of right items in 0..G → Q ranks in 0..G.
///
/// # Errors
/// When the shape does not fit, a query has no right item or one that is not there, or a value is NaN.
pub fn ranks(similarity: &Tensor, relevant: &[Vec<usize>]) -> Result<Vec<usize>> {
    let (values, columns) = host_matrix(similarity)?;
    if similarity.dim(0)? != relevant.len() {
        let message = format!("{} rows for {} queries", similarity.dim(0)?, relevant.len());
        return Err(Error::argument("similarity", message));
    }
    block_ranks(&values, columns, relevant, 0)
}

/// The part of the queries, in percent, that have a right item among the first K, for each K of `ks`.
///
/// # Shapes
/// `similarity` (Q,G); `relevant`: Q lists of right items in 0..G → as many values as `ks`.
///
/// # Errors
/// As [`ranks`].
pub fn recall_at_k(similarity: &Tensor, relevant: &[Vec<usize>], ks: &[usize]) -> Result<Vec<f64>> {
    let ranks = ranks(similarity, relevant)?;
    Ok(ks.iter().map(|&k| percent_within(&ranks, k)).collect())
}

/// The ranks of a block of whole rows; `first` is the number of its first query, for messages.
fn block_ranks(values: &[f32], columns: usize, relevant: &[Vec<usize>], first: usize) -> Result<Vec<usize>> {
    if columns == 0 && !relevant.is_empty() {
        return Err(Error::argument("similarity", "the gallery is empty"));
    }
    let problem = |query: usize, message: &str| Err(Error::argument("similarity", format!("query {query} {message}")));
    let rank = |(i, (scores, relevant)): (usize, (&[f32], &Vec<usize>))| -> Result<usize> {
        // Without an early exit the loop is vectorised.
        if scores.iter().fold(false, |nan, score| nan | score.is_nan()) {
            return problem(first + i, "has a similarity that is NaN");
        }
        if let Some(item) = relevant.iter().find(|&&item| item >= columns) {
            return problem(first + i, &format!("has item {item} as a right one, but the gallery has {columns}"));
        }
        // Of equally good right items the first one counts: its place is the best.
        let better = |a: &usize, b: &usize| scores[*a].total_cmp(&scores[*b]).then(b.cmp(a));
        let Some(best) = relevant.iter().copied().max_by(better) else {
            return problem(first + i, "has no right item");
        };
        let limit = scores[best];
        let earlier = scores[..best].iter().filter(|&&score| score >= limit).count();
        let later = scores[best + 1..].iter().filter(|&&score| score > limit).count();
        Ok(earlier + later)
    };
    values.par_chunks(columns.max(1)).zip(relevant).enumerate().map(rank).collect()
}

fn check_counts(pairs: &CaptionPairs, images: usize, captions: usize) -> Result<()> {
    if (pairs.images(), pairs.captions()) == (images, captions) {
        return Ok(());
    }
    let message = format!(
        "{} images and {} captions are paired, but there are {images} and {captions}",
        pairs.images(),
        pairs.captions()
    );
    Err(Error::argument("pairs", message))
}

fn percent_within(ranks: &[usize], k: usize) -> f64 {
    let within = ranks.iter().filter(|&&rank| rank < k).count();
    100.0 * within as f64 / ranks.len().max(1) as f64
}

/// A percentage as it is written into reports.
pub(crate) fn two_decimals<S: Serializer>(percent: &f64, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_f64((percent * 100.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn matrix<const N: usize>(rows: &[[f32; N]]) -> Tensor {
        Tensor::from_slice(rows.as_flattened(), (rows.len(), N), &Device::Cpu).unwrap()
    }

    #[test]
    fn the_rank_counts_what_is_better_than_the_best_right_item() {
        let similarity = matrix(&[[0.9, 0.1, 0.5, 0.2], [0.9, 0.1, 0.5, 0.2], [0.9, 0.1, 0.5, 0.2]]);
        assert_eq!(ranks(&similarity, &[vec![0], vec![1], vec![1, 2]]).unwrap(), [0, 3, 1]);
        assert_eq!(
            recall_at_k(&similarity, &[vec![0], vec![1], vec![1, 2]], &[1, 2, 4, 0]).unwrap()[1..],
            [200.0 / 3.0, 100.0, 0.0]
        );
    }

    #[test]
    fn a_model_that_scores_everything_alike_does_no_better_than_chance() {
        let same = Tensor::ones((20, 20), candle_core::DType::F32, &Device::Cpu).unwrap();
        let pairs = CaptionPairs::new(20, &(0..20).collect::<Vec<_>>()).unwrap();
        let report = RetrievalReport::from_similarity(&same, &pairs).unwrap();
        assert_eq!(report.text_to_image, Recall { r1: 5.0, r5: 25.0, r10: 50.0 });
        assert_eq!(report.image_to_text, report.text_to_image);
    }

    #[test]
    fn an_image_is_found_by_any_of_its_captions_and_a_caption_by_its_image_alone() {
        // Captions 0 and 1 describe image 0, caption 2 image 1.
        let pairs = CaptionPairs::new(2, &[0, 0, 1]).unwrap();
        let report = RetrievalReport::from_similarity(&matrix(&[[0.1, 0.9, 0.3], [0.2, 0.5, 0.4]]), &pairs).unwrap();
        assert_eq!((report.images, report.captions), (2, 3));
        assert_eq!(report.image_to_text.r1, 50.0);
        assert!((report.text_to_image.r1 - 200.0 / 3.0).abs() < 1e-12);
        assert_eq!(report.text_to_image.r5, 100.0);
    }

    #[test]
    fn embeddings_give_what_their_similarity_gives() {
        let row = |i: usize, noise: f32| [(i as f32).sin(), (i as f32 * 0.7).cos() + noise, (i as f32 * 1.3).sin()];
        let images: Vec<[f32; 3]> = (0..40).map(|i| row(i, 0.0)).collect();
        let captions: Vec<[f32; 3]> = (0..120).map(|i| row(i / 3, (i as f32).cos() * 0.3)).collect();
        let embed = |rows: &[[f32; 3]]| Embeddings::from_features(&matrix(rows)).unwrap();
        let (images, captions) = (embed(&images), embed(&captions));
        let pairs = CaptionPairs::new(40, &(0..120).map(|i| i / 3).collect::<Vec<_>>()).unwrap();
        let report = RetrievalReport::from_embeddings(&images, &captions, &pairs).unwrap();
        let whole = RetrievalReport::from_similarity(&images.cosine(&captions).unwrap(), &pairs).unwrap();
        assert_eq!(report, whole);
        assert!(report.text_to_image.r1 > 10.0 && report.text_to_image.r1 < 90.0, "{report:?}");
        assert!(
            RetrievalReport::from_embeddings(&captions, &images, &pairs).unwrap_err().to_string().starts_with("pairs")
        );
    }

    #[test]
    fn a_report_is_written_in_percent_with_two_decimals() {
        let recall = Recall::from_ranks(&[0, 4, 11]);
        let report = RetrievalReport { text_to_image: recall, image_to_text: recall, images: 1, captions: 3 };
        let recall = r#"{"r1":33.33,"r5":66.67,"r10":66.67}"#;
        let expected = format!(r#"{{"text_to_image":{recall},"image_to_text":{recall},"images":1,"captions":3}}"#);
        assert_eq!(serde_json::to_string(&report).unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_ranked_is_refused_by_name() {
        let similarity = matrix(&[[0.5, f32::NAN], [0.1, 0.2]]);
        let cases = [
            (ranks(&similarity, &[vec![0], vec![1]]), "query 0 has a similarity that is NaN"),
            (ranks(&matrix(&[[0.5, 0.1]]), &[vec![]]), "query 0 has no right item"),
            (ranks(&matrix(&[[0.5, 0.1]]), &[vec![2]]), "has item 2 as a right one, but the gallery has 2"),
            (ranks(&matrix(&[[0.5, 0.1]]), &[vec![0], vec![1]]), "1 rows for 2 queries"),
            (ranks(&Tensor::new(&[1f32], &Device::Cpu).unwrap(), &[vec![0]]), "expected (Q, G), found [1]"),
        ];
        for (result, expected) in cases {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(expected), "{message:?} does not say {expected:?}");
        }
        assert!(CaptionPairs::new(1, &[0, 1]).unwrap_err().to_string().contains("caption 1 names image 1"));
        assert!(CaptionPairs::new(2, &[0, 0]).unwrap_err().to_string().contains("image 1 has no caption"));
    }
}
