//! How a PATCH changes a stored value. APISIX: core/table.lua `merge` and `patch`.
//!
//! Invariant: pure; whether the result is a resource is judged afterwards.

use serde_json::{Map, Value};

/// Merges a change into an object: objects member by member, everything else replaced, and `null` removes.
///
/// A list, and an empty object, replaces what was there: Lua has one empty table for both.
/// Differs from APISIX: a `null` inside of an object that is new is left out as well; there it stays, and the schema
/// refuses it.
pub fn merge(target: &mut Map<String, Value>, change: &Map<String, Value>) {
    for (name, new) in change {
        match (target.get_mut(name), new) {
            (_, Value::Null) => {
                target.shift_remove(name);
            }
            (Some(Value::Object(old)), Value::Object(new)) if !old.is_empty() && !new.is_empty() => {
                merge(old, new)
            }
            _ => {
                target.insert(name.clone(), without_nulls(new));
            }
        }
    }
}

/// Replaces what lies at a path below the value; objects on the way are made.
///
/// # Errors
/// APISIX's words when something on the way is no object.
/// Differs from APISIX: a list is none either; there a member was added to it, which no schema takes.
pub fn set_at(target: &mut Map<String, Value>, path: &[&str], new: Value) -> Result<(), String> {
    let Some((last, parents)) = path.split_last() else { return Ok(()) };
    let mut place = target;
    for (depth, name) in parents.iter().enumerate() {
        let next = place.entry((*name).to_owned()).or_insert_with(|| Value::Object(Map::new()));
        if next.as_array().is_some_and(Vec::is_empty) {
            *next = Value::Object(Map::new());
        }
        let Value::Object(next) = next else {
            return Err(format!("invalid sub-path: /{}", path[..=depth].join("/")));
        };
        place = next;
    }
    place.insert((*last).to_owned(), new);
    Ok(())
}

fn without_nulls(value: &Value) -> Value {
    let Value::Object(members) = value else { return value.clone() };
    let members = members.iter().filter(|(_, member)| !member.is_null());
    Value::Object(members.map(|(name, member)| (name.clone(), without_nulls(member))).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(members) => members,
            other => panic!("{other}"),
        }
    }

    #[track_caller]
    fn check(before: Value, change: Value, after: Value) {
        let mut found = object(before);
        merge(&mut found, &object(change));
        assert_eq!(Value::Object(found), after);
    }

    #[test]
    fn merging() {
        check(json!({"a": 1, "b": 2}), json!({"b": 3, "c": 4}), json!({"a": 1, "b": 3, "c": 4}));
        check(
            json!({"n": {"x": 1, "y": 1}}),
            json!({"n": {"x": null, "z": 2}}),
            json!({"n": {"y": 1, "z": 2}}),
        );
        check(json!({"m": ["GET", "PUT"]}), json!({"m": ["POST"]}), json!({"m": ["POST"]}));
        check(json!({"n": {"x": 1}}), json!({"n": [1]}), json!({"n": [1]}));
        check(json!({"n": [1]}), json!({"n": {"x": 1}}), json!({"n": {"x": 1}}));
        check(json!({"plugins": {"a": {}}}), json!({"plugins": {}}), json!({"plugins": {}}));
        check(json!({"a": 1}), json!({"a": null}), json!({}));
        check(json!({}), json!({"l": {"a": null, "b": {"c": null}}}), json!({"l": {"b": {}}}));
        check(json!({"a": 1}), json!({}), json!({"a": 1}));
    }

    #[test]
    fn setting_below() {
        #[track_caller]
        fn check(before: Value, path: &[&str], new: Value, wanted: Result<Value, &str>) {
            let mut found = object(before);
            let outcome = set_at(&mut found, path, new).map(|()| Value::Object(found));
            assert_eq!(outcome, wanted.map_err(str::to_owned));
        }
        check(json!({"uri": "/"}), &["uri"], json!("/x"), Ok(json!({"uri": "/x"})));
        check(json!({}), &["a", "b"], json!([1]), Ok(json!({"a": {"b": [1]}})));
        check(json!({"a": []}), &["a", "b"], json!(1), Ok(json!({"a": {"b": 1}})));
        check(json!({"a": 1}), &["a", "b"], json!(1), Err("invalid sub-path: /a"));
        check(json!({"a": {"b": [1]}}), &["a", "b", "c"], json!(1), Err("invalid sub-path: /a/b"));
    }

    fn any_object() -> impl Strategy<Value = Map<String, Value>> {
        let leaf = prop_oneof![
            2 => Just(Value::Null),
            2 => (0..3).prop_map(Value::from),
            1 => prop::collection::vec((0..3).prop_map(Value::from), 0..3).prop_map(Value::from),
        ];
        let value = leaf.prop_recursive(3, 24, 4, |inner| {
            prop::collection::vec(("[a-c]", inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect()))
        });
        prop::collection::vec(("[a-c]", value), 0..4).prop_map(|members| members.into_iter().collect())
    }

    fn has_null(members: &Map<String, Value>) -> bool {
        members.values().any(|value| match value {
            Value::Null => true,
            Value::Object(members) => has_null(members),
            _ => false,
        })
    }

    fn clean() -> impl Strategy<Value = Map<String, Value>> {
        any_object().prop_map(|members| object(without_nulls(&Value::Object(members))))
    }

    proptest! {
        #[test]
        fn merging_twice_is_merging_once(before in clean(), change in any_object()) {
            let mut once = before;
            merge(&mut once, &change);
            let mut twice = once.clone();
            merge(&mut twice, &change);
            prop_assert_eq!(once, twice);
        }

        #[test]
        fn null_removes_and_never_stays(before in clean(), change in any_object()) {
            let mut after = before.clone();
            merge(&mut after, &change);
            prop_assert!(!has_null(&after));
            for (name, new) in &change {
                prop_assert_eq!(after.contains_key(name), !new.is_null());
            }
            for (name, old) in &before {
                if !change.contains_key(name) {
                    prop_assert_eq!(after.get(name), Some(old));
                }
            }
        }

        #[test]
        fn what_was_set_is_there(before in clean(), path in prop::collection::vec("[a-c]", 1..4), new in 0..9) {
            let mut after = before;
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            if set_at(&mut after, &path, Value::from(new)).is_ok() {
                let pointer = format!("/{}", path.join("/"));
                let after = Value::Object(after);
                prop_assert_eq!(after.pointer(&pointer), Some(&Value::from(new)));
            }
        }
    }
}
