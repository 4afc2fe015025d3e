//! Query strings and urlencoded forms, as `ngx.decode_args` and `ngx.encode_args` read and write them.
//!
//! Pairs are separated by `&` only; names and values are decoded (`+` is a space); a name without `=` has no
//! value (ngx_lua gives `true`); a pair whose name is empty is skipped.

use std::borrow::Cow;

use crate::net::escape::{Escape, escape_into, unescape_uri};

/// What ngx_lua shows for an argument without `=`.
pub const NO_VALUE: &str = "true";

/// What logs show in place of a credential.
pub const MASK: &str = "***";

/// The decoded pairs of a query string, in order. A value of `None` means there was no `=`.
pub fn pairs(query: &[u8]) -> impl Iterator<Item = (Cow<'_, str>, Option<Cow<'_, str>>)> {
    raw_pairs(query)
        .map(|(name, value)| (unescape_uri(name), value.map(unescape_uri)))
        .filter(|(name, _)| !name.is_empty())
}

/// The first argument of that name: outer `None` when absent, inner `None` when it has no value. Names are
/// compared decoded and case-sensitively; only the value found is decoded.
/// APISIX: core/ctx.lua, `arg_` (unlike nginx's own `$arg_x`, which is neither decoded nor case-sensitive).
#[must_use]
pub fn find<'q>(query: &'q [u8], name: &str) -> Option<Option<Cow<'q, str>>> {
    if name.is_empty() {
        return None;
    }
    let (_, value) = raw_pairs(query).find(|(raw, _)| unescape_uri(raw) == name)?;
    Some(value.map(unescape_uri))
}

/// The text that `$arg_name` has: the first value, or [`NO_VALUE`] when the argument has none.
#[must_use]
pub fn text<'q>(query: &'q [u8], name: &str) -> Option<Cow<'q, str>> {
    find(query, name).map(|value| value.unwrap_or(Cow::Borrowed(NO_VALUE)))
}

/// Writes pairs as a query string; `None` writes the bare name.
#[must_use]
pub fn encode<'a>(pairs: impl IntoIterator<Item = (&'a str, Option<&'a str>)>) -> String {
    let mut out = String::new();
    for (name, value) in pairs {
        if !out.is_empty() {
            out.push('&');
        }
        escape_into(&mut out, name, Escape::Component);
        if let Some(value) = value {
            out.push('=');
            escape_into(&mut out, value, Escape::Component);
        }
    }
    out
}

/// The query string with [`MASK`] for every value whose name `hides` chooses (decoded); `None` if there is no such value.
#[must_use]
pub fn masked(query: &[u8], hides: impl Fn(&str) -> bool) -> Option<Vec<u8>> {
    let hidden = |(name, value): &(&[u8], Option<&[u8]>)| value.is_some() && hides(&unescape_uri(name));
    if !raw_pairs(query).any(|pair| hidden(&pair)) {
        return None;
    }
    let mut out = Vec::with_capacity(query.len());
    for (at, pair) in raw_pairs(query).enumerate() {
        if at > 0 {
            out.push(b'&');
        }
        out.extend_from_slice(pair.0);
        if let Some(value) = pair.1 {
            out.push(b'=');
            out.extend_from_slice(if hidden(&pair) { MASK.as_bytes() } else { value });
        }
    }
    Some(out)
}

fn raw_pairs(query: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    query.split(|b| *b == b'&').map(|pair| match pair.iter().position(|b| *b == b'=') {
        Some(at) => (&pair[..at], Some(&pair[at + 1..])),
        None => (pair, None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(query: &str, name: &str, expected: Option<&str>) {
        assert_eq!(text(query.as_bytes(), name).as_deref(), expected, "{name} in {query}");
    }

    #[test]
    fn finds_the_first() {
        check("a=1&b=2&a=3", "a", Some("1"));
        check("a=1&b=2", "c", None);
        check("", "a", None);
        check("a", "a", Some("true"));
        check("a=", "a", Some(""));
        check("a&a=1", "a", Some("true"));
        check("a=b=c", "a", Some("b=c"));
        check("A=1", "a", None);
        check("%61=x+y%2F", "a", Some("x y/"));
        check("a%20b=1", "a b", Some("1"));
        check("=1&a=2", "", None);
        check("&&a=2", "a", Some("2"));
        check("a;b=1", "a;b", Some("1"));
    }

    #[test]
    fn lists_pairs() {
        let got: Vec<_> = pairs(b"a=1&&=x&b&c=%41").collect();
        let expected: Vec<(Cow<str>, Option<Cow<str>>)> =
            vec![("a".into(), Some("1".into())), ("b".into(), None), ("c".into(), Some("A".into()))];
        assert_eq!(got, expected);
    }

    #[test]
    fn encodes() {
        assert_eq!(encode([("a b", Some("c&d")), ("e", None), ("f", Some(""))]), "a%20b=c%26d&e&f=");
        assert_eq!(encode([]), "");
    }

    #[test]
    fn masks_values() {
        #[track_caller]
        fn check(query: &str, expected: Option<&str>) {
            let masked = masked(query.as_bytes(), |name| name == "k" || name == "a b");
            assert_eq!(masked.map(|text| String::from_utf8(text).unwrap()).as_deref(), expected, "{query}");
        }
        check("", None);
        check("a=1&b", None);
        check("K=s", None);
        check("k", None);
        check("k=s", Some("k=***"));
        check("k=", Some("k=***"));
        check("k=s=t&k=u&&z=%6B", Some("k=***&k=***&&z=%6B"));
        check("x=1&%6b=s&a+b=t&a%20b=u&y", Some("x=1&%6b=***&a+b=***&a%20b=***&y"));
        check("k&k=s", Some("k&k=***"));
    }

    proptest! {
        #[test]
        fn a_mask_hides_what_find_finds(query in "[kz=&%6b+2]{0,24}", name in "[kz2]{1,2}") {
            let hidden = masked(query.as_bytes(), |other| other == name);
            let text = hidden.as_deref().unwrap_or(query.as_bytes());
            prop_assert!(matches!(find(text, &name), None | Some(None)) || find(text, &name) == Some(Some(MASK.into())));
            let others = |query: &[u8]| {
                let kept = pairs(query).filter(|(other, _)| *other != name);
                kept.map(|(name, value)| (name.into_owned(), value.map(Cow::into_owned))).collect::<Vec<_>>()
            };
            prop_assert_eq!(others(text), others(query.as_bytes()));
        }

        #[test]
        fn decode_undoes_encode(
            given in proptest::collection::vec(("[ -~ü]{1,6}", proptest::option::of("[ -~ü]{0,6}")), 0..5)
        ) {
            let query = encode(given.iter().map(|(n, v)| (n.as_str(), v.as_deref())));
            let back: Vec<_> =
                pairs(query.as_bytes()).map(|(n, v)| (n.into_owned(), v.map(Cow::into_owned))).collect();
            prop_assert_eq!(back, given);
        }

        #[test]
        fn find_is_the_first_of_pairs(query in "[ab=&%+2]{0,24}", name in "[ab2]{1,2}") {
            let first = pairs(query.as_bytes()).find(|(n, _)| *n == name).map(|(_, v)| v);
            prop_assert_eq!(find(query.as_bytes(), &name), first);
        }
    }
}
