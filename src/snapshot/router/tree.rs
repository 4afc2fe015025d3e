//! A persistent tree over byte strings: one descent answers "this very key" and "every key that is a prefix".
//!
//! Nodes are shared between versions. A clone costs one reference count; a change copies the nodes between the
//! root and the key, and nothing when no other version holds them. Invariant: a node other than one with two
//! children carries a value, so the tree is never larger than what is in it.

use std::sync::Arc;

/// Where a value sits: at a key that must be the whole text, or at one that the text must begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key<'k> {
    /// The whole text.
    Exact(&'k [u8]),
    /// The beginning of the text, or all of it.
    Prefix(&'k [u8]),
}

/// Values by [`Key`].
pub(super) struct Tree<V> {
    root: Option<Arc<Node<V>>>,
}

#[derive(Clone)]
struct Node<V> {
    label: Label,
    exact: Option<V>,
    prefix: Option<V>,
    children: Children<V>,
}

/// Nodes by the first byte of their labels. The bytes are a bit set, the nodes dense in their order: telling
/// whether and where a child is touches no other memory, and taking it only that of its pointer.
struct Children<V> {
    firsts: [u64; 4],
    nodes: Vec<Arc<Node<V>>>,
}

/// The bytes between a node and its parent. Most are short and live in the node itself.
#[derive(Clone)]
enum Label {
    Short { len: u8, bytes: [u8; Label::SHORT] },
    Long(Box<[u8]>),
}

/// How a value that [`Tree::lookup`] yields was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hit {
    /// Its key is the whole text.
    Exact,
    /// Its key is a beginning of the text.
    Prefix,
}

/// The values whose keys a text satisfies: the exact one, then the prefixes from longest to shortest.
pub(super) struct Lookup<'a, V> {
    exact: Option<&'a V>,
    /// The first prefixes met on the way down, shortest first.
    near: [Option<&'a V>; Lookup::<()>::NEAR],
    near_len: usize,
    /// The longer ones, when the text has more prefixes than fit above.
    far: Vec<&'a V>,
}

impl<V: Clone> Tree<V> {
    /// A tree without values.
    pub(super) const fn new() -> Self {
        Tree { root: None }
    }

    /// True when there are no values.
    pub(super) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// The value at a key.
    pub(super) fn get(&self, key: Key<'_>) -> Option<&V> {
        let mut node = self.root.as_deref()?;
        let mut rest = key.bytes().strip_prefix(node.label.as_slice())?;
        while let Some(&first) = rest.first() {
            node = node.children.get(first)?;
            rest = rest.strip_prefix(node.label.as_slice())?;
        }
        match key {
            Key::Exact(_) => node.exact.as_ref(),
            Key::Prefix(_) => node.prefix.as_ref(),
        }
    }

    /// The place of a key, made when missing. The caller must leave a value in it.
    pub(super) fn slot(&mut self, key: Key<'_>) -> &mut Option<V> {
        let root = self.root.get_or_insert_with(|| Arc::new(Node::leaf(key.bytes())));
        Node::descend(root, key.bytes()).slot(key)
    }

    /// Takes the value at a key out, and the nodes that only led to it.
    pub(super) fn remove(&mut self, key: Key<'_>) {
        if self.get(key).is_none() {
            return;
        }
        let Some(root) = &mut self.root else { return };
        Node::remove(root, key, key.bytes());
        if root.is_vacant() {
            self.root = None;
        }
    }

    /// All values whose keys the text satisfies.
    pub(super) fn lookup(&self, text: &[u8]) -> Lookup<'_, V> {
        let mut found = Lookup::new();
        let Some(mut node) = self.root.as_deref() else { return found };
        let mut rest = text;
        while let Some(after) = rest.strip_prefix(node.label.as_slice()) {
            if let Some(value) = &node.prefix {
                found.push(value);
            }
            let Some(&first) = after.first() else {
                found.exact = node.exact.as_ref();
                break;
            };
            let Some(child) = node.children.get(first) else { break };
            (node, rest) = (child, after);
        }
        found
    }
}

impl<V> Clone for Tree<V> {
    fn clone(&self) -> Self {
        Tree { root: self.root.clone() }
    }
}

impl<'k> Key<'k> {
    fn bytes(self) -> &'k [u8] {
        match self {
            Key::Exact(bytes) | Key::Prefix(bytes) => bytes,
        }
    }
}

impl<V> Clone for Children<V> {
    fn clone(&self) -> Self {
        Children { firsts: self.firsts, nodes: self.nodes.clone() }
    }
}

impl<V> Children<V> {
    const NONE: Self = Children { firsts: [0; 4], nodes: Vec::new() };

    /// Where the child with this first byte is, or would have to be.
    fn position(&self, first: u8) -> Result<usize, usize> {
        let (word, bit) = Self::place(first);
        let lower = self.firsts[..word].iter().map(|bits| bits.count_ones()).sum::<u32>();
        let at = (lower + (self.firsts[word] & (bit - 1)).count_ones()) as usize;
        if self.firsts[word] & bit != 0 { Ok(at) } else { Err(at) }
    }

    fn get(&self, first: u8) -> Option<&Node<V>> {
        let at = self.position(first).ok()?;
        Some(&self.nodes[at])
    }

    /// Adds a child that is not there yet.
    fn insert(&mut self, at: usize, first: u8, node: Node<V>) {
        let (word, bit) = Self::place(first);
        self.firsts[word] |= bit;
        self.nodes.insert(at, Arc::new(node));
    }

    fn remove(&mut self, at: usize, first: u8) {
        let (word, bit) = Self::place(first);
        self.firsts[word] &= !bit;
        self.nodes.remove(at);
    }

    fn place(first: u8) -> (usize, u64) {
        (usize::from(first / 64), 1 << (first % 64))
    }
}

impl<V> Node<V> {
    fn leaf(label: &[u8]) -> Self {
        Node { label: Label::new(label), exact: None, prefix: None, children: Children::NONE }
    }

    fn slot(&mut self, key: Key<'_>) -> &mut Option<V> {
        match key {
            Key::Exact(_) => &mut self.exact,
            Key::Prefix(_) => &mut self.prefix,
        }
    }

    fn is_vacant(&self) -> bool {
        self.exact.is_none() && self.prefix.is_none() && self.children.nodes.is_empty()
    }

    /// Keeps the first `at` bytes of the label here and moves the rest, with all values, one level down.
    fn split(&mut self, at: usize) {
        let label = self.label.as_slice();
        let (kept, moved) = (Label::new(&label[..at]), Label::new(&label[at..]));
        let first = label[at];
        let lower = Node {
            label: moved,
            exact: self.exact.take(),
            prefix: self.prefix.take(),
            children: std::mem::replace(&mut self.children, Children::NONE),
        };
        self.label = kept;
        self.children.insert(0, first, lower);
    }
}

impl<V: Clone> Node<V> {
    /// The node of a key below `slot`, with what was missing on the way.
    fn descend<'n>(mut slot: &'n mut Arc<Node<V>>, mut key: &[u8]) -> &'n mut Node<V> {
        loop {
            let node = Arc::make_mut(slot);
            let label = node.label.as_slice();
            let common = label.iter().zip(key).take_while(|(a, b)| a == b).count();
            if common < label.len() {
                node.split(common);
            }
            key = &key[common..];
            let Some(&first) = key.first() else { return node };
            let at = node.children.position(first).unwrap_or_else(|at| {
                node.children.insert(at, first, Node::leaf(key));
                at
            });
            slot = &mut node.children.nodes[at];
        }
    }

    /// Empties the place of a key that is known to be there.
    fn remove(slot: &mut Arc<Node<V>>, key: Key<'_>, text: &[u8]) {
        let node = Arc::make_mut(slot);
        let rest = &text[node.label.as_slice().len()..];
        if let Some(&first) = rest.first() {
            let Ok(at) = node.children.position(first) else { return };
            Node::remove(&mut node.children.nodes[at], key, rest);
            if node.children.nodes[at].is_vacant() {
                node.children.remove(at, first);
            }
        } else {
            *node.slot(key) = None;
        }
        node.absorb_only_child();
    }

    /// Joins a node that merely leads to one other with that other.
    fn absorb_only_child(&mut self) {
        if self.exact.is_some() || self.prefix.is_some() || self.children.nodes.len() != 1 {
            return;
        }
        let Some(child) = self.children.nodes.pop() else { return };
        let child = Arc::unwrap_or_clone(child);
        let label = Label::new(&[self.label.as_slice(), child.label.as_slice()].concat());
        *self = Node { label, ..child };
    }
}

impl Label {
    /// What fits beside length and tag in the 24 bytes of the enum.
    const SHORT: usize = 22;

    fn new(text: &[u8]) -> Self {
        if text.len() > Self::SHORT {
            return Label::Long(text.into());
        }
        let mut bytes = [0; Self::SHORT];
        bytes[..text.len()].copy_from_slice(text);
        Label::Short { len: text.len() as u8, bytes }
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Label::Short { len, bytes } => &bytes[..usize::from(*len)],
            Label::Long(bytes) => bytes,
        }
    }
}

impl<'a, V> Lookup<'a, V> {
    /// Nested prefixes that need no allocation.
    const NEAR: usize = 16;

    fn new() -> Self {
        Lookup { exact: None, near: [None; Lookup::<()>::NEAR], near_len: 0, far: Vec::new() }
    }

    fn push(&mut self, value: &'a V) {
        if let Some(free) = self.near.get_mut(self.near_len) {
            *free = Some(value);
            self.near_len += 1;
        } else {
            self.far.push(value);
        }
    }
}

impl<'a, V> Iterator for Lookup<'a, V> {
    type Item = (Hit, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(value) = self.exact.take() {
            return Some((Hit::Exact, value));
        }
        if let Some(value) = self.far.pop() {
            return Some((Hit::Prefix, value));
        }
        self.near_len = self.near_len.checked_sub(1)?;
        self.near[self.near_len].map(|value| (Hit::Prefix, value))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Model = BTreeMap<(bool, Vec<u8>), u32>;

    fn key(exact: bool, text: &[u8]) -> Key<'_> {
        if exact { Key::Exact(text) } else { Key::Prefix(text) }
    }

    /// What `lookup` must yield, by trying every key.
    fn expected(model: &Model, text: &[u8]) -> Vec<u32> {
        let mut prefixes: Vec<_> =
            model.iter().filter(|((exact, key), _)| !exact && text.starts_with(key)).collect();
        prefixes.sort_by_key(|((_, key), _)| std::cmp::Reverse(key.len()));
        let exact = model.get(&(true, text.to_vec()));
        exact.into_iter().chain(prefixes.into_iter().map(|(_, value)| value)).copied().collect()
    }

    fn found(tree: &Tree<u32>, text: &[u8]) -> Vec<u32> {
        tree.lookup(text).map(|(_, value)| *value).collect()
    }

    /// No node that merely leads to one other, none without purpose, children in order.
    fn assert_tight(node: &Node<u32>, root: bool) {
        let values = node.exact.is_some() || node.prefix.is_some();
        let children = &node.children;
        assert!(values || children.nodes.len() > 1, "a node without purpose");
        assert!(root || !node.label.as_slice().is_empty(), "an empty label");
        let firsts: u32 = children.firsts.iter().map(|bits| bits.count_ones()).sum();
        assert_eq!(firsts as usize, children.nodes.len());
        for (at, child) in children.nodes.iter().enumerate() {
            assert_eq!(children.position(child.label.as_slice()[0]), Ok(at));
            assert_tight(child, false);
        }
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            9 => proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(b'/'), Just(255)], 0..7),
            1 => proptest::collection::vec(Just(b'a'), 20..40),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_trying_every_key(
            steps in proptest::collection::vec((any::<bool>(), any::<bool>(), text(), any::<u32>()), 0..60),
            texts in proptest::collection::vec(text(), 1..20),
        ) {
            let (mut tree, mut model) = (Tree::new(), Model::new());
            let mut versions = Vec::new();
            for (insert, exact, text, value) in steps {
                if insert {
                    *tree.slot(key(exact, &text)) = Some(value);
                    model.insert((exact, text), value);
                } else {
                    // removing what is there most of the time
                    let near = model.keys().find(|(_, k)| *k >= text).cloned().unwrap_or((exact, text));
                    tree.remove(key(near.0, &near.1));
                    model.remove(&near);
                }
                if let Some(root) = &tree.root {
                    assert_tight(root, true);
                }
                prop_assert_eq!(tree.is_empty(), model.is_empty());
                versions.push((tree.clone(), model.clone()));
            }
            for (tree, model) in versions {
                for text in &texts {
                    prop_assert_eq!(found(&tree, text), expected(&model, text));
                    prop_assert_eq!(tree.get(Key::Exact(text)), model.get(&(true, text.clone())));
                    prop_assert_eq!(tree.get(Key::Prefix(text)), model.get(&(false, text.clone())));
                }
            }
        }
    }

    #[test]
    fn more_prefixes_than_fit_inline_come_longest_first() {
        let (mut tree, text) = (Tree::new(), vec![b'a'; 50]);
        for len in 0..=50 {
            *tree.slot(Key::Prefix(&text[..len])) = Some(len);
        }
        let order: Vec<usize> = tree.lookup(&text).map(|(_, value)| *value).collect();
        assert_eq!(order, (0..=50).rev().collect::<Vec<_>>());
    }
}
