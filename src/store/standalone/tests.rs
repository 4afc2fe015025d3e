use super::*;
use crate::store::{Event, Store};

fn accept(_: &str, _: &Value) -> Result<(), String> {
    Ok(())
}

#[track_caller]
fn accepted(body: Value, digest: &str, present: Option<&Document>) -> Document {
    match apply(&body, digest, 7, present, accept) {
        Ok(Applied::Accepted(document)) => document,
        other => panic!("{other:?}"),
    }
}

#[test]
fn before_the_first_document_all_versions_are_zero() {
    let document = Document::initial();
    assert_eq!(document.members().len(), LISTS.len());
    assert_eq!(document.members()["routes_conf_version"].to_string(), "0");
    assert_eq!((document.digest(), document.last_modified()), (None, None));
}

#[test]
fn a_document_is_no_debug_text() {
    let body = json!({"consumers": [{"username": "jack", "plugins": {"key-auth": {"key": "sesame"}}}]});
    let shown = format!("{:?}", apply(&body, "d1", 7, None, accept));
    assert!(shown.contains("d1") && !shown.contains("sesame"), "{shown}");
}

#[test]
fn versions_count_up_unless_given() {
    let first = accepted(json!({"routes": [{"id": "r1"}], "services": []}), "1", None);
    assert_eq!(first.members()["routes"], json!([{"id": "r1"}]));
    assert_eq!(first.members()["routes_conf_version"].to_string(), "1");
    assert_eq!(first.members()["ssls_conf_version"].to_string(), "1");
    assert!(!first.members().contains_key("services"));
    assert_eq!((first.digest(), first.last_modified()), (Some("1"), Some(7)));

    // A given version that stays keeps the list; the others move on, and are empty unless listed.
    let body = json!({"routes_conf_version": 1, "services": [{"id": "s"}]});
    let second = accepted(body, "2", Some(&first));
    assert_eq!(second.members()["routes"], json!([{"id": "r1"}]));
    assert_eq!(second.members()["services"], json!([{"id": "s"}]));
    assert_eq!(second.members()["services_conf_version"].to_string(), "2");

    let third = accepted(json!({"routes_conf_version": 15}), "3", Some(&second));
    assert!(!third.members().contains_key("routes"));
    assert_eq!(third.members()["routes_conf_version"].to_string(), "15");
    let fourth = accepted(json!({"routes_conf_version": 15.5}), "4", Some(&third));
    assert_eq!(fourth.members()["routes_conf_version"].to_string(), "15.5");
}

#[test]
fn the_same_digest_changes_nothing_and_is_not_even_checked() {
    let first = accepted(json!({}), "same", None);
    let outcome = apply(&json!({"routes_conf_version": "x"}), "same", 8, Some(&first), accept);
    assert_eq!(outcome, Ok(Applied::Unchanged));
}

#[test]
fn refusals_use_apisix_texts() {
    #[track_caller]
    fn check(body: Value, wanted: &str) {
        let present = accepted(json!({"routes_conf_version": 100}), "before", None);
        assert_eq!(apply(&body, "after", 8, Some(&present), accept), Err(wanted.into()));
    }
    check(json!({"routes_conf_version": 99}), "routes_conf_version must be greater than or equal to (100)");
    check(json!({"routes_conf_version": -1}), "routes_conf_version must be greater than or equal to (100)");
    check(json!({"routes_conf_version": "adc"}), "routes_conf_version must be a number");
    check(json!({"routes_conf_version": null}), "routes_conf_version must be a number");
    check(json!({"routes": [{"id": "r1"}, {"id": "r1"}]}), "found duplicate id r1 in routes");
    check(json!({"routes": [{"id": 1}, {"id": 1}]}), "found duplicate id 1 in routes");
    let twice = json!({"consumers": [{"username": "c"}, {"username": "c"}]});
    check(twice, "found duplicate username c in consumers");
    let twice = json!({"consumers": [{"id": "j/credentials/a"}, {"id": "j/credentials/a"}]});
    check(twice, "found duplicate credential id j/credentials/a in consumers");
    check(json!({"ssls": [5]}), "invalid item data of [ssls/1], it should be an object");
}

#[test]
fn what_is_no_duplicate_and_no_list_passes() {
    accepted(json!({"routes": [{"id": 1}, {"id": "1"}, {}, {}]}), "1", None);
    accepted(json!({"routes": {"id": 1}, "services": null}), "1", None);
    accepted(json!([]), "1", None);
}

#[test]
fn the_check_sees_each_item_and_its_text_is_the_answer() {
    let check = |list: &str, item: &Value| Err(format!("{list} {item}"));
    let outcome = apply(&json!({"protos": [{"id": "p"}]}), "1", 7, None, check);
    assert_eq!(outcome, Err(r#"protos {"id":"p"}"#.into()));
}

async fn value(standalone: &Standalone, path: &str) -> Option<String> {
    let entry = standalone.store().get(&Key::parse(path).unwrap()).await.unwrap();
    entry.map(|entry| entry.value.to_string())
}

#[tokio::test]
async fn an_item_whose_modified_index_stays_is_not_taken_over() {
    let standalone = Standalone::new().unwrap();
    let mut digest = 0;
    for (index, uri, wanted) in [
        (json!(1), "/r1", r#"{"id":"r1","uri":"/r1"}"#),
        (json!(1), "/r2", r#"{"id":"r1","uri":"/r1"}"#),
        (json!(2), "/r2", r#"{"id":"r1","uri":"/r2"}"#),
        (Value::Null, "/r3", r#"{"id":"r1","uri":"/r3"}"#),
        // The item before claimed nothing and so has its list's version, 4.
        (json!(4), "/r4", r#"{"id":"r1","uri":"/r3"}"#),
        (json!(5), "/r4", r#"{"id":"r1","uri":"/r4"}"#),
    ] {
        digest += 1;
        let mut item = json!({"id": "r1", "modifiedIndex": index, "uri": uri});
        if index.is_null() {
            item.as_object_mut().unwrap().remove("modifiedIndex");
        }
        let body = json!({ "routes": [item] });
        standalone.put(&body, &digest.to_string(), 7, accept).await.unwrap();
        assert_eq!(value(&standalone, "/apisix/routes/r1").await.as_deref(), Some(wanted), "step {digest}");
        assert_eq!(standalone.document().await.members()["routes"], body["routes"]);
    }
}

#[tokio::test]
async fn only_what_differs_is_told_to_watchers() {
    let standalone = Standalone::new().unwrap();
    let body = json!({
        "routes": [{"id": "a"}, {"id": "b"}],
        "consumers": [{"username": "jack"}, {"id": "jack/credentials/c1"}],
        "plugins": [{"name": "key-auth"}],
    });
    standalone.put(&body, "1", 7, accept).await.unwrap();
    assert!(value(&standalone, "/apisix/consumers/jack/credentials/c1").await.is_some());
    let mut watch = standalone.store().watch();
    assert!(matches!(watch.try_recv(), Some(Event::Reset { entries, .. }) if entries.len() == 4));

    let body = json!({"routes": [{"id": "a"}], "consumers_conf_version": 1});
    standalone.put(&body, "2", 7, accept).await.unwrap();
    let deleted = super::super::Change::Delete(Key::new(Kind::Route, "b"));
    let Some(Event::Changes { changes, .. }) = watch.try_recv() else { panic!("no changes") };
    assert_eq!(changes, [deleted]);

    let refused = standalone.put(&json!({"routes": [1]}), "3", 7, accept).await;
    assert!(matches!(refused, Err(ApplyError::Faulty(_))));
    assert!(watch.try_recv().is_none());
    assert_eq!(standalone.document().await.digest(), Some("2"));
}
