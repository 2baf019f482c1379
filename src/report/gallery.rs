//! [`Gallery`]: which captions found their image best, and which worst, with small pictures of what was found.

use crate::data::Split;
use crate::image::image_crate::codecs::jpeg::JpegEncoder;
use crate::image::image_crate::{DynamicImage, RgbImage};
use crate::image::{Filter, ImageSize, resize};
use crate::retrieval::{for_each_block, top_k};
use crate::{Embeddings, Error, Result};

/// The longer side of a picture, in pixels.
const SIDE: u32 = 176;
/// The pictures' JPEG quality.
const QUALITY: u8 = 78;
/// How many found images are shown a caption.
const FOUND: usize = 4;

/// A small picture in a [`Retrieved`].
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// The image's file name, without folders.
    pub name: String,
    /// A JPEG file of at most 176 pixels a side, or nothing where the image could not be read.
    pub jpeg: Vec<u8>,
    /// The cosine with the caption.
    pub score: f32,
    /// Whether it is the caption's own image.
    pub right: bool,
}

/// What one caption found.
#[derive(Debug, Clone, PartialEq)]
pub struct Retrieved {
    /// The caption.
    pub caption: String,
    /// The place of its own image among all, counted from 1.
    pub rank: usize,
    /// The first images found, best first.
    pub found: Vec<Picture>,
    /// Its own image, where that is not among them.
    pub own: Option<Picture>,
}

/// The captions that found their image with the largest lead, and those that had it furthest down; one caption an image.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Gallery {
    /// The best, largest lead first.
    pub best: Vec<Retrieved>,
    /// The worst, furthest down first.
    pub worst: Vec<Retrieved>,
    /// Among how many images was searched.
    pub images: usize,
}

/// How one caption did.
#[derive(Clone, Copy)]
struct Placed {
    caption: usize,
    image: usize,
    rank: usize,
    lead: f32,
}

impl Gallery {
    /// The `count` best and the `count` worst captions of `split`. `read` gives the image of an index; one that fails leaves its place
    /// empty.
    ///
    /// # Shapes
    /// `images` (N,D) and `captions` (M,D) of the split's N images and all its M captions, in the split's order.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if the numbers of rows are not the split's, or the rows cannot be compared.
    pub fn new(
        split: &Split,
        images: &Embeddings,
        captions: &Embeddings,
        count: usize,
        read: impl Fn(usize) -> Result<DynamicImage>,
    ) -> Result<Self> {
        let (texts, image_of) = split.flat_captions();
        if (images.len(), captions.len()) != (split.image_count(), texts.len()) {
            let found = format!("{} images and {} captions", images.len(), captions.len());
            let message = format!("{found} are embedded, the split has {} and {}", split.image_count(), texts.len());
            return Err(Error::argument("embeddings", message));
        }
        let mut placed = Vec::with_capacity(texts.len());
        for_each_block(captions, images, |start, block| {
            let rows = block.chunks(images.len()).enumerate();
            placed.extend(rows.map(|(i, scores)| Placed::new(start + i, image_of[start + i], scores)));
            Ok(())
        })?;
        let show = |chosen: Vec<Placed>| -> Result<Vec<Retrieved>> {
            let queries = captions.select(&chosen.iter().map(|placed| placed.caption).collect::<Vec<_>>())?;
            let hits = top_k(&queries, images, FOUND)?;
            let picture = |index: usize, own: usize, score: f32| Picture {
                name: file_name(&split.images()[index]),
                jpeg: read(index).and_then(|image| thumbnail(&image.to_rgb8())).unwrap_or_default(),
                score,
                right: index == own,
            };
            let one = |(placed, hits): (&Placed, Vec<crate::retrieval::Hit>)| -> Result<Retrieved> {
                let found = hits.iter().map(|hit| picture(hit.index, placed.image, hit.score)).collect();
                let own = if hits.iter().any(|hit| hit.index == placed.image) {
                    None
                } else {
                    let own = captions.select(&[placed.caption])?.cosine(&images.select(&[placed.image])?)?;
                    Some(picture(placed.image, placed.image, own.flatten_all()?.get(0)?.to_scalar()?))
                };
                let caption = texts[placed.caption].to_string();
                Ok(Retrieved { caption, rank: placed.rank + 1, found, own })
            };
            chosen.iter().zip(hits).map(one).collect()
        };
        placed.sort_by(|a, b| a.rank.cmp(&b.rank).then(b.lead.total_cmp(&a.lead)).then(a.caption.cmp(&b.caption)));
        let best = distinct(placed.iter().filter(|placed| placed.rank == 0), count);
        placed.reverse();
        let worst = distinct(placed.iter().filter(|placed| placed.rank > 0), count);
        Ok(Self { best: show(best)?, worst: show(worst)?, images: images.len() })
    }
}

impl Placed {
    /// Equal scores of a lower index come first, as in [`ranks`](crate::retrieval::ranks).
    fn new(caption: usize, image: usize, scores: &[f32]) -> Self {
        let own = scores[image];
        let (mut rank, mut other) = (0, f32::NEG_INFINITY);
        for (index, &score) in scores.iter().enumerate().filter(|(index, _)| *index != image) {
            rank += usize::from(score > own || score == own && index < image);
            other = other.max(score);
        }
        Self { caption, image, rank, lead: own - other }
    }
}

/// The first `count` captions of different images.
fn distinct<'a>(placed: impl Iterator<Item = &'a Placed>, count: usize) -> Vec<Placed> {
    let mut seen = std::collections::HashSet::new();
    placed.filter(|placed| seen.insert(placed.image)).take(count).copied().collect()
}

/// The last part of a path of either system.
pub(super) fn file_name(path: &str) -> String {
    path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default().to_string()
}

/// A small JPEG file of `image`.
fn thumbnail(image: &RgbImage) -> Result<Vec<u8>> {
    let longer = image.width().max(image.height()).max(1);
    let scaled = |side: u32| (u64::from(side) * u64::from(SIDE) / u64::from(longer)).max(1) as u32;
    let small;
    let image = if longer > SIDE {
        let size = ImageSize { height: scaled(image.height()), width: scaled(image.width()) };
        small = resize(image, size, Filter::Bicubic)?;
        &small
    } else {
        image
    };
    let mut out = Vec::new();
    let encoded = JpegEncoder::new_with_quality(&mut out, QUALITY).encode_image(image);
    encoded.map_err(|error| Error::image("thumbnail", error))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    fn rows(rows: &[[f32; 2]]) -> Embeddings {
        let values = Tensor::from_slice(rows.as_flattened(), (rows.len(), 2), &Device::Cpu).unwrap();
        Embeddings::from_features(&values).unwrap()
    }

    #[test]
    fn the_best_lead_and_the_worst_are_furthest_down() {
        let split = Split::new(
            vec!["/home/me/a.png".into(), "b.png".into(), "c.png".into()],
            vec![vec!["found".into(), "found less clearly".into()], vec!["last".into()], vec!["second".into()]],
        )
        .unwrap();
        let images = rows(&[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]);
        let captions = rows(&[[1.0, -0.2], [1.0, 0.4], [1.0, 0.0], [0.2, 1.0]]);
        let read = |index: usize| match index {
            1 => Err(Error::argument("image", "gone")),
            _ => Ok(DynamicImage::ImageRgb8(RgbImage::new(1000, 10))),
        };
        let gallery = Gallery::new(&split, &images, &captions, 5, read).unwrap();
        let captions_of = |list: &[Retrieved]| list.iter().map(|r| (r.caption.clone(), r.rank)).collect::<Vec<_>>();
        assert_eq!(captions_of(&gallery.best), [("found".to_string(), 1)]);
        assert_eq!(captions_of(&gallery.worst), [("last".to_string(), 3), ("second".to_string(), 2)]);
        let found = &gallery.worst[0].found;
        assert_eq!(found.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["a.png", "c.png", "b.png"]);
        assert_eq!(found.iter().map(|p| p.right).collect::<Vec<_>>(), [false, false, true]);
        assert!(found[2].jpeg.is_empty(), "an image that cannot be read has no picture");
        let small = crate::image::image_crate::load_from_memory(&found[0].jpeg).unwrap();
        assert_eq!((small.width(), small.height()), (SIDE, 1));
        assert!(Gallery::new(&split, &images, &images, 1, read).is_err());
    }

    #[test]
    fn names_have_no_folders() {
        for (path, name) in [("/home/me/a.jpg", "a.jpg"), ("C:\\me\\a.jpg", "a.jpg"), ("a.jpg", "a.jpg"), ("m/", "m")] {
            assert_eq!(file_name(path), name);
        }
    }
}
