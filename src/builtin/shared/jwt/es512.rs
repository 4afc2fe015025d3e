//! ES512 (RFC 7518 §3.4: ECDSA on P-521 with SHA-512), which APISIX has and the crate `jsonwebtoken` does not.

use jsonwebtoken::{DecodingKey, EncodingKey};
use openssl::{
    error::ErrorStack,
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private, Public},
};

use super::provider::Curve;

pub(super) const P521: Curve = Curve { nid: Nid::SECP521R1, size: 66, digest: MessageDigest::sha512 };

/// Verifies with one key on P-521.
#[derive(Clone)]
pub struct Verifier(PKey<Public>);

impl Verifier {
    /// `None`: the key is no point on the curve.
    pub fn new(key: &DecodingKey) -> Option<Self> {
        let key = P521.key(key.try_get_as_bytes().ok()?).ok()?;
        P521.fits(&key).then_some(Self(key))
    }

    /// Whether the signature is of this message.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        P521.verify(&self.0, message, signature).unwrap_or(false)
    }
}

/// Signs with one key on P-521.
#[derive(Clone)]
pub struct Signer(PKey<Private>);

impl Signer {
    /// `None`: the key cannot be read, or is on another curve.
    pub fn new(key: &EncodingKey) -> Option<Self> {
        let key = PKey::private_key_from_der(key.as_bytes()).ok()?;
        P521.fits(&key).then_some(Self(key))
    }

    /// Signs.
    ///
    /// # Errors
    /// What the cryptographic library says.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, ErrorStack> {
        P521.sign(&self.0, message)
    }
}
