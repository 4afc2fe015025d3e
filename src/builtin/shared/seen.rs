//! A bounded memory of things already found true, so that an expensive proof is given once.
//!
//! Only salted SHA-256 fingerprints are kept. Invariant: never blocks; forgetting is always allowed, and a wrong
//! "seen" would need a collision of SHA-256.

use std::sync::{Mutex, TryLockError};

use sha2::{Digest, Sha256};

/// What is remembered of a thing.
pub type Fingerprint = [u8; 32];

/// A direct-mapped table of fingerprints; a newer one replaces what had its slot.
pub struct Seen {
    salt: [u8; 16],
    // One lock per slot and only ever tried: two requests rarely meet in a slot, and then one proves again.
    slots: Box<[Mutex<Fingerprint>]>,
}

impl Seen {
    /// A memory for up to `slots` things.
    #[must_use]
    pub fn new(slots: usize) -> Self {
        let mut salt = [0; 16];
        if getrandom::fill(&mut salt).is_err() {
            // The salt only hides equal secrets between processes; a weaker one does no harm to the proof.
            salt = fastrand::u128(..).to_le_bytes();
        }
        Self { salt, slots: (0..slots.max(1)).map(|_| Mutex::new([0; 32])).collect() }
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
        match self.slot(thing).try_lock() {
            Ok(slot) => *slot == *thing,
            Err(TryLockError::Poisoned(_) | TryLockError::WouldBlock) => false,
        }
    }

    /// Remembers a thing.
    pub fn add(&self, thing: &Fingerprint) {
        if let Ok(mut slot) = self.slot(thing).try_lock() {
            *slot = *thing;
        }
    }

    fn slot(&self, thing: &Fingerprint) -> &Mutex<Fingerprint> {
        let at = thing.iter().take(8).fold(0_usize, |at, byte| (at << 8) | usize::from(*byte));
        &self.slots[at % self.slots.len()]
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
        assert!(!seen.has(&one) && seen.has(&two));
    }

    #[test]
    fn fingerprints_differ_between_memories() {
        assert_ne!(Seen::new(1).fingerprint(&[b"a"]), Seen::new(1).fingerprint(&[b"a"]));
    }
}
