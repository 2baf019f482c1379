//! Memory for weights: zeros that cost nothing until they are written, in large pages where the system has them.
//!
//! The kernel hands out memory page by page as it is first written. With pages of 4 KiB, six hundred megabytes of weights take
//! 150 000 interruptions, longer than reading them from the page cache; with 2 MiB, three hundred.

#![allow(unsafe_code)]

/// Bytes from which large pages are asked for, and the size of one.
#[cfg(target_os = "linux")]
const LARGE_PAGE: usize = 2 << 20;
/// Bytes on whose multiples advice may begin and end, whatever the size of a page is.
#[cfg(target_os = "linux")]
const PAGE: usize = 64 << 10;

/// `count` zeros.
pub(crate) fn zeros<T: Copy + Default>(count: usize) -> Vec<T> {
    let mut values = vec![T::default(); count];
    ask_for_large_pages(&mut values);
    values
}

/// The bytes of floats, to be filled from a file. A file's numbers are little-endian: see [`from_little_endian`].
pub(crate) fn bytes_of(values: &mut [f32]) -> &mut [u8] {
    let length = std::mem::size_of_val(values);
    // SAFETY: the same memory, borrowed for as long; every pattern of bits is a value of both types.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), length) }
}

/// Puts numbers in order whose bytes were read as they lie in a file.
pub(crate) fn from_little_endian(values: &mut [f32]) {
    if cfg!(target_endian = "big") {
        values.iter_mut().for_each(|value| *value = f32::from_bits(u32::from_le(value.to_bits())));
    }
}

/// Asks for large pages where they fit, and for small ones at both ends: a large page of which a tensor needs a part would be resident
/// as a whole. Advice alone: where it is not taken, all is well too.
#[cfg(target_os = "linux")]
fn ask_for_large_pages<T>(values: &mut [T]) {
    let range = values.as_mut_ptr_range();
    let (first, last) = ((range.start as usize).next_multiple_of(PAGE), range.end as usize / PAGE * PAGE);
    let (start, end) = ((range.start as usize).next_multiple_of(LARGE_PAGE), last / LARGE_PAGE * LARGE_PAGE);
    let advise = |start: usize, end: usize, advice: libc::c_int| {
        if start < end {
            // SAFETY: whole pages inside of this memory; the advice changes neither what is in them nor who may use them.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, advice) };
        }
    };
    if start >= end {
        return advise(first, last, libc::MADV_NOHUGEPAGE);
    }
    advise(first, start, libc::MADV_NOHUGEPAGE);
    advise(start, end, libc::MADV_HUGEPAGE);
    advise(end, last, libc::MADV_NOHUGEPAGE);
}

#[cfg(not(target_os = "linux"))]
fn ask_for_large_pages<T>(_values: &mut [T]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_filled_by_their_bytes() {
        let mut values = zeros::<f32>(3 << 20);
        assert!(values.iter().all(|&value| value == 0.0));
        bytes_of(&mut values[1..3]).copy_from_slice(&[0, 0, 128, 63, 0, 0, 0, 192]);
        from_little_endian(&mut values[1..3]);
        assert_eq!(values[..4], [0.0, 1.0, -2.0, 0.0]);
    }
}
