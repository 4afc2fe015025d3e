//! Resources as the Control API shows them: as they are in APISIX's memory, without their secrets.
//!
//! In memory means: defaults filled in, ids as text, nodes as a list. Invariant: what a plugin calls secret, and a
//! private key, never leaves through here; references to secrets do.
//!
//! Differs from APISIX: it shows decrypted secrets to whoever reaches its port.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::{
    plugin::{
        def::{PluginDef, SchemaType},
        env::Registry,
    },
    resource::{self, Key, Kind, node},
    schema::is_secret_reference,
    store::Entry,
};

/// What stands for a secret.
const HIDDEN: &str = "***";

/// How keys are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyStyle {
    /// `/apisix/routes/1`, as when etcd or a store that is written feeds APISIX.
    Etcd,
    /// `/routes/1`, as when a file does.
    File,
}

impl KeyStyle {
    /// A key as text.
    pub fn path(self, key: &Key) -> String {
        match self {
            KeyStyle::Etcd => key.path(),
            KeyStyle::File => key.path_under(""),
        }
    }
}

/// A route, service or upstream.
pub fn resource(entry: &Entry, registry: &dyn Registry, style: KeyStyle) -> Value {
    let value = value(entry, registry);
    let upstream = if entry.key.kind() == Kind::Upstream { Some(&value) } else { value.get("upstream") };
    let mut shown = json!({
        "key": style.path(&entry.key),
        "modifiedIndex": entry.modified,
        "has_domain": upstream.is_some_and(has_domain),
    });
    if style == KeyStyle::Etcd {
        shown["createdIndex"] = entry.created.into();
    }
    if entry.key.kind() == Kind::Route {
        shown["orig_modifiedIndex"] = entry.modified.into();
    }
    shown["value"] = value;
    shown
}

/// The metadata of a plugin: the value alone.
pub fn metadata(entry: &Entry, def: Option<&PluginDef>) -> Value {
    let mut value = parsed(entry);
    if let Some(def) = def {
        if let Some(compiled) = def.schema(SchemaType::Metadata) {
            compiled.schema.fill_defaults(&mut value);
        }
        hide_fields(&mut value, def.encrypt);
    }
    value["id"] = entry.key.id().into();
    value
}

/// The value as it is in memory.
pub fn value(entry: &Entry, registry: &dyn Registry) -> Value {
    let kind = entry.key.kind();
    let mut value = parsed(entry);
    value["id"] = entry.key.own_id().into();
    resource::fill_defaults(kind, &mut value);
    if let Some(Value::Object(plugins)) = value.get_mut("plugins") {
        show_plugins(plugins, registry);
    }
    if kind == Kind::Upstream {
        show_upstream(&mut value);
    } else if let Some(upstream) = value.get_mut("upstream") {
        show_upstream(upstream);
    }
    value
}

/// Anything but an object is nobody's resource; it is shown as an empty one.
fn parsed(entry: &Entry) -> Value {
    match serde_json::from_str(&entry.value) {
        Ok(value @ Value::Object(_)) => value,
        _ => json!({}),
    }
}

fn show_plugins(plugins: &mut Map<String, Value>, registry: &dyn Registry) {
    for (name, conf) in plugins {
        let Some(def) = registry.find(name) else { continue };
        if let Some(compiled) = def.schema(SchemaType::Route) {
            compiled.schema.fill_defaults(conf);
        }
        hide_fields(conf, def.encrypt);
        if let Value::Object(conf) = conf {
            conf.entry("_meta").or_insert_with(|| json!({}));
        }
    }
}

fn show_upstream(upstream: &mut Value) {
    if let Some(Value::Object(weights)) = upstream.get("nodes") {
        let nodes: Value = weights.iter().map(|(addr, weight)| listed(addr, weight)).collect();
        upstream["nodes"] = nodes;
    }
    hide(upstream, "tls.client_key");
}

fn listed(addr: &str, weight: &Value) -> Value {
    let (host, port) = node::parse_addr(addr);
    let mut node = json!({"host": host});
    if let Some(port) = port {
        node["port"] = port.into();
    }
    node["weight"] = weight.clone();
    node
}

fn has_domain(upstream: &Value) -> bool {
    let nodes = upstream.get("nodes").and_then(Value::as_array);
    let mut hosts = nodes.into_iter().flatten().filter_map(|node| node.get("host")?.as_str());
    hosts.any(|host| host.trim_matches(['[', ']']).parse::<IpAddr>().is_err())
}

/// Hides what lies at dotted paths, as encryption finds it: strings, and arrays and maps of strings.
fn hide_fields(conf: &mut Value, fields: &[&str]) {
    for field in fields {
        hide(conf, field);
    }
}

fn hide(conf: &mut Value, path: &str) {
    let (segment, rest) = match path.split_once('.') {
        Some((segment, rest)) => (segment, Some(rest)),
        None => (path, None),
    };
    let Some(found) = conf.get_mut(segment) else { return };
    match (rest, found) {
        (None, leaf) => hide_all(leaf),
        (Some(rest), Value::Array(items)) => items.iter_mut().for_each(|item| hide(item, rest)),
        (Some(rest), inner) => hide(inner, rest),
    }
}

fn hide_all(leaf: &mut Value) {
    match leaf {
        Value::String(text) if text.is_empty() || is_secret_reference(text) => {}
        Value::String(text) => *text = HIDDEN.to_owned(),
        Value::Array(items) => items.iter_mut().for_each(hide_all),
        Value::Object(members) => members.values_mut().for_each(hide_all),
        // Nothing else is ever encrypted.
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::Enabled;

    fn entry(kind: Kind, id: &str, value: &Value) -> Entry {
        Entry {
            key: Key::new(kind, id),
            value: value.to_string().into(),
            created: 3,
            modified: 7,
            expires: None,
        }
    }

    fn registry() -> Enabled {
        Enabled::new(None, Map::new())
    }

    #[test]
    fn a_route_is_shown_as_in_memory() {
        let stored = json!({"uris": ["/hello"], "id": 1, "upstream": {"nodes": {"127.0.0.1:1980": 1}, "type": "roundrobin"}});
        let shown = resource(&entry(Kind::Route, "1", &stored), &registry(), KeyStyle::Etcd);
        assert_eq!(shown["key"], "/apisix/routes/1");
        assert_eq!(
            (&shown["createdIndex"], &shown["modifiedIndex"], &shown["orig_modifiedIndex"]),
            (&json!(3), &json!(7), &json!(7))
        );
        assert_eq!(shown["has_domain"], false);
        let value = &shown["value"];
        assert_eq!((&value["id"], &value["priority"], &value["status"]), (&json!("1"), &json!(0), &json!(1)));
        assert_eq!(
            value["upstream"],
            json!({"nodes": [{"host": "127.0.0.1", "port": 1980, "weight": 1}], "type": "roundrobin",
                "hash_on": "vars", "pass_host": "pass", "scheme": "http"})
        );
    }

    #[test]
    fn a_file_has_other_keys() {
        let stored = json!({"type": "roundrobin", "nodes": [{"host": "foo.com", "port": 80, "weight": 2}]});
        let shown = resource(&entry(Kind::Upstream, "u", &stored), &registry(), KeyStyle::File);
        assert_eq!(shown["key"], "/upstreams/u");
        assert_eq!(shown["has_domain"], true);
        assert!(shown.get("createdIndex").is_none() && shown.get("orig_modifiedIndex").is_none());
        assert_eq!(
            shown["value"]["nodes"],
            json!([{"host": "foo.com", "port": 80, "weight": 2, "priority": 0}])
        );
    }

    #[test]
    fn private_keys_are_hidden() {
        let stored = json!({"nodes": {"[::1]:80": 1}, "tls": {"client_cert": "CERT", "client_key": "KEY"}});
        let shown = resource(&entry(Kind::Upstream, "u", &stored), &registry(), KeyStyle::Etcd);
        assert_eq!(shown["value"]["tls"]["client_cert"], "CERT");
        assert_eq!(shown["value"]["tls"]["client_key"], "***");
        assert_eq!(shown["has_domain"], false);
        assert!(!shown.to_string().contains("KEY\""));
    }

    #[test]
    fn secrets_are_found_by_path() {
        #[track_caller]
        fn check(fields: &[&str], mut conf: Value, expected: Value) {
            hide_fields(&mut conf, fields);
            assert_eq!(conf, expected);
        }
        check(&["key", "none", "a.b"], json!({"key": "s", "x": "s"}), json!({"key": "***", "x": "s"}));
        check(
            &["a.b"],
            json!({"a": [{"b": "s"}, {"c": "s"}, "s"]}),
            json!({"a": [{"b": "***"}, {"c": "s"}, "s"]}),
        );
        check(
            &["m"],
            json!({"m": {"x": "s", "n": 1, "l": ["s"]}}),
            json!({"m": {"x": "***", "n": 1, "l": ["***"]}}),
        );
        check(&["k"], json!({"k": "$env://K"}), json!({"k": "$env://K"}));
        check(&["k"], json!({"k": "$secret://vault/1/a/b"}), json!({"k": "$secret://vault/1/a/b"}));
        check(&["k"], json!({"k": ""}), json!({"k": ""}));
        check(&["k"], json!("text"), json!("text"));
    }

    #[test]
    fn what_is_no_resource_is_shown_empty() {
        for text in ["nonsense", "[1]", "null"] {
            let mut broken = entry(Kind::PluginMetadata, "x", &json!({}));
            broken.value = text.into();
            assert_eq!(metadata(&broken, None), json!({"id": "x"}), "{text}");
        }
    }
}
