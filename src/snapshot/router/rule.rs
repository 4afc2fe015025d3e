//! A route as the router sees it: what it asks of a request, compiled once, and what it leads to.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::net::ip_set::IpSet;

use super::Request;
use super::method_set::MethodSet;
use super::pattern::PathPattern;

/// What a route asks of a request. Everything but the paths is optional.
///
/// What each request looks at comes first, in this order in memory (hence `repr(C)`): of one rule among many thousands each
/// piece is waited for.
#[repr(C)]
pub struct Rule<T> {
    /// Empty means any.
    pub methods: MethodSet,
    /// None means any.
    pub remote_addrs: Option<Arc<IpSet>>,
    hosts: Option<Box<[HostPattern]>>,
    paths: Paths,
    /// What the caller wants to have found.
    pub target: T,
    /// Names the rule within a router; [`super::Router::remove`] goes by it.
    pub id: Arc<str>,
    /// The higher of two rules for the same path is asked first.
    pub priority: i64,
    /// Decides between equal priorities: the lower is asked first. Every rule has its own.
    pub order: u64,
}

/// Most rules have one path, which then lies beside everything else that a request is compared with.
enum Paths {
    One(PathPattern),
    Many(Box<[PathPattern]>),
}

/// One entry of `hosts`: a name, or the end of one after a `*`.
pub(super) struct HostPattern {
    /// Lower-case.
    text: Box<str>,
}

impl<T> Rule<T> {
    /// A rule for these paths and any request to them.
    pub fn new(id: impl Into<Arc<str>>, paths: impl IntoIterator<Item: AsRef<str>>, target: T) -> Self {
        let mut paths: Vec<_> = paths.into_iter().map(|path| PathPattern::new(path.as_ref())).collect();
        let paths = match (paths.len(), paths.pop()) {
            (1, Some(path)) => Paths::One(path),
            (_, last) => Paths::Many(paths.into_iter().chain(last).collect()),
        };
        Rule {
            id: id.into(),
            methods: MethodSet::EMPTY,
            remote_addrs: None,
            priority: 0,
            order: 0,
            target,
            paths,
            hosts: None,
        }
    }

    /// Restricts the rule to these hosts, written as in a route. Without any it is never found in
    /// [`super::Mode::HostUri`] and not restricted in the others, as in APISIX.
    pub fn with_hosts(mut self, hosts: impl IntoIterator<Item: AsRef<str>>) -> Self {
        self.hosts = Some(hosts.into_iter().map(|host| HostPattern::new(host.as_ref())).collect());
        self
    }

    /// The paths, in the order given.
    pub fn paths(&self) -> &[PathPattern] {
        match &self.paths {
            Paths::One(path) => std::slice::from_ref(path),
            Paths::Many(paths) => paths,
        }
    }

    pub(super) fn hosts(&self) -> Option<&[HostPattern]> {
        self.hosts.as_deref()
    }

    /// Of two rules for one place the lower in rank is asked first. APISIX: lua-resty-radixtree `sort_route`.
    pub(super) fn rank(&self, path: usize) -> (Reverse<i64>, Reverse<usize>, u64) {
        (Reverse(self.priority), Reverse(self.paths()[path].text().len()), self.order)
    }
}

impl HostPattern {
    fn new(text: &str) -> Self {
        HostPattern { text: text.to_ascii_lowercase().into() }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The pattern backwards, up to the `*`, and whether there was one.
    pub(super) fn reversed(&self) -> (Vec<u8>, HostKind) {
        match self.text.rsplit_once('*') {
            Some((_, suffix)) => (suffix.bytes().rev().collect(), HostKind::Wildcard),
            None => (self.text.bytes().rev().collect(), HostKind::Exact),
        }
    }

    /// APISIX: lua-resty-radixtree `match_route_opts`. A pattern with a colon is compared with the Host header as
    /// it was sent, upper case and all.
    pub(super) fn matches<R: Request + ?Sized>(&self, request: &R) -> bool {
        let host = if self.text.contains(':') { request.http_host() } else { request.host() };
        match self.text.strip_prefix('*') {
            Some(suffix) => host.ends_with(suffix.as_bytes()),
            None => host == self.text.as_bytes(),
        }
    }

    /// What `matched._host` is after a match: a wildcard as written, else the host of the request, so no port.
    pub(super) fn matched_text(&self) -> &str {
        if self.text.starts_with('*') || self.text.ends_with(']') {
            return &self.text;
        }
        self.text.rsplit_once(':').map_or(&self.text, |(host, _)| host)
    }
}

/// Whether a host pattern is a whole name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostKind {
    Exact,
    Wildcard,
}
