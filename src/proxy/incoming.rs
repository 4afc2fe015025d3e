//! The head of a request, before Pingora parses it.
//!
//! What nginx takes and Pingora does not is escaped. What is no request, or one that could be read in two ways, is
//! answered and logged like all others, through a request that stands in for it; Pingora would send a bare 400 and log
//! nothing.
//!
//! Invariant: what is handed on as a request, Pingora takes.

use std::{pin::Pin, sync::atomic::Ordering, time::Duration};

use bytes::{Buf, BytesMut};
use memchr::{memchr, memmem, memrchr};
use pingora::{
    http::RequestHeader,
    protocols::{Stream, http::authority::validate_request_authority},
};
use tokio::io::AsyncReadExt;

use crate::{
    net::{
        head::{self, Facts, MAX_HEAD, MAX_REQUEST_LINE},
        request_line::{self, Line, Refusal},
    },
    plugin::{metrics::Metrics, source::Source},
};

/// What is known of a request before its head is parsed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// The client may have sent one of the headers that only the gateway writes.
    pub claims: bool,
    /// It came, in part at least, before its predecessor was answered.
    pub pipelined: bool,
}

/// What came in.
#[derive(Debug)]
pub enum Incoming {
    /// A request, with what was read of its body.
    Request(BytesMut, Known),
    /// None; the bytes are of one that stands in for it.
    Refused(BytesMut, Box<Refused>),
}

/// Something that is no request.
#[derive(Clone, Debug)]
pub struct Refused {
    /// What its client is told, and why.
    pub why: Refusal,
    /// The line it sent.
    pub line: Box<[u8]>,
}

/// As much as the framework reads at once.
const ROOM: usize = 4096;
/// What is read of a head that is too large is thrown away beyond this, so that the client gets to read its answer…
const LONGEST: usize = 64 * 1024;
/// …until it has sent this much.
const ENOUGH: usize = 8 * 1024 * 1024;
/// What the gateway answers when there is no request. Its answer is for what was refused.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n";

/// Counts a connection whose request has come in part until it is dropped.
struct Reading<'a>(&'a Metrics);

impl<'a> Reading<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.gateway.reading.fetch_add(1, Ordering::Relaxed);
        Self(metrics)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.gateway.reading.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads a request's head, mends its first line and judges the others; `None` when the client, or this process, has
/// gone before.
pub async fn head(
    source: &mut Source,
    mut end: Pin<&mut (dyn Future<Output = ()> + Send)>,
    metrics: &Metrics,
) -> Option<Incoming> {
    let (mut input, stream) = source.upcoming();
    let pipelined = !input.is_empty();
    let mut reading = None;
    let mut progress = Progress::Begins;
    loop {
        if !input.is_empty() {
            match progress.on(&mut input) {
                Ok(Some((facts, length))) => {
                    let known = Known { claims: facts.claims, pipelined };
                    return Some(begun(source, input, facts, length, known));
                }
                Ok(None) => {}
                Err(why) => {
                    let refused = refused(stream, input, why).await;
                    source.refuse();
                    return Some(refused);
                }
            }
            reading.get_or_insert_with(|| Reading::new(metrics));
        }
        input.reserve(ROOM);
        tokio::select! {
            biased;
            read = stream.read_buf(&mut input) => {
                if read.ok()? == 0 {
                    return None;
                }
            }
            () = &mut end => return None,
        }
    }
}

fn begun(source: &mut Source, mut input: BytesMut, facts: Facts, head: usize, known: Known) -> Incoming {
    match source.begin(&mut input, head, facts.framing) {
        Ok(()) => Incoming::Request(input, known),
        Err(_) => {
            let why = Refusal { status: 400, reason: "malformed chunked body" };
            let line = first(&input).into();
            Incoming::Refused(stand_in(&input[..head]), Box::new(Refused { why, line }))
        }
    }
}

/// How far a head has come.
#[derive(Debug)]
enum Progress {
    /// Its first line is not there.
    Begins,
    /// Its first line is fine; so many bytes were searched for the end.
    Lines { searched: usize, is_origin: bool },
}

impl Progress {
    /// Looks at what has come. `Ok(None)`: more is to come.
    fn on(&mut self, input: &mut BytesMut) -> Result<Option<(Facts, usize)>, Refusal> {
        if let Self::Begins = self {
            let Some(is_origin) = first_line(input)? else { return Ok(None) };
            *self = Self::Lines { searched: 0, is_origin };
        }
        let Self::Lines { searched, is_origin } = self else { return Ok(None) };
        if !is_whole(input, *searched) {
            *searched = input.len();
            return if input.len() > MAX_HEAD { Err(head::TOO_LARGE) } else { Ok(None) };
        }
        let (facts, length) = head::judge(input)?;
        if !*is_origin {
            one_authority(&input[..length])?;
        }
        Ok(Some((facts, length)))
    }
}

/// Whether the target begins with a path, when the first line has come; it is mended where it has to be.
fn first_line(input: &mut BytesMut) -> Result<Option<bool>, Refusal> {
    // Empty lines in front are passed over (RFC 9112 §2.2).
    let blank = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    input.advance(blank);
    match request_line::look(input) {
        Line::Plain => Ok(Some(true)),
        Line::Mended { line, length } => {
            let rest = input.split_off(length);
            *input = BytesMut::from(&line[..]);
            input.unsplit(rest);
            Ok(Some(target(input).starts_with(b"/")))
        }
        Line::Refused(why) => Err(why),
        Line::Partial if input.len() > MAX_REQUEST_LINE => Err(head::LINE_TOO_LONG),
        Line::Partial => Ok(None),
    }
}

/// Whether a head ends behind `from`, where the search was before.
fn is_whole(input: &[u8], from: usize) -> bool {
    let news = &input[from.saturating_sub(2)..];
    let ends = |end: &[u8]| news.ends_with(end) || memmem::find(news, end).is_some();
    ends(b"\n\r\n") || ends(b"\n\n")
}

fn first(head: &[u8]) -> &[u8] {
    head[..memchr(b'\n', head).unwrap_or(head.len())].trim_ascii_end()
}

fn target(head: &[u8]) -> &[u8] {
    first(head).split(|byte| *byte == b' ').nth(1).unwrap_or_default()
}

/// The header lines of a head.
fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = head.split(|byte| *byte == b'\n').skip(1);
    lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line)).take_while(|line| !line.is_empty())
}

fn host(head: &[u8]) -> Option<&[u8]> {
    const NAME: &[u8] = b"host:";
    let mut named = lines(head).filter_map(|line| line.split_at_checked(NAME.len()));
    named.find(|(name, _)| name.eq_ignore_ascii_case(NAME)).map(|(_, value)| value.trim_ascii())
}

/// A target that names a host must name the one of the Host header, as the framework wants it.
fn one_authority(head: &[u8]) -> Result<(), Refusal> {
    let agree = || {
        let mut request = RequestHeader::build("GET", target(head), None)?;
        if let Some(host) = host(head) {
            request.insert_header(http::header::HOST, host)?;
        }
        validate_request_authority(&request)
    };
    agree().map_err(|_| Refusal { status: 400, reason: "the target's host is not that of the Host header" })
}

/// Leaves the answer to a request that stands in.
async fn refused(stream: &mut Stream, mut input: BytesMut, why: Refusal) -> Incoming {
    rest_of_head(stream, &mut input).await;
    let mut lines = input[..].split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let line = lines.find(|line| !line.is_empty()).unwrap_or_default().into();
    Incoming::Refused(stand_in(&input), Box::new(Refused { why, line }))
}

/// The same request without what is wrong with it, as far as there is one: its variables are logged.
fn stand_in(input: &[u8]) -> BytesMut {
    let mut request = BytesMut::from(first(input));
    request.extend_from_slice(b"\r\n");
    let mut seen: Vec<&[u8]> = Vec::new();
    let known = &input[..input.len().min(MAX_HEAD / 2)];
    let known = &known[..memrchr(b'\n', known).map_or(0, |end| end + 1)];
    for line in lines(known).take(head::MAX_LINES / 2) {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        if head::is_harmless(line) && !seen.iter().any(|one| one.eq_ignore_ascii_case(name)) {
            seen.push(name);
            request.extend_from_slice(line);
            request.extend_from_slice(b"\r\n");
        }
    }
    request.extend_from_slice(b"Connection: close\r\n\r\n");
    match Progress::Begins.on(&mut request) {
        Ok(Some(_)) => request,
        _ => BytesMut::from(STAND_IN),
    }
}

/// Reads what belongs to a head that is refused, as far as it comes at once: a client that is cut off while it sends
/// may not see its answer.
async fn rest_of_head(stream: &mut Stream, input: &mut BytesMut) {
    const AT_ONCE: Duration = Duration::from_millis(100);
    let (mut kept, mut thrown) = (input.len(), 0);
    while !is_whole(input, 0) && thrown < ENOUGH {
        let read = tokio::time::timeout(AT_ONCE, stream.read_buf(input)).await;
        if !matches!(read, Ok(Ok(1..))) {
            return;
        }
        if input.len() > LONGEST {
            thrown += input.len() - kept;
            input.truncate(kept);
        } else {
            kept = input.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use pingora::protocols::http::v1::server::HttpSession;
    use proptest::prelude::*;
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn stream(input: &[u8]) -> Stream {
        Box::new(std::io::Cursor::new(input.to_vec()))
    }

    /// The length of the head that Pingora reads; `None` if it refuses, or wants more.
    fn taken(runtime: &Runtime, input: &[u8]) -> Option<usize> {
        let mut session = HttpSession::new(stream(input));
        runtime.block_on(session.read_request()).ok().flatten()
    }

    fn receive(runtime: &Runtime, input: &[u8]) -> Option<Incoming> {
        let metrics = Metrics::new(prometheus::Registry::new());
        let never = std::pin::pin!(std::future::pending());
        runtime.block_on(head(&mut Source::new(stream(input)), never, &metrics))
    }

    #[track_caller]
    fn refuses(input: impl AsRef<[u8]>, status: u16, line: &[u8], expected: impl AsRef<[u8]>) {
        let Some(Incoming::Refused(stands_in, refused)) = receive(&runtime(), input.as_ref()) else {
            panic!("not refused: {}", input.as_ref().escape_ascii())
        };
        assert_eq!(refused.why.status, status, "{}", refused.why.reason);
        assert_eq!(refused.line.escape_ascii().to_string(), line.escape_ascii().to_string());
        assert!(stands_in.len() < 200);
        let (told, expected) = (stands_in.escape_ascii(), expected.as_ref().escape_ascii());
        assert_eq!(told.to_string(), expected.to_string());
    }

    #[test]
    fn what_stands_in_is_the_same_request_without_its_faults() {
        let line = b"POST /a?b HTTP/1.1";
        let clean = b"POST /a?b HTTP/1.1\r\nHost: a\r\nX: y\r\nConnection: close\r\n\r\n";
        let sent =
            b"POST /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nBad: \x01\r\nno colon\r\nX: y\r\n\r\nabc";
        refuses(sent, 400, line, clean);
        refuses(b"POST /a?b HTTP/1.1\r\nHost: a\r\nhost: b\r\nX: y\r\n\r\n", 400, line, clean);
        refuses(b"\r\nNO\x01 / HTTP/1.1\r\nX: y\r\n\r\n", 400, b"NO\x01 / HTTP/1.1", STAND_IN);
        refuses(b"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", 400, b"GET http://a/ HTTP/1.1", STAND_IN);
    }

    #[test]
    fn what_is_too_large_is_not_waited_for() {
        let start = b"GET / HTTP/1.1\r\nX: ".to_vec();
        let endless = [&start[..], &[b'a'; 300_000]].concat();
        refuses(endless, 494, b"GET / HTTP/1.1", b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
        let line = [b"GET /".to_vec(), vec![b'a'; MAX_REQUEST_LINE]].concat();
        let Some(Incoming::Refused(_, refused)) = receive(&runtime(), &line) else { panic!("not refused") };
        assert_eq!(refused.why.status, 414);
    }

    #[test]
    fn a_head_may_arrive_byte_by_byte() {
        let sent = b"\r\nGET /< HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut input = BytesMut::new();
        let mut progress = Progress::Begins;
        for (at, byte) in sent.iter().enumerate() {
            input.extend_from_slice(&[*byte]);
            let is_whole = progress.on(&mut input).unwrap().is_some();
            assert_eq!(is_whole, at + 1 == sent.len(), "{at}");
        }
        assert_eq!(&input[..], b"GET /%3C HTTP/1.1\r\nHost: a\r\n\r\n");
    }

    /// Heads that are almost right.
    fn almost() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            4 => Just("GET / HTTP/1.1".to_owned()),
            1 => Just("POST http://a/b HTTP/1.1".to_owned()),
            1 => "(GET|PUT) (/|http://|ws:)[ab@/:\\\\?<]{0,4} HTTP/1.[017]",
        ];
        let piece = prop_oneof![
            8 => prop_oneof![
                Just("Host: a"), Just("host: b"), Just("Host: a@b"), Just("X: y"), Just("Content-Length: 2"),
                Just("Content-Length: 2, 2"), Just("Transfer-Encoding: chunked"), Just("transfer-encoding: gzip"),
                Just(" folded"), Just("no colon"), Just("Connection: x"), Just("Expect: 100-continue"),
            ].prop_map(|text| text.as_bytes().to_vec()),
            2 => proptest::collection::vec(any::<u8>(), 0..6),
            2 => "[A-Za-z@_. -]{0,3}:[\\x00-\\x7f]{0,3}".prop_map(String::into_bytes),
        ];
        let end = prop_oneof![
            12 => Just(&b"\r\n"[..]), 1 => Just(&b"\n"[..]), 1 => Just(&b"\r"[..]), 1 => Just(&b""[..])
        ];
        let pieces = proptest::collection::vec((piece, end), 0..6);
        (line, pieces, prop_oneof![6 => Just(&b"\r\n"[..]), 1 => Just(&b"\n"[..]), 1 => Just(&b""[..])])
            .prop_map(|(line, pieces, end)| {
                let mut head = format!("{line}\r\n").into_bytes();
                for (piece, end) in pieces {
                    head.extend(piece);
                    head.extend_from_slice(end);
                }
                head.extend_from_slice(end);
                head
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn what_the_framework_refuses_is_refused_before(input in almost()) {
            let runtime = runtime();
            match receive(&runtime, &input) {
                Some(Incoming::Request(handed, _)) => prop_assert!(taken(&runtime, &handed).is_some()),
                Some(Incoming::Refused(stands_in, _)) => {
                    prop_assert_eq!(taken(&runtime, &stands_in), Some(stands_in.len()));
                }
                None => prop_assert_eq!(taken(&runtime, &input), None, "waits for more"),
            }
        }

        #[test]
        fn a_head_ends_where_the_framework_says(input in almost(), body in proptest::collection::vec(any::<u8>(), 0..9)) {
            if let Ok((_, length)) = crate::net::head::judge(&input) {
                let input = [&input[..], &body].concat();
                let taken = taken(&runtime(), &input);
                prop_assert!(taken.is_none_or(|taken| taken == length), "{taken:?}, {length}");
            }
        }
    }
}
