//! Where resources live: one trait, several stores.
//!
//! A store keeps APISIX JSON under APISIX keys (`/apisix/routes/1`) and tells watchers what changed. It never looks
//! into a value: whether a resource makes sense is ruled on by the Admin API before the write and by the control
//! loop after it.
//!
//! Invariants every store keeps, and the conformance suite checks:
//! - what a write answered is what the next read sees, and the watchers were told before the writer was;
//! - revisions only grow, and an entry's `modified` changes only when its value does;
//! - a failed write leaves no trace.
//!
//! Start reading at [`Store`], then `draft.rs` (what a write means) and `writer.rs` (when it becomes true).

mod catalog;
mod draft;
mod embedded;
mod file;
mod memory;
pub mod standalone;
mod writer;

#[cfg(test)]
mod conformance;

pub use catalog::Watch;
pub use embedded::EmbeddedStore;
pub use file::{EnabledPlugin, FileFormat, FileStore, Parse, Substitute};
pub use memory::MemoryStore;

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::Value;

use crate::resource::{Key, Kind};

/// One stored resource.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it lies.
    pub key: Key,
    /// The resource as compact JSON text, exactly as it was written.
    pub value: Arc<str>,
    /// The revision that created it (etcd's create revision, APISIX's `createdIndex`).
    pub created: u64,
    /// The revision that last changed it (etcd's mod revision, APISIX's `modifiedIndex`).
    pub modified: u64,
    /// When it ceases to exist, in milliseconds since the Unix epoch; `None` for ever.
    pub expires: Option<u64>,
}

/// Values may hold credentials, so only their length is shown.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key)
            .field("value_bytes", &self.value.len())
            .field("created", &self.created)
            .field("modified", &self.modified)
            .field("expires", &self.expires)
            .finish()
    }
}

/// What must hold for a write to be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Nothing: the last writer wins.
    Any,
    /// The key does not exist.
    Absent,
    /// The entry was last modified by exactly this revision.
    Revision(u64),
}

/// One write of a transaction.
#[derive(Clone)]
pub enum Write {
    /// Creates or replaces an entry.
    Put {
        /// Where.
        key: Key,
        /// Compact JSON text, see [`compact`].
        value: Arc<str>,
        /// What must hold.
        guard: Guard,
        /// How long the entry lives; `None` for ever, also when the replaced one had a limit.
        ttl: Option<Duration>,
    },
    /// Removes an entry; a missing one is no error unless the guard says so.
    Delete {
        /// Which.
        key: Key,
        /// What must hold.
        guard: Guard,
    },
    /// Removes every entry of a kind whose id starts with the prefix.
    DeletePrefix {
        /// Of which kind.
        kind: Kind,
        /// The beginning of the ids, such as `jack/credentials/`.
        prefix: String,
    },
}

/// As [`Entry`], without the value.
impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Write::Put { key, value, guard, ttl } => {
                write!(f, "Put({key}, {} bytes, {guard:?}, {ttl:?})", value.len())
            }
            Write::Delete { key, guard } => write!(f, "Delete({key}, {guard:?})"),
            Write::DeletePrefix { kind, prefix } => write!(f, "DeletePrefix({kind:?}, {prefix:?})"),
        }
    }
}

impl Write {
    /// The transaction that removes a consumer together with its credentials
    /// (APISIX: admin/consumers.lua removes the directory below the consumer too).
    pub fn remove_consumer(key: Key, guard: Guard) -> Vec<Write> {
        let prefix = format!("{}/credentials/", key.id());
        vec![Write::Delete { key, guard }, Write::DeletePrefix { kind: Kind::Credential, prefix }]
    }
}

/// What a put did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// The entry as it is now.
    pub entry: Entry,
    /// Whether the key did not exist before.
    pub created: bool,
}

/// What a transaction did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// One per [`Write::Put`], in order.
    pub puts: Vec<Put>,
    /// Every entry that was removed.
    pub deleted: Vec<Entry>,
    /// The revision the store is at because of it; 0 when nothing changed.
    pub revision: u64,
}

/// One thing that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The entry is new or has a new value.
    Put(Entry),
    /// The entry is gone.
    Delete(Key),
}

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Everything there is; what was known before is void. Always the first event.
    Reset {
        /// Every entry.
        entries: Vec<Entry>,
        /// The revision they stand at.
        revision: u64,
    },
    /// What changed since the event before, in order.
    Changes {
        /// Never empty; the same key may occur more than once, the last occurrence counts.
        changes: Vec<Change>,
        /// The revision reached.
        revision: u64,
    },
}

/// Why a store cannot write at the moment. Reads go on from memory.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Outage {
    /// The store gave up its file for a new process.
    #[error("handing over")]
    HandingOver,
    /// Another process took the file while this one could not use it.
    #[error("another process has taken over the store")]
    TakenOver,
    /// No space, no quota, or over the file size limit.
    #[error("no space left for the store: {0}")]
    DiskFull(Arc<io::Error>),
    /// The file system, or the file, cannot be written.
    #[error("the store's disk is read-only: {0}")]
    ReadOnlyDisk(Arc<io::Error>),
    /// Any other failure of the disk.
    #[error("the store's disk failed: {0}")]
    Disk(Arc<io::Error>),
    /// The database refused for a reason that is not the disk's.
    #[error("the store's database failed: {0}")]
    Database(String),
    /// The thread that writes is gone.
    #[error("the store has stopped")]
    Stopped,
}

/// Why a store operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be written at all; the text says by what it is fed.
    #[error("the store is read-only: {0}")]
    ReadOnly(&'static str),
    /// The guard did not hold.
    #[error("{key} was changed by somebody else")]
    Conflict {
        /// The contested key.
        key: Key,
        /// The revision found there, `None` if there is no entry.
        found: Option<u64>,
    },
    /// The id has a form that would not be found again, such as `a/b` for a route.
    #[error("{0} cannot be the key of a resource")]
    BadKey(Key),
    /// Writing is impossible for now; nothing was changed.
    #[error("the store cannot write: {0}")]
    Unavailable(#[source] Outage),
    /// The file is not a store of ours, or is damaged. It was left as it was.
    #[error("{} is not a usable store: {why}; it was left untouched", .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another process uses the file and did not give it up in time.
    #[error("{} is in use by another process (waited {:.1} s)", .path.display(), .waited.as_secs_f32())]
    Locked {
        /// The file.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
    /// The file or its directory cannot be opened or created.
    #[error("cannot open {}: {source}", .path.display())]
    Open {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
}

/// A place where resources live.
#[async_trait]
pub trait Store: Send + Sync {
    /// The entry under a key.
    ///
    /// # Errors
    /// Only stores that must ask somebody else fail here; local ones answer from memory.
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError>;

    /// Every entry of a kind, ordered by id. [`Kind::Credential`] lists those of all consumers.
    ///
    /// # Errors
    /// As [`Store::get`].
    async fn list(&self, kind: Kind) -> Result<Vec<Entry>, StoreError> {
        self.list_prefix(kind, "").await
    }

    /// Every entry of a kind whose id starts with a prefix, ordered by id: `jack/credentials/` gives the
    /// credentials of one consumer.
    ///
    /// # Errors
    /// As [`Store::get`].
    async fn list_prefix(&self, kind: Kind, prefix: &str) -> Result<Vec<Entry>, StoreError>;

    /// Carries out all writes, or none. They share one revision and one event.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a guard does not hold, [`StoreError::Unavailable`] when the result cannot be
    /// made durable, [`StoreError::ReadOnly`].
    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError>;

    /// A number no entry was created with: what APISIX takes, padded to 20 digits, as the id of a POST
    /// (core/etcd.lua `push`).
    ///
    /// # Errors
    /// As [`Store::commit`].
    async fn next_id(&self) -> Result<u64, StoreError>;

    /// Follows the store from now on. The first event is a [`Event::Reset`]; the watch never ends.
    fn watch(&self) -> Watch;

    /// Creates or replaces one entry.
    ///
    /// # Errors
    /// As [`Store::commit`].
    async fn put(
        &self,
        key: &Key,
        value: Arc<str>,
        guard: Guard,
        ttl: Option<Duration>,
    ) -> Result<Put, StoreError> {
        let write = Write::Put { key: key.clone(), value, guard, ttl };
        let committed = self.commit(vec![write]).await?;
        committed.puts.into_iter().next().ok_or(StoreError::Unavailable(Outage::Stopped))
    }

    /// Removes one entry and returns it, `None` if there was none.
    ///
    /// # Errors
    /// As [`Store::commit`].
    async fn delete(&self, key: &Key, guard: Guard) -> Result<Option<Entry>, StoreError> {
        let committed = self.commit(vec![Write::Delete { key: key.clone(), guard }]).await?;
        Ok(committed.deleted.into_iter().next())
    }
}

/// The text under which a resource is stored.
pub fn compact(value: &Value) -> Arc<str> {
    Arc::from(value.to_string())
}

/// Milliseconds since the Unix epoch, the clock of [`Entry::expires`].
fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
