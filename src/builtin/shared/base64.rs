//! Base64 as nginx reads it.

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_allow_trailing_bits(true)
    .with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Decodes as `ngx.decode_base64`: padding is optional and what follows it is ignored.
#[must_use]
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.iter().position(|byte| *byte == b'=').unwrap_or(text.len());
    STANDARD.decode(&text[..digits]).ok()
}

/// Encodes with the standard alphabet and padding.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Decodes the URL-safe alphabet (RFC 4648 §5), padded or not.
#[must_use]
pub fn decode_url(text: &str) -> Option<Vec<u8>> {
    URL.decode(text).ok()
}

/// Encodes with the URL-safe alphabet and without padding, as JWTs are written (RFC 7515 §2).
#[must_use]
pub fn encode_url(bytes: &[u8]) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&[u8]>) {
        assert_eq!(decode(text.as_bytes()).as_deref(), expected, "{text}");
    }

    #[test]
    fn reads_as_nginx() {
        check("amlsbDpoaWxs", Some(b"jill:hill"));
        check("amlsbA==", Some(b"jill"));
        check("amlsbA", Some(b"jill"));
        check("amlsbA==junk", Some(b"jill"));
        check("", Some(b""));
        check("a", None);
        check("!!!", None);
        check(" amlsbDpoaWxs", None);
    }

    proptest! {
        #[test]
        fn url_alphabet_round_trips(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(decode_url(&encode_url(&bytes)), Some(bytes));
        }
    }
}
