//! A gateway made from resources in memory, for what drives its hooks without a network: tests of this crate and the
//! micro-benchmarks. Never part of the program.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};
use pingora_proxy::Session;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::{
    Gateway,
    options::{Options, RealIp},
};
use crate::{
    compat::Compat,
    control::Control,
    net::ip_set::IpSet,
    resource::{Key, Kind},
    snapshot::compile::Env,
    store::{Entry, Event},
};

/// A gateway that serves these resources, set up as config.yaml's defaults do.
///
/// # Panics
/// When one of them does not compile.
#[must_use]
pub fn gateway(resources: impl IntoIterator<Item = (Kind, String, Value)>) -> Gateway {
    let entry = |(kind, id, value): (Kind, String, Value)| Entry {
        key: Key::new(kind, id),
        value: value.to_string().into(),
        created: 1,
        modified: 1,
        expires: None,
    };
    let control = Control::new(Arc::new(Env::plain()));
    let entries = resources.into_iter().map(entry).collect();
    control.apply(vec![Event::Reset { entries, revision: 1 }]);
    assert!(control.faults().is_empty(), "{:?}", control.faults());
    let metrics = control.env().metrics.clone();
    Gateway { current: control.current(), options: options(), access_log: None, metrics }
}

/// A connection on which this request, which has no body, came in.
///
/// # Panics
/// When it is no request.
pub async fn session(raw: &str) -> Session {
    let (mut client, server) = tokio::io::duplex(raw.len());
    client.write_all(raw.as_bytes()).await.expect("the pipe holds the request");
    let mut session = Session::new_h1(Box::new(server));
    assert!(session.read_request().await.expect("a readable request"), "a request");
    session
}

pub(super) fn options() -> Options {
    Options {
        compat: Compat::Now,
        server: HeaderValue::from_static("APISIX"),
        delete_uri_tail_slash: false,
        normalize_uri_like_servlet: false,
        match_uri_encoded_slash: false,
        show_upstream_status: false,
        trusted: None,
        real_ip: Some(RealIp {
            header: HeaderName::from_static("x-real-ip"),
            from: IpSet::parse(["127.0.0.1"]).expect("an address"),
            recursive: false,
        }),
        max_body: None,
        max_buffered_body: 16 << 20,
        keepalive: Duration::from_secs(60),
        body_timeout: Duration::from_secs(60),
        send_timeout: Duration::from_secs(10),
        draining: Arc::default(),
        log_credentials: false,
    }
}
