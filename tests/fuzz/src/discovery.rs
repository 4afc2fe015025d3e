//! Discovery documents of OpenID providers: read or refused, and what is read stands in the document.

use portcullis::builtin::openid_connect::provider::Discovery;
use serde_json::Value;

/// Reads bytes as a discovery document.
pub fn run(data: &[u8]) {
    let Ok(read) = Discovery::parse(data) else { return };
    let document: Value = serde_json::from_slice(data).expect("what was read is JSON");
    assert_eq!(read.issuer.as_deref(), document["issuer"].as_str());
    assert_eq!(read.jwks_uri.as_deref(), document["jwks_uri"].as_str());
    assert_eq!(
        read.id_token_signing_alg_values_supported.is_some(),
        document["id_token_signing_alg_values_supported"].is_array()
    );
}
