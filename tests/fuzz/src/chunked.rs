//! Chunked bodies: in pieces they are judged as in one, and what is good has one end that a strict reader finds.

use portcullis::net::chunked::Chunks;

/// The first byte says where the body is cut.
pub fn run(data: &[u8]) {
    let Some((at, body)) = data.split_first() else { return };
    let (first, second) = body.split_at(usize::from(*at).min(body.len()));
    let mut whole = Chunks::default();
    let judged = whole.check(body);
    let mut pieces = Chunks::default();
    assert_eq!(pieces.check(first).and_then(|own| Ok(own + pieces.check(second)?)), judged);
    if judged.is_ok() && whole.is_over() {
        assert!(body.windows(4).any(|end| end == b"\r\n\r\n"), "{}", body.escape_ascii());
    }
}
