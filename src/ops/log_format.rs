//! nginx's `log_format`: text with variables, compiled once and written as bytes.
//!
//! `$name` and `${name}`, names being letters, digits and `_`; `\"`, `\'`, `\\`, `\t`, `\r`, `\n` mean what they mean
//! between quotes in nginx.conf, where APISIX puts the format. nginx: ngx_http_log_module.c.
//!
//! Invariant: with [`LogEscape::Default`] and [`LogEscape::Json`] no byte of a request can end a line or a quotation.
//!
//! Differs from APISIX: an unknown variable is written as one without a value, where nginx refuses to start; line
//! ends after the format are left out; `$arg_…` is decoded; credentials in arguments are masked.

use std::{borrow::Cow, io::Write, net::IpAddr, time::SystemTime};

use crate::{
    net::lossless,
    plugin::{exchange::Exchange, request::Try},
    settings::types::LogEscape,
    vars::{clock, var::Var},
};

/// A compiled format.
pub struct Format {
    parts: Box<[Part]>,
    escape: LogEscape,
}

enum Part {
    Text(Box<[u8]>),
    Var(Var),
    /// `$pipe`: `p` for a request that was pipelined, else `.`.
    Pipe,
}

/// What is wrong with a format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid access_log_format: `$` without the name of a variable at `{0}`")]
pub struct FormatError(String);

impl Format {
    /// Compiles a format.
    ///
    /// # Errors
    /// When a `$` is not followed by a name, as in nginx.
    pub fn parse(source: &str, escape: LogEscape) -> Result<Format, FormatError> {
        let source = unquote(source.trim_end_matches(['\n', '\r']));
        let mut parts = Vec::new();
        let mut rest = &*source;
        while let Some(at) = rest.find('$') {
            let (name, after) = name(&rest[at + 1..]).ok_or_else(|| FormatError(rest[at..].to_owned()))?;
            if at > 0 {
                parts.push(Part::Text(rest.as_bytes()[..at].into()));
            }
            parts.push(variable(name));
            rest = after;
        }
        parts.push(Part::Text(format!("{rest}\n").into_bytes().into()));
        Ok(Format { parts: parts.into(), escape })
    }

    /// Appends the line of one exchange, with its line end.
    pub fn write(&self, out: &mut Vec<u8>, x: &Exchange<'_>) {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text),
                Part::Pipe => out.push(if x.ctx.pipelined { b'p' } else { b'.' }),
                Part::Var(var) => self.value(out, var, x),
            }
        }
    }

    fn value(&self, out: &mut Vec<u8>, var: &Var, x: &Exchange<'_>) {
        let tries = &x.ctx.upstream.tries;
        // The variables of the default format are written without a text of their own each.
        match var {
            Var::RemoteAddr => ip(out, x.ctx.client.ip()),
            Var::Status => status(out, x.ctx.status.unwrap_or(0)),
            Var::BodyBytesSent => number(out, x.session.as_downstream().body_bytes_sent() as u64),
            Var::RequestTime => millis(out, x.ctx.started.elapsed().as_millis()),
            // nginx's times in the log are those of writing it.
            Var::TimeLocal => out.extend_from_slice(clock::common_log(SystemTime::now()).as_bytes()),
            Var::TimeIso8601 => out.extend_from_slice(clock::iso8601(SystemTime::now()).as_bytes()),
            Var::RequestLine => x.logged_request_line().iter().for_each(|part| self.bytes(out, part)),
            Var::ApisixRequestId | Var::RequestId => self.text(out, x.ctx.id()),
            Var::UpstreamAddr => self.tries(out, tries, |out, one| {
                address(out, one);
                true
            }),
            Var::UpstreamStatus => self.tries(out, tries, |out, one| match one.status {
                Some(code) => {
                    number(out, code.into());
                    true
                }
                None => false,
            }),
            Var::UpstreamResponseTime => self.tries(out, tries, |out, one| match one.total {
                Some(total) => {
                    millis(out, total.as_millis());
                    true
                }
                None => false,
            }),
            // APISIX gives it the client's before there is another.
            Var::UpstreamHost if x.ctx.upstream.host.is_none() => {
                self.text(out, x.http_host().unwrap_or_default())
            }
            _ => match x.logged(var) {
                Some(text) => self.text(out, &text),
                None => self.nothing(out),
            },
        }
    }

    fn tries(&self, out: &mut Vec<u8>, tries: &[Try], write: impl Fn(&mut Vec<u8>, &Try) -> bool) {
        if tries.is_empty() {
            return self.nothing(out);
        }
        for (at, one) in tries.iter().enumerate() {
            if at > 0 {
                out.extend_from_slice(b", ");
            }
            if !write(out, one) {
                out.push(b'-');
            }
        }
    }

    /// A variable without a value.
    fn nothing(&self, out: &mut Vec<u8>) {
        if self.escape == LogEscape::Default {
            out.push(b'-');
        }
    }

    fn text(&self, out: &mut Vec<u8>, text: &str) {
        self.bytes(out, &lossless::to_bytes(text));
    }

    fn bytes(&self, out: &mut Vec<u8>, bytes: &[u8]) {
        match self.escape {
            LogEscape::Default => {
                escape(out, bytes, |byte| matches!(byte, b'"' | b'\\' | ..0x20 | 0x7f..), hex)
            }
            LogEscape::Json => escape(out, bytes, |byte| matches!(byte, b'"' | b'\\' | ..0x20), json),
            LogEscape::None => out.extend_from_slice(bytes),
        }
    }
}

fn escape(out: &mut Vec<u8>, bytes: &[u8], special: impl Fn(u8) -> bool, write: fn(&mut Vec<u8>, u8)) {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|&byte| special(byte)) {
        out.extend_from_slice(&rest[..at]);
        write(out, rest[at]);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

fn hex(out: &mut Vec<u8>, byte: u8) {
    out.extend_from_slice(&[b'\\', b'x', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
}

fn json(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        _ => {
            out.extend_from_slice(&[
                b'\\',
                b'u',
                b'0',
                b'0',
                HEX[usize::from(byte >> 4)],
                HEX[usize::from(byte & 15)],
            ]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// Decimal digits.
fn number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// nginx writes no status as `000`.
fn status(out: &mut Vec<u8>, status: u16) {
    let digit = |value: u16| b'0' + (value % 10) as u8;
    out.extend_from_slice(&[digit(status / 100), digit(status / 10), digit(status)]);
}

/// Seconds with three places.
fn millis(out: &mut Vec<u8>, millis: u128) {
    let millis = u64::try_from(millis).unwrap_or(u64::MAX);
    number(out, millis / 1000);
    out.push(b'.');
    status(out, (millis % 1000) as u16);
}

fn ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            for (at, octet) in ip.octets().into_iter().enumerate() {
                if at > 0 {
                    out.push(b'.');
                }
                number(out, octet.into());
            }
        }
        // Writing to memory cannot fail.
        IpAddr::V6(ip) => drop(write!(out, "{ip}")),
    }
}

fn address(out: &mut Vec<u8>, one: &Try) {
    match one.addr.ip() {
        ip @ IpAddr::V4(_) => self::ip(out, ip),
        IpAddr::V6(ip) => drop(write!(out, "[{ip}]")),
    }
    out.push(b':');
    number(out, one.addr.port().into());
}

/// The name after a `$`, and what follows it.
fn name(text: &str) -> Option<(&str, &str)> {
    let (inner, braced) = match text.strip_prefix('{') {
        Some(inner) => (inner, true),
        None => (text, false),
    };
    let end = inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inner.len());
    let (name, after) = inner.split_at(end);
    let after = if braced { after.strip_prefix('}')? } else { after };
    (!name.is_empty()).then_some((name, after))
}

fn variable(name: &str) -> Part {
    // nginx's names have no case.
    match &*name.to_ascii_lowercase() {
        "pipe" => Part::Pipe,
        name => Part::Var(Var::parse(name)),
    }
}

/// Resolves the escapes that nginx.conf knows between quotes.
fn unquote(source: &str) -> Cow<'_, str> {
    if !source.contains('\\') {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    let mut chars = source.chars();
    while let Some(c) = chars.next() {
        let meant = match (c, chars.as_str().chars().next()) {
            ('\\', Some(quoted @ ('"' | '\'' | '\\'))) => Some(quoted),
            ('\\', Some('t')) => Some('\t'),
            ('\\', Some('r')) => Some('\r'),
            ('\\', Some('n')) => Some('\n'),
            _ => None,
        };
        out.push(meant.unwrap_or(c));
        if meant.is_some() {
            chars.next();
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use std::{
        net::SocketAddr,
        time::{Duration, Instant},
    };

    use proptest::prelude::*;

    use super::*;
    use crate::plugin::{request::RequestCtx, testing::Kit};

    fn line(
        raw: impl AsRef<[u8]>,
        format: &str,
        escape: LogEscape,
        prepare: impl FnOnce(&mut RequestCtx),
    ) -> Vec<u8> {
        let format = Format::parse(format, escape).unwrap();
        Kit::new(raw).run(async |x| {
            prepare(x.ctx);
            let mut out = Vec::new();
            format.write(&mut out, x);
            out
        })
    }

    #[track_caller]
    fn check(raw: &[u8], format: &str, escape: LogEscape, expected: &str) {
        let written = line(raw, format, escape, |_| {});
        assert_eq!(String::from_utf8_lossy(&written), format!("{expected}\n"), "{format}");
    }

    const GET: &[u8] = b"GET /a?x=1 HTTP/1.1\r\nHost: a.com\r\nX-K: v\r\nX-Empty:\r\n\r\n";

    #[test]
    fn texts_and_names() {
        for escape in [LogEscape::Default, LogEscape::Json, LogEscape::None] {
            check(GET, "", escape, "");
            check(GET, "plain é", escape, "plain é");
            check(GET, "$host", escape, "a.com");
            check(GET, "$Host$HTTP_X_K", escape, "a.comv");
            check(GET, "${host}_$http_x_k-", escape, "a.com_v-");
            check(GET, "\"$request\"", escape, "\"GET /a?x=1 HTTP/1.1\"");
            check(GET, r#"\"$request_method\"\t\\ \' \q\"#, escape, "\"GET\"\t\\ ' \\q\\");
            check(GET, "$uri\n\n", escape, "/a");
            check(GET, "[$http_x_empty]$pipe", escape, "[].");
            check(GET, "$status $body_bytes_sent $remote_addr", escape, "000 0 127.0.0.1");
        }
    }

    #[test]
    fn a_dollar_needs_a_name() {
        for format in ["$", "a $ b", "${}", "${host", "${ho st}", "$-"] {
            assert!(Format::parse(format, LogEscape::Default).is_err(), "{format}");
        }
    }

    #[test]
    fn what_has_no_value() {
        for (escape, expected) in [(LogEscape::Default, "-"), (LogEscape::Json, ""), (LogEscape::None, "")] {
            for var in
                ["http_none", "remote_user", "upstream_addr", "upstream_status", "nobody_knows", "arg_y"]
            {
                check(GET, &format!("${var}"), escape, expected);
            }
        }
    }

    #[test]
    fn escapes() {
        let raw = b"GET / HTTP/1.1\r\nHost: a\r\nX-K: q\"b\\t\tu\xc3\xa9d\xff\r\n\r\n";
        check(raw, "$http_x_k", LogEscape::Default, r"q\x22b\x5Ct\x09u\xC3\xA9d\xFF");
        let json = line(raw, "$http_x_k", LogEscape::Json, |_| {});
        assert_eq!(json, b"q\\\"b\\\\t\\tu\xc3\xa9d\xff\n");
        let none = line(raw, "$http_x_k", LogEscape::None, |_| {});
        assert_eq!(none, b"q\"b\\t\tu\xc3\xa9d\xff\n");
        let mut out = Vec::new();
        let all = Format { parts: Box::default(), escape: LogEscape::Json };
        all.bytes(&mut out, b"\n\r\t\x08\x0c\x00\x1f \"\\/");
        assert_eq!(out, br#"\n\r\t\b\f\u0000\u001F \"\\/"#);
    }

    fn one(addr: &str, status: Option<u16>, total: Option<u64>) -> Try {
        Try {
            addr: addr.parse::<SocketAddr>().unwrap(),
            began: Instant::now(),
            connect: None,
            header: None,
            total: total.map(Duration::from_millis),
            status,
        }
    }

    #[test]
    fn upstreams() {
        #[track_caller]
        fn check(tries: Vec<Try>, expected: &str) {
            let format = "$upstream_addr|$upstream_status|$upstream_response_time";
            let written = line(GET, format, LogEscape::Default, |ctx| ctx.upstream.tries = tries);
            assert_eq!(String::from_utf8_lossy(&written), format!("{expected}\n"));
        }
        check(vec![], "-|-|-");
        check(vec![one("10.0.0.1:80", Some(200), Some(12_034))], "10.0.0.1:80|200|12.034");
        let failed = one("[::1]:8080", Some(502), None);
        check(vec![failed, one("10.0.0.255:1", None, Some(7))], "[::1]:8080, 10.0.0.255:1|502, -|-, 0.007");
    }

    #[test]
    fn the_default_format_of_apisix() {
        let settings = crate::settings::built_in(&|_| None).settings;
        let http = &settings.nginx_config.http;
        let written = line(GET, &http.access_log_format, http.access_log_format_escape, |ctx| {
            ctx.status = Some(404);
            ctx.request_id = Some("id".into());
        });
        let written = String::from_utf8(written).unwrap();
        let (before, after) = written.split_once(" [").unwrap();
        let (time, after) = after.split_once("] ").unwrap();
        assert_eq!(before, "127.0.0.1 - -");
        assert_eq!(time.len(), "22/Nov/2026:08:44:24 +0000".len());
        assert_eq!(
            after,
            "a.com \"GET /a?x=1 HTTP/1.1\" 404 0 0.000 \"-\" \"-\" - - - \"http://a.com\" \"id\"\n"
        );
    }

    #[test]
    fn a_line_costs_one_allocation() {
        let http = crate::settings::built_in(&|_| None).settings.nginx_config.http;
        let format = Format::parse(&http.access_log_format, LogEscape::Default).unwrap();
        let raw = "GET /a?x=1 HTTP/1.1\r\nHost: a.com\r\nUser-Agent: curl\r\nReferer: http://b/\r\n\r\n";
        Kit::new(raw).run(async |x| {
            x.ctx.request_id = Some("id".into());
            x.ctx.upstream.tries = vec![one("10.0.0.1:80", Some(200), Some(3))];
            let mut out = Vec::with_capacity(4096);
            format.write(&mut out, x);
            // The text of the time; the thread keeps its own.
            let used = allocation_counter::measure(|| format.write(&mut out, x));
            assert!(used.count_total <= 1, "{}", used.count_total);
        });
    }

    #[test]
    fn numbers() {
        for value in [0, 9, 10, 12_345, u64::MAX] {
            let mut out = Vec::new();
            number(&mut out, value);
            assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
        }
    }

    proptest! {
        #[test]
        fn no_format_panics(format in "([$]|[{}]|[a-z_]|\\PC|\\\\){0,20}") {
            let _ = Format::parse(&format, LogEscape::Default);
        }

        /// A request cannot forge a line or a field, whatever its header and its target hold.
        #[test]
        fn a_request_stays_in_its_quotes(
            value in proptest::collection::vec(any::<u8>(), 0..40),
            target in "[!$-;=@-Z_a-z|~]{0,20}",
            path: String,
        ) {
            // What can be in a header; everything else is refused before there is a log.
            let value: Vec<u8> = value.into_iter().filter(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..)).collect();
            let raw = [b"GET /", target.as_bytes(), b" HTTP/1.1\r\nHost: a\r\nUser-Agent: ", &value, b"\r\n\r\n"].concat();
            let written = line(raw, "\"$http_user_agent\" \"$request\" \"$uri\" \"$args\"", LogEscape::Default, |ctx| {
                ctx.path = Some(path.into());
            });
            prop_assert_eq!(written.iter().filter(|byte| **byte == b'\n').count(), 1);
            prop_assert_eq!(written.iter().filter(|byte| **byte == b'"').count(), 8);
            prop_assert!(written.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\n')));
        }

        #[test]
        fn json_stays_json(value in "[^\\x00\\r\\n]{0,40}") {
            let format = Format { parts: Box::default(), escape: LogEscape::Json };
            let mut out = b"\"".to_vec();
            format.text(&mut out, &lossless::from_bytes(value.as_bytes()));
            out.push(b'"');
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), value);
        }

        #[test]
        fn default_escapes_can_be_read_back(bytes: Vec<u8>) {
            let format = Format { parts: Box::default(), escape: LogEscape::Default };
            let mut out = Vec::new();
            format.text(&mut out, &lossless::from_bytes(&bytes));
            prop_assert!(out.iter().all(|byte| matches!(byte, b' '..=b'~') && *byte != b'"'));
            let mut back = Vec::new();
            let mut rest = &*out;
            while let Some((&byte, after)) = rest.split_first() {
                rest = after;
                if byte != b'\\' {
                    back.push(byte);
                    continue;
                }
                let digits = std::str::from_utf8(&rest[1..3]).unwrap();
                back.push(u8::from_str_radix(digits, 16).unwrap());
                rest = &rest[3..];
            }
            prop_assert_eq!(back, bytes);
        }
    }
}
