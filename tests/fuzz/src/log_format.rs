//! The access log's format: whatever nginx would refuse is refused, with a message and without a panic.

use portcullis::{ops::log_format::Format, settings::types::LogEscape};

/// Compiles a format with every way to escape.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let outcomes = [LogEscape::Default, LogEscape::Json, LogEscape::None]
        .map(|escape| Format::parse(text, escape).map(|_| ()).map_err(|error| error.to_string()));
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "escaping is about values only");
    if !text.contains('$') {
        assert_eq!(outcomes[0], Ok(()), "{text:?}");
    }
}
