//! Weighted round robin, in the order of `resty.roundrobin`: nodes of the highest weight go first, and a node joins
//! the rounds once the level has sunk to its weight. Weights 3:2:1 give A AB ABC.
//!
//! The turn is one atomic counter; which node a turn belongs to is computed, so weights of any size cost nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Member, common_divisor};

pub(super) struct RoundRobin {
    turn: AtomicU64,
    /// Places of the members, heaviest first; drained ones are left out.
    order: Box<[u32]>,
    /// Rising by `start`.
    runs: Box<[Run]>,
    /// Turns until the sequence repeats; 0 when nobody serves.
    cycle: u64,
}

/// Turns that go round among the same members.
struct Run {
    start: u64,
    /// How many of `order` take part.
    width: u64,
}

impl RoundRobin {
    pub(super) fn new(members: &[Member]) -> RoundRobin {
        let weight = |place: u32| members[place as usize].weight;
        let mut order: Vec<u32> = (0..members.len() as u32).filter(|&p| weight(p) > 0).collect();
        order.sort_by_key(|&p| std::cmp::Reverse(weight(p)));
        let unit = common_divisor(order.iter().map(|&p| weight(p)));

        let mut runs = Vec::new();
        let mut cycle = 0;
        for (i, &place) in order.iter().enumerate() {
            let next = order.get(i + 1).map_or(0, |&p| weight(p));
            let levels = (weight(place) - next) / unit;
            if levels == 0 {
                continue;
            }
            let width = i as u64 + 1;
            runs.push(Run { start: cycle, width });
            cycle += u64::from(levels) * width;
        }
        // many gateways that start together should not all begin with the same node
        let first = runs.first().map_or(0, |run: &Run| fastrand::u64(..run.width));
        RoundRobin { turn: AtomicU64::new(first), order: order.into(), runs: runs.into(), cycle }
    }

    pub(super) fn pick<'m>(
        &self,
        members: &'m [Member],
        usable: impl Fn(&Member) -> bool,
    ) -> Option<&'m Member> {
        if self.cycle == 0 {
            return None;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.cycle;
        let member = &members[self.place(turn)];
        if usable(member) {
            return Some(member);
        }
        instead(members, usable)
    }

    fn place(&self, turn: u64) -> usize {
        let run = &self.runs[self.runs.partition_point(|run| run.start <= turn) - 1];
        self.order[((turn - run.start) % run.width) as usize] as usize
    }
}

/// Gives the turn of an unusable node to another one at random by weight: the next in the order would get the whole
/// share of every node that is down.
fn instead(members: &[Member], usable: impl Fn(&Member) -> bool) -> Option<&Member> {
    let total: u64 = members.iter().filter(|m| usable(m)).map(|m| u64::from(m.weight)).sum();
    if total == 0 {
        return None;
    }
    let mut left = fastrand::u64(..total);
    let mut last = None;
    for member in members.iter().filter(|m| usable(m)) {
        let weight = u64::from(member.weight);
        if left < weight {
            return Some(member);
        }
        left -= weight;
        last = Some(member);
    }
    // a node may turn unusable between the two passes
    last
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::{Group, testing::*};
    use super::*;
    use crate::upstream::conf::Kind;

    fn member_list(weights: &[u32]) -> Vec<Member> {
        members(weights)
            .into_iter()
            .map(|(index, node)| Member { index, weight: node.weight(), node })
            .collect()
    }

    #[track_caller]
    fn check(weights: &[u32], want: &[u32]) {
        let members = member_list(weights);
        let wheel = RoundRobin::new(&members);
        wheel.turn.store(0, Ordering::Relaxed);
        let got: Vec<u32> =
            (0..want.len()).map(|_| wheel.pick(&members, |_| true).expect("a member").index).collect();
        assert_eq!(got, want, "weights {weights:?}");
    }

    #[test]
    fn sequences() {
        check(&[1, 1], &[0, 1, 0, 1]);
        check(&[3, 2, 1], &[0, 0, 1, 0, 1, 2, 0, 0, 1, 0, 1, 2]);
        check(&[1, 2, 3], &[2, 2, 1, 2, 1, 0]);
        check(&[100, 100, 50], &[0, 1, 0, 1, 2, 0, 1, 0, 1, 2]);
        check(&[3, 0, 1], &[0, 0, 0, 2]);
        check(&[4_000_000_000, 2_000_000_000], &[0, 0, 1, 0, 0, 1]);
        check(&[1], &[0, 0]);
    }

    #[test]
    fn a_random_start_is_among_the_heaviest() {
        for _ in 0..50 {
            let group = Group::new(Kind::RoundRobin, members(&[1, 5, 1]));
            assert_eq!(picks(&group, 1), [1]);
        }
    }

    #[test]
    fn the_share_of_a_lost_node_goes_to_all_others() {
        let members = member_list(&[1, 1, 1]);
        let wheel = RoundRobin::new(&members);
        let mut seen: HashMap<u32, u32> = HashMap::new();
        for _ in 0..3000 {
            let m = wheel.pick(&members, |m| m.index != 1).expect("a member");
            *seen.entry(m.index).or_default() += 1;
        }
        assert_eq!(seen.len(), 2);
        assert!(seen.values().all(|&n| (1300..1700).contains(&n)), "{seen:?}");
    }

    /// The algorithm as it is usually told: sink a level, walk the nodes.
    fn told(weights: &[u32], n: usize) -> Vec<u32> {
        let unit = common_divisor(weights.iter().copied().filter(|&w| w > 0));
        let top = weights.iter().copied().max().unwrap_or(0);
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(weights[i]));
        let mut out = Vec::new();
        let mut level = top;
        while out.len() < n {
            out.extend(order.iter().filter(|&&i| weights[i] >= level).map(|&i| i as u32));
            level = if level <= unit { top } else { level - unit };
        }
        out.truncate(n);
        out
    }

    proptest! {
        #[test]
        fn same_as_told(weights in prop::collection::vec(0u32..20, 1..8)) {
            prop_assume!(weights.iter().any(|&w| w > 0));
            let members = member_list(&weights);
            let wheel = RoundRobin::new(&members);
            let got: Vec<u32> = (0..wheel.cycle * 2).map(|t| wheel.place(t % wheel.cycle) as u32).collect();
            prop_assert_eq!(&got, &told(&weights, got.len()));
        }
    }
}
