//! Bearer tokens: found in the request, verified here or introspected at the provider.
//!
//! Start reading at [`Plugin::bearer_flow`]. APISIX: openid-connect.lua introspect and rewrite.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, header};
use serde_json::{Value, json};

use super::{
    Plugin, now,
    token::{self, Claims, Doubt},
};
use crate::plugin::{
    exchange::Exchange,
    reply::{Class, Reply},
};

/// The longest that an introspection is believed.
const LONGEST: Duration = Duration::from_secs(86_400);

/// A bearer token that was believed.
pub struct Bearer {
    /// What it claims, or what its introspection said.
    pub claims: Arc<Claims>,
    /// The token.
    pub token: String,
}

impl Plugin {
    /// Whether requests may bring a token.
    pub(super) fn takes_bearers(&self) -> bool {
        let conf = &self.conf;
        conf.bearer_only
            || conf.introspection_endpoint.is_some()
            || conf.public_key.is_some()
            || conf.use_jwks
    }

    /// The token of a request, if it brings one that is good for this route; `None`: it brings none.
    ///
    /// # Errors
    /// The answer to a request that is refused.
    pub(super) async fn bearer_flow(
        &self,
        x: &Exchange<'_>,
        client_token: Option<String>,
    ) -> Result<Option<Bearer>, Reply> {
        let Some(token) = find(x, client_token)? else {
            if self.conf.bearer_only {
                let challenge = format!("Bearer realm=\"{}\"", self.conf.realm);
                return Err(challenged(&challenge)
                    .because("No bearer token found in request.")
                    .classed(Class::Missing));
            }
            return Ok(None);
        };
        let claims = if self.conf.public_key.is_some() || self.conf.use_jwks {
            self.verifier.bearer(&token).await
        } else {
            self.introspected(x, &token).await
        };
        let claims = claims.map_err(|doubt| self.invalid_token(doubt))?;
        self.check_scopes(&claims)?;
        self.check_audience(&claims)?;
        if let Some(schema) = &self.claim_schema {
            schema
                .check(&Value::Object((*claims).clone()))
                .map_err(|reason| self.invalid_token(reason.into()))?;
        }
        Ok(Some(Bearer { claims, token }))
    }

    /// RFC 6750 §3: the token is not believed, and why.
    pub(super) fn invalid_token(&self, doubt: Doubt) -> Reply {
        // What stands between quotes holds none, and no control characters.
        let told: String = doubt
            .told
            .chars()
            .map(|c| if c == '"' { '\'' } else { c })
            .filter(|c| (' '..='~').contains(c))
            .collect();
        let realm = &self.conf.realm;
        challenged(&format!(
            "Bearer realm=\"{realm}\", error=\"invalid_token\", error_description=\"{told}\""
        ))
        .classed(doubt.class)
        .because(format!("OIDC token refused: {}", String::from(doubt)))
    }

    async fn introspected(&self, x: &Exchange<'_>, token: &str) -> Result<Arc<Claims>, Doubt> {
        let mut headers = HeaderMap::new();
        for name in &self.addon_headers {
            if let Some(value) = x.session.req_header().headers.get(name) {
                headers.insert(name.clone(), value.clone());
            }
        }
        let key = self.introspections.key(&[token.as_bytes()]);
        if let Some(known) = self.introspections.get(&key) {
            return Ok(known);
        }
        let endpoint = match &self.conf.introspection_endpoint {
            Some(configured) => configured.clone(),
            None => {
                let unavailable = |error| Doubt::caused("no introspection", error);
                let discovery = self.provider.discovery().await.map_err(unavailable)?;
                discovery.introspection_endpoint.clone().ok_or("the provider offers no introspection")?
            }
        };
        let method = &self.conf.introspection_endpoint_auth_method;
        let answer = self.endpoints.introspect(&endpoint, method, token, headers).await;
        let claims = answer.map_err(|error| Doubt::caused("introspection failed", error))?;
        if claims.get("active") != Some(&Value::Bool(true)) {
            return Err("invalid token".into());
        }
        let claims = Arc::new(claims);
        if let Some(lifetime) = self.believed_for(&claims) {
            self.introspections.put(key, lifetime, claims.clone());
        }
        Ok(claims)
    }

    /// How long an introspection holds. APISIX: lua-resty-openidc, openidc.introspect.
    fn believed_for(&self, claims: &Claims) -> Option<Duration> {
        let name = self.conf.introspection_expiry_claim.as_deref().unwrap_or("exp");
        let mut seconds = claims.get(name)?.as_i64()?;
        if name == "exp" {
            seconds -= now();
        }
        if self.conf.introspection_interval > 0 {
            seconds = seconds.min(self.conf.introspection_interval);
        }
        u64::try_from(seconds)
            .ok()
            .filter(|seconds| *seconds > 0)
            .map(|s| Duration::from_secs(s).min(LONGEST))
    }

    fn check_scopes(&self, claims: &Claims) -> Result<(), Reply> {
        self.check_granted(claims.get("scope").and_then(Value::as_str).unwrap_or_default())
    }

    /// Whether scopes, separated by spaces, have all that are required.
    pub(super) fn check_granted(&self, granted: &str) -> Result<(), Reply> {
        let Some(required) = &self.conf.required_scopes else { return Ok(()) };
        if required.iter().all(|wanted| granted.split_whitespace().any(|scope| scope == wanted)) {
            return Ok(());
        }
        Err(forbidden(&format!("required scopes {} not present", required.join(", "))))
    }

    fn check_audience(&self, claims: &Claims) -> Result<(), Reply> {
        let rule = &self.conf.claim_validator.audience;
        match claims.get(&rule.claim).filter(|audience| !audience.is_null()) {
            // A token without an audience cannot match.
            None if rule.required || rule.match_with_client_id => {
                Err(forbidden("required audience claim not present"))
            }
            Some(audience) if rule.match_with_client_id && !token::names(audience, &self.conf.client_id) => {
                Err(forbidden("mismatched audience"))
            }
            _ => Ok(()),
        }
    }
}

fn challenged(challenge: &str) -> Reply {
    match HeaderValue::try_from(challenge) {
        Ok(challenge) => Reply::status(401).with_header(header::WWW_AUTHENTICATE, challenge),
        Err(_) => Reply::status(401),
    }
}

/// JSON as APISIX encodes it beforehand: without a newline.
pub(super) fn forbidden(error: &str) -> Reply {
    Reply::bytes(403, json!({ "error": error }).to_string()).because(format!("OIDC: {error}"))
}

/// `Authorization: Bearer`, or else what the client sent as `X-Access-Token`.
fn find(x: &Exchange<'_>, client_token: Option<String>) -> Result<Option<String>, Reply> {
    let Some(value) = x.session.req_header().headers.get(header::AUTHORIZATION) else {
        return Ok(client_token.filter(|token| !token.is_empty()));
    };
    let text = std::str::from_utf8(value.as_bytes()).unwrap_or_default();
    match text.split_once(' ') {
        None => Err(Reply::status(400).because("Invalid Authorization header format.")),
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            let token = token.trim();
            Ok((!token.is_empty()).then(|| token.to_owned()))
        }
        Some(_) => Ok(None),
    }
}
