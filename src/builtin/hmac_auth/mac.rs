//! The HMACs of a consumer, one for each algorithm, that have already taken in the secret.

use hmac::{Hmac, KeyInit, Mac};
use openssl::{
    error::ErrorStack,
    hash::MessageDigest,
    pkey::{PKey, Private},
    sign::Signer,
};
use serde::Deserialize;
use sha2::{Sha256, Sha512};
use subtle::ConstantTimeEq;

/// How a request is signed.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-1.
    #[serde(rename = "hmac-sha1")]
    Sha1,
    /// HMAC with SHA-256.
    #[default]
    #[serde(rename = "hmac-sha256")]
    Sha256,
    /// HMAC with SHA-512.
    #[serde(rename = "hmac-sha512")]
    Sha512,
}

impl Algorithm {
    /// All names.
    pub const NAMES: [&str; 3] = ["hmac-sha1", "hmac-sha256", "hmac-sha512"];

    /// The algorithm of a name.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        match name {
            b"hmac-sha1" => Some(Self::Sha1),
            b"hmac-sha256" => Some(Self::Sha256),
            b"hmac-sha512" => Some(Self::Sha512),
            _ => None,
        }
    }
}

/// A secret in the form that each algorithm wants it.
pub struct Keys {
    // The crate that the others come from has no SHA-1, and nothing else here needs one.
    sha1: PKey<Private>,
    sha256: Hmac<Sha256>,
    sha512: Hmac<Sha512>,
}

impl Keys {
    /// Takes in a secret.
    ///
    /// # Errors
    /// The cryptographic library refuses it.
    pub fn new(secret: &[u8]) -> Result<Self, String> {
        let refused = "the secret cannot be used";
        Ok(Self {
            sha1: PKey::hmac(secret).map_err(|_| refused)?,
            sha256: Hmac::new_from_slice(secret).map_err(|_| refused)?,
            sha512: Hmac::new_from_slice(secret).map_err(|_| refused)?,
        })
    }

    /// Whether this is the HMAC of the message; compares in constant time.
    pub fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        match algorithm {
            Algorithm::Sha1 => self.sha1(message).is_ok_and(|own| bool::from(own.ct_eq(signature))),
            Algorithm::Sha256 => self.sha256.clone().chain_update(message).verify_slice(signature).is_ok(),
            Algorithm::Sha512 => self.sha512.clone().chain_update(message).verify_slice(signature).is_ok(),
        }
    }

    fn sha1(&self, message: &[u8]) -> Result<Vec<u8>, ErrorStack> {
        Signer::new(MessageDigest::sha1(), &self.sha1)?.sign_oneshot_to_vec(message)
    }
}

#[cfg(test)]
impl Keys {
    /// The HMAC of a message.
    pub fn sign(&self, algorithm: Algorithm, message: &[u8]) -> Vec<u8> {
        match algorithm {
            Algorithm::Sha1 => self.sha1(message).unwrap(),
            Algorithm::Sha256 => self.sha256.clone().chain_update(message).finalize().into_bytes().to_vec(),
            Algorithm::Sha512 => self.sha512.clone().chain_update(message).finalize().into_bytes().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 2202 §3 and RFC 4231 §4.3: the second case, with the key `Jefe`.
    #[test]
    fn published_vectors() {
        let keys = Keys::new(b"Jefe").unwrap();
        let message = b"what do ya want for nothing?";
        for (algorithm, hex) in [
            (Algorithm::Sha1, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
            (Algorithm::Sha256, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
            (
                Algorithm::Sha512,
                "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fd\
                 caeab1a34d4a6b4b636e070a38bce737",
            ),
        ] {
            let own = keys.sign(algorithm, message);
            assert_eq!(own.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), hex);
            assert!(keys.verify(algorithm, message, &own));
            assert!(!keys.verify(algorithm, message, &own[1..]) && !keys.verify(algorithm, message, b""));
            assert!(!keys.verify(algorithm, b"", &own));
        }
    }
}
