//! Cookies: a value is a part of the header that no separator runs through.

use portcullis::vars::cookie::find;

/// Looks for the cookie that the first line names in the header that follows.
pub fn run(data: &[u8]) {
    let Some((name, header)) = crate::lines(data) else { return };
    if let Some(value) = find(header, name) {
        assert!(!value.contains([';', '\t']), "{value:?}");
        assert!(header.contains(&format!("{name}={value}")), "{name} {value:?}");
    }
}
