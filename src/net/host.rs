//! The Host header taken apart, and addresses of the form `host:port`.

use std::borrow::Cow;

/// A Host header without its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host<'a> {
    /// nginx's `$host`: lower case, without port and without one trailing dot; IPv6 keeps its brackets.
    pub name: Cow<'a, str>,
    /// The port, when there is one and it is a number.
    pub port: Option<u16>,
}

/// A Host header that nginx answers with 400: empty, two dots in a row, a slash, a blank or a control
/// character.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("client sent invalid host header")]
pub struct InvalidHost;

/// Takes a Host header apart as nginx does (`ngx_http_validate_host`); borrows when it already is lower case.
///
/// # Errors
/// [`InvalidHost`] for what nginx refuses.
pub fn split(header: &str) -> Result<Host<'_>, InvalidHost> {
    let refused = |b: u8| b <= b' ' || b == 0x7F || b == b'/';
    // Not `contains`: it sets up a searcher, which costs more than a Host is long.
    let two_dots = |pair: &[u8]| pair == b"..";
    if header.bytes().any(refused) || header.as_bytes().windows(2).any(two_dots) {
        return Err(InvalidHost);
    }
    let (name, port) = cut_port(header);
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        return Err(InvalidHost);
    }
    let name = if name.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    };
    Ok(Host { name, port: port.and_then(|p| p.parse().ok()) })
}

/// Splits an address into host and port without judging either; brackets of IPv6 are kept, and an IPv6
/// address without brackets has no port. APISIX: `core.utils.parse_addr`.
#[must_use]
pub fn parse_addr(addr: &str) -> (&str, Option<u16>) {
    if addr.starts_with('[') {
        return match addr.rfind("]:") {
            Some(at) => (&addr[..=at], addr[at + 2..].parse().ok()),
            None => (addr, None),
        };
    }
    let dot = addr.find('.').unwrap_or(addr.len());
    if addr[..dot].bytes().filter(|b| *b == b':').count() > 1 {
        return (addr, None);
    }
    // A colon that ends the text does not count, as in the source.
    match addr.strip_suffix(':').unwrap_or(addr).rfind(':') {
        Some(at) => (&addr[..at], addr[at + 1..].parse().ok()),
        None => (addr, None),
    }
}

fn cut_port(header: &str) -> (&str, Option<&str>) {
    if header.starts_with('[')
        && let Some(end) = header.find(']')
    {
        return (&header[..=end], header[end + 1..].strip_prefix(':'));
    }
    if header.starts_with('[') {
        return (header, None);
    }
    match header.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (header, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(header: &str, expected: Option<(&str, Option<u16>)>) {
        let got = split(header).ok();
        assert_eq!(got.as_ref().map(|h| (h.name.as_ref(), h.port)), expected, "{header}");
    }

    #[test]
    fn host_headers() {
        check("foo.com", Some(("foo.com", None)));
        check("Foo.COM:80", Some(("foo.com", Some(80))));
        check("foo.com.", Some(("foo.com", None)));
        check("foo.com.:80", Some(("foo.com", Some(80))));
        check("foo.com:", Some(("foo.com", None)));
        check("foo.com:x", Some(("foo.com", None)));
        check("[::1]", Some(("[::1]", None)));
        check("[2001:DB8::1]:9080", Some(("[2001:db8::1]", Some(9080))));
        check("[::1", Some(("[::1", None)));
        check("a_b-c~", Some(("a_b-c~", None)));
        check("", None);
        check(":80", None);
        check(".", None);
        check("a..b", None);
        check("a/b", None);
        check("a b", None);
        check("a\u{7f}", None);
    }

    #[test]
    fn addresses() {
        for (addr, host, port) in [
            ("127.0.0.1", "127.0.0.1", None),
            ("127.0.0.1:90", "127.0.0.1", Some(90)),
            ("www.test.com", "www.test.com", None),
            ("www.test.com:90", "www.test.com", Some(90)),
            ("localhost:90", "localhost", Some(90)),
            ("localhost", "localhost", None),
            ("[127.0.0.1:90", "[127.0.0.1:90", None),
            ("[::1]", "[::1]", None),
            ("[::1]:1234", "[::1]", Some(1234)),
            ("[::1234:1234]:12345", "[::1234:1234]", Some(12345)),
            ("::1", "::1", None),
            ("::ffff:192.0.2.1", "::ffff:192.0.2.1", None),
            ("", "", None),
        ] {
            assert_eq!(parse_addr(addr), (host, port), "{addr}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,20}|[\\[\\]:.a1]{0,12}") {
            let _ = parse_addr(&text);
            if let Ok(host) = split(&text) {
                prop_assert!(!host.name.is_empty());
                prop_assert!(!host.name.bytes().any(|b| b.is_ascii_uppercase()));
            }
        }
    }
}
