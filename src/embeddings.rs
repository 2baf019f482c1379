//! [`Embeddings`]: rows of unit length that know which model made them.
//!
//! They live on the host in f32, row by row: that is where files, indices and metrics want them, and where a product of
//! thousands of rows costs milliseconds. For unit rows the cosine is the product: cos(x, y) = x·y.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result};

/// N rows of unit length and width D, and, where it was told, which model made them. Cloning is cheap.
///
/// # Examples
/// ```
/// # fn main() -> diptych::Result<()> {
/// use diptych::Embeddings;
/// use diptych::candle::{Device, Tensor};
/// let rows = Embeddings::from_features(&Tensor::new(&[[3f32, 4.], [0., 2.]], &Device::Cpu)?)?;
/// assert_eq!(rows.row(0), Some([0.6, 0.8].as_slice()));
/// assert_eq!(rows.cosine(&rows)?.to_vec2::<f32>()?[1], [0.8, 1.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    values: Arc<[f32]>,
    dim: usize,
    model: Option<Arc<str>>,
}

impl Embeddings {
    /// Embeddings of projected features of any float type on any device: each row divided by its length. The graph is cut.
    ///
    /// # Shapes
    /// (N,D) → N rows of width D; N may be 0.
    ///
    /// # Errors
    /// When the features are not (N,D) with D > 0, or a row (named) holds a value that is not finite, or nothing but zeros.
    pub fn from_features(features: &Tensor) -> Result<Self> {
        let dim = match *features.dims() {
            [_, dim] if dim > 0 => dim,
            _ => return Err(Error::argument("features", format!("expected (N, D), found {:?}", features.dims()))),
        };
        let features = features.detach().to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let mut values = features.flatten_all()?.to_vec1::<f32>()?;
        for (i, row) in values.chunks_mut(dim).enumerate() {
            normalize(row).map_err(|problem| Error::argument("features", format!("row {i} {problem}")))?;
        }
        Ok(Self { values: values.into(), dim, model: None })
    }

    /// The same rows, marked as made by `model`: rows of different models are never compared.
    #[must_use]
    pub fn with_model(mut self, model: impl Into<Arc<str>>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// Which model made the rows, if that was told.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// N: how many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len() / self.dim
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// D: how wide a row is.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Row `i` (D), or `None` past the end.
    #[must_use]
    pub fn row(&self, i: usize) -> Option<&[f32]> {
        self.values.chunks(self.dim).nth(i)
    }

    /// The rows (D), in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks(self.dim)
    }

    /// All rows as a tensor (N,D), f32 on the CPU.
    ///
    /// # Errors
    /// When candle cannot make the tensor.
    pub fn tensor(&self) -> Result<Tensor> {
        self.block(0, self.len())
    }

    /// The cosine of each row with each row of `other`.
    ///
    /// # Shapes
    /// (N,D) and (M,D) → (N,M), f32 on the CPU.
    ///
    /// # Errors
    /// When the widths differ or the rows were made by different models.
    pub fn cosine(&self, other: &Self) -> Result<Tensor> {
        self.check_comparable(other)?;
        self.cosine_block(0, self.len(), &other.tensor()?)
    }

    /// The rows of all `parts`, one part after the other. The model is kept if all of them name it.
    ///
    /// # Errors
    /// When there is no part, the widths differ, or the rows were made by different models.
    pub fn concat(parts: &[Self]) -> Result<Self> {
        let Some((first, rest)) = parts.split_first() else {
            return Err(Error::argument("parts", "the list is empty; at least one is needed"));
        };
        rest.iter().try_for_each(|part| first.check_comparable(part))?;
        let named: Vec<_> = parts.iter().filter_map(|part| part.model.clone()).collect();
        if let Some(other) = named.iter().find(|&model| *model != named[0]) {
            return Err(Error::argument("parts", format!("rows of model '{}' and of model '{other}'", named[0])));
        }
        let model = if named.len() == parts.len() { named.first().cloned() } else { None };
        let values = parts.iter().flat_map(|part| part.values.iter().copied()).collect::<Vec<_>>();
        Ok(Self { values: values.into(), dim: first.dim, model })
    }

    /// The rows `indices`, in that order; a row may come more than once.
    ///
    /// # Errors
    /// When an index is no row.
    pub fn select(&self, indices: &[usize]) -> Result<Self> {
        let mut values = Vec::with_capacity(indices.len() * self.dim);
        for &index in indices {
            let row = self.row(index).ok_or_else(|| {
                Error::argument("indices", format!("there is no row {index}; there are {}", self.len()))
            })?;
            values.extend_from_slice(row);
        }
        Ok(Self { values: values.into(), dim: self.dim, model: self.model.clone() })
    }

    /// Whether the cosine of rows of `self` and `other` means anything.
    pub(crate) fn check_comparable(&self, other: &Self) -> Result<()> {
        if self.dim != other.dim {
            let message = format!("rows of width {} cannot be compared with rows of width {}", other.dim, self.dim);
            return Err(Error::argument("embeddings", message));
        }
        match (&self.model, &other.model) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                let message = format!("rows of model '{theirs}' cannot be compared with rows of model '{ours}'");
                Err(Error::argument("embeddings", message))
            }
            _ => Ok(()),
        }
    }

    /// Cosines of rows `start..start + count` with all rows of `other` (M,D) → (count,M).
    pub(crate) fn cosine_block(&self, start: usize, count: usize, other: &Tensor) -> Result<Tensor> {
        let columns = other.dim(0)?;
        if count == 0 || columns == 0 {
            return Ok(Tensor::zeros((count, columns), DType::F32, &Device::Cpu)?);
        }
        Ok(self.block(start, count)?.matmul(&other.t()?)?)
    }

    fn block(&self, start: usize, count: usize) -> Result<Tensor> {
        let values = &self.values[start * self.dim..(start + count) * self.dim];
        Ok(Tensor::from_slice(values, (count, self.dim), &Device::Cpu)?)
    }
}

/// Divides a row by its length, or says what is wrong with it.
fn normalize(row: &mut [f32]) -> std::result::Result<(), &'static str> {
    // f64: the squares of large f16 features and of tiny ones stay in range.
    let square: f64 = row.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    if !square.is_finite() {
        return Err("holds a value that is not finite");
    }
    if square == 0.0 {
        return Err("is all zeros and has no direction");
    }
    let length = square.sqrt();
    row.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(rows: &[[f32; 2]]) -> Tensor {
        Tensor::from_slice(rows.as_flattened(), (rows.len(), 2), &Device::Cpu).unwrap()
    }

    fn embeddings(rows: &[[f32; 2]]) -> Embeddings {
        Embeddings::from_features(&features(rows)).unwrap()
    }

    #[test]
    fn rows_have_unit_length_at_any_scale_of_the_features() {
        let rows = embeddings(&[[3.0, 4.0], [-3e30, 4e30], [3e-30, 4e-30]]);
        assert_eq!((rows.len(), rows.dim()), (3, 2));
        for (row, expected) in rows.rows().zip([[0.6, 0.8], [-0.6, 0.8], [0.6, 0.8]]) {
            assert!(row.iter().zip(expected).all(|(f, e): (&f32, f32)| (f - e).abs() < 1e-6), "{row:?}");
        }
        assert_eq!(rows.row(1), rows.rows().nth(1));
        assert_eq!(rows.row(3), None);
    }

    #[test]
    fn rows_without_a_direction_are_named() {
        for (bad, expected) in [
            ([0.0, 0.0], "row 1 is all zeros"),
            ([f32::NAN, 1.0], "row 1 holds"),
            ([f32::INFINITY, 1.0], "row 1 holds"),
        ] {
            let message = Embeddings::from_features(&features(&[[1.0, 1.0], bad])).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        let flat = Tensor::new(&[1f32], &Device::Cpu).unwrap();
        assert!(Embeddings::from_features(&flat).unwrap_err().to_string().contains("expected (N, D), found [1]"));
    }

    #[test]
    fn cosine_is_rows_against_rows() {
        let (a, b) = (embeddings(&[[1.0, 0.0], [0.0, 5.0], [-2.0, 0.0]]), embeddings(&[[3.0, 4.0], [1.0, 0.0]]));
        assert_eq!(a.cosine(&b).unwrap().to_vec2::<f32>().unwrap(), [[0.6, 1.0], [0.8, 0.0], [-0.6, -1.0]]);
        let none = a.select(&[]).unwrap();
        assert_eq!(none.cosine(&a).unwrap().dims(), [0, 3]);
        assert_eq!(a.cosine(&none).unwrap().dims(), [3, 0]);
    }

    #[test]
    fn rows_of_other_widths_and_other_models_are_not_compared() {
        let a = embeddings(&[[1.0, 0.0]]).with_model("a");
        let wide = Embeddings::from_features(&Tensor::new(&[[1f32, 0., 0.]], &Device::Cpu).unwrap()).unwrap();
        assert!(a.cosine(&wide).unwrap_err().to_string().contains("width 3 cannot be compared with rows of width 2"));
        let b = embeddings(&[[1.0, 0.0]]).with_model("b");
        assert!(a.cosine(&b).unwrap_err().to_string().contains("model 'b' cannot be compared with rows of model 'a'"));
        assert!(a.cosine(&embeddings(&[[1.0, 0.0]])).is_ok());
    }

    #[test]
    fn parts_are_joined_and_rows_picked_in_order() {
        let (a, b) = (embeddings(&[[1.0, 0.0]]).with_model("m"), embeddings(&[[0.0, 1.0]]).with_model("m"));
        let both = Embeddings::concat(&[a.clone(), b.clone()]).unwrap();
        assert_eq!(both.rows().collect::<Vec<_>>(), [[1.0, 0.0], [0.0, 1.0]]);
        assert_eq!(both.model(), Some("m"));
        assert_eq!(both.select(&[1, 0, 1]).unwrap(), Embeddings::concat(&[b.clone(), a.clone(), b.clone()]).unwrap());
        assert!(both.select(&[2]).unwrap_err().to_string().contains("no row 2; there are 2"));
        let unknown = embeddings(&[[1.0, 0.0]]);
        assert_eq!(Embeddings::concat(&[a.clone(), unknown.clone()]).unwrap().model(), None);
        let other = unknown.clone().with_model("other");
        assert!(Embeddings::concat(&[unknown, a, other]).unwrap_err().to_string().contains("'m' and of model 'other'"));
        assert!(Embeddings::concat(&[]).is_err());
    }
}
