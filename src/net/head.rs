//! The header lines of a request, before the framework sees them.
//!
//! What the framework would refuse it refuses without a page and without a line in the log; some of what it takes has
//! no single meaning to the next hop. One pass over the bytes finds both, and what else has to be known of a head.

use memchr::{memchr, memchr_iter};

use super::request_line::Refusal;

/// What the header lines say, found out while they are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whether the client may have sent one of the headers that only the gateway writes: `X-…`, `Forwarded`.
    pub claims: bool,
    /// Where the request ends.
    pub framing: Framing,
}

/// Where a request ends (RFC 9112 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes behind its head.
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection, which is to become a tunnel if the server agrees.
    Open,
}

/// As many header lines as the framework has room for.
pub const MAX_LINES: usize = 256;
/// Longest request line, in bytes. nginx: one of `large_client_header_buffers 4 8k`, of which APISIX says nothing…
pub const MAX_REQUEST_LINE: usize = 8 * 1024;
/// …and all four for the head.
pub const MAX_HEAD: usize = 4 * MAX_REQUEST_LINE;

const fn malformed(reason: &'static str) -> Refusal {
    Refusal { status: 400, reason }
}

/// Looks at a head that begins with its request line; what stands behind the empty line is left alone.
///
/// # Errors
/// What is wrong with it, first by name and framing, then by the characters of values.
pub fn judge(input: &[u8]) -> Result<(Facts, usize), Refusal> {
    let mut lines = Lines::default();
    let mut start = 0;
    for at in memchr_iter(b'\n', input) {
        if at == 0 || input[at - 1] != b'\r' {
            return Err(malformed("bare line feed in the request head"));
        }
        let line = &input[start..at - 1];
        match start {
            0 if line.len() > MAX_REQUEST_LINE => return Err(LINE_TOO_LONG),
            0 => {}
            _ if line.is_empty() => return lines.end(&input[..=at]).map(|facts| (facts, at + 1)),
            _ => lines.add(line)?,
        }
        start = at + 1;
    }
    Err(malformed("a request head without an end"))
}

/// Whether a header line has a name, no control characters and nothing to do with framing: it can be shown.
#[must_use]
pub fn is_harmless(line: &[u8]) -> bool {
    let name = name_length(line);
    let frames = |name: &[u8]| {
        ["content-length", "transfer-encoding", "expect", "connection", "upgrade"]
            .iter()
            .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
    };
    name.is_some_and(|length| !frames(&line[..length])) && controls(line) == 0
}

#[derive(Default)]
struct Lines {
    count: usize,
    claims: bool,
    length: u64,
    upgrade: bool,
    once: [u8; ONCE.len()],
}

impl Lines {
    fn add(&mut self, line: &[u8]) -> Result<(), Refusal> {
        self.count += 1;
        // One look at the first letter passes over most lines.
        let first = line[0].to_ascii_lowercase();
        if name_length(line).is_none() {
            let folded = matches!(first, b' ' | b'\t');
            return Err(malformed(if folded {
                "folded header line"
            } else {
                "a header line without a name"
            }));
        }
        match first {
            b'a' | b'c' | b'e' | b'h' | b'i' | b't' => {
                self.length = self.length.saturating_add(count(line, first, &mut self.once)?);
                Ok(())
            }
            b'u' => {
                self.upgrade |= names(line, b"upgrade:");
                Ok(())
            }
            b'x' | b'f' => {
                self.claims = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn end(&self, head: &[u8]) -> Result<Facts, Refusal> {
        if self.count > MAX_LINES || head.len() > MAX_HEAD {
            return Err(TOO_LARGE);
        }
        // Each line, the request's and the empty one too, ends with two.
        if controls(head) != 2 * (self.count + 2) {
            return Err(malformed("control character in the request head"));
        }
        if self.once[CONTENT_LENGTH].saturating_add(self.once[TRANSFER_ENCODING]) > 1 {
            return Err(malformed("more than one of Content-Length and Transfer-Encoding"));
        }
        if self.once.iter().any(|times| *times > 1) {
            return Err(malformed("a header that may stand once stands twice"));
        }
        let chunked = self.once[TRANSFER_ENCODING] > 0;
        let line = &head[..memchr(b'\r', head).unwrap_or(0)];
        if chunked && line.ends_with(b" HTTP/1.0") {
            return Err(malformed("Transfer-Encoding in HTTP/1.0"));
        }
        let framing = match (chunked, self.upgrade) {
            (true, _) => Framing::Chunked,
            (false, true) if self.length == 0 => Framing::Open,
            (false, _) => Framing::Length(self.length),
        };
        Ok(Facts { claims: self.claims, framing })
    }
}

/// A request line that does not fit.
pub const LINE_TOO_LONG: Refusal = Refusal { status: 414, reason: "request line too long" };
/// A head that does not fit. nginx has a page of its own for it.
pub const TOO_LARGE: Refusal = Refusal { status: 494, reason: "request head too large" };

/// The length of a header's name; `None` if there is none with a colon behind it.
fn name_length(line: &[u8]) -> Option<usize> {
    let length = line.iter().position(|byte| !NAME[usize::from(*byte)])?;
    (length > 0 && line[length] == b':').then_some(length)
}

/// RFC 9110 §5.6.2: `token`.
static NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0u8;
    while byte < 0x80 {
        table[byte as usize] = byte.is_ascii_alphanumeric()
            || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~');
        byte += 1;
    }
    table
};

/// How many control characters there are, tabs aside. Written so that the compiler makes vectors of it.
fn controls(text: &[u8]) -> usize {
    const LANES: usize = 128;
    let in_part = |part: &[u8]| {
        part.iter().map(|byte| u8::from((*byte < b' ' && *byte != b'\t') || *byte == 0x7f)).sum::<u8>()
    };
    text.chunks(LANES).map(|part| usize::from(in_part(part))).sum()
}

/// Headers of which nginx takes one at most: two that differ would mean one thing here and another behind.
/// nginx: `ngx_http_process_unique_header_line`, `ngx_http_process_host`.
const ONCE: [&[u8]; 10] = [
    b"content-length:",
    b"transfer-encoding:",
    b"host:",
    b"authorization:",
    b"content-range:",
    b"expect:",
    b"if-match:",
    b"if-modified-since:",
    b"if-none-match:",
    b"if-unmodified-since:",
];
const CONTENT_LENGTH: usize = 0;
const TRANSFER_ENCODING: usize = 1;
const HOST: usize = 2;

/// Counts the line if it may stand once. Gives the length of the body if the line tells it, else nothing.
fn count(line: &[u8], first: u8, once: &mut [u8; ONCE.len()]) -> Result<u64, Refusal> {
    let which = ONCE.iter().position(|name| name[0] == first && names(line, name));
    let Some(which) = which else { return Ok(0) };
    once[which] = once[which].saturating_add(1);
    let value = &line[ONCE[which].len()..];
    match which {
        CONTENT_LENGTH => number(value).ok_or(malformed("Content-Length is no number")),
        // nginx: the only one there is. A list of them is read differently by the next hop.
        TRANSFER_ENCODING if !value.trim_ascii().eq_ignore_ascii_case(b"chunked") => {
            Err(Refusal { status: 501, reason: "a Transfer-Encoding other than chunked" })
        }
        HOST if memchr(b'@', value).is_some() => Err(malformed("invalid Host")),
        _ => Ok(0),
    }
}

/// `5, 5`, `+5` and the like mean a length to some and none to others.
fn number(value: &[u8]) -> Option<u64> {
    let value = value.trim_ascii();
    let is_number = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    is_number.then(|| value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

fn names(line: &[u8], name: &[u8]) -> bool {
    line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE: Framing = Framing::Length(0);

    fn head(lines: &[u8]) -> Vec<u8> {
        [b"GET / HTTP/1.1\r\n", lines, b"\r\n"].concat()
    }

    /// The status, or what is known of a request that goes on.
    #[track_caller]
    fn check(lines: impl AsRef<[u8]>, expected: Result<(bool, Framing), u16>) {
        let head = head(lines.as_ref());
        let judged = judge(&[&head[..], b"a body\n"].concat());
        let told = judged.map(|(facts, length)| {
            assert_eq!(length, head.len());
            (facts.claims, facts.framing)
        });
        assert_eq!(told.map_err(|refusal| refusal.status), expected, "{}", lines.as_ref().escape_ascii());
    }

    #[test]
    fn lines_that_say_something() {
        check("", Ok((false, NONE)));
        check("Host: a\r\nAccept:\r\nUser-Agent: \tx y\t\r\n", Ok((false, NONE)));
        check(b"Cookie: caf\xc3\xa9=\xff\r\n", Ok((false, NONE)));
        check("!#$%&'*+-.^_`|~09azAZ: x:y\r\n", Ok((false, NONE)));
        check("x-real-ip: a\r\n", Ok((true, NONE)));
        check("Forwarded: a\r\n", Ok((true, NONE)));
        check("content-length: 100\r\n", Ok((false, Framing::Length(100))));
        check("Content-Length: \t007 \r\n", Ok((false, Framing::Length(7))));
        check("transfer-encoding: Chunked \r\n", Ok((false, Framing::Chunked)));
        check("Upgrade: websocket\r\n", Ok((false, Framing::Open)));
        check("Upgrade: h2c\r\nContent-Length: 1\r\n", Ok((false, Framing::Length(1))));
        check("Upgrades: x\r\n", Ok((false, NONE)));
    }

    #[test]
    fn lines_without_a_meaning() {
        for lines in [
            &b"nonsense\r\n"[..],
            b": x\r\n",
            b"X Y: x\r\n",
            b"X : x\r\n",
            b"X\xc3\xa9: x\r\n",
            b"X@Y: x\r\n",
            b" X: x\r\n",
            b"X: a\r\n b\r\n",
            b"X: a\r\n\tb\r\n",
            b"X: a\0b\r\n",
            b"X: a\x01\r\n",
            b"X: a\x7f\r\n",
            b"X: a\rY: b\r\n",
            b"X: a\r\r\n",
            b"X: a\nY: b\r\n",
            b"\rX: a\r\n",
        ] {
            check(lines, Err(400));
        }
    }

    #[test]
    fn framing_is_told_once() {
        for lines in [
            "content-length: 1\r\ntransfer-encoding: chunked\r\n".to_owned(),
            "content-length: 1\r\n".repeat(2),
            "content-length: 1\r\n".repeat(255) + "transfer-encoding: chunked\r\n",
            "content-length: +1\r\n".to_owned(),
            "content-length: 1, 1\r\n".to_owned(),
            "Host: a\r\nhost: a\r\n".to_owned(),
            "Host: a@b\r\n".to_owned(),
            "If-Match: a\r\nIf-Match: a\r\n".to_owned(),
        ] {
            check(lines, Err(400));
        }
        check("transfer-encoding: gzip, chunked\r\n", Err(501));
        let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(judge(old).map_err(|refusal| refusal.status), Err(400));
    }

    #[test]
    fn sizes() {
        check("a: b\r\n".repeat(MAX_LINES), Ok((false, NONE)));
        check("a: b\r\n".repeat(MAX_LINES + 1), Err(494));
        check(format!("a: {}\r\n", "b".repeat(MAX_HEAD - 30)), Ok((false, NONE)));
        check(format!("a: {}\r\n", "b".repeat(MAX_HEAD)), Err(494));
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(MAX_REQUEST_LINE));
        assert_eq!(judge(long.as_bytes()), Err(LINE_TOO_LONG));
    }

    proptest! {
        #[test]
        fn control_characters_are_counted(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            let one_by_one = text.iter().filter(|byte| byte.is_ascii_control() && **byte != b'\t').count();
            prop_assert_eq!(controls(&text), one_by_one);
        }
    }
}
