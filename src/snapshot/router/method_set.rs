//! The request methods a route names, as a bit set.
//!
//! Only the ten methods of APISIX's route schema have a bit; every other method is the empty set, which no
//! restriction admits.

use std::ops::BitOr;

/// APISIX: `methods` of a route, in the order of the schema.
const NAMES: [&str; 10] =
    ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE", "PURGE"];

/// A set of request methods. Empty as a restriction means any method; empty as the method of a request means
/// one that APISIX does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MethodSet(u16);

impl MethodSet {
    /// No method.
    pub const EMPTY: MethodSet = MethodSet(0);

    /// The set of this one method; empty when the name is unknown. Names are case-sensitive.
    pub fn from_name(name: &str) -> MethodSet {
        NAMES.iter().position(|known| *known == name).map_or(MethodSet::EMPTY, |bit| MethodSet(1 << bit))
    }

    /// True when no method is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// True when, as the restriction of a route, the set lets the method of a request through.
    pub fn admits(self, method: MethodSet) -> bool {
        self.is_empty() || self.0 & method.0 != 0
    }

    /// The names in the set, in the order of the schema.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.iter().enumerate().filter(move |(bit, _)| self.0 & (1 << bit) != 0).map(|(_, name)| *name)
    }
}

impl BitOr for MethodSet {
    type Output = MethodSet;

    fn bitor(self, other: MethodSet) -> MethodSet {
        MethodSet(self.0 | other.0)
    }
}

impl<'a> FromIterator<&'a str> for MethodSet {
    fn from_iter<I: IntoIterator<Item = &'a str>>(names: I) -> MethodSet {
        names.into_iter().map(MethodSet::from_name).fold(MethodSet::EMPTY, BitOr::bitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(restriction: &[&str], method: &str, admitted: bool) {
        let set: MethodSet = restriction.iter().copied().collect();
        assert_eq!(set.admits(MethodSet::from_name(method)), admitted, "{restriction:?} and {method}");
    }

    #[test]
    fn admission() {
        check(&[], "GET", true);
        check(&[], "BREW", true);
        check(&["GET"], "GET", true);
        check(&["GET"], "get", false);
        check(&["GET", "PURGE"], "PURGE", true);
        check(&["GET", "PURGE"], "POST", false);
        check(&["GET"], "BREW", false);
    }

    #[test]
    fn every_name_has_its_own_bit() {
        let all: MethodSet = NAMES.into_iter().collect();
        assert_eq!(all.names().collect::<Vec<_>>(), NAMES);
        for name in NAMES {
            assert_eq!(MethodSet::from_name(name).names().collect::<Vec<_>>(), [name]);
        }
    }
}
