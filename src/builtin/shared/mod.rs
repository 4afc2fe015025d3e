//! What several plugins share.

pub mod auth;
pub mod base64;
pub mod basic;
pub mod batch;
pub mod brief;
pub mod cookie;
pub mod counter;
pub mod ext_plugin;
pub mod fresh;
pub mod header;
pub mod http_call;
pub mod jwt;
pub mod ldap;
pub mod limit;
pub mod log_entry;
pub mod memo;
pub mod pcre;
pub mod redis_store;
pub mod seal;
pub mod seen;
pub mod session_map;
pub mod substitute;
pub mod tls;

/// Whether a configuration value only refers to a secret, so that it cannot be judged before it is resolved.
/// APISIX: `secret.lua is_secret_ref`.
pub fn is_secret_ref(text: &str) -> bool {
    let starts =
        |prefix: &str| text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix));
    starts("$secret://") || starts("$env://")
}

#[cfg(test)]
mod tests {
    use super::is_secret_ref;

    #[test]
    fn tells_references() {
        for (text, expected) in [
            ("$secret://vault/1/a", true),
            ("$ENV://KEY", true),
            ("$env:/", false),
            ("env://KEY", false),
            ("", false),
        ] {
            assert_eq!(is_secret_ref(text), expected, "{text}");
        }
    }
}
