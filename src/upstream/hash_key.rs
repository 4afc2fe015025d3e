//! The key of `chash`, compiled (APISIX: `balancer/chash.lua` fetch_chash_hash_key).

use std::borrow::Cow;

use crate::vars::{
    template::Template,
    var::{Lookup, Var},
};

use super::conf::HashOn;

/// Where the key of a request comes from.
pub(super) struct HashKey {
    source: Source,
    /// Stands in for a value the request lacks.
    fallback: Var,
}

enum Source {
    Var(Var),
    Combination(Template),
}

impl HashKey {
    /// # Errors
    /// Without a key where one is needed, and for a template that cannot be read.
    pub(super) fn compile(on: HashOn, key: Option<&str>) -> Result<HashKey, String> {
        let named = || key.ok_or_else(|| "missing key".to_owned());
        let source = match on {
            HashOn::Vars => Source::Var(Var::parse(named()?)),
            HashOn::Header => Source::Var(Var::parse(&format!("http_{}", named()?))),
            HashOn::Cookie => Source::Var(Var::parse(&format!("cookie_{}", named()?))),
            HashOn::Consumer => Source::Var(Var::parse("consumer_name")),
            HashOn::VarsCombinations => Source::Combination(Template::parse(named()?)),
        };
        Ok(HashKey { source, fallback: Var::parse("remote_addr") })
    }

    /// The key of a request; its client's address when it has none.
    pub(super) fn of<'a>(&'a self, request: &'a dyn Lookup) -> Cow<'a, str> {
        let key = match &self.source {
            Source::Var(var) => request.get(var),
            Source::Combination(template) => combine(template, request),
        };
        key.or_else(|| request.get(&self.fallback)).unwrap_or_default()
    }
}

/// `None` when none of the variables has a value: the constant rest would send all requests to one node.
fn combine(template: &Template, request: &dyn Lookup) -> Option<Cow<'static, str>> {
    let mut key = String::new();
    let resolved = template.render_into(&mut key, request);
    (resolved > 0).then_some(Cow::Owned(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Request(&'static [(&'static str, &'static str)]);

    impl Lookup for Request {
        fn get(&self, var: &Var) -> Option<Cow<'_, str>> {
            let found = self.0.iter().find(|(name, _)| Var::parse(name) == *var);
            found.map(|(_, value)| Cow::Borrowed(*value))
        }
    }

    #[track_caller]
    fn check(on: HashOn, key: Option<&str>, want: &str) {
        let request = Request(&[
            ("remote_addr", "10.0.0.9"),
            ("uri", "/a"),
            ("arg_id", "7"),
            ("http_x_session", "s1"),
            ("cookie_sid", "c1"),
            ("consumer_name", "jack"),
        ]);
        let key = HashKey::compile(on, key).expect("a key");
        assert_eq!(key.of(&request), want);
    }

    #[test]
    fn keys() {
        check(HashOn::Vars, Some("uri"), "/a");
        check(HashOn::Vars, Some("arg_id"), "7");
        check(HashOn::Vars, Some("arg_nope"), "10.0.0.9");
        check(HashOn::Header, Some("X-Session"), "s1");
        check(HashOn::Header, Some("X-Nope"), "10.0.0.9");
        check(HashOn::Cookie, Some("sid"), "c1");
        check(HashOn::Consumer, None, "jack");
        check(HashOn::VarsCombinations, Some("$uri-$arg_id"), "/a-7");
        check(HashOn::VarsCombinations, Some("$arg_nope-x"), "10.0.0.9");
        check(HashOn::VarsCombinations, Some("${arg_nope ?? none}-x"), "none-x");
        check(HashOn::VarsCombinations, Some("constant"), "10.0.0.9");
    }

    #[test]
    fn a_key_is_needed_unless_hashed_on_the_consumer() {
        assert!(HashKey::compile(HashOn::Vars, None).is_err());
        assert!(HashKey::compile(HashOn::Consumer, None).is_ok());
    }
}
