//! A set of IP addresses and CIDR blocks: sorted ranges, binary search, no allocation per question.
//!
//! IPv4 and IPv6 are apart, as in APISIX's ipmatcher: `::ffff:10.0.0.1` is an IPv6 address and not in
//! `10.0.0.0/8`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses and blocks, compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpSet {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl IpSet {
    /// Reads addresses and `address/prefix` blocks; host bits of a block need not be zero, and IPv6 may be in
    /// brackets. A prefix that is not a number is ignored, as ipmatcher does.
    ///
    /// # Errors
    /// `invalid ip address: …`, ipmatcher's words, with what stands before the slash.
    /// Differs from APISIX: a prefix outside the address's length is refused, too; there it wraps around and
    /// opens a far larger block.
    pub fn parse<'a>(blocks: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for block in blocks {
            let (address, prefix) = match block.split_once('/') {
                Some((address, prefix)) => (address, prefix_length(prefix)),
                None => (block, None),
            };
            let invalid = || format!("invalid ip address: {address}");
            match parse_ip(address).ok_or_else(invalid)? {
                IpAddr::V4(ip) => {
                    let host_bits = host_bits(prefix, 32).ok_or_else(invalid)?;
                    v4.push(range(u128::from(ip.to_bits()), host_bits));
                }
                IpAddr::V6(ip) => {
                    let host_bits = host_bits(prefix, 128).ok_or_else(invalid)?;
                    v6.push(range(ip.to_bits(), host_bits));
                }
            }
        }
        let narrow = |(low, high): (u128, u128)| (narrow(low), narrow(high));
        Ok(Self { v4: merge(v4).into_iter().map(narrow).collect(), v6: merge(v6).into() })
    }

    /// Whether the address is in one of the blocks.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => find(&self.v4, ip.to_bits()),
            IpAddr::V6(ip) => find(&self.v6, ip.to_bits()),
        }
    }

    /// [`Self::contains`] for an address as text; text that is no address is in no set.
    #[must_use]
    pub fn contains_text(&self, text: &str) -> bool {
        parse_ip(text).is_some_and(|ip| self.contains(ip))
    }

    /// Whether the set has no address at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

/// Reads an address as ipmatcher does: dotted IPv4, or IPv6 with or without brackets.
#[must_use]
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse::<Ipv4Addr>() {
        return Some(IpAddr::V4(ip));
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    bare.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

/// `None`: no number there. Numbers too large to be any prefix are kept as such.
fn prefix_length(text: &str) -> Option<i64> {
    text.trim().parse().ok()
}

fn host_bits(prefix: Option<i64>, width: u32) -> Option<u32> {
    let prefix = prefix.unwrap_or(i64::from(width));
    u32::try_from(prefix).ok().and_then(|p| width.checked_sub(p))
}

fn range(ip: u128, host_bits: u32) -> (u128, u128) {
    let mask = if host_bits == 128 { u128::MAX } else { (1 << host_bits) - 1 };
    (ip & !mask, ip | mask)
}

/// Sorts ranges and joins those that overlap or touch.
fn merge(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (low, high) in ranges {
        match merged.last_mut() {
            Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
            _ => merged.push((low, high)),
        }
    }
    merged
}

fn narrow(bits: u128) -> u32 {
    u32::try_from(bits).unwrap_or(u32::MAX)
}

fn find<T: Ord + Copy>(ranges: &[(T, T)], ip: T) -> bool {
    let after = ranges.partition_point(|(low, _)| *low <= ip);
    after.checked_sub(1).is_some_and(|at| ranges[at].1 >= ip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(blocks: &[&str], ip: &str, expected: bool) {
        let set = IpSet::parse(blocks.iter().copied()).unwrap();
        assert_eq!(set.contains_text(ip), expected, "{ip} in {blocks:?}");
    }

    #[test]
    fn membership() {
        check(&["127.0.0.1"], "127.0.0.1", true);
        check(&["127.0.0.1"], "127.0.0.2", false);
        check(&["10.1.2.3/8"], "10.255.0.0", true);
        check(&["10.0.0.0/8"], "11.0.0.0", false);
        check(&["10.0.0.0/8"], "::ffff:10.0.0.1", false);
        check(&["0.0.0.0/0"], "255.255.255.255", true);
        check(&["0.0.0.0/0"], "::1", false);
        check(&["::/0"], "ffff::", true);
        check(&["::/0"], "1.2.3.4", false);
        check(&["[::1]"], "::1", true);
        check(&["::1"], "[::1]", true);
        check(&["fe80::/33"], "fe80:0:7fff::1", true);
        check(&["fe80::/33"], "fe80:0:8000::1", false);
        check(&["1.2.3.4/x"], "1.2.3.4", true);
        check(&["1.2.3.4/x"], "1.2.3.5", false);
        check(&["10.0.0.0/24", "10.0.1.0/24", "10.0.0.0/16"], "10.0.200.1", true);
        check(&[], "1.2.3.4", false);
        check(&["1.2.3.4"], "nonsense", false);
    }

    #[test]
    fn refusals() {
        for (block, named) in [
            ("foo", "foo"),
            ("1.2.3.666/24", "1.2.3.666"),
            ("", ""),
            ("1.2.3.4/33", "1.2.3.4"),
            ("::1/-1", "::1"),
        ] {
            assert_eq!(IpSet::parse([block]), Err(format!("invalid ip address: {named}")));
        }
    }

    fn block() -> impl Strategy<Value = (IpAddr, u8)> {
        // Few distinct bits, so that blocks overlap, touch and contain the addresses asked for.
        prop_oneof![
            (0u32..64, 24u8..=32).prop_map(|(ip, p)| (IpAddr::V4(Ipv4Addr::from(ip << 2)), p)),
            (any::<u32>(), 0u8..=32).prop_map(|(ip, p)| (IpAddr::V4(Ipv4Addr::from(ip)), p)),
            (0u128..64, 120u8..=128).prop_map(|(ip, p)| (IpAddr::V6(Ipv6Addr::from(ip << 1)), p)),
            (any::<u128>(), 0u8..=128).prop_map(|(ip, p)| (IpAddr::V6(Ipv6Addr::from(ip)), p)),
        ]
    }

    fn slow(blocks: &[(IpAddr, u8)], ip: IpAddr) -> bool {
        blocks.iter().any(|(base, prefix)| match (base, ip) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => {
                (base.to_bits() ^ ip.to_bits()).leading_zeros() >= u32::from(*prefix)
            }
            (IpAddr::V6(base), IpAddr::V6(ip)) => {
                (base.to_bits() ^ ip.to_bits()).leading_zeros() >= u32::from(*prefix)
            }
            _ => false,
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_scan(
            blocks in proptest::collection::vec(block(), 0..12),
            asked in proptest::collection::vec(block(), 1..24),
        ) {
            let texts: Vec<String> = blocks.iter().map(|(ip, p)| format!("{ip}/{p}")).collect();
            let set = IpSet::parse(texts.iter().map(String::as_str)).unwrap();
            for (ip, _) in asked.iter().chain(&blocks) {
                prop_assert_eq!(set.contains(*ip), slow(&blocks, *ip), "{} in {:?}", ip, texts);
            }
        }

        #[test]
        fn never_panics(text in "\\PC{0,24}|[0-9a-f:./\\[\\]-]{0,24}") {
            let _ = IpSet::parse([text.as_str()]);
        }
    }
}
