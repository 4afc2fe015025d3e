//! One node of an upstream: where it is, and what is remembered about it.
//!
//! Invariant: [`NodeState`] is the only thing that changes, and it outlives the configuration it was made for: a new
//! version of an upstream takes over the states of the nodes it keeps.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    balance::ewma::Score,
    conf::{NodeConf, Scheme},
    health::Target,
    resolve::{Name, Resolver},
};

/// A compiled node. Its copies share what is remembered about it.
#[derive(Clone)]
pub struct Node {
    /// As configured; an IPv6 address in brackets.
    host: Arc<str>,
    port: u16,
    weight: u32,
    priority: i32,
    place: Place,
    /// `host` or `host:port`, as `pass_host: node` sends it for the upstream's scheme.
    authority: Arc<str>,
    state: Arc<NodeState>,
}

/// What is remembered about a node.
#[derive(Default)]
pub struct NodeState {
    /// Requests in flight; counted for `least_conn` only.
    pub(super) in_flight: AtomicUsize,
    /// Response times, for `ewma` only.
    pub(super) score: Score,
    /// Health, for upstreams with checks only.
    pub(super) health: Target,
}

#[derive(Clone)]
enum Place {
    Fixed(SocketAddr),
    Named(Arc<Name>),
}

impl Node {
    pub(super) fn compile(conf: &NodeConf, scheme: Scheme, resolver: &Arc<Resolver>) -> Node {
        let port = conf.port.unwrap_or_else(|| scheme.port());
        let (host, place) = match parse_ip(&conf.host) {
            Some(ip) => (literal(ip), Place::Fixed(SocketAddr::new(ip, port))),
            None => (conf.host.clone(), Place::Named(resolver.name(&conf.host))),
        };
        Node {
            authority: authority(&host, port, scheme).into(),
            host: host.into(),
            port,
            weight: conf.weight,
            priority: conf.priority,
            place,
            state: Arc::default(),
        }
    }

    /// The same node with the memory of an earlier version.
    pub(super) fn with_state(self, state: Arc<NodeState>) -> Node {
        Node { state, ..self }
    }

    /// As configured; an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port connected to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it may serve, as far as health checks know.
    pub fn is_healthy(&self) -> bool {
        self.state().health.health().is_up()
    }

    /// Its share of traffic.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Its priority.
    pub fn priority(&self) -> i32 {
        self.priority
    }

    /// The `Host` of `pass_host: node`: the port is left out when it is the scheme's own
    /// (APISIX: `balancer.lua` parse_server_for_upstream_host).
    pub(super) fn authority_for(&self, compiled: Scheme, spoken: Scheme) -> Cow<'_, str> {
        if compiled.port() == spoken.port() {
            return Cow::Borrowed(&self.authority);
        }
        Cow::Owned(authority(&self.host, self.port, spoken))
    }

    /// Where to connect; the addresses of a name take turns. `None` while the name is unresolved.
    pub(super) fn addr(&self) -> Option<SocketAddr> {
        match &self.place {
            Place::Fixed(addr) => Some(*addr),
            Place::Named(name) => name.next().map(|ip| SocketAddr::new(ip, self.port)),
        }
    }

    pub(super) fn is_resolved(&self) -> bool {
        match &self.place {
            Place::Fixed(_) => true,
            Place::Named(name) => name.is_resolved(),
        }
    }

    pub(super) fn name(&self) -> Option<&Arc<Name>> {
        match &self.place {
            Place::Fixed(_) => None,
            Place::Named(name) => Some(name),
        }
    }

    /// What stands for the node on the hash ring: its address, or one made from its name.
    ///
    /// Differs from APISIX: the ring of a named node does not move when its addresses do.
    pub(super) fn ring_addr(&self) -> SocketAddr {
        match &self.place {
            Place::Fixed(addr) => *addr,
            Place::Named(name) => SocketAddr::new(stand_in(name.host()), self.port),
        }
    }

    pub(super) fn state(&self) -> &Arc<NodeState> {
        &self.state
    }
}

/// A request counted on a node until it is dropped.
pub(super) struct InFlight(Arc<NodeState>);

impl InFlight {
    pub(super) fn on(state: &Arc<NodeState>) -> InFlight {
        state.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(state))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An address as written in configuration, IPv6 with or without brackets.
pub(super) fn parse_ip(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

fn literal(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

fn authority(host: &str, port: u16, scheme: Scheme) -> String {
    if port == scheme.port() { host.to_owned() } else { format!("{host}:{port}") }
}

/// A private (fd00::/8) address made from a name, so that rings need not know names: FNV-1a, 128 bits.
fn stand_in(name: &str) -> IpAddr {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in name.bytes() {
        hash ^= u128::from(byte.to_ascii_lowercase());
        hash = hash.wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    IpAddr::V6(Ipv6Addr::from((hash >> 8) | (0xfd << 120)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_leaves_out_the_scheme_s_own_port() {
        for (host, port, scheme, want) in [
            ("a.com", 80, Scheme::Http, "a.com"),
            ("a.com", 443, Scheme::Http, "a.com:443"),
            ("a.com", 443, Scheme::Grpcs, "a.com"),
            ("[::1]", 8080, Scheme::Http, "[::1]:8080"),
        ] {
            assert_eq!(authority(host, port, scheme), want);
        }
    }

    #[test]
    fn addresses_are_read_with_and_without_brackets() {
        for (host, want) in [
            ("127.0.0.1", Some("127.0.0.1")),
            ("::1", Some("[::1]")),
            ("[::1]", Some("[::1]")),
            ("foo.com", None),
            ("[foo]", None),
            ("", None),
        ] {
            assert_eq!(parse_ip(host).map(literal).as_deref(), want, "{host}");
        }
    }

    #[test]
    fn stand_ins_are_private_and_differ_by_name_only() {
        let a = stand_in("a.example.com");
        assert_eq!(a, stand_in("A.example.com"));
        assert_ne!(a, stand_in("b.example.com"));
        assert!(matches!(a, IpAddr::V6(v6) if v6.octets()[0] == 0xfd));
    }
}
