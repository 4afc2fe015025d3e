//! A bounded memory of what was found out about secrets, for a while: what a token's introspection answered, which
//! claims a verified token has.
//!
//! Keys are salted SHA-256 fingerprints, never the secrets themselves. Invariant: never blocks; forgetting is always
//! allowed.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

/// A direct-mapped table; a newer entry replaces what had its slot.
pub struct Memo<V> {
    salt: [u8; 16],
    // One lock per slot and only ever tried: two requests rarely meet in a slot, and then one finds out again.
    slots: Box<[Mutex<Option<Entry<V>>>]>,
    // Held by who finds something out while others wait for the same.
    finding: Box<[tokio::sync::Mutex<()>]>,
}

/// How many things can be found out at the same time without waiting for each other.
const FINDING: usize = 64;

struct Entry<V> {
    key: Key,
    until: Instant,
    value: Arc<V>,
}

/// What stands for a secret.
pub type Key = [u8; 32];

impl<V> Memo<V> {
    /// A memory for up to `slots` things.
    pub fn new(slots: usize) -> Self {
        let mut salt = [0; 16];
        if getrandom::fill(&mut salt).is_err() {
            // The salt only hides equal secrets between processes.
            salt = fastrand::u128(..).to_le_bytes();
        }
        Self {
            salt,
            slots: (0..slots.max(1)).map(|_| Mutex::new(None)).collect(),
            finding: (0..FINDING).map(|_| tokio::sync::Mutex::new(())).collect(),
        }
    }

    /// What stands for the secret made of these parts; the border between parts counts.
    pub fn key(&self, parts: &[&[u8]]) -> Key {
        let mut hash = Sha256::new();
        hash.update(self.salt);
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    /// What is remembered, if it is not too old.
    pub fn get(&self, key: &Key) -> Option<Arc<V>> {
        let slot = self.slot(key).try_lock().ok()?;
        let entry = slot.as_ref().filter(|entry| entry.key == *key && entry.until > Instant::now())?;
        Some(entry.value.clone())
    }

    /// Remembers for a while.
    pub fn put(&self, key: Key, lifetime: Duration, value: Arc<V>) {
        // A lifetime beyond what the clock can tell is not remembered: it would be a mistake of who sent it.
        let Some(until) = Instant::now().checked_add(lifetime) else { return };
        if let Ok(mut slot) = self.slot(&key).try_lock() {
            *slot = Some(Entry { key, until, value });
        }
    }

    /// What is remembered, or else found out, by one of all who ask at the same time.
    ///
    /// # Errors
    /// Finding out failed.
    pub async fn once<E>(
        &self,
        key: Key,
        lifetime: Duration,
        find_out: impl Future<Output = Result<V, E>>,
    ) -> Result<Arc<V>, E> {
        let _turn = self.finding[usize::from(key[4]) % FINDING].lock().await;
        if let Some(known) = self.get(&key) {
            return Ok(known);
        }
        let found = Arc::new(find_out.await?);
        self.put(key, lifetime, found.clone());
        Ok(found)
    }

    fn slot(&self, key: &Key) -> &Mutex<Option<Entry<V>>> {
        let [a, b, c, d, ..] = *key;
        &self.slots[u32::from_le_bytes([a, b, c, d]) as usize % self.slots.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_for_a_while() {
        let memo = Memo::new(64);
        let key = memo.key(&[b"a", b"bc"]);
        assert_ne!(key, memo.key(&[b"ab", b"c"]));
        assert!(memo.get(&key).is_none());
        memo.put(key, Duration::from_secs(60), Arc::new(1));
        assert_eq!(memo.get(&key).as_deref(), Some(&1));
        memo.put(key, Duration::ZERO, Arc::new(2));
        assert!(memo.get(&key).is_none());
        memo.put(key, Duration::MAX, Arc::new(3));
        assert!(memo.get(&key).is_none());
    }

    #[tokio::test]
    async fn finds_out_once() {
        let memo = Memo::new(64);
        let key = memo.key(&[b"a"]);
        let find = |value: Result<u32, &'static str>| async move {
            tokio::task::yield_now().await;
            value
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(memo.once(key, hour, find(Err("down"))).await, Err("down"));
        let (one, other) = tokio::join!(memo.once(key, hour, find(Ok(1))), memo.once(key, hour, find(Ok(2))));
        assert_eq!((*one.unwrap(), *other.unwrap()), (1, 1));
    }

    #[test]
    fn is_bounded() {
        let memo = Memo::new(2);
        let keys: Vec<_> = (0..20u8).map(|n| memo.key(&[&[n]])).collect();
        for key in &keys {
            memo.put(*key, Duration::from_secs(60), Arc::new(()));
        }
        assert!(keys.iter().filter(|key| memo.get(key).is_some()).count() <= 2);
    }
}
