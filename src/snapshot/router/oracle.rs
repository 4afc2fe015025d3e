//! The routers again, as slow as clear: every route is tried, in the order that APISIX's code prescribes. Tables
//! of precedence and the comparison with the index live here. Never part of the program.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use proptest::prelude::*;
use regex::bytes::Regex;

use super::{Accept, Found, MethodSet, Mode, Request, Router, Rule};
use crate::net::ip_set::IpSet;

/// A route as it is written.
#[derive(Clone, Debug, Default)]
struct Route {
    paths: Vec<String>,
    hosts: Option<Vec<String>>,
    methods: Vec<&'static str>,
    remote_addr: Option<&'static str>,
    priority: i64,
    /// What `vars` say.
    answer: Answer,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Answer {
    #[default]
    Yes,
    No,
    NeedBody,
}

#[derive(Clone, Debug)]
struct Ask {
    method: &'static str,
    addr: u8,
    http_host: String,
    path: String,
    host: String,
}

type Target = (usize, Answer);
type Values = Vec<(String, String)>;

#[derive(Debug, PartialEq)]
enum Outcome {
    Match { route: usize, path: String, host: Option<String>, values: Values },
    Nothing,
    NeedBody,
}

impl Ask {
    fn new(method: &'static str, http_host: &str, path: &str) -> Self {
        let host = http_host.split(':').next().unwrap_or_default().to_ascii_lowercase();
        Ask { method, addr: 1, http_host: http_host.into(), path: path.into(), host }
    }
}

impl Request for Ask {
    fn method(&self) -> MethodSet {
        MethodSet::from_name(self.method)
    }
    fn remote_addr(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(127, 0, 0, self.addr))
    }
    fn host(&self) -> &[u8] {
        self.host.as_bytes()
    }
    fn http_host(&self) -> &[u8] {
        self.http_host.as_bytes()
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
}

/// One path of one route, as lua-resty-radixtree stores it.
struct Entry<'a> {
    number: usize,
    route: &'a Route,
    pattern: &'a str,
    beginning: &'a str,
    exact: bool,
}

fn entries<'a>(mode: Mode, routes: &[(usize, &'a Route)]) -> Vec<Entry<'a>> {
    let mut entries = Vec::new();
    for (number, route) in routes {
        for pattern in &route.paths {
            let colon = if mode == Mode::UriWithParameter { pattern.find(':') } else { None };
            let sigil = colon.or(pattern.find('*'));
            let beginning = &pattern[..sigil.unwrap_or(pattern.len())];
            entries.push(Entry { number: *number, route, pattern, beginning, exact: sigil.is_none() });
        }
    }
    // sorting is stable: equal ones stay in the order of insertion
    entries.sort_by_key(|entry| (-entry.route.priority, -(entry.pattern.len() as i64)));
    entries
}

fn by_path(mode: Mode, routes: &[(usize, &Route)], ask: &Ask) -> Outcome {
    let entries = entries(mode, routes);
    let exact = entries.iter().filter(|entry| entry.exact && entry.beginning == ask.path);
    for entry in exact {
        if let Some(outcome) = ask_entry(mode, entry, ask, Some(Vec::new())) {
            return outcome;
        }
    }
    for len in (0..=ask.path.len()).rev() {
        let Some(beginning) = ask.path.get(..len) else { continue };
        for entry in entries.iter().filter(|entry| !entry.exact && entry.beginning == beginning) {
            if let Some(outcome) = ask_entry(mode, entry, ask, values(entry.pattern, &ask.path)) {
                return outcome;
            }
        }
    }
    Outcome::Nothing
}

fn ask_entry(mode: Mode, entry: &Entry<'_>, ask: &Ask, values: Option<Values>) -> Option<Outcome> {
    let route = entry.route;
    if !route.methods.is_empty() && !route.methods.contains(&ask.method) {
        return None;
    }
    if route.remote_addr.is_some_and(|addr| addr != ask.remote_addr().to_string()) {
        return None;
    }
    let mut host = None;
    if mode != Mode::HostUri
        && let Some(hosts) = route.hosts.as_ref().filter(|hosts| !hosts.is_empty())
    {
        host = Some(hosts.iter().find_map(|host| matched_host(&host.to_lowercase(), ask))?);
    }
    let values = values?;
    match route.answer {
        Answer::Yes => Some(Outcome::Match { route: entry.number, path: entry.pattern.into(), host, values }),
        Answer::No => None,
        Answer::NeedBody => Some(Outcome::NeedBody),
    }
}

fn matched_host(pattern: &str, ask: &Ask) -> Option<String> {
    let subject = if pattern.contains(':') { &ask.http_host } else { &ask.host };
    match pattern.strip_prefix('*') {
        Some(suffix) => subject.ends_with(suffix).then(|| pattern.to_owned()),
        None => (subject == pattern).then(|| ask.host.clone()),
    }
}

/// What `fetch_pat` and `compare_param` do, all by regular expression.
fn values(pattern: &str, path: &str) -> Option<Values> {
    let mut items: Vec<&str> = pattern.split('/').collect();
    while items.last() == Some(&"") {
        items.pop();
    }
    let mut names = Vec::new();
    let parts: Vec<String> = items
        .iter()
        .map(|item| match (item.strip_prefix(':'), item.strip_prefix('*')) {
            (Some(name), _) => {
                names.push(name);
                "([^/]+)".to_owned()
            }
            (_, Some(name)) => {
                names.push(if name.is_empty() { ":ext" } else { name });
                "((.|\n)*)".to_owned()
            }
            _ => (*item).to_owned(),
        })
        .collect();
    if names.is_empty() {
        return Some(Vec::new());
    }
    let end = if pattern.ends_with('/') { "/" } else { "" };
    let regex = Regex::new(&format!("(?-u){}{end}", parts.join("/"))).ok()?;
    let captures = regex.captures(path.as_bytes())?;
    if captures[0] != *path.as_bytes() {
        return None;
    }
    let value = |i: usize| Some(String::from_utf8_lossy(captures.get(i + 1)?.as_bytes()).into_owned());
    Some(names.iter().enumerate().filter_map(|(i, name)| Some(((*name).to_owned(), value(i)?))).collect())
}

fn by_host(routes: &[(usize, &Route)], ask: &Ask) -> Outcome {
    let mut patterns: Vec<String> = routes
        .iter()
        .filter_map(|(_, route)| route.hosts.as_ref())
        .flatten()
        .map(|h| h.to_lowercase())
        .collect();
    patterns.sort_by_key(|pattern| (pattern.starts_with('*'), -(pattern.len() as i64)));
    patterns.dedup();
    for pattern in patterns {
        let applies = match pattern.strip_prefix('*') {
            Some(suffix) => ask.host.ends_with(suffix),
            None => ask.host == pattern,
        };
        if !applies {
            continue;
        }
        let has = |route: &Route| route.hosts.iter().flatten().any(|host| host.to_lowercase() == pattern);
        let under: Vec<_> = routes.iter().copied().filter(|(_, route)| has(route)).collect();
        match by_path(Mode::HostUri, &under, ask) {
            Outcome::Nothing => {}
            Outcome::Match { route, path, values, .. } => {
                return Outcome::Match { route, path, host: Some(pattern), values };
            }
            Outcome::NeedBody => return Outcome::NeedBody,
        }
    }
    let without: Vec<_> = routes.iter().copied().filter(|(_, route)| route.hosts.is_none()).collect();
    by_path(Mode::HostUri, &without, ask)
}

fn expected(mode: Mode, routes: &[(usize, &Route)], ask: &Ask) -> Outcome {
    match mode {
        Mode::HostUri => by_host(routes, ask),
        Mode::Uri | Mode::UriWithParameter => by_path(mode, routes, ask),
    }
}

fn rule(number: usize, route: &Route) -> Arc<Rule<Target>> {
    let mut rule = Rule::new(number.to_string(), &route.paths, (number, route.answer));
    if let Some(hosts) = &route.hosts {
        rule = rule.with_hosts(hosts);
    }
    rule.methods = route.methods.iter().copied().collect();
    rule.remote_addrs = route.remote_addr.map(|addr| Arc::new(IpSet::parse([addr]).unwrap()));
    rule.priority = route.priority;
    rule.order = number as u64;
    Arc::new(rule)
}

fn found(router: &Router<Target>, ask: &Ask) -> Outcome {
    let accept = |target: &Target| match target.1 {
        Answer::Yes => Accept::Yes,
        Answer::No => Accept::No,
        Answer::NeedBody => Accept::NeedBody,
    };
    match router.find(ask, accept) {
        Found::Nothing => Outcome::Nothing,
        Found::NeedBody => Outcome::NeedBody,
        Found::Match(found) => Outcome::Match {
            route: found.rule.target.0,
            path: found.path.to_owned(),
            host: found.host.map(str::to_owned),
            values: found
                .params
                .iter(ask.path())
                .map(|(name, value)| (name.to_owned(), String::from_utf8_lossy(value).into_owned()))
                .collect(),
        },
    }
}

fn build(mode: Mode, routes: &[Route]) -> Router<Target> {
    let mut router = Router::new(mode);
    for (number, route) in routes.iter().enumerate() {
        router.insert(rule(number, route));
    }
    router
}

/// Routes as "path …" with "@host" and "!priority" among the words; the answer is the number of a route.
#[track_caller]
fn check(mode: Mode, routes: &[&str], (host, path): (&str, &str), answer: Option<usize>) {
    let routes: Vec<Route> = routes.iter().map(|text| written(text)).collect();
    let numbered: Vec<_> = routes.iter().enumerate().collect();
    let ask = Ask::new("GET", host, path);
    let outcome = found(&build(mode, &routes), &ask);
    let number = if let Outcome::Match { route, .. } = outcome { Some(route) } else { None };
    assert_eq!(number, answer, "{mode:?} {host}{path}");
    assert_eq!(outcome, expected(mode, &numbered, &ask), "the oracle on {mode:?} {host}{path}");
}

fn written(text: &str) -> Route {
    let mut route = Route::default();
    for word in text.split(' ') {
        match word.split_at(1) {
            ("@", host) => route.hosts.get_or_insert_default().push(host.into()),
            ("!", priority) => route.priority = priority.parse().unwrap(),
            ("?", "no") => route.answer = Answer::No,
            ("#", method) => route.methods.push(if method == "POST" { "POST" } else { "GET" }),
            _ => route.paths.push(word.into()),
        }
    }
    route
}

const EVERY: [Mode; 3] = [Mode::HostUri, Mode::Uri, Mode::UriWithParameter];

#[test]
fn the_path_itself_then_the_longest_beginning() {
    for mode in EVERY {
        check(mode, &["/a/*", "/a/b", "/*"], ("h", "/a/b"), Some(1));
        check(mode, &["/a/*", "/a/b", "/*"], ("h", "/a/c"), Some(0));
        check(mode, &["/a/*", "/a/b", "/*"], ("h", "/a"), Some(2));
        check(mode, &["/a*"], ("h", "/a"), Some(0));
        check(mode, &["/a/b"], ("h", "/a/b/"), None);
        check(mode, &["/A"], ("h", "/a"), None);
        check(mode, &["/a/* !9", "/a/b !-9"], ("h", "/a/b"), Some(1));
        check(mode, &["/* !9", "/a/* !-9"], ("h", "/a/b"), Some(1));
        check(mode, &["/b /a", "/a"], ("h", "/a"), Some(0));
        check(mode, &[], ("h", "/"), None);
    }
}

#[test]
fn a_rule_that_does_not_fit_leaves_the_shorter_beginning() {
    for mode in EVERY {
        check(mode, &["/a ?no", "/a", "/*"], ("h", "/a"), Some(1));
        check(mode, &["/a #POST", "/*"], ("h", "/a"), Some(1));
        check(mode, &["/a/b* ?no", "/a/* ?no", "/*"], ("h", "/a/b"), Some(2));
    }
}

#[test]
fn priority_then_length_then_age() {
    for mode in EVERY {
        check(mode, &["/a", "/a"], ("h", "/a"), Some(0));
        check(mode, &["/a", "/a !1"], ("h", "/a"), Some(1));
        check(mode, &["/a !-1", "/a"], ("h", "/a"), Some(1));
        check(mode, &["/a*", "/a*bc"], ("h", "/a"), Some(1));
        check(mode, &["/a* !1", "/a*bc"], ("h", "/a"), Some(0));
    }
}

#[test]
fn hosts_before_paths() {
    let mode = Mode::HostUri;
    check(mode, &["/a", "/* @h.com"], ("h.com", "/a"), Some(1));
    check(mode, &["/a", "/b @h.com"], ("h.com", "/a"), Some(0));
    check(mode, &["/a @*.h.com", "/* @x.h.com"], ("x.h.com", "/a"), Some(1));
    check(mode, &["/a @*.h.com", "/b @x.h.com"], ("x.h.com", "/a"), Some(0));
    check(mode, &["/* @*.com", "/* @*.h.com", "/a"], ("x.h.com", "/a"), Some(1));
    check(mode, &["/* @*.com", "/b @*.h.com", "/a"], ("x.h.com", "/a"), Some(0));
    check(mode, &["/* @*.com", "/b @*.h.com", "/a"], ("x.org", "/a"), Some(2));
    check(mode, &["/* @*.com !-5", "/* !5"], ("x.com", "/a"), Some(0));
    check(mode, &["/* @*.com"], ("a.b.c.com", "/"), Some(0));
    check(mode, &["/* @*.com"], ("com", "/"), None);
    check(mode, &["/* @*com"], ("com", "/"), Some(0));
    check(mode, &["/* @a.com @b.com"], ("b.com", "/"), Some(0));
}

#[test]
fn paths_before_hosts() {
    let mode = Mode::Uri;
    check(mode, &["/a", "/* @h.com"], ("h.com", "/a"), Some(0));
    check(mode, &["/a @*.com", "/a @h.com"], ("h.com", "/a"), Some(0));
    check(mode, &["/a @x.com", "/*"], ("h.com", "/a"), Some(1));
}

#[test]
fn spelling_of_hosts() {
    for mode in EVERY {
        check(mode, &["/ @H.com"], ("h.COM", "/"), Some(0));
        check(mode, &["/ @h.com"], ("h.com:9080", "/"), Some(0));
        check(mode, &["/ @h.com"], ("xh.com", "/"), None);
    }
    check(Mode::HostUri, &["/ @h.com:9080"], ("h.com:9080", "/"), None);
    check(Mode::Uri, &["/ @h.com:9080"], ("h.com:9080", "/"), Some(0));
    check(Mode::Uri, &["/ @h.com:9080"], ("H.com:9080", "/"), None);
    check(Mode::Uri, &["/ @h.com:9080"], ("h.com", "/"), None);
    check(Mode::Uri, &["/ @*.com:9080"], ("h.com:9080", "/"), Some(0));
}

#[test]
fn an_empty_list_of_hosts() {
    let routes = [Route { paths: vec!["/".into()], hosts: Some(vec![]), ..Route::default() }];
    let ask = Ask::new("GET", "h", "/");
    assert_eq!(found(&build(Mode::HostUri, &routes), &ask), Outcome::Nothing);
    assert!(matches!(found(&build(Mode::Uri, &routes), &ask), Outcome::Match { .. }));
}

#[test]
fn parameters_belong_to_one_mode() {
    check(Mode::UriWithParameter, &["/n/:id/bar"], ("h", "/n/json/bar"), Some(0));
    check(Mode::UriWithParameter, &["/n/:id/bar", "/n/*"], ("h", "/n/json/foo"), Some(1));
    check(Mode::UriWithParameter, &["/n/:id"], ("h", "/n/"), None);
    check(Mode::UriWithParameter, &["/u/:u", "/u/:u/age/:a"], ("h", "/u/1/age/2"), Some(1));
    check(Mode::UriWithParameter, &["/u/:u", "/u/me"], ("h", "/u/me"), Some(1));
    let api = ["/api/:v/t/p/:p/c/:c/nodes/?", "/api/:v/t/p/:p", "/api/:v/t/*sub"];
    check(Mode::UriWithParameter, &api, ("h", "/api/1/t/p/2/c/3/nodes"), Some(0));
    check(Mode::UriWithParameter, &api, ("h", "/api/1/t/p/2"), Some(1));
    check(Mode::UriWithParameter, &api, ("h", "/api/1/t/q"), Some(2));
    for mode in [Mode::HostUri, Mode::Uri] {
        check(mode, &["/file:list"], ("h", "/file:list"), Some(0));
        check(mode, &["/file:list"], ("h", "/file:xx"), None);
        check(mode, &["/n/:id"], ("h", "/n/:id"), Some(0));
        check(mode, &["/n/:id"], ("h", "/n/1"), None);
        check(mode, &["/n/*/bar", "/n*"], ("h", "/n/x/bar"), Some(0));
        check(mode, &["/n/*/bar", "/n*"], ("h", "/n/x/foo"), Some(1));
    }
}

fn path(items: &'static str) -> impl Strategy<Value = String> {
    prop_oneof![
        1 => Just("*".to_owned()),
        20 => proptest::collection::vec(items, 1..4).prop_map(|items| format!("/{}", items.join("/"))),
    ]
}

fn route() -> impl Strategy<Value = Route> {
    const METHODS: [&str; 3] = ["GET", "POST", "PURGE"];
    let host = "(\\*\\.com|\\*com|\\*\\.a\\.com|A\\.com|a\\.com|x\\.a\\.com|b\\.org|a\\.com:80|\\*\\.com:80)";
    let answer = prop_oneof![8 => Just(Answer::Yes), 3 => Just(Answer::No), 1 => Just(Answer::NeedBody)];
    (
        proptest::collection::vec(path("(a|b|ab|\\*|\\*x|:x|:y|a\\*|a:|)"), 1..3),
        proptest::option::of(proptest::collection::vec(host, 1..3)),
        proptest::sample::subsequence(&METHODS[..], 0..2),
        proptest::option::weighted(0.2, prop_oneof![Just("127.0.0.1"), Just("127.0.0.2")]),
        -1..2i64,
        answer,
    )
        .prop_map(|(paths, hosts, methods, remote_addr, priority, answer)| Route {
            paths,
            hosts,
            methods,
            remote_addr,
            priority,
            answer,
        })
}

fn ask() -> impl Strategy<Value = Ask> {
    (
        prop_oneof![Just("GET"), Just("POST"), Just("BREW")],
        1..3u8,
        "(a\\.com|A\\.com|x\\.a\\.com|b\\.org|\\.com|com|a\\.com:80|c\\.com:80|)",
        path("(a|b|ab|abc|:x|\\*|)"),
    )
        .prop_map(|(method, addr, host, path)| Ask { addr, ..Ask::new(method, &host, &path) })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn finds_what_trying_every_route_finds(
        routes in proptest::collection::vec(route(), 0..12),
        asks in proptest::collection::vec(ask(), 1..12),
    ) {
        let numbered: Vec<_> = routes.iter().enumerate().collect();
        for mode in EVERY {
            let router = build(mode, &routes);
            for ask in &asks {
                prop_assert_eq!(found(&router, ask), expected(mode, &numbered, ask), "{:?} {:?}", mode, ask);
            }
        }
    }

    #[test]
    fn the_order_of_changes_does_not_matter(
        routes in proptest::collection::vec(route(), 1..12),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..40),
        asks in proptest::collection::vec(ask(), 1..12),
    ) {
        for mode in EVERY {
            let mut router = Router::new(mode);
            let mut present = vec![false; routes.len()];
            for (at, keep) in &changes {
                let at = at.index(routes.len());
                let before = router.clone();
                let left: Vec<_> = routes.iter().enumerate().filter(|(i, _)| present[*i]).collect();
                // as the caller does: out with the old, in with the new
                router.remove(&rule(at, &routes[at]));
                if *keep {
                    router.insert(rule(at, &routes[at]));
                }
                present[at] = *keep;
                prop_assert_eq!(found(&before, &asks[0]), expected(mode, &left, &asks[0]));
            }
            let left: Vec<_> = routes.iter().enumerate().filter(|(i, _)| present[*i]).collect();
            for ask in &asks {
                prop_assert_eq!(found(&router, ask), expected(mode, &left, ask), "{:?} {:?}", mode, ask);
            }
            for (at, route) in routes.iter().enumerate() {
                router.remove(&rule(at, route));
            }
            prop_assert!(router.is_empty());
        }
    }
}

#[test]
fn finding_does_not_allocate() {
    let routes = ["/a/b @a.com", "/a/* @*.com", "/c", "/p/:x/:y"].map(written);
    let asks =
        [("a.com", "/a/b"), ("b.com", "/a/c"), ("b.org", "/c"), ("b.org", "/p/1/2"), ("b.org", "/none")];
    for mode in EVERY {
        let router = build(mode, &routes);
        for (host, path) in asks {
            let ask = Ask::new("GET", host, path);
            let counted = allocation_counter::measure(|| {
                std::hint::black_box(router.find(&ask, |_| Accept::Yes));
            });
            assert_eq!(counted.count_total, 0, "{mode:?} {host}{path}");
        }
    }
}
