//! A map that is cheap to clone and to change a little: copy-on-write, cut into shards.
//!
//! A clone copies one pointer; a change to the clone copies the shard it touches (a 256th of the map). Readers
//! of the old map never notice. Lookups cost one hash and one probe, without a lock.

use std::{collections::HashMap, sync::Arc};

use ahash::RandomState;

const SHARDS: usize = 256;

type Shard<V> = Arc<HashMap<Arc<str>, V, RandomState>>;

/// See the module.
#[derive(Clone)]
pub struct ShardMap<V> {
    hasher: RandomState,
    shards: Arc<[Shard<V>]>,
    len: usize,
}

impl<V: Clone> ShardMap<V> {
    /// An empty map.
    pub fn new() -> Self {
        let hasher = RandomState::new();
        let empty: Shard<V> = Arc::new(HashMap::with_hasher(hasher.clone()));
        Self { hasher, shards: vec![empty; SHARDS].into(), len: 0 }
    }

    /// The value under a key.
    pub fn get(&self, key: &str) -> Option<&V> {
        self.shards[self.shard(key)].get(key)
    }

    /// Puts a value under a key; gives back the one it replaces.
    pub fn insert(&mut self, key: Arc<str>, value: V) -> Option<V> {
        let at = self.shard(&key);
        let old = Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[at]).insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: &str) -> Option<V> {
        let at = self.shard(key);
        if !self.shards[at].contains_key(key) {
            return None;
        }
        let old = Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[at]).remove(key);
        self.len -= usize::from(old.is_some());
        old
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    fn shard(&self, key: &str) -> usize {
        // The high bits: the probe inside a shard uses the low ones.
        (self.hasher.hash_one(key) >> 56) as usize % SHARDS
    }
}

impl<V: Clone> Default for ShardMap<V> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_map_and_clones_stay_as_they_were(steps in prop::collection::vec((0u8..40, any::<Option<u16>>()), 0..200)) {
            let (mut map, mut model) = (ShardMap::new(), BTreeMap::new());
            for (key, value) in steps {
                let (before, before_model) = (map.clone(), model.clone());
                let key: Arc<str> = key.to_string().into();
                match value {
                    Some(value) => prop_assert_eq!(map.insert(key.clone(), value), model.insert(key, value)),
                    None => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                }
                prop_assert_eq!(map.len(), model.len());
                prop_assert_eq!(collect(&map), model.clone());
                prop_assert_eq!(collect(&before), before_model);
            }
        }
    }

    fn collect(map: &ShardMap<u16>) -> BTreeMap<Arc<str>, u16> {
        map.iter().map(|(key, value)| (key.clone(), *value)).collect()
    }
}
