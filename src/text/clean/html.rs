//! HTML character references, read as Python's `html.unescape` reads them (the rules of HTML5).
//!
//! `&name;`, `&#123;` and `&#x7b;`, the semicolon of numbers and of 106 old names being optional; of an unknown name the longest
//! known beginning is taken (`&notit` → `¬it`). Numbers follow HTML5's table for invalid code points: 0 and what lies outside
//! of Unicode become U+FFFD, 0x80–0x9F are read as Windows-1252, other controls and non-characters vanish.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::OnceLock;

/// Written by `tests/python/make_html_entities.py`; the file's format stands there.
const ENTITIES: &str = include_str!("html_entities.txt");

/// A name may have so many characters (`html.unescape`'s pattern; the longest that exists has 31).
const LONGEST_NAME: usize = 32;

/// What Windows-1252 has at 0x80–0x9F; the five bytes that it leaves out stand for themselves.
const WINDOWS_1252: [char; 32] = [
    '\u{20ac}', '\u{81}', '\u{201a}', '\u{0192}', '\u{201e}', '\u{2026}', '\u{2020}', '\u{2021}', '\u{02c6}',
    '\u{2030}', '\u{0160}', '\u{2039}', '\u{0152}', '\u{8d}', '\u{017d}', '\u{8f}', '\u{90}', '\u{2018}', '\u{2019}',
    '\u{201c}', '\u{201d}', '\u{2022}', '\u{2013}', '\u{2014}', '\u{02dc}', '\u{2122}', '\u{0161}', '\u{203a}',
    '\u{0153}', '\u{9d}', '\u{017e}', '\u{0178}',
];

/// What a control character of U+0080–U+009F means where it came from Windows-1252; any other is given back.
pub(super) fn windows_1252(c: char) -> char {
    u32::from(c).checked_sub(0x80).and_then(|i| WINDOWS_1252.get(i as usize)).copied().unwrap_or(c)
}

/// The characters of a name that stands before a semicolon.
pub(super) fn entity(name: &str) -> Option<String> {
    table().get(name).map(|(points, _)| characters(points))
}

/// All character references of `text` replaced, as by Python's `html.unescape`.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        out.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        rest = match rest.strip_prefix('#') {
            Some(number) => numeric(number, &mut out),
            None => named(rest, &mut out),
        };
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Reads what follows `&#`, writes its character and gives what is left.
fn numeric<'a>(text: &'a str, out: &mut String) -> &'a str {
    let (digits, radix) = match text.strip_prefix(['x', 'X']) {
        Some(hex) => (hex, 16),
        None => (text, 10),
    };
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    if end == 0 {
        out.push_str("&#");
        return text;
    }
    // A number too long for the type is outside of Unicode.
    match u32::from_str_radix(&digits[..end], radix) {
        Ok(0x0D) => out.push('\r'),
        Ok(number @ 0x80..=0x9F) => out.extend(char::from_u32(number).map(windows_1252)),
        Ok(0x01..=0x08 | 0x0B | 0x0E..=0x1F | 0x7F | 0xFDD0..=0xFDEF) => {}
        Ok(number) if number <= 0x10_FFFF && number & 0xFFFE == 0xFFFE => {}
        Ok(number) => out.push(char::from_u32(number).filter(|&c| c != '\0').unwrap_or('\u{fffd}')),
        Err(_) => out.push('\u{fffd}'),
    }
    let rest = &digits[end..];
    rest.strip_prefix(';').unwrap_or(rest)
}

/// Reads what follows `&`, writes its character, or as it stands, and gives what is left.
fn named<'a>(text: &'a str, out: &mut String) -> &'a str {
    let ends_name = |c: char| matches!(c, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';');
    let end = text
        .char_indices()
        .take(LONGEST_NAME)
        .find_map(|(i, c)| ends_name(c).then_some(i))
        .unwrap_or_else(|| text.char_indices().nth(LONGEST_NAME).map_or(text.len(), |(i, _)| i));
    let (name, rest) = text.split_at(end);
    if let (Some(rest), Some(characters)) = (rest.strip_prefix(';'), entity(name)) {
        out.push_str(&characters);
        return rest;
    }
    // Python looks at prefixes of two characters and more.
    let longest = (2..=name.len()).rev().filter(|&i| name.is_char_boundary(i)).find_map(|i| {
        let (points, bare) = table().get(&name[..i])?;
        bare.then(|| (i, characters(points)))
    });
    match longest {
        Some((length, characters)) => {
            out.push_str(&characters);
            &text[length..]
        }
        None => {
            out.push('&');
            text
        }
    }
}

/// Name → code points in hexadecimal joined by `+`, and whether the name is also read without its semicolon.
fn table() -> &'static HashMap<&'static str, (&'static str, bool)> {
    static TABLE: OnceLock<HashMap<&'static str, (&'static str, bool)>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let entry = |line: &'static str| {
            let mut fields = line.split(' ');
            Some((fields.next()?, (fields.next()?, fields.next() == Some("bare"))))
        };
        ENTITIES.lines().filter_map(entry).collect()
    })
}

fn characters(points: &str) -> String {
    points.split('+').filter_map(|point| char::from_u32(u32::from_str_radix(point, 16).ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds_the_references_of_html5() {
        assert_eq!(table().len(), 2125);
        assert_eq!(table().values().filter(|(_, bare)| *bare).count(), 106);
        assert_eq!(entity("NotEqualTilde").unwrap(), "\u{2242}\u{338}");
        assert!(table().keys().all(|name| name.len() < LONGEST_NAME));
    }

    #[test]
    fn references_are_read_by_the_rules_of_html5() {
        for (text, expected) in [
            ("&lt;b&gt; &amp;amp; &amp", "<b> &amp; &"),
            ("&notit; &notin; &not &no", "¬it; ∉ ¬ &no"),
            ("&#39;&#x27;&#X27 &#; &#x; &", "''' &#; &#x; &"),
            ("&#0;&#x80;&#150;&#129;", "\u{fffd}€–\u{81}"),
            ("&#xD800;&#x110000;&#99999999999999999999;", "\u{fffd}\u{fffd}\u{fffd}"),
            ("a&#1;&#11;&#xFFFE;&#x1FFFF;&#xFDD0;b", "ab"),
            ("&#13;&#10;", "\r\n"),
            ("&&amp;&ampamp;&猫;", "&&&amp;&猫;"),
        ] {
            assert_eq!(unescape(text), expected, "{text}");
        }
        let long = format!("&{}amp;", "x".repeat(40));
        assert_eq!(unescape(&long), long);
    }
}
