//! Query strings: what is written again reads the same, and looking for a name finds the first of the list.

use portcullis::net::args::{encode, find, pairs};

/// Reads a query string, writes it and reads it again.
pub fn run(data: &[u8]) {
    let first: Vec<_> = pairs(data).collect();
    let written = encode(first.iter().map(|(name, value)| (&**name, value.as_deref())));
    assert!(written.is_ascii());
    assert_eq!(pairs(written.as_bytes()).collect::<Vec<_>>(), first, "{written}");
    for (name, _) in &first {
        let listed = first.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        assert_eq!(find(data, name), listed, "{name}");
    }
}
