//! JSON Web Encryption: the parts are the token.

use portcullis::builtin::jwe_decrypt::Jwe;

/// Reads a text as a token.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(jwe) = Jwe::parse(text) else { return };
    assert!(text.starts_with(jwe.header) && text.ends_with(jwe.tag));
    let _ = jwe.read_header();
}
