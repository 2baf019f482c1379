//! [`DistillLoss`]: a loss and the likeness to a teacher (CLIP-KD, Yang et al. 2024, arXiv 2307.12732; open_clip's
//! `DistillClipLoss`).
//!
//! With the student's logits z and the teacher's z̄, rows p̄ᵢ = softmax(z̄ᵢ), pᵢ = softmax(zᵢ), and the same over columns:
//!
//! ```text
//! logits   = ½ [ 1/B Σᵢ KL(p̄ᵢ ‖ pᵢ) + 1/M Σⱼ KL(p̄ⱼ ‖ pⱼ) ]
//! features = 1/B Σᵢ ‖xᵢ − x̄ᵢ‖² + 1/M Σⱼ ‖yⱼ − ȳⱼ‖²
//! patches  = 1/BK Σᵢₖ (1 − cos(tᵢₖ, t̄ᵢₖ))
//! loss = base + wₗ · logits + w_f · features + wₚ · patches
//! ```
//!
//! Patches are tokens of the K patches that the student sees of an image: one row an image says little to a transformer that starts from random
//! weights on few images, one a patch says where to look (Li et al. 2022, "Locality Guidance for Improving Vision Transformers on
//! Tiny Datasets", arXiv 2207.10026).
//!
//! The divergence differs from the cross-entropy in open_clip by the teacher's entropy, a constant: it is zero for a perfect
//! student and has the same gradients.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use super::Loss;
use super::pairs::{Pairs, Teacher};
use super::targets::wide;
use crate::{Error, Result, ops};

/// A loss of the pairs and two terms that draw the student to a [`Teacher`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct DistillLoss {
    /// The loss of the pairs themselves; `None` for the teacher alone.
    pub base: Option<Box<Loss>>,
    /// wₗ, the weight of the divergence of the logits.
    pub logits: f64,
    /// w_f, the weight of the distance of the embeddings; they must have the teacher's width.
    pub features: f64,
    /// wₚ, the weight of the distance of the patches.
    #[serde(default)]
    pub patches: f64,
}

impl DistillLoss {
    /// `base` and the teacher's logits with weight 1; embeddings are not compared.
    #[must_use]
    pub fn new(base: impl Into<Option<Loss>>) -> Self {
        Self { base: base.into().map(Box::new), logits: 1.0, features: 0.0, patches: 0.0 }
    }

    /// The same with other weights of logits and features.
    #[must_use]
    pub fn with_weights(self, logits: f64, features: f64) -> Self {
        Self { logits, features, ..self }
    }

    /// The same with patches compared, with this weight.
    #[must_use]
    pub fn with_patches(self, patches: f64) -> Self {
        Self { patches, ..self }
    }

    /// Whether a student `student` wide can learn from a teacher `teacher` wide, before any of them has run.
    pub(crate) fn check(&self, student: usize, teacher: usize) -> Result<()> {
        self.check_weights()?;
        if self.features > 0.0 && student != teacher {
            let message = format!(
                "has embeddings of {teacher}, the student of {student}; compare logits instead, or project the student to its width"
            );
            return Err(Error::argument("teacher", message));
        }
        Ok(())
    }

    fn check_weights(&self) -> Result<()> {
        let weights = [
            ("DistillLoss::logits", self.logits),
            ("DistillLoss::features", self.features),
            ("DistillLoss::patches", self.patches),
        ];
        for (argument, weight) in weights {
            if !(weight.is_finite() && weight >= 0.0) {
                return Err(Error::argument(argument, format!("is {weight}; a finite number of at least 0 is needed")));
            }
        }
        Ok(())
    }

    /// The loss of a batch.
    ///
    /// # Shapes
    /// See [`Pairs`], [`Teacher`] → ().
    ///
    /// # Errors
    /// When there is no teacher, shapes do not fit, or a weight is negative.
    pub fn of(&self, pairs: &Pairs<'_>) -> Result<Tensor> {
        self.check_weights()?;
        let missing = || Error::argument("teacher", "is missing; distillation needs a teacher's embeddings");
        let teacher = pairs.teacher.ok_or_else(missing)?;
        check_teacher(pairs, teacher)?;
        let mut terms = Vec::new();
        if let Some(base) = &self.base {
            terms.push(base.of(pairs)?);
        }
        if self.logits > 0.0 {
            terms.push((divergence(&pairs.logits_per_image()?, &teacher.logits()?)? * self.logits)?);
        }
        if self.features > 0.0 {
            let distance = |student: &Tensor, teacher: &Tensor| -> Result<Tensor> {
                if student.dims() != teacher.dims() {
                    let message = format!(
                        "has embeddings {:?}, the student {:?}; compare logits instead, or project the student to its width",
                        teacher.dims(),
                        student.dims()
                    );
                    return Err(Error::argument("teacher", message));
                }
                let student = wide(student)?;
                Ok((&student - teacher.detach().to_dtype(student.dtype())?)?.sqr()?.sum(D::Minus1)?.mean_all()?)
            };
            let images = distance(pairs.image_embeds, &teacher.image_embeds)?;
            terms.push(((images + distance(pairs.text_embeds, &teacher.text_embeds)?)? * self.features)?);
        }
        if self.patches > 0.0 {
            terms.push((patch_distance(pairs.patches, teacher.patches.as_ref())? * self.patches)?);
        }
        let mut terms = terms.into_iter();
        let first = terms
            .next()
            .ok_or_else(|| Error::argument("DistillLoss", "there is no loss: no base, and no weight above 0"))?;
        terms.try_fold(first, |sum, term| Ok((sum + term)?))
    }
}

fn check_teacher(pairs: &Pairs<'_>, teacher: &Teacher) -> Result<()> {
    let sizes = pairs.sizes()?;
    let (images, texts) = (teacher.image_embeds.dims(), teacher.text_embeds.dims());
    match (images, texts) {
        (&[b, d], &[m, e]) if (b, m) == sizes && d == e => Ok(()),
        _ => Err(Error::argument(
            "teacher",
            format!("has images {images:?} and texts {texts:?} for a batch of {} and {}", sizes.0, sizes.1),
        )),
    }
}

/// One minus the mean cosine of the patches.
fn patch_distance(student: Option<&Tensor>, teacher: Option<&Tensor>) -> Result<Tensor> {
    let (Some(student), Some(teacher)) = (student, teacher) else {
        return Err(Error::argument("patches", "are missing; the student's and the teacher's are needed"));
    };
    if student.dims() != teacher.dims() {
        let message = format!("are {:?} of the student, {:?} of the teacher", student.dims(), teacher.dims());
        return Err(Error::argument("patches", message));
    }
    let student = ops::l2_normalize(&wide(student)?)?;
    let cosines = (&student * teacher.detach().to_dtype(student.dtype())?)?.sum(D::Minus1)?;
    Ok((1.0 - cosines.mean_all()?)?)
}

/// The mean over both directions of KL(teacher ‖ student).
fn divergence(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let student = wide(student)?;
    let teacher = teacher.to_dtype(student.dtype())?;
    let direction = |student: &Tensor, teacher: &Tensor| -> Result<Tensor> {
        let (student, teacher) = (log_softmax(student)?, log_softmax(teacher)?);
        Ok((teacher.exp()? * (&teacher - student)?)?.sum(D::Minus1)?.mean_all()?)
    };
    let rows = direction(&student, &teacher)?;
    let columns = direction(&student.t()?.contiguous()?, &teacher.t()?.contiguous()?)?;
    Ok(((rows + columns)? * 0.5)?)
}

fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::loss::ClipLoss;

    #[test]
    fn a_student_like_its_teacher_has_nothing_to_learn_from_it() {
        let rows = Tensor::new(&[[0.6f32, 0.8], [1.0, 0.0]], &Device::Cpu).unwrap();
        let scale = Tensor::new(5f32, &Device::Cpu).unwrap();
        let teacher =
            Teacher { image_embeds: rows.clone(), text_embeds: rows.clone(), logit_scale: 5.0, patches: None };
        let pairs = Pairs { teacher: Some(&teacher), ..Pairs::new(&rows, &rows, &scale) };
        let loss = DistillLoss::new(None).with_weights(1.0, 1.0).of(&pairs).unwrap();
        assert!(loss.to_scalar::<f32>().unwrap().abs() < 1e-6);
        let wider = Teacher { image_embeds: Tensor::cat(&[&rows, &rows], 1).unwrap(), ..teacher.clone() };
        let pairs = Pairs { teacher: Some(&wider), ..pairs };
        assert!(DistillLoss::new(None).of(&pairs).unwrap_err().to_string().starts_with("teacher"));
        let alone = Pairs { teacher: None, ..pairs };
        let error = DistillLoss::new(Loss::Clip(ClipLoss::new())).of(&alone).unwrap_err().to_string();
        assert!(error.contains("teacher: is missing"), "{error}");
    }

    #[test]
    fn half_precision_logits_are_compared_in_single() {
        let rows = Tensor::new(&[[0.6f32, 0.8], [1.0, 0.0]], &Device::Cpu).unwrap();
        let teacher =
            Teacher { image_embeds: rows.clone(), text_embeds: rows.clone(), logit_scale: 5.0, patches: None };
        let (half, scale) = (rows.to_dtype(DType::F16).unwrap(), Tensor::new(5f32, &Device::Cpu).unwrap());
        let scale = scale.to_dtype(DType::F16).unwrap();
        let pairs = Pairs { teacher: Some(&teacher), ..Pairs::new(&half, &half, &scale) };
        let loss = DistillLoss::new(None).with_weights(1.0, 1.0).of(&pairs).unwrap();
        assert_eq!(loss.dtype(), DType::F32);
    }
}
