//! A metric's label sets: found by fingerprint, expired when unused, bounded in number.
//!
//! Invariant: memory is bounded by [`CAPACITY`] label sets per family, so that labels which a client chooses
//! cannot fill it; those used least recently go first, and are counted.

use std::{
    collections::HashMap,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use ahash::RandomState;

use crate::plugin::fingerprint::{self, Fingerprint};

/// The most label sets of one family.
pub const CAPACITY: usize = SHARDS * SHARD_CAPACITY;

const SHARDS: usize = 16;
const SHARD_CAPACITY: usize = 2048;

/// The label sets of one metric, each with cells of type `C`.
pub struct Family<C> {
    /// Seconds after which an unused label set goes.
    expire: Option<u64>,
    // Read-locked per request around one probe and the additions; written only when a label set is new.
    shards: Box<[RwLock<Shard<C>>]>,
    lost: AtomicU64,
}

type Shard<C> = HashMap<Fingerprint, Entry<C>, RandomState>;

struct Entry<C> {
    values: Box<[Box<str>]>,
    /// In seconds, on the caller's clock.
    used: AtomicU64,
    cells: C,
}

impl<C: Send + Sync> Family<C> {
    /// No label sets yet. `expire` in seconds; `None` keeps them.
    pub fn new(expire: Option<u64>) -> Self {
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect();
        Self { expire, shards, lost: AtomicU64::new(0) }
    }

    /// Adds to the cells of a label set, which `new` makes the first time. `now` in seconds, on any clock.
    pub fn add<'v>(
        &self,
        values: impl Iterator<Item = &'v str> + Clone,
        now: u64,
        new: impl FnOnce() -> C,
        add: impl FnOnce(&C),
    ) {
        let key = fingerprint::of(values.clone());
        let shard = &self.shards[(key >> 120) as usize % SHARDS];
        {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(entry) = shard.get(&key).filter(|entry| !self.expired(entry, now)) {
                entry.used.store(now, Relaxed);
                return add(&entry.cells);
            }
        }
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        if shard.get(&key).is_some_and(|entry| self.expired(entry, now)) {
            shard.remove(&key);
        }
        if shard.len() >= SHARD_CAPACITY && !shard.contains_key(&key) {
            self.make_room(&mut shard, now);
        }
        let fresh =
            || Entry { values: values.map(Into::into).collect(), used: AtomicU64::new(now), cells: new() };
        let entry = shard.entry(key).or_insert_with(fresh);
        entry.used.store(now, Relaxed);
        add(&entry.cells);
    }

    /// Shows every label set that did not expire to `show`, ordered by its values; forgets the others.
    pub fn each(&self, now: u64, mut show: impl FnMut(&[Box<str>], &C)) {
        for shard in &self.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, entry| !self.expired(entry, now));
        }
        let shards: Vec<_> =
            self.shards.iter().map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner)).collect();
        let mut entries: Vec<&Entry<C>> = shards.iter().flat_map(|shard| shard.values()).collect();
        entries.sort_unstable_by(|a, b| a.values.cmp(&b.values));
        for entry in entries {
            show(&entry.values, &entry.cells);
        }
    }

    /// How many label sets were given up because there were too many.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    fn expired(&self, entry: &Entry<C>, now: u64) -> bool {
        self.expire.is_some_and(|expire| entry.used.load(Relaxed).saturating_add(expire) <= now)
    }

    /// Drops what expired, else the quarter that was used least recently: a route that is gone makes room for one
    /// that is new.
    fn make_room(&self, shard: &mut Shard<C>, now: u64) {
        shard.retain(|_, entry| !self.expired(entry, now));
        if shard.len() < SHARD_CAPACITY {
            return;
        }
        let mut used: Vec<u64> = shard.values().map(|entry| entry.used.load(Relaxed)).collect();
        let mut wanted = used.len() / 4;
        let (_, newest, _) = used.select_nth_unstable(wanted);
        let newest = *newest;
        self.lost.fetch_add(wanted as u64, Relaxed);
        shard.retain(|_, entry| {
            let goes = wanted > 0 && entry.used.load(Relaxed) <= newest;
            wanted -= usize::from(goes);
            !goes
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(family: &Family<AtomicU64>, values: &[&str], now: u64) {
        family.add(values.iter().copied(), now, AtomicU64::default, |cell| _ = cell.fetch_add(1, Relaxed));
    }

    fn shown(family: &Family<AtomicU64>, now: u64) -> Vec<String> {
        let mut all = Vec::new();
        family.each(now, |values, cell| all.push(format!("{} {}", values.join(","), cell.load(Relaxed))));
        all
    }

    #[test]
    fn counts_by_label_set() {
        let family = Family::new(None);
        for values in [["b", "1"], ["a", "2"], ["b", "1"], ["a", "1"]] {
            count(&family, &values, 0);
        }
        assert_eq!(shown(&family, u64::MAX), ["a,1 1", "a,2 1", "b,1 2"]);
    }

    #[test]
    fn expires_what_is_not_used() {
        let family = Family::new(Some(10));
        count(&family, &["a"], 0);
        count(&family, &["b"], 0);
        count(&family, &["a"], 9);
        assert_eq!(shown(&family, 10), ["a 2"]);
        count(&family, &["a"], 19);
        assert_eq!(shown(&family, 19), ["a 1"], "an expired label set begins anew");
    }

    #[test]
    fn gives_up_the_least_recently_used() {
        let family = Family::new(None);
        let extra = CAPACITY * 2;
        for at in 0..extra {
            count(&family, &[&at.to_string()], at as u64);
        }
        let left = shown(&family, 0);
        assert!(left.len() <= CAPACITY);
        assert!(left.contains(&format!("{} 1", extra - 1)));
        assert!(!left.contains(&"0 1".to_owned()));
        assert_eq!(left.len() as u64 + family.lost(), extra as u64);
    }
}
