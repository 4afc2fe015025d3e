//! Sessions in memory: texts under keys that are forgotten when nobody asked for them for a while.
//!
//! Bounded: when it is full, the session that was unused longest in its part of the map makes room.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

const PARTS: usize = 16;

/// Texts under keys.
pub struct SessionMap {
    // Held for one look-up, never while anything is waited for; two requests rarely meet in one part.
    parts: [Mutex<HashMap<Box<str>, Entry>>; PARTS],
    hasher: RandomState,
    capacity: usize,
    lifetime: Duration,
}

struct Entry {
    text: Box<str>,
    until: Instant,
}

impl SessionMap {
    /// A map for about `capacity` sessions, each of which is forgotten when it was unused for `lifetime`.
    pub fn new(capacity: usize, lifetime: Duration) -> Self {
        Self {
            parts: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            capacity: capacity.div_ceil(PARTS),
            lifetime,
        }
    }

    fn part(&self, key: &str) -> MutexGuard<'_, HashMap<Box<str>, Entry>> {
        let part = self.hasher.hash_one(key) as usize % PARTS;
        self.parts[part].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a session. `false`: there is one under this key.
    pub fn add(&self, key: &str, text: &str) -> bool {
        let now = Instant::now();
        let mut part = self.part(key);
        if part.get(key).is_some_and(|entry| entry.until > now) {
            return false;
        }
        if part.len() >= self.capacity {
            part.retain(|_, entry| entry.until > now);
        }
        if part.len() >= self.capacity
            && let Some(oldest) = part.iter().min_by_key(|(_, entry)| entry.until).map(|(key, _)| key.clone())
        {
            part.remove(&oldest);
        }
        part.insert(key.into(), Entry { text: text.into(), until: now + self.lifetime });
        true
    }

    /// The session under a key, which counts as used now.
    pub fn used(&self, key: &str) -> Option<Box<str>> {
        let now = Instant::now();
        let mut part = self.part(key);
        let entry = part.get_mut(key).filter(|entry| entry.until > now)?;
        entry.until = now + self.lifetime;
        Some(entry.text.clone())
    }

    /// Forgets a session.
    pub fn remove(&self, key: &str) -> Option<Box<str>> {
        self.part(key).remove(key).map(|entry| entry.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_and_forgets() {
        let map = SessionMap::new(100, Duration::from_secs(60));
        assert!(map.add("a", "1") && !map.add("a", "2"));
        assert_eq!(map.used("a").as_deref(), Some("1"));
        assert_eq!(map.remove("a").as_deref(), Some("1"));
        assert_eq!(map.used("a"), None);
        let map = SessionMap::new(100, Duration::ZERO);
        assert!(map.add("a", "1") && map.used("a").is_none() && map.add("a", "2"));
    }

    #[test]
    fn is_bounded() {
        let map = SessionMap::new(32, Duration::from_secs(60));
        (0..1000).for_each(|n| assert!(map.add(&n.to_string(), "x")));
        let left = (0..1000).filter(|n| map.used(&n.to_string()).is_some()).count();
        assert!(left <= 32 && map.used("999").is_some(), "{left}");
    }
}
