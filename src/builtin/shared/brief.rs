//! A bounded memory of answers that may be repeated for a short while.
//!
//! Only salted SHA-256 fingerprints of the questions are kept. Invariant: never blocks; forgetting is always allowed.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

/// A direct-mapped table of answers; a newer one replaces what had its slot.
pub struct Brief<T> {
    salt: [u8; 16],
    lasts: Duration,
    // One lock per slot and only ever tried: two requests rarely meet in a slot, and then one asks again.
    slots: Box<[Mutex<Option<Entry<T>>>]>,
}

struct Entry<T> {
    question: Question,
    since: Instant,
    answer: T,
}

/// What is remembered of a question.
pub type Question = [u8; 32];

impl<T: Clone> Brief<T> {
    /// A memory for up to `slots` answers, each for so long.
    ///
    /// # Errors
    /// The system has no random numbers: without a salt, fingerprints could be prepared.
    pub fn new(slots: usize, lasts: Duration) -> Result<Self, String> {
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(|error| error.to_string())?;
        Ok(Self { salt, lasts, slots: (0..slots.max(1)).map(|_| Mutex::new(None)).collect() })
    }

    /// The fingerprint of a question made of these parts; the border between parts counts.
    pub fn question(&self, parts: &[&[u8]]) -> Question {
        let mut hash = Sha256::new();
        hash.update(self.salt);
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    /// The answer, if it is remembered and not too old.
    pub fn get(&self, question: &Question) -> Option<T> {
        let slot = self.slot(question).try_lock().ok()?;
        let entry = slot.as_ref()?;
        (entry.question == *question && entry.since.elapsed() < self.lasts).then(|| entry.answer.clone())
    }

    /// Remembers an answer.
    pub fn put(&self, question: Question, answer: T) {
        if let Ok(mut slot) = self.slot(&question).try_lock() {
            *slot = Some(Entry { question, since: Instant::now(), answer });
        }
    }

    fn slot(&self, question: &Question) -> &Mutex<Option<Entry<T>>> {
        let at = question.iter().take(8).fold(0_usize, |at, byte| (at << 8) | usize::from(*byte));
        &self.slots[at % self.slots.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_for_a_while() {
        let long = Brief::new(1, Duration::from_secs(3600)).unwrap();
        let (one, two) = (long.question(&[b"a", b"bc"]), long.question(&[b"ab", b"c"]));
        assert_ne!(one, two, "borders count");
        assert_eq!(long.get(&one), None);
        long.put(one, 1);
        assert_eq!((long.get(&one), long.get(&two)), (Some(1), None));
        long.put(two, 2);
        assert_eq!((long.get(&one), long.get(&two)), (None, Some(2)));
        let over = Brief::new(8, Duration::ZERO).unwrap();
        let question = over.question(&[b"a"]);
        over.put(question, 1);
        assert_eq!(over.get(&question), None);
    }
}
