//! The secret managers, and the first load of a configuration that needs them.

use std::sync::Arc;

use crate::{
    control::Control,
    secret::cache::{Lifetimes, Secrets},
    secret_source,
    settings::Settings,
    store::Event,
};

/// All secret managers, with the lifetimes of config.yaml.
pub fn of(settings: &Settings) -> Secrets {
    let cache = &settings.apisix.lru.secret;
    let lifetimes = Lifetimes { value: cache.ttl, failure: cache.neg_ttl };
    Secrets::new(secret_source::all(), lifetimes, |name| std::env::var(name).ok())
}

/// Compiles a configuration before anything listens, so that the first request meets the secrets that it needs.
pub fn load(control: &Arc<Control>, events: Vec<Event>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(control.take(events)),
        Err(error) => {
            tracing::error!(%error, "no secret can be fetched at the start");
            control.apply(events);
        }
    }
}
