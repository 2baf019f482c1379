//! Reading SentencePiece model files (`spiece.model`, `sentencepiece.bpe.model`, `tokenizer.model`).
//!
//! The file is a protocol buffer (`sentencepiece_model.proto`); the few fields that make ids are read, all others skipped.
//! Nothing is trusted: lengths are checked against what is left, and the pieces are bounded in number and size.

use std::path::Path;

use crate::{Error, Result};

/// No vocabulary that is published has as many pieces.
const MOST_PIECES: usize = 4_000_000;

/// The longest piece in bytes; merges are made of all its splits.
const LONGEST_PIECE: usize = 2048;

/// What a model file says about ids.
#[derive(Debug, Default, PartialEq)]
pub(super) struct SentencePieceModel {
    pub(super) pieces: Vec<Piece>,
    pub(super) algorithm: Algorithm,
    pub(super) unk_id: u32,
    pub(super) byte_fallback: bool,
    /// The compiled table of the normaliser; empty where nothing is normalised.
    pub(super) charsmap: Vec<u8>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: PieceKind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum PieceKind {
    /// Part of ordinary text, unknown, unused or a byte.
    Ordinary,
    /// `<s>` and its like, never found in text by SentencePiece.
    Control,
    /// Kept in one piece wherever it stands in a text.
    UserDefined,
}

/// How the pieces are chosen.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) enum Algorithm {
    #[default]
    Unigram,
    Bpe,
}

impl SentencePieceModel {
    /// The model in `bytes`, the content of `path`.
    ///
    /// # Errors
    /// When the bytes are no SentencePiece model, or one of whole words or characters.
    pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Self> {
        let broken = |what: &str| Error::file(path, format!("is not a SentencePiece model: {what}"));
        let mut model = Self::default();
        let mut algorithm = 1;
        for_each_field(bytes, &mut |field, value| {
            match (field, value) {
                (1, Value::Bytes(piece)) if model.pieces.len() < MOST_PIECES => model.pieces.push(read_piece(piece)?),
                (1, _) => return Err("it has too many pieces"),
                (2, Value::Bytes(trainer)) => for_each_field(trainer, &mut |field, value| {
                    match (field, value) {
                        (3, Value::Number(kind)) => algorithm = kind,
                        (35, Value::Number(flag)) => model.byte_fallback = flag != 0,
                        (40, Value::Number(id)) => {
                            model.unk_id = u32::try_from(id).map_err(|_| "its unk_id is negative")?
                        }
                        _ => {}
                    }
                    Ok(())
                })?,
                (3, Value::Bytes(normalizer)) => for_each_field(normalizer, &mut |field, value| {
                    if let (2, Value::Bytes(charsmap)) = (field, value) {
                        model.charsmap = charsmap.to_vec();
                    }
                    Ok(())
                })?,
                _ => {}
            }
            Ok(())
        })
        .map_err(broken)?;
        model.algorithm = match algorithm {
            1 => Algorithm::Unigram,
            2 => Algorithm::Bpe,
            other => {
                let found =
                    ["word", "char"].get(other.wrapping_sub(3) as usize).map_or(other.to_string(), |s| s.to_string());
                return Err(Error::unsupported(
                    path.display().to_string(),
                    "SentencePiece algorithm",
                    found,
                    "unigram, bpe",
                ));
            }
        };
        match model.pieces.len() {
            0 => Err(broken("it has no pieces")),
            n if model.unk_id as usize >= n => Err(broken("its unk_id lies outside of its pieces")),
            _ => Ok(model),
        }
    }
}

fn read_piece(bytes: &[u8]) -> Parsed<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Ordinary };
    for_each_field(bytes, &mut |field, value| {
        match (field, value) {
            (1, Value::Bytes(text)) if text.len() <= LONGEST_PIECE => {
                piece.text = std::str::from_utf8(text).map_err(|_| "a piece is not UTF-8")?.to_string();
            }
            (1, _) => return Err("a piece is too long"),
            (2, Value::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Number(3)) => piece.kind = PieceKind::Control,
            (3, Value::Number(4)) => piece.kind = PieceKind::UserDefined,
            _ => {}
        }
        Ok(())
    })?;
    if piece.score.is_finite() { Ok(piece) } else { Err("a score is not finite") }
}

type Parsed<T> = std::result::Result<T, &'static str>;

enum Value<'a> {
    Number(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// Calls `visit` with each field of a message; groups, which the format no longer has, are refused.
fn for_each_field(mut bytes: &[u8], visit: &mut dyn FnMut(u64, Value<'_>) -> Parsed<()>) -> Parsed<()> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut bytes)?),
            1 => {
                take(&mut bytes, 8)?;
                continue;
            }
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).map_err(|_| ENDS_EARLY)?;
                Value::Bytes(take(&mut bytes, length)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(take(&mut bytes, 4)?.try_into().map_err(|_| ENDS_EARLY)?)),
            _ => return Err("it holds a field of an unknown type"),
        };
        visit(key >> 3, value)?;
    }
    Ok(())
}

const ENDS_EARLY: &str = "it ends early";

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Parsed<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(length).ok_or(ENDS_EARLY)?;
    *bytes = rest;
    Ok(head)
}

fn varint(bytes: &mut &[u8]) -> Parsed<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        number |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err("a number is too long")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One piece `a` of score -1, user-defined; unk_id 0; a charsmap of one byte; an unknown field.
    const SMALL: &[u8] = &[
        0x0A, 10, 0x0A, 1, b'a', 0x15, 0, 0, 0x80, 0xBF, 0x18, 4, 0x12, 5, 0x18, 1, 0xC0, 0x02, 0, 0x1A, 3, 0x12, 1, 7,
        0x20, 5,
    ];

    fn read(bytes: &[u8]) -> Result<SentencePieceModel> {
        SentencePieceModel::read(Path::new("spiece.model"), bytes)
    }

    #[test]
    fn the_fields_that_make_ids_are_read() {
        let model = read(SMALL).unwrap();
        assert_eq!(model.pieces, [Piece { text: "a".to_string(), score: -1.0, kind: PieceKind::UserDefined }]);
        assert_eq!((model.algorithm, model.unk_id, model.charsmap), (Algorithm::Unigram, 0, vec![7]));
    }

    #[test]
    fn a_broken_file_is_refused_wherever_it_is_cut_or_changed() {
        for end in 0..SMALL.len() {
            if let Err(e) = read(&SMALL[..end]) {
                assert!(e.to_string().starts_with("spiece.model: is not a SentencePiece model: "), "{e}");
            }
        }
        for at in 0..SMALL.len() {
            for value in [0, 1, 0x7F, 0x80, 0xFF] {
                let mut bytes = SMALL.to_vec();
                bytes[at] = value;
                let _ = read(&bytes);
            }
        }
        assert!(read(&[0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01]).is_err());
        assert!(read(&[0xFF; 11]).is_err());
    }

    #[test]
    fn models_of_words_and_characters_are_refused_by_name() {
        let mut bytes = SMALL.to_vec();
        bytes[15] = 3;
        let message = read(&bytes).unwrap_err().to_string();
        assert!(message.contains("'word' is not supported; supported: unigram, bpe"), "{message}");
    }
}
