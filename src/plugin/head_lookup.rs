//! Variables while the response's head is at hand.
//!
//! The head that a header filter edits is not yet part of the exchange, so the variables that read it are answered
//! here; all others come from the exchange. Invariant: reads only.

use std::borrow::Cow;

use http::HeaderMap;
use pingora::http::ResponseHeader;

use super::exchange::Exchange;
use crate::{
    net::lossless,
    vars::{
        lua::Value,
        var::{Lookup, Var, same_header},
    },
};

/// The variables of an exchange and of the head of its response.
pub struct HeadLookup<'h, 's> {
    exchange: &'h Exchange<'s>,
    head: &'h ResponseHeader,
}

impl<'h, 's> HeadLookup<'h, 's> {
    /// Puts both together.
    pub fn new(exchange: &'h Exchange<'s>, head: &'h ResponseHeader) -> Self {
        Self { exchange, head }
    }
}

impl Lookup for HeadLookup<'_, '_> {
    fn get(&self, var: &Var) -> Option<Cow<'_, str>> {
        match var {
            Var::Status => Some(Cow::Owned(self.head.status.as_str().to_owned())),
            Var::SentHttp(name) => header(&self.head.headers, name),
            // The node's headers as far as no filter changed them yet.
            Var::UpstreamHttp(name) if self.exchange.ctx.upstream.answered => {
                header(&self.head.headers, name)
            }
            Var::UpstreamHttp(_) => None,
            other => self.exchange.get(other),
        }
    }

    fn value(&self, var: &Var) -> Option<Value<'_>> {
        match var {
            Var::Status | Var::SentHttp(_) | Var::UpstreamHttp(_) => self.get(var).map(Value::Text),
            other => self.exchange.value(other),
        }
    }
}

/// A header's values, joined as nginx joins them.
fn header<'h>(headers: &'h HeaderMap, wanted: &str) -> Option<Cow<'h, str>> {
    let mut found: Option<Cow<'h, str>> = None;
    for (name, value) in headers {
        if !same_header(name.as_str(), wanted) {
            continue;
        }
        let text = lossless::from_bytes(value.as_bytes());
        found = Some(match found {
            None => text,
            Some(before) => Cow::Owned(format!("{before}, {text}")),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::testing::{Kit, response};

    #[track_caller]
    fn check(name: &str, expected: Option<&str>) {
        let head = response(503, &[("X-Up_A", "1"), ("X-Two", "a"), ("x-two", "b")]);
        Kit::get("/p", &[]).run(async |x| {
            x.ctx.status = Some(200);
            x.ctx.upstream.answered = true;
            let lookup = HeadLookup::new(x, &head);
            assert_eq!(lookup.get(&Var::parse(name)).as_deref(), expected, "{name}");
        });
    }

    #[test]
    fn reads_the_head() {
        check("status", Some("503"));
        check("sent_http_x_up_a", Some("1"));
        check("upstream_http_x_two", Some("a, b"));
        check("sent_http_none", None);
        check("uri", Some("/p"));
    }

    #[test]
    fn a_head_of_the_gateway_has_no_node() {
        let head = response(200, &[("X-A", "1")]);
        Kit::get("/", &[]).run(async |x| {
            let lookup = HeadLookup::new(x, &head);
            assert_eq!(lookup.get(&Var::parse("upstream_http_x_a")), None);
            assert!(lookup.value(&Var::parse("sent_http_x_a")).is_some());
        });
    }
}
