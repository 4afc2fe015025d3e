//! Request targets: a path that is routed has no second spelling, and what is sent on means the same path again.

use portcullis::net::{
    escape::{Escape, escape_uri},
    uri::{keep_encoded_slash, normalize, normalize_uri_like_servlet, split_target},
};

/// Takes a target apart and normalises its path.
pub fn run(data: &[u8]) {
    let target = split_target(data);
    assert!(target.path.len() + target.args.len() <= data.len() + 1);
    let Ok(uri) = normalize(target.path) else { return };
    assert!(uri.starts_with('/') && !uri.contains("//") && !uri.contains('\0'), "{uri:?}");
    assert!(!uri.split('/').any(|segment| matches!(segment, "." | "..")), "{uri:?}");
    let sent = escape_uri(&uri, Escape::Path);
    assert_eq!(normalize(sent.as_bytes()).as_deref(), Ok(&*uri), "{sent}");
    if let Ok(bare) = normalize_uri_like_servlet(&uri) {
        assert!(!bare.contains(';'), "{bare:?}");
    }
    if let Some(kept) = keep_encoded_slash(target.path, &uri) {
        assert!(kept.starts_with('/') && kept.contains("%2F"), "{kept:?}");
    }
}
