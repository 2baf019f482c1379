//! What open_clip's cleaning does to a text by `ftfy.fix_text`, but for the repair of mojibake.
//!
//! Each line, again and again until nothing changes: HTML references (unless the text holds a `<`), stray C1 controls,
//! ligatures, full and half widths, curly quotes, line breaks, terminal escapes, controls, and NFC. The steps and their order
//! are those of ftfy 6.3.1 (`ftfy/__init__.py`, `fixes.py`, `chardata.py`). Its guess which text was decoded in the wrong
//! encoding (`fix_encoding`: `cafÃ©` → `café`) is not made here: such broken text stays as it is.

use std::borrow::Cow;

use tokenizers::NormalizedString;

use super::html::{entity, unescape, windows_1252};

/// ftfy looks at so many characters of a line at once.
const SEGMENT: usize = 1_000_000;

/// More rounds than any text needs; each one resolves one more level of references such as `&amp;amp;`.
const MOST_ROUNDS: usize = 32;

/// `text` as `ftfy.fix_text` gives it, mojibake left alone.
pub(super) fn repair(text: &str) -> Cow<'_, str> {
    // What plain ASCII can hold of interest: a reference, a carriage return, a control.
    if text.bytes().all(|b| matches!(b, b'\t' | b'\n' | 0x0C | b' '..=b'~') && b != b'&') {
        return Cow::Borrowed(text);
    }
    let mut unescapes = true;
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let mut rest = line;
        while !rest.is_empty() {
            let end = rest.char_indices().nth(SEGMENT).map_or(rest.len(), |(i, _)| i);
            let (segment, after) = rest.split_at(end);
            // From the first `<` on the text is taken for HTML, whose references mean something else.
            unescapes &= !segment.contains('<');
            out.push_str(&repair_segment(segment, unescapes));
            rest = after;
        }
    }
    Cow::Owned(out)
}

fn repair_segment(segment: &str, unescapes: bool) -> String {
    let mut text = segment.to_string();
    for _ in 0..MOST_ROUNDS {
        let mut next = if unescapes { unescape_certain(&text) } else { text.clone() };
        if !next.is_ascii() {
            next = replace_characters(&next);
        }
        next = next.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}'], "\n");
        next = remove_terminal_escapes(&next);
        next.retain(|c| !is_unwanted_control(c));
        if !next.is_ascii() {
            next = normalized(&next, NormalizedString::nfc);
        }
        if next == text {
            break;
        }
        text = next;
    }
    text
}

/// The references that are meant for sure: `&…;` with letters and digits only; also lower-case names in capitals.
fn unescape_certain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let hash = usize::from(rest[1..].starts_with('#'));
        let name = &rest[1 + hash..];
        let length = name.bytes().take_while(u8::is_ascii_alphanumeric).count();
        let found = if (1..=24).contains(&length) && name[length..].starts_with(';') {
            certain(&rest[..hash + length + 2], &name[..length], hash == 1)
        } else {
            None
        };
        match found {
            Some(characters) => {
                out.push_str(&characters);
                rest = &rest[hash + length + 2..];
            }
            None => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn certain(reference: &str, name: &str, number: bool) -> Option<String> {
    if number {
        return Some(unescape(reference).into_owned()).filter(|characters| !characters.contains(';'));
    }
    entity(name).or_else(|| {
        let lower = name.to_ascii_lowercase();
        (lower.to_ascii_uppercase() == name && unescape(reference) == reference)
            .then(|| entity(&lower))
            .flatten()
            .map(|characters| characters.to_uppercase())
    })
}

/// C1 controls, ligatures, widths and quotes, character by character.
fn replace_characters(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().map(windows_1252) {
        match c {
            '\u{2bc}' | '\u{2018}'..='\u{201b}' => out.push('\''),
            '\u{201c}'..='\u{201f}' => out.push('"'),
            '\u{3000}' => out.push(' '),
            '\u{ff01}'..='\u{ffef}' => out.push_str(&normalized(&c.to_string(), NormalizedString::nfkc)),
            c => match ligature(c) {
                Some(letters) => out.push_str(letters),
                None => out.push(c),
            },
        }
    }
    out
}

fn ligature(c: char) -> Option<&'static str> {
    Some(match c {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        // ftfy gives a modifier apostrophe, which its next step straightens.
        'ŉ' => "'n",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => return None,
    })
}

/// Escape sequences of terminals: ESC `[`, digits and semicolons, a letter.
fn remove_terminal_escapes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("\u{1b}[") {
        out.push_str(&rest[..start]);
        let parameters = &rest[start + 2..];
        let letter = parameters.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        if letter.starts_with(|c: char| c.is_ascii_alphabetic()) {
            rest = &letter[1..];
        } else {
            out.push_str("\u{1b}[");
            rest = parameters;
        }
    }
    out.push_str(rest);
    out
}

fn is_unwanted_control(c: char) -> bool {
    matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{206a}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffc}')
}

fn normalized(text: &str, form: fn(&mut NormalizedString) -> &mut NormalizedString) -> String {
    let mut text = NormalizedString::from(text);
    form(&mut text);
    text.get().to_string()
}
