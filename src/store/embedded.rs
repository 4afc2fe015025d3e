//! The store in one local file, the default: no other process to run.
//!
//! Reads come from memory, writes go through `writer.rs` into a redb database. An acknowledged write has been
//! synced to the disk. The file is never created over, nor repaired by guessing: a file that is not a sound store of
//! ours is reported and left alone.
//!
//! redb refuses every operation after one I/O error, so after such an error the database is closed, opened again and
//! read anew (`Journal::recover`).
//!
//! A file that cannot be written is read and served; writes are tried again, each with an answer that says why it failed.
//!
//! Only this file and its modules name `redb`.

mod overlay;

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
};

use self::overlay::Overlay;
use super::{
    Change, Committed, Entry, Outage, Store, StoreError, Watch, Write,
    catalog::Catalog,
    now_ms,
    writer::{Held, Journal, Writer},
};
use crate::resource::{Key, Kind};

/// Path → (created, modified, expires or 0, value).
const RESOURCES: TableDefinition<&str, (u64, u64, u64, &str)> = TableDefinition::new("resources");

/// `format` and `revision`.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// What `format` says; a file with another number was written by a version that changed the meaning of the tables.
const FORMAT: u64 = 1;

/// redb's page cache. Small: everything read twice is in the catalogue.
const CACHE_BYTES: usize = 16 << 20;

/// How often a process that waits for the lock looks again.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// How often a failed database is opened again at most: it may mean reading the whole file.
const REOPEN_PAUSE: Duration = Duration::from_millis(200);

/// The embedded store.
pub struct EmbeddedStore {
    writer: Writer,
}

struct RedbJournal {
    path: PathBuf,
    open: Opener,
    state: State,
}

/// Opens the database file; tests put a failing disk in its place.
type Opener = Box<dyn Fn(&Path) -> Result<Database, DatabaseError> + Send>;

enum State {
    Open(Database),
    Down { why: Outage, tried: Option<Instant> },
    Closed,
}

impl EmbeddedStore {
    /// Opens the store in the file `path`, creating it (mode 600) and its directory (mode 700) if there is none.
    /// Waits up to `patience` for a process that is handing the file over. Blocks, and starts a thread: not before
    /// the process has daemonized.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::Corrupt`], [`StoreError::Open`]; none of them changes the file.
    pub fn open(path: &Path, patience: Duration) -> Result<EmbeddedStore, StoreError> {
        Self::open_with(path, patience, Box::new(|path| builder().open(path)))
    }

    /// Finishes the writes that wait and releases the file at once, so that a new process can open it. Later writes
    /// answer [`Outage::HandingOver`]; reads and watches go on with what was there.
    pub async fn close(&self) {
        self.writer.close().await;
    }

    fn open_with(path: &Path, patience: Duration, open: Opener) -> Result<EmbeddedStore, StoreError> {
        create_if_missing(path)?;
        let (held, state) = match unwritable(path) {
            Some(why) => {
                let held = read_only(path).map_err(|error| not_usable(path, error))?;
                tracing::error!(path = %path.display(), error = %why, "store cannot be written; what it holds is served");
                (held, State::Down { why: Outage::ReadOnlyDisk(Arc::new(why)), tried: None })
            }
            None => {
                let database = open_locked(path, patience, &open)?;
                let held = read(&database).map_err(|error| not_usable(path, error))?;
                tighten(path);
                (held, State::Open(database))
            }
        };
        let journal = RedbJournal { path: path.to_owned(), open, state };
        let writer = Writer::start(Catalog::new(held.entries, held.revision), journal)
            .map_err(|error| cannot_open(path, error))?;
        Ok(EmbeddedStore { writer })
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        Ok(self.writer.catalog().get(key))
    }

    async fn list_prefix(&self, kind: Kind, prefix: &str) -> Result<Vec<Entry>, StoreError> {
        Ok(self.writer.catalog().list_prefix(kind, prefix))
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        for write in &writes {
            if let Write::Put { key, .. } = write {
                check_key(key)?;
            }
        }
        self.writer.commit(writes).await
    }

    /// Need not be made durable: the write that uses the number is given a higher revision, and that one is.
    async fn next_id(&self) -> Result<u64, StoreError> {
        Ok(self.writer.catalog().next_revision())
    }

    fn watch(&self) -> Watch {
        self.writer.catalog().watch()
    }
}

impl Journal for RedbJournal {
    fn append(&mut self, changes: &[Change], revision: u64) -> Result<(), Outage> {
        let database = match &self.state {
            State::Open(database) => database,
            State::Down { why, .. } => return Err(why.clone()),
            State::Closed => return Err(Outage::HandingOver),
        };
        write(database, changes, revision).map_err(|error| {
            let why = outage(error);
            self.state = State::Down { why: why.clone(), tried: None };
            why
        })
    }

    fn recover(&mut self) -> Result<Held, Outage> {
        let State::Down { why, tried } = &mut self.state else { return Err(Outage::HandingOver) };
        if tried.is_some_and(|tried| tried.elapsed() < REOPEN_PAUSE) {
            return Err(why.clone());
        }
        let opened = catching(|| (self.open)(&self.path)).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => Outage::TakenOver,
            error => outage(error.into()),
        });
        let opened = opened.and_then(|database| {
            let held = read(&database).map_err(outage)?;
            Ok((database, held))
        });
        match opened {
            Ok((database, held)) => {
                self.state = State::Open(database);
                Ok(held)
            }
            Err(error) => {
                *why = error.clone();
                *tried = Some(Instant::now());
                Err(error)
            }
        }
    }

    fn close(&mut self) {
        if let State::Open(database) = std::mem::replace(&mut self.state, State::Closed)
            && let Err(error) = database.close()
        {
            // Every acknowledged write is in the file all the same; the next open checks it more thoroughly.
            tracing::warn!(error = %error, "store was not closed cleanly");
        }
    }
}

/// What cannot be read back must not be written.
fn check_key(key: &Key) -> Result<(), StoreError> {
    match Key::parse(&key.path()) {
        Ok(read) if read == *key => Ok(()),
        _ => Err(StoreError::BadKey(key.clone())),
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    // A file damaged behind our back is found now, not in the middle of a later write.
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

fn write(database: &Database, changes: &[Change], revision: u64) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut resources = transaction.open_table(RESOURCES)?;
        for change in changes {
            match change {
                Change::Put(entry) => {
                    let expires = entry.expires.unwrap_or(0);
                    let row = (entry.created, entry.modified, expires, entry.value.as_ref());
                    resources.insert(entry.key.path().as_str(), row)?;
                }
                Change::Delete(key) => {
                    resources.remove(key.path().as_str())?;
                }
            }
        }
        transaction.open_table(META)?.insert("revision", revision)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Reads everything that has not expired.
fn read(database: &Database) -> Result<Held, redb::Error> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    let number = |name| meta.get(name).map(|found| found.map_or(0, |found| found.value()));
    let (format, revision) = (number("format")?, number("revision")?);
    if format != FORMAT {
        return Err(redb::Error::Corrupted(format!("its format is {format}, this version knows {FORMAT}")));
    }
    let now = now_ms();
    let mut entries = Vec::new();
    for row in transaction.open_table(RESOURCES)?.iter()? {
        let (path, row) = row?;
        let (created, modified, expires, value) = row.value();
        let Ok(key) = Key::parse(path.value()) else {
            // Written by a version that knows more kinds; it stays where it is.
            tracing::warn!(key = path.value(), "store holds a resource of an unknown kind");
            continue;
        };
        let expires = (expires != 0).then_some(expires);
        if expires.is_none_or(|deadline| deadline > now) {
            entries.push(Entry { key, value: Arc::from(value), created, modified, expires });
        }
    }
    Ok(Held { entries, revision })
}

/// Why the file may be read only.
fn unwritable(path: &Path) -> Option<io::Error> {
    let error = fs::OpenOptions::new().read(true).write(true).open(path).err()?;
    let read_only =
        matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied);
    read_only.then_some(error)
}

/// Reads a file that cannot be written.
fn read_only(path: &Path) -> Result<Held, redb::Error> {
    let file = fs::File::open(path)?;
    if let Err(fs::TryLockError::WouldBlock) = file.try_lock_shared() {
        return Err(redb::Error::DatabaseAlreadyOpen);
    }
    let overlay = Overlay::new(file)?;
    let database = catching(|| builder().create_with_backend(overlay))?;
    read(&database)
}

/// Opens the file, waiting for another process to let go of it.
fn open_locked(path: &Path, patience: Duration, open: &Opener) -> Result<Database, StoreError> {
    let started = Instant::now();
    loop {
        match catching(|| open(path)) {
            Ok(database) => return Ok(database),
            Err(DatabaseError::DatabaseAlreadyOpen) if started.elapsed() < patience => {
                thread::sleep(LOCK_POLL);
            }
            Err(DatabaseError::DatabaseAlreadyOpen) => {
                return Err(StoreError::Locked { path: path.to_owned(), waited: started.elapsed() });
            }
            Err(error) => return Err(not_usable(path, error.into())),
        }
    }
}

/// redb panics on some damaged files it does not expect; to the user that is damage like any other.
fn catching(open: impl FnOnce() -> Result<Database, DatabaseError>) -> Result<Database, DatabaseError> {
    panic::catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|_| {
        let why = "its content makes no sense to the database".to_owned();
        Err(DatabaseError::Storage(StorageError::Corrupted(why)))
    })
}

/// Creates an empty store unless there is a file. It is made under another name first, so that a process killed
/// meanwhile leaves no half-made store behind.
fn create_if_missing(path: &Path) -> Result<(), StoreError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let create = || -> Result<(), redb::Error> {
        if path.try_exists()? {
            return Ok(());
        }
        if !directory.try_exists()? {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".new-{}-{:?}", std::process::id(), thread::current().id()));
        let draft = directory.join(name);
        let made = make(&draft).and_then(|()| Ok(link(&draft, path)?));
        let _ = fs::remove_file(&draft);
        made?;
        fs::File::open(directory)?.sync_all()?;
        Ok(())
    };
    create().map_err(|error| not_usable(path, error))
}

/// A store holds secrets, so nobody else may read it, whatever a copy or a restore made of its mode.
fn tighten(path: &Path) {
    let open_to_others = fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o077 != 0);
    if open_to_others && let Err(error) = fs::set_permissions(path, fs::Permissions::from_mode(0o600)) {
        tracing::warn!(path = %path.display(), %error, "store can be read by other users");
    }
}

/// Makes an empty store.
fn make(path: &Path) -> Result<(), redb::Error> {
    let _ = fs::remove_file(path);
    let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let database = builder().create_with_backend(redb::backends::FileBackend::new(file)?)?;
    let transaction = database.begin_write()?;
    transaction.open_table(RESOURCES)?;
    transaction.open_table(META)?.insert("format", FORMAT)?;
    transaction.commit()?;
    Ok(database.close()?)
}

/// Gives the file its name unless another process was faster.
fn link(draft: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // Some file systems know no second names; there two first starts must not race.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) =>
        {
            fs::rename(draft, path)
        }
        Err(error) => Err(error),
        Ok(()) => Ok(()),
    }
}

fn not_usable(path: &Path, error: redb::Error) -> StoreError {
    let why = match error {
        // redb says "invalid data" of a file that is not its own, and "unexpected end" of one cut short.
        redb::Error::Io(error)
            if !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            return cannot_open(path, error);
        }
        redb::Error::Corrupted(why) => why,
        redb::Error::TableDoesNotExist(_) | redb::Error::TableTypeMismatch { .. } => {
            "it is a database of something else".to_owned()
        }
        error => error.to_string(),
    };
    StoreError::Corrupt { path: path.to_owned(), why }
}

fn cannot_open(path: &Path, error: io::Error) -> StoreError {
    StoreError::Open { path: path.to_owned(), source: Arc::new(error) }
}

fn outage(error: redb::Error) -> Outage {
    match error {
        redb::Error::Io(error) => match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Outage::DiskFull(Arc::new(error))
            }
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                Outage::ReadOnlyDisk(Arc::new(error))
            }
            _ => Outage::Disk(Arc::new(error)),
        },
        error => Outage::Database(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
