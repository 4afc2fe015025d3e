//! What writes mean: from writes and the present state to changes. Pure: nothing is true until the draft's changes
//! were made durable and applied to the catalogue.
//!
//! One draft may collect many transactions; each sees the ones before it, and a refused one leaves no trace.

use std::{collections::HashMap, sync::Arc};

use super::{Change, Committed, Entry, Guard, Put, StoreError, Write, catalog::Catalog};
use crate::resource::{Key, Kind};

/// Changes that are about to be made.
pub(super) struct Draft<'a> {
    catalog: &'a Catalog,
    overlay: Overlay,
    changes: Vec<Change>,
    revision: u64,
}

/// What differs from the catalogue: `None` marks a removed entry.
type Overlay = HashMap<Key, Option<Entry>>;

/// One transaction on top of a draft.
struct Step<'d> {
    draft: &'d Draft<'d>,
    overlay: Overlay,
    changes: Vec<Change>,
    revision: u64,
    now: u64,
}

impl<'a> Draft<'a> {
    pub(super) fn new(catalog: &'a Catalog) -> Self {
        Draft { catalog, overlay: Overlay::new(), changes: Vec::new(), revision: 0 }
    }

    /// What to make true, and the revision reached by it.
    pub(super) fn into_changes(self) -> (Vec<Change>, u64) {
        (self.changes, self.revision)
    }

    /// Adds a transaction; `now` is in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`StoreError::Conflict`]; the draft is then as before.
    pub(super) fn commit(&mut self, writes: Vec<Write>, now: u64) -> Result<Committed, StoreError> {
        let revision = self.catalog.next_revision();
        let mut step = Step { draft: self, overlay: Overlay::new(), changes: Vec::new(), revision, now };
        let mut committed = Committed::default();
        for write in writes {
            step.write(write, &mut committed)?;
        }
        let (overlay, changes) = (step.overlay, step.changes);
        committed.revision = if changes.is_empty() { 0 } else { revision };
        self.accept(overlay, changes, revision);
        Ok(committed)
    }

    /// Makes the state exactly what is desired (the last of equal keys wins). Entries whose value stays keep their
    /// revisions.
    pub(super) fn replace(&mut self, desired: Vec<(Key, Arc<str>)>) {
        let mut wanted: HashMap<&Key, &Arc<str>> = HashMap::with_capacity(desired.len());
        for (key, value) in &desired {
            wanted.insert(key, value);
        }
        let mut found: HashMap<Key, Entry> = HashMap::new();
        let mut changes = Vec::new();
        for entry in self.catalog.all() {
            if !wanted.contains_key(&entry.key) {
                changes.push(Change::Delete(entry.key.clone()));
            }
            found.insert(entry.key.clone(), entry);
        }
        let revision = self.catalog.next_revision();
        for (key, _) in &desired {
            let Some(value) = wanted.remove(key) else { continue };
            let old = found.get(key);
            if old.is_some_and(|old| old.value == *value) {
                continue;
            }
            let created = old.map_or(revision, |old| old.created);
            let value = Arc::clone(value);
            let entry = Entry { key: key.clone(), value, created, modified: revision, expires: None };
            changes.push(Change::Put(entry));
        }
        self.accept(Overlay::new(), changes, revision);
    }

    /// Makes the state what a journal was found to hold, revisions included.
    pub(super) fn restore(&mut self, entries: Vec<Entry>, revision: u64) {
        let mut known: HashMap<Key, Entry> =
            self.catalog.all().into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        let mut changes = Vec::new();
        for entry in entries {
            if known.remove(&entry.key).as_ref() != Some(&entry) {
                changes.push(Change::Put(entry));
            }
        }
        changes.extend(known.into_keys().map(Change::Delete));
        self.accept(Overlay::new(), changes, revision);
    }

    fn accept(&mut self, overlay: Overlay, changes: Vec<Change>, revision: u64) {
        if changes.is_empty() {
            return;
        }
        self.overlay.extend(overlay);
        self.changes.extend(changes);
        self.revision = revision;
    }

    fn get(&self, key: &Key) -> Option<Entry> {
        match self.overlay.get(key) {
            Some(entry) => entry.clone(),
            None => self.catalog.get(key),
        }
    }
}

impl Step<'_> {
    fn write(&mut self, write: Write, committed: &mut Committed) -> Result<(), StoreError> {
        match write {
            Write::Put { key, value, guard, ttl } => {
                let old = self.guarded(&key, guard)?;
                let expires = ttl.map(|ttl| {
                    let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                    self.now.saturating_add(ttl)
                });
                let created = old.as_ref().map_or(self.revision, |old| old.created);
                let entry = Entry { key, value, created, modified: self.revision, expires };
                self.overlay.insert(entry.key.clone(), Some(entry.clone()));
                self.changes.push(Change::Put(entry.clone()));
                committed.puts.push(Put { entry, created: old.is_none() });
            }
            Write::Delete { key, guard } => {
                if let Some(old) = self.guarded(&key, guard)? {
                    self.delete(old, committed);
                }
            }
            Write::DeletePrefix { kind, prefix } => {
                for key in self.keys_below(kind, &prefix) {
                    if let Some(old) = self.get(&key) {
                        self.delete(old, committed);
                    }
                }
            }
        }
        Ok(())
    }

    fn delete(&mut self, old: Entry, committed: &mut Committed) {
        self.overlay.insert(old.key.clone(), None);
        self.changes.push(Change::Delete(old.key.clone()));
        committed.deleted.push(old);
    }

    /// The entry under a key, if the guard holds.
    fn guarded(&self, key: &Key, guard: Guard) -> Result<Option<Entry>, StoreError> {
        let found = self.get(key);
        let revision = found.as_ref().map(|entry| entry.modified);
        let holds = match guard {
            Guard::Any => true,
            Guard::Absent => revision.is_none(),
            Guard::Revision(wanted) => revision == Some(wanted),
        };
        if holds { Ok(found) } else { Err(StoreError::Conflict { key: key.clone(), found: revision }) }
    }

    /// May name removed keys, and the same key twice.
    fn keys_below(&self, kind: Kind, prefix: &str) -> Vec<Key> {
        let stored = self.draft.catalog.list_prefix(kind, prefix).into_iter().map(|entry| entry.key);
        let drafted = self.draft.overlay.keys().chain(self.overlay.keys());
        let drafted = drafted.filter(|key| key.kind() == kind && key.id().starts_with(prefix)).cloned();
        stored.chain(drafted).collect()
    }

    fn get(&self, key: &Key) -> Option<Entry> {
        match self.overlay.get(key) {
            Some(entry) => entry.clone(),
            None => self.draft.get(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// What a store is: entries by key, each with its created and modified revision.
    type Model = BTreeMap<Key, (Arc<str>, u64, u64)>;

    fn any_key() -> impl Strategy<Value = Key> {
        (prop_oneof![Just(Kind::Route), Just(Kind::Service)], "[ab]{1,2}")
            .prop_map(|(kind, id)| Key::new(kind, id))
    }

    fn any_guard() -> impl Strategy<Value = Guard> {
        prop_oneof![4 => Just(Guard::Any), 1 => Just(Guard::Absent), 1 => (1..9_u64).prop_map(Guard::Revision)]
    }

    fn any_write() -> impl Strategy<Value = Write> {
        let put = (any_key(), "[0-9]", any_guard()).prop_map(|(key, value, guard)| Write::Put {
            key,
            value: Arc::from(value),
            guard,
            ttl: None,
        });
        let delete = (any_key(), any_guard()).prop_map(|(key, guard)| Write::Delete { key, guard });
        let below =
            any_key().prop_map(|key| Write::DeletePrefix { kind: key.kind(), prefix: key.id().into() });
        prop_oneof![4 => put, 2 => delete, 1 => below]
    }

    fn carry_out(model: &mut Model, write: &Write, revision: u64) -> Result<(), ()> {
        let holds = |model: &Model, key: &Key, guard: &Guard| match (guard, model.get(key)) {
            (Guard::Any, _) | (Guard::Absent, None) => Ok(()),
            (Guard::Revision(wanted), Some((_, _, modified))) if wanted == modified => Ok(()),
            _ => Err(()),
        };
        match write {
            Write::Put { key, value, guard, .. } => {
                holds(model, key, guard)?;
                let created = model.get(key).map_or(revision, |old| old.1);
                model.insert(key.clone(), (Arc::clone(value), created, revision));
            }
            Write::Delete { key, guard } => {
                holds(model, key, guard)?;
                model.remove(key);
            }
            Write::DeletePrefix { kind, prefix } => {
                model.retain(|key, _| key.kind() != *kind || !key.id().starts_with(prefix.as_str()));
            }
        }
        Ok(())
    }

    fn state(catalog: &Catalog) -> Model {
        let entries = catalog.all().into_iter();
        entries.map(|entry| (entry.key, (entry.value, entry.created, entry.modified))).collect()
    }

    proptest! {
        #[test]
        fn groups_of_transactions_do_what_the_writes_say(
            groups in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(any_write(), 0..4), 0..4),
                0..6,
            ),
        ) {
            let catalog = Catalog::new(Vec::new(), 0);
            let mut model = Model::new();
            let mut revision = 0;
            for group in groups {
                let mut draft = Draft::new(&catalog);
                for writes in group {
                    revision += 1;
                    let mut next = model.clone();
                    let wanted = writes.iter().try_for_each(|write| carry_out(&mut next, write, revision));
                    let found = draft.commit(writes, 0);
                    prop_assert_eq!(found.is_ok(), wanted.is_ok());
                    if wanted.is_ok() {
                        model = next;
                    }
                }
                let (changes, reached) = draft.into_changes();
                catalog.apply(changes, reached);
                prop_assert_eq!(&state(&catalog), &model);
            }
        }

        #[test]
        fn replacing_gives_what_was_desired_and_touches_nothing_else(
            before in prop::collection::vec((any_key(), "[01]"), 0..8),
            after in prop::collection::vec((any_key(), "[01]"), 0..8),
        ) {
            let catalog = Catalog::new(Vec::new(), 0);
            let mut old = Model::new();
            for desired in [before, after] {
                let desired: Vec<(Key, Arc<str>)> =
                    desired.into_iter().map(|(key, value)| (key, Arc::from(value))).collect();
                let mut draft = Draft::new(&catalog);
                draft.replace(desired.clone());
                let (changes, revision) = draft.into_changes();
                catalog.apply(changes, revision);
                let new = state(&catalog);
                let values: BTreeMap<&Key, &Arc<str>> = new.iter().map(|(key, item)| (key, &item.0)).collect();
                prop_assert_eq!(values, desired.iter().map(|(key, value)| (key, value)).collect());
                for (key, item) in &new {
                    if old.get(key).is_some_and(|before| before.0 == item.0) {
                        prop_assert_eq!(old.get(key), Some(item));
                    }
                }
                old = new;
            }
        }
    }
}
