//! The rules for one path, in the order in which they are asked. Nearly always there is one.

use std::sync::Arc;

use super::pattern::PathPattern;
use super::rule::Rule;

/// At least one rule, each with the number of the path that led here, ordered by rank.
pub(super) enum Candidates<T> {
    /// Takes two words in the node of the tree; the variant's own fields leave room for its tag.
    One(Arc<Rule<T>>, u32),
    Many(Arc<Vec<(Arc<Rule<T>>, u32)>>),
}

/// A rule and the one of its paths that is meant.
pub(super) struct Candidate<'a, T> {
    pub(super) rule: &'a Arc<Rule<T>>,
    pub(super) path: &'a PathPattern,
}

impl<T> Candidates<T> {
    /// The rule alone.
    pub(super) fn new(rule: Arc<Rule<T>>, path: usize) -> Self {
        Candidates::One(rule, path as u32)
    }

    /// All of them, in the order in which they are asked.
    pub(super) fn iter(&self) -> impl Iterator<Item = Candidate<'_, T>> {
        let (first, others) = match self {
            Candidates::One(rule, path) => (Some((rule, *path)), Default::default()),
            Candidates::Many(many) => (None, many.as_slice()),
        };
        let all = first.into_iter().chain(others.iter().map(|(rule, path)| (rule, *path)));
        all.map(|(rule, path)| Candidate { rule, path: &rule.paths()[path as usize] })
    }

    /// Puts a rule behind all that do not rank lower.
    pub(super) fn insert(&mut self, rule: Arc<Rule<T>>, path: usize) {
        if let Candidates::One(only, its_path) = self {
            *self = Candidates::Many(Arc::new(vec![(only.clone(), *its_path)]));
        }
        let Candidates::Many(many) = self else { return };
        let rank = rule.rank(path);
        let at = many.partition_point(|(other, path)| other.rank(*path as usize) <= rank);
        Arc::make_mut(many).insert(at, (rule, path as u32));
    }

    /// Takes a rule out. Others must be left.
    pub(super) fn remove(&mut self, id: &str) {
        let Candidates::Many(many) = self else { return };
        Arc::make_mut(many).retain(|(rule, _)| *rule.id != *id);
        if let [(only, path)] = many.as_slice() {
            *self = Candidates::One(only.clone(), *path);
        }
    }
}

impl<T> Clone for Candidates<T> {
    fn clone(&self) -> Self {
        match self {
            Candidates::One(rule, path) => Candidates::One(rule.clone(), *path),
            Candidates::Many(many) => Candidates::Many(many.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rule_takes_two_words() {
        assert_eq!(size_of::<Option<Candidates<String>>>(), 16);
    }

    #[test]
    fn one_is_left_as_one() {
        let rule = |id: &str| Arc::new(Rule::new(id, ["/"], ()));
        let mut candidates = Candidates::new(rule("a"), 0);
        candidates.insert(rule("b"), 0);
        candidates.insert(rule("c"), 0);
        candidates.remove("a");
        assert_eq!(candidates.iter().map(|one| one.rule.id.to_string()).collect::<Vec<_>>(), ["b", "c"]);
        candidates.remove("c");
        assert!(matches!(candidates, Candidates::One(only, 0) if *only.id == *"b"));
    }
}
