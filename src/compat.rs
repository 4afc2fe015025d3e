//! Where APISIX 3.2 and today's APISIX answer differently: the one place that knows.
//!
//! `portcullis.compat: "3.2"` in config.yaml selects the older texts and headers; the default is today's.
//! Code elsewhere asks a question here and never compares versions itself.

use serde::Deserialize;

/// The APISIX whose texts and headers are spoken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
pub enum Compat {
    /// APISIX 3.2.0, the version of older tutorials and clients.
    #[serde(rename = "3.2")]
    V3_2,
    /// Today's APISIX (3.18).
    #[default]
    #[serde(rename = "now")]
    Now,
}

impl Compat {
    /// The version that the `Server` header and the Admin API name.
    pub fn version(self) -> &'static str {
        match self {
            Compat::V3_2 => "3.2.0",
            Compat::Now => "3.18.0",
        }
    }

    /// Whether `apisix.router.http` is `radixtree_uri` when config.yaml does not say (else `radixtree_host_uri`).
    pub fn routes_by_path_alone(self) -> bool {
        self == Compat::V3_2
    }

    /// Whether a resource of a file may have plugins that config.yaml does not switch on; they do not run then.
    pub fn files_may_have_absent_plugins(self) -> bool {
        self == Compat::V3_2
    }

    /// Whether the Admin API answers a write with the schema's defaults filled in.
    pub fn echoes_defaults(self) -> bool {
        self == Compat::V3_2
    }

    /// Whether a write that brings `create_time` or `update_time` is refused.
    pub fn forbids_times(self) -> bool {
        self == Compat::Now
    }

    /// Whether a 401 of the Admin API says why in `description`.
    pub fn describes_denial(self) -> bool {
        self == Compat::Now
    }

    /// The error text of an Admin request to a resource that does not exist.
    pub fn unknown_resource(self, name: &str) -> String {
        match self {
            Compat::V3_2 => "not found".into(),
            Compat::Now => format!("Unsupported resource type: {name}"),
        }
    }

    /// Whether the consumer's name and credential are told to the upstream in X-Consumer-* headers.
    pub fn sends_identity_headers(self) -> bool {
        self == Compat::Now
    }

    /// Whether X-Forwarded-Proto, -Host and -Port of an untrusted peer are overwritten; else what any peer sends stands.
    pub fn overwrites_forwarded(self) -> bool {
        self == Compat::Now
    }

    /// Whether members that nobody knows are refused in resources, and addresses of IPv6 without brackets among the
    /// nodes of an upstream. APISIX 3.2: `schema_def.lua` has no `additionalProperties`.
    pub fn judges_strictly(self) -> bool {
        self == Compat::Now
    }

    /// Whether no two consumers may have the same key.
    pub fn keys_have_one_owner(self) -> bool {
        self == Compat::Now
    }

    /// Whether a consumer that has plugins must have one that authenticates.
    pub fn consumers_authenticate(self) -> bool {
        self == Compat::V3_2
    }

    /// Whether two global rules may have the same plugin; both run then.
    pub fn global_rules_share_plugins(self) -> bool {
        self == Compat::V3_2
    }

    /// cors: what scripts may read of an answer when the configuration does not say.
    pub fn cors_exposes(self) -> &'static str {
        match self {
            Compat::V3_2 => "*",
            Compat::Now => "",
        }
    }

    /// ua-restriction: whether both lists, or none, may be there. An allowlist is then for exceptions from the
    /// denylist, and keeps nobody out itself.
    pub fn agents_are_let_in_unless_denied(self) -> bool {
        self == Compat::V3_2
    }

    /// Whether global rules finish rewrite *and* access before the route's plugins begin.
    pub fn global_rules_run_first(self) -> bool {
        self == Compat::V3_2
    }

    /// Whether a consumer group's plugins count only when the consumer names plugins, too, be it one that authenticates.
    pub fn group_needs_consumer_plugins(self) -> bool {
        self == Compat::V3_2
    }

    /// key-auth: neither header nor query argument is there.
    pub fn missing_api_key(self) -> &'static str {
        match self {
            Compat::V3_2 => "Missing API key found in request",
            Compat::Now => "Missing API key in request",
        }
    }

    /// The `WWW-Authenticate` of a 401 for credentials that are absent; 3.2 sent one in two plugins only.
    pub fn challenge_missing(self, plugin: &str, scheme: &str, realm: &str) -> Option<String> {
        match self {
            Compat::V3_2 => matches!(plugin, "basic-auth" | "ldap-auth").then(|| "Basic realm='.'".into()),
            Compat::Now => Some(format!("{scheme} realm=\"{realm}\"")),
        }
    }

    /// The `WWW-Authenticate` of a 401 for credentials that are wrong.
    pub fn challenge_wrong(self, scheme: &str, realm: &str) -> Option<String> {
        (self == Compat::Now).then(|| format!("{scheme} realm=\"{realm}\""))
    }

    /// The text when no consumer at all has the plugin, where 3.2 had one of its own.
    pub fn no_consumer(self, now: &'static str) -> &'static str {
        match self {
            Compat::V3_2 => "Missing related consumer",
            Compat::Now => now,
        }
    }

    /// Whether the word `Basic` may have any case.
    pub fn scheme_ignores_case(self) -> bool {
        self == Compat::Now
    }

    /// jwt-auth: whether a consumer with a public key must have the private one, too.
    pub fn jwt_needs_private_key(self) -> bool {
        self == Compat::V3_2
    }

    /// jwt-auth: whether a consumer that signs with a secret must bring it; else one is made up when it is written.
    pub fn jwt_needs_secret(self) -> bool {
        self == Compat::Now
    }

    /// openid-connect: whether the provider's certificate must be valid when the configuration does not say.
    pub fn oidc_verifies_certificates(self) -> bool {
        self == Compat::Now
    }

    /// openid-connect: whether logins need a secret for their sessions in the configuration.
    pub fn oidc_wants_a_session(self) -> bool {
        self == Compat::Now
    }

    /// hmac-auth: the field of the consumer that a configuration without one misses.
    pub fn hmac_key(self) -> &'static str {
        match self {
            Compat::V3_2 => "access_key",
            Compat::Now => "key_id",
        }
    }

    /// hmac-auth: whether a client learns that it sent no such header, or one of another scheme.
    pub fn hmac_says_what_is_missing(self) -> bool {
        self == Compat::Now
    }

    /// consumer-restriction: there is nothing to compare, for example because nobody authenticated.
    pub fn restriction_without_value(self, kind: &str) -> String {
        match self {
            Compat::V3_2 => "Missing authentication or identity verification.".to_owned(),
            Compat::Now => format!("The request is rejected, please check the {kind} for this request"),
        }
    }

    /// How many labels of `http_status` there are: the older ones come first.
    pub fn status_labels(self) -> usize {
        match self {
            Compat::V3_2 => 7,
            Compat::Now => 11,
        }
    }

    /// How many labels of `http_latency` and `bandwidth` there are after `type`: the older ones come first.
    pub fn traffic_labels(self) -> usize {
        match self {
            Compat::V3_2 => 4,
            Compat::Now => 7,
        }
    }

    /// Whether the metric `node_info` names the version.
    pub fn node_info_has_version(self) -> bool {
        self == Compat::Now
    }
}
