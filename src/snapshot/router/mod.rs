//! Route matching: the three routers of APISIX, with exactly their order of precedence.
//!
//! A [`Router`] is an index of [`Rule`]s, each of which leads to some target. It is persistent: a clone is two
//! reference counts, and a change copies only the nodes on the way to it, so that a snapshot of 100,000 routes
//! costs microseconds to derive. Invariant: finding never locks, parses or, for patterns with at most four
//! parameters, allocates.
//!
//! Order of precedence (APISIX: lua-resty-radixtree `match_route`, apisix/http/router/): the pattern that is the
//! path itself, then the patterns with a wildcard from the longest literal beginning to the shortest; for one
//! beginning by priority, then length of the pattern, then age. In [`Mode::HostUri`] all of this happens for
//! the routes of the host itself, then for those of each wildcard from the longest, then for those without host.
//! Start reading at [`Router::find`].

mod candidates;
mod method_set;
#[cfg(test)]
mod oracle;
mod pattern;
mod rule;
mod tree;

use std::net::IpAddr;
use std::sync::Arc;

use candidates::{Candidate, Candidates};
use rule::{HostKind, HostPattern};
use tree::{Hit, Key, Tree};

pub use method_set::MethodSet;
pub use pattern::{Params, PathPattern};
pub use rule::Rule;

/// Which of APISIX's routers to be: `apisix.router.http`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `radixtree_host_uri`: hosts before paths.
    HostUri,
    /// `radixtree_uri`: paths before hosts.
    Uri,
    /// `radixtree_uri_with_parameter`: as [`Mode::Uri`], and `:name` is a parameter.
    UriWithParameter,
}

/// What a router asks about a request. Bytes, since a decoded path need not be UTF-8.
pub trait Request {
    /// The set of the request's one method; empty when APISIX does not know it.
    fn method(&self) -> MethodSet;
    /// The address of the client.
    fn remote_addr(&self) -> IpAddr;
    /// The host in lower case, without port.
    fn host(&self) -> &[u8];
    /// The Host header as it was sent; [`Request::host`] when there is none.
    fn http_host(&self) -> &[u8];
    /// The normalised path.
    fn path(&self) -> &[u8];
}

/// What the caller says about a rule that fits so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// This is the one.
    Yes,
    /// Its `vars` or `filter_func` do not hold; look further.
    No,
    /// They cannot be told without the body of the request; stop, to be asked again when it is there.
    NeedBody,
}

/// The outcome of [`Router::find`].
#[derive(Debug)]
pub enum Found<'a, T> {
    /// The rule that applies.
    Match(Match<'a, T>),
    /// No rule applies.
    Nothing,
    /// The caller answered [`Accept::NeedBody`].
    NeedBody,
}

/// A rule that applies, and how it came to.
pub struct Match<'a, T> {
    /// The rule.
    pub rule: &'a Arc<Rule<T>>,
    /// The pattern that matched, as written: `matched._path`.
    pub path: &'a str,
    /// The host pattern that matched, in lower case: `matched._host`. None when the rule asks for no host.
    pub host: Option<&'a str>,
    /// Positions in the path. `*` gives `:ext` in every mode, as in APISIX.
    pub params: Params<'a>,
}

/// An index of rules.
pub struct Router<T> {
    mode: Mode,
    /// By the reversed host. Only in [`Mode::HostUri`].
    hosts: Tree<HostPaths<T>>,
    /// The rules that are not under a host.
    paths: Paths<T>,
}

/// The rules of one host pattern.
struct HostPaths<T> {
    host: Box<str>,
    paths: Paths<T>,
}

type Paths<T> = Tree<Candidates<T>>;

/// One request looking for its rule.
struct Search<'q, R: ?Sized, F> {
    mode: Mode,
    request: &'q R,
    path: &'q [u8],
    accept: F,
}

impl<T> Router<T> {
    /// A router without rules.
    pub fn new(mode: Mode) -> Self {
        Router { mode, hosts: Tree::new(), paths: Tree::new() }
    }

    /// Adds a rule. The caller has removed an older one with its id.
    pub fn insert(&mut self, rule: Arc<Rule<T>>) {
        let Some(hosts) = self.tables_of(&rule) else {
            insert_paths(&mut self.paths, self.mode, &rule);
            return;
        };
        for host in hosts {
            let (reversed, kind) = host.reversed();
            let mode = self.mode;
            self.hosts.upsert(
                host_key(&reversed, kind),
                |table| insert_paths(&mut table.paths, mode, &rule),
                || {
                    let mut paths = Tree::new();
                    insert_paths(&mut paths, mode, &rule);
                    HostPaths { host: host.text().into(), paths }
                },
            );
        }
    }

    /// Takes a rule out: everything with its id under its paths and hosts. No-op when it is not there.
    pub fn remove(&mut self, rule: &Rule<T>) {
        let Some(hosts) = self.tables_of(rule) else {
            remove_paths(&mut self.paths, self.mode, rule);
            return;
        };
        for host in hosts {
            let (reversed, kind) = host.reversed();
            let key = host_key(&reversed, kind);
            let Some(table) = self.hosts.get_mut(key) else { continue };
            remove_paths(&mut table.paths, self.mode, rule);
            if table.paths.is_empty() {
                self.hosts.remove(key);
            }
        }
    }

    /// True when there are no rules.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.paths.is_empty()
    }

    /// Finds the first rule in order of precedence that the request satisfies and the caller accepts.
    pub fn find<'a, R>(&'a self, request: &R, accept: impl FnMut(&'a T) -> Accept) -> Found<'a, T>
    where
        R: Request + ?Sized,
    {
        let mut search = Search { mode: self.mode, request, path: request.path(), accept };
        if !self.hosts.is_empty() {
            let found = search.in_hosts(&self.hosts);
            if !matches!(found, Found::Nothing) {
                return found;
            }
        }
        search.in_paths(&self.paths)
    }

    /// The hosts whose tables a rule belongs to; None for the table without host.
    fn tables_of<'r>(&self, rule: &'r Rule<T>) -> Option<&'r [HostPattern]> {
        match self.mode {
            Mode::HostUri => rule.hosts(),
            Mode::Uri | Mode::UriWithParameter => None,
        }
    }
}

impl<T> Clone for Router<T> {
    fn clone(&self) -> Self {
        Router { mode: self.mode, hosts: self.hosts.clone(), paths: self.paths.clone() }
    }
}

impl<T> Clone for HostPaths<T> {
    fn clone(&self) -> Self {
        HostPaths { host: self.host.clone(), paths: self.paths.clone() }
    }
}

impl<T> std::fmt::Debug for Match<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Match")
            .field("rule", &self.rule.id)
            .field("path", &self.path)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl<R, F> Search<'_, R, F>
where
    R: Request + ?Sized,
{
    fn in_hosts<'a, T>(&mut self, hosts: &'a Tree<HostPaths<T>>) -> Found<'a, T>
    where
        F: FnMut(&'a T) -> Accept,
    {
        let host = self.request.host();
        let (mut near, far): ([u8; 256], Vec<u8>);
        let reversed = if host.len() <= 256 {
            near = [0; 256];
            let reversed = &mut near[..host.len()];
            reversed.copy_from_slice(host);
            reversed.reverse();
            &*reversed
        } else {
            far = host.iter().rev().copied().collect();
            &far
        };
        for (_, table) in hosts.lookup(reversed) {
            match self.in_paths(&table.paths) {
                Found::Nothing => {}
                Found::NeedBody => return Found::NeedBody,
                Found::Match(found) => return Found::Match(Match { host: Some(&table.host), ..found }),
            }
        }
        Found::Nothing
    }

    fn in_paths<'a, T>(&mut self, paths: &'a Paths<T>) -> Found<'a, T>
    where
        F: FnMut(&'a T) -> Accept,
    {
        for (hit, candidates) in paths.lookup(self.path) {
            for candidate in candidates.iter() {
                let Some(found) = self.fits(&candidate, hit) else { continue };
                match (self.accept)(&candidate.rule.target) {
                    Accept::Yes => return Found::Match(found),
                    Accept::No => {}
                    Accept::NeedBody => return Found::NeedBody,
                }
            }
        }
        Found::Nothing
    }

    /// Everything about a rule that can be told here. APISIX asks for the parameters last, after `vars`; they come
    /// first so that no body is read for a path that does not match anyway.
    fn fits<'a, T>(&self, candidate: &Candidate<'a, T>, hit: Hit) -> Option<Match<'a, T>> {
        let Candidate { rule, path } = *candidate;
        if !rule.methods.admits(self.request.method()) {
            return None;
        }
        if let Some(addrs) = &rule.remote_addrs
            && !addrs.contains(self.request.remote_addr())
        {
            return None;
        }
        let host = match (self.mode, rule.hosts()) {
            (Mode::HostUri, _) | (_, None | Some([])) => None,
            (_, Some(hosts)) => Some(hosts.iter().find(|host| host.matches(self.request))?.matched_text()),
        };
        let params = match hit {
            Hit::Exact => Params::default(),
            Hit::Prefix => path.matches(self.path)?,
        };
        Some(Match { rule, path: path.text(), host, params })
    }
}

fn host_key(reversed: &[u8], kind: HostKind) -> Key<'_> {
    match kind {
        HostKind::Exact => Key::Exact(reversed),
        HostKind::Wildcard => Key::Prefix(reversed),
    }
}

fn insert_paths<T>(paths: &mut Paths<T>, mode: Mode, rule: &Arc<Rule<T>>) {
    for (number, path) in rule.paths().iter().enumerate() {
        paths.upsert(
            path.key(mode),
            |candidates| candidates.insert(rule.clone(), number),
            || Candidates::new(rule.clone(), number),
        );
    }
}

fn remove_paths<T>(paths: &mut Paths<T>, mode: Mode, rule: &Rule<T>) {
    for path in rule.paths() {
        let key = path.key(mode);
        let Some(candidates) = paths.get(key) else { continue };
        let is_of_rule = |one: Candidate<'_, T>| one.rule.id == rule.id;
        if candidates.iter().all(is_of_rule) {
            paths.remove(key);
        } else if candidates.iter().any(is_of_rule)
            && let Some(candidates) = paths.get_mut(key)
        {
            candidates.remove(&rule.id);
        }
    }
}
