//! Escapes: text keeps every byte, and nothing that could end a request line survives escaping.

use portcullis::net::{
    escape::{Escape, escape_uri, escape_uri_control_chars, unescape_uri},
    lossless,
};

/// Turns bytes into text, escapes it in every way and undoes it.
pub fn run(data: &[u8]) {
    let text = lossless::from_bytes(data);
    assert_eq!(lossless::to_bytes(&text), data);
    assert_eq!(lossless::from_vec(data.to_vec()), *text);
    for set in [Escape::Path, Escape::Component, Escape::LuaPath] {
        assert!(escape_uri(&text, set).bytes().all(|byte| byte > b' ' && byte < 0x7F));
    }
    assert_eq!(unescape_uri(escape_uri(&text, Escape::Component).as_bytes()), text);
    assert!(!escape_uri_control_chars(&text).bytes().any(|byte| byte.is_ascii_control()));
    assert!(unescape_uri(data).len() <= 4 * data.len());
}
