//! Sets of published keys (RFC 7517 §5), and choosing among them by `kid` and `alg`.
//!
//! A key of a kind, curve or use that is not for verifying signatures is left out, as the RFC wants it; so is a
//! symmetric one, which has no business in a published set, and RSA below 2048 bits (RFC 7518 §3.3).
//!
//! Invariant: what a set verifies is signed with one of its keys, by an algorithm that this key is for.

use jsonwebtoken::{
    DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::{
    key::{Algorithm, VerifyingKey},
    token::{Member, Token},
};
use crate::builtin::shared::base64;

/// Keys that one set may have; those after them are left out.
const MOST: usize = 100;

/// Bytes of the shortest RSA modulus.
const SHORTEST_MODULUS: usize = 256;

const RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// The keys of a set, parsed.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<Published>,
}

#[derive(Debug)]
struct Published {
    kid: Option<Box<str>>,
    /// One for each algorithm that the key is for.
    keys: Vec<VerifyingKey>,
}

/// Why no key of a set accepts a token.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
pub enum Unverified {
    /// Header, `alg` or signature cannot be read, or `crit` wants what nobody here understands.
    #[error("the token cannot be read")]
    Malformed,
    /// `alg` is `none`, symmetric, unknown, or not among the allowed ones.
    #[error("the token's algorithm is not allowed")]
    Algorithm,
    /// No key has the token's `kid` and is for its `alg`: a newer set may have one.
    #[error("no published key has the token's kid and algorithm")]
    NoKey,
    /// The signature is of none of the chosen keys.
    #[error("signature mismatch")]
    Signature,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

impl KeySet {
    /// Reads a set. Keys that cannot be used are left out.
    ///
    /// # Errors
    /// It is no JSON object with a list `keys`.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let document: Document = serde_json::from_slice(json).map_err(|e| format!("no JWK set: {e}"))?;
        Ok(Self { keys: document.keys.into_iter().take(MOST).filter_map(published).collect() })
    }

    /// How many keys can be used.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key can be used.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys for an algorithm: those of this `kid` and those that have none; without a `kid`, all.
    pub fn candidates<'s>(
        &'s self,
        kid: Option<&'s str>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &'s VerifyingKey> {
        let named = move |key: &&Published| match (kid, key.kid.as_deref()) {
            (Some(wanted), Some(kid)) => wanted == kid,
            _ => true,
        };
        let serves = move |key: &&VerifyingKey| key.algorithm() == algorithm;
        self.keys.iter().filter(named).flat_map(|key| &key.keys).filter(serves)
    }

    /// Verifies a token's signature; no list of allowed algorithms allows all that are not symmetric. Says nothing
    /// of its claims.
    ///
    /// # Errors
    /// No key accepts it.
    pub fn verify(&self, token: &Token<'_>, allowed: Option<&[Algorithm]>) -> Result<Algorithm, Unverified> {
        let [alg, kid, crit] = token.header(["alg", "kid", "crit"]).ok_or(Unverified::Malformed)?;
        if crit != Member::Absent {
            return Err(Unverified::Malformed);
        }
        let Member::Text(alg) = alg else { return Err(Unverified::Malformed) };
        let algorithm = Algorithm::from_name(&alg).filter(|algorithm| !algorithm.is_symmetric());
        let algorithm = algorithm.filter(|one| allowed.is_none_or(|allowed| allowed.contains(one)));
        let algorithm = algorithm.ok_or(Unverified::Algorithm)?;
        let kid = match &kid {
            Member::Text(kid) => Some(&**kid),
            Member::Absent => None,
            _ => return Err(Unverified::Malformed),
        };
        let signature = base64::decode_url(token.signature).ok_or(Unverified::Malformed)?;
        let mut candidates = self.candidates(kid, algorithm).peekable();
        if candidates.peek().is_none() {
            return Err(Unverified::NoKey);
        }
        match candidates.any(|key| key.verify(token.signed.as_bytes(), &signature)) {
            true => Ok(algorithm),
            false => Err(Unverified::Signature),
        }
    }
}

/// One key of a set; `None`: it is not for verifying signatures here.
fn published(json: Value) -> Option<Published> {
    // The crate's own `alg` does not know all of ours.
    let declared = json.get("alg").cloned();
    let jwk: Jwk = serde_json::from_value(json).ok()?;
    let operations = jwk.common.key_operations.as_deref();
    let verifies = operations.is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    if !verifies || jwk.common.public_key_use.as_ref().is_some_and(|to| *to != PublicKeyUse::Signature) {
        return None;
    }
    let possible: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &RSA,
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => &[Algorithm::ES256],
            EllipticCurve::P384 => &[Algorithm::ES384],
            EllipticCurve::P521 => &[Algorithm::ES512],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
        _ => return None,
    };
    let meant = |one: &&Algorithm| match &declared {
        None => true,
        Some(declared) => declared.as_str() == Some(one.name()),
    };
    if let AlgorithmParameters::RSA(key) = &jwk.algorithm
        && base64::decode_url(&key.n)?.iter().skip_while(|byte| **byte == 0).count() < SHORTEST_MODULUS
    {
        return None;
    }
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    let keys: Vec<_> =
        possible.iter().filter(meant).filter_map(|one| VerifyingKey::new(*one, &key).ok()).collect();
    (!keys.is_empty()).then(|| Published { kid: jwk.common.key_id.map(Into::into), keys })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::{
        super::key::{SigningKey, tests::pair},
        *,
    };

    /// A JWK of a PEM's public key, made by OpenSSL.
    fn jwk(algorithm: Algorithm, pem: &str) -> Value {
        use openssl::{bn::BigNum, bn::BigNumContext, pkey::PKey};
        let key = PKey::public_key_from_pem(pem.as_bytes()).unwrap();
        let text = |bytes: Vec<u8>| base64::encode_url(&bytes);
        if let Ok(rsa) = key.rsa() {
            return json!({"kty": "RSA", "n": text(rsa.n().to_vec()), "e": text(rsa.e().to_vec())});
        }
        if let Ok(ec) = key.ec_key() {
            let (mut x, mut y) = (BigNum::new().unwrap(), BigNum::new().unwrap());
            let mut numbers = BigNumContext::new().unwrap();
            ec.public_key().affine_coordinates(ec.group(), &mut x, &mut y, &mut numbers).unwrap();
            let (curve, size) = match algorithm {
                Algorithm::ES256 => ("P-256", 32),
                Algorithm::ES384 => ("P-384", 48),
                _ => ("P-521", 66),
            };
            let part = |n: BigNum| text(n.to_vec_padded(size).unwrap());
            return json!({"kty": "EC", "crv": curve, "x": part(x), "y": part(y)});
        }
        json!({"kty": "OKP", "crv": "Ed25519", "x": text(key.raw_public_key().unwrap())})
    }

    fn with(mut jwk: Value, members: Value) -> Value {
        for (name, value) in members.as_object().unwrap() {
            jwk[name] = value.clone();
        }
        jwk
    }

    fn set(keys: &[Value]) -> KeySet {
        KeySet::parse(json!({"keys": keys}).to_string().as_bytes()).unwrap()
    }

    #[track_caller]
    fn check(set: &KeySet, text: &str, expected: Result<Algorithm, Unverified>) {
        assert_eq!(set.verify(&Token::parse(text).expect("a token"), None), expected, "{text}");
    }

    #[test]
    fn every_asymmetric_algorithm() {
        for algorithm in [
            Algorithm::RS256,
            Algorithm::PS384,
            Algorithm::ES256,
            Algorithm::ES384,
            Algorithm::ES512,
            Algorithm::EdDSA,
        ] {
            let (private, public) = pair(algorithm);
            let signer = SigningKey::from_pem(algorithm, &private).unwrap();
            let set = set(&[jwk(algorithm, &public)]);
            let text = signer.token(json!({"kid": "any"}), &json!({"sub": "x"})).unwrap();
            check(&set, &text, Ok(algorithm));
            let (_, other) = pair(algorithm);
            check(&self::set(&[jwk(algorithm, &other)]), &text, Err(Unverified::Signature));
        }
    }

    #[test]
    fn chooses_by_kid_and_alg() {
        let (private, public) = pair(Algorithm::RS256);
        let key = jwk(Algorithm::RS256, &public);
        let a = with(key.clone(), json!({"kid": "a", "alg": "RS256", "use": "sig"}));
        let b = with(key.clone(), json!({"kid": "b", "key_ops": ["verify"]}));
        let set = set(&[a, b]);
        let sign = |algorithm, header: Value| {
            SigningKey::from_pem(algorithm, &private).unwrap().token(header, &json!({})).unwrap()
        };
        check(&set, &sign(Algorithm::RS256, json!({"kid": "a"})), Ok(Algorithm::RS256));
        check(&set, &sign(Algorithm::RS512, json!({"kid": "a"})), Err(Unverified::NoKey));
        check(&set, &sign(Algorithm::PS512, json!({"kid": "b"})), Ok(Algorithm::PS512));
        check(&set, &sign(Algorithm::PS512, json!({})), Ok(Algorithm::PS512));
        check(&set, &sign(Algorithm::RS256, json!({"kid": "c"})), Err(Unverified::NoKey));
        check(&set, &sign(Algorithm::RS256, json!({"kid": 1})), Err(Unverified::Malformed));
        check(&set, &sign(Algorithm::RS256, json!({"crit": ["b64"]})), Err(Unverified::Malformed));
        let text = sign(Algorithm::RS256, json!({}));
        let token = Token::parse(&text).unwrap();
        assert_eq!(set.verify(&token, Some(&[Algorithm::ES256])), Err(Unverified::Algorithm));
        assert_eq!(set.verify(&token, Some(&[Algorithm::RS256])), Ok(Algorithm::RS256));
    }

    #[test]
    fn no_confusion_of_algorithms() {
        let (_, public) = pair(Algorithm::RS256);
        let oct = json!({"kty": "oct", "k": base64::encode_url(b"secret"), "alg": "HS256"});
        let set = set(&[jwk(Algorithm::RS256, &public), oct]);
        assert_eq!(set.len(), 1);
        for secret in [public.as_bytes(), b"secret"] {
            let signer = SigningKey::from_secret(Algorithm::HS256, secret).unwrap();
            check(&set, &signer.token(json!({}), &json!({})).unwrap(), Err(Unverified::Algorithm));
        }
        let part = |text: &str| base64::encode_url(text.as_bytes());
        for alg in ["none", "None", "NONE", "", "rs256", "HS256"] {
            let header = part(&json!({"alg": alg}).to_string());
            check(&set, &format!("{header}.{}.AA", part("{}")), Err(Unverified::Algorithm));
        }
        check(&set, &format!("{}.{}.AA", part("{}"), part("{}")), Err(Unverified::Malformed));
    }

    #[test]
    fn leaves_out_what_does_not_verify() {
        let (_, public) = pair(Algorithm::RS256);
        let key = || jwk(Algorithm::RS256, &public);
        let short = openssl::rsa::Rsa::generate(1024).unwrap().public_key_to_pem().unwrap();
        let left_out = [
            with(key(), json!({"use": "enc"})),
            with(key(), json!({"key_ops": ["encrypt"]})),
            with(key(), json!({"alg": "RSA-OAEP"})),
            with(key(), json!({"alg": "ES256"})),
            with(key(), json!({"n": "!"})),
            jwk(Algorithm::RS256, std::str::from_utf8(&short).unwrap()),
            json!({"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"}),
            json!({"kty": "EC", "crv": "secp256k1", "x": "AAAA", "y": "AAAA"}),
            json!({"kty": "OKP", "crv": "X25519", "x": "AAAA"}),
            json!({"kty": "new"}),
            json!("key"),
            json!(null),
        ];
        for one in left_out {
            assert!(set(std::slice::from_ref(&one)).is_empty(), "{one}");
        }
        assert_eq!(set(&[key(), json!({})]).len(), 1);
        for text in ["", "{}", "[]", r#"{"keys":1}"#, r#"{"keys":[{}"#] {
            assert!(KeySet::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn the_vectors_of_rfc_7515() {
        // Appendix A.2 (RS256) and A.3 (ES256).
        let rsa = json!({"kty": "RSA", "e": "AQAB", "n": concat!(
            "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4Ql",
            "L-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUs",
            "LA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoud",
            "F8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ")});
        let ec = json!({"kty": "EC", "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"});
        let payload =
            "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let rs256 = concat!(
            "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujG",
            "bds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K",
            "0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6",
            "LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
        );
        let es256 = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        let set = set(&[rsa, ec]);
        check(&set, &format!("eyJhbGciOiJSUzI1NiJ9.{payload}.{rs256}"), Ok(Algorithm::RS256));
        check(&set, &format!("eyJhbGciOiJFUzI1NiJ9.{payload}.{es256}"), Ok(Algorithm::ES256));
        let other = payload.replacen("eyJpc3Mi", "eyJpc3Ni", 1);
        check(&set, &format!("eyJhbGciOiJSUzI1NiJ9.{other}.{rs256}"), Err(Unverified::Signature));
        check(&set, &format!("eyJhbGciOiJFUzI1NiJ9.{other}.{es256}"), Err(Unverified::Signature));
    }

    proptest! {
        #[test]
        fn reads_any_document(text in "[\\[\\]{}\"a-zA-Z:,0-9-]{0,60}") {
            let _ = KeySet::parse(text.as_bytes());
            let _ = KeySet::parse(format!(r#"{{"keys":[{text}]}}"#).as_bytes());
            let odd = json!({"keys": [{"kty": text, "n": text, "e": text, "x": text, "y": text, "crv": text}]});
            prop_assert!(KeySet::parse(odd.to_string().as_bytes()).is_ok_and(|set| set.is_empty()));
        }
    }
}
