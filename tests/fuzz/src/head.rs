//! Header lines: a head that is taken ends with the first empty line, and nothing in it can be read in another way.

use portcullis::net::head::{Framing, MAX_HEAD, MAX_LINES, is_harmless, judge};

/// Judges a head.
pub fn run(data: &[u8]) {
    let Ok((facts, length)) = judge(data) else { return };
    assert!(length <= MAX_HEAD && data[..length].ends_with(b"\r\n\r\n"));
    let text = String::from_utf8_lossy(&data[..length - 4]);
    let lines: Vec<&str> = text.split("\r\n").skip(1).collect();
    assert!(lines.len() <= MAX_LINES);
    let mut framings = 0;
    for line in lines {
        assert!(!line.chars().any(|char| char.is_ascii_control() && char != '\t'), "{line:?}");
        let (name, value) = line.split_once(':').expect("a colon");
        let is_token = |char: char| char.is_ascii_graphic() && !"\"(),/:;<=>?@[\\]{}".contains(char);
        assert!(!name.is_empty() && name.chars().all(is_token), "{line:?}");
        let chunked = name.eq_ignore_ascii_case("transfer-encoding");
        if chunked || name.eq_ignore_ascii_case("content-length") {
            framings += 1;
            assert!(!is_harmless(line.as_bytes()));
            assert_eq!(chunked, facts.framing == Framing::Chunked);
            assert!(chunked || value.trim().parse::<u64>().is_ok(), "{line:?}");
        }
        assert!(facts.claims || !name.to_ascii_lowercase().starts_with('x'), "{line:?}");
    }
    assert!(framings <= 1);
}
