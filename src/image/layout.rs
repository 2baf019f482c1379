//! How Pillow holds the pixels of a file: as colours, or as indices of a palette.
//!
//! It matters only to processors that resize before they convert to RGB: Pillow resizes palettes (mode `P`) and one-bit
//! images (mode `1`) by the nearest pixel. The decoders here give colours only, so the file's header is looked at.
//!
//! Reference: Pillow 13, `PngImagePlugin.py` (`_MODES`), `GifImagePlugin.py` (`_is_palette_needed`) and `BmpImagePlugin.py`.

/// What the values of a file's pixels are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Colours or grey, and maybe an opacity: modes `L`, `LA`, `RGB`, `RGBA`, `CMYK`.
    Channels,
    /// Colours or grey of which one stands for transparency: no channel holds the opacity.
    Keyed,
    /// Indices of a palette, or single bits: modes `P` and `1`.
    Indices,
}

impl Layout {
    /// The layout of a file with these contents.
    pub(crate) fn of_file(bytes: &[u8]) -> Self {
        match bytes {
            [0x89, b'P', b'N', b'G', ..] => png(bytes),
            [b'G', b'I', b'F', b'8', ..] => gif(bytes).unwrap_or(Self::Indices),
            [b'B', b'M', ..] => bmp(bytes).unwrap_or(Self::Channels),
            _ => Self::Channels,
        }
    }
}

/// By bit depth and colour type, which every PNG file states at the same place.
fn png(bytes: &[u8]) -> Layout {
    match (bytes.get(24), bytes.get(25)) {
        (Some(1), Some(0)) | (_, Some(3)) => Layout::Indices,
        (_, Some(0 | 2)) => Layout::Keyed,
        _ => Layout::Channels,
    }
}

/// By the palette of the first frame: one in which each entry is the grey of its own index makes the indices colours.
fn gif(bytes: &[u8]) -> Option<Layout> {
    let table = |flags: u8, at: usize| (flags & 0x80 != 0).then(|| (at, 3 << ((flags & 7) + 1)));
    let global = table(*bytes.get(10)?, 13);
    let mut at = global.map_or(13, |(at, length)| at + length);
    // Extensions: two bytes, then blocks that state their length, up to an empty one.
    while *bytes.get(at)? == 0x21 {
        at += 2;
        loop {
            let length = usize::from(*bytes.get(at)?);
            at += 1 + length;
            if length == 0 {
                break;
            }
        }
    }
    let local = (bytes[at] == 0x2c).then(|| bytes.get(at + 9)).flatten().and_then(|&flags| table(flags, at + 10));
    let (at, length) = local.or(global)?;
    let is_ramp =
        bytes.get(at..at + length)?.chunks_exact(3).enumerate().all(|(i, c)| c.iter().all(|&c| usize::from(c) == i));
    Some(if is_ramp { Layout::Keyed } else { Layout::Indices })
}

/// By the number of colours, and whether the palette is the ramp of all greys.
fn bmp(bytes: &[u8]) -> Option<Layout> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let header = number(14)?;
    // The header of OS/2 is shorter, and so are its palette's entries.
    let (bits, entry) = if header == 12 { (bytes.get(24), 3) } else { (bytes.get(28), 4) };
    let bits = u32::from(*bits?);
    if !(1..=8).contains(&bits) {
        return Some(Layout::Channels);
    }
    let stated = if header == 12 { 0 } else { number(46)? };
    let colours = if stated == 0 { 1 << bits } else { usize::try_from(stated).ok()?.min(256) };
    if colours == 2 {
        return Some(Layout::Indices);
    }
    let start = usize::try_from(header).ok()?.checked_add(14)?;
    let palette = bytes.get(start..start.checked_add(colours * entry)?)?;
    let is_ramp = palette.chunks_exact(entry).enumerate().all(|(i, c)| c[..3].iter().all(|&c| usize::from(c) == i));
    Some(if is_ramp { Layout::Channels } else { Layout::Indices })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_end_anywhere_have_some_layout() {
        let gif = [b"GIF89a\x04\0\x04\0\x80\0\0\0\0\0\x01\x01\x01".as_slice(), b"\x21\xfe\x01a\0\x2c"].concat();
        for bytes in [gif.as_slice(), b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"BM\0\0\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff"] {
            for end in 0..bytes.len() {
                Layout::of_file(&bytes[..end]);
            }
        }
        assert_eq!(Layout::of_file(&gif), Layout::Keyed);
    }
}
