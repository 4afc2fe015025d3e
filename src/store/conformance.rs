//! What every store must do, run against each of them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{Change, Committed, Event, Guard, Put, Store, StoreError, Watch, Write};
use crate::resource::{Key, Kind};

/// More than any machine needs to tell a watcher.
const PATIENCE: Duration = Duration::from_secs(20);

fn route(id: &str) -> Key {
    Key::new(Kind::Route, id)
}

fn text(text: &str) -> Arc<str> {
    Arc::from(text)
}

fn put(key: &Key, value: &str, guard: Guard) -> Write {
    Write::Put { key: key.clone(), value: text(value), guard, ttl: None }
}

async fn put_any(store: &dyn Store, key: &Key, value: &str) -> Put {
    store.put(key, text(value), Guard::Any, None).await.unwrap()
}

async fn next(watch: &mut Watch) -> Event {
    tokio::time::timeout(PATIENCE, watch.recv()).await.expect("an event in time")
}

/// Everything a store that can be written must do. The store must be empty.
pub(super) async fn writes(store: Arc<dyn Store>) {
    puts_and_deletes(&*store).await;
    guards(&*store).await;
    transactions(&*store).await;
    consumers_go_with_their_credentials(&*store).await;
    next_ids(&*store).await;
    watchers_hear_in_order(&*store).await;
    time_limits(&*store).await;
    many_writers(store).await;
}

/// What any store must do that holds the routes b and a, the consumer jack with the credential c1, and the
/// credential c2 of jacky.
pub(super) async fn reads(store: &dyn Store) {
    let ids = |entries: Vec<super::Entry>| -> Vec<String> {
        entries.iter().map(|entry| entry.key.id().to_string()).collect()
    };
    assert_eq!(ids(store.list(Kind::Route).await.unwrap()), ["a", "b"]);
    assert_eq!(ids(store.list(Kind::Consumer).await.unwrap()), ["jack"]);
    let all = ids(store.list(Kind::Credential).await.unwrap());
    assert_eq!(all, ["jack/credentials/c1", "jacky/credentials/c2"]);
    let jacks = store.list_prefix(Kind::Credential, "jack/credentials/").await.unwrap();
    assert_eq!(ids(jacks), ["jack/credentials/c1"]);
    assert!(store.list(Kind::Service).await.unwrap().is_empty());
    assert!(store.get(&route("c")).await.unwrap().is_none());
    let entry = store.get(&route("a")).await.unwrap().unwrap();
    assert!(entry.created > 0 && entry.created <= entry.modified);
    let Event::Reset { entries, revision } = next(&mut store.watch()).await else {
        panic!("the first event is a reset")
    };
    assert!(entries.len() == 5 && entries.contains(&entry) && revision >= entry.modified);
}

async fn puts_and_deletes(store: &dyn Store) {
    let key = route("put");
    let first = put_any(store, &key, "1").await;
    assert!(first.created && first.entry.created == first.entry.modified);
    assert_eq!(store.get(&key).await.unwrap().as_ref(), Some(&first.entry));
    let second = put_any(store, &key, "2").await;
    assert!(!second.created && second.entry.modified > first.entry.modified);
    assert_eq!(second.entry.created, first.entry.created);
    assert_eq!(store.delete(&key, Guard::Any).await.unwrap().as_ref(), Some(&second.entry));
    assert_eq!(store.get(&key).await.unwrap(), None);
    assert_eq!(store.delete(&key, Guard::Any).await.unwrap(), None);
    let third = put_any(store, &key, "3").await;
    assert!(third.created && third.entry.created > second.entry.modified);
    store.delete(&key, Guard::Any).await.unwrap();
}

async fn guards(store: &dyn Store) {
    let key = route("guard");
    let held = put_any(store, &key, "1").await.entry;
    for (guard, holds) in [
        (Guard::Absent, false),
        (Guard::Revision(held.modified + 1), false),
        (Guard::Revision(0), false),
        (Guard::Revision(held.modified), true),
    ] {
        let outcome = store.put(&key, text("2"), guard, None).await;
        match outcome {
            Ok(_) => assert!(holds, "{guard:?}"),
            Err(StoreError::Conflict { key: contested, found }) => {
                assert!(!holds && contested == key && found == Some(held.modified), "{guard:?}");
            }
            Err(error) => panic!("{guard:?}: {error}"),
        }
    }
    let stale = store.delete(&key, Guard::Revision(held.modified)).await;
    assert!(matches!(stale, Err(StoreError::Conflict { .. })));
    store.delete(&key, Guard::Any).await.unwrap();
    let missing = store.put(&key, text("3"), Guard::Revision(held.modified), None).await;
    assert!(matches!(missing, Err(StoreError::Conflict { found: None, .. })));
    assert!(store.put(&key, text("3"), Guard::Absent, None).await.unwrap().created);
    store.delete(&key, Guard::Any).await.unwrap();
}

async fn transactions(store: &dyn Store) {
    let (one, two) = (route("one"), route("two"));
    let mut watch = store.watch();
    next(&mut watch).await;
    let Committed { puts, .. } =
        store.commit(vec![put(&one, "1", Guard::Any), put(&two, "2", Guard::Absent)]).await.unwrap();
    assert_eq!(puts[0].entry.modified, puts[1].entry.modified);
    let Event::Changes { changes, revision } = next(&mut watch).await else { panic!("no changes") };
    assert_eq!((changes.len(), revision), (2, puts[0].entry.modified));

    // The second write fails, so the first one must leave no trace.
    let half = vec![put(&one, "3", Guard::Any), put(&two, "4", Guard::Absent)];
    assert!(matches!(store.commit(half).await, Err(StoreError::Conflict { key, .. }) if key == two));
    assert_eq!(store.get(&one).await.unwrap().as_ref(), Some(&puts[0].entry));
    assert!(watch.try_recv().is_none());

    // A transaction sees its own writes.
    let chain = vec![
        Write::Delete { key: one.clone(), guard: Guard::Any },
        put(&one, "5", Guard::Absent),
        Write::DeletePrefix { kind: Kind::Route, prefix: "one".into() },
        Write::Delete { key: two.clone(), guard: Guard::Any },
    ];
    assert_eq!(store.commit(chain).await.unwrap().deleted.len(), 3);
    assert!(store.list(Kind::Route).await.unwrap().is_empty());
    assert_eq!(store.commit(Vec::new()).await.unwrap(), Committed::default());
}

async fn consumers_go_with_their_credentials(store: &dyn Store) {
    let jack = Key::new(Kind::Consumer, "jack");
    put_any(store, &jack, "{}").await;
    put_any(store, &Key::new(Kind::Credential, "jack/credentials/c1"), "{}").await;
    put_any(store, &Key::new(Kind::Credential, "jacky/credentials/c2"), "{}").await;
    put_any(store, &route("b"), "{}").await;
    put_any(store, &route("a"), "{}").await;
    reads(store).await;
    let gone = store.commit(Write::remove_consumer(jack, Guard::Any)).await.unwrap().deleted;
    assert_eq!(gone.len(), 2);
    let left = store.list(Kind::Credential).await.unwrap();
    assert_eq!(left.len(), 1, "{left:?}");
}

async fn next_ids(store: &dyn Store) {
    let (first, second) = (store.next_id().await.unwrap(), store.next_id().await.unwrap());
    assert!(first > 0 && second > first);
    let later = put_any(store, &route("later"), "{}").await;
    assert!(later.entry.created > second);
    assert!(store.next_id().await.unwrap() > later.entry.created);
}

async fn watchers_hear_in_order(store: &dyn Store) {
    let mut watch = store.watch();
    let Event::Reset { revision: mut before, .. } = next(&mut watch).await else { panic!("no reset") };
    for round in 0..20 {
        let key = route(&format!("watched-{}", round % 3));
        let entry = put_any(store, &key, &round.to_string()).await.entry;
        // The writer was answered, so the watcher was told: no waiting.
        let Some(Event::Changes { changes, revision }) = watch.try_recv() else { panic!("not told") };
        assert!(revision > before && revision >= entry.modified);
        assert_eq!(changes, [Change::Put(entry)]);
        before = revision;
    }
}

async fn time_limits(store: &dyn Store) {
    let (short, long, renewed) = (route("short"), route("long"), route("renewed"));
    let ttl = |ms| Some(Duration::from_millis(ms));
    let mut watch = store.watch();
    next(&mut watch).await;
    store.put(&renewed, text("1"), Guard::Any, ttl(150)).await.unwrap();
    let forever = put_any(store, &renewed, "2").await;
    assert_eq!(forever.entry.expires, None);
    let limited = store.put(&short, text("1"), Guard::Any, ttl(300)).await.unwrap();
    assert!(limited.entry.expires.is_some());
    store.put(&long, text("1"), Guard::Any, ttl(3_600_000)).await.unwrap();
    loop {
        let Event::Changes { changes, revision } = next(&mut watch).await else { panic!("no changes") };
        if changes.contains(&Change::Delete(short.clone())) {
            assert!(revision > limited.entry.modified);
            break;
        }
    }
    assert_eq!(store.get(&short).await.unwrap(), None);
    assert!(store.get(&long).await.unwrap().is_some());
    assert!(store.get(&renewed).await.unwrap().is_some());
}

async fn many_writers(store: Arc<dyn Store>) {
    const WRITERS: usize = 32;
    const ROUNDS: usize = 20;
    let mut watch = store.watch();
    let Event::Reset { entries, .. } = next(&mut watch).await else { panic!("no reset") };
    let mut seen: BTreeMap<Key, Arc<str>> =
        entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
    let counter = route("counter");
    put_any(&*store, &counter, "0").await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write_and_count(Arc::clone(&store), writer, ROUNDS)))
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    // No update of the shared counter was lost.
    let total = (WRITERS * ROUNDS).to_string();
    assert_eq!(*store.get(&counter).await.unwrap().unwrap().value, *total);

    let mut before = 0;
    while let Some(event) = watch.try_recv() {
        let Event::Changes { changes, revision } = event else { panic!("a reset in between") };
        assert!(revision > before);
        before = revision;
        for change in changes {
            match change {
                Change::Put(entry) => drop(seen.insert(entry.key, entry.value)),
                Change::Delete(key) => drop(seen.remove(&key)),
            }
        }
    }
    let stored: BTreeMap<Key, Arc<str>> =
        store.list(Kind::Route).await.unwrap().into_iter().map(|entry| (entry.key, entry.value)).collect();
    seen.retain(|key, _| key.kind() == Kind::Route);
    assert_eq!(seen, stored);
}

/// Adds one to the shared counter by read, change and guarded write, and keeps a route of its own.
async fn write_and_count(store: Arc<dyn Store>, writer: usize, rounds: usize) {
    let (counter, own) = (route("counter"), route(&format!("writer-{writer}")));
    for round in 0..rounds {
        loop {
            let held = store.get(&counter).await.unwrap().unwrap();
            let next = (held.value.parse::<usize>().unwrap() + 1).to_string();
            match store.put(&counter, text(&next), Guard::Revision(held.modified), None).await {
                Ok(_) => break,
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        if round % 7 == 6 {
            store.delete(&own, Guard::Any).await.unwrap();
        } else {
            put_any(&*store, &own, &round.to_string()).await;
        }
    }
}
