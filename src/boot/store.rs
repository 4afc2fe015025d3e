//! Opens the store that config.yaml names.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};

use crate::{
    settings::{
        Settings, substitute,
        types::{Provider, Role},
    },
    store::{EmbeddedStore, FileFormat, FileStore, Store, standalone::Standalone},
    yaml,
};

/// How long to wait for the file of a process that is handing over.
const PATIENCE: Duration = Duration::from_secs(20);

/// An open store.
#[derive(Clone)]
pub struct Opened {
    /// What everybody else sees of it.
    pub store: Arc<dyn Store>,
    /// The embedded store, to be closed at a hand-over.
    pub embedded: Option<Arc<EmbeddedStore>>,
    /// The resource file, to be followed.
    pub file: Option<Arc<FileStore>>,
    /// API-driven standalone mode, for PUT /configs.
    pub standalone: Option<Arc<Standalone>>,
}

/// Opens it.
///
/// # Errors
/// It cannot be opened, or the provider is not there yet.
pub fn open(settings: &Settings) -> Result<Opened> {
    let alone = |store| Opened { store, embedded: None, file: None, standalone: None };
    match settings.provider() {
        Provider::Embedded | Provider::Etcd => {
            if settings.provider() == Provider::Etcd {
                // A config.yaml of APISIX names etcd; refusing to start would help nobody who tries us out.
                tracing::warn!(
                    "config_provider etcd is not supported yet: the embedded store serves instead"
                );
            }
            let path = settings.data_dir().join("portcullis.redb");
            let store = Arc::new(EmbeddedStore::open(&path, PATIENCE).context("cannot open the store")?);
            Ok(Opened { embedded: Some(store.clone()), ..alone(store) })
        }
        Provider::Yaml if settings.deployment.role == Role::Traditional => {
            let standalone = Arc::new(Standalone::new().context("cannot start the store")?);
            Ok(Opened { standalone: Some(standalone.clone()), ..alone(standalone.store().clone()) })
        }
        Provider::Yaml => file(settings, FileFormat::Yaml(parse_yaml)),
        Provider::Json => file(settings, FileFormat::Json),
    }
}

fn file(settings: &Settings, format: FileFormat) -> Result<Opened> {
    let store = Arc::new(FileStore::new(settings.resource_file(), format, substitute::in_text_of_process));
    store.poll();
    Ok(Opened { store: store.clone(), embedded: None, file: Some(store), standalone: None })
}

fn parse_yaml(text: &str) -> Result<serde_json::Value, String> {
    yaml::parse(text).map_err(|e| e.to_string())
}
