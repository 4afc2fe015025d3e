//! From an upstream as stored to what `upstream` compiles.

use std::{net::SocketAddrV4, sync::Arc};

use super::{client_certs::ClientCerts, compile::Env};
use crate::{
    resource::{self, node::Node},
    upstream::{
        Upstream,
        conf::{
            ActiveConf, CheckKind, ChecksConf, ClientCert, HashOn, HealthyConf, KeepaliveConf, Kind,
            NodeConf, PassHost, PassiveConf, Scheme, TimeoutConf, TlsConf, UnhealthyConf, UpstreamConf,
        },
    },
};

/// Compiles an upstream; nodes that `old` has too keep their state.
///
/// # Errors
/// What is wrong with it, in APISIX's words where it has them.
pub fn compile(
    env: &Env,
    certs: &ClientCerts,
    stored: &resource::Upstream,
    old: Option<&Arc<Upstream>>,
) -> Result<Arc<Upstream>, String> {
    let conf = conf(env, certs, stored)?;
    Ok(Arc::new(Upstream::recompile(&conf, &env.upstream, old.map(|old| &**old))?))
}

/// Whether an upstream would compile; whether there is a certificate with its `tls.client_cert_id` is for others to
/// say.
///
/// # Errors
/// As [`compile`].
pub fn check(env: &Env, stored: &resource::Upstream) -> Result<(), String> {
    compile(env, &ClientCerts::default(), stored, None).map(drop)
}

fn conf(env: &Env, certs: &ClientCerts, stored: &resource::Upstream) -> Result<UpstreamConf, String> {
    if let Some(kind) = &stored.discovery_type {
        return Err(format!("discovery_type {kind} is not supported yet: list the servers under nodes"));
    }
    Ok(UpstreamConf {
        nodes: stored.nodes.iter().flatten().map(node).collect(),
        kind: kind(&stored.algorithm)?,
        hash_on: match stored.hash_on {
            resource::HashOn::Vars => HashOn::Vars,
            resource::HashOn::Header => HashOn::Header,
            resource::HashOn::Cookie => HashOn::Cookie,
            resource::HashOn::Consumer => HashOn::Consumer,
            resource::HashOn::VarsCombinations => HashOn::VarsCombinations,
        },
        key: stored.key.clone(),
        retries: stored.retries,
        retry_timeout: stored.retry_timeout.unwrap_or(0.0),
        timeout: stored.timeout.map(|t| TimeoutConf { connect: t.connect, send: t.send, read: t.read }),
        pass_host: match stored.pass_host {
            resource::PassHost::Pass => PassHost::Pass,
            resource::PassHost::Node => PassHost::Node,
            resource::PassHost::Rewrite => PassHost::Rewrite,
        },
        upstream_host: stored.upstream_host.clone(),
        scheme: scheme(stored.scheme)?,
        tls: stored.tls.as_ref().map(|tls| self::tls(env, certs, tls)),
        keepalive_pool: stored.keepalive_pool.as_ref().map(|pool| KeepaliveConf {
            size: pool.size,
            idle_timeout: pool.idle_timeout,
            requests: u32::try_from(pool.requests).unwrap_or(u32::MAX),
        }),
        checks: stored.checks.as_ref().map(checks),
    })
}

fn node(node: &Node) -> NodeConf {
    // In a list, too, the host may be an IPv4 address with a port, which counts: nginx reads it like that.
    let (host, port) = match node.host.parse::<SocketAddrV4>() {
        Ok(both) => (both.ip().to_string(), Some(both.port())),
        Err(_) => (node.host.clone(), node.port),
    };
    NodeConf {
        host,
        port,
        weight: node.weight,
        priority: i32::try_from(node.priority).unwrap_or(if node.priority < 0 { i32::MIN } else { i32::MAX }),
    }
}

fn kind(name: &str) -> Result<Kind, String> {
    match name {
        "roundrobin" => Ok(Kind::RoundRobin),
        "chash" => Ok(Kind::Chash),
        "ewma" => Ok(Kind::Ewma),
        "least_conn" => Ok(Kind::LeastConn),
        other => {
            Err(format!("balancer type {other} does not exist: use roundrobin, chash, ewma or least_conn"))
        }
    }
}

fn scheme(stored: resource::Scheme) -> Result<Scheme, String> {
    match stored {
        resource::Scheme::Http => Ok(Scheme::Http),
        resource::Scheme::Https => Ok(Scheme::Https),
        resource::Scheme::Grpc => Ok(Scheme::Grpc),
        resource::Scheme::Grpcs => Ok(Scheme::Grpcs),
        // Legal for stream routes, which refer to the same objects; HTTP routes get 503 from such an upstream.
        resource::Scheme::Tcp | resource::Scheme::Tls | resource::Scheme::Udp => Ok(Scheme::Http),
        resource::Scheme::Kafka => Err("scheme kafka is not supported".into()),
    }
}

fn tls(env: &Env, certs: &ClientCerts, stored: &resource::UpstreamTls) -> TlsConf {
    let decrypted =
        |key: &String| env.keyring.as_ref().and_then(|ring| ring.decrypt(key)).unwrap_or_else(|| key.clone());
    let client = match (&stored.client_cert_id, &stored.client_cert, &stored.client_key) {
        (Some(id), ..) => certs.get(&id.0),
        (None, Some(cert), Some(key)) => ClientCert::Pair { cert: cert.clone(), key: decrypted(key) },
        _ => ClientCert::None,
    };
    TlsConf { client, verify: stored.verify }
}

fn checks(stored: &resource::HealthChecks) -> ChecksConf {
    ChecksConf { active: stored.active.as_ref().map(active), passive: stored.passive.as_ref().map(passive) }
}

fn check_kind(kind: resource::CheckType) -> CheckKind {
    match kind {
        resource::CheckType::Http => CheckKind::Http,
        resource::CheckType::Https => CheckKind::Https,
        resource::CheckType::Tcp => CheckKind::Tcp,
    }
}

fn active(stored: &resource::ActiveCheck) -> ActiveConf {
    ActiveConf {
        kind: check_kind(stored.kind),
        timeout: stored.timeout,
        concurrency: usize::try_from(stored.concurrency).unwrap_or(1),
        host: stored.host.clone(),
        port: stored.port,
        http_method: stored.http_method.clone(),
        http_path: stored.http_path.clone(),
        http_req_body: stored.http_req_body.clone(),
        https_verify_certificate: stored.https_verify_certificate,
        req_headers: stored.req_headers.clone(),
        healthy: HealthyConf {
            interval: stored.healthy.interval.into(),
            http_statuses: stored.healthy.http_statuses.clone(),
            successes: stored.healthy.successes,
        },
        unhealthy: UnhealthyConf {
            interval: stored.unhealthy.interval.into(),
            http_statuses: stored.unhealthy.http_statuses.clone(),
            http_failures: stored.unhealthy.http_failures,
            tcp_failures: stored.unhealthy.tcp_failures,
            timeouts: stored.unhealthy.timeouts,
        },
    }
}

fn passive(stored: &resource::PassiveCheck) -> PassiveConf {
    PassiveConf {
        kind: check_kind(stored.kind),
        healthy: HealthyConf {
            interval: 0,
            http_statuses: stored.healthy.http_statuses.clone(),
            successes: stored.healthy.successes,
        },
        unhealthy: UnhealthyConf {
            interval: 0,
            http_statuses: stored.unhealthy.http_statuses.clone(),
            http_failures: stored.unhealthy.http_failures,
            tcp_failures: stored.unhealthy.tcp_failures,
            timeouts: stored.unhealthy.timeouts,
        },
    }
}
