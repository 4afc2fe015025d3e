//! The balancers: one pick among the nodes of one priority.
//!
//! A balancer sees members and a filter and knows neither health, nor names, nor retries: the filter does.
//! Invariant: no balancer returns a member the filter refuses, and none misses the last one it accepts.

pub(super) mod chash;
pub(super) mod ewma;
pub(super) mod least_conn;
pub(super) mod round_robin;

use super::{conf::Kind, node::Node};

/// The nodes of one priority and how to choose among them.
pub(super) struct Group {
    members: Box<[Member]>,
    balance: Balance,
}

/// A node in its group.
pub(super) struct Member {
    /// The node's place in the upstream.
    pub(super) index: u32,
    /// Its weight, or 1 when all weights of the group are 0: APISIX serves from such a group, too.
    pub(super) weight: u32,
    pub(super) node: Node,
}

enum Balance {
    RoundRobin(round_robin::RoundRobin),
    Chash(chash::Chash),
    Ewma,
    LeastConn(least_conn::LeastConn),
}

impl Group {
    pub(super) fn new(kind: Kind, nodes: Vec<(u32, Node)>) -> Group {
        let drained = nodes.iter().all(|(_, node)| node.weight() == 0);
        // APISIX: a ring of drained nodes is empty, its other balancers then take all as equal
        let floor = u32::from(drained && kind != Kind::Chash);
        let members: Box<[Member]> = nodes
            .into_iter()
            .map(|(index, node)| Member { index, weight: node.weight().max(floor), node })
            .collect();
        let balance = match kind {
            Kind::RoundRobin => Balance::RoundRobin(round_robin::RoundRobin::new(&members)),
            Kind::Chash => Balance::Chash(chash::Chash::new(&members)),
            Kind::Ewma => Balance::Ewma,
            Kind::LeastConn => Balance::LeastConn(least_conn::LeastConn::default()),
        };
        Group { members, balance }
    }

    /// Chooses a member that `usable` accepts; `key` is asked for by `chash` only. Members of weight 0 serve in turns
    /// alone, and only while nobody else is `well`: APISIX then goes round among them.
    pub(super) fn pick<'k>(
        &self,
        usable: impl Fn(&Member) -> bool,
        well: impl Fn(&Member) -> bool,
        key: impl FnOnce() -> std::borrow::Cow<'k, str>,
    ) -> Option<&Member> {
        // Differs from APISIX: ewma and least_conn there may pick a node of weight 0
        let serving = |m: &Member| m.weight > 0 && usable(m);
        match &self.balance {
            Balance::RoundRobin(b) => b.pick(&self.members, serving).or_else(|| {
                let nobody_else = self.members.iter().all(|m| m.weight == 0 || !well(m));
                any_of(&self.members, |m| nobody_else && usable(m))
            }),
            Balance::Chash(b) => b.pick(&self.members, key().as_bytes(), serving),
            Balance::Ewma => ewma::pick(&self.members, serving),
            Balance::LeastConn(b) => b.pick(&self.members, serving),
        }
    }
}

/// One of those that `usable` accepts, at random.
fn any_of(members: &[Member], usable: impl Fn(&Member) -> bool) -> Option<&Member> {
    let count = members.iter().filter(|m| usable(m)).count();
    let chosen = fastrand::usize(..count.max(1));
    members.iter().filter(|m| usable(m)).nth(chosen)
}

/// The greatest common divisor of all weights; at least 1.
fn common_divisor(weights: impl Iterator<Item = u32>) -> u32 {
    let gcd = |mut a: u32, mut b: u32| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    weights.fold(0, gcd).max(1)
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::upstream::{
        conf::{NodeConf, Scheme},
        resolve::{Resolver, ResolverConf},
    };

    /// Members of these weights on ports 1000, 1001, …
    pub(crate) fn members(weights: &[u32]) -> Vec<(u32, Node)> {
        let resolver = Resolver::new(&ResolverConf::default()).expect("the defaults are valid");
        let node = |(i, weight): (usize, &u32)| {
            let conf = NodeConf {
                host: "127.0.0.1".to_owned(),
                port: Some(1000 + i as u16),
                weight: *weight,
                priority: 0,
            };
            let node = Node::compile(&conf, Scheme::Http, &resolver);
            (i as u32, node)
        };
        weights.iter().enumerate().map(node).collect()
    }

    /// The indices of `n` picks with nothing filtered out.
    pub(crate) fn picks(group: &Group, n: usize) -> Vec<u32> {
        let pick = |_| group.pick(|_| true, |_| true, || "".into()).expect("a member").index;
        (0..n).map(pick).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    const KINDS: [Kind; 4] = [Kind::RoundRobin, Kind::Chash, Kind::Ewma, Kind::LeastConn];

    #[test]
    fn every_balancer_finds_the_last_one_accepted() {
        for kind in KINDS {
            let group = Group::new(kind, members(&[1000, 1, 7, 1]));
            for last in 0..4 {
                let found = group.pick(|m| m.index == last, |_| true, || "k".into()).map(|m| m.index);
                assert_eq!(found, Some(last), "{kind:?}");
            }
            assert!(group.pick(|_| false, |_| true, || "k".into()).is_none(), "{kind:?}");
        }
    }

    #[test]
    fn weight_zero_is_drained() {
        for kind in KINDS {
            let group = Group::new(kind, members(&[0, 1, 0, 2]));
            for i in 0..200 {
                let found = group.pick(|_| true, |_| true, || i.to_string().into()).map(|m| m.index);
                assert!(matches!(found, Some(1 | 3)), "{kind:?} {found:?}");
            }
            let drained = |m: &Member| m.index.is_multiple_of(2);
            assert!(group.pick(drained, |_| true, || "".into()).is_none(), "{kind:?}");
            // Better than nobody, but only to the balancer that does so in APISIX.
            let found = group.pick(drained, drained, || "".into()).map(|m| m.index);
            assert_eq!(found.is_some(), kind == Kind::RoundRobin, "{kind:?} {found:?}");
        }
    }

    #[test]
    fn all_weights_zero() {
        for (kind, serves) in
            [(Kind::RoundRobin, true), (Kind::Chash, false), (Kind::Ewma, true), (Kind::LeastConn, true)]
        {
            let group = Group::new(kind, members(&[0, 0]));
            assert_eq!(group.pick(|_| true, |_| true, || "".into()).is_some(), serves, "{kind:?}");
        }
    }
}
