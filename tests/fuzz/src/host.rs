//! Hosts and addresses: a host that is admitted is fit to be routed by and to be sent on, and a set of addresses
//! holds every address it was made of.

use portcullis::net::{
    host::{parse_addr, split},
    host_pattern::HostPattern,
    ip_set::{IpSet, parse_ip},
};

/// Reads a text as Host header, as address and as block of addresses.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(host) = split(text) {
        assert!(!host.name.is_empty() && !host.name.bytes().any(|b| b <= b' ' || b == 0x7F || b == b'/'));
        assert!(!host.name.bytes().any(|b| b.is_ascii_uppercase()), "{host:?}");
        let pattern = HostPattern::parse(&host.name);
        assert!(pattern.matches(&host.name), "{host:?}");
    }
    let (name, _) = parse_addr(text);
    assert!(text.starts_with(name));
    portcullis::resource::node::parse_addr(text);
    if let Some(ip) = parse_ip(text) {
        let set = IpSet::parse([text]).expect("an address is a block");
        assert!(set.contains(ip) && set.contains_text(text), "{text}");
    }
    if let Ok(set) = IpSet::parse(text.split(' ')) {
        let addresses = text.split(' ').filter_map(|block| parse_ip(block.split('/').next()?));
        assert!(addresses.into_iter().all(|ip| set.contains(ip)), "{text}");
    }
}
