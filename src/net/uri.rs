//! The request target: taken apart, and its path normalised as nginx makes `$uri`.
//!
//! Routing and access rules see only the normalised path, so every way round it is a security hole: percent
//! escapes are decoded once, slashes merged, dot segments resolved, and what nginx answers with 400 is an
//! error here. The result is [`lossless`] text; paths that need no work are borrowed.

use std::borrow::Cow;

use crate::net::escape::decode_pair;
use crate::net::lossless;

/// A request target that nginx answers with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// The path does not begin with a slash.
    #[error("the path does not begin with a slash")]
    NoSlash,
    /// A raw blank or control character.
    #[error("control character in the uri")]
    Control,
    /// `%` without two hex digits.
    #[error("malformed escape in the uri")]
    Escape,
    /// `%00`.
    #[error("zero byte in the uri")]
    Zero,
    /// Dot segments that climb above the root.
    #[error("the uri climbs above the root")]
    AboveRoot,
}

/// Why [`normalize_uri_like_servlet`] refuses a path; the texts are APISIX's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServletError {
    /// `/.;x/` or `/..;x/`.
    #[error("dot segment with parameter")]
    DotSegment,
    /// `/;x/`.
    #[error("empty segment with parameters")]
    EmptySegment,
    /// `/%2e;x/`.
    #[error("encoded dot segment")]
    EncodedDotSegment,
}

/// A request target in parts, all of them raw bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Host and port of an absolute-form target (`GET http://host/…`); they win over the Host header.
    pub authority: Option<&'a [u8]>,
    /// The path, not yet normalised; `/` for an absolute form without one.
    pub path: &'a [u8],
    /// What follows the first `?`, without it: nginx's `$args`. `$is_args` is `?` iff this is not empty.
    pub args: &'a [u8],
}

/// Takes a request target apart; a fragment, which clients must not send, is dropped as nginx does.
#[must_use]
pub fn split_target(target: &[u8]) -> Target<'_> {
    let end = find(target, |b| b == b'#').unwrap_or(target.len());
    let mut rest = &target[..end];
    let mut authority = None;
    if let Some(at) = scheme_end(rest) {
        let after = &rest[at..];
        let host = find(after, |b| matches!(b, b'/' | b'?')).unwrap_or(after.len());
        authority = Some(&after[..host]);
        rest = &after[host..];
    }
    let (path, args) = match find(rest, |b| b == b'?') {
        Some(at) => (&rest[..at], &rest[at + 1..]),
        None => (rest, &rest[rest.len()..]),
    };
    let path = if path.is_empty() && authority.is_some() { b"/" } else { path };
    Target { authority, path, args }
}

/// Normalises a raw path (no query) to what nginx has in `$uri`: escapes decoded, slashes merged, `.` and `..`
/// resolved. A decoded `%2F` is a slash and a decoded `%2E` a dot, so neither hides a segment; `%3F`, `%23`
/// and `%25` become ordinary characters. nginx: `ngx_http_parse_complex_uri` with `merge_slashes on`.
///
/// # Errors
/// [`UriError`] for what nginx answers with 400.
pub fn normalize(path: &[u8]) -> Result<Cow<'_, str>, UriError> {
    if path.first() != Some(&b'/') {
        return Err(UriError::NoSlash);
    }
    if path.iter().any(|b| *b <= b' ' || *b == 0x7F) {
        return Err(UriError::Control);
    }
    if is_plain(path) {
        return Ok(lossless::from_bytes(path));
    }
    let decoded = decode(path)?;
    resolve(&decoded).map(|bytes| Cow::Owned(lossless::from_vec(bytes)))
}

/// Drops the `;parameters` of every segment, as servlet containers do before they match. Works on `$uri`.
/// APISIX: init.lua `normalize_uri_like_servlet`.
///
/// # Errors
/// [`ServletError`] for paths that mean something else to a servlet than to the gateway; the answer is 400.
pub fn normalize_uri_like_servlet(uri: &str) -> Result<Cow<'_, str>, ServletError> {
    if !uri.contains(';') {
        return Ok(Cow::Borrowed(uri));
    }
    let mut out = String::with_capacity(uri.len());
    let mut segments = uri.split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment.split_once(';') {
            None => out.push_str(segment),
            Some((kept, _)) => {
                check_servlet_segment(kept, is_last)?;
                out.push_str(kept);
            }
        }
        if !is_last {
            out.push('/');
        }
    }
    Ok(Cow::Owned(out))
}

/// The path to match routes against under `match_uri_encoded_slash`: decoded like `$uri`, but with encoded
/// slashes kept as `%2F`. `None` means "match `uri` itself": there is no encoded slash, or nginx did more than
/// decode (dot segments, merged slashes), so keeping the slash would not be safe.
/// APISIX: init.lua `build_match_uri_keep_encoded_slash`.
#[must_use]
pub fn keep_encoded_slash(raw_path: &[u8], uri: &str) -> Option<String> {
    let is_slash = |pair: &[u8]| pair.eq_ignore_ascii_case(b"%2f");
    if !raw_path.windows(3).any(is_slash) {
        return None;
    }
    let mut full = Vec::with_capacity(raw_path.len());
    let mut kept = Vec::with_capacity(raw_path.len());
    let mut rest = raw_path;
    while let [first, tail @ ..] = rest {
        let decoded = if *first == b'%' { decode_pair(tail) } else { None };
        full.push(decoded.unwrap_or(*first));
        match decoded {
            Some(b'/') => kept.extend_from_slice(b"%2F"),
            other => kept.push(other.unwrap_or(*first)),
        }
        rest = if decoded.is_some() { tail.get(2..).unwrap_or_default() } else { tail };
    }
    (lossless::to_bytes(uri).as_ref() == full.as_slice()).then(|| lossless::from_vec(kept))
}

fn find(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> Option<usize> {
    bytes.iter().position(|b| wanted(*b))
}

/// Where the authority of an absolute-form target begins.
fn scheme_end(target: &[u8]) -> Option<usize> {
    if !target.first()?.is_ascii_alphabetic() {
        return None;
    }
    let colon = find(target, |b| !b.is_ascii_alphanumeric() && !matches!(b, b'+' | b'-' | b'.'))?;
    target[colon..].starts_with(b"://").then_some(colon + 3)
}

/// Whether a path is its own normal form: no escape, fragment or query mark, no empty or dot segment.
/// A segment that merely begins with a dot takes the slow way, too.
fn is_plain(path: &[u8]) -> bool {
    let mut after_slash = false;
    for byte in path {
        match byte {
            b'%' | b'#' | b'?' => return false,
            b'/' | b'.' if after_slash => return false,
            _ => after_slash = *byte == b'/',
        }
    }
    true
}

/// Decodes every escape of a path. The path ends at a raw `#` or `?`; decoded ones are ordinary bytes.
fn decode(path: &[u8]) -> Result<Vec<u8>, UriError> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'#' | b'?' => break,
            b'%' => {
                let byte = decode_pair(tail).ok_or(UriError::Escape)?;
                if byte == 0 {
                    return Err(UriError::Zero);
                }
                out.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            byte => out.push(*byte),
        }
    }
    Ok(out)
}

/// Merges slashes and resolves dot segments of a decoded path, which begins with a slash.
fn resolve(decoded: &[u8]) -> Result<Vec<u8>, UriError> {
    let mut out = Vec::with_capacity(decoded.len());
    out.push(b'/');
    let mut segments = decoded.split(|b| *b == b'/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            b"" | b"." => {}
            b".." => {
                // `out` always ends with a slash here; take it and the segment before it away.
                out.pop();
                let parent = out.iter().rposition(|b| *b == b'/').ok_or(UriError::AboveRoot)?;
                out.truncate(parent + 1);
            }
            name => {
                out.extend_from_slice(name);
                if segments.peek().is_some() {
                    out.push(b'/');
                }
            }
        }
    }
    Ok(out)
}

fn check_servlet_segment(kept: &str, is_last: bool) -> Result<(), ServletError> {
    match kept {
        "." | ".." => Err(ServletError::DotSegment),
        "" if !is_last => Err(ServletError::EmptySegment),
        _ if kept.eq_ignore_ascii_case("%2e") || kept.eq_ignore_ascii_case("%2e%2e") => {
            Err(ServletError::EncodedDotSegment)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(raw: &str, expected: Result<&str, UriError>) {
        let got = normalize(raw.as_bytes());
        assert_eq!(got.as_deref().map_err(|e| *e), expected, "{raw}");
    }

    #[test]
    fn normal_forms() {
        check("/", Ok("/"));
        check("/a/b", Ok("/a/b"));
        check("/a/b/", Ok("/a/b/"));
        check("//a///b//", Ok("/a/b/"));
        check("/a/./b", Ok("/a/b"));
        check("/a/.", Ok("/a/"));
        check("/a/b/..", Ok("/a/"));
        check("/a/../b", Ok("/b"));
        check("/a/..", Ok("/"));
        check("/a//../b", Ok("/b"));
        check("/.a/..b/...", Ok("/.a/..b/..."));
        check("/%61%2fb", Ok("/a/b"));
        check("/a%2F%2e%2E/b", Ok("/b"));
        check("/a/%2e%2e%2fb", Ok("/b"));
        check("/%252e%252e/a", Ok("/%2e%2e/a"));
        check("/a%3fb%23c%25", Ok("/a?b#c%"));
        check("/a%20b%0d%0A", Ok("/a b\r\n"));
        check("/a+b;c=d", Ok("/a+b;c=d"));
        check("/%c3%bc", Ok("/ü"));
        check("/a#b/../../..", Ok("/a"));
        check("/%ff", Ok("/\u{10FFFF}"));
    }

    #[test]
    fn refusals() {
        check("", Err(UriError::NoSlash));
        check("*", Err(UriError::NoSlash));
        check("/..", Err(UriError::AboveRoot));
        check("/a/../..", Err(UriError::AboveRoot));
        check("/%2e%2e/", Err(UriError::AboveRoot));
        check("//..", Err(UriError::AboveRoot));
        check("/a%", Err(UriError::Escape));
        check("/a%4", Err(UriError::Escape));
        check("/a%4g", Err(UriError::Escape));
        check("/a%00b", Err(UriError::Zero));
        check("/a b", Err(UriError::Control));
        check("/a\u{7f}", Err(UriError::Control));
    }

    #[test]
    fn borrows_plain_paths() {
        assert!(matches!(normalize(b"/a/b.c/d"), Ok(Cow::Borrowed("/a/b.c/d"))));
        let used = allocation_counter::measure(|| assert!(normalize(b"/a/b.c/d").is_ok()));
        assert_eq!(used.count_total, 0);
    }

    #[test]
    fn targets() {
        for (raw, authority, path, args) in [
            ("/a?b=c?d", None, "/a", "b=c?d"),
            ("/a?", None, "/a", ""),
            ("/a", None, "/a", ""),
            ("/a?b#c", None, "/a", "b"),
            ("/a#b?c", None, "/a", ""),
            ("http://h:80/a?b", Some("h:80"), "/a", "b"),
            ("http://h", Some("h"), "/", ""),
            ("HTTPS://h?b", Some("h"), "/", "b"),
            ("/http://x/", None, "/http://x/", ""),
            ("*", None, "*", ""),
        ] {
            let got = split_target(raw.as_bytes());
            let expected = Target {
                authority: authority.map(str::as_bytes),
                path: path.as_bytes(),
                args: args.as_bytes(),
            };
            assert_eq!(got, expected, "{raw}");
        }
    }

    #[test]
    fn servlet_parameters() {
        for (uri, expected) in [
            ("/a/b", Ok("/a/b")),
            ("/a;x=1/b;y", Ok("/a/b")),
            ("/a/;x", Ok("/a/")),
            ("/a;x/", Ok("/a/")),
            ("/a/..;/b", Err("dot segment with parameter")),
            ("/a/.;x", Err("dot segment with parameter")),
            ("/;x/b", Err("empty segment with parameters")),
            ("/%2E%2e;/b", Err("encoded dot segment")),
            ("/a/..b;x", Ok("/a/..b")),
        ] {
            let got = normalize_uri_like_servlet(uri).map_err(|e| e.to_string());
            assert_eq!(got.as_deref().map_err(String::as_str), expected, "{uri}");
        }
    }

    #[test]
    fn encoded_slashes() {
        for (raw, expected) in [
            ("/a%2fb/%41", Some("/a%2Fb/A")),
            ("/a%2Fb%20", Some("/a%2Fb ")),
            ("/a/b", None),
            ("/a%2f../b", None),
            ("/a%2f/b", None),
            ("//a%2fb", None),
        ] {
            let uri = normalize(raw.as_bytes()).unwrap();
            assert_eq!(keep_encoded_slash(raw.as_bytes(), &uri).as_deref(), expected, "{raw}");
        }
    }

    proptest! {
        #[test]
        fn holds_no_dot_segment_and_no_empty_one(raw in "/([./%a]|%2[efEF5]|%c3){0,24}") {
            if let Ok(uri) = normalize(raw.as_bytes()) {
                prop_assert!(uri.starts_with('/'));
                prop_assert!(!uri.contains("//"), "{}", uri);
                prop_assert!(!uri.split('/').any(|s| s == "." || s == ".."), "{}", uri);
            }
        }

        #[test]
        fn is_stable(raw in "/([./a]|%2[eEfF]|%61){0,24}") {
            if let Ok(uri) = normalize(raw.as_bytes()) {
                let again = normalize(uri.as_bytes()).unwrap();
                prop_assert_eq!(&again, &uri);
            }
        }

        #[test]
        fn short_cut_changes_nothing(raw in "/[./a%2fF]{0,12}") {
            if is_plain(raw.as_bytes()) {
                let slow = decode(raw.as_bytes()).and_then(|d| resolve(&d)).unwrap();
                let fast = normalize(raw.as_bytes()).unwrap();
                prop_assert_eq!(fast.as_bytes(), slow.as_slice());
            }
        }

        #[test]
        fn never_panics(raw in proptest::collection::vec(any::<u8>(), 0..48)) {
            let target = split_target(&raw);
            let _ = normalize(target.path);
            if let Ok(uri) = normalize(&raw) {
                let _ = normalize_uri_like_servlet(&uri);
                let _ = keep_encoded_slash(&raw, &uri);
            }
        }
    }
}
