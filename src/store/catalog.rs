//! The picture in memory from which every local store answers reads and feeds its watchers.
//!
//! Invariant: entries and inboxes change under one lock, so a watcher can neither miss a change nor see it twice.
//! It must never be on the way of a request: snapshots are compiled from events, not read from here.

use std::{
    borrow::Borrow,
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
        atomic::{self, AtomicU64},
    },
};

use tokio::sync::Notify;

use super::{Change, Entry, Event};
use crate::resource::{Key, Kind};

/// A watcher that has more changes than this waiting is told to start afresh instead: the list would soon cost more
/// than everything there is.
const MAX_WAITING: usize = 20_000;

/// All entries, and who wants to hear about them.
pub(super) struct Catalog {
    state: RwLock<State>,
    issued: AtomicU64,
}

#[derive(Default)]
struct State {
    kinds: BTreeMap<Kind, BTreeSet<ById>>,
    /// May name entries that were replaced since; `due` looks again.
    deadlines: BTreeMap<u64, Vec<Key>>,
    revision: u64,
    inboxes: Vec<Weak<Inbox>>,
}

/// An entry that sorts and is found by its id, so that the id is not kept twice.
struct ById(Entry);

/// A place in the stream of events of a store.
///
/// Memory stays bounded however slow the reader is: changes add up while it is busy, and give way to a new
/// [`Event::Reset`] when there are too many.
pub struct Watch {
    catalog: Arc<Catalog>,
    inbox: Arc<Inbox>,
}

struct Inbox {
    /// Between the writer and one reader; held for moments, never over an await.
    waiting: Mutex<Waiting>,
    wake: Notify,
}

enum Waiting {
    Nothing,
    Reset,
    Changes { changes: Vec<Change>, revision: u64 },
}

impl Watch {
    /// The next event; waits for it. Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Event {
        loop {
            if let Some(event) = self.try_recv() {
                return event;
            }
            self.inbox.wake.notified().await;
        }
    }

    /// The next event if there is one.
    pub fn try_recv(&mut self) -> Option<Event> {
        let state = self.catalog.read();
        let waiting = std::mem::replace(&mut *self.inbox.lock(), Waiting::Nothing);
        match waiting {
            Waiting::Nothing => None,
            Waiting::Changes { changes, revision } => Some(Event::Changes { changes, revision }),
            Waiting::Reset => Some(Event::Reset {
                entries: state.kinds.values().flatten().map(|item| item.0.clone()).collect(),
                revision: state.revision,
            }),
        }
    }
}

impl Catalog {
    /// A catalogue of what was found at the start.
    pub(super) fn new(entries: Vec<Entry>, revision: u64) -> Arc<Catalog> {
        let mut state = State { revision, ..State::default() };
        let mut kinds: BTreeMap<Kind, Vec<ById>> = BTreeMap::new();
        for entry in entries {
            state.remind(&entry);
            kinds.entry(entry.key.kind()).or_default().push(ById(entry));
        }
        // Many at once, and already in order: much cheaper than one by one.
        state.kinds = kinds.into_iter().map(|(kind, items)| (kind, BTreeSet::from_iter(items))).collect();
        Arc::new(Catalog { state: RwLock::new(state), issued: AtomicU64::new(revision) })
    }

    /// The newest revision that there is something of.
    pub(super) fn revision(&self) -> u64 {
        self.read().revision
    }

    /// A revision nobody had before.
    pub(super) fn next_revision(&self) -> u64 {
        self.issued.fetch_add(1, atomic::Ordering::Relaxed) + 1
    }

    /// Makes sure that revisions go on above `revision`.
    pub(super) fn skip_to(&self, revision: u64) {
        self.issued.fetch_max(revision, atomic::Ordering::Relaxed);
    }

    pub(super) fn get(&self, key: &Key) -> Option<Entry> {
        self.read().kinds.get(&key.kind())?.get(key.id()).map(|item| item.0.clone())
    }

    /// The entries of a kind whose id starts with `prefix`, ordered by id.
    pub(super) fn list_prefix(&self, kind: Kind, prefix: &str) -> Vec<Entry> {
        let state = self.read();
        let Some(items) = state.kinds.get(&kind) else { return Vec::new() };
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let below = items.range::<str, _>(from).take_while(|item| item.0.key.id().starts_with(prefix));
        below.map(|item| item.0.clone()).collect()
    }

    /// Every entry.
    pub(super) fn all(&self) -> Vec<Entry> {
        self.read().kinds.values().flatten().map(|item| item.0.clone()).collect()
    }

    /// When the next entry may expire, in milliseconds since the Unix epoch.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.read().deadlines.keys().next().copied()
    }

    /// Takes the keys whose time is over off the list and returns them.
    pub(super) fn due(&self, now: u64) -> Vec<Key> {
        let mut state = self.write();
        let mut due = Vec::new();
        while let Some(first) = state.deadlines.first_entry() {
            let deadline = *first.key();
            if deadline > now {
                break;
            }
            let keys = first.remove();
            due.extend(keys.into_iter().filter(|key| state.expires(key) == Some(deadline)));
        }
        due
    }

    /// Makes changes true and tells every watcher.
    pub(super) fn apply(&self, changes: Vec<Change>, revision: u64) {
        if changes.is_empty() {
            return;
        }
        let mut state = self.write();
        for change in &changes {
            match change {
                Change::Put(entry) => state.put(entry.clone()),
                Change::Delete(key) => state.delete(key),
            }
        }
        state.revision = state.revision.max(revision);
        let revision = state.revision;
        state.inboxes.retain(|inbox| match inbox.upgrade() {
            Some(inbox) => {
                inbox.add(&changes, revision);
                true
            }
            None => false,
        });
    }

    /// See [`super::Store::watch`].
    pub(super) fn watch(self: &Arc<Self>) -> Watch {
        let inbox = Arc::new(Inbox { waiting: Mutex::new(Waiting::Reset), wake: Notify::new() });
        self.write().inboxes.push(Arc::downgrade(&inbox));
        Watch { catalog: Arc::clone(self), inbox }
    }

    // A panic while the lock was held cannot leave the maps half changed in a way that matters more than going on
    // serving: hence poisoning is ignored.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn put(&mut self, entry: Entry) {
        self.remind(&entry);
        self.kinds.entry(entry.key.kind()).or_default().replace(ById(entry));
    }

    fn remind(&mut self, entry: &Entry) {
        if let Some(deadline) = entry.expires {
            self.deadlines.entry(deadline).or_default().push(entry.key.clone());
        }
    }

    fn delete(&mut self, key: &Key) {
        if let Some(items) = self.kinds.get_mut(&key.kind()) {
            items.remove(key.id());
        }
    }

    fn expires(&self, key: &Key) -> Option<u64> {
        self.kinds.get(&key.kind())?.get(key.id())?.0.expires
    }
}

impl Inbox {
    fn add(&self, new: &[Change], reached: u64) {
        let mut waiting = self.lock();
        match &mut *waiting {
            Waiting::Reset => {}
            Waiting::Nothing => *waiting = Waiting::Changes { changes: new.to_vec(), revision: reached },
            Waiting::Changes { changes, .. } if changes.len() + new.len() > MAX_WAITING => {
                *waiting = Waiting::Reset;
            }
            Waiting::Changes { changes, revision } => {
                changes.extend_from_slice(new);
                *revision = reached;
            }
        }
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Borrow<str> for ById {
    fn borrow(&self) -> &str {
        self.0.key.id()
    }
}

impl Ord for ById {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key.id().cmp(other.0.key.id())
    }
}

impl PartialOrd for ById {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.key.id() == other.0.key.id()
    }
}

impl Eq for ById {}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, modified: u64) -> Entry {
        let key = Key::new(Kind::Route, id);
        Entry { key, value: Arc::from("{}"), created: modified, modified, expires: None }
    }

    #[test]
    fn a_slow_watcher_starts_afresh_instead_of_growing() {
        let catalog = Catalog::new(vec![entry("1", 1)], 1);
        let mut watch = catalog.watch();
        assert!(
            matches!(watch.try_recv(), Some(Event::Reset { entries, revision: 1 }) if entries.len() == 1)
        );
        for revision in 2..=(MAX_WAITING as u64 + 10) {
            catalog.apply(vec![Change::Put(entry("2", revision))], revision);
        }
        let event = watch.try_recv();
        assert!(matches!(event, Some(Event::Reset { entries, .. }) if entries.len() == 2));
        assert!(watch.try_recv().is_none());
    }

    #[test]
    fn changes_add_up_while_the_watcher_is_busy() {
        let catalog = Catalog::new(Vec::new(), 0);
        let mut watch = catalog.watch();
        watch.try_recv();
        catalog.apply(vec![Change::Put(entry("1", 1))], 1);
        catalog.apply(vec![Change::Delete(Key::new(Kind::Route, "1"))], 2);
        let wanted = vec![Change::Put(entry("1", 1)), Change::Delete(Key::new(Kind::Route, "1"))];
        assert_eq!(watch.try_recv(), Some(Event::Changes { changes: wanted, revision: 2 }));
    }

    #[test]
    fn a_dropped_watch_is_forgotten() {
        let catalog = Catalog::new(Vec::new(), 0);
        drop(catalog.watch());
        catalog.apply(vec![Change::Put(entry("1", 1))], 1);
        assert!(catalog.read().inboxes.is_empty());
    }
}
