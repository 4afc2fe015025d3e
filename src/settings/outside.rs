//! What changes a written configuration before it is checked: keys in their APISIX 2 place, and APISIX's reserved
//! environment variables.
//!
//! Invariant: what is written in its present place wins over an old place; a variable wins over both.

use serde_json::{Map, Value};

use crate::settings::check::Finding;
use crate::settings::fault::Severity;
use crate::settings::keys::{MOVED, Moved};
use crate::settings::substitute::Environment;

/// The value at a path of plain keys.
pub fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, name| value.get(name)).filter(|value| !value.is_null())
}

/// Moves keys from their old places, and tells which were moved.
pub fn relocate(written: &mut Value, findings: &mut Vec<Finding>) -> Vec<&'static Moved> {
    let mut moved = Vec::new();
    for place in MOVED {
        let Some(value) = take(written, place.from) else { continue };
        let right = format!("at {} (its place since APISIX 3)", place.to);
        let what = if at(written, place.to).is_some() {
            "not read here: it is written there too"
        } else if put(written, place.to, value) {
            moved.push(place);
            "read here all the same"
        } else {
            "not read here: its new section is not one"
        };
        findings.push(Finding::new(Severity::Warning, place.from, &right, what));
    }
    moved
}

fn take(value: &mut Value, path: &str) -> Option<Value> {
    let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
    let section =
        section.split('.').filter(|name| !name.is_empty()).try_fold(value, |value, name| value.get_mut(name));
    section?.as_object_mut()?.shift_remove(name).filter(|value| !value.is_null())
}

/// False when something that is no section stands in the way.
fn put(value: &mut Value, path: &str, new: Value) -> bool {
    let mut here = value;
    for name in path.split('.') {
        if here.is_null() {
            *here = Value::Object(Map::new());
        }
        let Some(map) = here.as_object_mut() else { return false };
        here = map.entry(name).or_insert(Value::Null);
    }
    *here = new;
    true
}

/// Puts in what APISIX_DEPLOYMENT_ETCD_HOST and APISIX_WORKER_PROCESSES say.
/// APISIX: cli/file.lua `replace_by_reserved_env_vars`, cli/ops.lua `init`.
pub fn reserved_variables(written: &mut Value, environment: Environment<'_>, findings: &mut Vec<Finding>) {
    if let Some(text) = environment("APISIX_DEPLOYMENT_ETCD_HOST") {
        match serde_json::from_str::<Value>(&text) {
            Ok(hosts @ Value::Array(_)) if put(written, "deployment.etcd.host", hosts.clone()) => {}
            _ => findings.push(Finding::new(
                Severity::Warning,
                "$APISIX_DEPLOYMENT_ETCD_HOST",
                "a JSON list such as [\"http://127.0.0.1:2379\"]",
                "got something else, not read",
            )),
        }
    }
    if let Some(text) = environment("APISIX_WORKER_PROCESSES") {
        let number = text.trim().parse::<f64>().ok().map(f64::floor).filter(|n| (1.0..=4096.0).contains(n));
        match number {
            Some(number) if put(written, "nginx_config.worker_processes", Value::from(number as u64)) => {}
            _ => findings.push(Finding::new(
                Severity::Error,
                "$APISIX_WORKER_PROCESSES",
                "a number of threads from 1 to 4096",
                format!("got {text:?}"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check_moved(mut written: Value, expected: Value, messages: &[(&str, &str)]) {
        let mut findings = Vec::new();
        relocate(&mut written, &mut findings);
        let found: Vec<_> = findings.iter().map(|f| (f.path.as_str(), f.what.as_str())).collect();
        assert_eq!(found, messages);
        assert_eq!(written, expected);
    }

    #[test]
    fn old_places() {
        let here = "read here all the same";
        check_moved(
            json!({"apisix": {"admin_key": [1], "port_admin": 9}}),
            json!({"apisix": {}, "deployment": {"admin": {"admin_key": [1], "admin_listen": {"port": 9}}}}),
            &[("apisix.admin_key", here), ("apisix.port_admin", here)],
        );
        check_moved(
            json!({"etcd": {"prefix": "/a"}}),
            json!({"deployment": {"etcd": {"prefix": "/a"}}}),
            &[("etcd", here)],
        );
        check_moved(
            json!({"apisix": {"allow_admin": []}, "deployment": {"admin": {"allow_admin": [1]}}}),
            json!({"apisix": {}, "deployment": {"admin": {"allow_admin": [1]}}}),
            &[("apisix.allow_admin", "not read here: it is written there too")],
        );
        check_moved(
            json!({"apisix": {"allow_admin": []}, "deployment": 1}),
            json!({"apisix": {}, "deployment": 1}),
            &[("apisix.allow_admin", "not read here: its new section is not one")],
        );
        check_moved(json!("abc"), json!("abc"), &[]);
    }

    #[track_caller]
    fn check_variable(name: &str, value: &str, expected: Value, faults: usize) {
        let environment = |asked: &str| (asked == name).then(|| value.to_owned());
        let (mut written, mut findings) = (Value::Null, Vec::new());
        reserved_variables(&mut written, &environment, &mut findings);
        assert_eq!(written, expected);
        assert_eq!(findings.len(), faults);
    }

    #[test]
    fn variables() {
        let etcd = "APISIX_DEPLOYMENT_ETCD_HOST";
        check_variable(
            etcd,
            "[\"http://e:1\"]",
            json!({"deployment": {"etcd": {"host": ["http://e:1"]}}}),
            0,
        );
        check_variable(etcd, "http://e:1", Value::Null, 1);
        let workers = "APISIX_WORKER_PROCESSES";
        check_variable(workers, "2.9", json!({"nginx_config": {"worker_processes": 2}}), 0);
        check_variable(workers, "auto", Value::Null, 1);
        check_variable(workers, "0", Value::Null, 1);
        check_variable("OTHER", "0", Value::Null, 0);
    }
}
