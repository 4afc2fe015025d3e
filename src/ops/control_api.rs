//! The Control API: what this instance runs on, for whoever may reach 127.0.0.1:9090. APISIX: control/v1.lua.
//!
//! It reads the store and the control loop; nothing here changes anything. Shapes, texts and the routing of paths are
//! APISIX's, down to an empty list being `{}` as an empty Lua table is. Start reading at [`ControlApi::handle`].
//! Invariant: secrets do not pass (see `view`).
//!
//! Differs from APISIX: `POST /v1/gc` has nothing to collect and `PUT /v1/plugins/reload` nothing to load, as plugins
//! are part of the program; `GET /v1/faults` and
//! `GET /v1/ext-plugin/runners` are ours. `GET /v1/discovery/…` does not exist.

use std::sync::Arc;

use async_trait::async_trait;
use http::{Method, Response, StatusCode, header};
use pingora::{apps::http_app::ServeHttp, protocols::http::ServerSession};
use serde_json::{Map, Value, json};

use super::{answer, health_page, runners_page, view};
use crate::{
    compat::Compat,
    control::Control,
    net::uri,
    plugin::{
        def::{PluginDef, SchemaType},
        env::Registry,
    },
    resource::{self, Key, Kind, parts},
    store::{Entry, Store, StoreError},
};

pub use super::view::KeyStyle;

/// The kinds with health checks, in the order of APISIX's report.
const CHECKED: [Kind; 4] = [Kind::Route, Kind::StreamRoute, Kind::Service, Kind::Upstream];

/// See the module.
pub struct ControlApi {
    control: Arc<Control>,
    store: Arc<dyn Store>,
    keys: KeyStyle,
}

type Answer = Result<Response<Vec<u8>>, StoreError>;

impl ControlApi {
    /// Answers from a store and the loop that follows it; `keys` says how keys are written.
    pub fn new(control: Arc<Control>, store: Arc<dyn Store>, keys: KeyStyle) -> ControlApi {
        ControlApi { control, store, keys }
    }

    /// The answer to a request; `path` as it was sent, without the query, which nothing here reads.
    pub async fn handle(&self, method: &Method, path: &str, accept: Option<&str>) -> Response<Vec<u8>> {
        let Ok(path) = uri::normalize(path.as_bytes()) else {
            return answer::error(StatusCode::BAD_REQUEST, "invalid uri");
        };
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let answer = match (method.as_str(), &*segments) {
            ("GET", ["v1", what]) => self.all(what, accept).await,
            ("GET", ["v1", "healthcheck", which @ ..]) => self.health_of(which, accept).await,
            ("GET", ["v1", "ext-plugin", "runners"]) => Ok(self.runners()),
            ("GET", ["v1", "plugin_metadata", name, ..]) => self.metadata(name).await,
            ("GET", ["v1", singular, id, ..]) => match dumped(singular) {
                Some(kind) => self.one(kind, id).await,
                None => Ok(answer::not_found()),
            },
            ("POST", ["v1", "gc"]) => Ok(answer::text(StatusCode::OK, "")),
            ("PUT", ["v1", "plugins", "reload"]) => Ok(answer::text(StatusCode::OK, "done")),
            _ => Ok(answer::not_found()),
        };
        answer.unwrap_or_else(|e| answer::error(StatusCode::SERVICE_UNAVAILABLE, &e.to_string()))
    }

    /// `/v1/WHAT`.
    async fn all(&self, what: &str, accept: Option<&str>) -> Answer {
        match what {
            "schema" => Ok(answer::json(StatusCode::OK, &schema(self.registry(), self.control.env().compat))),
            "healthcheck" => {
                let reports = self.reports().await?;
                Ok(shown(accept, &reports.iter().collect::<Vec<_>>(), || lua_list(reports.clone())))
            }
            "plugin_metadatas" => self.metadatas().await,
            "faults" => Ok(self.faults()),
            plural => match plural.strip_suffix('s').and_then(dumped) {
                Some(kind) => {
                    let entries = self.store.list(kind).await?;
                    let shown = entries.iter().map(|entry| view::resource(entry, self.registry(), self.keys));
                    Ok(answer::json(StatusCode::OK, &lua_list(shown.collect())))
                }
                None => Ok(answer::not_found()),
            },
        }
    }

    async fn one(&self, kind: Kind, id: &str) -> Answer {
        match self.store.get(&Key::new(kind, id)).await? {
            Some(entry) => {
                Ok(answer::json(StatusCode::OK, &view::resource(&entry, self.registry(), self.keys)))
            }
            None => Ok(missing(&format!("{}[{id}] not found", kind.schema_name()))),
        }
    }

    /// Of enabled plugins only, as in APISIX.
    async fn metadatas(&self) -> Answer {
        let mut found = Vec::new();
        for def in self.registry().all() {
            if let Some(entry) = self.store.get(&Key::new(Kind::PluginMetadata, def.name)).await? {
                found.push(view::metadata(&entry, Some(def)));
            }
        }
        Ok(answer::json(StatusCode::OK, &lua_list(found)))
    }

    async fn metadata(&self, name: &str) -> Answer {
        match self.store.get(&Key::new(Kind::PluginMetadata, name)).await? {
            Some(entry) => {
                let value = view::metadata(&entry, self.registry().find(name));
                Ok(answer::json(StatusCode::OK, &value))
            }
            None => Ok(missing(&format!("plugin metadata[{name}] not found"))),
        }
    }

    async fn reports(&self) -> Result<Vec<Value>, StoreError> {
        let mut reports = Vec::new();
        for kind in CHECKED {
            let entries = self.store.list(kind).await?;
            reports.extend(entries.iter().filter_map(|entry| self.report(entry)));
        }
        Ok(reports)
    }

    /// `/v1/healthcheck/{kind}/{id}`.
    async fn health_of(&self, which: &[&str], accept: Option<&str>) -> Answer {
        let (dir, id) = match *which {
            [dir] => return Ok(missing(&format!("missing src id for src type {dir}"))),
            [dir, id, ..] => (dir, id),
            [] => return Ok(answer::not_found()),
        };
        let Some(kind) = CHECKED.into_iter().find(|kind| kind.dir() == dir) else {
            return Ok(answer::error(StatusCode::BAD_REQUEST, &format!("invalid src type {dir}")));
        };
        let Some(entry) = self.store.get(&Key::new(kind, id)).await? else {
            return Ok(missing(&format!("{dir}[{id}] not found")));
        };
        match self.report(&entry) {
            Some(report) => Ok(shown(accept, &[&report], || report.clone())),
            None => Ok(missing(&format!("no checker for {dir}[{id}]"))),
        }
    }

    /// `None` for a resource whose own nodes are not checked.
    fn report(&self, entry: &Entry) -> Option<Value> {
        let value = view::value(entry, self.registry());
        let checks = value.get("checks").or_else(|| value.get("upstream")?.get("checks"))?;
        let kind = |of: &str| checks.get(of)?.get("type").cloned();
        let name = self.keys.path(&entry.key);
        // What does not compile, or is of a kind that is not served, has checks but no checker.
        let unchecked =
            || json!({"name": name, "nodes": {}, "type": kind("active").or_else(|| kind("passive"))});
        Some(self.control.health(&entry.key, &name).unwrap_or_else(unchecked))
    }

    fn faults(&self) -> Response<Vec<u8>> {
        let faults = self.control.faults();
        let list = faults.iter().map(|(key, reason)| {
            json!({
                "key": self.keys.path(key),
                "kind": key.kind().schema_name(),
                "id": key.own_id(),
                "reason": reason,
            })
        });
        answer::json(StatusCode::OK, &list.collect())
    }

    /// `/v1/ext-plugin/runners`.
    fn runners(&self) -> Response<Vec<u8>> {
        let runners = self.control.env().metrics.runners.get();
        let all = runners.map(|runners| runners.all()).unwrap_or_default();
        answer::json(StatusCode::OK, &all.iter().map(|runner| runners_page::runner(runner)).collect())
    }

    fn registry(&self) -> &dyn Registry {
        &self.control.env().registry
    }
}

#[async_trait]
impl ServeHttp for ControlApi {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let head = session.req_header();
        let accept = head.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
        let response = self.handle(&head.method, head.uri.path(), accept).await;
        answer::for_method(response, &head.method)
    }
}

/// The kinds that can be dumped, by their name in the path.
fn dumped(singular: &str) -> Option<Kind> {
    [Kind::Route, Kind::Service, Kind::Upstream].into_iter().find(|kind| kind.schema_name() == singular)
}

fn missing(message: &str) -> Response<Vec<u8>> {
    answer::error(StatusCode::NOT_FOUND, message)
}

/// A page for browsers, JSON for everybody else.
fn shown(accept: Option<&str>, reports: &[&Value], plain: impl FnOnce() -> Value) -> Response<Vec<u8>> {
    if accept.is_some_and(|accept| accept.contains("text/html")) {
        answer::html(StatusCode::OK, health_page::render(reports))
    } else {
        answer::json(StatusCode::OK, &plain())
    }
}

/// An empty Lua table is an object in JSON.
fn lua_list(items: Vec<Value>) -> Value {
    if items.is_empty() { json!({}) } else { Value::Array(items) }
}

fn schema(registry: &dyn Registry, compat: Compat) -> Value {
    let mut main = Map::new();
    for kind in [
        Kind::Consumer,
        Kind::ConsumerGroup,
        Kind::GlobalRule,
        Kind::PluginConfig,
        Kind::Proto,
        Kind::Route,
        Kind::Service,
        Kind::Ssl,
        Kind::StreamRoute,
        Kind::Upstream,
    ] {
        main.insert(kind.schema_name().to_owned(), resource::schema_json(kind, compat).clone());
    }
    main.insert("plugins".to_owned(), plugin_list());
    main.insert("upstream_hash_header_schema".to_owned(), parts::hash_header());
    main.insert("upstream_hash_vars_schema".to_owned(), parts::hash_variable());
    let plugins: Map<String, Value> =
        registry.all().iter().map(|def| (def.name.to_owned(), described(def))).collect();
    json!({"main": main, "plugins": plugins, "stream_plugins": {}})
}

/// The schema of the list of plugins in the store. APISIX: schema_def.lua `plugins`.
fn plugin_list() -> Value {
    json!({
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "stream": {"type": "boolean"},
                "additionalProperties": false,
            },
            "required": ["name"],
        },
    })
}

fn described(def: &PluginDef) -> Value {
    // Nearly all plugins of APISIX have this version, and nobody reads it.
    let mut shown = json!({"version": 0.1, "priority": def.priority});
    let schemas = [
        ("schema", SchemaType::Route),
        ("metadata_schema", SchemaType::Metadata),
        ("consumer_schema", SchemaType::Consumer),
    ];
    for (name, of) in schemas {
        if let Some(compiled) = def.schema(of) {
            shown[name] = compiled.json.clone();
        }
    }
    if def.auth.is_some() {
        shown["type"] = "auth".into();
    }
    if def.global {
        shown["scope"] = "global".into();
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        snapshot::compile::Env,
        store::{Event, Guard, MemoryStore},
    };

    /// A gateway with these resources, which are not written through the Admin API.
    async fn api(resources: &[(Kind, &str, Value)]) -> ControlApi {
        let store = Arc::new(MemoryStore::new().unwrap());
        for (kind, id, value) in resources {
            store.put(&Key::new(*kind, *id), value.to_string().into(), Guard::Any, None).await.unwrap();
        }
        let control = Arc::new(Control::new(Arc::new(Env::plain())));
        let mut events = store.watch();
        let first: Event = events.recv().await;
        control.apply(vec![first]);
        ControlApi::new(control, store, KeyStyle::Etcd)
    }

    async fn get(api: &ControlApi, path: &str) -> (u16, Value) {
        let response = api.handle(&Method::GET, path, None).await;
        let body = serde_json::from_slice(response.body());
        (response.status().as_u16(), body.unwrap_or(Value::Null))
    }

    fn nodes() -> Value {
        json!({"nodes": {"127.0.0.1:1980": 1, "127.0.0.2:1988": 0}, "type": "roundrobin"})
    }

    fn checked() -> Value {
        let mut upstream = nodes();
        upstream["checks"] =
            json!({"active": {"http_path": "/status", "healthy": {"interval": 100, "successes": 1}}});
        upstream
    }

    #[tokio::test]
    async fn resources_are_dumped() {
        let api = api(&[
            (Kind::Route, "1", json!({"uris": ["/hello"], "upstream": nodes()})),
            (Kind::Route, "2", json!({"uri": "/x", "upstream_id": "u"})),
            (Kind::Service, "200", json!({"upstream": nodes()})),
            (Kind::Upstream, "u", nodes()),
        ])
        .await;
        let (status, routes) = get(&api, "/v1/routes").await;
        assert_eq!((status, routes.as_array().map(Vec::len)), (200, Some(2)));
        assert_eq!(routes[0]["value"]["uris"], json!(["/hello"]));
        let (status, route) = get(&api, "/v1/route/1").await;
        assert_eq!((status, &route), (200, &routes[0]));
        let (_, services) = get(&api, "/v1/services").await;
        assert_eq!(services[0]["value"]["id"], "200");
        let (_, upstream) = get(&api, "/v1/upstream/u").await;
        assert_eq!(upstream["value"]["nodes"][1], json!({"host": "127.0.0.2", "port": 1988, "weight": 0}));
    }

    #[tokio::test]
    async fn what_is_not_there() {
        let api = api(&[(Kind::Upstream, "u", nodes())]).await;
        for (path, status, body) in [
            ("/v1/route/9", 404, json!({"error_msg": "route[9] not found"})),
            ("/v1/route/", 404, json!({"error_msg": "route[] not found"})),
            ("/v1/service/9", 404, json!({"error_msg": "service[9] not found"})),
            ("/v1/upstream/9", 404, json!({"error_msg": "upstream[9] not found"})),
            ("/v1/upstream/%39", 404, json!({"error_msg": "upstream[9] not found"})),
            (
                "/v1/plugin_metadata/batch-requests",
                404,
                json!({"error_msg": "plugin metadata[batch-requests] not found"}),
            ),
            ("/v1/healthcheck/upstreams", 404, json!({"error_msg": "missing src id for src type upstreams"})),
            ("/v1/healthcheck/upstream/u", 400, json!({"error_msg": "invalid src type upstream"})),
            ("/v1/healthcheck/consumers/u", 400, json!({"error_msg": "invalid src type consumers"})),
            ("/v1/healthcheck/upstreams/9", 404, json!({"error_msg": "upstreams[9] not found"})),
            ("/v1/healthcheck/upstreams/u", 404, json!({"error_msg": "no checker for upstreams[u]"})),
            ("/v1/healthcheck", 200, json!({})),
            ("/v1/routes", 200, json!({})),
            ("/v1/plugin_metadatas", 200, json!({})),
            ("/v1/faults", 200, json!([])),
            ("/v1/ext-plugin/runners", 200, json!([])),
            ("/v1/consumers", 404, Value::Null),
            ("/v1/route", 404, Value::Null),
            ("/v1/gc", 404, Value::Null),
            ("/v1", 404, Value::Null),
            ("/", 404, Value::Null),
        ] {
            assert_eq!(get(&api, path).await, (status, body), "{path}");
        }
    }

    #[tokio::test]
    async fn health_of_all_and_of_one() {
        let api = api(&[
            (Kind::Route, "r", json!({"uri": "/r", "upstream": checked()})),
            (Kind::Route, "plain", json!({"uri": "/p", "upstream": nodes()})),
            (Kind::Route, "borrowed", json!({"uri": "/b", "service_id": "s"})),
            (Kind::Service, "s", json!({"upstream": checked()})),
            (Kind::Upstream, "u", checked()),
        ])
        .await;
        let (_, all) = get(&api, "/v1/healthcheck").await;
        let names: Vec<&Value> = all.as_array().unwrap().iter().map(|report| &report["name"]).collect();
        assert_eq!(names, ["/apisix/routes/r", "/apisix/services/s", "/apisix/upstreams/u"]);
        let (status, one) = get(&api, "/v1/healthcheck/upstreams/u").await;
        assert_eq!((status, &one), (200, &all[2]));
        assert_eq!(one["type"], "http");
        assert_eq!(get(&api, "/v1/healthcheck/routes/borrowed").await.0, 404);
        for path in ["/v1/healthcheck", "/v1/healthcheck/upstreams/u"] {
            let page = api.handle(&Method::GET, path, Some("text/html,application/xml")).await;
            assert_eq!(page.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
            assert!(page.body().starts_with(b"<html"));
        }
    }

    #[tokio::test]
    async fn a_fault_is_told() {
        let broken =
            json!({"uri": "/x", "upstream": nodes(), "filter_func": "function(vars) return true end"});
        let api = api(&[(Kind::Route, "1", broken)]).await;
        let (status, faults) = get(&api, "/v1/faults").await;
        assert_eq!(status, 200);
        assert_eq!(
            (&faults[0]["key"], &faults[0]["kind"], &faults[0]["id"]),
            (&json!("/apisix/routes/1"), &json!("route"), &json!("1"))
        );
        assert!(faults[0]["reason"].as_str().unwrap().contains("filter_func"));
    }

    #[tokio::test]
    async fn metadata_is_the_value_alone() {
        let metadata = json!({"log_format": {"t": "$upstream_response_time"}});
        let api = api(&[(Kind::PluginMetadata, "file-logger", metadata)]).await;
        let (status, shown) = get(&api, "/v1/plugin_metadata/file-logger").await;
        assert_eq!(
            (status, shown),
            (200, json!({"log_format": {"t": "$upstream_response_time"}, "id": "file-logger"}))
        );
    }

    #[tokio::test]
    async fn commands_and_methods() {
        let api = api(&[]).await;
        for (method, path, status, body) in
            [(Method::PUT, "/v1/plugins/reload", 200, "done"), (Method::POST, "/v1/gc", 200, "")]
        {
            let response = api.handle(&method, path, None).await;
            assert_eq!((response.status().as_u16(), &**response.body()), (status, body.as_bytes()), "{path}");
        }
        for (method, path) in [
            (Method::POST, "/v1/routes"),
            (Method::HEAD, "/v1/routes"),
            (Method::GET, "/v1/plugins/reload"),
            (Method::PUT, "/v1/gc"),
        ] {
            assert_eq!(api.handle(&method, path, None).await.status(), 404, "{method} {path}");
        }
        assert_eq!(api.handle(&Method::GET, "/../v1/routes", None).await.status(), 400);
    }

    #[tokio::test]
    async fn schemas_of_kinds_and_plugins() {
        let api = api(&[]).await;
        let (status, schema) = get(&api, "/v1/schema").await;
        assert_eq!(status, 200);
        for (name, of) in [("route", "object"), ("plugins", "array"), ("upstream_hash_vars_schema", "string")]
        {
            assert_eq!(schema["main"][name]["type"], of, "{name}");
        }
        for def in api.registry().all() {
            let shown = &schema["plugins"][def.name];
            assert_eq!(shown["priority"], def.priority, "{}", def.name);
            // APISIX's wolf-rbac has no schema for its consumers.
            let on_consumers = shown.get("type").is_some() && def.name != "wolf-rbac";
            assert_eq!(shown.get("consumer_schema").is_some(), on_consumers, "{}", def.name);
        }
        assert!(schema["stream_plugins"].is_object());
    }
}
