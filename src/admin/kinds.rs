//! How the kinds differ in the Admin API, as a table. APISIX: the options of `resource.new` in admin/*.lua.

use crate::resource::Kind;

/// A method of the Admin API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// One resource, or the list.
    Get,
    /// Creates or replaces.
    Put,
    /// Creates under a new id.
    Post,
    /// Removes.
    Delete,
    /// Changes a part.
    Patch,
}

impl Verb {
    /// The verb of an HTTP method.
    pub fn of(method: &http::Method) -> Option<Verb> {
        Some(match method.as_str() {
            "GET" => Verb::Get,
            "PUT" => Verb::Put,
            "POST" => Verb::Post,
            "DELETE" => Verb::Delete,
            "PATCH" => Verb::Patch,
            _ => return None,
        })
    }

    /// Its name in HTTP.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Get => "GET",
            Verb::Put => "PUT",
            Verb::Post => "POST",
            Verb::Delete => "DELETE",
            Verb::Patch => "PATCH",
        }
    }
}

/// Whose configurations the member `plugins` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugins {
    /// There is no such member.
    None,
    /// Those that run for requests.
    Route,
    /// A consumer's: proofs of identity, and others.
    Consumer,
    /// A credential's: proofs of identity only.
    Credential,
    /// Those that run for streams.
    Stream,
}

/// An id that must exist.
#[derive(Clone, Copy, Debug)]
pub struct Reference {
    /// The member.
    pub member: &'static str,
    /// What it names.
    pub kind: Kind,
}

/// What is particular to a kind.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Verbs answered with 405.
    pub refused: &'static [Verb],
    /// What `plugins` holds.
    pub plugins: Plugins,
    /// Ids that must exist, in the order in which they are looked up.
    pub references: &'static [Reference],
    /// Members that `?filter=` compares.
    pub filters: &'static [&'static str],
}

const UPSTREAM: Reference = Reference { member: "upstream_id", kind: Kind::Upstream };
const SERVICE: Reference = Reference { member: "service_id", kind: Kind::Service };
const PLUGIN_CONFIG: Reference = Reference { member: "plugin_config_id", kind: Kind::PluginConfig };
const GROUP: Reference = Reference { member: "group_id", kind: Kind::ConsumerGroup };

const PLAIN: Rules = Rules { refused: &[], plugins: Plugins::None, references: &[], filters: &[] };

/// The rules of a kind.
pub fn rules(kind: Kind) -> Rules {
    match kind {
        Kind::Route => Rules {
            plugins: Plugins::Route,
            references: &[UPSTREAM, SERVICE, PLUGIN_CONFIG],
            filters: &["service_id", "upstream_id"],
            ..PLAIN
        },
        Kind::Service => Rules { plugins: Plugins::Route, references: &[UPSTREAM], ..PLAIN },
        Kind::Upstream | Kind::Ssl => PLAIN,
        Kind::Consumer => Rules {
            refused: &[Verb::Post, Verb::Patch],
            plugins: Plugins::Consumer,
            references: &[GROUP],
            ..PLAIN
        },
        Kind::Credential => {
            Rules { refused: &[Verb::Post, Verb::Patch], plugins: Plugins::Credential, ..PLAIN }
        }
        Kind::ConsumerGroup | Kind::PluginConfig | Kind::GlobalRule => {
            Rules { refused: &[Verb::Post], plugins: Plugins::Route, ..PLAIN }
        }
        Kind::PluginMetadata => Rules { refused: &[Verb::Post, Verb::Patch], ..PLAIN },
        Kind::Secret => Rules { refused: &[Verb::Post], ..PLAIN },
        Kind::Proto => Rules { refused: &[Verb::Patch], ..PLAIN },
        Kind::StreamRoute => Rules {
            refused: &[Verb::Patch],
            plugins: Plugins::Stream,
            references: &[UPSTREAM, SERVICE],
            filters: &["service_id", "upstream_id"],
        },
    }
}

/// Whether resources of a kind carry their id as a member that must agree with the path.
pub fn has_id(kind: Kind) -> bool {
    !matches!(kind, Kind::Consumer | Kind::PluginMetadata)
}
