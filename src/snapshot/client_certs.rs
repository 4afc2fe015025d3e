//! Certificates that the gateway shows to nodes: ssl resources of type `client`, which upstreams name in
//! `tls.client_cert_id`.
//!
//! One that is missing, of the wrong type or not readable spoils the requests of its upstreams, not the upstreams:
//! with its mending they work again. APISIX: `init.lua resolve_upstream_client_cert`, `upstream.lua set_upstream`.

use std::{collections::HashMap, sync::Arc};

use serde_json::{Value, json};

use super::compile::{self, Env};
use crate::{
    resource::{self, SslType},
    upstream::{self, conf::ClientCert},
};

/// By the id of the ssl resource.
#[derive(Default)]
pub struct ClientCerts(HashMap<Arc<str>, ClientCert>);

impl ClientCerts {
    /// Takes in an ssl resource.
    ///
    /// # Errors
    /// The resource is none.
    pub fn put(&mut self, env: &Env, id: Arc<str>, stored: &Value) -> Result<(), String> {
        let ssl = resource::parse::<resource::Ssl>(stored).map_err(|e| e.to_string())?;
        let cert = match ssl.kind {
            SslType::Client => revealed(env, &ssl),
            SslType::Server => missing(502, "ssl type should be 'client'".to_owned()),
        };
        self.0.insert(id, cert);
        Ok(())
    }

    /// Forgets an ssl resource that is gone.
    pub fn remove(&mut self, id: &str) {
        self.0.remove(id);
    }

    /// What an upstream that names this ssl resource shows.
    pub fn get(&self, id: &str) -> ClientCert {
        // APISIX's words
        self.0.get(id).cloned().unwrap_or_else(|| missing(502, format!("ssl id [{id}] not exits")))
    }
}

fn missing(status: u16, reason: String) -> ClientCert {
    ClientCert::Missing { status, reason: format!("failed to get ssl cert: {reason}") }
}

fn revealed(env: &Env, ssl: &resource::Ssl) -> ClientCert {
    let mut pair = json!({"cert": ssl.cert, "key": ssl.key});
    compile::reveal(env, &mut pair, &["key"]);
    let mut text = |name: &str| match pair[name].take() {
        Value::String(text) => text,
        _ => String::new(),
    };
    let (cert, key) = (text("cert"), text("key"));
    match upstream::certificate(&cert, &key) {
        Ok(_) => ClientCert::Pair { cert, key },
        Err(reason) => missing(503, reason),
    }
}
