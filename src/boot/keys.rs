//! The Admin API's key when config.yaml names none: made at the first start, kept in the data directory.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::{Context, Result};

use crate::settings::Settings;

/// The generated key, made now if there is none yet; empty where no entry of `admin_key` needs one.
///
/// # Errors
/// The file can neither be read nor made.
pub fn generated(settings: &Settings) -> Result<String> {
    if settings.deployment.admin.admin_key.iter().all(|entry| !entry.key.reveal().is_empty()) {
        return Ok(String::new());
    }
    let file = settings.admin_key_file();
    match fs::read_to_string(&file) {
        Ok(key) if !key.trim().is_empty() => Ok(key.trim().to_owned()),
        Ok(_) => anyhow::bail!("{} is empty: delete it to have a new key made", file.display()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => make(&file),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", file.display())),
    }
}

fn make(file: &Path) -> Result<String> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("no randomness for the admin key: {e}"))?;
    let key: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .with_context(|| format!("cannot make {}", file.display()))?;
    writeln!(out, "{key}")
        .and_then(|()| out.sync_all())
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_for_its_owner_only() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("admin.key");
        let key = make(&file).expect("a key");
        assert_eq!(key.len(), 32);
        assert_eq!(fs::metadata(&file).expect("the file").permissions().mode() & 0o777, 0o600);
        assert!(make(&file).is_err(), "never over an existing key");
    }
}
