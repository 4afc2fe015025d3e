//! Names of fixed size for texts of any size: 128 bits under keys that only this process knows.
//!
//! Whoever counts per client or per label set keeps these instead of the texts, so that a client cannot fill the
//! memory with long keys. Invariant: never stored or sent anywhere, they mean nothing after a restart.

use std::{
    cell::RefCell,
    hash::{BuildHasher, DefaultHasher, Hasher, RandomState},
    sync::LazyLock,
};

/// The name of a sequence of texts.
pub type Fingerprint = u128;

// SipHash: without the keys nobody finds two texts that meet.
static KEYS: LazyLock<[RandomState; 2]> = LazyLock::new(|| [RandomState::new(), RandomState::new()]);

/// Ends a text: no byte of UTF-8 is this one.
const END: u8 = 0xff;
/// A buffer that long texts have grown beyond this is given back.
const KEPT: usize = 16 * 1024;

thread_local! {
    // Two long writes cost a fraction of two dozen short ones.
    static TEXTS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The name of many short texts at once.
pub fn of<'t>(texts: impl Iterator<Item = &'t str>) -> Fingerprint {
    TEXTS.with_borrow_mut(|buffer| {
        buffer.clear();
        for text in texts {
            buffer.extend_from_slice(text.as_bytes());
            buffer.push(END);
        }
        let name = Fingerprinter::new().bytes(buffer).finish();
        if buffer.capacity() > KEPT {
            *buffer = Vec::new();
        }
        name
    })
}

/// Makes a fingerprint, piece by piece.
pub struct Fingerprinter {
    halves: [DefaultHasher; 2],
}

impl Fingerprinter {
    /// Begins a fingerprint.
    #[must_use]
    pub fn new() -> Self {
        Self { halves: [KEYS[0].build_hasher(), KEYS[1].build_hasher()] }
    }

    /// Adds a text; `ab`, `c` and `a`, `bc` give different names.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        for half in &mut self.halves {
            half.write(text.as_bytes());
            half.write_u8(END);
        }
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        for half in &mut self.halves {
            half.write(bytes);
        }
        self
    }

    /// Adds a number.
    #[must_use]
    pub fn number(mut self, number: u64) -> Self {
        for half in &mut self.halves {
            half.write_u64(number);
        }
        self
    }

    /// The name.
    #[must_use]
    pub fn finish(&self) -> Fingerprint {
        let [high, low] = &self.halves;
        (u128::from(high.finish()) << 64) | u128::from(low.finish())
    }
}

impl Default for Fingerprinter {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn name(texts: &[&str]) -> Fingerprint {
        texts.iter().fold(Fingerprinter::new(), |name, text| name.text(text)).finish()
    }

    #[test]
    fn equal_texts_have_equal_names_and_others_do_not() {
        assert_eq!(name(&["a", "b"]), name(&["a", "b"]));
        let all: &[&[&str]] =
            &[&[], &[""], &["", ""], &["ab", "c"], &["a", "bc"], &["abc"], &["b", "a"], &["a", "b"]];
        let names: HashSet<Fingerprint> = all.iter().map(|texts| name(texts)).collect();
        assert_eq!(names.len(), all.len());
        let names: HashSet<Fingerprint> = all.iter().map(|texts| of(texts.iter().copied())).collect();
        assert_eq!(names.len(), all.len());
        assert_eq!(of(["a", "b"].into_iter()), of(["a", "b"].into_iter()));
        let number = |number| Fingerprinter::new().number(number).finish();
        assert_ne!(number(1), number(256));
    }

    #[test]
    fn the_halves_are_independent() {
        let name = name(&["a"]);
        assert_ne!((name >> 64) as u64, name as u64);
    }
}
