//! Metrics of the gateway as a whole. APISIX: prometheus/exporter.lua `collect`.
//!
//! Others feed them: the listeners and the proxy count connections and requests, the control loop sets revisions,
//! health checks are asked when a scrape comes.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
};

use super::text;
use crate::{compat::Compat, plugin::lookup};

/// See the module.
#[derive(Default)]
pub struct Gateway {
    /// Requests since the start. APISIX: `http_requests_total`.
    pub requests: Arc<AtomicU64>,
    /// Requests under way.
    pub busy: AtomicI64,
    /// Connections since the start.
    pub accepted: AtomicU64,
    /// Connections that are open.
    pub active: AtomicI64,
    /// Connections on which a request has come in part.
    pub reading: AtomicI64,
    // Locked when the configuration changes and when somebody scrapes, never per request.
    revisions: Mutex<BTreeMap<String, u64>>,
    store: AtomicU8,
    nodes: OnceLock<NodeSource>,
}

/// A node of an upstream with health checks.
pub struct NodeStatus {
    /// The resource with the health check, for example `/apisix/routes/1`.
    pub name: String,
    /// The node's address.
    pub ip: String,
    /// The node's port.
    pub port: u16,
    /// Whether it gets requests.
    pub healthy: bool,
}

/// Tells the nodes' states.
pub type NodeSource = Box<dyn Fn() -> Vec<NodeStatus> + Send + Sync>;

/// Kinds of resources that are shown also while there are none, as APISIX does.
const KINDS: [&str; 8] =
    ["consumers", "global_rules", "protos", "routes", "services", "ssls", "stream_routes", "upstreams"];
const REACHABLE: u8 = 1;
const UNREACHABLE: u8 = 2;

impl Gateway {
    /// A client connected.
    pub fn opened(&self) {
        self.accepted.fetch_add(1, Relaxed);
        self.active.fetch_add(1, Relaxed);
    }

    /// A client's connection is over.
    pub fn closed(&self) {
        self.active.fetch_sub(1, Relaxed);
    }

    /// Notes the newest revision of a kind of resource, by APISIX's plural: `routes`, `global_rules`, `protos`…
    pub fn set_revision(&self, kind: &str, revision: u64) {
        let mut revisions = self.revisions.lock().unwrap_or_else(PoisonError::into_inner);
        revisions.insert(kind.to_owned(), revision);
    }

    /// Notes whether the store that stands for etcd answers; without it there are no `etcd_*`.
    pub fn set_store_reachable(&self, reachable: bool) {
        self.store.store(if reachable { REACHABLE } else { UNREACHABLE }, Relaxed);
    }

    /// Names who knows the nodes' states; the first one counts.
    pub fn set_node_source(&self, source: NodeSource) {
        let _ = self.nodes.set(source);
    }

    pub(super) fn render(&self, out: &mut String, prefix: &str, compat: Compat) {
        let named = |name: &str| format!("{prefix}{name}");
        let store = self.store.load(Relaxed);
        if store != 0 {
            self.render_revisions(out, &named("etcd_modify_indexes"));
            let name = named("etcd_reachable");
            text::family(out, &name, "Config server etcd reachable from APISIX, 0 is unreachable", "gauge");
            text::sample(out, &name, &[], u8::from(store == REACHABLE));
        }
        let name = named("http_requests_total");
        text::family(out, &name, "The total number of client requests since APISIX started", "gauge");
        text::sample(out, &name, &[], self.requests.load(Relaxed));
        self.render_connections(out, &named("nginx_http_current_connections"));
        render_node_info(out, &named("node_info"), compat);
        self.render_nodes(out, &named("upstream_status"));
    }

    fn render_revisions(&self, out: &mut String, name: &str) {
        let mut revisions = self.revisions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let newest = revisions.values().max().copied().unwrap_or(0);
        for kind in KINDS {
            revisions.entry(kind.to_owned()).or_insert(0);
        }
        let global_rules = revisions.get("global_rules").copied().unwrap_or(0);
        text::family(out, name, "Etcd modify index for APISIX keys", "gauge");
        for (kind, revision) in &revisions {
            text::sample(out, name, &[("key", kind)], revision);
        }
        for (key, revision) in
            [("max_modify_index", newest), ("prev_index", global_rules), ("x_etcd_index", newest)]
        {
            text::sample(out, name, &[("key", key)], revision);
        }
    }

    fn render_connections(&self, out: &mut String, name: &str) {
        let (accepted, active) = (self.accepted.load(Relaxed), self.active.load(Relaxed).max(0));
        let busy = self.busy.load(Relaxed).clamp(0, active);
        text::family(out, name, "Number of HTTP connections", "gauge");
        let mut state = |state, value: u64| text::sample(out, name, &[("state", state)], value);
        state("accepted", accepted);
        state("active", active.unsigned_abs());
        state("handled", accepted);
        // The three are read one after the other, while requests come and go.
        let reading = self.reading.load(Relaxed).clamp(0, active - busy);
        state("reading", reading.unsigned_abs());
        state("waiting", (active - busy - reading).unsigned_abs());
        state("writing", busy.unsigned_abs());
    }

    fn render_nodes(&self, out: &mut String, name: &str) {
        let Some(source) = self.nodes.get() else { return };
        let nodes = source();
        if nodes.is_empty() {
            return;
        }
        text::family(out, name, "Upstream status from health check", "gauge");
        for node in nodes {
            let port = node.port.to_string();
            let labels = [("name", &*node.name), ("ip", &*node.ip), ("port", &*port)];
            text::sample(out, name, &labels, u8::from(node.healthy));
        }
    }
}

fn render_node_info(out: &mut String, name: &str, compat: Compat) {
    text::family(out, name, "Info of APISIX node", "gauge");
    let labels = [("hostname", lookup::hostname()), ("version", compat.version())];
    let shown = if compat.node_info_has_version() { &labels[..] } else { &labels[..1] };
    text::sample(out, name, shown, 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_what_it_was_told() {
        let gateway = Gateway::default();
        gateway.requests.store(7, Relaxed);
        (0..3).for_each(|_| gateway.opened());
        gateway.closed();
        gateway.busy.store(1, Relaxed);
        gateway.set_revision("routes", 12);
        gateway.set_revision("consumers", 4);
        gateway.set_store_reachable(false);
        let node = |port, healthy| NodeStatus {
            name: "/apisix/routes/1".into(),
            ip: "10.0.0.1".into(),
            port,
            healthy,
        };
        gateway.set_node_source(Box::new(move || vec![node(80, true), node(81, false)]));
        let mut out = String::new();
        gateway.render(&mut out, "apisix_", Compat::Now);
        let host = lookup::hostname();
        let lines: Vec<&str> = out.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "apisix_etcd_modify_indexes{key=\"consumers\"} 4",
                "apisix_etcd_modify_indexes{key=\"global_rules\"} 0",
                "apisix_etcd_modify_indexes{key=\"protos\"} 0",
                "apisix_etcd_modify_indexes{key=\"routes\"} 12",
                "apisix_etcd_modify_indexes{key=\"services\"} 0",
                "apisix_etcd_modify_indexes{key=\"ssls\"} 0",
                "apisix_etcd_modify_indexes{key=\"stream_routes\"} 0",
                "apisix_etcd_modify_indexes{key=\"upstreams\"} 0",
                "apisix_etcd_modify_indexes{key=\"max_modify_index\"} 12",
                "apisix_etcd_modify_indexes{key=\"prev_index\"} 0",
                "apisix_etcd_modify_indexes{key=\"x_etcd_index\"} 12",
                "apisix_etcd_reachable 0",
                "apisix_http_requests_total 7",
                "apisix_nginx_http_current_connections{state=\"accepted\"} 3",
                "apisix_nginx_http_current_connections{state=\"active\"} 2",
                "apisix_nginx_http_current_connections{state=\"handled\"} 3",
                "apisix_nginx_http_current_connections{state=\"reading\"} 0",
                "apisix_nginx_http_current_connections{state=\"waiting\"} 1",
                "apisix_nginx_http_current_connections{state=\"writing\"} 1",
                &format!("apisix_node_info{{hostname=\"{host}\",version=\"3.18.0\"}} 1"),
                "apisix_upstream_status{name=\"/apisix/routes/1\",ip=\"10.0.0.1\",port=\"80\"} 1",
                "apisix_upstream_status{name=\"/apisix/routes/1\",ip=\"10.0.0.1\",port=\"81\"} 0",
            ]
        );
    }

    #[test]
    fn the_older_node_info_has_no_version() {
        let mut out = String::new();
        Gateway::default().render(&mut out, "", Compat::V3_2);
        assert!(out.contains(&format!("node_info{{hostname=\"{}\"}} 1\n", lookup::hostname())), "{out}");
    }
}
