//! Algorithms of JSON Web Signatures and keys that are bound to one of them (RFC 7518 §3, RFC 8037 §3.1).
//!
//! A key is parsed once: whoever verifies cannot be talked into another algorithm by the token. Everything but ES512
//! is the business of the crate `jsonwebtoken` with our [`provider`].
//!
//! Invariant: there is no algorithm `none`, and an HMAC secret is never made of a public key.

use std::fmt;

use jsonwebtoken::{
    DecodingKey, EncodingKey,
    signature::{Signer, Verifier},
};
use openssl::{
    bn::BigNumContext,
    ec::PointConversionForm,
    error::ErrorStack,
    pkey::{Id, PKey, Public},
    rsa::Rsa,
    x509::X509,
};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::{
    es512,
    provider::{self, OpensslJwtSigner, OpensslJwtVerifier},
    token::{Member, Token},
};
use crate::builtin::shared::base64;

/// The `alg` of a token.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub enum Algorithm {
    #[default]
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    ES256,
    ES384,
    ES512,
    PS256,
    PS384,
    PS512,
    EdDSA,
}

/// What a key has to be for an algorithm.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    Hmac,
    Rsa,
    RsaPss,
    Ec,
    Ed,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::HS256,
        Self::HS384,
        Self::HS512,
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::ES256,
        Self::ES384,
        Self::ES512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
        Self::EdDSA,
    ];

    /// As `alg` names it.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::HS256 => "HS256",
            Algorithm::HS384 => "HS384",
            Algorithm::HS512 => "HS512",
            Algorithm::RS256 => "RS256",
            Algorithm::RS384 => "RS384",
            Algorithm::RS512 => "RS512",
            Algorithm::ES256 => "ES256",
            Algorithm::ES384 => "ES384",
            Algorithm::ES512 => "ES512",
            Algorithm::PS256 => "PS256",
            Algorithm::PS384 => "PS384",
            Algorithm::PS512 => "PS512",
            Algorithm::EdDSA => "EdDSA",
        }
    }

    /// The algorithm of a name, as it is written; `None` for `none` and all others.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// Whether both sides hold the same secret.
    pub fn is_symmetric(self) -> bool {
        self.family() == Family::Hmac
    }

    fn family(self) -> Family {
        match self {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => Family::Hmac,
            Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512 => Family::Rsa,
            Algorithm::PS256 | Algorithm::PS384 | Algorithm::PS512 => Family::RsaPss,
            Algorithm::ES256 | Algorithm::ES384 | Algorithm::ES512 => Family::Ec,
            Algorithm::EdDSA => Family::Ed,
        }
    }

    /// The crate's name for it; `None`: ES512.
    fn in_crate(self) -> Option<jsonwebtoken::Algorithm> {
        self.name().parse().ok()
    }
}

/// Why there is no key.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum KeyError {
    /// The text holds no key.
    #[error("the key cannot be read")]
    Unreadable,
    /// It is of another kind, or on another curve.
    #[error("the key is none for {}", .0.name())]
    Unfit(Algorithm),
}

/// A key that verifies: a secret or a public key, bound to its algorithm. Copies share the key.
#[derive(Clone)]
pub struct VerifyingKey {
    algorithm: Algorithm,
    key: VerifyWith,
}

#[derive(Clone)]
enum VerifyWith {
    Crate(OpensslJwtVerifier),
    Es512(es512::Verifier),
}

impl VerifyingKey {
    /// A key as the crate has it, for example that of a JWK.
    ///
    /// # Errors
    /// It is none for the algorithm.
    pub fn new(algorithm: Algorithm, key: &DecodingKey) -> Result<Self, KeyError> {
        let with = match algorithm.in_crate() {
            Some(name) => provider::verifier(name, key).ok().map(VerifyWith::Crate),
            None => es512::Verifier::new(key).map(VerifyWith::Es512),
        };
        with.map(|key| Self { algorithm, key }).ok_or(KeyError::Unfit(algorithm))
    }

    /// A secret, for HS*.
    ///
    /// # Errors
    /// The algorithm has none.
    pub fn from_secret(algorithm: Algorithm, secret: &[u8]) -> Result<Self, KeyError> {
        Self::new(algorithm, &DecodingKey::from_secret(secret))
    }

    /// A public key: PEM of SPKI, PKCS #1 or a certificate.
    ///
    /// # Errors
    /// There is no such key in the text, or it is none for the algorithm.
    pub fn from_pem(algorithm: Algorithm, pem: &str) -> Result<Self, KeyError> {
        let key = read_public(pem.as_bytes()).map_err(|_| KeyError::Unreadable)?;
        if key.id() == Id::RSA_PSS && algorithm.family() != Family::RsaPss {
            return Err(KeyError::Unfit(algorithm));
        }
        let key = to_crate(&key).map_err(|_| KeyError::Unfit(algorithm))?;
        Self::new(algorithm, &key)
    }

    /// The only algorithm it serves.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether the signature is of this message. Secrets are compared in constant time.
    // A vector, because that is what the crate's trait takes.
    #[allow(clippy::ptr_arg)]
    pub fn verify(&self, message: &[u8], signature: &Vec<u8>) -> bool {
        match &self.key {
            VerifyWith::Crate(verifier) => verifier.verify(message, signature).is_ok(),
            VerifyWith::Es512(verifier) => verifier.verify(message, signature),
        }
    }

    /// Whether the token names this key's algorithm and is signed with this key. Says nothing of its claims.
    pub fn accepts(&self, token: &Token<'_>) -> bool {
        let named =
            matches!(token.header(["alg"]), Some([Member::Text(alg)]) if alg == self.algorithm.name());
        named
            && base64::decode_url(token.signature)
                .is_some_and(|signature| self.verify(token.signed.as_bytes(), &signature))
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", self.algorithm.name())
    }
}

fn read_public(pem: &[u8]) -> Result<PKey<Public>, ErrorStack> {
    PKey::public_key_from_pem(pem)
        .or_else(|_| PKey::from_rsa(Rsa::public_key_from_pem_pkcs1(pem)?))
        .or_else(|_| X509::from_pem(pem)?.public_key())
}

/// A public key as the crate has it.
fn to_crate(key: &PKey<Public>) -> Result<DecodingKey, ErrorStack> {
    match key.id() {
        Id::EC => {
            let (key, mut numbers) = (key.ec_key()?, BigNumContext::new()?);
            let form = PointConversionForm::UNCOMPRESSED;
            Ok(DecodingKey::from_ec_der(&key.public_key().to_bytes(key.group(), form, &mut numbers)?))
        }
        Id::ED25519 | Id::ED448 => Ok(DecodingKey::from_ed_der(&key.raw_public_key()?)),
        _ => {
            let rsa = key.rsa()?;
            Ok(DecodingKey::from_rsa_raw_components(&rsa.n().to_vec(), &rsa.e().to_vec()))
        }
    }
}

/// A key that signs: a secret or a private key, bound to its algorithm. Copies share the key.
#[derive(Clone)]
pub struct SigningKey {
    algorithm: Algorithm,
    key: SignWith,
}

#[derive(Clone)]
enum SignWith {
    Crate(OpensslJwtSigner),
    Es512(es512::Signer),
}

impl SigningKey {
    fn new(algorithm: Algorithm, key: &EncodingKey) -> Result<Self, KeyError> {
        let with = match algorithm.in_crate() {
            Some(name) => provider::signer(name, key).ok().map(SignWith::Crate),
            None => es512::Signer::new(key).map(SignWith::Es512),
        };
        with.map(|key| Self { algorithm, key }).ok_or(KeyError::Unfit(algorithm))
    }

    /// A secret, for HS*.
    ///
    /// # Errors
    /// The algorithm has none.
    pub fn from_secret(algorithm: Algorithm, secret: &[u8]) -> Result<Self, KeyError> {
        Self::new(algorithm, &EncodingKey::from_secret(secret))
    }

    /// A private key: PEM of PKCS #8, PKCS #1 or SEC 1, not encrypted.
    ///
    /// # Errors
    /// There is no such key in the text, or it is none for the algorithm.
    pub fn from_pem(algorithm: Algorithm, pem: &str) -> Result<Self, KeyError> {
        // An empty passphrase, or OpenSSL would ask for one at the terminal.
        let der = PKey::private_key_from_pem_passphrase(pem.as_bytes(), b"")
            .and_then(|key| key.private_key_to_pkcs8())
            .map_err(|_| KeyError::Unreadable)?;
        let key = match algorithm.family() {
            Family::Hmac => return Err(KeyError::Unfit(algorithm)),
            Family::Rsa | Family::RsaPss => EncodingKey::from_rsa_der(&der),
            Family::Ec => EncodingKey::from_ec_der(&der),
            Family::Ed => EncodingKey::from_ed_der(&der),
        };
        Self::new(algorithm, &key)
    }

    /// The only algorithm it serves.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Signs.
    ///
    /// # Errors
    /// What the cryptographic library says.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        match &self.key {
            SignWith::Crate(signer) => signer.try_sign(message).map_err(|e| e.to_string()),
            SignWith::Es512(signer) => signer.sign(message).map_err(|e| e.to_string()),
        }
    }

    /// A token of this header, to which `alg` is added, and these claims.
    ///
    /// # Errors
    /// What the cryptographic library says.
    pub fn token(&self, mut header: Value, claims: &Value) -> Result<String, String> {
        header["alg"] = self.algorithm.name().into();
        let part = |part: &Value| base64::encode_url(part.to_string().as_bytes());
        let signed = format!("{}.{}", part(&header), part(claims));
        let signature = self.sign(signed.as_bytes())?;
        Ok(format!("{signed}.{}", base64::encode_url(&signature)))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.algorithm.name())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use openssl::{
        ec::{EcGroup, EcKey},
        nid::Nid,
    };
    use serde_json::json;

    use super::*;

    fn asymmetric() -> impl Iterator<Item = Algorithm> {
        Algorithm::ALL.into_iter().filter(|algorithm| !algorithm.is_symmetric())
    }

    /// A fresh pair for an algorithm: private and public PEM.
    pub fn pair(algorithm: Algorithm) -> (String, String) {
        let curve = match algorithm {
            Algorithm::ES256 => Some(Nid::X9_62_PRIME256V1),
            Algorithm::ES384 => Some(Nid::SECP384R1),
            Algorithm::ES512 => Some(Nid::SECP521R1),
            _ => None,
        };
        let key = match (curve, algorithm) {
            (Some(curve), _) => {
                PKey::from_ec_key(EcKey::generate(&EcGroup::from_curve_name(curve).unwrap()).unwrap())
                    .unwrap()
            }
            (None, Algorithm::EdDSA) => PKey::generate_ed25519().unwrap(),
            _ => PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap(),
        };
        let text = |pem: Vec<u8>| String::from_utf8(pem).unwrap();
        (text(key.private_key_to_pem_pkcs8().unwrap()), text(key.public_key_to_pem().unwrap()))
    }

    /// Signatures that are none, made of a good one and its message (after the cases of Project Wycheproof).
    #[track_caller]
    fn refuses_bad_signatures(key: &VerifyingKey, good: &[u8], message: &[u8]) {
        let algorithm = key.algorithm();
        assert!(key.verify(message, &good.to_vec()), "{algorithm:?}");
        let half = good.len() / 2;
        let zeros = vec![0; good.len()];
        let mut order = vec![0xff; good.len()];
        order[half..].fill(0);
        let swapped = [&good[half..], &good[..half]].concat();
        let bad = [
            vec![],
            vec![0],
            good[1..].to_vec(),
            good[..good.len() - 1].to_vec(),
            [good, &[0]].concat(),
            [&[0], good].concat(),
            [good, good].concat(),
            [&zeros[..half], &good[half..]].concat(),
            [&good[..half], &zeros[..half]].concat(),
            swapped,
            zeros,
            vec![0xff; good.len()],
            order,
            vec![1; good.len()],
            // The encoding that other formats use for ECDSA, and one that is cut off.
            vec![0x30, 0x06, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01],
            vec![0x30, 0x80],
        ];
        for bad in bad {
            assert!(!key.verify(message, &bad), "{algorithm:?} {bad:02x?}");
        }
        for at in [0, half, good.len() - 1] {
            let mut bent = good.to_vec();
            bent[at] ^= 1;
            assert!(!key.verify(message, &bent), "{algorithm:?} bit of byte {at}");
        }
        assert!(!key.verify(b"", &good.to_vec()) && !key.verify(b"massage", &good.to_vec()));
    }

    #[test]
    fn signs_and_verifies_with_every_algorithm() {
        let rsa = pair(Algorithm::RS256);
        for algorithm in asymmetric() {
            let (private, public) = match algorithm.family() {
                Family::Rsa | Family::RsaPss => rsa.clone(),
                _ => pair(algorithm),
            };
            let signature = SigningKey::from_pem(algorithm, &private).unwrap().sign(b"message").unwrap();
            refuses_bad_signatures(
                &VerifyingKey::from_pem(algorithm, &public).unwrap(),
                &signature,
                b"message",
            );
        }
    }

    #[test]
    fn secrets() {
        for algorithm in Algorithm::ALL {
            let key = VerifyingKey::from_secret(algorithm, b"secret");
            if !algorithm.is_symmetric() {
                assert_eq!(key.err(), Some(KeyError::Unfit(algorithm)));
                continue;
            }
            let signature = SigningKey::from_secret(algorithm, b"secret").unwrap().sign(b"message").unwrap();
            refuses_bad_signatures(&key.unwrap(), &signature, b"message");
        }
    }

    #[test]
    fn keys_serve_their_algorithm_only() {
        let keys = [
            pair(Algorithm::RS256),
            pair(Algorithm::ES256),
            pair(Algorithm::ES384),
            pair(Algorithm::ES512),
            pair(Algorithm::EdDSA),
        ];
        for (at, (private, public)) in keys.iter().enumerate() {
            for algorithm in Algorithm::ALL {
                let serves = match algorithm.family() {
                    Family::Hmac => false,
                    Family::Rsa | Family::RsaPss => at == 0,
                    Family::Ec => [Algorithm::ES256, Algorithm::ES384, Algorithm::ES512]
                        .get(at.wrapping_sub(1))
                        .is_some_and(|one| *one == algorithm),
                    Family::Ed => at == 4,
                };
                let expected = (!serves).then_some(KeyError::Unfit(algorithm));
                assert_eq!(VerifyingKey::from_pem(algorithm, public).err(), expected, "{at} {algorithm:?}");
                assert_eq!(SigningKey::from_pem(algorithm, private).err(), expected, "{at} {algorithm:?}");
            }
        }
        assert_eq!(VerifyingKey::from_pem(Algorithm::RS256, "junk").err(), Some(KeyError::Unreadable));
        assert_eq!(SigningKey::from_pem(Algorithm::RS256, "junk").err(), Some(KeyError::Unreadable));
    }

    #[test]
    fn accepts_tokens_of_its_own_algorithm() {
        let signer = SigningKey::from_secret(Algorithm::HS512, b"secret").unwrap();
        let text = signer.token(json!({"typ": "JWT"}), &json!({"sub": "x"})).unwrap();
        let token = Token::parse(&text).unwrap();
        assert!(VerifyingKey::from_secret(Algorithm::HS512, b"secret").unwrap().accepts(&token));
        assert!(!VerifyingKey::from_secret(Algorithm::HS512, b"other").unwrap().accepts(&token));
        assert!(!VerifyingKey::from_secret(Algorithm::HS256, b"secret").unwrap().accepts(&token));
        assert_eq!(format!("{signer:?}"), "SigningKey(HS512)");
    }

    #[test]
    fn the_crate_finds_our_cryptography() {
        provider::install();
        let (private, public) = pair(Algorithm::ES256);
        let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
        let key = EncodingKey::from_ec_pem(private.as_bytes()).unwrap();
        let text = jsonwebtoken::encode(&header, &json!({"sub": "x"}), &key).unwrap();
        assert!(
            VerifyingKey::from_pem(Algorithm::ES256, &public).unwrap().accepts(&Token::parse(&text).unwrap())
        );
        let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
        validation.required_spec_claims.clear();
        let key = DecodingKey::from_ec_pem(public.as_bytes()).unwrap();
        assert!(jsonwebtoken::decode::<Value>(&text, &key, &validation).is_ok());
        let bent = format!("{}AAAA", &text[..text.len() - 4]);
        assert!(jsonwebtoken::decode::<Value>(&bent, &key, &validation).is_err());
    }

    #[test]
    fn the_vector_of_rfc_7515_with_hmac() {
        // Appendix A.1.
        let secret = base64::decode_url(
            "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
        )
        .unwrap();
        let text = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
                    eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
                    dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let key = VerifyingKey::from_secret(Algorithm::HS256, &secret).unwrap();
        assert!(key.accepts(&Token::parse(text).unwrap()));
    }

    #[test]
    fn the_vector_of_rfc_7515_with_es512() {
        // Appendix A.4; A.2 and A.3 are beside the key sets.
        let coordinate =
            |text: &str| openssl::bn::BigNum::from_slice(&base64::decode_url(text).unwrap()).unwrap();
        let x = coordinate(
            "AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk",
        );
        let y = coordinate(
            "ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2",
        );
        let curve = EcGroup::from_curve_name(Nid::SECP521R1).unwrap();
        let key = EcKey::from_public_key_affine_coordinates(&curve, &x, &y).unwrap();
        let pem = PKey::from_ec_key(key).unwrap().public_key_to_pem().unwrap();
        let key = VerifyingKey::from_pem(Algorithm::ES512, &String::from_utf8(pem).unwrap()).unwrap();
        let text = "eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA.\
                    AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8GaSwFK\
                    dCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn";
        assert!(key.accepts(&Token::parse(text).unwrap()));
        assert!(!key.accepts(&Token::parse(&text.replace("UGF5", "UGF6")).unwrap()));
    }

    #[test]
    fn the_vector_of_rfc_8037() {
        // Appendix A.4: the key is A.2's, here as SPKI.
        let pem = "-----BEGIN PUBLIC KEY-----\n\
                   MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n\
                   -----END PUBLIC KEY-----\n";
        let key = VerifyingKey::from_pem(Algorithm::EdDSA, pem).unwrap();
        let signature = base64::decode_url(
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        )
        .unwrap();
        assert!(key.verify(b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc", &signature));
    }
}
