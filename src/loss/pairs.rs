//! [`Pairs`]: what the loss of a batch depends on, and [`Positives`]: which images and texts belong together.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result};

/// A batch as losses see it: B images, M texts.
///
/// Without [`Positives`] image i belongs to text i; texts behind the B first ones belong to no image and are hard negatives of
/// all of them.
#[derive(Debug, Clone, Copy)]
pub struct Pairs<'a> {
    /// Unit rows of images (B,D).
    pub image_embeds: &'a Tensor,
    /// Unit rows of texts (M,D).
    pub text_embeds: &'a Tensor,
    /// The factor s itself, already exponentiated, () or (1).
    pub logit_scale: &'a Tensor,
    /// What is added to the logits, () or (1), where the model has it.
    pub logit_bias: Option<&'a Tensor>,
    /// Which images and texts belong together, where that is not one by one.
    pub positives: Option<&'a Positives>,
    /// What a teacher makes of the same images and texts.
    pub teacher: Option<&'a Teacher>,
    /// Tokens of the images' patches (B,K,E), where a teacher's are compared with them.
    pub patches: Option<&'a Tensor>,
}

/// A teacher's view of a batch. Nothing of it is trained.
#[derive(Debug, Clone)]
pub struct Teacher {
    /// Unit rows of images (B,D′).
    pub image_embeds: Tensor,
    /// Unit rows of texts (M,D′).
    pub text_embeds: Tensor,
    /// The teacher's factor between cosines and logits.
    pub logit_scale: f64,
    /// Unit rows of the images' patches (B,K,E), for who compares them with [`Pairs::patches`].
    pub patches: Option<Tensor>,
}

impl<'a> Pairs<'a> {
    /// Images and texts that belong together one by one.
    #[must_use]
    pub fn new(image_embeds: &'a Tensor, text_embeds: &'a Tensor, logit_scale: &'a Tensor) -> Self {
        Self { image_embeds, text_embeds, logit_scale, logit_bias: None, positives: None, teacher: None, patches: None }
    }

    /// How many images B and texts M there are, if all shapes fit.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) with both shapes if they do not.
    pub fn sizes(&self) -> Result<(usize, usize)> {
        let (images, texts) = (self.image_embeds.dims(), self.text_embeds.dims());
        let fit = matches!((images, texts), (&[b, d], &[m, e]) if d == e && b > 0 && m > 0);
        if !fit || (self.positives.is_none() && texts[0] < images[0]) {
            let message = format!(
                "expected (B, D) and (M, D), M at least B where pairs go one by one, found images {images:?} and texts {texts:?}"
            );
            return Err(Error::argument("image_embeds, text_embeds", message));
        }
        if self.logit_scale.elem_count() != 1 {
            let message = format!("expected one number, found {:?}", self.logit_scale.dims());
            return Err(Error::argument("logit_scale", message));
        }
        if let Some(bias) = self.logit_bias.filter(|bias| bias.elem_count() != 1) {
            return Err(Error::argument("logit_bias", format!("expected one number, found {:?}", bias.dims())));
        }
        let sizes = (images[0], texts[0]);
        if let Some(positives) = self.positives.filter(|positives| positives.sizes() != sizes) {
            let message = format!("are of {:?} images and texts, the batch has {sizes:?}", positives.sizes());
            return Err(Error::argument("positives", message));
        }
        Ok(sizes)
    }

    /// `s · x·yᵀ + b`, with the graph.
    ///
    /// # Shapes
    /// → (B,M).
    ///
    /// # Errors
    /// As [`Pairs::sizes`].
    pub fn logits_per_image(&self) -> Result<Tensor> {
        self.sizes()?;
        let cosines = self.image_embeds.matmul(&self.text_embeds.t()?)?;
        let logits = cosines.broadcast_mul(&self.logit_scale.reshape(())?)?;
        match self.logit_bias {
            Some(bias) => Ok(logits.broadcast_add(&bias.reshape(())?)?),
            None => Ok(logits),
        }
    }

    /// Which images and texts belong together, one by one where nothing else was said.
    pub(super) fn positives_mask(&self, rows: Range<usize>) -> Result<Tensor> {
        let device = self.image_embeds.device();
        match self.positives {
            Some(positives) => positives.mask(rows, device),
            None => diagonal(rows, self.text_embeds.dim(0)?, device),
        }
    }
}

/// Rows `rows` of a matrix of M columns with ones where row and column are the same.
fn diagonal(rows: Range<usize>, texts: usize, device: &Device) -> Result<Tensor> {
    let mut values = vec![0f32; rows.len() * texts];
    for (at, i) in rows.clone().enumerate() {
        values[at * texts + i] = 1.0;
    }
    Ok(Tensor::from_vec(values, (rows.len(), texts), device)?)
}

/// Which of B images and M texts belong together: any number of texts an image, and of images a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positives {
    texts: usize,
    rows: Vec<Vec<u32>>,
}

impl Positives {
    /// Image i and text j belong together if their groups are the same. A text of a group that no image has is a hard negative.
    ///
    /// # Shapes
    /// B and M group ids.
    #[must_use]
    pub fn from_groups(image_groups: &[u64], text_groups: &[u64]) -> Self {
        let mut members: HashMap<u64, Vec<u32>> = HashMap::new();
        for (j, group) in text_groups.iter().enumerate() {
            members.entry(*group).or_default().push(j as u32);
        }
        let rows = image_groups.iter().map(|group| members.get(group).cloned().unwrap_or_default()).collect();
        Self { texts: text_groups.len(), rows }
    }

    /// For B pairs with the id of each one's image and of its caption: image i and text j belong together if i = j, if both
    /// pairs have the same image, or if both have the same caption.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if there are not as many images as captions.
    pub fn from_pairs(images: &[u64], captions: &[u64]) -> Result<Self> {
        if images.len() != captions.len() {
            let message = format!("{} ids of images for {} of captions", images.len(), captions.len());
            return Err(Error::argument("images, captions", message));
        }
        let (by_image, by_caption) = (Self::from_groups(images, images), Self::from_groups(captions, captions));
        let union = |(a, b): (Vec<u32>, Vec<u32>)| {
            let mut row = [a, b].concat();
            row.sort_unstable();
            row.dedup();
            row
        };
        let rows = by_image.rows.into_iter().zip(by_caption.rows).map(union).collect();
        Ok(Self { texts: captions.len(), rows })
    }

    /// Numbers of images B and texts M.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize) {
        (self.rows.len(), self.texts)
    }

    /// Whether image i belongs to text i and to no other, for every i.
    #[must_use]
    pub fn is_one_by_one(&self) -> bool {
        self.rows.iter().enumerate().all(|(i, row)| row[..] == [i as u32])
    }

    /// How many (image, text) belong together besides those on the diagonal.
    #[must_use]
    pub fn extra(&self) -> usize {
        self.rows.iter().enumerate().map(|(i, row)| row.iter().filter(|&&j| j as usize != i).count()).sum()
    }

    /// 1 where image and text belong together, 0 elsewhere, of the images `rows`.
    ///
    /// # Shapes
    /// → (rows, M), f32.
    ///
    /// # Errors
    /// When candle fails.
    pub fn mask(&self, rows: Range<usize>, device: &Device) -> Result<Tensor> {
        let mut values = vec![0f32; rows.len() * self.texts];
        for (at, i) in rows.clone().enumerate() {
            self.rows[i].iter().for_each(|&j| values[at * self.texts + j as usize] = 1.0);
        }
        Ok(Tensor::from_vec(values, (rows.len(), self.texts), device)?)
    }
}

impl Teacher {
    /// The teacher's logits (B,M), f32, without a graph.
    pub(super) fn logits(&self) -> Result<Tensor> {
        let rows = |t: &Tensor| t.detach().to_dtype(DType::F32);
        Ok((rows(&self.image_embeds)?.matmul(&rows(&self.text_embeds)?.t()?)? * self.logit_scale)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(positives: &Positives) -> Vec<Vec<f32>> {
        positives.mask(0..positives.sizes().0, &Device::Cpu).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn groups_join_images_and_texts_and_leave_strangers_alone() {
        let positives = Positives::from_groups(&[7, 8, 7], &[8, 7, 9, 7]);
        assert_eq!(matrix(&positives), [[0., 1., 0., 1.], [1., 0., 0., 0.], [0., 1., 0., 1.]]);
        assert!(!positives.is_one_by_one());
        assert!(Positives::from_groups(&[4, 5], &[4, 5]).is_one_by_one());
    }

    #[test]
    fn the_same_image_or_the_same_caption_is_enough_and_does_not_spread() {
        // Pairs 0 and 1 share the image, 1 and 2 the caption: 0 and 2 have nothing in common.
        let positives = Positives::from_pairs(&[1, 1, 2], &[5, 6, 6]).unwrap();
        assert_eq!(matrix(&positives), [[1., 1., 0.], [1., 1., 1.], [0., 1., 1.]]);
        assert_eq!(positives.extra(), 4);
        assert!(Positives::from_pairs(&[1], &[1, 2]).is_err());
    }

    #[test]
    fn sizes_that_do_not_fit_are_named() {
        let tensor = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let (three, two, scale) = (tensor((3, 4)), tensor((2, 4)), Tensor::new(1f32, &Device::Cpu).unwrap());
        assert!(Pairs::new(&two, &three, &scale).sizes().is_ok());
        assert!(Pairs::new(&three, &two, &scale).sizes().unwrap_err().to_string().contains("texts [2, 4]"));
        let positives = Positives::from_groups(&[1, 1], &[1, 1]);
        let pairs = Pairs { positives: Some(&positives), ..Pairs::new(&two, &three, &scale) };
        assert!(pairs.sizes().unwrap_err().to_string().starts_with("positives"));
        let pairs = Pairs { logit_bias: Some(&two), ..Pairs::new(&two, &two, &scale) };
        assert!(pairs.sizes().unwrap_err().to_string().starts_with("logit_bias"));
    }
}
