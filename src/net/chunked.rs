//! Whether a chunked body (RFC 9112 §7.1) is written so that every reader finds the same end of it.
//!
//! The framework's reader is lenient: a size line without a digit is a zero to it, and an extension may hold a bare
//! line feed. Two servers that disagree about such lines disagree about where the next request begins.

/// A chunked body that no two readers need understand alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// Something else than hexadecimal digits where a size belongs, or too many of them.
    #[error("a chunk's size is no number")]
    Size,
    /// A line that does not end in CR LF, or a control character in it.
    #[error("a line of the chunked body is malformed")]
    Line,
    /// Data that goes on behind its size.
    #[error("a chunk is longer than its size")]
    Length,
}

/// Reads along with whoever reads the body.
#[derive(Clone, Debug, Default)]
pub struct Chunks {
    state: State,
    /// What is left of the chunk, in bytes.
    size: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// In a size; so many digits of it were there.
    #[default]
    NoDigit,
    Digits(u8),
    Extension,
    /// Behind the CR of a size line.
    SizeEnd,
    Data,
    /// Behind the data, and behind the CR there.
    DataCr,
    DataLf,
    /// At the beginning of a line behind the last chunk.
    Last,
    Trailer,
    TrailerEnd,
    /// Behind the CR of the empty line.
    End,
    Over,
}

/// So many fit into the number.
const MAX_DIGITS: u8 = 16;

impl Chunks {
    /// Looks at the next bytes of the connection and tells how many of them are the body's; what follows its end is not
    /// looked at.
    ///
    /// # Errors
    /// What is wrong. The body is worth nothing from there on.
    pub fn check(&mut self, all: &[u8]) -> Result<usize, ChunkError> {
        let mut bytes = all;
        while let Some((&byte, rest)) = bytes.split_first() {
            match self.state {
                State::Over => return Ok(all.len() - bytes.len()),
                State::Data => {
                    let passed = bytes.len().min(usize::try_from(self.size).unwrap_or(usize::MAX));
                    self.size -= passed as u64;
                    bytes = &bytes[passed..];
                    if self.size == 0 {
                        self.state = State::DataCr;
                    }
                }
                _ => {
                    self.state = self.step(byte)?;
                    bytes = rest;
                }
            }
        }
        Ok(all.len())
    }

    /// Whether the body has come to its end.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    fn step(&mut self, byte: u8) -> Result<State, ChunkError> {
        Ok(match (self.state, byte) {
            (State::NoDigit, _) => self.digit(byte, 0)?,
            (State::Digits(_) | State::Extension, b'\r') => State::SizeEnd,
            (State::Digits(_), b';' | b' ' | b'\t') => State::Extension,
            (State::Digits(digits), _) => self.digit(byte, digits)?,
            (State::Extension, _) if is_text(byte) => State::Extension,
            (State::SizeEnd, b'\n') if self.size == 0 => State::Last,
            (State::SizeEnd, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::NoDigit,
            (State::DataCr | State::DataLf, _) => return Err(ChunkError::Length),
            (State::Last, b'\r') => State::End,
            (State::Last | State::Trailer, _) if is_text(byte) => State::Trailer,
            (State::Trailer, b'\r') => State::TrailerEnd,
            (State::TrailerEnd, b'\n') => State::Last,
            (State::End, b'\n') => State::Over,
            _ => return Err(ChunkError::Line),
        })
    }

    fn digit(&mut self, byte: u8, before: u8) -> Result<State, ChunkError> {
        let digit = char::from(byte).to_digit(16).filter(|_| before < MAX_DIGITS).ok_or(ChunkError::Size)?;
        self.size = self.size << 4 | u64::from(digit);
        Ok(State::Digits(before + 1))
    }
}

/// What may stand in a line.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// In one piece and byte by byte it must come to the same.
    #[track_caller]
    fn check(body: &str, expected: Result<bool, ChunkError>) {
        let mut whole = Chunks::default();
        let found = whole.check(body.as_bytes()).map(|_| whole.is_over());
        assert_eq!(found, expected, "{body:?}");
        let mut single = Chunks::default();
        let found =
            body.bytes().try_for_each(|byte| single.check(&[byte]).map(drop)).map(|()| single.is_over());
        assert_eq!(found, expected, "{body:?} in single bytes");
    }

    #[test]
    fn bodies() {
        check("5\r\nhello\r\n0\r\n\r\n", Ok(true));
        check("0\r\n\r\n", Ok(true));
        check("000\r\n\r\n", Ok(true));
        check("A\r\n0123456789\r\n0\r\n\r\n", Ok(true));
        check("5;a=b;c=\"d\"\r\nhello\r\n0 ;x\r\n\r\n", Ok(true));
        check("0\r\nX-Sum: 1\r\nY: 2\r\n\r\n", Ok(true));
        check("0\r\n\r\nGET / HTTP/1.1\n\x00", Ok(true));
        assert_eq!(Chunks::default().check(b"1\r\na\r\n0\r\n\r\nGET /"), Ok(11));
        check("5\r\nhel", Ok(false));
        check("ffffffffffffffff\r\nhel", Ok(false));
        check("0\r\nX: y\r\n", Ok(false));
    }

    #[test]
    fn bodies_with_two_meanings() {
        check("\r\n\r\n", Err(ChunkError::Size));
        check("5\r\nhello\r\n\r\n\r\n", Err(ChunkError::Size));
        check(";a\r\n\r\n", Err(ChunkError::Size));
        check(" 0\r\n\r\n", Err(ChunkError::Size));
        check("-5\r\nhello", Err(ChunkError::Size));
        check("0x5\r\nhello", Err(ChunkError::Size));
        check("fffffffffffffffff\r\n", Err(ChunkError::Size));
        check("3\r\nhello\r\n0\r\n\r\n", Err(ChunkError::Length));
        check("5\r\nhello\n0\r\n\r\n", Err(ChunkError::Length));
        check("5\nhello\r\n", Err(ChunkError::Size));
        check("5;a\nhello\r\n", Err(ChunkError::Line));
        check("5;\x00\r\nhello\r\n", Err(ChunkError::Line));
        check("5\r\rhello\r\n", Err(ChunkError::Line));
        check("0\r\n\n", Err(ChunkError::Line));
        check("0\r\nX: y\n\r\n", Err(ChunkError::Line));
        check("0\r\n\rX", Err(ChunkError::Line));
    }

    proptest! {
        #[test]
        fn no_body_panics(body in "[0-9a-f;\r\n x]{0,64}", cut in any::<prop::sample::Index>()) {
            let bytes = body.as_bytes();
            let cut = cut.index(bytes.len() + 1);
            let mut whole = Chunks::default();
            let mut halves = Chunks::default();
            let found = halves.check(&bytes[..cut]).and_then(|own| Ok(own + halves.check(&bytes[cut..])?));
            prop_assert_eq!(whole.check(bytes), found);
            prop_assert_eq!(whole.is_over(), halves.is_over());
        }
    }
}
