//! The phases of a request, as a set of bits.

/// A set of phases in which a plugin has a hook. Hooks outside the declared set are never called.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Phases(u8);

impl Phases {
    /// No phase: the plugin only has background work, public APIs or metadata.
    pub const NONE: Phases = Phases(0);
    /// Before access control; authentication happens here. APISIX: `rewrite`.
    pub const REWRITE: Phases = Phases(1);
    /// Access control. APISIX: `access`.
    pub const ACCESS: Phases = Phases(2);
    /// After the upstream was chosen. APISIX: `before_proxy`.
    pub const BEFORE_PROXY: Phases = Phases(4);
    /// The response's head is about to leave. APISIX: `header_filter`.
    pub const HEADER_FILTER: Phases = Phases(8);
    /// A piece of the response's body is about to leave. APISIX: `body_filter`. Who will change the body says so before,
    /// in `header_filter`, by taking away what the head tells of it; who only looks leaves the head alone.
    pub const BODY_FILTER: Phases = Phases(16);
    /// The exchange is over. APISIX: `log`.
    pub const LOG: Phases = Phases(32);
    /// The upstream answered; plugins may wait and ask for the body. APISIX has no such phase: there
    /// ext-plugin-post-resp asks the upstream itself, in `before_proxy`.
    pub const RESPONSE: Phases = Phases(64);

    /// Both sets together, usable in constants.
    pub const fn and(self, other: Phases) -> Phases {
        Phases(self.0 | other.0)
    }

    /// Whether some phase of `other` is in this set.
    pub const fn meets(self, other: Phases) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether every phase of `other` is in this set.
    pub const fn has(self, other: Phases) -> bool {
        self.0 & other.0 == other.0
    }
}
