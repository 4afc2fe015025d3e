//! Percent-encoding as nginx and ngx_lua do it.
//!
//! The sets differ in what they leave alone, and clients notice, so each one names its source. Text is
//! [`lossless`] text: stand-ins are escaped as the byte they stand for.

use std::borrow::Cow;

use crate::net::lossless;

/// Which bytes [`escape_uri`] encodes. Control characters, space and everything above `~` always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    /// nginx's `NGX_ESCAPE_URI` (since 1.21.1): also `"#%<>?\^` and `` `{|} ``. This is APISIX's
    /// `core.utils.uri_safe_encode`.
    Path,
    /// `ngx.escape_uri(s)` and `ngx.encode_args`: all but letters, digits and `-._~!'()*`.
    Component,
    /// `ngx.escape_uri(s, 0)`: also `#%?`.
    LuaPath,
}

impl Escape {
    fn wants(self, byte: u8) -> bool {
        if byte <= b' ' || byte >= 0x7F {
            return true;
        }
        match self {
            Self::Path => matches!(
                byte,
                b'"' | b'#' | b'%' | b'<' | b'>' | b'?' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'
            ),
            Self::LuaPath => matches!(byte, b'#' | b'%' | b'?'),
            Self::Component => {
                !byte.is_ascii_alphanumeric()
                    && !matches!(byte, b'-' | b'.' | b'_' | b'~' | b'!' | b'\'' | b'(' | b')' | b'*')
            }
        }
    }
}

/// Percent-encodes text (upper-case hex); borrows when nothing has to be encoded.
#[must_use]
pub fn escape_uri(text: &str, set: Escape) -> Cow<'_, str> {
    if !text.bytes().any(|b| set.wants(b)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    escape_into(&mut out, text, set);
    Cow::Owned(out)
}

/// Appends what [`escape_uri`] gives.
pub fn escape_into(out: &mut String, text: &str, set: Escape) {
    for byte in lossless::to_bytes(text).iter() {
        if set.wants(*byte) { push_escaped(out, *byte) } else { out.push(char::from(*byte)) }
    }
}

/// Percent-encodes control characters only (00–1F, 7F), so that decoded text cannot break out of a request
/// line while its `?`, `=` and `&` keep their meaning. APISIX: `core.utils.escape_uri_control_chars`.
#[must_use]
pub fn escape_uri_control_chars(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|b| b.is_ascii_control()) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match u8::try_from(c) {
            Ok(byte) if byte.is_ascii_control() => push_escaped(&mut out, byte),
            _ => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Decodes `%XX` and turns `+` into a space, as `ngx.unescape_uri` does; a malformed escape stays as it is.
#[must_use]
pub fn unescape_uri(bytes: &[u8]) -> Cow<'_, str> {
    if !bytes.iter().any(|b| matches!(b, b'%' | b'+')) {
        return lossless::from_bytes(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'+' => out.push(b' '),
            b'%' => match decode_pair(tail) {
                Some(byte) => {
                    out.push(byte);
                    rest = tail.get(2..).unwrap_or_default();
                }
                None => out.push(b'%'),
            },
            byte => out.push(*byte),
        }
    }
    Cow::Owned(lossless::from_vec(out))
}

/// The byte that two leading hex digits spell.
pub(crate) fn decode_pair(bytes: &[u8]) -> Option<u8> {
    let [high, low, ..] = bytes else { return None };
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

fn push_escaped(out: &mut String, byte: u8) {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    out.push('%');
    out.push(HEX[usize::from(byte >> 4)]);
    out.push(HEX[usize::from(byte & 15)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, set: Escape, expected: &str) {
        assert_eq!(escape_uri(text, set), expected);
    }

    #[test]
    fn each_set_leaves_its_own_bytes_alone() {
        let ascii: String = (0x20..0x80u8).map(char::from).collect();
        check(
            &ascii,
            Escape::Path,
            "%20!%22%23$%25&'()*+,-./0123456789:;%3C=%3E%3F@ABCDEFGHIJKLMNOPQRSTUVWXYZ[%5C]%5E_%60abcdefghijklmnopqrstuvwxyz%7B%7C%7D~%7F",
        );
        check(
            &ascii,
            Escape::LuaPath,
            "%20!\"%23$%25&'()*+,-./0123456789:;<=>%3F@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~%7F",
        );
        check(
            &ascii,
            Escape::Component,
            "%20!%22%23%24%25%26'()*%2B%2C-.%2F0123456789%3A%3B%3C%3D%3E%3F%40ABCDEFGHIJKLMNOPQRSTUVWXYZ%5B%5C%5D%5E_%60abcdefghijklmnopqrstuvwxyz%7B%7C%7D~%7F",
        );
    }

    #[test]
    fn encodes_bytes_not_characters() {
        check("/ü", Escape::Path, "/%C3%BC");
        check(&lossless::from_bytes(b"/\xff"), Escape::Path, "/%FF");
        check("/plain-path", Escape::Path, "/plain-path");
        assert!(matches!(escape_uri("/a/b", Escape::Path), Cow::Borrowed(_)));
    }

    #[test]
    fn control_characters_only() {
        assert_eq!(escape_uri_control_chars("/a?b=c d&\r\n\u{7f}ü"), "/a?b=c d&%0D%0A%7Fü");
        assert!(matches!(escape_uri_control_chars("/a?b=c"), Cow::Borrowed(_)));
    }

    #[test]
    fn unescape_table() {
        for (from, to) in [
            ("a%20b+c", "a b c"),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz%41", "%zzA"),
            ("%2", "%2"),
            ("100%", "100%"),
            ("%c3%BC", "ü"),
            ("plain", "plain"),
        ] {
            assert_eq!(unescape_uri(from.as_bytes()), to, "{from}");
        }
        assert_eq!(lossless::to_bytes(&unescape_uri(b"%ff")).as_ref(), b"\xff");
    }

    proptest! {
        #[test]
        fn escape_then_unescape_is_identity(bytes in proptest::collection::vec(any::<u8>(), 0..48)) {
            let text = lossless::from_bytes(&bytes).into_owned();
            let escaped = escape_uri(&text, Escape::Component).into_owned();
            prop_assert!(escaped.is_ascii());
            prop_assert_eq!(unescape_uri(escaped.as_bytes()).into_owned(), text);
        }

        #[test]
        fn nothing_dangerous_survives(bytes in proptest::collection::vec(any::<u8>(), 0..48)) {
            let text = lossless::from_bytes(&bytes).into_owned();
            for set in [Escape::Path, Escape::Component, Escape::LuaPath] {
                prop_assert!(escape_uri(&text, set).bytes().all(|b| b > b' ' && b < 0x7f));
            }
            prop_assert!(!escape_uri_control_chars(&text).bytes().any(|b| b.is_ascii_control()));
        }
    }
}
