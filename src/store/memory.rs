//! A store that forgets: for the API-driven standalone mode and for tests.
//!
//! It is the embedded store without a file, so what holds for one holds for the other.

use std::{io, sync::Arc};

use async_trait::async_trait;

use super::{
    Change, Committed, Entry, Outage, Store, StoreError, Watch, Write,
    catalog::Catalog,
    writer::{Held, Journal, Writer},
};
use crate::resource::{Key, Kind};

/// Resources that live as long as the process.
pub struct MemoryStore {
    writer: Writer,
}

struct NoJournal;

impl MemoryStore {
    /// An empty store. Starts a thread, so not before the process has daemonized.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn new() -> io::Result<MemoryStore> {
        Ok(MemoryStore { writer: Writer::start(Catalog::new(Vec::new(), 0), NoJournal)? })
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.writer.catalog().revision()
    }

    /// Makes the whole content exactly this (the last of equal keys wins). Entries whose value stays keep their
    /// revisions; watchers hear of the differences only.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] once the store has stopped.
    pub async fn replace(&self, desired: Vec<(Key, Arc<str>)>) -> Result<(), StoreError> {
        self.writer.replace(desired).await
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        Ok(self.writer.catalog().get(key))
    }

    async fn list_prefix(&self, kind: Kind, prefix: &str) -> Result<Vec<Entry>, StoreError> {
        Ok(self.writer.catalog().list_prefix(kind, prefix))
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        self.writer.commit(writes).await
    }

    async fn next_id(&self) -> Result<u64, StoreError> {
        Ok(self.writer.catalog().next_revision())
    }

    fn watch(&self) -> Watch {
        self.writer.catalog().watch()
    }
}

impl Journal for NoJournal {
    fn append(&mut self, _: &[Change], _: u64) -> Result<(), Outage> {
        Ok(())
    }

    // Never asked: `append` does not fail.
    fn recover(&mut self) -> Result<Held, Outage> {
        Err(Outage::Stopped)
    }

    fn close(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn conforms() {
        conformance::writes(Arc::new(MemoryStore::new().unwrap())).await;
    }

    #[tokio::test]
    async fn replace_keeps_the_revisions_of_what_stays() {
        let store = MemoryStore::new().unwrap();
        let item = |id: &str, value: &str| (Key::new(Kind::Route, id), Arc::<str>::from(value));
        store.replace(vec![item("a", "1"), item("b", "1"), item("c", "1")]).await.unwrap();
        let before = store.list(Kind::Route).await.unwrap();
        store.replace(vec![item("c", "1"), item("b", "2"), item("d", "1")]).await.unwrap();
        let after = store.list(Kind::Route).await.unwrap();
        let ids: Vec<&str> = after.iter().map(|entry| entry.key.id()).collect();
        assert_eq!(ids, ["b", "c", "d"]);
        assert_eq!(after[1], before[2]);
        assert!(after[0].modified > before[1].modified && after[0].created == before[1].created);
    }
}
