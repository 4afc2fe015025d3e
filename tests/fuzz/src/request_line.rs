//! Request lines: what is mended is a line that needs no more than that, and nothing is hidden in it.

use portcullis::net::request_line::{Line, look};

/// Looks at a line, and at what it was made.
pub fn run(data: &[u8]) {
    let Line::Mended { line, length } = look(data) else { return };
    assert!(length <= data.len() && data[length - 1] == b'\n');
    assert!(line.ends_with(b" HTTP/1.1\r\n") || line.ends_with(b" HTTP/1.0\r\n"), "{}", line.escape_ascii());
    let bare = &line[..line.len() - 2];
    assert!(!bare.iter().any(u8::is_ascii_control), "{}", line.escape_ascii());
    assert_eq!(bare.iter().filter(|byte| **byte == b' ').count(), 2, "{}", line.escape_ascii());
    match look(&line) {
        Line::Plain => {}
        Line::Mended { line: again, .. } => assert_eq!(again, line),
        other => panic!("{other:?}: {}", line.escape_ascii()),
    }
}
