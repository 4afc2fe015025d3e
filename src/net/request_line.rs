//! The first line of a request, before the framework sees it.
//!
//! The framework takes a request target with what an URI may hold and refuses, or rewrites, all others by itself.
//! nginx takes more: here such a target is escaped, and what nginx refuses is refused. nginx:
//! `ngx_http_parse_request_line`.

use memchr::memchr;

/// What a request's first line is worth.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// It has not come to its end.
    Partial,
    /// The framework reads it as it is.
    Plain,
    /// The framework reads the same request with these bytes in the line's place.
    Mended {
        /// The line with its end.
        line: Vec<u8>,
        /// So many bytes of the input it replaces.
        length: usize,
    },
    /// It is no request.
    Refused(Refusal),
}

/// Why a request line goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What its client is told.
    pub status: u16,
    /// What is wrong.
    pub reason: &'static str,
}

const fn refused(status: u16, reason: &'static str) -> Refusal {
    Refusal { status, reason }
}

/// Looks at the beginning of what a client sent.
#[must_use]
pub fn look(input: &[u8]) -> Line {
    // Empty lines in front are passed over (RFC 9112 §2.2).
    let start = input.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(input.len());
    let Some(end) = memchr(b'\n', &input[start..]) else { return beginning(&input[start..]) };
    let line = &input[start..start + end];
    if is_plain(line) {
        return Line::Plain;
    }
    match mend(line) {
        Ok(line) => Line::Mended { line, length: start + end + 1 },
        Err(refusal) => Line::Refused(refusal),
    }
}

/// What cannot become a request is not waited for: a TLS handshake, for one.
fn beginning(line: &[u8]) -> Line {
    match line.first() {
        Some(byte) if !is_method(*byte) => Line::Refused(NO_METHOD),
        _ => Line::Partial,
    }
}

const NO_METHOD: Refusal = refused(400, "no method in the request line");

fn is_method(byte: u8) -> bool {
    byte.is_ascii_uppercase() || matches!(byte, b'_' | b'-')
}

/// By far the most lines.
fn is_plain(line: &[u8]) -> bool {
    let Some(rest) = line.strip_suffix(b" HTTP/1.1\r").or_else(|| line.strip_suffix(b" HTTP/1.0\r")) else {
        return false;
    };
    let method = rest.iter().position(|byte| !is_method(*byte)).unwrap_or(0);
    method > 0
        && rest[method..].starts_with(b" /")
        && rest[method + 1..].iter().all(|byte| stands_everywhere(*byte))
}

/// Whether an URI may hold the byte in its path as well as in its query.
const fn stands_everywhere(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~') && !matches!(byte, b'"' | b'<' | b'>' | b'`')
}

fn mend(line: &[u8]) -> Result<Vec<u8>, Refusal> {
    let bare = line.strip_suffix(b"\r").ok_or(refused(400, "bare line feed behind the request line"))?;
    let (method, rest) =
        split(bare).filter(|(method, _)| method.iter().all(|byte| is_method(*byte))).ok_or(NO_METHOD)?;
    if method.is_empty() {
        return Err(NO_METHOD);
    }
    let (target, version) = split(rest).ok_or(refused(400, "no version in the request line"))?;
    let version = version_of(version.trim_ascii_end())?;
    check_target(method, target)?;
    let mut out = Vec::with_capacity(line.len() + 32);
    out.extend_from_slice(method);
    out.push(b' ');
    escape(target, &mut out);
    out.extend_from_slice(version);
    Ok(out)
}

fn split(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr(b' ', text)?;
    Some((&text[..at], &text[at + 1..]))
}

/// nginx takes every minor version of HTTP/1 for 1.1.
fn version_of(version: &[u8]) -> Result<&'static [u8], Refusal> {
    let unknown = refused(400, "no version in the request line");
    let (major, minor) = version
        .strip_prefix(b"HTTP/")
        .and_then(|version| version.iter().position(|byte| *byte == b'.').map(|at| version.split_at(at)))
        .ok_or(unknown)?;
    let number = |digits: &[u8]| (1..=3).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    match (major, &minor[1..]) {
        (b"1", b"0") => Ok(b" HTTP/1.0\r\n"),
        (b"1", minor) if number(minor) => Ok(b" HTTP/1.1\r\n"),
        (major, minor) if number(major) && number(minor) && major[0] > b'1' => {
            Err(refused(505, "a version of HTTP that is not spoken here"))
        }
        _ => Err(unknown),
    }
}

fn check_target(method: &[u8], target: &[u8]) -> Result<(), Refusal> {
    if method == b"CONNECT" {
        // nginx: the same.
        return Err(refused(405, "CONNECT"));
    }
    if target.iter().any(u8::is_ascii_control) {
        return Err(refused(400, "control character in the request line"));
    }
    let absolute = || {
        target.first().is_some_and(u8::is_ascii_alphabetic) && memchr::memmem::find(target, b"://").is_some()
    };
    match target {
        [b'/', ..] | b"*" => Ok(()),
        _ if absolute() => Ok(()),
        _ => Err(refused(400, "the request target is no path")),
    }
}

/// Escapes what an URI may not hold, and all beyond ASCII when it is no text. Both ways mean the same path.
fn escape(target: &[u8], out: &mut Vec<u8>) {
    let is_text = std::str::from_utf8(target).is_ok();
    let query = memchr(b'?', target).unwrap_or(target.len());
    for (at, byte) in target.iter().enumerate() {
        let kept = match byte {
            b'"' => at < query,
            b'`' => at > query,
            0x80.. => is_text,
            byte => stands_everywhere(*byte),
        };
        if kept {
            out.push(*byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use pingora::http::RequestHeader;
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(input: impl AsRef<[u8]>, expected: Line) {
        let input = input.as_ref();
        assert_eq!(look(input), expected, "{}", input.escape_ascii());
    }

    /// The whole input is one line.
    #[track_caller]
    fn mends(input: impl AsRef<[u8]>, line: &str) {
        let length = input.as_ref().len();
        check(input, Line::Mended { line: format!("{line}\r\n").into_bytes(), length });
    }

    #[test]
    fn plain_lines() {
        for line in [
            "GET / HTTP/1.1",
            "GET / HTTP/1.0",
            "M-SEARCH /a/b?c=d%20&e={}|^~ HTTP/1.1",
            "\r\n\nGET / HTTP/1.1",
        ] {
            check(format!("{line}\r\nHost: a\r\n"), Line::Plain);
        }
        for beginning in ["", "\r\n", "G", "GET / HTTP/1.1\r"] {
            check(beginning, Line::Partial);
        }
    }

    #[test]
    fn targets_that_nginx_takes() {
        mends("GET /<a>?<b> HTTP/1.1\r\n", "GET /%3Ca%3E?%3Cb%3E HTTP/1.1");
        mends("GET /\"`?\"` HTTP/1.1\r\n", "GET /\"%60?%22` HTTP/1.1");
        mends("GET /é HTTP/1.1\r\n", "GET /é HTTP/1.1");
        mends(b"GET /\xff?\xc3\xa9 HTTP/1.1\r\n", "GET /%FF?%C3%A9 HTTP/1.1");
        mends("GET http://a/<?b HTTP/1.1\r\n", "GET http://a/%3C?b HTTP/1.1");
        mends("OPTIONS * HTTP/1.1\r\n", "OPTIONS * HTTP/1.1");
        mends("\r\nGET /< HTTP/1.1 \r\n", "GET /%3C HTTP/1.1");
        mends("GET / HTTP/1.7\r\n", "GET / HTTP/1.1");
        let line = b"GET /%3C HTTP/1.1\r\n".to_vec();
        check("GET /< HTTP/1.1\r\nHost: a\r\n", Line::Mended { line, length: 17 });
    }

    #[test]
    fn lines_that_are_no_requests() {
        #[track_caller]
        fn refuses(status: u16, line: impl AsRef<[u8]>) {
            let Line::Refused(refusal) = look(line.as_ref()) else {
                panic!("{}", line.as_ref().escape_ascii())
            };
            assert_eq!(refusal.status, status, "{}", line.as_ref().escape_ascii());
        }
        for line in [
            "GET\r\n",
            "GET /\r\n",
            " / HTTP/1.1\r\n",
            "get / HTTP/1.1\r\n",
            "G@T / HTTP/1.1\r\n",
            "GET  / HTTP/1.1\r\n",
            "GET nothing HTTP/1.1\r\n",
            "GET /a b HTTP/1.1\r\n",
            "GET /a\0b HTTP/1.1\r\n",
            "GET /a\tb HTTP/1.1\r\n",
            "GET /\x7f HTTP/1.1\r\n",
            "GET /< HTTP/1.1\n",
            "GET / HTTP/\r\n",
            "GET / HTTP/1.x\r\n",
            "GET / HTTP/0.9\r\n",
            "GET / HTTX/1.1\r\n",
            "\x16\x03\x01",
        ] {
            refuses(400, line);
        }
        refuses(505, "GET / HTTP/2.0\r\n");
        refuses(405, "CONNECT a:443 HTTP/1.1\r\n");
    }

    #[test]
    fn the_framework_takes_what_is_left() {
        for byte in 1..=u8::MAX {
            let mut line = b"GET /a".to_vec();
            line.extend([byte, b'?', byte]);
            line.extend_from_slice(b" HTTP/1.1\r\n");
            let sent = match look(&line) {
                Line::Plain => line.clone(),
                Line::Mended { line, .. } => line,
                Line::Refused(_) => {
                    assert!(byte <= b' ' || byte == 0x7f, "{byte:#x}");
                    continue;
                }
                Line::Partial => panic!("{byte:#x}"),
            };
            let target = sent.split(|byte| *byte == b' ').nth(1).unwrap();
            assert!(RequestHeader::build("GET", target, None).is_ok(), "{byte:#x}");
        }
    }

    proptest! {
        #[test]
        fn a_mended_line_is_plain_or_not_ascii(line in "[A-Z]{1,4} /[ -~é]{0,16} HTTP/1.[01]\r\n") {
            if let Line::Mended { line, .. } = look(line.as_bytes()) {
                let again = look(&line);
                let same = matches!(&again, Line::Mended { line: twice, .. } if *twice == line);
                prop_assert!(again == Line::Plain || same, "{again:?}");
            }
        }
    }
}
