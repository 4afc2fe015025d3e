//! A bounded memory of things already found true, so that an expensive proof is given once.
//!
//! Only salted SHA-256 fingerprints are kept. Invariant: never blocks; forgetting is always allowed, and a wrong
//! "seen" would need a collision of SHA-256.

use std::sync::{Mutex, TryLockError};

use sha2::{Digest, Sha256};

/// What is remembered of a thing.
pub type Fingerprint = [u8; 32];

/// Fingerprints that may share a place. With one, an eighth of a thousand things would drive each other out of a memory
/// for eight thousand, with every request.
const WAYS: usize = 4;

/// A table of small sets of fingerprints; a newer one replaces the oldest of its set.
pub struct Seen {
    salt: [u8; 16],
    // One lock per set and only ever tried: two requests rarely meet in a set, and then one proves again.
    sets: Box<[Mutex<[Fingerprint; WAYS]>]>,
}

impl Seen {
    /// A memory for up to `things` things.
    #[must_use]
    pub fn new(things: usize) -> Self {
        let mut salt = [0; 16];
        if getrandom::fill(&mut salt).is_err() {
            // The salt only hides equal secrets between processes; a weaker one does no harm to the proof.
            salt = fastrand::u128(..).to_le_bytes();
        }
        let sets = things.div_ceil(WAYS).max(1);
        Self { salt, sets: (0..sets).map(|_| Mutex::new([[0; 32]; WAYS])).collect() }
    }

    /// The fingerprint of a thing made of these parts; the border between parts counts.
    #[must_use]
    pub fn fingerprint(&self, parts: &[&[u8]]) -> Fingerprint {
        let mut hash = Sha256::new();
        hash.update(self.salt);
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    /// Whether the thing was remembered and not replaced since.
    #[must_use]
    pub fn has(&self, thing: &Fingerprint) -> bool {
        match self.set(thing).try_lock() {
            Ok(set) => set.contains(thing),
            Err(TryLockError::Poisoned(_) | TryLockError::WouldBlock) => false,
        }
    }

    /// Remembers a thing.
    pub fn add(&self, thing: &Fingerprint) {
        if let Ok(mut set) = self.set(thing).try_lock()
            && !set.contains(thing)
        {
            set.rotate_right(1);
            set[0] = *thing;
        }
    }

    fn set(&self, thing: &Fingerprint) -> &Mutex<[Fingerprint; WAYS]> {
        let at = thing.iter().take(8).fold(0_usize, |at, byte| (at << 8) | usize::from(*byte));
        &self.sets[at % self.sets.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_and_forgets() {
        let seen = Seen::new(1);
        let (one, two) = (seen.fingerprint(&[b"a", b"bc"]), seen.fingerprint(&[b"ab", b"c"]));
        assert_ne!(one, two, "borders count");
        assert!(!seen.has(&one));
        seen.add(&one);
        assert!(seen.has(&one) && !seen.has(&two));
        seen.add(&two);
        seen.add(&two);
        assert!(seen.has(&one) && seen.has(&two));
        for other in 0..WAYS - 1 {
            seen.add(&seen.fingerprint(&[&other.to_le_bytes()]));
        }
        assert!(!seen.has(&one) && seen.has(&two), "the oldest goes first");
    }

    #[test]
    fn holds_a_fraction_of_its_size_without_loss() {
        let seen = Seen::new(8192);
        let things: Vec<_> = (0..1000_u32).map(|number| seen.fingerprint(&[&number.to_le_bytes()])).collect();
        things.iter().for_each(|thing| seen.add(thing));
        let lost = things.iter().filter(|thing| !seen.has(thing)).count();
        // One set in some thousands is asked to hold more than it can.
        assert!(lost < 20, "{lost} of 1000");
    }

    #[test]
    fn fingerprints_differ_between_memories() {
        assert_ne!(Seen::new(1).fingerprint(&[b"a"]), Seen::new(1).fingerprint(&[b"a"]));
    }
}
