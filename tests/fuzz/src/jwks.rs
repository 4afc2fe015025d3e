//! Published key sets: whatever they hold, a token without a signature is not accepted.

use portcullis::builtin::shared::jwt::{jwks::KeySet, token::Token};

/// Reads a document as a key set, and asks it for a verdict.
pub fn run(data: &[u8]) {
    let Ok(set) = KeySet::parse(data) else { return };
    let token = Token::parse("eyJhbGciOiJFZERTQSJ9.e30.AAAA").expect("a token");
    assert!(set.verify(&token, None).is_err());
}
