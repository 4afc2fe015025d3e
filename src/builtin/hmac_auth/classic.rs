//! The form of APISIX 3.2: `X-HMAC-*` headers, or `Authorization: hmac-auth-v1#…`; the consumer's options rule it.
//!
//! APISIX 3.2: plugins/hmac-auth.lua `get_params`, `validate`, `generate_signature`.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header::AUTHORIZATION};
use serde::Deserialize;
use serde_json::Value;

use super::{Refusal, find, in_time, listed, mac::Algorithm, malformed, name, wrong};
use crate::{
    builtin::shared::base64,
    net::{
        args,
        escape::{Escape, escape_uri},
        lossless,
    },
    plugin::{consumer::Authenticated, exchange::Exchange},
};

const SCHEME: &[u8] = b"hmac-auth-v1#";

/// The names of the headers; config.yaml may give others.
pub struct Names {
    access_key: HeaderName,
    signature: HeaderName,
    algorithm: HeaderName,
    date: HeaderName,
    signed_headers: HeaderName,
    digest: HeaderName,
}

impl Names {
    /// Takes what `plugin_attr.hmac-auth` says.
    ///
    /// # Errors
    /// It says something that cannot be the name of a header.
    pub fn new(attr: Option<&Value>) -> Result<Self, String> {
        let named = |key: &str, otherwise: &'static str| match attr.and_then(|attr| attr.get(key)) {
            Some(Value::String(text)) => name(text),
            Some(_) => Err(format!("plugin_attr.hmac-auth.{key} is no text")),
            None => Ok(HeaderName::from_static(otherwise)),
        };
        Ok(Self {
            access_key: named("access_key", "x-hmac-access-key")?,
            signature: named("signature_key", "x-hmac-signature")?,
            algorithm: named("algorithm_key", "x-hmac-algorithm")?,
            date: named("date_key", "date")?,
            signed_headers: named("signed_headers_key", "x-hmac-signed-headers")?,
            digest: named("body_digest_key", "x-hmac-digest")?,
        })
    }

    /// The headers that the upstream does not get to see unless the consumer keeps them.
    fn removed(&self) -> [&HeaderName; 3] {
        [&self.signature, &self.algorithm, &self.signed_headers]
    }

    /// Removes all that was sent for this plugin alone.
    pub fn hide(&self, x: &mut Exchange<'_>) {
        for name in self.removed().into_iter().chain([&self.access_key, &self.digest]) {
            x.remove_header(name);
        }
    }
}

/// The consumer's options.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(default)]
pub struct Options {
    algorithm: Algorithm,
    /// Seconds; 0: dates are not looked at.
    clock_skew: u64,
    /// Names that a client may sign; empty: all.
    signed_headers: Vec<String>,
    keep_headers: bool,
    encode_uri_params: bool,
    validate_request_body: bool,
    /// Bytes.
    max_req_body: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::default(),
            clock_skew: 0,
            signed_headers: Vec::new(),
            keep_headers: false,
            encode_uri_params: true,
            validate_request_body: false,
            max_req_body: 512 * 1024,
        }
    }
}

/// What a request claims in this form.
#[derive(Default)]
pub struct Claim {
    access_key: Bytes,
    signature: Option<Bytes>,
    algorithm: Option<Bytes>,
    date: Option<Bytes>,
    signed_headers: Option<Bytes>,
}

/// The five parts of `hmac-auth-v1#…`, in their order; `None` if it is something else.
pub fn parts(authorization: &[u8]) -> Option<[&[u8]; 5]> {
    let mut rest = authorization.strip_prefix(SCHEME)?.split(|byte| *byte == b'#');
    let parts = [rest.next()?, rest.next()?, rest.next()?, rest.next()?, rest.next()?];
    // APISIX does not count a last part that is empty.
    (rest.next().is_none() && !parts[4].is_empty()).then_some(parts)
}

impl Claim {
    /// Reads what is claimed; `None` if the request is of another form.
    pub fn read(x: &Exchange<'_>, names: &Names) -> Option<Self> {
        let headers = &x.session.req_header().headers;
        let copy = |value: &HeaderValue| Bytes::copy_from_slice(value.as_bytes());
        let header = |name: &HeaderName| headers.get(name).map(copy);
        if let Some(access_key) = header(&names.access_key) {
            return Some(Self {
                access_key,
                signature: header(&names.signature),
                algorithm: header(&names.algorithm),
                date: header(&names.date),
                signed_headers: header(&names.signed_headers),
            });
        }
        let authorization =
            headers.get(&AUTHORIZATION).filter(|text| text.as_bytes().starts_with(SCHEME)).map(copy)?;
        let Some(parts) = parts(&authorization) else { return Some(Self::default()) };
        let [access_key, signature, algorithm, date, signed_headers] =
            parts.map(|part| authorization.slice_ref(part));
        Some(Self {
            access_key,
            signature: Some(signature),
            algorithm: Some(algorithm),
            date: Some(date),
            signed_headers: Some(signed_headers),
        })
    }

    fn signed_names(&self) -> impl Iterator<Item = &[u8]> {
        self.signed_headers.iter().flat_map(|list| list.split(|byte| *byte == b';'))
    }
}

/// Finds out who signed the request.
pub(super) async fn verify<'a>(
    x: &mut Exchange<'a>,
    names: &Names,
    claim: Claim,
) -> Result<&'a Authenticated, Refusal> {
    let known = std::str::from_utf8(&claim.access_key).unwrap_or_default();
    let found = find(x, known);
    // Gone before the request is signed anew, as in APISIX: who signs one of them signs an empty value.
    if !found.as_ref().is_ok_and(|(_, credential)| credential.options.keep_headers) {
        for name in names.removed() {
            x.remove_header(name);
        }
    }
    let digest = listed(x, names.digest.as_str()).map(<[u8]>::to_vec);
    let Some(signature) = &claim.signature else { return Err(malformed("access key or signature missing")) };
    let algorithm = claim.algorithm.as_ref().ok_or_else(|| malformed("algorithm missing"))?;
    let (found, credential) = found?;
    let options = &credential.options;
    let algorithm = Algorithm::from_name(algorithm).filter(|one| *one == options.algorithm);
    let algorithm = algorithm.ok_or_else(|| wrong("algorithm not supported"))?;
    if options.clock_skew > 0 {
        in_time(claim.date.as_deref().unwrap_or_default(), Duration::from_secs(options.clock_skew))?;
    }
    let may = |name: &[u8]| options.signed_headers.iter().any(|allowed| allowed.as_bytes() == name);
    if !options.signed_headers.is_empty() && !claim.signed_names().all(may) {
        return Err(wrong("Invalid signed header"));
    }
    let signature = base64::decode(signature).ok_or_else(|| wrong("Invalid signature"))?;
    if !credential.keys.verify(algorithm, &text(x, &claim, options.encode_uri_params), &signature) {
        return Err(wrong("Invalid signature"));
    }
    if options.validate_request_body {
        let digest = digest.as_deref().and_then(base64::decode).ok_or_else(|| wrong("Invalid digest"))?;
        let body = super::body(x, options.max_req_body).await;
        let body = body.map_err(|_| wrong("Exceed body limit size"))?;
        if !credential.keys.verify(algorithm, &body, &digest) {
            return Err(wrong("Invalid digest"));
        }
    }
    Ok(found)
}

/// What is signed, a line each.
fn text(x: &Exchange<'_>, claim: &Claim, encode: bool) -> Vec<u8> {
    let mut lines = Vec::with_capacity(256);
    let mut line = |parts: &[&[u8]]| {
        parts.iter().for_each(|part| lines.extend_from_slice(part));
        lines.push(b'\n');
    };
    line(&[x.method().as_str().as_bytes()]);
    line(&[&lossless::to_bytes(if x.path().is_empty() { "/" } else { x.path() })]);
    line(&[&lossless::to_bytes(&canonical_query(x.args(), encode))]);
    line(&[&claim.access_key]);
    line(&[claim.date.as_deref().unwrap_or_default()]);
    for name in claim.signed_names() {
        let value = std::str::from_utf8(name).ok().and_then(|name| listed(x, name)).unwrap_or_default();
        line(&[name, b":", value]);
    }
    lines
}

/// The arguments, decoded, sorted by name and value, and written anew. One without a value has an empty one.
pub fn canonical_query(query: &str, encode: bool) -> String {
    let mut pairs: Vec<_> = args::pairs(query.as_bytes()).collect();
    pairs.sort_by(|a, b| {
        let key = |text: &str| lossless::to_bytes(text).into_owned();
        let value = |value: &Option<_>| key(value.as_deref().unwrap_or_default());
        key(&a.0).cmp(&key(&b.0)).then_with(|| value(&a.1).cmp(&value(&b.1)))
    });
    let mut out = String::with_capacity(query.len() + 16);
    for (name, value) in &pairs {
        if !out.is_empty() {
            out.push('&');
        }
        let value = value.as_deref().unwrap_or_default();
        if encode {
            out.push_str(&escape_uri(name, Escape::Component));
            out.push('=');
            out.push_str(&escape_uri(value, Escape::Component));
        } else {
            out.push_str(name);
            out.push('=');
            out.push_str(value);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_authorization() {
        let five = |text: &'static str| parts(text.as_bytes());
        assert_eq!(five("hmac-auth-v1#k#s#a#d#h"), Some([&b"k"[..], b"s", b"a", b"d", b"h"]));
        assert_eq!(five("hmac-auth-v1###a##x;y"), Some([&b""[..], b"", b"a", b"", b"x;y"]));
        for other in ["", "hmac-auth-v1", "hmac-auth-v1#", "hmac-auth-v1#k#s#a#d", "hmac-auth-v1#k#s#a#d#"] {
            assert_eq!(five(other), None, "{other}");
        }
        assert_eq!(five("hmac-auth-v1#k#s#a#d#h#x"), None);
        assert_eq!(five("Hmac-auth-v1#k#s#a#d#h"), None);
    }

    #[track_caller]
    fn query(query: &str, encode: bool, expected: &str) {
        assert_eq!(canonical_query(query, encode), expected, "{query}");
    }

    #[test]
    fn queries_in_canonical_form() {
        query("", true, "");
        query("name=james&age=36", true, "age=36&name=james");
        query("b=2&a=3&a=1&a", true, "a=&a=1&a=3&b=2");
        query("a=x%20y&k%2Fz=%26", true, "a=x%20y&k%2Fz=%26");
        query("a=x+y&k%2Fz=%26", false, "a=x y&k/z=&");
        query("a=%FF", true, "a=%FF");
    }

    proptest! {
        #[test]
        fn reads_any_header(text in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = parts(&text);
            let _ = parts(&[SCHEME, &text].concat());
        }

        #[test]
        fn the_canonical_form_does_not_depend_on_order(mut pairs in proptest::collection::vec("[a-c]=[x-z%2]{0,3}", 0..6)) {
            let one = canonical_query(&pairs.join("&"), true);
            pairs.reverse();
            prop_assert_eq!(&one, &canonical_query(&pairs.join("&"), true));
            prop_assert_eq!(&canonical_query(&one, true), &one);
        }
    }
}
