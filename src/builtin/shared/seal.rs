//! Texts that only we can read and write although somebody else keeps them: what is in a session cookie.
//!
//! AES-256-GCM with a random nonce; the key is derived from a configured secret and the purpose, so that what was
//! sealed for one purpose never opens for another. The context (which client, which cookie) is authenticated, too.

use hmac::{Hmac, KeyInit, Mac};
use openssl::symm::{Cipher, decrypt_aead, encrypt_aead};
use sha2::Sha256;

use super::base64;

const NONCE: usize = 12;
const TAG: usize = 16;

/// Seals and opens for one purpose.
pub struct Sealer {
    key: [u8; 32],
}

impl Sealer {
    /// Derives the key.
    pub fn new(secret: &str, purpose: &str) -> Self {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
        mac.update(purpose.as_bytes());
        Self { key: mac.finalize().into_bytes().into() }
    }

    /// Seals a text; the result is base64url. `None`: the system has no random numbers.
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Option<String> {
        let (mut nonce, mut tag) = ([0; NONCE], [0; TAG]);
        getrandom::fill(&mut nonce).ok()?;
        let cipher = Cipher::aes_256_gcm();
        let sealed = encrypt_aead(cipher, &self.key, Some(&nonce), context, plain, &mut tag).ok()?;
        Some(base64::encode_url(&[&nonce[..], &tag[..], &sealed[..]].concat()))
    }

    /// Opens what [`Sealer::seal`] made with the same secret, purpose and context; `None` for anything else.
    pub fn open(&self, context: &[u8], sealed: &str) -> Option<Vec<u8>> {
        let bytes = base64::decode_url(sealed)?;
        let (nonce, rest) = bytes.split_at_checked(NONCE)?;
        let (tag, sealed) = rest.split_at_checked(TAG)?;
        decrypt_aead(Cipher::aes_256_gcm(), &self.key, Some(nonce), context, sealed, tag).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn opens_only_what_it_sealed() {
        let sealer = Sealer::new("0123456789abcdef", "session");
        let sealed = sealer.seal(b"one", b"hello").unwrap();
        assert_eq!(sealer.open(b"one", &sealed).as_deref(), Some(&b"hello"[..]));
        assert_ne!(sealed, sealer.seal(b"one", b"hello").unwrap());
        assert_eq!(sealer.open(b"other", &sealed), None);
        assert_eq!(Sealer::new("0123456789abcdef", "state").open(b"one", &sealed), None);
        assert_eq!(Sealer::new("0123456789abcdeg", "session").open(b"one", &sealed), None);
    }

    proptest! {
        #[test]
        fn no_changed_bit_goes_unnoticed(plain in ".{0,40}", at in any::<prop::sample::Index>(), bit in 0..8) {
            let sealer = Sealer::new("0123456789abcdef", "session");
            let mut bytes = base64::decode_url(&sealer.seal(b"", plain.as_bytes()).unwrap()).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            prop_assert_eq!(sealer.open(b"", &base64::encode_url(&bytes)), None);
        }

        #[test]
        fn opens_no_foreign_text(text in "\\PC{0,60}") {
            prop_assert_eq!(Sealer::new("0123456789abcdef", "session").open(b"", &text), None);
        }
    }
}
