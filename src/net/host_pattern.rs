//! The hosts a route or a certificate may name: `foo.com`, `*.foo.com`, `*`.

use std::fmt;

/// A host with an optional leading `*`, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// The very host.
    Exact(Box<str>),
    /// Every host that ends so; the leading dot of `*.foo.com` is part of it. Empty for `*`.
    Suffix(Box<str>),
}

impl HostPattern {
    /// Reads a pattern. Only a leading `*` is special, and it stands for any text, dots included.
    /// APISIX: lua-resty-radixtree, `hosts`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lower = text.to_ascii_lowercase();
        match lower.strip_prefix('*') {
            Some(suffix) => Self::Suffix(suffix.into()),
            None => Self::Exact(lower.into()),
        }
    }

    /// Whether a host, already in lower case, is one of those named.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(own) => **own == *host,
            Self::Suffix(suffix) => host.ends_with(&**suffix),
        }
    }

    /// Whether the pattern names a port (or is an IPv6 address), in which case APISIX compares it with the raw
    /// Host header.
    #[must_use]
    pub fn has_port(&self) -> bool {
        let (Self::Exact(text) | Self::Suffix(text)) = self;
        text.contains(':')
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, host: &str, expected: bool) {
        assert_eq!(HostPattern::parse(pattern).matches(host), expected, "{pattern} {host}");
    }

    #[test]
    fn matching() {
        check("foo.com", "foo.com", true);
        check("FOO.com", "foo.com", true);
        check("foo.com", "a.foo.com", false);
        check("*.foo.com", "a.foo.com", true);
        check("*.foo.com", "a.b.foo.com", true);
        check("*.foo.com", "foo.com", false);
        check("*.foo.com", "afoo.com", false);
        check("*foo.com", "afoo.com", true);
        check("*", "anything", true);
        check("*.FOO.com", "a.foo.com", true);
    }

    #[test]
    fn shows_itself_and_its_port() {
        assert_eq!(HostPattern::parse("*.Foo.com").to_string(), "*.foo.com");
        assert_eq!(HostPattern::parse("a.b").to_string(), "a.b");
        assert!(HostPattern::parse("foo.com:80").has_port());
        assert!(!HostPattern::parse("foo.com").has_port());
    }
}
