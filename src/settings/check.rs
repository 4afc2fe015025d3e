//! Lays a written configuration over the defaults of the table and finds everything that is wrong with it.
//!
//! Invariant: every fault is found, not the first only, and the result is whole in any case: where a value is wrong
//! its default stands. The result has every key of the table that has a meaning here.

use serde_json::{Map, Value};

use crate::settings::fault::{Severity, nearest};
use crate::settings::keys::{SETTINGS, Setting};
use crate::settings::kind::{Kind, brief, listen_section};

/// A fault before its file and line are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The path.
    pub path: String,
    /// What is there.
    pub what: String,
    /// What would be right.
    pub right: String,
    /// The nearest known name.
    pub nearest: Option<String>,
}

impl Finding {
    /// A finding without a nearest name.
    pub fn new(severity: Severity, path: &str, right: &str, what: impl Into<String>) -> Self {
        Self { severity, path: path.to_owned(), what: what.into(), right: right.to_owned(), nearest: None }
    }
}

/// A configuration over its defaults.
#[derive(Debug)]
pub struct Checked {
    /// Every setting, in normal form.
    pub effective: Value,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Checks what the user wrote (`null` for nothing).
pub fn check(written: &Value) -> Checked {
    let root = Node::table();
    let mut walk = Walk { root: &root, findings: Vec::new(), inert: Vec::new() };
    let effective = walk.section(&root, written, "");
    let Walk { mut findings, inert, .. } = walk;
    if !inert.is_empty() {
        let what = format!("no meaning here, not read: {}", inert.join(", "));
        findings.push(Finding::new(Severity::Warning, "", "", what));
    }
    Checked { effective, findings }
}

/// The table as a tree.
#[derive(Debug)]
struct Node {
    kind: Kind,
    default: &'static str,
    children: Vec<(&'static str, Node)>,
    item: Option<Box<Node>>,
}

impl Node {
    const fn plain() -> Self {
        Self { kind: Kind::Section, default: "null", children: Vec::new(), item: None }
    }

    fn table() -> Self {
        let mut root = Self::plain();
        for setting in SETTINGS {
            root.put(setting.path, setting);
        }
        root
    }

    fn put(&mut self, path: &'static str, setting: &Setting) {
        if let Some(rest) = path.strip_prefix("[]") {
            let item = self.item.get_or_insert_with(|| Box::new(Self::plain()));
            return item.put(rest.strip_prefix('.').unwrap_or(rest), setting);
        }
        if path.is_empty() {
            self.kind = setting.kind;
            self.default = setting.default;
            return;
        }
        let end = path.find(['.', '[']).unwrap_or(path.len());
        let (name, rest) = path.split_at(end);
        let rest = rest.strip_prefix('.').unwrap_or(rest);
        let at = self.children.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
            self.children.push((name, Self::plain()));
            self.children.len() - 1
        });
        self.children[at].1.put(rest, setting);
    }

    fn default(&self) -> Value {
        serde_json::from_str(self.default).expect("a test reads every default of the table")
    }

    /// What stands in place of a section or a list: not shown where it may be a secret in the wrong form.
    fn got(&self, written: &Value) -> String {
        let secret = |node: &Self| matches!(node.kind, Kind::Secret | Kind::EncryptionKey);
        let holds = |node: &Self| secret(node) || node.children.iter().any(|(_, child)| secret(child));
        if holds(self) || self.item.as_deref().is_some_and(holds) {
            return "got something else (not shown)".to_owned();
        }
        format!("got {}", brief(written))
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.children.iter().map(|(name, _)| *name)
    }
}

struct Walk<'a> {
    root: &'a Node,
    findings: Vec<Finding>,
    /// Written keys that have no meaning here.
    inert: Vec<String>,
}

impl Walk<'_> {
    fn section(&mut self, node: &Node, written: &Value, path: &str) -> Value {
        let nothing = Map::new();
        let written = match written {
            Value::Object(map) => map,
            Value::Null => &nothing,
            other => {
                let what = node.got(other);
                self.findings.push(Finding::new(Severity::Error, path, "a section of keys and values", what));
                &nothing
            }
        };
        let mut out = Map::new();
        for (name, child) in &node.children {
            let emptied = written.get(*name).filter(|value| value.is_null()).and_then(|_| emptied(child));
            let value = emptied.as_ref().or_else(|| written.get(*name)).unwrap_or(&Value::Null);
            if let Some(value) = self.value(child, value, &join(path, name)) {
                out.insert((*name).to_owned(), value);
            }
        }
        for name in written.keys().filter(|name| node.names().all(|known| known != name.as_str())) {
            self.unknown(node, name, path);
        }
        Value::Object(out)
    }

    /// The effective value; none for what has no meaning here.
    fn value(&mut self, node: &Node, written: &Value, path: &str) -> Option<Value> {
        match node.kind {
            Kind::Inert => {
                if says_something(written) {
                    self.inert.push(path.to_owned());
                }
                return None;
            }
            Kind::Section => return Some(self.section(node, written, path)),
            Kind::OptionalSection if written.is_null() => return Some(Value::Null),
            Kind::OptionalSection => return Some(self.section(node, written, path)),
            _ => {}
        }
        if written.is_null() {
            return Some(self.default(node, path));
        }
        Some(match node.kind {
            Kind::List | Kind::OneOrList => match written {
                Value::Array(items) => self.list(node, items, path),
                one if node.kind == Kind::OneOrList => self.list(node, std::slice::from_ref(one), path),
                other => {
                    let what = node.got(other);
                    self.findings.push(Finding::new(Severity::Error, path, "a list", what));
                    self.default(node, path)
                }
            },
            Kind::Listen if written.is_object() => self.section(node, written, path),
            Kind::Listen => {
                let port = self.scalar(node, written, path).unwrap_or_else(|| node.default());
                self.section(node, &listen_section(&port), path)
            }
            Kind::Overlay => {
                let mut base = node.default();
                if let Some(over) = self.scalar(node, written, path) {
                    overlay(&mut base, over);
                }
                base
            }
            _ => self.scalar(node, written, path).unwrap_or_else(|| self.default(node, path)),
        })
    }

    fn list(&mut self, node: &Node, items: &[Value], path: &str) -> Value {
        let Some(item) = &node.item else { return Value::Array(items.to_vec()) };
        let mut out = Vec::new();
        for (index, written) in items.iter().enumerate().filter(|(_, written)| !written.is_null()) {
            let path = format!("{path}[{index}]");
            if item.kind == Kind::DnsServer && written.as_str().is_some_and(|text| text.contains('%')) {
                // APISIX leaves such an address out too: nginx does not know zones. cli/ops.lua
                let what = "left out: addresses with a zone are not supported";
                self.findings.push(Finding::new(Severity::Warning, &path, "", what));
                continue;
            }
            out.extend(self.value(item, written, &path).filter(|value| !value.is_null()));
        }
        Value::Array(out)
    }

    fn default(&mut self, node: &Node, path: &str) -> Value {
        match node.default() {
            Value::Null => Value::Null,
            Value::Array(items) => self.list(node, &items, path),
            value => node.kind.read(&value).unwrap_or(value),
        }
    }

    fn scalar(&mut self, node: &Node, written: &Value, path: &str) -> Option<Value> {
        let wrong = match node.kind.read(written) {
            Ok(value) => return Some(value),
            Err(wrong) => wrong,
        };
        let finding = Finding::new(Severity::Error, path, &wrong.right, wrong.what);
        self.findings.push(Finding { nearest: wrong.nearest, ..finding });
        None
    }

    fn unknown(&mut self, node: &Node, name: &str, path: &str) {
        let near = nearest(name, node.names()).map(str::to_owned).or_else(|| self.elsewhere(name));
        let finding = Finding::new(Severity::Warning, &join(path, name), "", "unknown key, not read");
        self.findings.push(Finding { nearest: near, ..finding });
    }

    /// The path of a key of this name in another section: a key that was indented wrongly is found this way.
    fn elsewhere(&self, name: &str) -> Option<String> {
        if let Some((section, _)) = self.root.children.iter().find(|(known, _)| *known == name) {
            return Some((*section).to_owned());
        }
        let known = |setting: &&Setting| setting.kind != Kind::Inert && !setting.path.contains("[]");
        let leaf = |path: &str| path.rsplit_once('.').is_some_and(|(_, leaf)| leaf == name);
        SETTINGS
            .iter()
            .filter(known)
            .find(|setting| leaf(setting.path))
            .map(|setting| setting.path.to_owned())
    }
}

/// Joins a path and a key.
pub fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// What a setting is that was written as `null`: in APISIX that takes the default away (`cli/file.lua merge_conf`), so what
/// can be on is off, and there are no keys. Others keep their default: without `allow_admin` everybody would come in.
fn emptied(node: &Node) -> Option<Value> {
    match (node.kind, &node.item) {
        (Kind::Bool, _) => Some(Value::Bool(false)),
        (_, Some(item)) if item.kind == Kind::EncryptionKey => Some(Value::Array(Vec::new())),
        _ => None,
    }
}

/// Whether a value says anything: comments only, empty text and `false` do not.
fn says_something(written: &Value) -> bool {
    match written {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => {
            text.lines().any(|line| !line.trim().is_empty() && !line.trim().starts_with('#'))
        }
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

/// Lays mappings over each other key by key; lists and scalars replace, `null` takes away.
/// APISIX: cli/file.lua `merge_conf`.
fn overlay(base: &mut Value, over: Value) {
    let (Value::Object(base), Value::Object(over)) = (&mut *base, &over) else {
        *base = over;
        return;
    };
    for (name, value) in over {
        match base.get_mut(name) {
            _ if value.is_null() => drop(base.remove(name)),
            Some(below) => overlay(below, value.clone()),
            None => drop(base.insert(name.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check_finding(written: Value, path: &str, message: &str) {
        let findings = check(&written).findings;
        let shown = |f: &Finding| {
            format!("{} {}; {}; {}", f.severity, f.right, f.what, f.nearest.as_deref().unwrap_or("-"))
        };
        let found: Vec<_> = findings.iter().map(|f| (f.path.as_str(), shown(f))).collect();
        assert_eq!(found, [(path, message.to_owned())], "{written}");
    }

    #[track_caller]
    fn check_value(written: Value, path: &str, expected: Value) {
        let checked = check(&written);
        assert_eq!(checked.findings, [], "{written}");
        assert_eq!(checked.effective.pointer(path), Some(&expected), "{written} {path}");
    }

    #[test]
    fn every_default_of_the_table_is_of_its_kind() {
        for setting in SETTINGS {
            let value: Value = serde_json::from_str(setting.default).unwrap();
            if !value.is_null() {
                setting.kind.read(&value).unwrap_or_else(|wrong| panic!("{}: {wrong:?}", setting.path));
            }
            if let Value::Array(items) = value {
                let mut written = Value::Array(items);
                for name in setting.path.rsplit('.') {
                    written = json!({ name: written });
                }
                assert_eq!(check(&written).findings, [], "{}", setting.path);
            }
        }
        assert_eq!(check(&Value::Null).findings, []);
    }

    #[test]
    fn paths_of_the_table_are_unique() {
        let mut paths: Vec<_> = SETTINGS.iter().map(|setting| setting.path).collect();
        let all = paths.len();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), all);
    }

    #[test]
    fn values_replace_defaults() {
        check_value(
            Value::Null,
            "/apisix/node_listen",
            json!([{"ip": null, "port": 9080, "enable_http2": null}]),
        );
        let written = json!({"apisix": {"node_listen": [81, {"ip": "127.0.0.2", "port": 82}]}});
        let expected = json!([{"ip": null, "port": 81, "enable_http2": null}, {"ip": "127.0.0.2", "port": 82, "enable_http2": null}]);
        check_value(written, "/apisix/node_listen", expected);
        check_value(json!({"apisix": {"node_listen": 80}}), "/apisix/node_listen/0/port", json!(80));
        check_value(json!({"apisix": null}), "/apisix/enable_admin", json!(true));
        check_value(json!({"apisix": {"status": {}}}), "/apisix/status/port", json!(7085));
        check_value(
            json!({"apisix": {"data_encryption": {"keyring": "0123456789abcdef"}}}),
            "/apisix/data_encryption/keyring",
            json!(["0123456789abcdef"]),
        );
        check_value(
            json!({"nginx_config": {"http": {"send_timeout": "5s"}}}),
            "/nginx_config/http/send_timeout",
            json!(5000),
        );
        check_value(json!({"plugins": []}), "/plugins", json!([]));
        check_value(json!({"plugins": null}), "/plugins", json!(null));
        let attr = json!({"plugin_attr": {"prometheus": {"export_addr": {"port": 1}}, "mine": {"a": [1]}}});
        check_value(
            attr.clone(),
            "/plugin_attr/prometheus/export_addr",
            json!({"ip": "127.0.0.1", "port": 1}),
        );
        check_value(attr, "/plugin_attr/mine", json!({"a": [1]}));
        check_value(
            json!({"plugin_attr": {"zipkin": null}}),
            "/plugin_attr/prometheus/refresh_interval",
            json!(15),
        );
    }

    #[test]
    fn findings() {
        check_finding(
            json!({"apisix": {"node_listen": "abc"}}),
            "apisix.node_listen[0]",
            "error a port from 0 to 65535; got \"abc\"; -",
        );
        check_finding(
            json!({"apisix": {"node_listen": [{"port": 1, "prot": 2}]}}),
            "apisix.node_listen[0].prot",
            "warning ; unknown key, not read; port",
        );
        check_finding(json!({"apisix": []}), "apisix", "error a section of keys and values; got a list; -");
        check_finding(json!("abc"), "", "error a section of keys and values; got \"abc\"; -");
        check_finding(json!({"apisxi": {}}), "apisxi", "warning ; unknown key, not read; apisix");
        check_finding(
            json!({"apisix": {"allow_admn": []}}),
            "apisix.allow_admn",
            "warning ; unknown key, not read; -",
        );
        check_finding(
            json!({"admin_key": []}),
            "admin_key",
            "warning ; unknown key, not read; deployment.admin.admin_key",
        );
        check_finding(
            json!({"deployment": {"apisix": {}}}),
            "deployment.apisix",
            "warning ; unknown key, not read; apisix",
        );
        check_finding(
            json!({"deployment": {"role": "dataplane"}}),
            "deployment.role",
            "error traditional, data_plane or control_plane; got \"dataplane\"; data_plane",
        );
        check_finding(json!({"plugins": "key-auth"}), "plugins", "error a list; got \"key-auth\"; -");
        check_finding(json!({"plugins": ["key-auth", {}]}), "plugins[1]", "error text; got a mapping; -");
        check_finding(json!({"plugin_attr": []}), "plugin_attr", "error keys and values; got a list; -");
        let inert =
            json!({"wasm": {"plugins": []}, "apisix": {"extra_lua_path": "", "lua_module_hook": "x"}});
        check_finding(inert, "", "warning ; no meaning here, not read: apisix.lua_module_hook, wasm; -");
    }

    #[test]
    fn secrets_are_not_shown() {
        for written in [
            json!({"deployment": {"admin": {"admin_key": "sesame"}}}),
            json!({"deployment": {"admin": {"admin_key": ["sesame"]}}}),
            json!({"deployment": {"admin": {"admin_key": [{"key": ["sesame"]}]}}}),
            json!({"deployment": {"etcd": {"password": ["sesame"]}}}),
            json!({"deployment": {"etcd": "sesame"}}),
            json!({"apisix": {"data_encryption": {"keyring": ["sesame"]}}}),
        ] {
            let findings = check(&written).findings;
            assert_eq!(findings.len(), 1, "{written}");
            assert!(!format!("{findings:?}").contains("sesame"), "{findings:?}");
        }
    }

    #[test]
    fn moved_keys_have_a_place_in_the_table() {
        let known =
            |path: &str| SETTINGS.iter().any(|s| s.path == path || s.path.starts_with(&format!("{path}.")));
        for place in crate::settings::keys::MOVED {
            assert!(known(place.to), "{}", place.to);
            assert!(!known(place.from), "{}", place.from);
        }
    }

    #[test]
    fn all_faults_are_found_and_defaults_stand_in() {
        let checked = check(&json!({"apisix": {"enable_admin": 1, "control": {"port": "x"}}, "plugins": 1}));
        assert_eq!(checked.findings.len(), 3);
        assert_eq!(checked.effective["apisix"]["control"]["port"], json!(9090));
        assert_eq!(checked.effective["apisix"]["enable_admin"], json!(true));
    }
}
