use std::path::Path;

use serde_json::json;

use super::*;
use crate::store::{Event, Guard};

/// Reads the JSON subset of YAML: the store does not care who parses.
fn parse(text: &str) -> Result<Value, String> {
    let text = text.trim_end().trim_end_matches("#END");
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn substitute(text: &str) -> Result<String, String> {
    if text.contains("${{MISSING}}") {
        return Err("failed to handle configuration: can't find environment variable MISSING".into());
    }
    Ok(text.replace("${{PORT}}", "1980").replace("${{NAME}}", "jack"))
}

fn write(path: &Path, text: &str) {
    // A new file each time, as editors do: the inode tells even within one tick of the clock.
    let next = path.with_extension("next");
    fs::write(&next, text).unwrap();
    fs::rename(next, path).unwrap();
}

fn yaml(document: &Value) -> String {
    format!("{document}\n#END\n")
}

struct Fixture {
    _dir: tempfile::TempDir,
    path: PathBuf,
    store: FileStore,
}

fn fixture(text: &str, format: FileFormat) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("apisix.conf");
    write(&path, text);
    let store = FileStore::new(path.clone(), format, substitute);
    Fixture { _dir: dir, path, store }
}

impl Fixture {
    fn fault(&self) -> Option<String> {
        self.store.fault().borrow().as_deref().map(str::to_owned)
    }

    fn keys(&self) -> Vec<String> {
        self.store.catalog.all().into_iter().map(|entry| entry.key.path().to_string()).collect()
    }
}

#[test]
fn end_flag_table() {
    #[track_caller]
    fn check(text: &str, wanted: bool) {
        assert_eq!(has_end_flag(text), wanted, "{text:?}");
    }
    check("routes: []\n#END", true);
    check("routes: []\n#END\n", true);
    check("routes: []\n#END \r\n\t", true);
    check("routes: [] #END\n", true);
    check("#END", true);
    check("routes: []\n#END\n       \n", false);
    check("routes: []\n#END\nx", false);
    check("routes: []\n#end", false);
    check("", false);
    check("é\u{20ac}\u{20ac}\u{20ac}\u{20ac}", false);
}

#[test]
fn items_get_apisix_ids() {
    let document = json!({
        "routes": [{"uri": "/a"}, {"id": 7, "uri": "/b"}, {"id": "x", "uri": "/c"}, 5],
        "consumers": [{"username": "jack"}, {"id": "jack/credentials/c1", "plugins": {}}],
        "secrets": [{"id": "vault/1", "uri": "http://v"}],
        "services": {"id": 1},
        "unknown": [{"id": 1}],
        "upstreams": null,
    });
    let fixture = fixture(&yaml(&document), FileFormat::Yaml(parse));
    let mut keys = fixture.keys();
    keys.sort();
    let wanted = [
        "/apisix/consumers/jack",
        "/apisix/consumers/jack/credentials/c1",
        "/apisix/routes/7",
        "/apisix/routes/arr_1",
        "/apisix/routes/arr_4",
        "/apisix/routes/x",
        "/apisix/secrets/vault/1",
    ];
    assert_eq!(keys, wanted);
}

#[test]
fn of_equal_ids_the_last_counts() {
    let document = json!({"routes": [{"id": 1, "uri": "/a"}, {"id": "1", "uri": "/b"}]});
    let fixture = fixture(&yaml(&document), FileFormat::Yaml(parse));
    let entry = fixture.store.catalog.get(&Key::new(Kind::Route, "1")).unwrap();
    assert_eq!(&*entry.value, r#"{"id":"1","uri":"/b"}"#);
}

#[test]
fn only_changed_items_get_a_new_revision() {
    let first =
        json!({"routes": [{"id": "a", "uri": "/a"}, {"id": "b", "uri": "/b"}, {"id": "c", "uri": "/c"}]});
    let fixture = fixture(&yaml(&first), FileFormat::Yaml(parse));
    let mut watch = fixture.store.watch();
    assert!(matches!(watch.try_recv(), Some(Event::Reset { entries, .. }) if entries.len() == 3));
    let kept = fixture.store.catalog.get(&Key::new(Kind::Route, "a")).unwrap();

    // The order, and a comment's worth of white space, are no change of an item.
    let second = json!({"routes": [{"id": "b", "uri": "/B"}, {"id": "a", "uri": "/a"}]});
    write(&fixture.path, &yaml(&second));
    fixture.store.poll();
    assert_eq!(fixture.store.catalog.get(&kept.key).unwrap(), kept);
    let Some(Event::Changes { changes, .. }) = watch.try_recv() else { panic!("no changes") };
    assert_eq!(changes.len(), 2, "{changes:?}");
    let changed = fixture.store.catalog.get(&Key::new(Kind::Route, "b")).unwrap();
    assert!(changed.modified > kept.modified && changed.created == kept.created);

    fixture.store.poll();
    assert!(watch.try_recv().is_none());
}

#[test]
fn a_faulty_file_changes_nothing_and_is_reported() {
    #[track_caller]
    fn check(text: &str, wanted: &str) {
        let fixture = fixture(&yaml(&json!({"routes": [{"id": "a"}]})), FileFormat::Yaml(parse));
        assert_eq!(fixture.fault(), None);
        write(&fixture.path, text);
        fixture.store.poll();
        let fault = fixture.fault().unwrap_or_default();
        assert!(fault.contains(wanted), "{fault}");
        assert_eq!(fixture.keys(), ["/apisix/routes/a"]);
        write(&fixture.path, &yaml(&json!({"routes": [{"id": "b"}]})));
        fixture.store.poll();
        assert_eq!(fixture.fault(), None);
        assert_eq!(fixture.keys(), ["/apisix/routes/b"]);
    }
    check("{}", "missing valid end flag in file ");
    check("{\n#END", "EOF while parsing");
    check("null\n#END", "failed update config: empty table");
    check("[]\n#END", "must hold a map");
    check("{\"a\": \"${{MISSING}}\"}\n#END", "can't find environment variable MISSING");
}

#[test]
fn a_missing_file_is_a_fault_until_it_appears() {
    let fixture = fixture(&yaml(&json!({"routes": [{"id": "a"}]})), FileFormat::Yaml(parse));
    fs::remove_file(&fixture.path).unwrap();
    fixture.store.poll();
    assert!(fixture.fault().unwrap().starts_with("failed to open file "));
    assert_eq!(fixture.keys(), ["/apisix/routes/a"]);
    write(&fixture.path, &yaml(&json!({"routes": [{"id": "a"}]})));
    fixture.store.poll();
    assert_eq!(fixture.fault(), None);
}

#[test]
fn a_change_that_keeps_size_and_inode_is_seen() {
    let fixture = fixture(&yaml(&json!({"routes": [{"id": "a"}]})), FileFormat::Yaml(parse));
    fs::write(&fixture.path, yaml(&json!({"routes": [{"id": "b"}]}))).unwrap();
    fixture.store.poll();
    assert_eq!(fixture.keys(), ["/apisix/routes/b"]);
}

#[test]
fn an_old_file_is_not_read_again() {
    let fixture = fixture(&yaml(&json!({"routes": [{"id": "a"}]})), FileFormat::Yaml(parse));
    let long_ago = SystemTime::now() - Duration::from_secs(60);
    let file = fs::File::options().write(true).open(&fixture.path).unwrap();
    file.set_modified(long_ago).unwrap();
    fixture.store.poll();
    fs::write(&fixture.path, yaml(&json!({"routes": [{"id": "b"}]}))).unwrap();
    file.set_modified(long_ago).unwrap();
    fixture.store.poll();
    assert_eq!(fixture.keys(), ["/apisix/routes/a"], "same time, size and inode");
    file.set_modified(long_ago + Duration::from_nanos(1)).unwrap();
    fixture.store.poll();
    assert_eq!(fixture.keys(), ["/apisix/routes/b"]);
}

#[test]
fn the_plugin_list_is_reported_beside_the_resources() {
    let listed = |name: &str, stream| EnabledPlugin { name: name.into(), stream };
    let fixture = fixture(&yaml(&json!({"routes": []})), FileFormat::Yaml(parse));
    let mut plugins = fixture.store.plugins();
    assert_eq!(*plugins.borrow_and_update(), None);
    let document = json!({"plugins": [{"name": "key-auth"}, {"name": "mqtt-proxy", "stream": true}]});
    write(&fixture.path, &yaml(&document));
    fixture.store.poll();
    assert!(plugins.has_changed().unwrap());
    let wanted = [listed("key-auth", false), listed("mqtt-proxy", true)];
    assert_eq!(plugins.borrow_and_update().as_deref(), Some(&wanted[..]));
    write(&fixture.path, &yaml(&json!({"plugins": [{"name": "xxx", "stream": "ip-restriction"}]})));
    fixture.store.poll();
    assert_eq!(*plugins.borrow_and_update(), None);
}

#[test]
fn json_values_are_substituted_after_parsing() {
    let text =
        r#"{"routes": [{"id": "${{NAME}}", "port": "${{PORT}}", "text": "p${{PORT}}", "plain": "12"}]}"#;
    let fixture = fixture(text, FileFormat::Json);
    assert_eq!(fixture.fault(), None);
    let entry = fixture.store.catalog.get(&Key::new(Kind::Route, "jack")).unwrap();
    assert_eq!(&*entry.value, r#"{"id":"jack","port":1980,"text":"p1980","plain":"12"}"#);
}

#[test]
fn text_of_a_variable_becomes_what_lua_makes_of_it() {
    #[track_caller]
    fn check(text: &str, wanted: Value) {
        assert_eq!(retyped(text.into()), wanted);
    }
    check("12", json!(12));
    check(" -3 ", json!(-3));
    check("1.5", json!(1.5));
    check("1e3", json!(1000.0));
    check("0x10", json!(16));
    check("0x", json!("0x"));
    check("inf", json!("inf"));
    check("true", json!(true));
    check("false", json!(false));
    check(" true", json!(" true"));
    check("", json!(""));
    check("12a", json!("12a"));
}

#[tokio::test]
async fn writes_are_refused() {
    let fixture = fixture(&yaml(&json!({})), FileFormat::Yaml(parse));
    let key = Key::new(Kind::Route, "1");
    let put = fixture.store.put(&key, Arc::from("{}"), Guard::Any, None).await;
    assert!(matches!(put, Err(StoreError::ReadOnly(_))));
    assert!(matches!(fixture.store.delete(&key, Guard::Any).await, Err(StoreError::ReadOnly(_))));
    assert!(matches!(fixture.store.next_id().await, Err(StoreError::ReadOnly(_))));
}

#[tokio::test]
async fn a_followed_file_is_looked_at_each_second() {
    let Fixture { _dir, path, store } =
        fixture(&yaml(&json!({"routes": [{"id": "a"}]})), FileFormat::Yaml(parse));
    let store = Arc::new(store);
    let mut watch = store.watch();
    watch.recv().await;
    let following = tokio::spawn(Arc::clone(&store).follow());
    tokio::time::sleep(Duration::from_millis(100)).await;
    write(&path, &yaml(&json!({"routes": [{"id": "a"}, {"id": "b"}]})));
    let event = tokio::time::timeout(Duration::from_secs(20), watch.recv()).await.unwrap();
    assert!(matches!(event, Event::Changes { changes, .. } if changes.len() == 1));
    following.abort();
}

#[tokio::test]
async fn reads_conform() {
    let document = json!({
        "routes": [{"id": "b"}, {"id": "a"}],
        "consumers": [{"username": "jack"}, {"id": "jack/credentials/c1"}, {"id": "jacky/credentials/c2"}],
    });
    let fixture = fixture(&yaml(&document), FileFormat::Yaml(parse));
    crate::store::conformance::reads(&fixture.store).await;
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("apisix.yaml");
        fs::write(&path, [bytes.as_slice(), b"#END"].concat()).unwrap();
        let store = FileStore::new(path, FileFormat::Yaml(parse), substitute);
        proptest::prop_assert!(store.catalog.all().is_empty());
    }
}
