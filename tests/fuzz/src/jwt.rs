//! JSON Web Tokens: the parts are the token, and every JSON document in it is read.

use portcullis::builtin::shared::{
    base64,
    jwt::token::{Member, Token},
};
use serde_json::Value;

/// Reads a text as a token.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(token) = Token::parse(text) else { return };
    assert_eq!(format!("{}.{}", token.signed, token.signature), text);
    let header = token.header(["alg", "typ"]);
    let payload = token.payload(["key", "exp", "key"]);
    let decoded = text.split('.').nth(1).and_then(base64::decode_url).expect("it was decoded before");
    let Ok(json) = serde_json::from_slice::<Value>(&decoded) else { return };
    let [key, _, again] = payload.expect("it is JSON");
    assert_eq!(key, again);
    if let Some(Value::String(wanted)) = json.get("key") {
        assert_eq!(key, Member::Text(wanted.into()));
    }
    drop(header);
}
