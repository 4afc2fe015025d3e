//! The request side of an exchange, in the order of APISIX's `http_access_phase`.

use std::{borrow::Cow, net::IpAddr, ops::ControlFlow, sync::Arc};

use bytes::Bytes;
use pingora::{Error, ErrorType, Result};
use pingora_proxy::Session;

use super::{
    Ctx, Gateway,
    front::{self, Begun},
    guard::{self, HostName},
    incoming::{Known, Refused},
    options::Options,
    respond, upstream,
};
use crate::{
    net::lossless,
    plugin::{
        body,
        chain::Chain,
        exchange::{Exchange, World},
        reply::{CONTINUE, Flow, Reply},
        request::MatchedRoute,
    },
    snapshot::{
        Fault, Route, Snapshot,
        router::{Accept, Found, MethodSet, Request, Rule},
    },
};

/// Runs everything up to the upstream. `Ok(true)`: the client has its answer.
///
/// # Errors
/// The client is gone.
pub async fn filter(gateway: &Gateway, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
    let begun = front::begin();
    let snapshot = gateway.current.load();
    ctx.snapshot = Some(snapshot.clone());
    let outcome = match begun {
        Begun::TooLate => {
            let late = Error::e_explain(ErrorType::ConnectionClosed, "idle for too long");
            return late.map_err(Error::into_down);
        }
        Begun::Refused(refused) => ControlFlow::Break(refuse(gateway, session, ctx, *refused)),
        Begun::Well(known) => run(gateway, session, ctx, &snapshot, known).await,
    };
    match outcome {
        ControlFlow::Continue(()) => {
            body::welcome(session, &ctx.request).await?;
            body::unread(session, &mut ctx.request).await?;
            Ok(false)
        }
        ControlFlow::Break(reply) => {
            respond::send(session, ctx, &gateway.options, reply).await?;
            Ok(true)
        }
    }
}

/// What the framework could not have read; a request that stands in for it is being answered.
fn refuse(gateway: &Gateway, session: &mut Session, ctx: &mut Ctx, refused: Refused) -> Reply {
    guard::refuse_connection(session, &mut ctx.request, &gateway.options, refused.line);
    Reply::status(refused.why.status).because(refused.why.reason)
}

async fn run(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Ctx,
    snapshot: &Arc<Snapshot>,
    known: Option<Known>,
) -> Flow {
    ctx.request.body_limit = gateway.options.max_buffered_body;
    ctx.request.pipelined = known.is_some_and(|known| known.pipelined);
    let claims = known.map(|known| known.claims);
    let admitted = match guard::admit(session, &mut ctx.request, &gateway.options, claims) {
        Ok(admitted) => admitted,
        Err(reply) => return reply.into(),
    };
    guard::sanitize(session, &ctx.request, &gateway.options, admitted.claims);
    let rule = match find(gateway, session, ctx, snapshot, &admitted.host).await {
        ControlFlow::Continue(rule) => rule,
        ControlFlow::Break(reply) => return ControlFlow::Break(reply),
    };
    let Some(rule) = &rule else { return unmatched(session, ctx, snapshot).await };
    let route = &rule.target;
    match route.fault {
        Some(Fault::PluginConfigMissing) => {
            return Reply::status(503).because("its plugin config is missing").into();
        }
        Some(Fault::ServiceMissing) => return Reply::status(404).because("its service is missing").into(),
        None => {}
    }
    // Many routes have no plugins: none of the phases is entered then.
    let has_plugins = !(snapshot.global.is_empty() && route.chain.is_empty());
    if has_plugins {
        plugins(session, ctx, snapshot, route).await?;
    }
    upstream::choose(session, ctx, snapshot, route).await?;
    if !has_plugins {
        return CONTINUE;
    }
    let chain = ctx.chain.clone();
    let mut x = Exchange::new(session, &mut ctx.request, &**snapshot);
    snapshot.global.before_proxy(&mut x).await?;
    chain.before_proxy(&mut x).await
}

/// No route: global rules have their say, then 404.
async fn unmatched(session: &mut Session, ctx: &mut Ctx, snapshot: &Snapshot) -> Flow {
    let mut x = Exchange::new(session, &mut ctx.request, snapshot);
    snapshot.global.rewrite(&mut x).await?;
    snapshot.global.access(&mut x).await?;
    Reply::error_msg(404, "404 Route Not Found").into()
}

/// Rewrite and access of global rules, route and consumer, in APISIX's order.
async fn plugins(session: &mut Session, ctx: &mut Ctx, snapshot: &Snapshot, route: &Route) -> Flow {
    let first = snapshot.compat().global_rules_run_first();
    let mut x = Exchange::new(session, &mut ctx.request, snapshot);
    snapshot.global.rewrite(&mut x).await?;
    if first {
        snapshot.global.access(&mut x).await?;
    }
    route.chain.rewrite(&mut x).await?;
    if let Some(chain) = with_consumer(&mut x, snapshot, &route.chain)? {
        chain.rewrite_newcomers(&route.chain, &mut x).await?;
        ctx.chain = chain;
    }
    let chain = ctx.chain.clone();
    let mut x = Exchange::new(session, &mut ctx.request, snapshot);
    if !first {
        snapshot.global.access(&mut x).await?;
    }
    chain.access(&mut x).await
}

/// The chain with the consumer's group and the consumer laid over the route; `None` if nothing changes.
/// APISIX: `plugin.lua merge_consumer_route`.
fn with_consumer(
    x: &mut Exchange<'_>,
    snapshot: &Snapshot,
    chain: &Chain,
) -> ControlFlow<Reply, Option<Chain>> {
    let Some(consumer) = x.consumer() else { return ControlFlow::Continue(None) };
    let group = match &consumer.group_id {
        Some(id) => match snapshot.groups.get(id) {
            Some(group) => Some(group),
            None => return ControlFlow::Break(Reply::status(503).because("its consumer group is missing")),
        },
        None => None,
    };
    let group = group.filter(|_| !(consumer.is_bare && x.compat().group_needs_consumer_plugins()));
    if consumer.plugins.is_empty() && group.is_none_or(Chain::is_empty) {
        return ControlFlow::Continue(None);
    }
    let under = group.map_or_else(|| chain.clone(), |group| chain.overlaid(group));
    ControlFlow::Continue(Some(under.overlaid(&consumer.plugins)))
}

/// Matches the route; when a candidate asks for the body, reads it and matches again.
async fn find(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Ctx,
    snapshot: &Arc<Snapshot>,
    host: &HostName,
) -> ControlFlow<Reply, Option<Arc<Rule<Route>>>> {
    loop {
        let found = match_once(gateway, session, ctx, snapshot, host);
        match found {
            Outcome::Rule(rule) => return ControlFlow::Continue(Some(rule)),
            Outcome::None => return ControlFlow::Continue(None),
            Outcome::NeedBody => {
                if let Err(reply) = body::read(session, &mut ctx.request).await {
                    return ControlFlow::Break(reply);
                }
            }
        }
    }
}

enum Outcome {
    Rule(Arc<Rule<Route>>),
    None,
    NeedBody,
}

fn match_once(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Ctx,
    snapshot: &Arc<Snapshot>,
    host: &HostName,
) -> Outcome {
    let has_body = ctx.request.body.is_read();
    let x = Exchange::new(session, &mut ctx.request, &**snapshot);
    let encoded = gateway.options.match_uri_encoded_slash.then(|| keep_encoded_slash(&x)).flatten();
    let request = Candidate::new(&x, host, encoded.as_deref());
    let found = snapshot.router.find(&request, |route: &Route| match &route.vars {
        None => Accept::Yes,
        Some(vars) if vars.needs_body() && !has_body => Accept::NeedBody,
        Some(vars) if vars.eval(&x) => Accept::Yes,
        Some(_) => Accept::No,
    });
    match found {
        Found::Nothing => Outcome::None,
        Found::NeedBody => Outcome::NeedBody,
        Found::Match(found) => {
            let route = &found.rule.target;
            let position = |all: &[Box<str>], one: &str| {
                all.iter()
                    .position(|other| other.eq_ignore_ascii_case(one))
                    .and_then(|at| u16::try_from(at).ok())
            };
            // Most routes have one path. Its text need not be looked at then: it is cold among many routes.
            let path = match &*route.meta.paths {
                [_] => 0,
                paths => position(paths, found.path).unwrap_or(0),
            };
            let host = found.host.and_then(|host| position(&route.meta.hosts, host));
            let text = |(name, value): (&str, &[u8])| (name.into(), lossless::from_bytes(value).into());
            let params = found.params.iter(request.path()).map(text).collect();
            ctx.request.matched_path = path;
            ctx.request.matched_host = host;
            ctx.request.params = params;
            ctx.request.route = Some(MatchedRoute::new(found.rule.clone()));
            ctx.chain = route.chain.clone();
            ctx.route = Some(found.rule.clone());
            Outcome::Rule(found.rule.clone())
        }
    }
}

fn keep_encoded_slash(x: &Exchange<'_>) -> Option<String> {
    let raw = x.session.req_header().raw_path();
    crate::net::uri::keep_encoded_slash(crate::net::uri::split_target(raw).path, x.path())
}

/// What the router asks of a request.
struct Candidate<'a> {
    method: MethodSet,
    addr: IpAddr,
    host: &'a str,
    http_host: &'a str,
    path: Cow<'a, [u8]>,
}

impl<'a> Candidate<'a> {
    fn new(x: &'a Exchange<'_>, host: &'a HostName, path: Option<&'a str>) -> Self {
        let http_host = x.http_host().unwrap_or_default();
        let method = MethodSet::from_name(x.method().as_str());
        Self {
            method,
            addr: x.client_ip(),
            host: host.of(http_host),
            http_host,
            path: lossless::to_bytes(path.unwrap_or_else(|| x.path())),
        }
    }
}

impl Request for Candidate<'_> {
    fn method(&self) -> MethodSet {
        self.method
    }
    fn remote_addr(&self) -> IpAddr {
        self.addr
    }
    fn host(&self) -> &[u8] {
        self.host.as_bytes()
    }
    fn http_host(&self) -> &[u8] {
        self.http_host.as_bytes()
    }
    fn path(&self) -> &[u8] {
        &self.path
    }
}

/// A piece of the request body on its way to the upstream.
///
/// # Errors
/// The body grew beyond `client_max_body_size`: 413.
pub fn body(
    options: &Options,
    session: &Session,
    ctx: &mut Ctx,
    chunk: &mut Option<Bytes>,
    last: bool,
) -> Result<()> {
    if let Some(whole) = upstream::replayed_body(session, ctx) {
        *chunk = last.then_some(whole);
        return Ok(());
    }
    if let Some(passed) = &mut ctx.request.passed {
        passed.keep(chunk.as_ref(), last, ctx.request.body_limit);
    }
    let Some(limit) = options.max_body else { return Ok(()) };
    ctx.body_sent += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
    if ctx.body_sent > limit {
        return Error::e_explain(ErrorType::HTTPStatus(413), "client_max_body_size");
    }
    Ok(())
}
