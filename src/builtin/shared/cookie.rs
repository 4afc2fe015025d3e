//! Cookies: reading those that a request brings, writing those that a response sets (RFC 6265).
//!
//! Invariant: a value that is set holds only what a cookie may hold; plugins pass base64url, decimal or hex.

use http::{HeaderValue, header};

use crate::plugin::exchange::Exchange;

/// All cookies of a request, in order; names and values as they stand there.
pub fn all<'x>(x: &'x Exchange<'_>) -> impl Iterator<Item = (&'x str, &'x str)> {
    let headers = x.session.req_header().headers.get_all(header::COOKIE);
    headers.iter().filter_map(|value| std::str::from_utf8(value.as_bytes()).ok()).flat_map(pairs)
}

/// The first cookie of a name.
pub fn find<'x>(x: &'x Exchange<'_>, name: &str) -> Option<&'x str> {
    all(x).find(|(other, _)| *other == name).map(|(_, value)| value)
}

/// The cookies of one `Cookie` header.
pub fn pairs(header: &str) -> impl Iterator<Item = (&str, &str)> {
    header.split(';').filter_map(|pair| pair.split_once('=')).map(|(name, value)| (name.trim(), value.trim()))
}

/// Where a cookie goes and who may read it.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// `Path`.
    pub path: String,
    /// `Domain`; none: only the host that set it.
    pub domain: Option<String>,
    /// `Secure`.
    pub secure: bool,
    /// `HttpOnly`.
    pub http_only: bool,
    /// `SameSite`; none: left to the browser.
    pub same_site: Option<&'static str>,
}

impl Attributes {
    /// A `Set-Cookie` value. `max_age` in seconds; none: until the browser is closed. `None`: a part holds what no
    /// header can.
    pub fn set(&self, name: &str, value: &str, max_age: Option<u64>) -> Option<HeaderValue> {
        let mut text = format!("{name}={value}; Path={}", self.path);
        if let Some(domain) = &self.domain {
            text.push_str("; Domain=");
            text.push_str(domain);
        }
        if let Some(seconds) = max_age {
            text.push_str(&format!("; Max-Age={seconds}"));
        }
        if let Some(same_site) = self.same_site {
            text.push_str("; SameSite=");
            text.push_str(same_site);
        }
        if self.secure {
            text.push_str("; Secure");
        }
        if self.http_only {
            text.push_str("; HttpOnly");
        }
        let mut value = HeaderValue::try_from(text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// A `Set-Cookie` value that removes the cookie.
    pub fn remove(&self, name: &str) -> Option<HeaderValue> {
        self.set(name, "", Some(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_there() {
        let read = |text| pairs(text).collect::<Vec<_>>();
        assert_eq!(read("a=1; b=2;c=3=4"), [("a", "1"), ("b", "2"), ("c", "3=4")]);
        assert_eq!(read("a; =x; ;b="), [("", "x"), ("b", "")]);
        assert!(read("").is_empty());
    }

    #[test]
    fn writes_attributes() {
        let plain = Attributes {
            path: "/".into(),
            domain: None,
            secure: false,
            http_only: true,
            same_site: Some("Lax"),
        };
        assert_eq!(plain.set("a", "1", None).unwrap(), "a=1; Path=/; SameSite=Lax; HttpOnly");
        let all = Attributes { domain: Some("a.com".into()), secure: true, ..plain.clone() };
        let expected = "a=1; Path=/; Domain=a.com; Max-Age=60; SameSite=Lax; Secure; HttpOnly";
        assert_eq!(all.set("a", "1", Some(60)).unwrap(), expected);
        assert_eq!(plain.remove("a").unwrap(), "a=; Path=/; Max-Age=0; SameSite=Lax; HttpOnly");
        assert!(Attributes { path: "/\n".into(), ..plain }.set("a", "1", None).is_none());
    }
}
