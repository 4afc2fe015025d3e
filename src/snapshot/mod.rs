//! Everything compiled, immutable, swapped at once.
//!
//! A [`Snapshot`] is what a request sees from start to end. The next one shares with it all that did not
//! change. Start with [`workspace`], which derives one from the other.
//! Invariant: nothing in a snapshot is ever changed but counters inside plugins and upstreams.

pub mod client_certs;
pub mod compile;
pub mod consumers;
pub mod judge;
pub mod router;
pub mod shard_map;
pub mod upstreams;
pub mod workspace;

use std::sync::Arc;

use arc_swap::ArcSwap;

use self::{
    compile::Env,
    consumers::Consumers,
    router::{Router, Rule},
    shard_map::ShardMap,
};
use crate::{
    compat::Compat,
    plugin::{
        chain::Chain,
        consumer::{Authenticated, Consumer},
        contract::PublicApi,
        env::Carry,
        exchange::World,
        metrics::Metrics,
        request::RouteMeta,
    },
    upstream::{Upstream, conf::TimeoutConf},
    vars::expr::Expr,
};

/// One state of the whole configuration, ready to serve.
#[derive(Clone)]
pub struct Snapshot {
    /// The store's revision that it stands for.
    pub revision: u64,
    /// Finds the route of a request.
    pub router: Router<Route>,
    /// Upstreams by id.
    pub upstreams: ShardMap<Arc<Upstream>>,
    /// Consumers by name and by credential.
    pub consumers: Consumers,
    /// Plugins of consumer groups by id.
    pub groups: ShardMap<Chain>,
    /// Plugins of all global rules, merged.
    pub global: Chain,
    env: Arc<Env>,
}

/// A compiled route, in the order in which a request looks at it, as [`Rule`].
#[repr(C)]
pub struct Route {
    /// `vars`.
    pub vars: Option<Box<Expr>>,
    /// It matches but cannot serve.
    pub fault: Option<Fault>,
    /// `enable_websocket`.
    pub websocket: bool,
    /// Its plugins over those of its plugin config over those of its service.
    pub chain: Chain,
    /// Where requests go.
    pub upstream: RouteUpstream,
    /// `timeout` of the route, which wins over the upstream's.
    pub timeout: Option<TimeoutConf>,
    /// What variables, logs and metrics say of it.
    pub meta: RouteMeta,
}

impl AsRef<RouteMeta> for Rule<Route> {
    fn as_ref(&self) -> &RouteMeta {
        &self.target.meta
    }
}

/// Where the requests of a route go.
pub enum RouteUpstream {
    /// Nowhere: 503 unless a plugin answers.
    None,
    /// Written into the route or its service.
    Inline(Arc<Upstream>),
    /// Looked up when a request comes: its change needs no new route.
    Id(Arc<str>),
}

/// Why a route that matches cannot serve. APISIX finds out per request and answers the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// `service_id` names none: 404.
    ServiceMissing,
    /// `plugin_config_id` names none: 503.
    PluginConfigMissing,
}

impl Snapshot {
    /// An empty configuration.
    pub fn empty(env: Arc<Env>) -> Self {
        Self {
            revision: 0,
            router: Router::new(env.mode),
            upstreams: ShardMap::new(),
            consumers: Consumers::new(&env),
            groups: ShardMap::new(),
            global: Chain::default(),
            env,
        }
    }
}

impl World for Snapshot {
    fn find(&self, plugin: &str, key: &str) -> Option<&Arc<Authenticated>> {
        self.consumers.find(plugin, key)
    }

    fn has_any(&self, plugin: &str) -> bool {
        self.consumers.has_any(plugin)
    }

    fn consumer(&self, username: &str) -> Option<&Arc<Consumer>> {
        self.consumers.by_name(username)
    }

    fn api(&self, method: &str, path: &str) -> Option<&PublicApi> {
        self.env.apis.iter().find(|api| api.path == path && api.methods.contains(&method))
    }

    fn compat(&self) -> Compat {
        self.env.compat
    }

    fn carry(&self) -> &Carry {
        &self.env.carry
    }

    fn metrics(&self) -> &Metrics {
        &self.env.metrics
    }

    fn tells_why(&self) -> bool {
        self.env.debug_auth
    }
}

/// The running snapshot; the only place that swaps it is [`crate::control`].
pub struct Current(ArcSwap<Snapshot>);

impl Current {
    /// Starts with a snapshot.
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        Self(ArcSwap::new(snapshot))
    }

    /// The running snapshot, to be kept for a whole request.
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    /// Lets requests from now on see another snapshot.
    pub fn swap(&self, next: Arc<Snapshot>) {
        self.0.store(next);
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// Among 100,000 routes every line of 64 bytes is a wait for memory.
    #[test]
    fn what_a_request_looks_at_lies_together() {
        let looked_at = offset_of!(Rule<Route>, target) + offset_of!(Route, meta);
        assert!(looked_at <= 3 * 64, "{looked_at} bytes of a route");
        assert!(size_of::<Upstream>() <= 3 * 64, "{} bytes of an upstream", size_of::<Upstream>());
    }
}
