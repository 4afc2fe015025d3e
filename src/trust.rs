//! Whom the gateway believes when it connects over TLS: nodes of upstreams, health checks, servers that plugins call.
//!
//! `apisix.ssl.ssl_trusted_certificate` names a file of authorities that stand in for the system's. It is read once,
//! before anything is compiled that connects: connections that exist would not follow. APISIX: `cli/ngx_tpl.lua`,
//! `lua_ssl_trusted_certificate` and `proxy_ssl_trusted_certificate`.

use std::{path::Path, sync::OnceLock};

use pingora::tls::x509::X509;

static AUTHORITIES: OnceLock<Vec<u8>> = OnceLock::new();

/// Trusts the certificate authorities of a file instead of the system's, from here on.
///
/// # Errors
/// The file cannot be read or holds no certificate.
pub fn only(file: &Path) -> Result<(), String> {
    let fault = |reason: String| format!("cannot read certificates from {}: {reason}", file.display());
    let pem = std::fs::read(file).map_err(|error| fault(error.to_string()))?;
    let certificates = X509::stack_from_pem(&pem).map_err(|error| fault(error.to_string()))?;
    if certificates.is_empty() {
        return Err(fault("there is none".into()));
    }
    // A second call, as tests make it, changes nothing.
    let _ = AUTHORITIES.set(pem);
    Ok(())
}

/// The authorities that are trusted instead of the system's, in PEM.
pub fn authorities() -> Option<&'static [u8]> {
    AUTHORITIES.get().map(Vec::as_slice)
}
