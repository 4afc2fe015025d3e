//! Today's form: `Authorization: Signature keyId="…",algorithm="…",headers="…",signature="…"`.
//!
//! APISIX: plugins/hmac-auth.lua `retrieve_hmac_fields`, `validate`, `generate_signature`.

use std::time::Duration;

use http::header::{AUTHORIZATION, DATE};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{INVALID, Refusal, find, in_time, listed, mac::Algorithm, malformed, wrong};
use crate::{
    builtin::shared::{
        auth::{self, Failure},
        base64,
    },
    net::lossless,
    plugin::{consumer::Authenticated, exchange::Exchange},
    vars::var::{Lookup, Var},
};

const SCHEME: &[u8] = b"Signature";
const MISSING: &str = "client request can't be validated: missing Authorization header";
const OTHER_SCHEME: &str =
    "client request can't be validated: Authorization header does not start with 'Signature'";

/// What a route asks of this form.
pub struct Rules {
    /// Algorithms that a signature may have.
    pub algorithms: Vec<Algorithm>,
    /// By how much the Date header may differ from the clock here.
    pub clock_skew: Duration,
    /// Headers that must be signed.
    pub signed_headers: Vec<String>,
    /// `None`: the body is not looked at; else the largest in bytes.
    pub largest_body: Option<usize>,
    /// Whether a client learns that it sent no such header.
    pub says_why: bool,
}

/// The fields of the header; of several with one name the last counts, unknown ones are skipped.
#[derive(Debug, Default, PartialEq)]
pub struct Fields<'h> {
    /// The consumer's key.
    pub key_id: Option<&'h [u8]>,
    /// The algorithm's name.
    pub algorithm: Option<&'h [u8]>,
    /// The HMAC in base64.
    pub signature: Option<&'h [u8]>,
    /// What is signed, separated by single spaces.
    pub headers: Option<&'h [u8]>,
}

impl<'h> Fields<'h> {
    /// Reads a header; `None` if it is of another scheme.
    pub fn parse(header: &'h [u8]) -> Option<Self> {
        let rest = header.strip_prefix(SCHEME)?;
        let mut fields = Self::default();
        for part in rest.split(|byte| *byte == b',') {
            let Some((name, value)) = field(part) else { continue };
            let at = match name {
                b"keyId" => &mut fields.key_id,
                b"algorithm" => &mut fields.algorithm,
                b"signature" => &mut fields.signature,
                b"headers" => &mut fields.headers,
                _ => continue,
            };
            *at = Some(value);
        }
        Some(fields)
    }

    fn listed(&self) -> impl Iterator<Item = &'h [u8]> + Clone + use<'h> {
        self.headers.into_iter().flat_map(|list| list.split(|byte| *byte == b' '))
    }
}

/// The first `name="value"` of a part. APISIX: `%s*(%w+)="(.-)"`.
fn field(part: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut from = 0;
    loop {
        let at = from + part.get(from..)?.windows(2).position(|two| two == b"=\"")?;
        let word = part[..at].iter().rev().take_while(|byte| byte.is_ascii_alphanumeric()).count();
        if word > 0 {
            let value = &part[at + 2..];
            let end = value.iter().position(|byte| *byte == b'"')?;
            return Some((&part[at - word..at], &value[..end]));
        }
        from = at + 1;
    }
}

/// Finds out who signed the request.
pub(super) async fn verify<'a>(x: &mut Exchange<'a>, rules: &Rules) -> Result<&'a Authenticated, Refusal> {
    let found = signed(x, rules)?;
    if let Some(largest) = rules.largest_body {
        let Some(digest) = listed(x, "digest").map(<[u8]>::to_vec) else {
            return Err(wrong("Invalid digest"));
        };
        let body = super::body(x, largest).await.map_err(Refusal::Body)?;
        let own = format!("SHA-256={}", base64::encode(&Sha256::digest(&body)));
        if !bool::from(own.as_bytes().ct_eq(&digest)) {
            return Err(wrong("Invalid digest"));
        }
    }
    Ok(found)
}

/// Everything but the body.
fn signed<'a>(x: &Exchange<'a>, rules: &Rules) -> Result<&'a Authenticated, Refusal> {
    let missing = |text| Failure::missing(if rules.says_why { text } else { INVALID });
    let header = auth::header(x, Some(&AUTHORIZATION)).ok_or_else(|| missing(MISSING))?;
    let fields = Fields::parse(header).ok_or_else(|| missing(OTHER_SCHEME))?;
    let (Some(key), Some(signature)) = (fields.key_id, fields.signature) else {
        return Err(malformed("keyId or signature missing"));
    };
    let algorithm = fields.algorithm.ok_or_else(|| malformed("algorithm missing"))?;
    let known = std::str::from_utf8(key).map_err(|_| malformed("Invalid key_id"))?;
    let (found, credential) = find(x, known)?;
    let algorithm = Algorithm::from_name(algorithm).filter(|one| rules.algorithms.contains(one));
    let algorithm = algorithm.ok_or_else(|| wrong("Invalid algorithm"))?;
    let date = auth::header(x, Some(&DATE))
        .ok_or_else(|| wrong("Date header missing. failed to validate clock skew"))?;
    in_time(date, rules.clock_skew)?;
    let names = fields.listed();
    if !rules.signed_headers.iter().all(|wanted| names.clone().any(|name| name == wanted.as_bytes())) {
        return Err(wrong("an expected header is missing in signing"));
    }
    let signature = base64::decode(signature).ok_or_else(|| wrong("Invalid signature"))?;
    let signed = text(x, key, names);
    if !credential.keys.verify(algorithm, &signed, &signature) {
        return Err(wrong("Invalid signature"));
    }
    Ok(found)
}

/// What is signed: the key and what the client listed, a line each. What is not there has no line.
fn text<'h>(x: &Exchange<'_>, key: &[u8], names: impl Iterator<Item = &'h [u8]>) -> Vec<u8> {
    let mut lines = Vec::with_capacity(256);
    lines.extend_from_slice(key);
    lines.push(b'\n');
    for name in names {
        let Ok(text) = std::str::from_utf8(name) else { continue };
        if let Some(value) = listed(x, text) {
            lines.extend_from_slice(name);
            lines.extend_from_slice(b": ");
            lines.extend_from_slice(value);
        } else if text == "@request-target" {
            lines.extend_from_slice(x.method().as_str().as_bytes());
            lines.push(b' ');
            let target = Lookup::get(x, &Var::RequestUri).unwrap_or_default();
            lines.extend_from_slice(&lossless::to_bytes(&target));
        } else {
            continue;
        }
        lines.push(b'\n');
    }
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(header: &str, expected: Option<[Option<&str>; 4]>) {
        let found = Fields::parse(header.as_bytes())
            .map(|fields| [fields.key_id, fields.algorithm, fields.headers, fields.signature]);
        let expected = expected.map(|fields| fields.map(|field| field.map(str::as_bytes)));
        assert_eq!(found, expected, "{header}");
    }

    #[test]
    fn reads_fields() {
        let all = Some([Some("k"), Some("a"), Some("b c"), Some("s==")]);
        check(r#"Signature keyId="k",algorithm="a",headers="b c",signature="s==""#, all);
        check(r#"Signature   signature="s==", headers="b c" ,keyId="k",  algorithm="a",x="y""#, all);
        check(r#"SignaturekeyId="k",algorithm="a",,headers="b c",signature="s==""#, all);
        check(r#"Signature keyId="j",keyId="k""#, Some([Some("k"), None, None, None]));
        check(
            r#"Signature x-keyId="k",algorithm=a,headers="",signature="s"#,
            Some([Some("k"), None, Some(""), None]),
        );
        check(r#"Signature -="x" keyId="k""#, Some([Some("k"), None, None, None]));
        check("Signature", Some([None; 4]));
        for other in ["", "signature keyId=\"k\"", "Basic x", "hmac-auth-v1#k"] {
            check(other, None);
        }
    }

    proptest! {
        #[test]
        fn reads_any_header(header in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Fields::parse(&header);
            let _ = Fields::parse(&[SCHEME, &header].concat());
        }

        #[test]
        fn finds_what_was_written(key in "[^,\"]{0,12}", list in "[a-z@ -]{0,20}", junk in "[a-z= ]{0,6}") {
            let header = format!(r#"Signature {junk},headers="{list}",algorithm="x", keyId="{key}",signature="y""#);
            let fields = Fields::parse(header.as_bytes()).unwrap();
            prop_assert_eq!(fields.key_id, Some(key.as_bytes()));
            prop_assert_eq!(fields.headers, Some(list.as_bytes()));
            prop_assert_eq!((fields.algorithm, fields.signature), (Some(&b"x"[..]), Some(&b"y"[..])));
        }
    }
}
