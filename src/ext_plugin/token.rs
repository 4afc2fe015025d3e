//! Conf tokens: a plugin configuration is made known to a process once, and named by a number from then on.
//!
//! A token lives beside the compiled configuration as an atomic, one for each process of the runner, so that a call
//! that has one waits for nobody. It belongs to one life of the process.

use std::{
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::{Mutex, MutexGuard};

/// Fifths of its time after which a token is renewed, as long as somebody uses it. APISIX: 0.9 of the time.
const RENEW: u32 = 4;

/// A plugin configuration as a runner is told of it.
pub struct Conf {
    /// `<conf type>#<conf id>#<plugin>`: what APISIX's key begins with.
    prefix: Box<str>,
    /// The runner's plugins and what they get, in running order.
    pub entries: Vec<(String, String)>,
    /// How long the runner keeps it, as it is told by `APISIX_CONF_EXPIRE_TIME`.
    expire: Duration,
    slots: Box<[Slot]>,
}

/// The token that one process gave.
#[derive(Default)]
struct Slot {
    /// The life it belongs to and the token: 32 bits each. A life is never 0.
    held: AtomicU64,
    /// Milliseconds on the runner's clock.
    since: AtomicU64,
    // Waited for only by calls that need the token which its holder fetches.
    flight: Mutex<()>,
}

/// What is known of a token.
pub enum Known<'a> {
    /// It may be used.
    Token(u32),
    /// The caller is to fetch it and put it into the ticket.
    Fetch(Ticket<'a>),
    /// The same, because the one that there is has grown old.
    Renew(Ticket<'a>),
}

/// The right to fetch a token; nobody else fetches it meanwhile.
pub struct Ticket<'a> {
    slot: &'a Slot,
    _flight: MutexGuard<'a, ()>,
}

impl Conf {
    /// For a runner with so many processes that keep it for so long.
    pub fn new(
        origin: &str,
        plugin: &str,
        entries: Vec<(String, String)>,
        processes: usize,
        expire: Duration,
    ) -> Self {
        let slots = (0..processes.max(1)).map(|_| Slot::default()).collect();
        Self { prefix: format!("{origin}#{plugin}").into(), entries, expire, slots }
    }

    /// The key for the next PrepareConf: never the same twice, because there are runners that give the token of a
    /// known key without giving it a new life.
    pub fn next_key(&self) -> String {
        static VERSION: AtomicU64 = AtomicU64::new(0);
        if VERSION.load(Relaxed) == 0 {
            // A runner that outlives the gateway must not take the next one's keys for known.
            let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let start = u64::try_from(start.as_millis()).unwrap_or(1);
            let _ = VERSION.compare_exchange(0, start, Relaxed, Relaxed);
        }
        format!("{}#{}", self.prefix, VERSION.fetch_add(1, Relaxed))
    }

    /// The token of a process in this life of it, or the right to fetch it. `now` is the runner's clock.
    pub async fn token(&self, process: usize, life: u32, now: Duration) -> Known<'_> {
        let slot = &self.slots[process];
        if let Some((token, fresh)) = slot.get(life, now, self.expire) {
            if fresh {
                return Known::Token(token);
            }
            // One renews; the others go on with the old one, which is good for a while yet.
            return match slot.flight.try_lock() {
                Ok(flight) => Known::Renew(Ticket { slot, _flight: flight }),
                Err(_) => Known::Token(token),
            };
        }
        let flight = slot.flight.lock().await;
        match slot.get(life, now, self.expire) {
            Some((token, _)) => Known::Token(token),
            None => Known::Fetch(Ticket { slot, _flight: flight }),
        }
    }

    /// Forgets a token that its process does not know; one that was fetched since stays.
    pub fn forget(&self, process: usize, life: u32, token: u32) {
        let _ = self.slots[process].held.compare_exchange(pack(life, token), 0, AcqRel, Relaxed);
    }
}

impl Slot {
    /// The token, if there is one of this life that has not aged, and whether it is fresh.
    fn get(&self, life: u32, now: Duration, expire: Duration) -> Option<(u32, bool)> {
        let held = self.held.load(Acquire);
        if (held >> 32) as u32 != life {
            return None;
        }
        let age = now.saturating_sub(Duration::from_millis(self.since.load(Relaxed)));
        (age < expire).then_some((held as u32, age < expire / 5 * RENEW))
    }
}

impl Ticket<'_> {
    /// Notes the token.
    pub fn fetched(self, life: u32, token: u32, now: Duration) {
        self.slot.since.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Relaxed);
        self.slot.held.store(pack(life, token), Release);
    }
}

fn pack(life: u32, token: u32) -> u64 {
    u64::from(life) << 32 | u64::from(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf() -> Conf {
        Conf::new(
            "route#1",
            "ext-plugin-pre-req",
            vec![("a".into(), "{}".into())],
            2,
            Duration::from_secs(3600),
        )
    }

    async fn fetch(conf: &Conf, process: usize, life: u32, token: u32, now: u64) {
        match conf.token(process, life, Duration::from_secs(now)).await {
            Known::Fetch(ticket) | Known::Renew(ticket) => {
                ticket.fetched(life, token, Duration::from_secs(now));
            }
            Known::Token(known) => panic!("{known} is known"),
        }
    }

    #[track_caller]
    fn check(conf: &Conf, process: usize, life: u32, now: u64, expected: Option<u32>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let known = match runtime.block_on(conf.token(process, life, Duration::from_secs(now))) {
            Known::Token(token) => Some(token),
            Known::Fetch(_) | Known::Renew(_) => None,
        };
        assert_eq!(known, expected, "process {process} life {life} at {now}");
    }

    #[test]
    fn a_token_belongs_to_one_life_of_one_process() {
        let conf = conf();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        check(&conf, 0, 1, 5, None);
        runtime.block_on(fetch(&conf, 0, 1, 77, 5));
        check(&conf, 0, 1, 5, Some(77));
        check(&conf, 0, 2, 5, None);
        check(&conf, 1, 1, 5, None);
        check(&conf, 0, 1, 5 + 2879, Some(77));
        check(&conf, 0, 1, 5 + 2880, None);
        check(&conf, 0, 1, 5 + 3600, None);
        conf.forget(0, 1, 78);
        check(&conf, 0, 1, 5, Some(77));
        conf.forget(0, 1, 77);
        check(&conf, 0, 1, 5, None);
    }

    #[test]
    fn one_renews_while_others_go_on() {
        let conf = conf();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            fetch(&conf, 0, 1, 7, 0).await;
            let now = Duration::from_secs(3000);
            let Known::Renew(ticket) = conf.token(0, 1, now).await else { panic!("it is due") };
            assert!(matches!(conf.token(0, 1, now).await, Known::Token(7)));
            ticket.fetched(1, 8, now);
            assert!(matches!(conf.token(0, 1, now).await, Known::Token(8)));
        });
    }

    #[test]
    fn keys() {
        let (first, second) = (conf().next_key(), conf().next_key());
        assert!(first.starts_with("route#1#ext-plugin-pre-req#"), "{first}");
        assert_ne!(first, second);
    }
}
