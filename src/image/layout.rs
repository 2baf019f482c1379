//! How Pillow holds the pixels of a file: as colours, or as indices of a palette.
//!
//! It matters only to processors that resize and pad before they convert to RGB: Pillow resizes palettes (mode `P`) and
//! one-bit images (mode `1`) by the nearest pixel, and pads with indices or inks. The decoders here give colours only, so the
//! file's header is looked at.
//!
//! Reference: Pillow 13, `PngImagePlugin.py` (`_MODES`), `GifImagePlugin.py` (`_is_palette_needed`) and `BmpImagePlugin.py`.

/// What the values of a file's pixels are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Colours or grey, and maybe an opacity: modes `L`, `LA`, `RGB`, `RGBA`.
    Channels,
    /// Colours or grey of which one stands for transparency: no channel holds the opacity.
    Keyed,
    /// Indices of this palette, or single bits: modes `P` and `1`.
    Indices(Vec<[u8; 3]>),
    /// Four inks: mode `CMYK`.
    Inks,
}

impl Layout {
    /// The layout of a file with these contents.
    pub(crate) fn of_file(bytes: &[u8]) -> Self {
        match bytes {
            [0x89, b'P', b'N', b'G', ..] => png(bytes),
            [b'G', b'I', b'F', b'8', ..] => gif(bytes).unwrap_or(Self::Indices(Vec::new())),
            [b'B', b'M', ..] => bmp(bytes).unwrap_or(Self::Channels),
            [0xff, 0xd8, ..] if jpeg_channels(bytes) == Some(4) => Self::Inks,
            _ => Self::Channels,
        }
    }

    /// The colour of a pixel all of whose values are `value`.
    pub(crate) fn colour(&self, value: u8) -> [u8; 3] {
        match self {
            Self::Channels | Self::Keyed => [value; 3],
            Self::Indices(palette) => palette.get(usize::from(value)).copied().unwrap_or([0; 3]),
            Self::Inks => {
                // What black leaves, less its share of the colour, rounded as in Pillow's `cmyk2rgb`.
                let left = u32::from(255 - value);
                let product = u32::from(value) * left + 128;
                [left.saturating_sub(((product >> 8) + product) >> 8) as u8; 3]
            }
        }
    }

    /// Single bits: everything but 0 is white.
    fn bits() -> Self {
        let mut palette = vec![[255; 3]; 256];
        palette[0] = [0; 3];
        Self::Indices(palette)
    }

    /// Indices of a palette of `size` bytes an entry; if every entry is the grey of its own index, they are greys.
    fn indices(palette: &[u8], size: usize, red: usize) -> Self {
        let palette = palette.chunks_exact(size).map(|c| [c[red], c[1], c[2 - red]]).collect::<Vec<_>>();
        let is_ramp = palette.iter().enumerate().all(|(i, colour)| colour.iter().all(|&value| usize::from(value) == i));
        if is_ramp { Self::Keyed } else { Self::Indices(palette) }
    }
}

/// By bit depth and colour type, which every PNG file states at the same place.
fn png(bytes: &[u8]) -> Layout {
    match (bytes.get(24), bytes.get(25)) {
        (Some(1), Some(0)) => Layout::bits(),
        (_, Some(3)) => {
            let palette = png_palette(bytes).unwrap_or_default();
            Layout::Indices(palette.chunks_exact(3).map(|c| [c[0], c[1], c[2]]).collect())
        }
        (_, Some(0 | 2)) => Layout::Keyed,
        _ => Layout::Channels,
    }
}

/// The contents of the chunk `PLTE`: chunks state their length, and end with a checksum.
fn png_palette(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 8;
    loop {
        let length = u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize;
        if bytes.get(at + 4..at + 8)? == b"PLTE" {
            return bytes.get(at + 8..(at + 8).checked_add(length)?);
        }
        at = at.checked_add(length)?.checked_add(12)?;
    }
}

/// By the palette of the first frame.
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
    Some(Layout::indices(bytes.get(at..at + length)?, 3, 0))
}

/// By the number of colours and the palette.
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
    let start = usize::try_from(header).ok()?.checked_add(14)?;
    let palette = bytes.get(start..start.checked_add(colours * entry)?)?;
    // Blue comes first. Black and white are bits.
    if colours == 2 && palette[..3] == [0; 3] && palette[entry..entry + 3] == [255; 3] {
        return Some(Layout::bits());
    }
    Some(Layout::indices(palette, entry, 2))
}

/// The number of channels, from the segment that begins the frame.
fn jpeg_channels(bytes: &[u8]) -> Option<u8> {
    let mut at = 2;
    loop {
        match (*bytes.get(at)?, *bytes.get(at + 1)?) {
            (0xff, 0xff) => at += 1,
            // Markers C0 to CF begin a frame, but for three that hold tables.
            (0xff, 0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf) => return bytes.get(at + 9).copied(),
            (0xff, _) => at += 2 + usize::from(u16::from_be_bytes([*bytes.get(at + 2)?, *bytes.get(at + 3)?])),
            _ => return None,
        }
    }
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

    #[test]
    fn padding_is_an_index_a_bit_or_an_amount_of_ink() {
        assert_eq!(Layout::Channels.colour(7), [7; 3]);
        let palette = Layout::Indices(vec![[1, 2, 3], [4, 5, 6]]);
        assert_eq!((palette.colour(1), palette.colour(2)), ([4, 5, 6], [0; 3]));
        assert_eq!((Layout::bits().colour(0), Layout::bits().colour(100)), ([0; 3], [255; 3]));
        assert_eq!((Layout::Inks.colour(0), Layout::Inks.colour(255)), ([255; 3], [0; 3]));
    }
}
