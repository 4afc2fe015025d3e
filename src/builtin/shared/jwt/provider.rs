//! OpenSSL as the cryptography of the crate `jsonwebtoken` (RFC 7518 §3, RFC 8037 §3.1).
//!
//! The crate asks its provider for a verifier of an algorithm and a key. [`verifier`] answers, and what it answers
//! with may be kept: a key is parsed when its verifier is made, not when a token is verified. HMACs are those of the
//! crate `hmac`, because one that has taken in its secret can be copied; OpenSSL would look up the digest each time.
//!
//! Invariant: a verifier serves one algorithm and keys of its kind and curve only; it never panics on any signature.

use hmac::{Hmac, KeyInit, Mac};
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::{self, ErrorKind},
    jwk::{EllipticCurve, ThumbprintHash},
    signature::{self, Signer, Verifier},
};
use openssl::{
    bn::{BigNum, BigNumContext},
    ec::{EcGroup, EcKey, EcPoint},
    ecdsa::EcdsaSig,
    error::ErrorStack,
    hash::MessageDigest,
    nid::Nid,
    pkey::{HasPrivate, HasPublic, Id, PKey, PKeyRef, Private, Public},
    rsa::{Padding, Rsa},
    sign::{RsaPssSaltlen, Signer as OpensslSigner, Verifier as OpensslVerifier},
};
use sha2::{Digest, Sha256, Sha384, Sha512};

/// The provider; [`install`] makes it the one of this process.
static OPENSSL: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| Ok(Box::new(signer(*algorithm, key)?)),
    verifier_factory: |algorithm, key| Ok(Box::new(verifier(*algorithm, key)?)),
    key_utils: KeyUtils {
        rsa_pub_components_from_private_key: rsa_components_of_private,
        rsa_pub_components_from_public_key: rsa_components_of_public,
        ec_pub_components_from_private_key: ec_components_of_private,
        ed_pub_components_from_private_key: ed_component_of_private,
        compute_digest,
    },
};

/// Lets the crate's own functions (`encode`, `decode`, thumbprints of JWKs) find their cryptography here. Whoever
/// calls one of them calls this first; only the first call has an effect.
pub fn install() {
    // An error says that it is installed.
    let _ = OPENSSL.install_default();
}

/// A curve that signatures are made on.
#[derive(Clone, Copy)]
pub(super) struct Curve {
    pub nid: Nid,
    /// Bytes of one coordinate, and of each half of a signature.
    pub size: usize,
    pub digest: fn() -> MessageDigest,
}

const P256: Curve = Curve { nid: Nid::X9_62_PRIME256V1, size: 32, digest: MessageDigest::sha256 };
const P384: Curve = Curve { nid: Nid::SECP384R1, size: 48, digest: MessageDigest::sha384 };

/// How a signature is made with a pair of keys.
#[derive(Clone, Copy)]
enum Scheme {
    Pkcs1(fn() -> MessageDigest),
    Pss(fn() -> MessageDigest),
    Ecdsa(Curve),
    EdDsa,
}

impl Scheme {
    /// `None`: both sides hold the same secret.
    fn of(algorithm: Algorithm) -> Option<Self> {
        Some(match algorithm {
            Algorithm::RS256 => Self::Pkcs1(MessageDigest::sha256),
            Algorithm::RS384 => Self::Pkcs1(MessageDigest::sha384),
            Algorithm::RS512 => Self::Pkcs1(MessageDigest::sha512),
            Algorithm::PS256 => Self::Pss(MessageDigest::sha256),
            Algorithm::PS384 => Self::Pss(MessageDigest::sha384),
            Algorithm::PS512 => Self::Pss(MessageDigest::sha512),
            Algorithm::ES256 => Self::Ecdsa(P256),
            Algorithm::ES384 => Self::Ecdsa(P384),
            Algorithm::EdDSA => Self::EdDsa,
            _ => return None,
        })
    }

    fn fits<T: HasPublic>(self, key: &PKeyRef<T>) -> bool {
        match self {
            Self::Pkcs1(_) => key.id() == Id::RSA,
            Self::Pss(_) => matches!(key.id(), Id::RSA | Id::RSA_PSS),
            Self::Ecdsa(curve) => curve.fits(key),
            Self::EdDsa => matches!(key.id(), Id::ED25519 | Id::ED448),
        }
    }

    fn verify(self, key: &PKey<Public>, message: &[u8], signature: &[u8]) -> Result<bool, ErrorStack> {
        match self {
            Self::Pkcs1(digest) => OpensslVerifier::new(digest(), key)?.verify_oneshot(signature, message),
            Self::Pss(digest) => {
                // The salt may have any length, as in APISIX; RFC 7518 §3.5 wants that of the digest.
                let mut verifier = OpensslVerifier::new(digest(), key)?;
                verifier.set_rsa_padding(Padding::PKCS1_PSS)?;
                verifier.verify_oneshot(signature, message)
            }
            Self::Ecdsa(curve) => curve.verify(key, message, signature),
            Self::EdDsa => OpensslVerifier::new_without_digest(key)?.verify_oneshot(signature, message),
        }
    }

    fn sign(self, key: &PKey<Private>, message: &[u8]) -> Result<Vec<u8>, ErrorStack> {
        match self {
            Self::Pkcs1(digest) => OpensslSigner::new(digest(), key)?.sign_oneshot_to_vec(message),
            Self::Pss(digest) => {
                let mut signer = OpensslSigner::new(digest(), key)?;
                signer.set_rsa_padding(Padding::PKCS1_PSS)?;
                signer.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)?;
                signer.sign_oneshot_to_vec(message)
            }
            Self::Ecdsa(curve) => curve.sign(key, message),
            Self::EdDsa => OpensslSigner::new_without_digest(key)?.sign_oneshot_to_vec(message),
        }
    }
}

impl Curve {
    pub fn fits<T: HasPublic>(self, key: &PKeyRef<T>) -> bool {
        key.ec_key().is_ok_and(|key| key.group().curve_name() == Some(self.nid))
    }

    /// The public key of an uncompressed point, which must lie on the curve.
    pub fn key(self, point: &[u8]) -> Result<PKey<Public>, ErrorStack> {
        let group = EcGroup::from_curve_name(self.nid)?;
        let mut numbers = BigNumContext::new()?;
        let point = EcPoint::from_bytes(&group, point, &mut numbers)?;
        let key = EcKey::from_public_key(&group, &point)?;
        key.check_key()?;
        PKey::from_ec_key(key)
    }

    /// A signature is the two numbers, each as long as a coordinate: anything else is none (RFC 7518 §3.4).
    pub fn verify(self, key: &PKey<Public>, message: &[u8], signature: &[u8]) -> Result<bool, ErrorStack> {
        if signature.len() != 2 * self.size {
            return Ok(false);
        }
        let (r, s) = signature.split_at(self.size);
        let (r, s) = (BigNum::from_slice(r)?, BigNum::from_slice(s)?);
        let der = EcdsaSig::from_private_components(r, s)?.to_der()?;
        OpensslVerifier::new((self.digest)(), key)?.verify_oneshot(&der, message)
    }

    pub fn sign(self, key: &PKey<Private>, message: &[u8]) -> Result<Vec<u8>, ErrorStack> {
        let der = OpensslSigner::new((self.digest)(), key)?.sign_oneshot_to_vec(message)?;
        let parts = EcdsaSig::from_der(&der)?;
        // At most 66 bytes: no loss.
        let size = self.size as i32;
        let mut raw = parts.r().to_vec_padded(size)?;
        raw.append(&mut parts.s().to_vec_padded(size)?);
        Ok(raw)
    }
}

/// An HMAC that has already taken in its secret; each use copies it.
#[derive(Clone)]
enum Secret {
    S256(Hmac<Sha256>),
    S384(Hmac<Sha384>),
    S512(Hmac<Sha512>),
}

impl Secret {
    fn new(algorithm: Algorithm, secret: &[u8]) -> Option<Self> {
        Some(match algorithm {
            Algorithm::HS256 => Self::S256(Hmac::new_from_slice(secret).ok()?),
            Algorithm::HS384 => Self::S384(Hmac::new_from_slice(secret).ok()?),
            Algorithm::HS512 => Self::S512(Hmac::new_from_slice(secret).ok()?),
            _ => return None,
        })
    }

    /// Compares in constant time.
    fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Secret::S256(mac) => mac.clone().chain_update(message).verify_slice(signature).is_ok(),
            Secret::S384(mac) => mac.clone().chain_update(message).verify_slice(signature).is_ok(),
            Secret::S512(mac) => mac.clone().chain_update(message).verify_slice(signature).is_ok(),
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Secret::S256(mac) => mac.clone().chain_update(message).finalize().into_bytes().to_vec(),
            Secret::S384(mac) => mac.clone().chain_update(message).finalize().into_bytes().to_vec(),
            Secret::S512(mac) => mac.clone().chain_update(message).finalize().into_bytes().to_vec(),
        }
    }
}

/// Verifies signatures of one algorithm with one key.
#[derive(Clone)]
pub struct OpensslJwtVerifier {
    algorithm: Algorithm,
    key: VerifyWith,
}

#[derive(Clone)]
enum VerifyWith {
    Secret(Box<Secret>),
    Public(Scheme, PKey<Public>),
}

/// Makes the verifier of an algorithm and a key.
///
/// # Errors
/// The key cannot be read, or is none for the algorithm.
pub fn verifier(algorithm: Algorithm, key: &DecodingKey) -> errors::Result<OpensslJwtVerifier> {
    if key.family() != algorithm.family() {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    let key = match Scheme::of(algorithm) {
        None => Secret::new(algorithm, key.try_get_as_bytes()?).map(|mac| VerifyWith::Secret(Box::new(mac))),
        Some(scheme) => {
            let key = public(algorithm, key).map_err(provider_error)?;
            scheme.fits(&key).then(|| VerifyWith::Public(scheme, key))
        }
    };
    let key = key.ok_or(ErrorKind::InvalidKeyFormat)?;
    Ok(OpensslJwtVerifier { algorithm, key })
}

/// What the crate keeps of a public key, as OpenSSL has it.
fn public(algorithm: Algorithm, key: &DecodingKey) -> Result<PKey<Public>, ErrorStack> {
    let bytes = match key.kind() {
        DecodingKeyKind::RsaModulusExponent { n, e } => {
            return PKey::from_rsa(Rsa::from_public_components(
                BigNum::from_slice(n)?,
                BigNum::from_slice(e)?,
            )?);
        }
        DecodingKeyKind::SecretOrDer(bytes) => bytes,
    };
    match (algorithm.family(), bytes.len()) {
        (AlgorithmFamily::Ec, _) if algorithm == Algorithm::ES384 => P384.key(bytes),
        (AlgorithmFamily::Ec, _) => P256.key(bytes),
        (AlgorithmFamily::Ed, 57) => PKey::public_key_from_raw_bytes(bytes, Id::ED448),
        (AlgorithmFamily::Ed, _) => PKey::public_key_from_raw_bytes(bytes, Id::ED25519),
        _ => PKey::public_key_from_der(bytes)
            .or_else(|_| PKey::from_rsa(Rsa::public_key_from_der_pkcs1(bytes)?)),
    }
}

impl Verifier<Vec<u8>> for OpensslJwtVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let genuine = match &self.key {
            VerifyWith::Secret(secret) => secret.verify(message, signature),
            // OpenSSL reports a signature that is none as an error, too.
            VerifyWith::Public(scheme, key) => scheme.verify(key, message, signature).unwrap_or(false),
        };
        if genuine { Ok(()) } else { Err(signature::Error::new()) }
    }
}

impl JwtVerifier for OpensslJwtVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

/// Signs by one algorithm with one key.
#[derive(Clone)]
pub struct OpensslJwtSigner {
    algorithm: Algorithm,
    key: SignWith,
}

#[derive(Clone)]
enum SignWith {
    Secret(Box<Secret>),
    Private(Scheme, PKey<Private>),
}

/// Makes the signer of an algorithm and a key.
///
/// # Errors
/// The key cannot be read, or is none for the algorithm.
pub fn signer(algorithm: Algorithm, key: &EncodingKey) -> errors::Result<OpensslJwtSigner> {
    if key.family() != algorithm.family() {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    let key = match Scheme::of(algorithm) {
        None => Secret::new(algorithm, key.as_bytes()).map(|mac| SignWith::Secret(Box::new(mac))),
        Some(scheme) => {
            let key = PKey::private_key_from_der(key.as_bytes()).map_err(provider_error)?;
            scheme.fits(&key).then(|| SignWith::Private(scheme, key))
        }
    };
    let key = key.ok_or(ErrorKind::InvalidKeyFormat)?;
    Ok(OpensslJwtSigner { algorithm, key })
}

impl Signer<Vec<u8>> for OpensslJwtSigner {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        match &self.key {
            SignWith::Secret(secret) => Ok(secret.sign(message)),
            SignWith::Private(scheme, key) => {
                scheme.sign(key, message).map_err(signature::Error::from_source)
            }
        }
    }
}

impl JwtSigner for OpensslJwtSigner {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

fn provider_error(e: ErrorStack) -> errors::Error {
    ErrorKind::Provider(e.to_string()).into()
}

fn rsa_components_of_private(der: &[u8]) -> errors::Result<(Vec<u8>, Vec<u8>)> {
    let rsa = PKey::private_key_from_der(der).and_then(|key| key.rsa()).map_err(provider_error)?;
    Ok((rsa.n().to_vec(), rsa.e().to_vec()))
}

fn rsa_components_of_public(der: &[u8]) -> errors::Result<(Vec<u8>, Vec<u8>)> {
    let rsa = Rsa::public_key_from_der_pkcs1(der).map_err(provider_error)?;
    Ok((rsa.n().to_vec(), rsa.e().to_vec()))
}

fn ec_components_of_private(
    der: &[u8],
    algorithm: Algorithm,
) -> errors::Result<(EllipticCurve, Vec<u8>, Vec<u8>)> {
    let (name, curve) = match algorithm {
        Algorithm::ES256 => (EllipticCurve::P256, P256),
        Algorithm::ES384 => (EllipticCurve::P384, P384),
        _ => return Err(ErrorKind::InvalidEcdsaKey.into()),
    };
    let key = PKey::private_key_from_der(der).map_err(provider_error)?;
    if !curve.fits(&key) {
        return Err(ErrorKind::InvalidEcdsaKey.into());
    }
    let (x, y) = coordinates(&key, curve).map_err(provider_error)?;
    Ok((name, x, y))
}

fn coordinates<T: HasPrivate + HasPublic>(
    key: &PKeyRef<T>,
    curve: Curve,
) -> Result<(Vec<u8>, Vec<u8>), ErrorStack> {
    let (key, mut numbers) = (key.ec_key()?, BigNumContext::new()?);
    let (mut x, mut y) = (BigNum::new()?, BigNum::new()?);
    key.public_key().affine_coordinates(key.group(), &mut x, &mut y, &mut numbers)?;
    let size = curve.size as i32;
    Ok((x.to_vec_padded(size)?, y.to_vec_padded(size)?))
}

fn ed_component_of_private(der: &[u8], curve: &EllipticCurve) -> errors::Result<Vec<u8>> {
    let EllipticCurve::Ed25519 = curve else { return Err(ErrorKind::InvalidEddsaKey.into()) };
    PKey::private_key_from_der(der).and_then(|key| key.raw_public_key()).map_err(provider_error)
}

fn compute_digest(bytes: &[u8], hash: ThumbprintHash) -> errors::Result<Vec<u8>> {
    Ok(match hash {
        ThumbprintHash::SHA256 => Sha256::digest(bytes).to_vec(),
        ThumbprintHash::SHA384 => Sha384::digest(bytes).to_vec(),
        ThumbprintHash::SHA512 => Sha512::digest(bytes).to_vec(),
        _ => return Err(ErrorKind::UnsupportedAlgorithm.into()),
    })
}
