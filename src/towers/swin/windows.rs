//! A map cut into windows, moved or not, and put together again.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use crate::Result;

/// Added to the score of a query and a key that the cyclic shift brought together (reference: `get_attn_mask` of timm).
const HIDDEN: f32 = -100.0;

/// Where each place of each window lies on the map. Places outside of the map hold zeros.
pub(super) struct Windows {
    /// Batch, rows, columns, channels.
    sizes: (usize, usize, usize, usize),
    /// Places of a window.
    area: usize,
    /// The windows in which the same pairs are hidden: the part of each place, and each window's places on the map.
    groups: BTreeMap<Vec<u8>, Vec<usize>>,
}

impl Windows {
    /// Windows of `window` places a side on a map (B,H,W,E), which first is moved up and left by `shift` places, what leaves it
    /// coming in again on the other side; then it gets zeros below and on the right until windows fill it.
    pub(super) fn new(sizes: (usize, usize, usize, usize), window: usize, shift: usize) -> Self {
        let (_, rows, columns, _) = sizes;
        let outside = rows * columns;
        let place = |row: usize, column: usize| match row < rows && column < columns {
            true => (row + shift) % rows * columns + (column + shift) % columns,
            false => outside,
        };
        let (full_rows, full_columns) = (rows.next_multiple_of(window), columns.next_multiple_of(window));
        let mut groups: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
        for top in (0..full_rows).step_by(window) {
            for left in (0..full_columns).step_by(window) {
                let inside = (top..top + window).flat_map(|row| (left..left + window).map(move |column| (row, column)));
                let part =
                    |(row, column)| 3 * part(row, full_rows, window, shift) + part(column, full_columns, window, shift);
                let mut parts: Vec<u8> = inside.clone().map(part).collect();
                // Where all is one part, nothing is hidden, whichever part that is.
                if parts.iter().all(|part| *part == parts[0]) {
                    parts.fill(0);
                }
                groups.entry(parts).or_default().extend(inside.map(|(row, column)| place(row, column)));
            }
        }
        Self { sizes, area: window * window, groups }
    }

    /// What `run` makes of the windows, put together to a map. It gets many windows of many images at once, and what to add to
    /// their scores, if anything.
    ///
    /// # Shapes
    /// `x` (B,H,W,E) → (B,H,W,E); `run`: (N,w·w,E), (w·w,w·w) → (N,w·w,E).
    pub(super) fn each(&self, x: &Tensor, run: impl Fn(&Tensor, Option<&Tensor>) -> Result<Tensor>) -> Result<Tensor> {
        let (batch, rows, columns, size) = self.sizes;
        let count = rows * columns;
        let places = |list: Vec<usize>| {
            let list: Vec<u32> = list.into_iter().map(|place| place as u32).collect();
            Tensor::from_vec(list.clone(), list.len(), x.device())
        };
        // One place of zeros behind the map.
        let tokens = x.flatten(1, 2)?.pad_with_zeros(1, 0, 1)?;
        let mut parts = Vec::with_capacity(self.groups.len());
        let mut found = vec![0; count + 1];
        let mut before = 0;
        for (parts_of_places, list) in &self.groups {
            list.iter().enumerate().for_each(|(at, &place)| found[place] = before + at);
            before += list.len();
            let windows = tokens.index_select(&places(list.clone())?, 1)?;
            let windows = windows.reshape((batch * (list.len() / self.area), self.area, size))?;
            let done = run(&windows, hidden(parts_of_places, x.device())?.as_ref())?;
            parts.push(done.reshape((batch, list.len(), size))?);
        }
        found.truncate(count);
        let all = Tensor::cat(&parts, 1)?;
        Ok(all.index_select(&places(found)?, 1)?.reshape((batch, rows, columns, size))?)
    }
}

/// Which of three parts of the moved map a row (or column) is of: before the last window, in it and from inside of the map, or
/// brought there by the shift.
fn part(place: usize, length: usize, window: usize, shift: usize) -> u8 {
    match shift {
        0 => 0,
        _ if place < length - window => 0,
        _ if place < length - shift => 1,
        _ => 2,
    }
}

/// What hides places of other parts from each other; nothing where there is one part.
fn hidden(parts: &[u8], device: &Device) -> Result<Option<Tensor>> {
    if parts.iter().all(|part| *part == parts[0]) {
        return Ok(None);
    }
    let pairs = parts.iter().flat_map(|query| parts.iter().map(move |key| if query == key { 0.0 } else { HIDDEN }));
    Ok(Some(Tensor::from_vec(pairs.collect::<Vec<f32>>(), (parts.len(), parts.len()), device)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_is_put_together_again() -> Result<()> {
        for (rows, columns, window, shift) in [(4, 4, 2, 0), (4, 6, 2, 1), (5, 4, 3, 1), (3, 3, 3, 0), (2, 5, 4, 0)] {
            let count = 2 * rows * columns * 3;
            let x = Tensor::arange(0f32, count as f32, &Device::Cpu)?.reshape((2, rows, columns, 3))?;
            let y = Windows::new(x.dims4()?, window, shift).each(&x, |x, _| Ok(x.clone()))?;
            let values = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
            assert_eq!(values(&x)?, values(&y)?, "{rows}×{columns}, windows of {window} moved by {shift}");
        }
        Ok(())
    }

    #[test]
    fn only_the_last_windows_of_a_moved_map_hide_pairs() {
        let groups = |shift| Windows::new((1, 6, 6, 1), 2, shift).groups;
        assert_eq!(groups(0).len(), 1);
        // Inside, on the right, below, and in the corner.
        let moved: Vec<usize> = groups(1).values().map(|places| places.len() / 4).collect();
        assert_eq!(moved.iter().sum::<usize>(), 9);
        assert_eq!(moved.len(), 4);
    }
}
