//! Consumers as plugins see them: who authenticated, and how to find out.

use std::sync::Arc;

use http::HeaderValue;
use serde_json::Value;

use super::{chain::Chain, contract::AnyCredential};

/// A compiled consumer.
pub struct Consumer {
    /// APISIX: `username`.
    pub username: Arc<str>,
    /// The same, ready for X-Consumer-Username.
    pub header: HeaderValue,
    /// `labels.custom_id`, ready for X-Consumer-Custom-ID.
    pub custom_id: Option<HeaderValue>,
    /// The consumer group it belongs to.
    pub group_id: Option<Arc<str>>,
    /// Labels as stored, for plugins that look at them.
    pub labels: Value,
    /// As it is stored, as JSON.
    pub stored: Arc<str>,
    /// Its non-auth plugins, compiled; overlays the route's chain.
    pub plugins: Chain,
    /// Whether it names no plugin at all, not even one that authenticates.
    pub is_bare: bool,
}

/// One way in which a consumer proves who it is: its own auth plugin or a credential.
pub struct Authenticated {
    /// Whose it is.
    pub consumer: Arc<Consumer>,
    /// The credential's id; `None` for a plugin on the consumer itself.
    pub credential: Option<(Arc<str>, HeaderValue)>,
    /// The compiled consumer's side of the auth plugin.
    pub secret: AnyCredential,
}

impl Authenticated {
    /// The compiled consumer's side, by its type.
    pub fn secret<T: 'static>(&self) -> Option<&T> {
        self.secret.downcast_ref()
    }
}
