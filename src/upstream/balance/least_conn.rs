//! The node with the fewest requests in flight for its weight (APISIX: `balancer/least_conn.lua`).

use std::sync::atomic::{AtomicUsize, Ordering};

use super::Member;

/// Ties are broken in turn.
#[derive(Default)]
pub(super) struct LeastConn {
    turn: AtomicUsize,
}

impl LeastConn {
    pub(super) fn pick<'m>(
        &self,
        members: &'m [Member],
        usable: impl Fn(&Member) -> bool,
    ) -> Option<&'m Member> {
        let start = self.turn.fetch_add(1, Ordering::Relaxed) % members.len().max(1);
        let (late, early) = members.split_at(start);
        let mut best: Option<(&Member, f64)> = None;
        for member in early.iter().chain(late).filter(|m| usable(m)) {
            let load = load(member);
            if best.is_none_or(|(_, least)| load < least) {
                best = Some((member, load));
            }
        }
        best.map(|(member, _)| member)
    }
}

fn load(member: &Member) -> f64 {
    let in_flight = member.node.state().in_flight.load(Ordering::Relaxed);
    (in_flight + 1) as f64 / f64::from(member.weight)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Group, testing::*};
    use crate::upstream::{conf::Kind, node::InFlight};

    /// Picks and keeps every pick in flight.
    #[track_caller]
    fn check(weights: &[u32], want: &[u32]) {
        let nodes = members(weights);
        let states: Vec<_> = nodes.iter().map(|(_, n)| Arc::clone(n.state())).collect();
        let group = Group::new(Kind::LeastConn, nodes);
        let mut held = Vec::new();
        for (i, want) in want.iter().enumerate() {
            let got = picks(&group, 1)[0];
            assert_eq!(got, *want, "pick {i} of weights {weights:?}");
            held.push(InFlight::on(&states[got as usize]));
        }
    }

    #[test]
    fn picks_the_least_loaded() {
        check(&[5, 2], &[0, 0, 1, 0]);
        check(&[3, 2], &[0, 1, 0]);
        check(&[1, 1, 1], &[0, 1, 2]);
    }

    #[test]
    fn a_released_node_is_free_again() {
        let nodes = members(&[1, 1]);
        let busy = InFlight::on(nodes[0].1.state());
        let group = Group::new(Kind::LeastConn, nodes);
        assert_eq!(picks(&group, 4), [1, 1, 1, 1]);
        drop(busy);
        let seen = picks(&group, 4);
        assert!(seen.contains(&0) && seen.contains(&1), "{seen:?}");
    }
}
