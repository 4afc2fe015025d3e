//! Algorithms and keys of JSON Web Signatures (RFC 7518 §3, RFC 8037 §3.1).
//!
//! A key is parsed once and bound to one algorithm: whoever verifies cannot be talked into another by the token.
//! Invariant: there is no algorithm `none`, and an HMAC secret is never made of a public key.

use hmac::{Hmac, KeyInit, Mac};
use openssl::{
    bn::BigNum,
    ecdsa::EcdsaSig,
    error::ErrorStack,
    hash::MessageDigest,
    nid::Nid,
    pkey::{HasPublic, Id, PKey, PKeyRef, Private, Public},
    rsa::{Padding, Rsa},
    sign::{Signer, Verifier},
    x509::X509,
};
use serde::Deserialize;
use sha2::{Sha256, Sha384, Sha512};

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

#[derive(Clone, Copy, PartialEq)]
enum Family {
    Hmac,
    Rsa,
    RsaPss,
    /// Bytes of one coordinate, and the curve.
    Ec(usize, Nid),
    Ed,
}

impl Algorithm {
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

    /// Whether both sides hold the same secret.
    pub fn is_symmetric(self) -> bool {
        self.family() == Family::Hmac
    }

    fn family(self) -> Family {
        match self {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => Family::Hmac,
            Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512 => Family::Rsa,
            Algorithm::PS256 | Algorithm::PS384 | Algorithm::PS512 => Family::RsaPss,
            Algorithm::ES256 => Family::Ec(32, Nid::X9_62_PRIME256V1),
            Algorithm::ES384 => Family::Ec(48, Nid::SECP384R1),
            Algorithm::ES512 => Family::Ec(66, Nid::SECP521R1),
            Algorithm::EdDSA => Family::Ed,
        }
    }

    fn digest(self) -> MessageDigest {
        match self.name().get(2..) {
            Some("384") => MessageDigest::sha384(),
            Some("512") => MessageDigest::sha512(),
            _ => MessageDigest::sha256(),
        }
    }

    /// Whether a key can be used with this algorithm at all.
    fn fits<T: HasPublic>(self, key: &PKeyRef<T>) -> bool {
        match self.family() {
            Family::Hmac => false,
            Family::Rsa => key.id() == Id::RSA,
            Family::RsaPss => matches!(key.id(), Id::RSA | Id::RSA_PSS),
            Family::Ec(_, curve) => key.ec_key().is_ok_and(|key| key.group().curve_name() == Some(curve)),
            Family::Ed => matches!(key.id(), Id::ED25519 | Id::ED448),
        }
    }
}

/// An HMAC that has already taken in its secret; each use clones it.
#[derive(Clone)]
pub enum Secret {
    /// HMAC with SHA-256.
    S256(Hmac<Sha256>),
    /// HMAC with SHA-384.
    S384(Hmac<Sha384>),
    /// HMAC with SHA-512.
    S512(Hmac<Sha512>),
}

impl Secret {
    /// Takes in a secret; `None` for an algorithm that has none.
    pub fn new(algorithm: Algorithm, secret: &[u8]) -> Option<Self> {
        Some(match algorithm {
            Algorithm::HS256 => Self::S256(Hmac::new_from_slice(secret).ok()?),
            Algorithm::HS384 => Self::S384(Hmac::new_from_slice(secret).ok()?),
            Algorithm::HS512 => Self::S512(Hmac::new_from_slice(secret).ok()?),
            _ => return None,
        })
    }

    /// Whether the signature is of this message; compares in constant time.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Secret::S256(mac) => mac.clone().chain_update(message).verify_slice(signature).is_ok(),
            Secret::S384(mac) => mac.clone().chain_update(message).verify_slice(signature).is_ok(),
            Secret::S512(mac) => mac.clone().chain_update(message).verify_slice(signature).is_ok(),
        }
    }

    /// Signs.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Secret::S256(mac) => mac.clone().chain_update(message).finalize().into_bytes().to_vec(),
            Secret::S384(mac) => mac.clone().chain_update(message).finalize().into_bytes().to_vec(),
            Secret::S512(mac) => mac.clone().chain_update(message).finalize().into_bytes().to_vec(),
        }
    }
}

/// A public key, bound to its algorithm.
pub struct PublicKey {
    algorithm: Algorithm,
    key: PKey<Public>,
}

impl PublicKey {
    /// Reads a key: PEM of SPKI, PKCS #1 or a certificate.
    ///
    /// # Errors
    /// There is no such key in the text, or it is none for the algorithm.
    pub fn parse(algorithm: Algorithm, pem: &str) -> Result<Self, String> {
        let key = read_public(pem.as_bytes()).map_err(|_| "Consumer Public Key is Invalid".to_owned())?;
        if !algorithm.fits(&key) {
            return Err(format!("the consumer's public key is none for {}", algorithm.name()));
        }
        Ok(Self { algorithm, key })
    }

    /// Whether the signature is of this message.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.check(message, signature).unwrap_or(false)
    }

    fn check(&self, message: &[u8], signature: &[u8]) -> Result<bool, ErrorStack> {
        match self.algorithm.family() {
            Family::Hmac => Ok(false),
            Family::Ed => Verifier::new_without_digest(&self.key)?.verify_oneshot(signature, message),
            Family::Ec(size, _) => {
                if signature.len() != 2 * size {
                    return Ok(false);
                }
                let (r, s) = signature.split_at(size);
                let (r, s) = (BigNum::from_slice(r)?, BigNum::from_slice(s)?);
                let der = EcdsaSig::from_private_components(r, s)?.to_der()?;
                Verifier::new(self.algorithm.digest(), &self.key)?.verify_oneshot(&der, message)
            }
            Family::Rsa => {
                Verifier::new(self.algorithm.digest(), &self.key)?.verify_oneshot(signature, message)
            }
            Family::RsaPss => {
                let mut verifier = Verifier::new(self.algorithm.digest(), &self.key)?;
                verifier.set_rsa_padding(Padding::PKCS1_PSS)?;
                verifier.verify_oneshot(signature, message)
            }
        }
    }
}

fn read_public(pem: &[u8]) -> Result<PKey<Public>, ErrorStack> {
    PKey::public_key_from_pem(pem)
        .or_else(|_| PKey::from_rsa(Rsa::public_key_from_pem_pkcs1(pem)?))
        .or_else(|_| X509::from_pem(pem)?.public_key())
}

/// A private key, bound to its algorithm.
pub struct PrivateKey {
    algorithm: Algorithm,
    key: PKey<Private>,
}

impl PrivateKey {
    /// Reads a key: PEM of PKCS #8, PKCS #1 or SEC 1.
    ///
    /// # Errors
    /// There is no such key in the text, or it is none for the algorithm.
    pub fn parse(algorithm: Algorithm, pem: &str) -> Result<Self, String> {
        let key = PKey::private_key_from_pem(pem.as_bytes())
            .map_err(|_| "the consumer's private key cannot be read".to_owned())?;
        if !algorithm.fits(&key) {
            return Err(format!("the consumer's private key is none for {}", algorithm.name()));
        }
        Ok(Self { algorithm, key })
    }

    /// Signs.
    ///
    /// # Errors
    /// What the cryptographic library says.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        self.signature(message).map_err(|e| e.to_string())
    }

    fn signature(&self, message: &[u8]) -> Result<Vec<u8>, ErrorStack> {
        match self.algorithm.family() {
            Family::Hmac => Err(ErrorStack::get()),
            Family::Ed => Signer::new_without_digest(&self.key)?.sign_oneshot_to_vec(message),
            Family::Ec(size, _) => {
                let der = Signer::new(self.algorithm.digest(), &self.key)?.sign_oneshot_to_vec(message)?;
                let parts = EcdsaSig::from_der(&der)?;
                // At most 66 bytes: no loss.
                let size = size as i32;
                let mut raw = parts.r().to_vec_padded(size)?;
                raw.append(&mut parts.s().to_vec_padded(size)?);
                Ok(raw)
            }
            Family::Rsa => Signer::new(self.algorithm.digest(), &self.key)?.sign_oneshot_to_vec(message),
            Family::RsaPss => {
                let mut signer = Signer::new(self.algorithm.digest(), &self.key)?;
                signer.set_rsa_padding(Padding::PKCS1_PSS)?;
                signer.sign_oneshot_to_vec(message)
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use openssl::ec::{EcGroup, EcKey};

    use super::*;

    const ASYMMETRIC: [Algorithm; 10] = [
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::ES512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
        Algorithm::EdDSA,
    ];

    /// A fresh pair for an algorithm: private and public PEM.
    pub fn pair(algorithm: Algorithm) -> (String, String) {
        let key = match algorithm.family() {
            Family::Ec(_, curve) => {
                PKey::from_ec_key(EcKey::generate(&EcGroup::from_curve_name(curve).unwrap()).unwrap())
                    .unwrap()
            }
            Family::Ed => PKey::generate_ed25519().unwrap(),
            _ => PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap(),
        };
        let text = |pem: Vec<u8>| String::from_utf8(pem).unwrap();
        (text(key.private_key_to_pem_pkcs8().unwrap()), text(key.public_key_to_pem().unwrap()))
    }

    #[test]
    fn signs_and_verifies_with_every_algorithm() {
        let mut rsa: Option<(String, String)> = None;
        for algorithm in ASYMMETRIC {
            let (private, public) = match (&rsa, algorithm.family()) {
                (Some(pair), Family::Rsa | Family::RsaPss) => pair.clone(),
                _ => pair(algorithm),
            };
            if algorithm.family() == Family::Rsa {
                rsa = Some((private.clone(), public.clone()));
            }
            let signature = PrivateKey::parse(algorithm, &private).unwrap().sign(b"message").unwrap();
            let key = PublicKey::parse(algorithm, &public).unwrap();
            assert!(key.verify(b"message", &signature), "{algorithm:?}");
            assert!(!key.verify(b"massage", &signature), "{algorithm:?}");
            assert!(!key.verify(b"message", &signature[1..]), "{algorithm:?}");
            assert!(!key.verify(b"message", b""), "{algorithm:?}");
        }
    }

    #[test]
    fn secrets() {
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let secret = Secret::new(algorithm, b"secret").unwrap();
            let mut signature = secret.sign(b"message");
            assert!(secret.verify(b"message", &signature));
            assert!(!secret.verify(b"message", &signature[1..]));
            signature[0] ^= 1;
            assert!(!secret.verify(b"message", &signature));
        }
        assert!(ASYMMETRIC.into_iter().all(|algorithm| Secret::new(algorithm, b"secret").is_none()));
    }

    #[test]
    fn keys_serve_their_algorithm_only() {
        let (_, p256) = pair(Algorithm::ES256);
        let refused = |algorithm| PublicKey::parse(algorithm, &p256).err();
        assert_eq!(refused(Algorithm::ES256), None);
        assert_eq!(refused(Algorithm::ES384), Some("the consumer's public key is none for ES384".into()));
        assert!(refused(Algorithm::RS256).is_some() && refused(Algorithm::EdDSA).is_some());
        assert!(refused(Algorithm::HS256).is_some());
        let junk = PublicKey::parse(Algorithm::RS256, "junk").err();
        assert_eq!(junk, Some("Consumer Public Key is Invalid".into()));
    }

    #[test]
    fn the_vector_of_rfc_8037() {
        // Appendix A.4: the key is A.2's, here as SPKI.
        let pem = "-----BEGIN PUBLIC KEY-----\n\
                   MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n\
                   -----END PUBLIC KEY-----\n";
        let key = PublicKey::parse(Algorithm::EdDSA, pem).unwrap();
        let signature = crate::builtin::shared::base64::decode_url(
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        )
        .unwrap();
        assert!(key.verify(b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc", &signature));
    }
}
