//! Where requests carry credentials, and what logs show in their place.
//!
//! A plugin says where it looks ([`Place`]); in the log phase the exchange knows those of all chains that ran, whether
//! or not the plugin came to look: what an earlier one refused is logged, too. Invariant: loggers and labels of metrics
//! read variables through [`Exchange::logged`] and headers through [`Exchange::logged_header`]; conditions and plugins
//! see what was sent.

use std::borrow::Cow;

use http::{HeaderName, header};

use super::{chain::Chain, exchange::Exchange};
use crate::{
    net::{
        args::{self, MASK},
        lossless,
    },
    vars::var::Var,
};

/// Headers that are credentials whoever looks at them.
const SECRET_HEADERS: [HeaderName; 2] = [header::AUTHORIZATION, header::PROXY_AUTHORIZATION];

/// Where a plugin looks for credentials, or leaves some for the upstream.
#[derive(Clone, Copy, Debug)]
pub enum Place<'p> {
    /// A query argument, by its decoded name.
    Arg(&'p str),
    /// A query argument of requests to this path.
    ArgAt(&'p str, &'p str),
    /// A query argument of requests whose path ends so.
    ArgUnder(&'p str, &'p str),
    /// A header, beside those that always hold credentials.
    Header(&'p HeaderName),
    /// A cookie.
    Cookie(&'p str),
    /// All cookies whose names begin so.
    Cookies(&'p str),
    /// The bodies of requests to this path, and of their answers.
    BodiesAt(&'p str),
}

impl Place<'_> {
    fn hides_arg(&self, name: &str, x: &Exchange<'_>) -> bool {
        let sent = x.session.req_header().uri.path();
        match self {
            Place::Arg(arg) => *arg == name,
            Place::ArgAt(arg, path) => *arg == name && (*path == sent || *path == x.path()),
            Place::ArgUnder(arg, end) => *arg == name && (sent.ends_with(end) || x.path().ends_with(end)),
            _ => false,
        }
    }

    fn hides_cookie(&self, name: &str) -> bool {
        match self {
            Place::Cookie(cookie) => *cookie == name,
            Place::Cookies(start) => name.starts_with(start),
            _ => false,
        }
    }
}

impl<'a> Exchange<'a> {
    /// Begins to mask what the plugins of these chains take for credentials. For the log phase.
    pub fn mask(&mut self, chains: [&'a Chain; 2]) {
        self.masks = Some(chains);
    }

    fn has_places(&self) -> bool {
        self.masks.is_some_and(|chains| chains.iter().any(|chain| chain.has_credentials()))
    }

    fn any_place(&self, holds: impl Fn(Place<'_>) -> bool) -> bool {
        let mut found = false;
        for chain in self.masks.into_iter().flatten().filter(|chain| chain.has_credentials()) {
            chain.credentials(&mut |place| found = found || holds(place));
        }
        found
    }

    fn hides_arg(&self, name: &str) -> bool {
        self.any_place(|place| place.hides_arg(name, self))
    }

    fn hides_cookie(&self, name: &str) -> bool {
        self.any_place(|place| place.hides_cookie(name))
    }

    fn hides_header(&self, name: &HeaderName) -> bool {
        SECRET_HEADERS.contains(name)
            || self.any_place(|place| matches!(place, Place::Header(header) if header == name))
    }

    /// Whether the bodies of this request and its answer are no matter for a log.
    pub fn hides_bodies(&self) -> bool {
        self.any_place(|place| matches!(place, Place::BodiesAt(path) if path == self.path()))
    }

    /// A variable, fit for a log. A header or cookie that is asked for by its name is shown.
    pub fn logged(&self, var: &Var) -> Option<Cow<'_, str>> {
        if !self.has_places() {
            return self.var(var);
        }
        match var {
            Var::Args => self.var(var).map(|query| self.masked_query(query)),
            Var::RequestUri | Var::RealRequestUri | Var::UpstreamUri => {
                self.var(var).map(|uri| self.masked_uri(uri))
            }
            Var::Http(name) if **name == *"referer" => self.var(var).map(|uri| self.masked_uri(uri)),
            Var::RequestLine => {
                let line = self.logged_request_line().concat();
                Some(lossless::from_bytes(&line).into_owned().into())
            }
            Var::Arg(name) if self.hides_arg(name) => self.var(var).map(|_| MASK.into()),
            Var::RequestBody | Var::PostArg(_) | Var::PostArgPath { .. } | Var::GraphqlRootFields
                if self.hides_bodies() =>
            {
                self.var(var).map(|_| MASK.into())
            }
            _ => self.var(var),
        }
    }

    /// `$request`, fit for a log: in pieces, to be written one after the other.
    pub fn logged_request_line(&self) -> [Cow<'_, [u8]>; 5] {
        let mut line = self.request_line().map(Cow::Borrowed);
        if self.has_places()
            && let Some(masked) = self.mask_after_question_mark(&line[2])
        {
            line[2] = masked.into();
        }
        line
    }

    /// The value of a header of request or response, fit for a log that shows all of them.
    pub fn logged_header<'v>(&self, name: &HeaderName, value: &'v str) -> Cow<'v, str> {
        if self.masks.is_none() {
            return value.into();
        }
        if self.hides_header(name) {
            return MASK.into();
        }
        match *name {
            header::REFERER => self.masked_uri(value.into()),
            header::COOKIE => self.masked_cookies(value, ';', usize::MAX),
            // The rest of it are attributes.
            header::SET_COOKIE => self.masked_cookies(value, ';', 1),
            _ => value.into(),
        }
    }

    fn masked_query<'q>(&self, query: Cow<'q, str>) -> Cow<'q, str> {
        match args::masked(query.as_bytes(), |name| self.hides_arg(name)) {
            Some(masked) => String::from_utf8_lossy(&masked).into_owned().into(),
            None => query,
        }
    }

    fn masked_uri<'u>(&self, uri: Cow<'u, str>) -> Cow<'u, str> {
        match self.mask_after_question_mark(uri.as_bytes()) {
            Some(masked) => String::from_utf8_lossy(&masked).into_owned().into(),
            None => uri,
        }
    }

    fn mask_after_question_mark(&self, uri: &[u8]) -> Option<Vec<u8>> {
        let (path, query) = uri.split_at(uri.iter().position(|byte| *byte == b'?')? + 1);
        let masked = args::masked(query, |name| self.hides_arg(name))?;
        Some([path, &masked].concat())
    }

    fn masked_cookies<'v>(&self, value: &'v str, separator: char, most: usize) -> Cow<'v, str> {
        let hides = |pair: &str| {
            let name = pair.split_once('=').map(|(name, _)| name.trim());
            name.is_some_and(|name| self.hides_cookie(name))
        };
        if !value.split(separator).take(most).any(hides) {
            return value.into();
        }
        let shown = |(at, pair): (usize, &str)| match pair.split_once('=') {
            Some((name, _)) if at < most && hides(pair) => format!("{name}={MASK}"),
            _ => pair.to_owned(),
        };
        value.split(separator).enumerate().map(shown).collect::<Vec<_>>().join(&separator.to_string()).into()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        builtin,
        plugin::{
            chain::Step,
            def::PluginDef,
            env::{Origin, Registry},
            fingerprint,
            meta::Meta,
            testing::{Kit, Setup},
        },
    };
    use serde_json::{Value, json};

    fn chain(plugins: Value) -> Chain {
        let registry = builtin::Enabled::new(None, serde_json::Map::new());
        let setup = Setup::new();
        let step = |(name, conf): (&String, &Value)| {
            let def: &'static PluginDef = registry.find(name).expect("a plugin");
            Arc::new(Step {
                def,
                meta: Meta::default(),
                hooks: def.build(conf.clone(), &setup.build_env()).expect("it compiles"),
                origin: Origin { kind: "route", id: "1".into() },
                source: fingerprint::of([name.as_str()].into_iter()),
            })
        };
        Chain::new(plugins.as_object().expect("an object").iter().map(step).collect())
    }

    #[track_caller]
    fn shown(plugins: Value, target: &str, var: &str, expected: &str) {
        // For ever, which is what an exchange of a test asks for.
        let (chain, none) = (&*Box::leak(Box::new(chain(plugins.clone()))), &*Box::leak(Box::default()));
        Kit::get(target, &[("Referer", &format!("http://a.com{target}"))]).run(async |x| {
            let plain = x.var(&Var::parse(var)).map(Cow::into_owned);
            assert_eq!(x.logged(&Var::parse(var)).as_deref(), plain.as_deref(), "before the log phase");
            x.mask([none, chain]);
            assert_eq!(x.logged(&Var::parse(var)).as_deref(), Some(expected), "{plugins} {target} {var}");
            assert_eq!(x.var(&Var::parse(var)).as_deref(), plain.as_deref(), "plugins see what was sent");
        });
    }

    #[test]
    fn arguments() {
        let key = || json!({"key-auth": {}});
        for (var, expected) in [
            ("request", "GET /a?x=1&apikey=***&y HTTP/1.1"),
            ("request_uri", "/a?x=1&apikey=***&y"),
            ("real_request_uri", "/a?x=1&apikey=***&y"),
            ("args", "x=1&apikey=***&y"),
            ("query_string", "x=1&apikey=***&y"),
            ("arg_apikey", "***"),
            ("arg_x", "1"),
            ("http_referer", "http://a.com/a?x=1&apikey=***&y"),
            ("uri", "/a"),
        ] {
            shown(key(), "/a?x=1&apikey=s3cr3t&y", var, expected);
        }
        shown(key(), "/a?%61pikey=s&apikey=t", "args", "%61pikey=***&apikey=***");
        shown(key(), "/a?jwt=s", "args", "jwt=s");
        shown(json!({}), "/a?apikey=s", "args", "apikey=s");
        shown(json!({"key-auth": {"query": "k"}, "jwt-auth": {}}), "/?k=s&jwt=t", "args", "k=***&jwt=***");
        shown(json!({"wolf-rbac": {}}), "/?rbac_token=V1", "request_uri", "/?rbac_token=***");
        shown(json!({"public-api": {}}), "/?rbac_token=V1", "request_uri", "/?rbac_token=***");
        let both = json!({"multi-auth": {"auth_plugins": [{"key-auth": {}}, {"jwt-auth": {"query": "t"}}]}});
        shown(both, "/?apikey=a&t=b", "args", "apikey=***&t=***");
    }

    #[test]
    fn arguments_of_a_login() {
        let oidc = |more: Value| {
            let mut conf = json!({
                "client_id": "a", "client_secret": "s", "discovery": "http://127.0.0.1:1/d",
                "session": {"secret": "0123456789abcdef0123"},
            });
            for (name, value) in more.as_object().into_iter().flatten() {
                conf[name] = value.clone();
            }
            json!({"openid-connect": conf})
        };
        shown(oidc(json!({})), "/a/.apisix/redirect?code=c&state=s&i=1", "args", "code=***&state=***&i=1");
        shown(oidc(json!({})), "/a?code=c&state=s", "args", "code=c&state=s");
        let own = json!({"redirect_uri": "https://a.com/back"});
        shown(oidc(own.clone()), "/back?code=c", "args", "code=***");
        shown(oidc(own), "/.apisix/redirect?code=c", "args", "code=c");
        let cas = json!({"cas-auth": {
            "idp_uri": "http://127.0.0.1:1", "cas_callback_uri": "/cas", "logout_uri": "/out",
            "cookie": {"secret": "0123456789abcdef0123456789abcdef"},
        }});
        shown(cas.clone(), "/cas?ticket=ST-1", "request_uri", "/cas?ticket=***");
        shown(cas, "/a?ticket=ST-1", "request_uri", "/a?ticket=ST-1");
    }

    #[test]
    fn headers() {
        #[track_caller]
        fn check(plugins: Value, name: &'static str, value: &str, expected: &str) {
            // For ever, which is what an exchange of a test asks for.
            let (chain, none) = (&*Box::leak(Box::new(chain(plugins.clone()))), &*Box::leak(Box::default()));
            Kit::get("/", &[]).run(async |x| {
                let name = HeaderName::from_static(name);
                assert_eq!(x.logged_header(&name, value), value);
                x.mask([chain, none]);
                assert_eq!(x.logged_header(&name, value), expected, "{plugins} {name}");
            });
        }
        let jwt = || json!({"jwt-auth": {"header": "x-token", "cookie": "t"}});
        check(json!({}), "authorization", "Basic x", "***");
        check(json!({}), "apikey", "k", "k");
        check(json!({"key-auth": {}}), "apikey", "k", "***");
        check(jwt(), "x-token", "k", "***");
        check(jwt(), "cookie", "a=b; t=s", "a=b; t=***");
        check(jwt(), "cookie", "a=b; tt=s", "a=b; tt=s");
        check(jwt(), "set-cookie", "t=s; Path=/; t=1", "t=***; Path=/; t=1");
        check(json!({"csrf": {"key": "k"}}), "apisix-csrf-token", "s", "***");
        check(json!({"csrf": {"key": "k"}}), "set-cookie", "apisix-csrf-token=s", "apisix-csrf-token=***");
        check(json!({"key-auth": {}}), "referer", "http://b/?apikey=s", "http://b/?apikey=***");
    }
}
