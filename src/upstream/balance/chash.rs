//! Consistent hashing on Pingora's ketama ring: 160 points for every unit of weight, as nginx and `resty.chash`.
//!
//! The ring holds all nodes, also those that are down: their keys go to the next node on the ring, all others stay.

use std::{collections::BTreeSet, sync::Arc};

use pingora_load_balancing::{
    Backend, Extensions,
    selection::{BackendIter, BackendSelection, consistent::KetamaHashing},
};

use super::{Member, common_divisor};

/// Points of a node for each unit of weight.
const POINTS: usize = 160;

/// The sum of weights a ring is built for, at most.
///
/// Differs from APISIX: there the ring takes what memory such weights need.
const MAX_TOTAL: u64 = 10_000;

pub(super) struct Chash {
    ring: Arc<KetamaHashing>,
    /// No ring has more points than this.
    points: usize,
}

/// Which member a point belongs to.
#[derive(Clone, Copy)]
struct Place(usize);

impl Chash {
    pub(super) fn new(members: &[Member]) -> Chash {
        let weights = ring_weights(members);
        let backend = |(place, &weight): (usize, &usize)| {
            let mut ext = Extensions::new();
            ext.insert(Place(place));
            Backend {
                addr: pingora::protocols::l4::socket::SocketAddr::Inet(members[place].node.ring_addr()),
                weight,
                ext,
            }
        };
        let backends: BTreeSet<Backend> =
            weights.iter().enumerate().filter(|(_, weight)| **weight > 0).map(backend).collect();
        Chash {
            ring: Arc::new(KetamaHashing::build(&backends)),
            points: weights.iter().sum::<usize>() * POINTS,
        }
    }

    pub(super) fn pick<'m>(
        &self,
        members: &'m [Member],
        key: &[u8],
        usable: impl Fn(&Member) -> bool,
    ) -> Option<&'m Member> {
        // without this, a group that is used up costs a walk over the whole ring
        if !members.iter().any(&usable) {
            return None;
        }
        let mut points = self.ring.iter(key);
        for _ in 0..self.points {
            let Place(place) = points.next()?.ext.get()?;
            let member = &members[*place];
            if usable(member) {
                return Some(member);
            }
        }
        None
    }
}

/// Weights without what they have in common, and within what a ring can hold.
fn ring_weights(members: &[Member]) -> Vec<usize> {
    let unit = common_divisor(members.iter().map(|m| m.weight));
    let total: u64 = members.iter().map(|m| u64::from(m.weight / unit)).sum();
    let fit = |weight: u64| match weight {
        0 => 0,
        _ if total <= MAX_TOTAL => weight as usize,
        _ => (weight * MAX_TOTAL / total).max(1) as usize,
    };
    members.iter().map(|m| fit(u64::from(m.weight / unit))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Group, testing::*};
    use super::*;
    use crate::upstream::conf::Kind;

    fn owner(group: &Group, key: &str) -> u32 {
        let member = group.pick(|_| true, |_| true, || key.to_owned().into());
        member.expect("a member").index
    }

    #[test]
    fn weights_are_reduced_and_bounded() {
        for (weights, want) in [
            (vec![1, 1], vec![1, 1]),
            (vec![1000, 500, 0], vec![2, 1, 0]),
            (vec![1_000_000_000, 2_000_000_000, 1_000_000_000], vec![1, 2, 1]),
            (vec![1_000_003, 999_983], vec![5000, 4999]),
            (vec![1_000_003, 1], vec![9999, 1]),
        ] {
            let list: Vec<Member> = members(&weights)
                .into_iter()
                .map(|(index, node)| Member { index, weight: node.weight(), node })
                .collect();
            assert_eq!(ring_weights(&list), want, "{weights:?}");
        }
    }

    #[test]
    fn keys_spread_by_weight() {
        let group = Group::new(Kind::Chash, members(&[1, 3]));
        let second = (0..4000).filter(|i| owner(&group, &format!("key{i}")) == 1).count();
        assert!((2700..3300).contains(&second), "{second}");
    }

    proptest! {
        #[test]
        fn only_keys_of_the_removed_node_move(
            weights in prop::collection::vec(1u32..5, 2..7),
            gone in 0usize..7,
            keys in prop::collection::vec("[a-z0-9.]{1,12}", 1..40),
        ) {
            let gone = (gone % weights.len()) as u32;
            // a last weight of 1 keeps the common divisor, and with it the points of all, when a node leaves
            let weights: Vec<u32> = weights.into_iter().chain([1]).collect();
            let nodes = members(&weights);
            let less = nodes.iter().filter(|(i, _)| *i != gone).cloned().collect();
            let (whole, less) = (Group::new(Kind::Chash, nodes), Group::new(Kind::Chash, less));
            for key in &keys {
                let before = owner(&whole, key);
                let after = owner(&less, key);
                if before != gone {
                    prop_assert_eq!(before, after, "key {}", key);
                }
                let skipping = whole.pick(|m| m.index != gone, |_| true, || key.clone().into()).expect("a member");
                prop_assert_eq!(skipping.index, after, "skipping a node is the same as its absence");
            }
        }
    }
}
