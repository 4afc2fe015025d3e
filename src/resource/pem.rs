//! Certificates and private keys in PEM, as far as a resource must hold readable ones. APISIX: ssl.lua validate.
//!
//! Invariant: never asks for a passphrase, and never says what a key contains.

use pingora::tls::pkey::PKey;
use pingora::tls::x509::X509;

use super::DecryptKey;

/// Checks that a certificate (a chain, too) can be read.
///
/// # Errors
/// The `error_msg` of APISIX.
pub fn check_cert(cert: &str) -> Result<(), String> {
    let failed = |function| Err(format!("failed to parse cert: {function}() failed"));
    if X509::from_pem(cert.as_bytes()).is_err() {
        return failed("PEM_read_bio_X509_AUX");
    }
    match X509::stack_from_pem(cert.as_bytes()) {
        Ok(_) => Ok(()),
        Err(_) => failed("PEM_read_bio_X509"),
    }
}

/// Checks that a private key can be read; one that is no PEM is taken for an encrypted one.
///
/// # Errors
/// The `error_msg` of APISIX.
pub fn check_key(key: &str, decrypt: DecryptKey<'_>) -> Result<(), String> {
    let pem = match key.starts_with("---") {
        true => key.to_owned(),
        false => decrypt(key).ok_or("failed to decrypt previous encrypted key")?,
    };
    // Without a callback OpenSSL would ask the terminal for the passphrase of an encrypted key.
    match PKey::private_key_from_pem_callback(pem.as_bytes(), |_| Ok(0)) {
        Ok(_) => Ok(()),
        Err(_) => Err("failed to parse key: PEM_read_bio_PrivateKey() failed".to_owned()),
    }
}

/// Checks a certificate and its key, in this order.
///
/// # Errors
/// The `error_msg` of APISIX.
pub fn check_pair(cert: &str, key: &str, decrypt: DecryptKey<'_>) -> Result<(), String> {
    check_cert(cert)?;
    check_key(key, decrypt)
}
