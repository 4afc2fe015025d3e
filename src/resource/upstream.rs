//! Upstreams: servers, how requests are spread over them and how their health is watched.
//!
//! Invariant: says what the resource may hold, not what it does.

use std::fmt;
use std::net::Ipv6Addr;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

use super::node::{Node, parse_addr};
use super::typed::{Id, Labels, Timeout};
use super::{DecryptKey, parts, pem};
use crate::{
    compat::Compat,
    schema::{Schema, lua},
};

/// An upstream as stored, by itself or within a route, a service or a stream route.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Upstream {
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
    /// Its servers; `None` when a discovery finds them.
    #[serde(deserialize_with = "super::node::nodes")]
    pub nodes: Option<Vec<Node>>,
    /// How often a failed request is sent to another node; `None`: as often as there are further nodes.
    pub retries: Option<u32>,
    /// Seconds after which no retry begins; `0` or `None`: no limit.
    pub retry_timeout: Option<f64>,
    /// Time limits.
    pub timeout: Option<Timeout>,
    /// The gateway's certificate and what it expects of the server's.
    pub tls: Option<UpstreamTls>,
    /// Idle connections kept; `None`: the gateway's common pool.
    pub keepalive_pool: Option<KeepalivePool>,
    /// How requests are spread: `roundrobin`, `chash`, `ewma`, `least_conn` or a name of the operator's own.
    #[serde(rename = "type")]
    pub algorithm: String,
    /// Health checks.
    pub checks: Option<HealthChecks>,
    /// What `chash` hashes.
    pub hash_on: HashOn,
    /// The variable, header or cookie that `chash` hashes.
    pub key: Option<String>,
    /// Protocol spoken to the nodes.
    pub scheme: Scheme,
    /// Which discovery finds the nodes.
    pub discovery_type: Option<String>,
    /// What else that discovery needs.
    pub discovery_args: Option<DiscoveryArgs>,
    /// Which `Host` the nodes see.
    pub pass_host: PassHost,
    /// The `Host` they see with [`PassHost::Rewrite`].
    pub upstream_host: Option<String>,
    /// Name of the nodes in the discovery.
    pub service_name: Option<String>,
}

/// What `chash` hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are APISIX's and say it all")]
pub enum HashOn {
    #[default]
    Vars,
    Header,
    Cookie,
    Consumer,
    VarsCombinations,
}

/// Protocol spoken to the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are APISIX's and say it all")]
pub enum Scheme {
    #[default]
    Http,
    Https,
    Grpc,
    Grpcs,
    Tcp,
    Tls,
    Udp,
    Kafka,
}

/// Which `Host` the nodes see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PassHost {
    /// The client's.
    #[default]
    Pass,
    /// The node's own.
    Node,
    /// The one in `upstream_host`.
    Rewrite,
}

/// `tls`.
#[derive(Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct UpstreamTls {
    /// An ssl resource of type client with the certificate.
    pub client_cert_id: Option<Id>,
    /// The gateway's certificate, in PEM.
    pub client_cert: Option<String>,
    /// Its key, in PEM or encrypted.
    pub client_key: Option<String>,
    /// Whether the server's certificate is verified.
    pub verify: bool,
}

// By hand: a derived one would print the key.
impl fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("UpstreamTls");
        shown.field("client_cert_id", &self.client_cert_id).field("verify", &self.verify);
        shown.finish_non_exhaustive()
    }
}

/// `keepalive_pool`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct KeepalivePool {
    /// Idle connections kept at most.
    pub size: u32,
    /// Seconds an idle connection is kept.
    pub idle_timeout: f64,
    /// Requests sent over one connection at most.
    pub requests: u64,
}

/// `discovery_args`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct DiscoveryArgs {
    /// Name space to look in.
    pub namespace_id: Option<String>,
    /// Group to look in.
    pub group_name: Option<String>,
}

/// `checks`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct HealthChecks {
    /// Probes the gateway sends.
    pub active: Option<ActiveCheck>,
    /// Judgement by the answers to requests.
    pub passive: Option<PassiveCheck>,
}

/// How a node is probed or judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are APISIX's and say it all")]
pub enum CheckType {
    #[default]
    Http,
    Https,
    Tcp,
}

/// `checks.active`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct ActiveCheck {
    /// What a probe is.
    #[serde(rename = "type")]
    pub kind: CheckType,
    /// Seconds a probe may take.
    pub timeout: f64,
    /// Probes at a time.
    pub concurrency: i64,
    /// `Host` of a probe; `None`: the node's.
    pub host: Option<String>,
    /// Port probed; `None`: the node's.
    pub port: Option<u16>,
    /// Method of a probe.
    pub http_method: String,
    /// Path of a probe.
    pub http_path: String,
    /// Body of a probe.
    pub http_req_body: String,
    /// Whether a node's certificate is verified.
    pub https_verify_certificate: bool,
    /// When an unhealthy node is healthy again.
    pub healthy: ActiveHealthy,
    /// When a healthy node becomes unhealthy.
    pub unhealthy: ActiveUnhealthy,
    /// Further header lines of a probe, each `Name: value`.
    #[serde(deserialize_with = "super::typed::list")]
    pub req_headers: Vec<String>,
}

/// `checks.active.healthy`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ActiveHealthy {
    /// Seconds between probes of healthy nodes.
    pub interval: u32,
    /// Statuses of a success.
    pub http_statuses: Vec<u16>,
    /// Successes in a row that are needed.
    pub successes: u8,
}

/// `checks.active.unhealthy`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ActiveUnhealthy {
    /// Seconds between probes of unhealthy nodes.
    pub interval: u32,
    /// Statuses of a failure.
    pub http_statuses: Vec<u16>,
    /// Failing statuses that are needed.
    pub http_failures: u8,
    /// Failed connections that are needed.
    pub tcp_failures: u8,
    /// Time-outs that are needed.
    pub timeouts: u8,
}

/// `checks.passive`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct PassiveCheck {
    /// What is judged.
    #[serde(rename = "type")]
    pub kind: CheckType,
    /// When an unhealthy node is healthy again.
    pub healthy: PassiveHealthy,
    /// When a healthy node becomes unhealthy.
    pub unhealthy: PassiveUnhealthy,
}

/// `checks.passive.healthy`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PassiveHealthy {
    /// Statuses of a success.
    pub http_statuses: Vec<u16>,
    /// Successes that are needed; `0` never.
    pub successes: u8,
}

/// `checks.passive.unhealthy`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PassiveUnhealthy {
    /// Statuses of a failure.
    pub http_statuses: Vec<u16>,
    /// Failed connections that are needed; `0` never.
    pub tcp_failures: u8,
    /// Time-outs that are needed; `0` never.
    pub timeouts: u8,
    /// Failing statuses that are needed; `0` never.
    pub http_failures: u8,
}

impl Default for Upstream {
    fn default() -> Upstream {
        Upstream {
            id: None,
            name: None,
            desc: None,
            labels: Labels::new(),
            create_time: None,
            update_time: None,
            nodes: None,
            retries: None,
            retry_timeout: None,
            timeout: None,
            tls: None,
            keepalive_pool: None,
            algorithm: "roundrobin".to_owned(),
            checks: None,
            hash_on: HashOn::Vars,
            key: None,
            scheme: Scheme::Http,
            discovery_type: None,
            discovery_args: None,
            pass_host: PassHost::Pass,
            upstream_host: None,
            service_name: None,
        }
    }
}

impl Default for KeepalivePool {
    fn default() -> KeepalivePool {
        KeepalivePool { size: 320, idle_timeout: 60.0, requests: 1000 }
    }
}

impl Default for ActiveCheck {
    fn default() -> ActiveCheck {
        ActiveCheck {
            kind: CheckType::Http,
            timeout: 1.0,
            concurrency: 10,
            host: None,
            port: None,
            http_method: "GET".to_owned(),
            http_path: "/".to_owned(),
            http_req_body: String::new(),
            https_verify_certificate: true,
            healthy: ActiveHealthy::default(),
            unhealthy: ActiveUnhealthy::default(),
            req_headers: Vec::new(),
        }
    }
}

impl Default for ActiveHealthy {
    fn default() -> ActiveHealthy {
        ActiveHealthy { interval: 1, http_statuses: vec![200, 302], successes: 2 }
    }
}

impl Default for ActiveUnhealthy {
    fn default() -> ActiveUnhealthy {
        let http_statuses = vec![429, 404, 500, 501, 502, 503, 504, 505];
        ActiveUnhealthy { interval: 1, http_statuses, http_failures: 5, tcp_failures: 2, timeouts: 3 }
    }
}

impl Default for PassiveHealthy {
    fn default() -> PassiveHealthy {
        PassiveHealthy { http_statuses: parts::PASSIVE_HEALTHY.to_vec(), successes: 5 }
    }
}

impl Default for PassiveUnhealthy {
    fn default() -> PassiveUnhealthy {
        PassiveUnhealthy {
            http_statuses: vec![429, 500, 503],
            tcp_failures: 2,
            timeouts: 7,
            http_failures: 5,
        }
    }
}

/// What is checked before the schema. APISIX: upstream.lua check_schema.
pub(super) fn check_ipv6_nodes(conf: &Value, compat: Compat) -> Result<(), String> {
    if !compat.judges_strictly() {
        return Ok(());
    }
    let nodes = conf.get("nodes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let bare = |node: &Value| node.get("host").and_then(Value::as_str).is_some_and(is_ipv6);
    if nodes.iter().any(bare) {
        return Err("invalid configuration: IPv6 address must be enclosed with '[' and ']'".to_owned());
    }
    Ok(())
}

fn is_ipv6(host: &str) -> bool {
    host.parse::<Ipv6Addr>().is_ok()
}

/// What is checked after the schema; `tls.client_cert_id` is left to who knows other resources.
/// APISIX: upstream.lua check_upstream_conf.
pub(super) fn check(conf: &Value, decrypt: DecryptKey<'_>) -> Result<(), String> {
    check_ports(conf)?;
    let text = |name: &str| conf.get(name).and_then(Value::as_str);
    if text("pass_host") == Some("rewrite") && text("upstream_host").unwrap_or_default().is_empty() {
        return Err("`upstream_host` can't be empty when `pass_host` is `rewrite`".to_owned());
    }
    let tls = |name: &str| conf.get("tls").and_then(|tls| tls.get(name)).and_then(Value::as_str);
    if let (Some(cert), Some(key)) = (tls("client_cert"), tls("client_key")) {
        pem::check_pair(cert, key, decrypt)?;
    }
    check_hash(text("type"), text("hash_on"), text("key"))
}

/// Ports in the map form of `nodes`, which the schema cannot see.
fn check_ports(conf: &Value) -> Result<(), String> {
    let Some(Value::Object(weights)) = conf.get("nodes") else {
        return Ok(());
    };
    let ports = weights.keys().filter_map(|addr| parse_addr(addr).1);
    match ports.into_iter().find(|port| !(1..=65_535).contains(port)) {
        Some(port) => Err(format!("invalid port {}", lua::number_text(port as f64))),
        None => Ok(()),
    }
}

static HASH_VARIABLE: LazyLock<Schema> = LazyLock::new(|| compiled(&parts::hash_variable()));
static HASH_HEADER: LazyLock<Schema> = LazyLock::new(|| compiled(&parts::hash_header()));

fn compiled(document: &Value) -> Schema {
    Schema::compile(document).expect("the documents of this module are schemas")
}

fn check_hash(algorithm: Option<&str>, hash_on: Option<&str>, key: Option<&str>) -> Result<(), String> {
    if algorithm != Some("chash") {
        return Ok(());
    }
    let hash_on = hash_on.unwrap_or("vars");
    let Some(key) = key else {
        return if hash_on == "consumer" { Ok(()) } else { Err("missing key".to_owned()) };
    };
    let schema = match hash_on {
        "vars" => &HASH_VARIABLE,
        "header" | "cookie" => &HASH_HEADER,
        "consumer" | "vars_combinations" => return Ok(()),
        other => return Err(format!("type is chash, err: invalid hash_on type {other}")),
    };
    schema.check(&Value::from(key)).map_err(|reason| format!("invalid configuration: {reason}"))
}
