//! Names of nodes to addresses, kept fresh in the background.
//!
//! A [`Name`] is resolved when first registered and again before its answer expires; requests read the latest answer
//! without waiting. Only a request that comes before the first answer waits, for a bounded time ([`Name::ready`]).
//! While the resolver fails the old answer stays in use.
//!
//! Invariant: nothing here blocks a thread, and a failing resolver never takes an address away.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup_ip::LookupIp,
    net::runtime::TokioRuntimeProvider,
    system_conf::read_system_conf,
};
use tokio::{sync::Notify, task::JoinSet};
use tracing::{debug, warn};

/// After this long a failed lookup is tried again; doubled with each further failure.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// No pause between failed lookups is longer.
const RETRY_MOST: Duration = Duration::from_secs(30);

/// No answer is asked for more often, whatever its TTL says.
const REFRESH_LEAST: Duration = Duration::from_secs(1);

/// No answer is kept longer, whatever the settings say; instants would overflow.
const KEEP_MOST: Duration = Duration::from_secs(365 * 24 * 3600);

/// A name that keeps failing is logged this often.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// With nothing to refresh, the background task looks again after this long.
const IDLE: Duration = Duration::from_secs(60);

/// Which addresses names resolve to (`apisix.enable_ipv6`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv4, or IPv6 for names that have no IPv4 address.
    #[default]
    V4ThenV6,
}

/// How names are resolved; from the settings.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolverConf {
    /// Servers to ask (`apisix.dns_resolver`); those of `/etc/resolv.conf` when empty.
    pub servers: Vec<SocketAddr>,
    /// Stands for the TTL of every answer (`apisix.dns_resolver_valid`).
    pub valid: Option<Duration>,
    /// How long a lookup may take (`apisix.resolver_timeout`).
    pub timeout: Duration,
    /// Which addresses count.
    pub families: Families,
}

impl Default for ResolverConf {
    fn default() -> Self {
        ResolverConf {
            servers: Vec::new(),
            valid: None,
            timeout: Duration::from_secs(5),
            families: Families::default(),
        }
    }
}

/// Why no resolver could be made.
#[derive(Debug, thiserror::Error)]
#[error("the DNS resolver cannot be set up: {0}")]
pub struct ResolverError(String);

/// Resolves the names of all upstreams.
pub struct Resolver {
    dns: TokioResolver,
    valid: Option<Duration>,
    timeout: Duration,
    /// All names in use, by lower-case name. Locked when configuration changes and by the background task only.
    names: Mutex<HashMap<Box<str>, Weak<Name>>>,
    /// Wakes the background task for a new name.
    wake: Notify,
    failures: AtomicU64,
}

impl Resolver {
    /// Makes a resolver; asks nobody yet. Reads `/etc/resolv.conf` and `/etc/hosts`.
    ///
    /// # Errors
    /// When the resolver library refuses the configuration.
    pub fn new(conf: &ResolverConf) -> Result<Arc<Resolver>, ResolverError> {
        let dns = build(conf)?;
        Ok(Arc::new(Resolver {
            dns,
            valid: conf.valid,
            timeout: conf.timeout,
            names: Mutex::default(),
            wake: Notify::new(),
            failures: AtomicU64::new(0),
        }))
    }

    /// The one [`Name`] of a host, registered for refreshing as long as it is in use.
    pub fn name(self: &Arc<Self>, host: &str) -> Arc<Name> {
        let key = host.to_ascii_lowercase().into_boxed_str();
        let mut names = self.lock();
        if let Some(known) = names.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        let name = Arc::new(Name {
            host: key.clone(),
            resolver: Arc::clone(self),
            answer: ArcSwapOption::empty(),
            turn: AtomicUsize::new(0),
            schedule: Mutex::new(Schedule::new()),
            lookup: tokio::sync::Mutex::new(()),
            failed: AtomicU32::new(0),
        });
        names.insert(key, Arc::downgrade(&name));
        self.wake.notify_one();
        name
    }

    /// Failed lookups since the start.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Keeps all names fresh. Never returns; to be run as one background task.
    pub async fn run(self: Arc<Self>) {
        let mut running: JoinSet<()> = JoinSet::new();
        loop {
            let next = self.start_due(&mut running);
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.wake.notified() => {}
                Some(_) = running.join_next() => {}
            }
        }
    }

    /// Starts a lookup for every name whose time has come; returns when the next one's comes.
    fn start_due(&self, running: &mut JoinSet<()>) -> Instant {
        let now = Instant::now();
        let mut next = now + IDLE;
        let mut due = Vec::new();
        self.lock().retain(|_, name| {
            let Some(name) = name.upgrade() else {
                return false;
            };
            match name.due(now) {
                Due::Now => due.push(name),
                Due::At(at) => next = next.min(at),
                Due::Running => {}
            }
            true
        });
        for name in due {
            running.spawn(async move { name.refresh().await });
        }
        next
    }

    async fn ask(&self, host: &str) -> Result<Answer, String> {
        let lookup = tokio::time::timeout(self.timeout, self.dns.lookup_ip(host));
        match lookup.await {
            Ok(Ok(found)) => Answer::new(&found, self.valid).ok_or_else(|| "no addresses".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("timeout".to_owned()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Weak<Name>>> {
        // nothing that could panic runs under the lock
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A host name with its latest addresses.
pub struct Name {
    host: Box<str>,
    resolver: Arc<Resolver>,
    answer: ArcSwapOption<Answer>,
    /// Which address is next.
    turn: AtomicUsize,
    /// Never locked by a request that has an answer.
    schedule: Mutex<Schedule>,
    /// One lookup at a time.
    lookup: tokio::sync::Mutex<()>,
    /// Failures in a row.
    failed: AtomicU32,
}

struct Answer {
    addrs: Box<[IpAddr]>,
    ttl: Duration,
}

struct Schedule {
    refresh_at: Instant,
    running: bool,
    logged: Option<Instant>,
}

enum Due {
    Now,
    At(Instant),
    Running,
}

impl Name {
    /// The name, lower-cased.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether there is an answer, fresh or not.
    pub fn is_resolved(&self) -> bool {
        self.answer.load().is_some()
    }

    /// An address of the latest answer; all of them take turns.
    ///
    /// Differs from APISIX: there each request takes one at random.
    pub fn next(&self) -> Option<IpAddr> {
        let answer = self.answer.load();
        let addrs = &answer.as_ref()?.addrs;
        let turn = if addrs.len() == 1 { 0 } else { self.turn.fetch_add(1, Ordering::Relaxed) % addrs.len() };
        addrs.get(turn).copied()
    }

    /// Returns at once with an answer at hand, else waits for the first one, at most as long as a lookup may take.
    /// Shortly after a failed lookup it returns at once, too, without an answer.
    pub async fn ready(&self) {
        if self.is_resolved() {
            return;
        }
        let _one = self.lookup.lock().await;
        if self.is_resolved() || !self.is_due() {
            return;
        }
        self.look_up().await;
    }

    /// The background task's part: looks up, unless a request has just done it.
    async fn refresh(&self) {
        let _one = self.lookup.lock().await;
        if self.is_due() {
            self.look_up().await;
        } else {
            self.lock().running = false;
        }
    }

    async fn look_up(&self) {
        let _reset = Running::start(self);
        match self.resolver.ask(&self.host).await {
            Ok(answer) => self.accept(answer),
            Err(error) => self.fail(&error),
        }
    }

    fn accept(&self, answer: Answer) {
        let pause = pause_of(answer.ttl);
        debug!(name = %self.host, addresses = ?answer.addrs, "name resolved");
        self.answer.store(Some(Arc::new(answer)));
        self.failed.store(0, Ordering::Relaxed);
        self.lock().refresh_at = Instant::now() + pause;
    }

    fn fail(&self, error: &str) {
        self.resolver.failures.fetch_add(1, Ordering::Relaxed);
        let failed = self.failed.fetch_add(1, Ordering::Relaxed);
        let pause = RETRY_FIRST.saturating_mul(1 << failed.min(5)).min(RETRY_MOST);
        let now = Instant::now();
        let mut schedule = self.lock();
        schedule.refresh_at = now + pause;
        if schedule.logged.is_some_and(|at| now - at < LOG_EVERY) {
            return;
        }
        schedule.logged = Some(now);
        drop(schedule);
        let stale = self.is_resolved();
        warn!(name = %self.host, %error, stale, "name not resolved");
    }

    fn due(&self, now: Instant) -> Due {
        let mut schedule = self.lock();
        if schedule.running {
            return Due::Running;
        }
        if schedule.refresh_at > now {
            return Due::At(schedule.refresh_at);
        }
        schedule.running = true;
        Due::Now
    }

    fn is_due(&self) -> bool {
        self.lock().refresh_at <= Instant::now()
    }

    fn lock(&self) -> MutexGuard<'_, Schedule> {
        // nothing that could panic runs under the lock
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks a lookup as running until it ends or its task is dropped.
struct Running<'a>(&'a Name);

impl<'a> Running<'a> {
    fn start(name: &'a Name) -> Running<'a> {
        name.lock().running = true;
        Running(name)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.lock().running = false;
        // the background task does not know when this name is due again
        self.0.resolver.wake.notify_one();
    }
}

impl Schedule {
    fn new() -> Schedule {
        Schedule { refresh_at: Instant::now(), running: false, logged: None }
    }
}

impl Answer {
    fn new(found: &LookupIp, valid: Option<Duration>) -> Option<Answer> {
        let addrs: Box<[IpAddr]> = found.iter().collect();
        if addrs.is_empty() {
            return None;
        }
        let ttl = found.as_lookup().answers().iter().map(|record| record.ttl).min();
        Some(Answer { addrs, ttl: valid.unwrap_or(Duration::from_secs(u64::from(ttl.unwrap_or(0)))) })
    }
}

/// How long an answer is good: early enough to ask again when the first attempt fails.
fn pause_of(ttl: Duration) -> Duration {
    let lead = (ttl / 10).min(Duration::from_secs(5));
    ttl.saturating_sub(lead).clamp(REFRESH_LEAST, KEEP_MOST)
}

fn build(conf: &ResolverConf) -> Result<TokioResolver, ResolverError> {
    // without a readable resolv.conf there are still /etc/hosts and the configured servers
    let (system, mut options) =
        read_system_conf().unwrap_or_else(|_| (ResolverConfig::default(), ResolverOpts::default()));
    let (domain, search, mut servers) = system.into_parts();
    if !conf.servers.is_empty() {
        servers = conf.servers.iter().map(server).collect();
    }
    options.timeout = conf.timeout.min(Duration::from_secs(2));
    options.use_hosts_file = ResolveHosts::Always;
    // answers are kept here, and asked for again while they are still valid
    options.cache_size = 0;
    options.ip_strategy = match conf.families {
        Families::V4 => LookupIpStrategy::Ipv4Only,
        Families::V4ThenV6 => LookupIpStrategy::Ipv4thenIpv6,
    };
    let config = ResolverConfig::from_parts(domain, search, servers);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .map_err(|error| ResolverError(error.to_string()))
}

fn server(addr: &SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(addr.ip());
    for connection in &mut server.connections {
        connection.port = addr.port();
    }
    server
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::UdpSocket;

    use super::super::tests::eventually;
    use super::*;

    /// A DNS server on a UDP port of this machine that answers every A question with `addrs`.
    struct Server {
        addr: SocketAddr,
        asked: Arc<AtomicUsize>,
        addrs: Arc<Mutex<Vec<Ipv4Addr>>>,
    }

    impl Server {
        async fn start(addrs: &[[u8; 4]], ttl: u32) -> Server {
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
            let addr = socket.local_addr().expect("an address");
            let asked = Arc::new(AtomicUsize::new(0));
            let addrs: Vec<Ipv4Addr> = addrs.iter().map(|a| Ipv4Addr::from(*a)).collect();
            let addrs = Arc::new(Mutex::new(addrs));
            let server = Server { addr, asked: Arc::clone(&asked), addrs: Arc::clone(&addrs) };
            tokio::spawn(async move {
                let mut question = [0; 512];
                loop {
                    let (n, from) = socket.recv_from(&mut question).await.expect("a question");
                    asked.fetch_add(1, Ordering::SeqCst);
                    let reply = reply(&question[..n], &addrs.lock().expect("a lock"), ttl);
                    socket.send_to(&reply, from).await.expect("sent");
                }
            });
            server
        }

        fn resolver(&self) -> Arc<Resolver> {
            let conf = ResolverConf {
                servers: vec![self.addr],
                timeout: Duration::from_secs(3),
                families: Families::V4,
                ..ResolverConf::default()
            };
            Resolver::new(&conf).expect("a resolver")
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }
    }

    /// No addresses stand for a server that fails.
    fn reply(question: &[u8], addrs: &[Ipv4Addr], ttl: u32) -> Vec<u8> {
        let name_end = 12 + question[12..].iter().position(|&b| b == 0).expect("a name") + 5;
        let failure = if addrs.is_empty() { 2 } else { 0 };
        let mut out = question[..2].to_vec();
        out.extend([0x81, 0x80 | failure, 0, 1, 0, addrs.len() as u8, 0, 0, 0, 0]);
        out.extend(&question[12..name_end]);
        for addr in addrs {
            out.extend([0xc0, 12, 0, 1, 0, 1]);
            out.extend(ttl.to_be_bytes());
            out.extend([0, 4]);
            out.extend(addr.octets());
        }
        out
    }

    #[test]
    fn pauses_never_overflow_an_instant() {
        for (ttl, pause) in [
            (Duration::ZERO, REFRESH_LEAST),
            (Duration::from_secs(20), Duration::from_secs(18)),
            (Duration::from_secs(300), Duration::from_secs(295)),
            (Duration::from_secs(i64::MAX as u64), KEEP_MOST),
            (Duration::MAX, KEEP_MOST),
        ] {
            assert_eq!(pause_of(ttl), pause, "{ttl:?}");
            assert!(Instant::now().checked_add(pause_of(ttl)).is_some(), "{ttl:?}");
        }
    }

    #[tokio::test]
    async fn the_first_request_waits_and_all_addresses_take_turns() {
        let server = Server::start(&[[10, 0, 0, 1], [10, 0, 0, 2]], 300).await;
        let name = server.resolver().name("Web.example.test.");
        assert_eq!(name.next(), None);
        name.ready().await;
        let seen: Vec<String> = (0..4).filter_map(|_| name.next()).map(|ip| ip.to_string()).collect();
        assert_eq!(seen.len(), 4);
        assert_eq!(seen[0], seen[2]);
        assert_ne!(seen[0], seen[1]);
        name.ready().await;
        assert_eq!(server.asked(), 1, "an answer at hand is not asked for again");
    }

    #[tokio::test]
    async fn many_first_requests_ask_once() {
        let server = Server::start(&[[10, 0, 0, 1]], 300).await;
        let resolver = server.resolver();
        let mut waiting = JoinSet::new();
        for _ in 0..20 {
            let name = resolver.name("web.example.test.");
            waiting.spawn(async move {
                name.ready().await;
                assert!(name.is_resolved());
            });
        }
        while let Some(done) = waiting.join_next().await {
            done.expect("resolved");
        }
        assert_eq!(server.asked(), 1);
    }

    #[tokio::test]
    async fn answers_are_refreshed_before_they_expire_and_kept_when_the_server_fails() {
        let server = Server::start(&[[10, 0, 0, 1]], 1).await;
        let resolver = server.resolver();
        let task = tokio::spawn(Arc::clone(&resolver).run());
        let name = resolver.name("web.example.test.");
        let is = |ip: [u8; 4]| name.next() == Some(IpAddr::from(ip));
        eventually("resolved in the background", || is([10, 0, 0, 1])).await;

        *server.addrs.lock().expect("a lock") = vec![Ipv4Addr::new(10, 0, 0, 2)];
        eventually("the new address", || is([10, 0, 0, 2])).await;

        server.addrs.lock().expect("a lock").clear();
        eventually("a failure", || resolver.failures() > 0).await;
        assert!(is([10, 0, 0, 2]), "the old answer stays");

        *server.addrs.lock().expect("a lock") = vec![Ipv4Addr::new(10, 0, 0, 3)];
        eventually("recovery", || is([10, 0, 0, 3])).await;
        task.abort();
    }

    #[tokio::test]
    async fn a_configured_validity_stands_for_the_ttl() {
        let server = Server::start(&[[10, 0, 0, 1]], 3600).await;
        let conf = ResolverConf {
            servers: vec![server.addr],
            valid: Some(Duration::from_secs(1)),
            ..ResolverConf::default()
        };
        let resolver = Resolver::new(&conf).expect("a resolver");
        let task = tokio::spawn(Arc::clone(&resolver).run());
        let _name = resolver.name("web.example.test.");
        eventually("asked again", || server.asked() > 1).await;
        task.abort();
    }

    #[tokio::test]
    async fn requests_do_not_queue_behind_a_failing_server() {
        let server = Server::start(&[], 0).await;
        let name = server.resolver().name("web.example.test.");
        let start = Instant::now();
        name.ready().await;
        let asked = server.asked();
        for _ in 0..50 {
            name.ready().await;
        }
        let pauses = start.elapsed().as_millis() / RETRY_FIRST.as_millis();
        assert!((server.asked() - asked) as u128 <= pauses, "within the pause nobody asks again");
        assert!(!name.is_resolved());
    }

    #[tokio::test]
    async fn localhost_needs_no_server() {
        let resolver = Resolver::new(&ResolverConf::default()).expect("a resolver");
        let name = resolver.name("localhost");
        name.ready().await;
        assert!(name.next().is_some_and(|ip| ip.is_loopback()));
    }

    #[tokio::test]
    async fn one_name_is_shared_and_forgotten_when_unused() {
        let resolver = Resolver::new(&ResolverConf::default()).expect("a resolver");
        let a = resolver.name("a.test");
        assert!(Arc::ptr_eq(&a, &resolver.name("A.test")));
        drop(a);
        let mut running = JoinSet::new();
        resolver.start_due(&mut running);
        assert!(running.is_empty() && resolver.lock().is_empty());
    }
}
