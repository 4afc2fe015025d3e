use std::{
    io::Write as _,
    ops::Bound,
    os::unix::fs::MetadataExt,
    sync::atomic::{AtomicU8, Ordering},
};

use redb::{BackendError, StorageBackend, backends::FileBackend};

use super::*;
use crate::store::{Event, Guard, conformance};

const NOT_LONG: Duration = Duration::from_millis(50);

struct Fixture {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data").join("resources.redb");
    Fixture { _dir: dir, path }
}

impl Fixture {
    fn open(&self) -> EmbeddedStore {
        EmbeddedStore::open(&self.path, NOT_LONG).unwrap()
    }
}

fn route(id: &str) -> Key {
    Key::new(Kind::Route, id)
}

async fn put(store: &EmbeddedStore, id: &str, value: &str) -> Result<Entry, StoreError> {
    Ok(store.put(&route(id), Arc::from(value), Guard::Any, None).await?.entry)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    conformance::writes(Arc::new(fixture().open())).await;
}

#[tokio::test]
async fn what_was_written_is_there_after_opening_again() {
    let fixture = fixture();
    let store = fixture.open();
    let kept = put(&store, "kept", r#"{"uri":"/é"}"#).await.unwrap();
    let changed = put(&store, "changed", "1").await.unwrap();
    let changed_again = put(&store, "changed", "2").await.unwrap();
    put(&store, "gone", "{}").await.unwrap();
    store.delete(&route("gone"), Guard::Any).await.unwrap();
    let credential = Key::new(Kind::Credential, "jack/credentials/c1");
    store.put(&credential, Arc::from("{}"), Guard::Any, None).await.unwrap();
    let reached = store.next_id().await.unwrap();
    drop(store);

    let store = fixture.open();
    assert_eq!(store.list(Kind::Route).await.unwrap(), [changed_again.clone(), kept]);
    assert_eq!(changed_again.created, changed.created);
    assert!(store.get(&credential).await.unwrap().is_some());
    // The number handed out last was not used, so it may come again, but no used one does.
    let next = put(&store, "next", "{}").await.unwrap();
    assert!(next.created >= reached);
}

#[tokio::test]
async fn a_key_that_could_not_be_read_back_is_refused() {
    let store = fixture().open();
    for (kind, id) in [(Kind::Route, "a/b"), (Kind::Route, ""), (Kind::Secret, "1"), (Kind::Credential, "c1")]
    {
        let outcome = store.put(&Key::new(kind, id), Arc::from("{}"), Guard::Any, None).await;
        assert!(matches!(outcome, Err(StoreError::BadKey(_))), "{kind:?} {id}");
    }
}

#[tokio::test]
async fn time_limits_survive_the_process() {
    let fixture = fixture();
    let store = fixture.open();
    for (id, ms) in [("short", 200), ("medium", 1_000), ("long", 3_600_000)] {
        let ttl = Some(Duration::from_millis(ms));
        store.put(&route(id), Arc::from("{}"), Guard::Any, ttl).await.unwrap();
    }
    drop(store);
    thread::sleep(Duration::from_millis(210));

    let store = fixture.open();
    assert_eq!(store.get(&route("short")).await.unwrap(), None);
    assert!(store.get(&route("long")).await.unwrap().is_some());
    let mut watch = store.watch();
    loop {
        match watch.recv().await {
            Event::Changes { changes, .. } => {
                assert_eq!(changes, [Change::Delete(route("medium"))]);
                break;
            }
            // Slow machine: it has gone already.
            Event::Reset { entries, .. } if entries.len() == 1 => break,
            Event::Reset { .. } => {}
        }
    }
}

#[tokio::test]
async fn file_and_directory_are_private() {
    let fixture = fixture();
    drop(fixture.open());
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&fixture.path), 0o600);
    assert_eq!(mode(fixture.path.parent().unwrap()), 0o700);
    assert_eq!(fs::read_dir(fixture.path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    fs::set_permissions(&fixture.path, fs::Permissions::from_mode(0o644)).unwrap();
    drop(fixture.open());
    assert_eq!(mode(&fixture.path), 0o600);
}

#[test]
fn a_file_that_is_no_store_is_named_and_left_alone() {
    #[track_caller]
    fn check(content: &[u8]) {
        let fixture = fixture();
        fs::create_dir_all(fixture.path.parent().unwrap()).unwrap();
        fs::write(&fixture.path, content).unwrap();
        let error = EmbeddedStore::open(&fixture.path, NOT_LONG).err().expect("refused");
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        assert!(error.to_string().contains("resources.redb"), "{error}");
        assert_eq!(fs::read(&fixture.path).unwrap(), content);
    }
    check(b"");
    check(b"routes: []\n#END\n");
    check(&[0; 4096]);
    check(&[0xff; 100_000]);
    check(b"redb\x1a\x0a\xa9\x0d\x0a");
    check(&[b"redb\x1a\x0a\xa9\x0d\x0a".as_slice(), &[7; 10_000]].concat());
}

#[test]
fn a_database_of_something_else_is_refused() {
    let fixture = fixture();
    fs::create_dir_all(fixture.path.parent().unwrap()).unwrap();
    let database = Database::create(&fixture.path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(TableDefinition::<u64, u64>::new("meta")).unwrap().insert(1, 1).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = EmbeddedStore::open(&fixture.path, NOT_LONG).err().expect("refused");
    assert!(error.to_string().contains("something else"), "{error}");
}

#[tokio::test]
async fn a_store_of_a_later_format_is_refused() {
    let fixture = fixture();
    drop(fixture.open());
    let database = Database::create(&fixture.path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert("format", FORMAT + 1).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = EmbeddedStore::open(&fixture.path, NOT_LONG).err().expect("refused");
    assert!(error.to_string().contains("its format is 2, this version knows 1"), "{error}");
}

#[tokio::test]
async fn damage_is_found_at_the_opening_or_does_no_harm() {
    let fixture = fixture();
    let store = fixture.open();
    for id in 0..200 {
        put(&store, &id.to_string(), &format!(r#"{{"uri":"/{id}"}}"#)).await.unwrap();
    }
    let sound = store.list(Kind::Route).await.unwrap();
    drop(store);
    let content = fs::read(&fixture.path).unwrap();
    let mut refused = 0;
    for step in 0..40 {
        let at = step * content.len() / 40 + 13;
        let mut damaged = content.clone();
        damaged[at..].iter_mut().take(64).for_each(|byte| *byte = !*byte);
        fs::write(&fixture.path, &damaged).unwrap();
        match EmbeddedStore::open(&fixture.path, NOT_LONG) {
            Ok(store) => assert_eq!(store.list(Kind::Route).await.unwrap(), sound, "damage at {at}"),
            Err(StoreError::Corrupt { .. }) => refused += 1,
            Err(error) => panic!("damage at {at}: {error}"),
        }
    }
    assert!(refused > 0);
    fs::write(&fixture.path, &content[..content.len() / 2]).unwrap();
    assert!(matches!(EmbeddedStore::open(&fixture.path, NOT_LONG), Err(StoreError::Corrupt { .. })));
}

#[test]
fn an_unusable_place_is_named() {
    let fixture = fixture();
    fs::create_dir_all(&fixture.path).unwrap();
    let error = EmbeddedStore::open(&fixture.path, NOT_LONG).err().expect("refused");
    assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
    let below_a_file = fixture._dir.path().join("file");
    fs::write(&below_a_file, "").unwrap();
    let error = EmbeddedStore::open(&below_a_file.join("x.redb"), NOT_LONG).err().expect("refused");
    assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
}

#[tokio::test]
async fn a_locked_file_is_waited_for_and_then_reported() {
    let fixture = fixture();
    let store = fixture.open();
    let error = EmbeddedStore::open(&fixture.path, NOT_LONG).err().expect("refused");
    assert!(matches!(&error, StoreError::Locked { waited, .. } if *waited >= NOT_LONG), "{error:?}");

    let path = fixture.path.clone();
    let heir = thread::spawn(move || EmbeddedStore::open(&path, Duration::from_secs(20)).unwrap());
    let last = put(&store, "last", "{}").await.unwrap();
    store.close().await;
    let heir = heir.join().unwrap();
    assert_eq!(heir.list(Kind::Route).await.unwrap(), [last]);

    let error = put(&store, "late", "{}").await.unwrap_err();
    assert!(error.to_string().ends_with("handing over"), "{error}");
    assert!(matches!(error, StoreError::Unavailable(Outage::HandingOver)));
    assert_eq!(store.list(Kind::Route).await.unwrap().len(), 1, "reads go on");
    put(&heir, "late", "{}").await.unwrap();
}

#[tokio::test]
async fn a_closed_file_is_free_at_once() {
    let fixture = fixture();
    let store = fixture.open();
    store.close().await;
    store.close().await;
    drop(EmbeddedStore::open(&fixture.path, Duration::ZERO).unwrap());
}

/// A disk that fails on demand.
#[derive(Debug)]
struct FailingDisk {
    file: FileBackend,
    fault: Arc<AtomicU8>,
}

const SOUND: u8 = 0;
const FULL: u8 = 1;
const READ_ONLY: u8 = 2;
/// Writes arrive, but the sync that should confirm them fails.
const UNSURE: u8 = 3;

impl FailingDisk {
    fn check(&self) -> io::Result<()> {
        match self.fault.load(Ordering::SeqCst) {
            FULL => Err(io::ErrorKind::StorageFull.into()),
            READ_ONLY => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            _ => Ok(()),
        }
    }
}

impl StorageBackend for FailingDisk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        self.file.sync_data()?;
        if self.fault.load(Ordering::SeqCst) == UNSURE {
            return Err(io::Error::other("cable pulled"));
        }
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.file.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }
    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }
    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }
    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

fn open_on_failing_disk(fixture: &Fixture) -> (EmbeddedStore, Arc<AtomicU8>) {
    let fault = Arc::new(AtomicU8::new(SOUND));
    let disk_fault = Arc::clone(&fault);
    let open = move |path: &Path| {
        let file = FileBackend::new(fs::File::options().read(true).write(true).open(path)?)?;
        builder().create_with_backend(FailingDisk { file, fault: Arc::clone(&disk_fault) })
    };
    (EmbeddedStore::open_with(&fixture.path, NOT_LONG, Box::new(open)).unwrap(), fault)
}

/// Writes until it works again.
async fn put_when_sound(store: &EmbeddedStore, id: &str) -> Entry {
    let started = Instant::now();
    loop {
        match put(store, id, "{}").await {
            Ok(entry) => return entry,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(20), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_failing_disk_stops_writes_only_and_not_for_ever() {
    for (fault, wanted) in [(FULL, "no space left"), (READ_ONLY, "read-only"), (UNSURE, "cable pulled")] {
        let fixture = fixture();
        let (store, disk) = open_on_failing_disk(&fixture);
        let before = put(&store, "before", "{}").await.unwrap();
        disk.store(fault, Ordering::SeqCst);
        for _ in 0..3 {
            let error = put(&store, "lost", "{}").await.unwrap_err();
            assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
            assert!(error.to_string().contains(wanted), "{error}");
        }
        assert_eq!(store.get(&before.key).await.unwrap(), Some(before.clone()), "reads go on");
        disk.store(SOUND, Ordering::SeqCst);
        let after = put_when_sound(&store, "after").await;
        assert!(after.modified > before.modified);

        // What memory says is what the file says, whichever way the failed write went.
        let in_memory = store.list(Kind::Route).await.unwrap();
        drop(store);
        assert_eq!(fixture.open().list(Kind::Route).await.unwrap(), in_memory);
    }
}

#[tokio::test]
async fn a_write_that_failed_but_arrived_is_told_to_watchers() {
    let fixture = fixture();
    let (store, disk) = open_on_failing_disk(&fixture);
    let mut watch = store.watch();
    watch.recv().await;
    disk.store(UNSURE, Ordering::SeqCst);
    put(&store, "unsure", "{}").await.unwrap_err();
    disk.store(SOUND, Ordering::SeqCst);
    put_when_sound(&store, "after").await;
    let mut told = Vec::new();
    while let Some(Event::Changes { changes, .. }) = watch.try_recv() {
        told.extend(changes.into_iter().filter_map(|change| match change {
            Change::Put(entry) => Some(entry),
            Change::Delete(_) => None,
        }));
    }
    told.sort_by(|one, other| one.key.id().cmp(other.key.id()));
    assert_eq!(told, store.list(Kind::Route).await.unwrap());
}

#[tokio::test]
async fn entries_expire_while_the_disk_fails() {
    let fixture = fixture();
    let (store, disk) = open_on_failing_disk(&fixture);
    let mut watch = store.watch();
    watch.recv().await;
    store
        .put(&route("limited"), Arc::from("{}"), Guard::Any, Some(Duration::from_millis(100)))
        .await
        .unwrap();
    disk.store(FULL, Ordering::SeqCst);
    let gone = |event| matches!(event, Event::Changes { changes, .. } if changes == [Change::Delete(route("limited"))]);
    while !gone(tokio::time::timeout(Duration::from_secs(60), watch.recv()).await.unwrap()) {}
    disk.store(SOUND, Ordering::SeqCst);
    put_when_sound(&store, "after").await;
    assert_eq!(store.get(&route("limited")).await.unwrap(), None);
}

#[tokio::test]
async fn a_process_that_died_leaves_every_acknowledged_write() {
    let fixture = fixture();
    let store = fixture.open();
    let mut acknowledged = Vec::new();
    for id in 0..20 {
        acknowledged.push(put(&store, &format!("{id:02}"), "{}").await.unwrap());
    }
    // What a killed process leaves behind: the file as it is while the store is open.
    let copy = fixture.path.with_extension("copy");
    let mut file = fs::File::create(&copy).unwrap();
    file.write_all(&fs::read(&fixture.path).unwrap()).unwrap();
    let heir = EmbeddedStore::open(&copy, NOT_LONG).unwrap();
    assert_eq!(heir.list(Kind::Route).await.unwrap(), acknowledged);
}
