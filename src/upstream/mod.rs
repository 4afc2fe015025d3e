//! Upstreams: from APISIX's upstream objects to a picked peer.
//!
//! An [`Upstream`] is compiled once and shared; what changes in it (turns, scores, requests in flight, addresses,
//! health) is atomic. A request makes a [`Selection`], then for every try: [`Upstream::pick`], [`Upstream::peer`] and,
//! when the try fails, [`Upstream::retry`]; in the end [`Upstream::finish`]. Start reading at [`Upstream::pick`].
//!
//! Invariant: nothing here knows routes or plugins, and nothing but [`Upstream::ready`] waits.

mod balance;
pub mod conf;
mod hash_key;
pub mod health;
mod node;
mod peer;
pub mod resolve;
mod selection;
mod upgrade;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use pingora::upstreams::peer::HttpPeer;
use serde_json::Value;
use smallvec::SmallVec;
use tokio::task::JoinSet;

use crate::vars::var::Lookup;

use self::{
    balance::{Group, Member},
    conf::{ChecksSwitch, Kind, PassHost, Scheme, UpstreamConf, UpstreamDefaults, seconds},
    hash_key::HashKey,
    health::Checker,
    node::{InFlight, NodeState},
    peer::PeerTemplate,
    resolve::Name,
};
pub use self::{
    node::Node,
    peer::{PeerFault, PeerOverride, certificate},
    selection::{Failure, Retry, Selection},
};

/// A compiled upstream. What each request looks at comes first, in this order in memory (hence `repr(C)`): of one among
/// many thousands each piece is waited for.
#[repr(C)]
pub struct Upstream {
    /// The names of nodes, each once.
    names: Box<[Arc<Name>]>,
    /// Most upstreams have one, which then lies here.
    nodes: SmallVec<[Node; 1]>,
    template: Arc<PeerTemplate>,
    /// What few have is kept elsewhere.
    checker: Option<Box<Checker>>,
    retry_timeout: Option<Duration>,
    /// Tries after the first one.
    retries: u32,
    kind: Kind,
    scheme: Scheme,
    pass_host: PassHost,
    /// Some node has its port from the scheme.
    has_implied_port: bool,
    /// By falling priority; none where there is nothing to choose.
    groups: Box<[Group]>,
    upstream_host: Box<str>,
    key: Option<Box<HashKey>>,
}

/// Why there is no node to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickError {
    /// The upstream has no nodes.
    #[error("no valid upstream node")]
    NoNodes,
    /// All nodes were tried, or none may serve.
    #[error("failed to find valid upstream server, all upstream servers tried")]
    AllTried,
    /// No name of a node has an address.
    #[error("no valid upstream node: names are not resolved")]
    ResolveFailed,
}

impl PickError {
    /// The status APISIX answers with.
    pub fn status(self) -> u16 {
        match self {
            PickError::NoNodes | PickError::ResolveFailed => 503,
            PickError::AllTried => 502,
        }
    }
}

/// A node picked for one try. Dropping it ends the try; with `least_conn` it counts until then, so it must be dropped
/// before the next pick and kept to the end of the response.
pub struct Picked {
    index: u32,
    addr: SocketAddr,
    _in_flight: Option<InFlight>,
}

impl Picked {
    /// Where to connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The node's place in [`Upstream::nodes`].
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl Upstream {
    /// Compiles an upstream and starts to resolve its names.
    ///
    /// # Errors
    /// For what the schema cannot see: a missing `chash` key, `pass_host: rewrite` without a host, a client
    /// certificate that cannot be read. The texts are APISIX's where it has them.
    pub fn compile(conf: &UpstreamConf, defaults: &UpstreamDefaults) -> Result<Upstream, String> {
        Upstream::recompile(conf, defaults, None)
    }

    /// As [`Upstream::compile`]; nodes that `earlier`, the version it replaces, has too keep their health, scores and
    /// requests in flight.
    ///
    /// # Errors
    /// As [`Upstream::compile`].
    pub fn recompile(
        conf: &UpstreamConf,
        defaults: &UpstreamDefaults,
        earlier: Option<&Upstream>,
    ) -> Result<Upstream, String> {
        let upstream_host = conf.upstream_host.as_deref().unwrap_or_default();
        if conf.pass_host == PassHost::Rewrite && upstream_host.is_empty() {
            return Err("`upstream_host` can't be empty when `pass_host` is `rewrite`".to_owned());
        }
        let key = match conf.kind {
            Kind::Chash => Some(Box::new(HashKey::compile(conf.hash_on, conf.key.as_deref())?)),
            _ => None,
        };
        let template = PeerTemplate::shared(conf, defaults)?;
        let checker = match &conf.checks {
            Some(checks) if defaults.checks == ChecksSwitch::On => Some(Box::new(Checker::compile(checks)?)),
            _ => None,
        };
        let nodes = compile_nodes(conf, defaults, earlier);
        Ok(Upstream {
            groups: group(conf.kind, &nodes),
            names: names(&nodes),
            kind: conf.kind,
            key,
            // APISIX counts what is written, so equal nodes count, too
            retries: conf.retries.unwrap_or_else(|| conf.nodes.len().saturating_sub(1) as u32),
            retry_timeout: Some(seconds(conf.retry_timeout)).filter(|t| !t.is_zero()),
            scheme: conf.scheme,
            has_implied_port: conf.nodes.iter().any(|node| node.port.is_none()),
            pass_host: conf.pass_host,
            upstream_host: upstream_host.into(),
            template,
            checker,
            nodes,
        })
    }

    /// Picks the node for the next try. The previous [`Picked`] must be dropped before.
    ///
    /// Among nodes of the highest priority with one left; never a node that was tried, unless it is the only one of
    /// the upstream; never an unhealthy one, unless all are; never one whose name has no address.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn pick(&self, selection: &mut Selection, request: &dyn Lookup) -> Result<Picked, PickError> {
        if let [_] = &*self.nodes {
            return self.hold(selection, 0).ok_or(PickError::ResolveFailed);
        }
        let check_health = self.has_healthy_node();
        while let Some(group) = self.groups.get(selection.group) {
            let well = |m: &Member| !check_health || m.node.state().health.health().is_up();
            let usable = |m: &Member| !selection.has_tried(m.index) && well(m) && m.node.is_resolved();
            let key = || self.key.as_ref().map(|key| key.of(request)).unwrap_or_default();
            if let Some(member) = group.pick(usable, well, key) {
                let picked = self.hold(selection, member.index);
                return picked.ok_or(PickError::ResolveFailed);
            }
            selection.group += 1;
        }
        Err(self.nothing_left())
    }

    /// Decides whether a failed try is followed by another one; if so, the failed node is not picked again and the
    /// failure counts for its health.
    pub fn retry(&self, selection: &mut Selection, picked: &Picked, failure: Failure) -> Retry {
        if selection.tries() > self.retries {
            return Retry::Exhausted;
        }
        if selection.deadline.is_some_and(|deadline| deadline < Instant::now()) {
            return Retry::TimedOut;
        }
        if let Some(checker) = &self.checker {
            checker.failed(self.node(picked), failure);
        }
        selection.mark_tried(picked.index);
        Retry::Again
    }

    /// Ends a request: `status` is the one the client got, `latency` the time to connect and to respond.
    pub fn finish(&self, picked: Picked, status: u16, latency: Duration) {
        if self.kind == Kind::Ewma {
            self.node(&picked).state().score.add(latency);
        }
        if let Some(checker) = &self.checker {
            checker.finished(self.node(&picked), status);
        }
    }

    /// Why no request can be served, if so: there is no client certificate to show.
    pub fn fault(&self) -> Option<&PeerFault> {
        self.template.fault()
    }

    /// The peer to connect to. `host` is the `Host` sent to the node, from [`Upstream::host`] or a plugin.
    pub fn peer(&self, picked: &Picked, host: &str, wanted: PeerOverride<'_>) -> Box<HttpPeer> {
        self.template.peer(picked.addr, host, wanted)
    }

    /// The `Host` for the node by `pass_host`; `sent` is the client's, `scheme` the one spoken.
    pub fn host<'a>(&'a self, picked: &Picked, sent: &'a str, scheme: Scheme) -> Cow<'a, str> {
        match self.pass_host {
            PassHost::Pass => Cow::Borrowed(sent),
            PassHost::Rewrite => Cow::Borrowed(&self.upstream_host),
            PassHost::Node => self.node(picked).authority_for(self.scheme, scheme),
        }
    }

    /// Whether some node is known by a name, so that [`Upstream::ready`] may have to wait.
    pub fn has_names(&self) -> bool {
        !self.names.is_empty()
    }

    /// Returns at once when some node has an address, else waits, for a bounded time, until names were looked up.
    /// To be awaited before the first [`Upstream::pick`] of a request.
    pub async fn ready(&self) {
        if self.names.is_empty() || self.nodes.iter().any(|node| node.is_resolved()) {
            return;
        }
        let mut lookups = JoinSet::new();
        for name in &self.names {
            let name = Arc::clone(name);
            lookups.spawn(async move { name.ready().await });
        }
        while lookups.join_next().await.is_some() {}
    }

    /// The scheme configured.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Whether some node has its port from the scheme, so that no other scheme may be spoken (APISIX: `upstream.lua`
    /// fill_node_info answers 503 then).
    pub fn has_implied_port(&self) -> bool {
        self.has_implied_port
    }

    /// Which `Host` the nodes see.
    pub fn pass_host(&self) -> PassHost {
        self.pass_host
    }

    /// All nodes, in the order written.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node that was picked here.
    fn node(&self, picked: &Picked) -> &Node {
        &self.nodes[picked.index as usize]
    }

    /// Whether its nodes' health is watched.
    pub fn has_checks(&self) -> bool {
        self.checker.is_some()
    }

    /// One element of `GET /v1/healthcheck`, `key` such as `/upstreams/1`; `None` without checks.
    pub fn health_report(&self, key: &str) -> Option<Value> {
        let checker = self.checker.as_ref()?;
        Some(checker.report(key, &self.nodes))
    }

    /// Whether unhealthy nodes are to be left out: there are checks, and not all nodes fail them.
    fn has_healthy_node(&self) -> bool {
        self.checker.is_some() && self.nodes.iter().any(|n| n.state().health.health().is_up())
    }

    fn hold(&self, selection: &mut Selection, index: u32) -> Option<Picked> {
        let node = &self.nodes[index as usize];
        let addr = node.addr()?;
        selection.count_try();
        if let (1, Some(limit)) = (selection.tries(), self.retry_timeout) {
            selection.deadline = Some(Instant::now() + limit);
        }
        Some(Picked {
            index,
            addr,
            _in_flight: (self.kind == Kind::LeastConn).then(|| InFlight::on(node.state())),
        })
    }

    fn nothing_left(&self) -> PickError {
        if self.nodes.is_empty() {
            PickError::NoNodes
        } else if self.nodes.iter().any(|node| node.is_resolved()) {
            PickError::AllTried
        } else {
            PickError::ResolveFailed
        }
    }
}

/// Nodes in the order written. Of those equal in host, port and priority the last one counts (APISIX: `balancer.lua`
/// transform_node).
fn compile_nodes(
    conf: &UpstreamConf,
    defaults: &UpstreamDefaults,
    earlier: Option<&Upstream>,
) -> SmallVec<[Node; 1]> {
    let mut states: HashMap<(String, u16, i32), Arc<NodeState>> = HashMap::new();
    for node in earlier.iter().flat_map(|up| &up.nodes) {
        let key = (node.host().to_owned(), node.port(), node.priority());
        states.insert(key, Arc::clone(node.state()));
    }
    let mut nodes: SmallVec<[Node; 1]> = SmallVec::with_capacity(conf.nodes.len());
    let mut places: HashMap<(String, u16, i32), usize> = HashMap::new();
    for written in &conf.nodes {
        let node = Node::compile(written, conf.scheme, &defaults.resolver);
        let key = (node.host().to_owned(), node.port(), node.priority());
        let node = match states.get(&key) {
            Some(state) => node.with_state(Arc::clone(state)),
            None => node,
        };
        match places.get(&key) {
            Some(&place) => nodes[place] = node,
            None => {
                places.insert(key, nodes.len());
                nodes.push(node);
            }
        }
    }
    nodes
}

fn group(kind: Kind, nodes: &[Node]) -> Box<[Group]> {
    if nodes.len() < 2 {
        return Box::default();
    }
    let mut by_priority: BTreeMap<i32, Vec<(u32, Node)>> = BTreeMap::new();
    for (index, node) in nodes.iter().enumerate() {
        let group = by_priority.entry(node.priority()).or_default();
        group.push((index as u32, node.clone()));
    }
    let falling = by_priority.into_values().rev();
    falling.map(|nodes| Group::new(kind, nodes)).collect()
}

fn names(nodes: &[Node]) -> Box<[Arc<Name>]> {
    let mut names: Vec<Arc<Name>> = Vec::new();
    for name in nodes.iter().filter_map(|node| node.name()) {
        if !names.iter().any(|known| Arc::ptr_eq(known, name)) {
            names.push(Arc::clone(name));
        }
    }
    names.into()
}

#[cfg(test)]
mod tests;
