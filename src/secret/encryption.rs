//! Encryption of secret fields at rest (APISIX: core/data_encryption.lua, and plugin.lua `process_encrypt_field`).
//!
//! AES-CBC with the key as its own initial vector, then base64: what APISIX wrote can be read here and the other way
//! round. It hides secrets from a look into the store, not from somebody who has the keyring; equal values encrypt
//! equally and nothing detects tampering. That is APISIX's format, and compatibility is the purpose.
//!
//! It must never log or return a key or a decrypted value in an error.

use std::fmt;

use aes::{Aes128, Aes256};
use base64::{
    Engine, alphabet,
    engine::{
        DecodePaddingMode, GeneralPurpose,
        general_purpose::{GeneralPurposeConfig, STANDARD},
    },
};
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit, block_padding::Pkcs7};
use serde_json::Value;

/// Reads what nginx reads: without padding and with any last bits too.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The keys: the first one encrypts, any may decrypt, so that keys can be rotated.
#[derive(Clone, Default)]
pub struct Keyring {
    keys: Vec<Key>,
}

/// A keyring entry that is no AES key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "ignored data_encryption keyring entry {position}: expected a 16 byte (AES-128) or 32 byte (AES-256) key, got {bytes} bytes"
)]
pub struct UnusableKey {
    /// Which entry, from 1.
    pub position: usize,
    /// Its length.
    pub bytes: usize,
}

#[derive(Clone)]
enum Key {
    Aes128([u8; 16]),
    Aes256([u8; 32]),
}

#[derive(Clone, Copy)]
enum Direction {
    Encrypt,
    Decrypt,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} keys)", self.keys.len())
    }
}

impl Keyring {
    /// A keyring of the usable keys. Without any, [`Keyring::encrypt`] and [`Keyring::decrypt`] change nothing.
    pub fn new(keys: &[String]) -> Keyring {
        Keyring { keys: keys.iter().filter_map(|key| Key::new(key.as_bytes())).collect() }
    }

    /// The entries [`Keyring::new`] leaves out, for a message at the start: without a usable key, secrets are stored
    /// in the clear.
    pub fn unusable(keys: &[String]) -> Vec<UnusableKey> {
        let unusable = keys.iter().enumerate().filter(|(_, key)| Key::new(key.as_bytes()).is_none());
        unusable.map(|(index, key)| UnusableKey { position: index + 1, bytes: key.len() }).collect()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The base64 of the value encrypted by the first key.
    pub fn encrypt(&self, value: &str) -> String {
        match self.keys.first() {
            Some(key) => STANDARD.encode(key.encrypt(value.as_bytes())),
            None => value.to_owned(),
        }
    }

    /// The value in clear, or `None` if no key fits.
    ///
    /// Differs from APISIX: what decrypts to something other than UTF-8 was not encrypted by us, and counts as not
    /// decrypted.
    pub fn decrypt(&self, value: &str) -> Option<String> {
        if self.keys.is_empty() {
            return Some(value.to_owned());
        }
        let bytes = LENIENT.decode(value).ok()?;
        self.keys.iter().filter_map(|key| key.decrypt(&bytes)).find_map(|clear| String::from_utf8(clear).ok())
    }

    /// Encrypts the strings a plugin keeps secret. A field is a dotted path; arrays on the way are gone through; at
    /// its end a string, an array of strings or a map of strings is encrypted.
    pub fn encrypt_fields(&self, conf: &mut Value, fields: &[&str]) {
        for field in fields {
            self.walk(conf, field, Direction::Encrypt);
        }
    }

    /// Reverses [`Keyring::encrypt_fields`]. What does not decrypt stays as it is: it was stored before the field
    /// became secret, or encryption was off then.
    pub fn decrypt_fields(&self, conf: &mut Value, fields: &[&str]) {
        for field in fields {
            self.walk(conf, field, Direction::Decrypt);
        }
    }

    fn walk(&self, conf: &mut Value, path: &str, direction: Direction) {
        let (segment, rest) = match path.split_once('.') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (path, None),
        };
        let Some(found) = conf.get_mut(segment) else { return };
        match (rest, found) {
            (None, leaf) => self.turn(leaf, direction),
            (Some(rest), Value::Array(items)) => {
                items.iter_mut().for_each(|item| self.walk(item, rest, direction));
            }
            (Some(rest), inner) => self.walk(inner, rest, direction),
        }
    }

    fn turn(&self, leaf: &mut Value, direction: Direction) {
        match leaf {
            Value::String(text) => self.turn_text(text, direction),
            Value::Array(items) => {
                for text in items.iter_mut().filter_map(as_text_mut) {
                    self.turn_text(text, direction);
                }
            }
            Value::Object(members) => {
                for text in members.values_mut().filter_map(as_text_mut) {
                    self.turn_text(text, direction);
                }
            }
            _ => {}
        }
    }

    fn turn_text(&self, text: &mut String, direction: Direction) {
        match direction {
            Direction::Encrypt => *text = self.encrypt(text),
            Direction::Decrypt => {
                if let Some(clear) = self.decrypt(text) {
                    *text = clear;
                }
            }
        }
    }
}

impl Key {
    fn new(bytes: &[u8]) -> Option<Key> {
        let short = bytes.try_into().map(Key::Aes128).ok();
        short.or_else(|| bytes.try_into().map(Key::Aes256).ok())
    }

    // The initial vector has 16 bytes whatever the key: OpenSSL takes the first 16 of a longer one.
    fn encrypt(&self, clear: &[u8]) -> Vec<u8> {
        // The last block is padded to the full, so there is always room in this one.
        let mut buffer = vec![0; (clear.len() / 16 + 1) * 16];
        let written = match self {
            Key::Aes128(key) => cbc::Encryptor::<Aes128>::new(key.into(), key.into())
                .encrypt_padded_b2b::<Pkcs7>(clear, &mut buffer),
            Key::Aes256(key) => cbc::Encryptor::<Aes256>::new(key.into(), iv(key).into())
                .encrypt_padded_b2b::<Pkcs7>(clear, &mut buffer),
        };
        written.expect("the buffer has room for the padding").to_vec()
    }

    fn decrypt(&self, secret: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = vec![0; secret.len()];
        let clear = match self {
            Key::Aes128(key) => cbc::Decryptor::<Aes128>::new(key.into(), key.into())
                .decrypt_padded_b2b::<Pkcs7>(secret, &mut buffer),
            Key::Aes256(key) => cbc::Decryptor::<Aes256>::new(key.into(), iv(key).into())
                .decrypt_padded_b2b::<Pkcs7>(secret, &mut buffer),
        };
        clear.ok().map(<[u8]>::to_vec)
    }
}

fn iv(key: &[u8; 32]) -> &[u8; 16] {
    key.first_chunk().expect("32 bytes hold 16")
}

fn as_text_mut(value: &mut Value) -> Option<&mut String> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const DEFAULT: [&str; 2] = ["qeddd145sfvddff3", "edd1c9f0985e76a2"];

    fn keyring(keys: &[&str]) -> Keyring {
        Keyring::new(&keys.iter().map(|key| key.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn apisix_vectors() {
        #[track_caller]
        fn check(clear: &str, secret: &str) {
            let keyring = keyring(&DEFAULT);
            assert_eq!(keyring.encrypt(clear), secret);
            assert_eq!(keyring.decrypt(secret).as_deref(), Some(clear));
        }
        // Recorded from APISIX 3.18.
        check("secret", "COpyH5JDkbewEUE9BOa3Fw==");
        check("jackkey", "fVqxkFgn8qKwj6swtQOfhQ==");
    }

    #[test]
    fn a_key_of_32_bytes_is_aes_256() {
        let keyring = keyring(&["qeddd145sfvddff3qeddd145sfvddff3"]);
        // openssl enc -aes-256-cbc, the iv being the first 16 bytes of the key.
        assert_eq!(keyring.encrypt("hello world"), AES_256);
        assert_eq!(keyring.decrypt(AES_256).as_deref(), Some("hello world"));
    }

    const AES_256: &str = "ls4DOizUshA64GOrnhVRQw==";

    #[test]
    fn any_key_decrypts_the_first_encrypts() {
        let old = keyring(&["edd1c9f0985e76a2"]);
        let rotated = keyring(&["qeddd145sfvddff3qeddd145sfvddff3", "edd1c9f0985e76a2"]);
        let before = old.encrypt("hello world");
        assert_eq!(rotated.decrypt(&before).as_deref(), Some("hello world"));
        assert_ne!(rotated.encrypt("hello world"), before);
        assert_eq!(old.decrypt(&rotated.encrypt("hello world")), None);
    }

    #[test]
    fn what_is_not_encrypted_does_not_decrypt() {
        for text in ["", "secret", "not base64!", "c2hvcnQ=", "AAAAAAAAAAAAAAAAAAAAAA==", "$env://X"] {
            assert_eq!(keyring(&DEFAULT).decrypt(text), None, "{text}");
        }
    }

    #[test]
    fn keys_of_other_lengths_are_left_out_and_named() {
        let keys = ["short".to_owned(), DEFAULT[0].to_owned()];
        assert_eq!(Keyring::unusable(&keys), [UnusableKey { position: 1, bytes: 5 }]);
        assert_eq!(Keyring::new(&keys).encrypt("secret"), "COpyH5JDkbewEUE9BOa3Fw==");
        let none = keyring(&["short"]);
        assert!(none.is_empty());
        assert_eq!(none.encrypt("x"), "x");
        assert_eq!(none.decrypt("x").as_deref(), Some("x"));
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", keyring(&DEFAULT)), "Keyring(2 keys)");
    }

    #[test]
    fn fields_are_found_by_path() {
        #[track_caller]
        fn check(fields: &[&str], clear: Value, wanted: Value) {
            let keyring = keyring(&DEFAULT);
            let mut conf = clear.clone();
            keyring.encrypt_fields(&mut conf, fields);
            assert_eq!(conf, wanted);
            keyring.decrypt_fields(&mut conf, fields);
            assert_eq!(conf, clear);
        }
        let e = "COpyH5JDkbewEUE9BOa3Fw==";
        let s = "secret";
        check(&["key"], json!({"key": s, "other": s}), json!({"key": e, "other": s}));
        check(&["missing", "a.b"], json!({"a": s}), json!({"a": s}));
        check(&["a.b.c"], json!({"a": {"b": {"c": s}}}), json!({"a": {"b": {"c": e}}}));
        check(&["a.b"], json!({"a": [{"b": s}, {"c": s}, s]}), json!({"a": [{"b": e}, {"c": s}, s]}));
        check(&["list"], json!({"list": [s, 1, [s]]}), json!({"list": [e, 1, [s]]}));
        check(&["map"], json!({"map": {"x": s, "y": {"z": s}}}), json!({"map": {"x": e, "y": {"z": s}}}));
        check(&["n"], json!({"n": 1}), json!({"n": 1}));
        check(&["key"], json!("text"), json!("text"));
    }

    #[test]
    fn values_in_clear_stay_on_decryption() {
        let mut conf = json!({"key": "plain", "list": ["plain", "COpyH5JDkbewEUE9BOa3Fw=="]});
        keyring(&DEFAULT).decrypt_fields(&mut conf, &["key", "list"]);
        assert_eq!(conf, json!({"key": "plain", "list": ["plain", "secret"]}));
    }

    proptest! {
        #[test]
        fn every_text_comes_back(text: String) {
            let keyring = keyring(&DEFAULT);
            prop_assert_eq!(keyring.decrypt(&keyring.encrypt(&text)), Some(text));
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            keyring(&DEFAULT).decrypt(&STANDARD.encode(bytes));
        }
    }
}
