//! User names for a directory: escaped, none of them reaches beyond its own value.

use portcullis::builtin::shared::ldap::{equals_filter, escape_dn};

/// Escapes a name for a distinguished name and for a filter.
pub fn run(data: &[u8]) {
    let Ok(name) = std::str::from_utf8(data) else { return };
    let escaped = escape_dn(name);
    let mut free = true;
    for byte in escaped.bytes() {
        assert!(!free || !matches!(byte, b',' | b'+' | b';' | b'<' | b'>' | b'"' | b'=' | 0));
        free = !(free && byte == b'\\');
    }
    assert!(free, "the comma behind the name is escaped");
    let filter = equals_filter("cn", name).expect("every name can be looked for");
    assert!(!filter[1..filter.len() - 1].contains(['(', ')', '*', '\0']));
}
