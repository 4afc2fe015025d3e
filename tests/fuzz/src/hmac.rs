//! Signed requests: both forms of the Authorization header, and the canonical query of the older one.

use portcullis::builtin::hmac_auth::{
    classic::{canonical_query, parts},
    signature::Fields,
};

/// Reads a header in both forms, and takes it for a query.
pub fn run(data: &[u8]) {
    if let Some(fields) = Fields::parse(data) {
        for value in [fields.key_id, fields.algorithm, fields.signature, fields.headers].into_iter().flatten()
        {
            assert!(!value.contains(&b'"') && !value.contains(&b','));
        }
    }
    if let Some(parts) = parts(data) {
        assert_eq!([&b"hmac-auth-v1"[..]].into_iter().chain(parts).collect::<Vec<_>>().join(&b'#'), data);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let canonical = canonical_query(text, true);
    assert_eq!(canonical_query(&canonical, true), canonical);
}
