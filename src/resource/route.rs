//! Routes: which requests go where, and through which plugins.
//!
//! Invariant: says what the resource may hold, not what it does.

use serde::Deserialize;
use serde_json::{Value, json};

use super::parts;
use super::typed::{Id, Labels, Plugins, Timeout};
use super::upstream::Upstream;

/// A route as stored.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Route {
    /// Its id.
    pub id: Option<Id>,
    /// Its name, for people.
    pub name: Option<String>,
    /// What it is for, for people.
    pub desc: Option<String>,
    /// Labels, for people and for filters.
    #[serde(deserialize_with = "super::typed::map")]
    pub labels: Labels,
    /// When it was created, in seconds since 1970.
    pub create_time: Option<i64>,
    /// When it was last written, in seconds since 1970.
    pub update_time: Option<i64>,
    /// The path it takes; exactly one of `uri` and `uris` is given.
    pub uri: Option<String>,
    /// The paths it takes.
    #[serde(deserialize_with = "super::typed::list")]
    pub uris: Vec<String>,
    /// Of routes that take the same path, the higher comes first.
    pub priority: i64,
    /// Methods it takes; none means all.
    #[serde(deserialize_with = "super::typed::list")]
    pub methods: Vec<String>,
    /// The host it takes.
    pub host: Option<String>,
    /// The hosts it takes.
    #[serde(deserialize_with = "super::typed::list")]
    pub hosts: Vec<String>,
    /// The client address or network it takes.
    pub remote_addr: Option<String>,
    /// The client addresses or networks it takes.
    #[serde(deserialize_with = "super::typed::list")]
    pub remote_addrs: Vec<String>,
    /// Time limits, in place of the upstream's.
    pub timeout: Option<Timeout>,
    /// Conditions on the request, in the language of lua-resty-expr.
    #[serde(deserialize_with = "super::typed::list")]
    pub vars: Vec<Value>,
    /// Lua code that takes or rejects a request.
    pub filter_func: Option<String>,
    /// Lua code of the plugin orchestration.
    pub script: Option<String>,
    /// Id of that code, in the dashboard.
    pub script_id: Option<Id>,
    /// Its plugins.
    #[serde(deserialize_with = "super::typed::map")]
    pub plugins: Plugins,
    /// Plugins it shares with other routes.
    pub plugin_config_id: Option<Id>,
    /// Its own upstream.
    pub upstream: Option<Upstream>,
    /// The service it belongs to.
    pub service_id: Option<Id>,
    /// An upstream it refers to.
    pub upstream_id: Option<Id>,
    /// Whether requests may become web sockets; over the service's word.
    pub enable_websocket: Option<bool>,
    /// `1` when it is in use, `0` when not.
    pub status: u8,
}

impl Default for Route {
    fn default() -> Route {
        Route {
            id: None,
            name: None,
            desc: None,
            labels: Labels::new(),
            create_time: None,
            update_time: None,
            uri: None,
            uris: Vec::new(),
            priority: 0,
            methods: Vec::new(),
            host: None,
            hosts: Vec::new(),
            remote_addr: None,
            remote_addrs: Vec::new(),
            timeout: None,
            vars: Vec::new(),
            filter_func: None,
            script: None,
            script_id: None,
            plugins: Plugins::new(),
            plugin_config_id: None,
            upstream: None,
            service_id: None,
            upstream_id: None,
            enable_websocket: None,
            status: 1,
        }
    }
}

/// APISIX: schema_def.lua route.
pub(super) fn schema() -> Value {
    let addresses =
        json!({"type": "array", "items": parts::remote_addr(), "minItems": 1, "uniqueItems": true});
    let uris = json!({
        "type": "array",
        "items": {"description": "HTTP uri", "type": "string"},
        "minItems": 1,
        "uniqueItems": true,
    });
    json!({
        "type": "object",
        "properties": {
            "id": parts::id(),
            "name": parts::name(),
            "desc": parts::desc(),
            "labels": parts::labels(),
            "create_time": parts::timestamp(),
            "update_time": parts::timestamp(),
            "uri": {"type": "string", "minLength": 1, "maxLength": 4096},
            "uris": uris,
            "priority": {"type": "integer", "default": 0},
            "methods": {"type": "array", "items": parts::method(), "uniqueItems": true},
            "host": parts::host(),
            "hosts": parts::hosts(),
            "remote_addr": parts::remote_addr(),
            "remote_addrs": addresses,
            "timeout": parts::timeout(),
            "vars": {"type": "array"},
            "filter_func": {"type": "string", "minLength": 10, "pattern": "^function"},
            "script": parts::script(),
            "script_id": parts::id(),
            "plugins": parts::plugins(),
            "plugin_config_id": parts::id(),
            "upstream": parts::upstream(),
            "service_id": parts::id(),
            "upstream_id": parts::id(),
            "enable_websocket": parts::enable_websocket(),
            "status": {
                "description": "route status, 1 to enable, 0 to disable",
                "type": "integer",
                "enum": [1, 0],
                "default": 1,
            },
        },
        "allOf": [
            {"oneOf": [{"required": ["uri"]}, {"required": ["uris"]}]},
            none_or_one_of("host", "hosts"),
            none_or_one_of("remote_addr", "remote_addrs"),
        ],
        "anyOf": sources_with_a_path(),
        "not": {"anyOf": [
            {"required": ["script", "plugins"]},
            {"required": ["script", "plugin_config_id"]},
        ]},
        "additionalProperties": false,
    })
}

fn none_or_one_of(one: &str, many: &str) -> Value {
    let any = json!({"not": {"anyOf": [{"required": [one]}, {"required": [many]}]}});
    json!({"oneOf": [any, {"required": [one]}, {"required": [many]}]})
}

/// What can answer a request, each with either form of the path.
fn sources_with_a_path() -> Vec<Value> {
    let mut branches = Vec::new();
    for path in ["uri", "uris"] {
        for source in ["plugins", "upstream", "upstream_id", "service_id"] {
            branches.push(json!({"required": [source, path]}));
        }
    }
    for path in ["uri", "uris"] {
        branches.push(json!({"required": ["script", path]}));
    }
    branches
}

/// What is checked before the schema. APISIX: admin/routes.lua check_conf.
pub(super) fn check_exclusive(value: &Value) -> Result<(), String> {
    for (one, many) in [("host", "hosts"), ("remote_addr", "remote_addrs")] {
        // `false` is not there, to Lua.
        let given = |name| value.get(name).is_some_and(|member| *member != Value::Bool(false));
        if given(one) && given(many) {
            return Err(format!("only one of {one} or {many} is allowed"));
        }
    }
    Ok(())
}
