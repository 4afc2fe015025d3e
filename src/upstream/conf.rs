//! What an upstream is compiled from: plain typed input, already checked against APISIX's schema.
//!
//! Invariant: nothing here does I/O or knows JSON. Durations are seconds as floating point numbers, the way they
//! are written in configuration.

use std::{fmt, sync::Arc, time::Duration};

use super::resolve::Resolver;

/// An upstream as configured (APISIX: `schema_def.lua` upstream).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UpstreamConf {
    /// The servers, in the order written.
    pub nodes: Vec<NodeConf>,
    /// The balancer: `type` in JSON.
    pub kind: Kind,
    /// Where the key of `chash` comes from.
    pub hash_on: HashOn,
    /// The key of `chash`: a variable's name, a header's, a cookie's or a template, by `hash_on`.
    pub key: Option<String>,
    /// How often a failed try is repeated; by default once for every node but the first.
    pub retries: Option<u32>,
    /// Seconds from the first try after which there is no other; 0 means no limit.
    pub retry_timeout: f64,
    /// Timeouts of a try; the defaults when absent.
    pub timeout: Option<TimeoutConf>,
    /// Which `Host` the node sees.
    pub pass_host: PassHost,
    /// The `Host` for `pass_host: rewrite`.
    pub upstream_host: Option<String>,
    /// The protocol spoken with the nodes.
    pub scheme: Scheme,
    /// Client certificate and verification.
    pub tls: Option<TlsConf>,
    /// Idle connections; the defaults when absent.
    pub keepalive_pool: Option<KeepaliveConf>,
    /// Health checks.
    pub checks: Option<ChecksConf>,
}

/// One server of an upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeConf {
    /// A name, an IPv4 address or an IPv6 address, the last with or without brackets.
    pub host: String,
    /// The port; the scheme's own when absent.
    pub port: Option<u16>,
    /// The share of traffic; 0 drains the node.
    pub weight: u32,
    /// Nodes of a lower priority serve only when all of a higher one failed.
    pub priority: i32,
}

/// The balancers of APISIX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// In turn, by weight.
    #[default]
    RoundRobin,
    /// By a hash of something in the request.
    Chash,
    /// The quicker of two picked at random.
    Ewma,
    /// The one with the fewest requests in flight for its weight.
    LeastConn,
}

/// Where the key of `chash` comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HashOn {
    /// A variable, named without `$`.
    #[default]
    Vars,
    /// A request header.
    Header,
    /// A cookie.
    Cookie,
    /// The name of the consumer.
    Consumer,
    /// A template of variables.
    VarsCombinations,
}

/// Which `Host` the node sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PassHost {
    /// The one the client sent.
    #[default]
    Pass,
    /// The node's own.
    Node,
    /// `upstream_host`.
    Rewrite,
}

/// The protocol spoken with the nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// HTTP/1.1 in clear.
    #[default]
    Http,
    /// HTTP/1.1 over TLS.
    Https,
    /// HTTP/2 in clear, with prior knowledge.
    Grpc,
    /// HTTP/2 over TLS.
    Grpcs,
}

impl Scheme {
    /// The port of a node that names none.
    pub fn port(self) -> u16 {
        match self {
            Scheme::Http | Scheme::Grpc => 80,
            Scheme::Https | Scheme::Grpcs => 443,
        }
    }

    /// APISIX's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Grpc => "grpc",
            Scheme::Grpcs => "grpcs",
        }
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Grpcs)
    }

    /// Whether HTTP/2 is spoken.
    pub fn is_h2(self) -> bool {
        matches!(self, Scheme::Grpc | Scheme::Grpcs)
    }
}

/// Timeouts of one try, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeoutConf {
    /// Until connected; the TLS handshake has as long again.
    pub connect: f64,
    /// Between two writes.
    pub send: f64,
    /// Between two reads.
    pub read: f64,
}

impl Default for TimeoutConf {
    fn default() -> Self {
        TimeoutConf { connect: 60.0, send: 60.0, read: 60.0 }
    }
}

/// Client certificate and verification.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TlsConf {
    /// What we show to the node.
    pub client: ClientCert,
    /// Verify the node's certificate and name.
    pub verify: bool,
}

/// What a client shows of itself in a TLS handshake.
#[derive(Clone, Default, PartialEq)]
pub enum ClientCert {
    /// Nothing.
    #[default]
    None,
    /// A certificate.
    Pair {
        /// The certificate and its chain, PEM.
        cert: String,
        /// Its private key, PEM.
        key: String,
    },
    /// One that is not to be had: requests fail.
    Missing {
        /// The status that they are answered with.
        status: u16,
        /// Why, for the log.
        reason: String,
    },
}

// By hand: a derived one would print the key.
impl fmt::Debug for ClientCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Pair { cert, .. } => f.debug_struct("Pair").field("cert", cert).finish_non_exhaustive(),
            Self::Missing { reason, .. } => f.debug_tuple("Missing").field(reason).finish(),
        }
    }
}

/// Idle connections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeepaliveConf {
    /// Connections kept. Pingora has one size for the whole process; kept here to separate pools.
    pub size: u32,
    /// Seconds a connection may be idle.
    pub idle_timeout: f64,
    /// Requests per connection. Pingora has no such limit; kept here to separate pools.
    pub requests: u32,
}

impl Default for KeepaliveConf {
    fn default() -> Self {
        KeepaliveConf { size: 320, idle_timeout: 60.0, requests: 1000 }
    }
}

/// Health checks. Passive ones alone do nothing in APISIX's schema: `active` is required there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChecksConf {
    /// Probes.
    pub active: Option<ActiveConf>,
    /// Judging by what requests meet.
    pub passive: Option<PassiveConf>,
}

/// What a probe speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckKind {
    /// One HTTP/1.1 request.
    #[default]
    Http,
    /// The same over TLS.
    Https,
    /// Only a connection.
    Tcp,
}

impl CheckKind {
    /// The name in configuration and reports.
    pub fn name(self) -> &'static str {
        match self {
            CheckKind::Http => "http",
            CheckKind::Https => "https",
            CheckKind::Tcp => "tcp",
        }
    }
}

/// `checks.active`.
#[derive(Clone, Debug, PartialEq)]
pub struct ActiveConf {
    /// What a probe speaks.
    pub kind: CheckKind,
    /// Seconds until a probe is given up.
    pub timeout: f64,
    /// Probes at the same time.
    pub concurrency: usize,
    /// Stands for the node's own host in TLS.
    pub host: Option<String>,
    /// Stands for the node's own port.
    pub port: Option<u16>,
    /// The method.
    pub http_method: String,
    /// The path.
    pub http_path: String,
    /// The body; none when empty.
    pub http_req_body: String,
    /// Whether the node's certificate must be valid.
    pub https_verify_certificate: bool,
    /// Header lines such as `User-Agent: curl`.
    pub req_headers: Vec<String>,
    /// What brings a node back.
    pub healthy: HealthyConf,
    /// What takes a node out.
    pub unhealthy: UnhealthyConf,
}

/// `checks.passive`.
#[derive(Clone, Debug, PartialEq)]
pub struct PassiveConf {
    /// Only reported.
    pub kind: CheckKind,
    /// What brings a node back. `interval` means nothing here.
    pub healthy: HealthyConf,
    /// What takes a node out. `interval` means nothing here.
    pub unhealthy: UnhealthyConf,
}

/// What brings a node back.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthyConf {
    /// Seconds between probes of a healthy node.
    pub interval: u64,
    /// Statuses that count as success.
    pub http_statuses: Vec<u16>,
    /// Successes needed; 0 switches the counter off.
    pub successes: u8,
}

/// What takes a node out.
#[derive(Clone, Debug, PartialEq)]
pub struct UnhealthyConf {
    /// Seconds between probes of an unhealthy node.
    pub interval: u64,
    /// Statuses that count as failure.
    pub http_statuses: Vec<u16>,
    /// Bad statuses needed; 0 switches the counter off.
    pub http_failures: u8,
    /// Failed connections needed; 0 switches the counter off.
    pub tcp_failures: u8,
    /// Timeouts needed; 0 switches the counter off.
    pub timeouts: u8,
}

impl Default for ActiveConf {
    fn default() -> Self {
        ActiveConf {
            kind: CheckKind::Http,
            timeout: 1.0,
            concurrency: 10,
            host: None,
            port: None,
            http_method: "GET".to_owned(),
            http_path: "/".to_owned(),
            http_req_body: String::new(),
            https_verify_certificate: true,
            req_headers: Vec::new(),
            healthy: HealthyConf { interval: 1, http_statuses: vec![200, 302], successes: 2 },
            unhealthy: UnhealthyConf {
                interval: 1,
                http_statuses: vec![429, 404, 500, 501, 502, 503, 504, 505],
                http_failures: 5,
                tcp_failures: 2,
                timeouts: 3,
            },
        }
    }
}

impl Default for PassiveConf {
    fn default() -> Self {
        let good = (200..=208).chain([226]).chain(300..=308);
        PassiveConf {
            kind: CheckKind::Http,
            healthy: HealthyConf { interval: 0, http_statuses: good.collect(), successes: 5 },
            unhealthy: UnhealthyConf {
                interval: 0,
                http_statuses: vec![429, 500, 503],
                http_failures: 5,
                tcp_failures: 2,
                timeouts: 7,
            },
        }
    }
}

/// What upstreams share and what fills in for absent fields; from the settings.
#[derive(Clone)]
pub struct UpstreamDefaults {
    /// Resolves the names of nodes.
    pub resolver: Arc<Resolver>,
    /// For upstreams without `timeout`.
    pub timeout: TimeoutConf,
    /// For upstreams without `keepalive_pool` (`nginx_config.http.upstream`).
    pub keepalive: KeepaliveConf,
    /// Whether health checks run at all (`apisix.disable_upstream_healthcheck`).
    pub checks: ChecksSwitch,
}

/// Whether health checks run at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChecksSwitch {
    /// Where configured.
    #[default]
    On,
    /// Nowhere.
    Off,
}

/// Seconds as written to a duration, to the millisecond. Nonsense (negative, not a number) counts as zero.
pub(super) fn seconds(s: f64) -> Duration {
    // a year is longer than any timeout, and keeps instants from overflowing
    Duration::from_millis((s * 1000.0).round().clamp(0.0, 31_536_000_000.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_keep_milliseconds_and_never_panic() {
        for (written, ms) in [
            (0.5, 500),
            (60.0, 60_000),
            (0.0004, 0),
            (-1.0, 0),
            (f64::NAN, 0),
            (f64::INFINITY, 31_536_000_000),
        ] {
            assert_eq!(seconds(written), Duration::from_millis(ms), "{written}");
        }
    }

    #[test]
    fn debug_hides_the_key() {
        let client = ClientCert::Pair { cert: "public".to_owned(), key: "s3cret".to_owned() };
        let tls = TlsConf { client, verify: false };
        assert!(!format!("{tls:?}").contains("s3cret"));
    }
}
