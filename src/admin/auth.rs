//! Who may use the Admin API: the address, then the key. APISIX: admin/init.lua `check_token`, and nginx's
//! `allow`/`deny` for `allow_admin`.
//!
//! Invariant: keys are compared in constant time against all keys, and are never logged.

use std::net::IpAddr;

use http::{HeaderMap, Method};
use subtle::{Choice, ConstantTimeEq};

use super::error::AdminError;
use crate::{
    net::{args, ip_set::IpSet},
    vars::cookie,
};

/// What a key allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Admin,
    /// Reading: GET only.
    Viewer,
}

/// Whether a key must be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyCheck {
    /// It must (`admin_key_required: true`).
    Required,
    /// Everybody who may connect may do everything.
    Bypassed,
}

/// Who may use the Admin API.
pub struct Access {
    keys: Vec<(String, Role)>,
    check: KeyCheck,
    allow: IpSet,
}

impl Access {
    /// Takes the keys with their roles, and the addresses that may connect (none: all).
    ///
    /// Differs from APISIX: without any key nobody is let in; there everybody is.
    pub fn new(keys: Vec<(String, Role)>, check: KeyCheck, allow: IpSet) -> Access {
        let keys = keys.into_iter().filter(|(key, _)| !key.is_empty()).collect();
        Access { keys, check, allow }
    }

    /// Whether an address may connect. Also the rule for everything else on the Admin API's port.
    pub fn admits(&self, peer: Option<IpAddr>) -> bool {
        self.allow.is_empty() || peer.is_some_and(|ip| self.allow.contains(ip.to_canonical()))
    }

    /// Checks the key a request shows: as argument `api_key`, else as header `X-API-KEY`, else as cookie `x_api_key`.
    ///
    /// # Errors
    /// [`AdminError::Denied`] with APISIX's reason.
    pub fn authenticate(&self, method: &Method, query: &str, headers: &HeaderMap) -> Result<(), AdminError> {
        if self.check == KeyCheck::Bypassed {
            return Ok(());
        }
        let shown = shown_key(query, headers).ok_or(AdminError::Denied("missing apikey"))?;
        match self.role(&shown) {
            None => Err(AdminError::Denied("wrong apikey")),
            Some(Role::Viewer) if method != Method::GET => {
                Err(AdminError::Denied("invalid method for role viewer"))
            }
            Some(_) => Ok(()),
        }
    }

    /// Looks at every key, so that the time tells nothing about which one nearly fitted. The first that fits counts.
    fn role(&self, shown: &[u8]) -> Option<Role> {
        let mut found = None;
        for (key, role) in &self.keys {
            let equal: Choice = key.as_bytes().ct_eq(shown);
            if bool::from(equal) && found.is_none() {
                found = Some(*role);
            }
        }
        found
    }
}

fn shown_key(query: &str, headers: &HeaderMap) -> Option<Vec<u8>> {
    if let Some(key) = args::text(query.as_bytes(), "api_key") {
        return Some(key.into_owned().into_bytes());
    }
    // nginx takes the one for the other in `$http_x_api_key`.
    if let Some(key) = headers.get("x-api-key").or_else(|| headers.get("x_api_key")) {
        return Some(key.as_bytes().to_vec());
    }
    let cookies = headers.get_all(http::header::COOKIE).iter().filter_map(|header| header.to_str().ok());
    cookies
        .filter_map(|header| cookie::find(header, "x_api_key"))
        .next_back()
        .map(|key| key.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn access(check: KeyCheck) -> Access {
        let keys =
            vec![("boss".into(), Role::Admin), ("look".into(), Role::Viewer), (String::new(), Role::Admin)];
        Access::new(keys, check, IpSet::default())
    }

    #[track_caller]
    fn check(method: Method, query: &str, headers: &[(&'static str, &'static str)], denied: Option<&str>) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let found = match access(KeyCheck::Required).authenticate(&method, query, &map) {
            Ok(()) => None,
            Err(AdminError::Denied(why)) => Some(why),
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(found, denied, "{method} {query} {headers:?}");
    }

    #[test]
    fn keys_and_roles() {
        check(Method::GET, "", &[], Some("missing apikey"));
        check(Method::GET, "", &[("x-api-key", "wrong")], Some("wrong apikey"));
        check(Method::GET, "", &[("x-api-key", "")], Some("wrong apikey"));
        check(Method::PUT, "", &[("x-api-key", "boss")], None);
        check(Method::PUT, "", &[("x_api_key", "boss")], None);
        check(Method::PUT, "api_key=boss", &[], None);
        check(Method::PUT, "", &[("cookie", "a=b; x_api_key=boss")], None);
        check(Method::GET, "", &[("x-api-key", "look")], None);
        check(Method::PUT, "", &[("x-api-key", "look")], Some("invalid method for role viewer"));
        check(Method::HEAD, "", &[("x-api-key", "look")], Some("invalid method for role viewer"));
    }

    #[test]
    fn the_argument_wins_over_the_header_and_that_over_the_cookie() {
        check(Method::GET, "api_key=wrong", &[("x-api-key", "boss")], Some("wrong apikey"));
        check(Method::GET, "api_key=boss", &[("x-api-key", "wrong")], None);
        check(Method::GET, "", &[("x-api-key", "wrong"), ("cookie", "x_api_key=boss")], Some("wrong apikey"));
        check(Method::GET, "api_key", &[("x-api-key", "boss")], Some("wrong apikey"));
        check(Method::GET, "?api_key=boss", &[], Some("missing apikey"));
    }

    #[test]
    fn bypass_and_no_keys() {
        let none = HeaderMap::new();
        assert!(access(KeyCheck::Bypassed).authenticate(&Method::PUT, "", &none).is_ok());
        let keyless = Access::new(Vec::new(), KeyCheck::Required, IpSet::default());
        assert!(keyless.authenticate(&Method::GET, "api_key=", &none).is_err());
    }

    #[test]
    fn addresses() {
        let allow = IpSet::parse(["127.0.0.0/24", "fd00::/8"]).unwrap();
        let access = Access::new(Vec::new(), KeyCheck::Bypassed, allow);
        let admits = |ip: &str| access.admits(Some(ip.parse().unwrap()));
        assert!(admits("127.0.0.1") && admits("::ffff:127.0.0.1") && admits("fd00::1"));
        assert!(!admits("127.0.1.1") && !admits("10.0.0.1") && !access.admits(None));
    }
}
