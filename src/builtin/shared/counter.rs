//! Counters by key, for plugins that limit: what APISIX keeps in an nginx shared dictionary.
//!
//! One [`Counters`] serves all configurations of a plugin; [`Scope`] keeps them apart. Keys are fingerprints, so
//! an entry has a fixed size whatever a client sends. What is over is swept out when its shard grows, and a
//! shard that is full of living entries gives up those that would end first, as nginx evicts when a dictionary is
//! full. Invariant: memory is bounded by [`CAPACITY`] entries, except for entries that never end, which are
//! bounded by the requests in flight.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use ahash::RandomState;

use crate::plugin::{
    env::Origin,
    fingerprint::{Fingerprint, Fingerprinter},
};

/// The most entries that are kept; each costs about 48 bytes.
pub const CAPACITY: usize = SHARDS * SHARD_CAPACITY;

const SHARDS: usize = 256;
const SHARD_CAPACITY: usize = 4096;
/// Shards this small are never swept.
const SWEEP_FROM: usize = 32;

/// What is counted under one key.
pub trait Slot: Default + Send + 'static {
    /// The time in milliseconds at which this is worth nothing more; `u64::MAX` if never.
    fn ends(&self) -> u64;
}

/// Milliseconds since 1970 that never run backwards: the clock on the wall at the start, then the monotonic one.
pub fn now() -> u64 {
    static START: LazyLock<(Instant, u64)> = LazyLock::new(|| {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (Instant::now(), u64::try_from(wall.as_millis()).unwrap_or(0))
    });
    let (began, wall) = *START;
    wall.saturating_add(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// What the counters of one configuration have in common: equal only for the same text on the same resource, so
/// that a changed configuration begins anew and an unchanged one goes on. APISIX: `gen_limit_key`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scope(Fingerprint);

impl Scope {
    /// The scope of a configuration on a resource.
    pub fn of(origin: &Origin, config: &str) -> Self {
        Self(Fingerprinter::new().text(origin.kind).text(&origin.id).text(config).finish())
    }

    /// A scope that several configurations share by name.
    pub fn named(name: &str) -> Self {
        Self(Fingerprinter::new().text("group").text(name).finish())
    }

    /// The key of a text in this scope.
    pub fn key(self, text: &str) -> Fingerprint {
        let (high, low) = ((self.0 >> 64) as u64, self.0 as u64);
        Fingerprinter::new().number(high).number(low).text(text).finish()
    }
}

/// See the module.
pub struct Counters<S> {
    // A short lock around one probe and a few additions. Plain atomics cannot keep a count and its window's end
    // together, and 256 shards keep clients apart.
    shards: Box<[Mutex<Shard<S>>]>,
}

struct Shard<S> {
    slots: HashMap<Fingerprint, S, RandomState>,
    sweep_at: usize,
}

impl<S: Slot> Counters<S> {
    /// No counters yet.
    pub fn new() -> Self {
        let shard = || Mutex::new(Shard { slots: HashMap::default(), sweep_at: SWEEP_FROM });
        Self { shards: (0..SHARDS).map(|_| shard()).collect() }
    }

    /// Changes the slot of a key, which is a fresh one when there was none or it is over.
    pub fn update<R>(&self, key: Fingerprint, now: u64, change: impl FnOnce(&mut S) -> R) -> R {
        let mut shard = self.shard(key);
        if shard.slots.len() >= shard.sweep_at && !shard.slots.contains_key(&key) {
            shard.sweep(now);
        }
        let slot = shard.slots.entry(key).or_default();
        if slot.ends() <= now {
            *slot = S::default();
        }
        change(slot)
    }

    /// How many entries there are, those included that are over but not swept.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).slots.len()).sum()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, key: Fingerprint) -> MutexGuard<'_, Shard<S>> {
        lock(&self.shards[(key >> 120) as usize % SHARDS])
    }
}

impl<S: Slot> Default for Counters<S> {
    fn default() -> Self {
        Self::new()
    }
}

/// A panic inside the lock leaves whole slots behind, so what it poisons is still good.
fn lock<S>(shard: &Mutex<Shard<S>>) -> MutexGuard<'_, Shard<S>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Slot> Shard<S> {
    /// Drops what is over, and the quarter that ends first when that leaves the shard full. The next sweep waits
    /// until the shard has doubled, so that the work per new key stays constant.
    fn sweep(&mut self, now: u64) {
        self.slots.retain(|_, slot| slot.ends() > now);
        if self.slots.len() >= SHARD_CAPACITY {
            self.evict();
        }
        let living = self.slots.len();
        self.slots.shrink_to(living * 2);
        let doubled = (living * 2).max(SWEEP_FROM);
        self.sweep_at = if living > SHARD_CAPACITY { doubled } else { doubled.min(SHARD_CAPACITY) };
    }

    fn evict(&mut self) {
        let mut ends: Vec<u64> = self.slots.values().map(Slot::ends).collect();
        let mut wanted = ends.len() / 4;
        let (_, last, _) = ends.select_nth_unstable(wanted);
        let last = *last;
        self.slots.retain(|_, slot| {
            let goes = wanted > 0 && slot.ends() <= last && slot.ends() != u64::MAX;
            wanted -= usize::from(goes);
            !goes
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc, thread};

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Until {
        count: u64,
        ends: u64,
    }

    impl Slot for Until {
        fn ends(&self) -> u64 {
            self.ends
        }
    }

    fn count(counters: &Counters<Until>, key: Fingerprint, now: u64, lives: u64) -> u64 {
        counters.update(key, now, |slot| {
            slot.count += 1;
            slot.ends = slot.ends.max(now.saturating_add(lives));
            slot.count
        })
    }

    #[test]
    fn scopes_keep_equal_keys_apart() {
        let origin = |kind, id: &str| Origin { kind, id: id.into() };
        let scopes = [
            Scope::of(&origin("route", "1"), "a"),
            Scope::of(&origin("route", "2"), "a"),
            Scope::of(&origin("service", "1"), "a"),
            Scope::of(&origin("route", "1"), "b"),
            Scope::named("a"),
        ];
        for (at, one) in scopes.iter().enumerate() {
            assert!(scopes[..at].iter().all(|other| other.key("k") != one.key("k")));
        }
        assert_eq!(Scope::of(&origin("route", "1"), "a").key("k"), scopes[0].key("k"));
    }

    #[test]
    fn what_is_over_is_swept() {
        let counters = Counters::new();
        // All in shard 0.
        for key in 0..10_000u64 {
            count(&counters, key.into(), key * 10, 5);
        }
        assert!(counters.len() <= SWEEP_FROM, "{}", counters.len());
    }

    #[test]
    fn a_full_shard_gives_up_those_that_end_first() {
        let counters = Counters::new();
        // All in shard 0.
        for key in 0..20_000u64 {
            count(&counters, key.into(), 0, 1_000 + key);
            assert!(counters.len() <= SHARD_CAPACITY);
        }
        assert_eq!(count(&counters, 19_999, 0, 1), 2, "the last to end is kept");
        assert_eq!(count(&counters, 0, 0, 1), 1, "the first to end is gone");
    }

    #[test]
    fn entries_that_never_end_are_kept() {
        let counters = Counters::new();
        for key in 0..10_000u64 {
            count(&counters, key.into(), 0, u64::MAX);
        }
        assert_eq!(counters.len(), 10_000);
    }

    #[test]
    fn no_count_is_lost_between_threads() {
        let counters = Arc::new(Counters::new());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let counters = counters.clone();
                thread::spawn(move || (0..5_000).for_each(|_| _ = count(&counters, 7, 0, 100)))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(count(&counters, 7, 0, 100), 20_001);
    }

    #[test]
    fn the_clock_never_runs_backwards() {
        let first = now();
        assert!(now() >= first);
        assert!(first > 1_600_000_000_000);
    }

    proptest! {
        #[test]
        fn counts_as_a_map_without_limits(steps in prop::collection::vec((0u128..400, 0u64..20, 1u64..60), 1..600)) {
            let (counters, mut model) = (Counters::new(), HashMap::new());
            let mut now = 0;
            for (key, pause, lives) in steps {
                now += pause;
                let (expected, ends) = model.entry(key).or_insert((0, 0));
                if *ends <= now {
                    (*expected, *ends) = (0, 0);
                }
                (*expected, *ends) = (*expected + 1, (*ends).max(now + lives));
                prop_assert_eq!(count(&counters, key, now, lives), *expected);
            }
        }
    }
}
