//! Bodies of the Admin API: all JSON is read, and a PATCH leaves no `null` and no member that it removes.

use portcullis::{admin::patch, schema::cjson};
use serde_json::{Map, Value};

/// Reads the first line as path, and what follows as a change of a value, which is itself, too.
pub fn run(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let (path, text) = (&data[..at], &data[at..]);
    let read = cjson::parse(text);
    if serde_json::from_slice::<Value>(text).is_ok() {
        let only_too_deep = |e: &String| e.contains("nested");
        assert!(read.as_ref().err().is_none_or(only_too_deep), "{read:?}");
    }
    let Ok(Value::Object(change)) = read else { return };
    let mut target = Map::new();
    patch::merge(&mut target, &change);
    assert!(!target.values().any(has_null_member), "{target:?}");
    let once = target.clone();
    patch::merge(&mut target, &change);
    assert_eq!(target, once, "a change that was made changes nothing");
    let Ok(path) = std::str::from_utf8(path) else { return };
    let segments: Vec<&str> = path.split('/').collect();
    if patch::set_at(&mut target, &segments, Value::from(7)).is_ok() {
        let found = segments.iter().try_fold(&Value::Object(target), |at, name| at.get(*name)).cloned();
        assert_eq!(found, Some(Value::from(7)));
    }
}

/// Whether it is a `null`, or an object with one in it. What stands in an array is a value, and stays.
fn has_null_member(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(members) => members.values().any(has_null_member),
        _ => false,
    }
}
