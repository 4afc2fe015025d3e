//! Calls from plugins to HTTP servers of others: identity providers, policy engines, log collectors.
//!
//! Every call ends within its time-out, follows no redirect (who redirects us could send us, with the credentials
//! of the call, to a place nobody configured), takes no proxy from the environment and reads no more than it is
//! allowed to. Connections are pooled by TLS and keep-alive options and shared by all plugins and threads.
//!
//! Invariant: no error text holds more of the address than host and port; paths, queries and bodies may be secret.
//!
//! On threads: a pooled connection is driven by the runtime that opened it, whichever thread calls through it. Pingora
//! keeps the runtimes of its workers until the process ends; one that ended takes its connections along, and the
//! pool then opens new ones. A successor process begins with an empty pool.

use std::{
    collections::HashMap,
    error::Error as _,
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use crate::trust;

/// How a plugin's calls are made. [`Options::default`] has APISIX's usual values.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether the server's certificate must be valid for its name.
    pub verify: bool,
    /// The longest that a call may take, from the look-up of the name to the last byte of the answer.
    pub timeout: Duration,
    /// Whether and how long connections are kept for the next call.
    pub keepalive: Option<Keepalive>,
    /// The longest body that is accepted, in bytes.
    pub max_body: usize,
    /// The proxy that calls go through, if any.
    pub proxy: Option<Proxy>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            verify: true,
            timeout: Duration::from_secs(3),
            keepalive: Some(Keepalive::default()),
            max_body: 4 << 20,
            proxy: None,
        }
    }
}

/// How connections wait for the next call.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Keepalive {
    /// How long a connection may wait.
    pub idle: Duration,
    /// How many may wait for each host and port.
    pub pool: usize,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(60), pool: 5 }
    }
}

/// A proxy for calls. Its `Debug` hides the authorizations.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Proxy {
    /// The proxy for `http://` addresses.
    pub http: Option<String>,
    /// `Proxy-Authorization` for it.
    pub http_authorization: Option<String>,
    /// The proxy for `https://` addresses.
    pub https: Option<String>,
    /// `Proxy-Authorization` for it.
    pub https_authorization: Option<String>,
    /// Hosts that are called directly, separated by commas.
    pub except: Option<String>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { http, https, except, .. } = self;
        f.debug_struct("Proxy")
            .field("http", http)
            .field("https", https)
            .field("except", except)
            .finish_non_exhaustive()
    }
}

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The address is none.
    #[error("not an address that can be called: {0}")]
    Address(String),
    /// No connection came about: the name is unknown, the port closed, the certificate not valid.
    #[error("no connection to {peer}: {reason}")]
    Connect {
        /// Host and port.
        peer: String,
        /// What the system, or TLS, said.
        reason: String,
    },
    /// The time-out passed.
    #[error("{peer} did not answer within {} ms", .after.as_millis())]
    Timeout {
        /// Host and port.
        peer: String,
        /// The time-out.
        after: Duration,
    },
    /// The answer is longer than allowed.
    #[error("{peer} answered with more than {limit} bytes")]
    TooLarge {
        /// Host and port.
        peer: String,
        /// What is allowed.
        limit: usize,
    },
    /// The connection broke, or what came over it was not HTTP.
    #[error("{peer} broke off: {reason}")]
    Broken {
        /// Host and port.
        peer: String,
        /// What broke.
        reason: String,
    },
}

/// An answer, whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status; a redirect is an answer like any other.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as a JSON document.
    ///
    /// # Errors
    /// Where it stops to be JSON; nothing of its content.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, String> {
        serde_json::from_slice(&self.body).map_err(|error| {
            format!("the answer is no such JSON at line {} column {}", error.line(), error.column())
        })
    }
}

/// What is asked.
#[derive(Clone)]
pub struct Call {
    method: Method,
    url: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Call {
    /// A call without headers and body.
    pub fn new(method: Method, url: impl Into<String>) -> Self {
        Self { method, url: url.into(), headers: HeaderMap::new(), body: Bytes::new() }
    }

    /// `GET url`.
    pub fn get(url: impl Into<String>) -> Self {
        Self::new(Method::GET, url)
    }

    /// `POST url`.
    pub fn post(url: impl Into<String>) -> Self {
        Self::new(Method::POST, url)
    }

    /// Sets a header.
    #[must_use]
    pub fn header(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Adds all these headers.
    #[must_use]
    pub fn headers(mut self, headers: HeaderMap) -> Self {
        self.headers.extend(headers);
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.header(header::CONTENT_TYPE, HeaderValue::from_static(content_type))
    }

    /// Sets a body whose type nobody tells.
    #[must_use]
    pub fn content(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets a body as HTML forms send it.
    #[must_use]
    pub fn form<'f>(self, fields: impl IntoIterator<Item = (&'f str, &'f str)>) -> Self {
        self.body("application/x-www-form-urlencoded", form(fields))
    }

    /// Sets a JSON body.
    #[must_use]
    pub fn json(self, body: &serde_json::Value) -> Self {
        self.body("application/json", body.to_string())
    }
}

/// `a=1&b=2`, as HTML forms encode it.
pub fn form<'f>(fields: impl IntoIterator<Item = (&'f str, &'f str)>) -> String {
    reqwest::Url::parse_with_params("form:x", fields)
        .ok()
        .and_then(|url| url.query().map(str::to_owned))
        .unwrap_or_default()
}

/// Makes calls; cheap to clone. Made once for each configuration, in `build`.
#[derive(Clone)]
pub struct Client {
    pool: Arc<Pool>,
    timeout: Duration,
    max_body: usize,
}

/// What makes two configurations share connections.
#[derive(Clone, PartialEq, Eq, Hash)]
struct PoolKey {
    verify: bool,
    keepalive: Option<Keepalive>,
    proxy: Option<Proxy>,
}

type Pool = reqwest::Client;

// Locked while a configuration is compiled, never per request. Pools that no configuration holds go with the last one.
static POOLS: LazyLock<Mutex<HashMap<PoolKey, Weak<Pool>>>> = LazyLock::new(Mutex::default);

impl Client {
    /// Makes a client that shares its connections with all others of the same options.
    ///
    /// # Errors
    /// A proxy's address is none, or TLS cannot be set up.
    pub fn new(options: &Options) -> Result<Self, String> {
        let key = PoolKey {
            verify: options.verify,
            keepalive: options.keepalive.clone(),
            proxy: options.proxy.clone(),
        };
        let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = match pools.get(&key).and_then(Weak::upgrade) {
            Some(pool) => pool,
            None => {
                let pool = Arc::new(key.pool()?);
                pools.retain(|_, pool| pool.strong_count() > 0);
                pools.insert(key, Arc::downgrade(&pool));
                pool
            }
        };
        Ok(Self { pool, timeout: options.timeout, max_body: options.max_body })
    }

    /// Makes a call and waits for the whole answer, whatever its status.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn send(&self, call: Call) -> Result<Answer, CallError> {
        let url = reqwest::Url::parse(&call.url).map_err(|error| CallError::Address(error.to_string()))?;
        let peer = peer(&url)?;
        let request =
            self.pool.request(call.method, url).headers(call.headers).body(call.body).timeout(self.timeout);
        let mut response = request.send().await.map_err(|error| self.told(&peer, error))?;
        let too_large = || CallError::TooLarge { peer: peer.clone(), limit: self.max_body };
        if response.content_length().is_some_and(|length| length > self.max_body as u64) {
            return Err(too_large());
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.told(&peer, error))? {
            if body.len() + chunk.len() > self.max_body {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        let headers = std::mem::take(response.headers_mut());
        Ok(Answer { status: response.status(), headers, body: body.freeze() })
    }

    fn told(&self, peer: &str, error: reqwest::Error) -> CallError {
        let peer = peer.to_owned();
        if error.is_timeout() {
            CallError::Timeout { peer, after: self.timeout }
        } else if error.is_connect() {
            CallError::Connect { peer, reason: deepest(error) }
        } else {
            CallError::Broken { peer, reason: deepest(error) }
        }
    }
}

impl PoolKey {
    fn pool(&self) -> Result<Pool, String> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .http1_only()
            .no_proxy()
            .tls_danger_accept_invalid_certs(!self.verify)
            .tls_danger_accept_invalid_hostnames(!self.verify);
        builder = match &self.keepalive {
            Some(Keepalive { idle, pool }) => builder.pool_idle_timeout(*idle).pool_max_idle_per_host(*pool),
            None => builder.pool_max_idle_per_host(0),
        };
        if let (true, Some(pem)) = (self.verify, trust::authorities()) {
            builder = builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem).map_err(deepest)?);
        }
        if let Some(proxy) = &self.proxy {
            for proxy in proxy.each()? {
                builder = builder.proxy(proxy);
            }
        }
        builder.build().map_err(deepest)
    }
}

impl Proxy {
    fn each(&self) -> Result<Vec<reqwest::Proxy>, String> {
        let mut proxies = Vec::new();
        let http =
            self.http.as_deref().map(|address| (reqwest::Proxy::http(address), &self.http_authorization));
        let https =
            self.https.as_deref().map(|address| (reqwest::Proxy::https(address), &self.https_authorization));
        for (proxy, authorization) in [http, https].into_iter().flatten() {
            let mut proxy = proxy.map_err(|_| "the proxy's address is none".to_owned())?;
            if let Some(authorization) = authorization {
                let mut value = HeaderValue::try_from(authorization)
                    .map_err(|_| "the proxy's authorization cannot stand in a header".to_owned())?;
                value.set_sensitive(true);
                proxy = proxy.custom_http_auth(value);
            }
            let except = self.except.as_deref().and_then(reqwest::NoProxy::from_string);
            proxies.push(proxy.no_proxy(except));
        }
        Ok(proxies)
    }
}

/// Host and port, for errors.
fn peer(url: &reqwest::Url) -> Result<String, CallError> {
    match (url.scheme(), url.host_str(), url.port_or_known_default()) {
        ("http" | "https", Some(host), Some(port)) => Ok(format!("{host}:{port}")),
        _ => Err(CallError::Address("it does not begin with http:// or https:// and a host".into())),
    }
}

/// The innermost cause, which says what happened; the outer ones only say that something did, and where.
fn deepest(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests;
