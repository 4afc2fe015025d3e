//! Health of nodes: four counters and a state for each, as `lua-resty-healthcheck` keeps them.
//!
//! Successes and failures come from probes ([`probe`]) and, where `checks.passive` says so, from requests. Any failure
//! clears the successes, a success clears all failures; the counter that reaches its limit decides. Reports that only
//! confirm a settled state are not counted.
//!
//! Differs from APISIX: nodes are probed and shown from the moment their upstream is there, not from its first request.
//!
//! Invariant: reading and reporting take no lock, and probing never happens on the path of a request.

pub mod probe;

use std::{
    collections::HashSet,
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::{Value, json};
use tracing::warn;

use super::{
    conf::{ActiveConf, CheckKind, ChecksConf, HealthyConf, UnhealthyConf},
    node::Node,
    selection::Failure,
};

/// The states of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Serving.
    Healthy,
    /// Serving, but failures are being counted.
    MostlyHealthy,
    /// Not serving, but successes are being counted.
    MostlyUnhealthy,
    /// Not serving.
    Unhealthy,
}

impl Health {
    /// Whether requests go to the node.
    pub fn is_up(self) -> bool {
        matches!(self, Health::Healthy | Health::MostlyHealthy)
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Health::Healthy => "healthy",
            Health::MostlyHealthy => "mostly_healthy",
            Health::MostlyUnhealthy => "mostly_unhealthy",
            Health::Unhealthy => "unhealthy",
        }
    }

    fn from_bits(bits: u8) -> Health {
        match bits {
            0 => Health::Healthy,
            1 => Health::MostlyHealthy,
            2 => Health::MostlyUnhealthy,
            _ => Health::Unhealthy,
        }
    }
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    Success = 0,
    Http = 1,
    Tcp = 2,
    Timeout = 3,
}

/// State and counters of one node: a byte each, packed into a word so that they change together.
#[derive(Default)]
pub struct Target(AtomicU64);

/// The unpacked word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    counts: [u8; 4],
    health: Health,
}

impl Target {
    /// The state.
    pub fn health(&self) -> Health {
        Record::unpack(self.0.load(Ordering::Relaxed)).health
    }

    /// Counts one event; returns the states before and after. `limit` 0 switches the counter off.
    fn count(&self, what: Count, limit: u8) -> (Health, Health) {
        let update = |word| {
            let next = Record::unpack(word).after(what, limit)?;
            Some(next.pack())
        };
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update) {
            Ok(before) => {
                let before = Record::unpack(before);
                let after = before.after(what, limit).unwrap_or(before);
                (before.health, after.health)
            }
            Err(word) => {
                let health = Record::unpack(word).health;
                (health, health)
            }
        }
    }

    fn record(&self) -> Record {
        Record::unpack(self.0.load(Ordering::Relaxed))
    }
}

impl Record {
    fn unpack(word: u64) -> Record {
        let [a, b, c, d, health, ..] = word.to_le_bytes();
        Record { counts: [a, b, c, d], health: Health::from_bits(health) }
    }

    fn pack(self) -> u64 {
        let [a, b, c, d] = self.counts;
        u64::from_le_bytes([a, b, c, d, self.health as u8, 0, 0, 0])
    }

    /// `None` when the event changes nothing.
    fn after(mut self, what: Count, limit: u8) -> Option<Record> {
        let settled = if what == Count::Success { Health::Healthy } else { Health::Unhealthy };
        if limit == 0 || self.health == settled {
            return None;
        }
        let count = self.counts[what as usize].saturating_add(1);
        if what == Count::Success {
            self.counts = [0; 4];
        } else {
            self.counts[Count::Success as usize] = 0;
        }
        self.counts[what as usize] = count;
        self.health = match (self.health, settled) {
            _ if count >= limit => settled,
            (Health::Healthy, _) => Health::MostlyHealthy,
            (Health::Unhealthy, _) => Health::MostlyUnhealthy,
            (between, _) => between,
        };
        Some(self)
    }
}

/// The checks of an upstream.
pub(super) struct Checker {
    active: Option<Active>,
    passive: Limits,
    /// Statuses of finished requests count.
    passive_statuses: bool,
    kind: &'static str,
}

struct Active {
    conf: ActiveConf,
    limits: Limits,
    tls: Option<probe::Tls>,
}

/// The thresholds of one kind of check.
struct Limits {
    good: HashSet<u16>,
    bad: HashSet<u16>,
    successes: u8,
    http_failures: u8,
    tcp_failures: u8,
    timeouts: u8,
}

impl Limits {
    fn new(healthy: &HealthyConf, unhealthy: &UnhealthyConf) -> Limits {
        Limits {
            good: healthy.http_statuses.iter().copied().collect(),
            bad: unhealthy.http_statuses.iter().copied().collect(),
            successes: healthy.successes,
            http_failures: unhealthy.http_failures,
            tcp_failures: unhealthy.tcp_failures,
            timeouts: unhealthy.timeouts,
        }
    }

    fn status(&self, status: u16) -> Option<(Count, u8)> {
        if self.good.contains(&status) {
            Some((Count::Success, self.successes))
        } else if self.bad.contains(&status) || status == 0 {
            Some((Count::Http, self.http_failures))
        } else {
            None
        }
    }

    fn failure(&self, failure: Failure) -> Option<(Count, u8)> {
        match failure {
            Failure::Tcp => Some((Count::Tcp, self.tcp_failures)),
            Failure::Timeout => Some((Count::Timeout, self.timeouts)),
            Failure::Status(status) => self.status(status),
        }
    }
}

impl Active {
    fn compile(conf: &ActiveConf) -> Result<Active, String> {
        Ok(Active {
            limits: Limits::new(&conf.healthy, &conf.unhealthy),
            tls: probe::Tls::for_checks(conf)?,
            conf: conf.clone(),
        })
    }
}

impl Checker {
    /// # Errors
    /// When the TLS library cannot be set up for https probes.
    pub(super) fn compile(conf: &ChecksConf) -> Result<Checker, String> {
        // a failed try counts by the default limits even without `checks.passive`
        let passive = conf.passive.clone().unwrap_or_default();
        let kind = match (&conf.active, &conf.passive) {
            (Some(active), _) => active.kind,
            (None, Some(passive)) => passive.kind,
            (None, None) => CheckKind::default(),
        };
        Ok(Checker {
            active: conf.active.as_ref().map(Active::compile).transpose()?,
            passive: Limits::new(&passive.healthy, &passive.unhealthy),
            passive_statuses: conf.passive.is_some(),
            kind: kind.name(),
        })
    }

    /// A try failed and another follows (APISIX: `balancer.lua` pick_server).
    pub(super) fn failed(&self, node: &Node, failure: Failure) {
        report(node, self.passive.failure(failure));
    }

    /// A request ended with this status (APISIX: `init.lua` healthcheck_passive).
    pub(super) fn finished(&self, node: &Node, status: u16) {
        if self.passive_statuses && status != 0 {
            report(node, self.passive.status(status));
        }
    }

    /// One element of `GET /v1/healthcheck` (APISIX: `control/v1.lua`).
    pub(super) fn report(&self, key: &str, nodes: &[Node]) -> Value {
        // Nodes of one machine that are all probed at one port are one target.
        let mut seen = std::collections::BTreeSet::new();
        let mut is_new =
            |node: &Value| seen.insert(["ip", "port", "hostname"].map(|name| node[name].to_string()));
        let nodes: Vec<Value> =
            nodes.iter().map(|node| self.report_node(node)).filter(|node| is_new(node)).collect();
        // An empty Lua table is an object in JSON.
        let listed = if nodes.is_empty() { json!({}) } else { Value::Array(nodes) };
        json!({"name": key, "nodes": listed, "type": self.kind})
    }

    fn report_node(&self, node: &Node) -> Value {
        let Record { counts, health } = node.state().health.record();
        let ip = node.addr().map_or_else(|| node.host().to_owned(), |addr| addr.ip().to_string());
        let active = self.active.as_ref().map(|active| &active.conf);
        let hostname = active.and_then(|a| a.host.as_deref()).unwrap_or(&ip);
        let port = active.and_then(|a| a.port).unwrap_or(node.port());
        json!({
            "ip": ip,
            "port": port,
            "hostname": hostname,
            "status": health.name(),
            "counter": {
                "success": counts[Count::Success as usize],
                "http_failure": counts[Count::Http as usize],
                "tcp_failure": counts[Count::Tcp as usize],
                "timeout_failure": counts[Count::Timeout as usize],
            },
        })
    }
}

fn report(node: &Node, event: Option<(Count, u8)>) {
    let Some((what, limit)) = event else {
        return;
    };
    let (before, after) = node.state().health.count(what, limit);
    if before.is_up() != after.is_up() {
        warn!(host = node.host(), port = node.port(), cause = ?what, status = after.name(), "node changed its health");
    }
}

#[cfg(test)]
mod tests {
    use super::{super::conf::PassiveConf, *};

    /// Events by letter: s(uccess), h(ttp), t(cp), o (timeout); limits 2, 3, 2, 2.
    #[track_caller]
    fn check(events: &str, health: Health, counts: [u8; 4]) {
        let target = Target::default();
        for event in events.chars() {
            let (what, limit) = match event {
                's' => (Count::Success, 2),
                'h' => (Count::Http, 3),
                't' => (Count::Tcp, 2),
                _ => (Count::Timeout, 2),
            };
            target.count(what, limit);
        }
        assert_eq!(target.record(), Record { counts, health }, "after {events}");
    }

    #[test]
    fn states_and_counters() {
        check("", Health::Healthy, [0, 0, 0, 0]);
        check("sss", Health::Healthy, [0, 0, 0, 0]);
        check("t", Health::MostlyHealthy, [0, 0, 1, 0]);
        check("tt", Health::Unhealthy, [0, 0, 2, 0]);
        check("tttt", Health::Unhealthy, [0, 0, 2, 0]);
        check("hht", Health::MostlyHealthy, [0, 2, 1, 0]);
        check("hhs", Health::MostlyHealthy, [1, 0, 0, 0]);
        check("hhss", Health::Healthy, [2, 0, 0, 0]);
        check("hhsh", Health::MostlyHealthy, [0, 1, 0, 0]);
        check("tts", Health::MostlyUnhealthy, [1, 0, 0, 0]);
        check("ttso", Health::MostlyUnhealthy, [0, 0, 0, 1]);
        check("ttss", Health::Healthy, [2, 0, 0, 0]);
        check("oo", Health::Unhealthy, [0, 0, 0, 2]);
    }

    #[test]
    fn limit_zero_switches_a_counter_off() {
        let target = Target::default();
        for _ in 0..300 {
            target.count(Count::Tcp, 0);
        }
        assert_eq!(target.health(), Health::Healthy);
    }

    #[test]
    fn statuses_count_by_the_lists() {
        let PassiveConf { healthy, unhealthy, .. } = PassiveConf::default();
        let limits = Limits::new(&healthy, &unhealthy);
        for (status, want) in [
            (200, Some((Count::Success, 5))),
            (302, Some((Count::Success, 5))),
            (500, Some((Count::Http, 5))),
            (502, None),
            (404, None),
        ] {
            assert_eq!(limits.status(status), want, "{status}");
        }
        assert_eq!(limits.failure(Failure::Tcp), Some((Count::Tcp, 2)));
        assert_eq!(limits.failure(Failure::Timeout), Some((Count::Timeout, 7)));
    }
}
