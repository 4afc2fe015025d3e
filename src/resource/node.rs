//! Nodes of an upstream: the map form and the list form become one list.
//!
//! Invariant: the order is that of the list form; the map form, which has none, is sorted by address.

use serde::Deserialize;
use serde::de::{Deserializer, Error};
use serde_json::{Map, Value};

/// A server in an upstream.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Node {
    /// Name or address; an IPv6 address may or may not stand in brackets.
    pub host: String,
    /// `None`: the port of the upstream's scheme.
    #[serde(default)]
    pub port: Option<u16>,
    /// Share of the requests; `0` takes none.
    pub weight: u32,
    /// Nodes of a lower priority are used when none of a higher one is left.
    #[serde(default)]
    pub priority: i64,
    /// Free-form facts.
    #[serde(default, deserialize_with = "super::typed::map")]
    pub metadata: Map<String, Value>,
}

/// Splits `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address; the port is `None` unless it is a number.
/// APISIX: core/utils.lua parse_addr.
pub fn parse_addr(addr: &str) -> (&str, Option<u64>) {
    // Two colons before any dot make it an IPv6 address.
    let is_ipv6 = || addr.split('.').next().is_some_and(|head| head.matches(':').count() > 1);
    let (host, port) = match addr.rsplit_once(':') {
        Some((host, port)) if addr.starts_with('[') && host.ends_with(']') => (host, port),
        Some((host, port)) if !addr.starts_with('[') && !is_ipv6() => (host, port),
        _ => return (addr, None),
    };
    // A colon in the very last place is part of the host to APISIX: it looks before it.
    if port.is_empty() { (addr, None) } else { (host, port.trim().parse().ok()) }
}

/// Reads `nodes` in either form.
pub(super) fn nodes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Node>>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::Object(weights) => from_map(weights).map(Some).map_err(D::Error::custom),
        list => Vec::deserialize(list).map(Some).map_err(D::Error::custom),
    }
}

fn from_map(weights: Map<String, Value>) -> Result<Vec<Node>, String> {
    let mut nodes = Vec::with_capacity(weights.len());
    let mut weights: Vec<(String, Value)> = weights.into_iter().collect();
    weights.sort_by(|(one, _), (other, _)| one.cmp(other));
    for (addr, weight) in weights {
        let (host, port) = parse_addr(&addr);
        let port = port.map(u16::try_from).transpose().map_err(|_| format!("invalid port in {addr}"))?;
        let weight = weight.as_u64().and_then(|weight| u32::try_from(weight).ok());
        let weight = weight.ok_or_else(|| format!("invalid weight of {addr}"))?;
        nodes.push(Node { host: host.to_owned(), port, weight, priority: 0, metadata: Map::new() });
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(addr: &str, host: &str, port: Option<u64>) {
        assert_eq!(parse_addr(addr), (host, port), "{addr}");
    }

    #[test]
    fn addresses() {
        check("127.0.0.1", "127.0.0.1", None);
        check("127.0.0.1:1980", "127.0.0.1", Some(1980));
        check("a.com:80", "a.com", Some(80));
        check("localhost:80", "localhost", Some(80));
        check("localhost", "localhost", None);
        check("[::1]", "[::1]", None);
        check("[::1]:80", "[::1]", Some(80));
        check("[::1", "[::1", None);
        check("2001:db8::68", "2001:db8::68", None);
        check("::ffff:192.0.2.1", "::ffff:192.0.2.1", None);
        check("a.com:x", "a.com", None);
        check("a.com:", "a.com:", None);
    }

    proptest! {
        #[test]
        fn host_and_port_come_back(host in "[a-z0-9.-]{1,12}", port in 1..65536_u64) {
            let addr = format!("{host}:{port}");
            prop_assert_eq!(parse_addr(&addr), (host.as_str(), Some(port)));
        }

        #[test]
        fn any_text_is_an_address(addr in "\\PC{0,20}|[\\[\\]:.a0-9]{0,12}") {
            parse_addr(&addr);
        }
    }
}
