//! [`TokenBatch`]: the token ids of a batch of texts (B,L), kept on the host.
//!
//! Everything that depends on single ids (where the pooled token is, which positions are padding) is worked out here, so
//! that no forward pass has to fetch ids back from a device.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result};

/// Token ids (B,L) with the mask that says which of them are text. Cloning is cheap.
///
/// A batch holds at least one row, and each row at least one position that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBatch {
    ids: Arc<[u32]>,
    keep: Arc<[bool]>,
    batch: usize,
    length: usize,
}

impl TokenBatch {
    /// A batch of `rows` of any lengths; shorter ones are filled up on the right with `pad_id`, which is masked out.
    ///
    /// # Shapes
    /// B rows of up to L ids → (B,L).
    ///
    /// # Errors
    /// When there is no row, or a row without ids.
    pub fn from_rows(rows: &[Vec<u32>], pad_id: u32) -> Result<Self> {
        let length = rows.iter().map(Vec::len).max().unwrap_or(0);
        Self::from_rows_of_length(rows, pad_id, length)
    }

    /// A batch from row-major ids and mask: `attention_mask` is 1 where the id is to be read and 0 where it is padding.
    ///
    /// # Shapes
    /// `input_ids` and `attention_mask`: B·L values each.
    ///
    /// # Errors
    /// When the lengths do not fit `(batch, length)`, the mask holds anything but 0 and 1, or a row is masked out entirely.
    pub fn from_ids_and_mask(input_ids: Vec<u32>, attention_mask: &[u32], batch: usize, length: usize) -> Result<Self> {
        if input_ids.is_empty() || batch.checked_mul(length) != Some(input_ids.len()) {
            let message = format!("{} ids do not fill a batch of ({batch}, {length})", input_ids.len());
            return Err(Error::argument("input_ids", message));
        }
        if attention_mask.len() != input_ids.len() {
            let message =
                format!("{} values for {} ids of shape ({batch}, {length})", attention_mask.len(), input_ids.len());
            return Err(Error::argument("attention_mask", message));
        }
        if let Some(other) = attention_mask.iter().find(|&&m| m > 1) {
            return Err(Error::argument("attention_mask", format!("holds {other}; 1 keeps a token and 0 masks it")));
        }
        let keep: Arc<[bool]> = attention_mask.iter().map(|&m| m == 1).collect();
        if let Some(row) = keep.chunks(length).position(|row| !row.contains(&true)) {
            return Err(Error::argument(
                "attention_mask",
                format!("row {row} keeps no token; each row needs one at least"),
            ));
        }
        Ok(Self { ids: input_ids.into(), keep, batch, length })
    }

    /// A batch from tensors of any integer type; without a mask all positions are kept.
    ///
    /// # Shapes
    /// `input_ids` (B,L), `attention_mask` (B,L).
    ///
    /// # Errors
    /// When a tensor is not (B,L) of integers, an id is negative, or as [`TokenBatch::from_ids_and_mask`].
    pub fn from_tensors(input_ids: &Tensor, attention_mask: Option<&Tensor>) -> Result<Self> {
        let (batch, length) = input_ids
            .dims2()
            .map_err(|_| Error::argument("input_ids", format!("expected (B, L), found {:?}", input_ids.dims())))?;
        let ids = host_u32(input_ids, "input_ids")?;
        let mask = match attention_mask {
            None => vec![1; ids.len()],
            Some(mask) if mask.dims() == input_ids.dims() => host_u32(mask, "attention_mask")?,
            Some(mask) => {
                let message = format!("shape {:?} differs from that of input_ids, {:?}", mask.dims(), input_ids.dims());
                return Err(Error::argument("attention_mask", message));
            }
        };
        Self::from_ids_and_mask(ids, &mask, batch, length)
    }

    pub(super) fn from_rows_of_length(rows: &[Vec<u32>], pad_id: u32, length: usize) -> Result<Self> {
        if rows.is_empty() {
            return Err(Error::argument("rows", "the list is empty; at least one row is needed"));
        }
        if let Some(row) = rows.iter().position(Vec::is_empty) {
            return Err(Error::argument("rows", format!("row {row} has no ids")));
        }
        let mut ids = Vec::with_capacity(rows.len() * length);
        let mut keep = Vec::with_capacity(rows.len() * length);
        for row in rows {
            ids.extend_from_slice(row);
            keep.resize(ids.len(), true);
            ids.resize(ids.len() + length.saturating_sub(row.len()), pad_id);
            keep.resize(ids.len(), false);
        }
        Ok(Self { ids: ids.into(), keep: keep.into(), batch: rows.len(), length })
    }

    /// B: how many texts.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// L: how many positions a row has, padding included.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// All ids, row by row (B·L).
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// For each position, row by row (B·L), whether it is text (`true`) or padding (`false`). Shared, not copied.
    #[must_use]
    pub fn keep(&self) -> Arc<[bool]> {
        self.keep.clone()
    }

    /// Whether no position of the batch is padding.
    #[must_use]
    pub fn keeps_all(&self) -> bool {
        !self.keep.contains(&false)
    }

    /// The ids of row `i` (L), padding included, or `None` past the end.
    #[must_use]
    pub fn row(&self, i: usize) -> Option<&[u32]> {
        self.ids.chunks(self.length).nth(i)
    }

    /// How many positions of each row are kept (B).
    #[must_use]
    pub fn kept_lengths(&self) -> Vec<usize> {
        self.keep.chunks(self.length).map(|row| row.iter().filter(|&&keep| keep).count()).collect()
    }

    /// The rows `indices`, in that order; a row may come more than once. L stays.
    ///
    /// # Errors
    /// When `indices` is empty or one of them is no row.
    pub fn select(&self, indices: &[usize]) -> Result<Self> {
        if indices.is_empty() {
            return Err(Error::argument("indices", "the list is empty; at least one row is needed"));
        }
        if let Some(index) = indices.iter().find(|&&i| i >= self.batch) {
            return Err(Error::argument("indices", format!("there is no row {index}; the batch has {}", self.batch)));
        }
        let spans = || indices.iter().map(|&i| i * self.length..(i + 1) * self.length);
        Ok(Self {
            ids: spans().flat_map(|span| &self.ids[span]).copied().collect(),
            keep: spans().flat_map(|span| &self.keep[span]).copied().collect(),
            batch: indices.len(),
            length: self.length,
        })
    }

    /// `input_ids` (B,L) as i64 on `device`.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn input_ids_tensor(&self, device: &Device) -> Result<Tensor> {
        let ids: Vec<i64> = self.ids.iter().map(|&id| i64::from(id)).collect();
        Ok(Tensor::from_vec(ids, (self.batch, self.length), device)?)
    }

    /// `attention_mask` (B,L) as i64 on `device`: 1 where a token is kept, else 0.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn attention_mask_tensor(&self, device: &Device) -> Result<Tensor> {
        let mask: Vec<i64> = self.keep.iter().map(|&keep| i64::from(keep)).collect();
        Ok(Tensor::from_vec(mask, (self.batch, self.length), device)?)
    }

    /// The first position of `id` in each row (B), `None` where the row does not hold it.
    ///
    /// The whole row is searched, padding too, as the reference does (`modeling_clip.py`): where padding repeats the end
    /// token, the first one is still the text's own.
    #[must_use]
    pub fn first_position_of(&self, id: u32) -> Vec<Option<usize>> {
        self.ids.chunks(self.length).map(|row| row.iter().position(|&other| other == id)).collect()
    }

    /// The first position of the largest id in each row (B): the end token of checkpoints whose text config says
    /// `eos_token_id: 2`, a value that OpenAI's vocabulary does not use for it.
    #[must_use]
    pub fn first_largest(&self) -> Vec<usize> {
        // `max_by_key` would give the last of equals; a row is never empty.
        let first = |row: &[u32]| row.iter().max().and_then(|max| row.iter().position(|id| id == max)).unwrap_or(0);
        self.ids.chunks(self.length).map(first).collect()
    }
}

fn host_u32(tensor: &Tensor, argument: &'static str) -> Result<Vec<u32>> {
    if tensor.dtype().is_float() {
        return Err(Error::argument(argument, format!("expected integers, found {:?}", tensor.dtype())));
    }
    let wide = tensor.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
    let narrow = |value: i64| {
        u32::try_from(value).map_err(|_| Error::argument(argument, format!("holds {value}, which is out of range")))
    };
    wide.into_iter().map(narrow).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> TokenBatch {
        TokenBatch::from_rows(&[vec![7, 9, 9], vec![4], vec![9, 2]], 9).unwrap()
    }

    #[test]
    fn short_rows_are_padded_on_the_right_and_masked() {
        let batch = batch();
        assert_eq!((batch.batch(), batch.length()), (3, 3));
        assert_eq!(batch.ids(), [7, 9, 9, 4, 9, 9, 9, 2, 9]);
        assert_eq!(*batch.keep(), [true, true, true, true, false, false, true, true, false]);
        assert_eq!(batch.kept_lengths(), [3, 1, 2]);
        assert_eq!(batch.row(1), Some([4, 9, 9].as_slice()));
        assert_eq!(batch.row(3), None);
        assert!(!batch.keeps_all());
    }

    #[test]
    fn the_pooled_position_is_the_first_of_its_kind() {
        assert_eq!(batch().first_position_of(9), [Some(1), Some(1), Some(0)]);
        assert_eq!(batch().first_position_of(2), [None, None, Some(1)]);
        assert_eq!(batch().first_largest(), [1, 1, 0]);
    }

    #[test]
    fn tensors_are_i64_and_read_back_to_the_same_batch() {
        let batch = batch();
        let (ids, mask) =
            (batch.input_ids_tensor(&Device::Cpu).unwrap(), batch.attention_mask_tensor(&Device::Cpu).unwrap());
        assert_eq!(ids.dtype(), DType::I64);
        assert_eq!(mask.to_vec2::<i64>().unwrap(), [[1, 1, 1], [1, 0, 0], [1, 1, 0]]);
        assert_eq!(TokenBatch::from_tensors(&ids, Some(&mask)).unwrap(), batch);
        assert!(TokenBatch::from_tensors(&ids, None).unwrap().keeps_all());
    }

    #[test]
    fn rows_are_selected_in_the_order_asked_for() {
        let chosen = batch().select(&[2, 0, 2]).unwrap();
        assert_eq!(chosen.ids(), [9, 2, 9, 7, 9, 9, 9, 2, 9]);
        assert_eq!(chosen.kept_lengths(), [2, 3, 2]);
        assert!(batch().select(&[3]).unwrap_err().to_string().contains("no row 3"));
        assert!(batch().select(&[]).is_err());
    }

    #[test]
    fn impossible_batches_are_refused_by_name() {
        let cases = [
            (TokenBatch::from_rows(&[], 0), "rows: the list is empty"),
            (TokenBatch::from_rows(&[vec![1], vec![]], 0), "row 1 has no ids"),
            (TokenBatch::from_ids_and_mask(vec![1, 2, 3], &[1, 1, 1], 2, 2), "3 ids do not fill a batch of (2, 2)"),
            (TokenBatch::from_ids_and_mask(vec![], &[], 0, 0), "0 ids"),
            (TokenBatch::from_ids_and_mask(vec![1, 2], &[1], 1, 2), "attention_mask: 1 values for 2 ids"),
            (TokenBatch::from_ids_and_mask(vec![1, 2], &[1, 2], 1, 2), "holds 2"),
            (TokenBatch::from_ids_and_mask(vec![1, 2], &[1, 0], 2, 1), "row 1 keeps no token"),
            (TokenBatch::from_tensors(&Tensor::new(&[[1i64, -1]], &Device::Cpu).unwrap(), None), "holds -1"),
            (TokenBatch::from_tensors(&Tensor::new(&[[1f32]], &Device::Cpu).unwrap(), None), "expected integers"),
            (TokenBatch::from_tensors(&Tensor::new(&[1i64], &Device::Cpu).unwrap(), None), "expected (B, L)"),
        ];
        for (result, expected) in cases {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(expected), "{message:?} does not say {expected:?}");
        }
    }
}
