//! Peak-free EWMA: two nodes at random, the one with the lower average of response times wins.
//!
//! Averages decay with a time constant of ten seconds, also without traffic, so a slow node gets another chance
//! (APISIX: `balancer/ewma.lua`).

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::Member;

/// Seconds in which an average loses 63 % of its weight.
const DECAY_TIME: f32 = 10.0;

/// Seconds after which an average is forgotten.
const FORGET_AFTER: f32 = 60.0;

/// The average of a node: seconds (f32) above, the moment of its last change in 10 ms ticks below.
#[derive(Default)]
pub(in crate::upstream) struct Score(AtomicU64);

impl Score {
    /// Takes in the time one request needed.
    pub(in crate::upstream) fn add(&self, took: Duration) {
        self.add_at(took.as_secs_f32(), ticks());
    }

    fn now(&self) -> f32 {
        self.at(ticks())
    }

    fn at(&self, now: u32) -> f32 {
        let (average, rest) = decayed(self.0.load(Ordering::Relaxed), now);
        average * rest
    }

    fn add_at(&self, took: f32, now: u32) {
        let update = |packed| {
            let (average, rest) = decayed(packed, now);
            let average = average * rest + took * (1.0 - rest);
            Some(u64::from(average.to_bits()) << 32 | u64::from(now))
        };
        // the closure never refuses
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }
}

pub(super) fn pick(members: &[Member], usable: impl Fn(&Member) -> bool) -> Option<&Member> {
    let count = members.iter().filter(|m| usable(m)).count();
    if count == 0 {
        return None;
    }
    let nth = |n: usize| members.iter().filter(|m| usable(m)).nth(n);
    let a = fastrand::usize(..count);
    if count == 1 {
        return nth(a);
    }
    let b = fastrand::usize(..count - 1);
    let b = b + usize::from(b >= a);
    match (nth(a), nth(b)) {
        (Some(a), Some(b)) if score(a) > score(b) => Some(b),
        (Some(a), _) => Some(a),
        // a node may turn unusable between the passes
        (None, b) => b.or_else(|| nth(0)),
    }
}

fn score(member: &Member) -> f32 {
    member.node.state().score.now()
}

/// The stored average and which part of it is left.
fn decayed(packed: u64, now: u32) -> (f32, f32) {
    if packed == 0 {
        return (0.0, 0.0);
    }
    let average = f32::from_bits((packed >> 32) as u32);
    let then = packed as u32;
    // requests on other threads may have stored a later tick
    let passed = now.saturating_sub(then) as f32 / 100.0;
    if passed > FORGET_AFTER {
        return (0.0, 0.0);
    }
    (average, (-passed / DECAY_TIME).exp())
}

/// 10 ms since the first call, starting at 1; enough for 497 days, then averages stand still.
fn ticks() -> u32 {
    static START: OnceLock<Instant> = OnceLock::new();
    let passed = START.get_or_init(Instant::now).elapsed().as_millis() / 10 + 1;
    u32::try_from(passed).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::{Group, testing::*};
    use super::*;
    use crate::upstream::conf::Kind;

    #[track_caller]
    fn check(got: f32, want: f32) {
        assert!((got - want).abs() < 0.001, "{got} is not {want}");
    }

    #[test]
    fn averages_decay() {
        let score = Score::default();
        check(score.at(1), 0.0);
        // the first time counts in full
        score.add_at(2.0, 100);
        check(score.at(100), 2.0);
        check(score.at(100 + 1000), 2.0 * (-1.0f32).exp());
        // ten seconds later: 2·e⁻¹ + 1·(1 − e⁻¹)
        score.add_at(1.0, 1100);
        check(score.at(1100), 1.0 + (-1.0f32).exp());
        check(score.at(1100 + 6001), 0.0);
        // a clock read before another thread's does not grow the average
        check(score.at(50), 1.0 + (-1.0f32).exp());
    }

    #[test]
    fn the_lower_score_wins() {
        let nodes = members(&[1, 1]);
        nodes[0].1.state().score.add(Duration::from_millis(500));
        nodes[1].1.state().score.add(Duration::from_millis(20));
        let group = Group::new(Kind::Ewma, nodes);
        assert!(picks(&group, 50).iter().all(|&i| i == 1));
    }

    #[test]
    fn unknown_nodes_share() {
        let group = Group::new(Kind::Ewma, members(&[1, 1, 1]));
        let seen: std::collections::HashSet<u32> = picks(&group, 200).into_iter().collect();
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn the_slowest_of_three_is_never_picked() {
        let nodes = members(&[1, 1, 1]);
        for (i, ms) in [(0, 900), (1, 100), (2, 200)] {
            nodes[i].1.state().score.add(Duration::from_millis(ms));
        }
        let group = Group::new(Kind::Ewma, nodes);
        assert!(picks(&group, 200).iter().all(|&i| i != 0));
    }
}
