//! TLS to servers that plugins speak to in another language than HTTP: directories, Redis.

use native_tls::{Certificate, TlsConnector};

use crate::trust;

/// TLS that trusts whom calls of plugins trust: `apisix.ssl.ssl_trusted_certificate`, or the system's authorities.
/// Without `verify` everybody is trusted.
///
/// # Errors
/// The trusted certificates cannot be used.
pub fn connector(verify: bool) -> Result<TlsConnector, String> {
    let mut builder = TlsConnector::builder();
    builder.danger_accept_invalid_certs(!verify).danger_accept_invalid_hostnames(!verify);
    if let (true, Some(pem)) = (verify, trust::authorities()) {
        builder.disable_built_in_roots(true);
        for certificate in Certificate::stack_from_pem(pem).map_err(|error| error.to_string())? {
            builder.add_root_certificate(certificate);
        }
    }
    builder.build().map_err(|error| format!("TLS cannot be set up: {error}"))
}
