//! Checks the resource file without starting anything: what `portcullis test` does in file mode.

use serde_json::Value;

use super::{environment, store};
use crate::{
    resource::{self, Key, Kind},
    settings::{
        Settings,
        fault::{Fault, Severity},
    },
    snapshot::{compile::Env, workspace},
    store::Event,
};

/// Every fault of every resource, not only the first.
pub fn resources(settings: &Settings) -> Vec<Fault> {
    let file = settings.resource_file().display().to_string();
    let fault = |path: String, what: String| Fault {
        severity: Severity::Error,
        file: file.clone(),
        line: None,
        path,
        what,
        right: String::new(),
        nearest: None,
    };
    let (env, opened) = match (environment(settings), store::open(settings)) {
        (Ok(env), Ok(opened)) => (env, opened),
        (Err(e), _) | (_, Err(e)) => return vec![fault(String::new(), format!("{e:#}"))],
    };
    let mut faults: Vec<Fault> = Vec::new();
    if let Some(why) = opened.file.as_ref().and_then(|file| file.fault().borrow().clone()) {
        faults.push(fault(String::new(), why.to_string()));
    }
    let Some(Event::Reset { entries, .. }) = opened.store.watch().try_recv() else { return faults };
    for entry in entries {
        let Ok(value) = serde_json::from_str::<Value>(&entry.value) else { continue };
        if let Err(why) = judge(&env, &entry.key, &value) {
            faults.push(fault(format!("{}.{}", entry.key.kind().dir(), entry.key.id()), why));
        }
    }
    faults
}

fn judge(env: &Env, key: &Key, value: &Value) -> Result<(), String> {
    if !matches!(key.kind(), Kind::PluginMetadata | Kind::Secret) {
        resource::check(key.kind(), value)?;
    }
    workspace::check(env, key, value)
}
