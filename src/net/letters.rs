//! The letters in which the names of header fields leave in HTTP/1.
//!
//! HTTP does not tell `Location` from `location`, but people and scripts that look for one in an answer do, and APISIX
//! writes names as their specifications do.

use bytes::Bytes;
use http::HeaderName;

/// Names that are not one capital after each hyphen, and those that are needed most.
const KNOWN: [&str; 24] = [
    "Location",
    "WWW-Authenticate",
    "X-APISIX-Upstream-Status",
    "X-Request-Id",
    "X-Consumer-Username",
    "X-Consumer-Custom-ID",
    "X-Credential-Identifier",
    "Access-Control-Allow-Origin",
    "Access-Control-Allow-Methods",
    "Access-Control-Allow-Headers",
    "Access-Control-Max-Age",
    "Access-Control-Expose-Headers",
    "Vary",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
    "X-Real-IP",
    "X-XSS-Protection",
    "Content-MD5",
    "ETag",
    "TE",
    "DNT",
    "X-CSRF-Token",
    "X-ID-Token",
];

/// Those of a name of which nobody said how it is written.
pub fn of(name: &HeaderName) -> Bytes {
    let name = name.as_str();
    match KNOWN.iter().find(|known| known.eq_ignore_ascii_case(name)) {
        Some(known) => Bytes::from_static(known.as_bytes()),
        None => capitalized(name).into(),
    }
}

fn capitalized(name: &str) -> String {
    let mut begins = true;
    let each = name.chars().map(|c| {
        let written = if begins { c.to_ascii_uppercase() } else { c };
        begins = c == '-';
        written
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn usual_letters() {
        for (name, letters) in [
            ("location", "Location"),
            ("www-authenticate", "WWW-Authenticate"),
            ("x-apisix-upstream-status", "X-APISIX-Upstream-Status"),
            ("x-own--header_name", "X-Own--Header_name"),
            ("content-language", "Content-Language"),
        ] {
            assert_eq!(of(&HeaderName::from_static(name)), letters);
        }
    }

    proptest! {
        #[test]
        fn it_is_the_same_name(name in "[!#$%&'*+.^_`|~0-9a-z-]{1,40}") {
            let name = HeaderName::try_from(name).expect("a token");
            prop_assert_eq!(HeaderName::from_bytes(&of(&name)).expect("a token"), name);
        }
    }
}
