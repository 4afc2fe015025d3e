//! What config.yaml says about the data plane, ready for use per request.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use http::{HeaderName, HeaderValue};

use crate::{compat::Compat, net::ip_set::IpSet};

/// Fixed at start; a change needs a reload of the process.
pub struct Options {
    /// The APISIX whose texts are spoken.
    pub compat: Compat,
    /// The `Server` header of every response.
    pub server: HeaderValue,
    /// `apisix.delete_uri_tail_slash`.
    pub delete_uri_tail_slash: bool,
    /// `apisix.normalize_uri_like_servlet`.
    pub normalize_uri_like_servlet: bool,
    /// `apisix.match_uri_encoded_slash`.
    pub match_uri_encoded_slash: bool,
    /// `apisix.show_upstream_status_in_response_header`.
    pub show_upstream_status: bool,
    /// `apisix.trusted_addresses`: peers whose X-Forwarded-* and identity headers are believed.
    pub trusted: Option<IpSet>,
    /// `nginx_config.http.real_ip_*`.
    pub real_ip: Option<RealIp>,
    /// `nginx_config.http.client_max_body_size` in bytes; `None` = no limit.
    pub max_body: Option<u64>,
    /// Largest request body that a plugin may have buffered, in bytes.
    pub max_buffered_body: usize,
    /// `nginx_config.http.keepalive_timeout`; zero closes after each request.
    pub keepalive: Duration,
    /// `nginx_config.http.client_body_timeout`.
    pub body_timeout: Duration,
    /// `nginx_config.http.send_timeout`.
    pub send_timeout: Duration,
    /// Set while the process hands over or drains: clients are asked to connect anew.
    pub draining: Arc<AtomicBool>,
    /// Whether logs show credentials.
    pub log_credentials: bool,
}

/// Whose word about the client's address is believed. nginx: `ngx_http_realip_module`.
pub struct RealIp {
    /// `real_ip_header`.
    pub header: HeaderName,
    /// `real_ip_from`.
    pub from: IpSet,
    /// `real_ip_recursive`.
    pub recursive: bool,
}
