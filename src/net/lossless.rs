//! Text that can hold any bytes: `&[u8]` ↔ `str` without loss.
//!
//! nginx variables are byte strings; `/%FF` is a legal path whose `$uri` is the byte `FF`. Rust strings are
//! UTF-8, so a byte that is not part of valid UTF-8 is stored as one character of the last 128 code points of
//! Unicode (`U+10FF00 + byte`, private use), and a request that really contains one of those code points has
//! its four bytes stored that way, too. The mapping is therefore one to one: [`to_bytes`] gives back exactly
//! what [`from_bytes`] took. Valid UTF-8, which is all but every request, is borrowed and never copied.
//!
//! Invariant: text made here must go through [`to_bytes`] (or [`crate::net::escape`]) before it is written to
//! a socket.

use std::borrow::Cow;

/// A stray byte `b` is the character `BASE + b`.
const BASE: u32 = 0x10_FF00;
/// First byte of the UTF-8 form of every character at or above U+100000, hence of every stand-in.
const LEAD: u8 = 0xF4;

/// Reads bytes as text; bytes that are not UTF-8 are kept as stand-in characters.
#[must_use]
pub fn from_bytes(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !has_stand_in(text) => Cow::Borrowed(text),
        _ => Cow::Owned(rebuild(bytes)),
    }
}

/// Same as [`from_bytes`], reusing the buffer when it already is plain UTF-8.
#[must_use]
pub fn from_vec(bytes: Vec<u8>) -> String {
    match String::from_utf8(bytes) {
        Ok(text) if !has_stand_in(&text) => text,
        Ok(text) => rebuild(text.as_bytes()),
        Err(e) => rebuild(e.as_bytes()),
    }
}

/// The bytes that [`from_bytes`] was given.
#[must_use]
pub fn to_bytes(text: &str) -> Cow<'_, [u8]> {
    if !has_stand_in(text) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut buffer = [0; 4];
    for c in text.chars() {
        match stray(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes()),
        }
    }
    Cow::Owned(bytes)
}

fn rebuild(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if stray(c).is_some() {
                let mut buffer = [0; 4];
                c.encode_utf8(&mut buffer).bytes().for_each(|b| text.push(stand_in(b)));
            } else {
                text.push(c);
            }
        }
        chunk.invalid().iter().for_each(|b| text.push(stand_in(*b)));
    }
    text
}

fn has_stand_in(text: &str) -> bool {
    // The lead byte is a cheap test that is false for all but every text.
    text.as_bytes().contains(&LEAD) && text.chars().any(|c| stray(c).is_some())
}

fn stray(c: char) -> Option<u8> {
    let byte = (c as u32).checked_sub(BASE)?;
    u8::try_from(byte).ok().filter(|b| *b >= 0x80)
}

fn stand_in(byte: u8) -> char {
    char::from_u32(BASE + u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(bytes: &[u8], text: &str) {
        assert_eq!(from_bytes(bytes), text);
        assert_eq!(from_vec(bytes.to_vec()), text);
        assert_eq!(to_bytes(text), bytes);
    }

    #[test]
    fn keeps_every_byte() {
        check(b"/plain", "/plain");
        check("/ü/😀".as_bytes(), "/ü/😀");
        check(b"/\xff/a", "/\u{10FFFF}/a");
        check(b"\xc3", "\u{10FFC3}");
        // A real U+10FFFF is kept apart from the stand-in of the byte FF.
        check("\u{10FFFF}".as_bytes(), "\u{10FFF4}\u{10FF8F}\u{10FFBF}\u{10FFBF}");
        // Other characters of the same plane are ordinary text.
        check("\u{10FF7F}".as_bytes(), "\u{10FF7F}");
    }

    #[test]
    fn borrows_valid_text() {
        assert!(matches!(from_bytes("/ü".as_bytes()), Cow::Borrowed(_)));
        assert!(matches!(to_bytes("/ü"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn round_trips(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let text = from_bytes(&bytes).into_owned();
            prop_assert_eq!(to_bytes(&text).into_owned(), bytes);
        }

        #[test]
        fn round_trips_the_last_plane(text in "[\u{10FF00}-\u{10FFFF}a]{0,8}") {
            let kept = from_bytes(text.as_bytes()).into_owned();
            prop_assert_eq!(to_bytes(&kept).into_owned(), text.into_bytes());
        }
    }
}
