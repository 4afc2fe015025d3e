//! A persistent tree over byte strings: one descent answers "this very key" and "every key that is a prefix".
//!
//! Branches are shared between versions. A clone copies one node, which is a reference count; a change copies the branches between the
//! root and the key, and nothing when no other version holds them. Leaves, of which there are most, lie in the array of
//! their parent: among 100,000 keys each object on the way is a wait for memory.
//! Invariant: a branch has two children, or values that no leaf could hold, so the tree is never larger than what is in
//! it.

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
    root: Option<Node<V>>,
}

/// What a byte leads to.
#[derive(Clone)]
struct Node<V> {
    /// What is between it and its parent, the byte that leads here included.
    label: Label,
    kind: Kind<V>,
}

#[derive(Clone)]
enum Kind<V> {
    /// The value of one key, and nothing below it.
    Leaf(Hit, V),
    /// Everything else.
    Branch(Arc<Branch<V>>),
}

#[derive(Clone)]
struct Branch<V> {
    children: Children<V>,
    prefix: Option<V>,
    exact: Option<V>,
}

/// Nodes by the first byte of their labels. The bytes are a bit set, the nodes dense in their order: telling
/// whether and where a child is touches no other memory, and taking it only that of itself.
#[derive(Clone)]
struct Children<V> {
    firsts: [u64; 4],
    nodes: Vec<Node<V>>,
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
        let mut node = self.root.as_ref()?;
        let mut rest = key.bytes();
        loop {
            rest = rest.strip_prefix(node.label.as_slice())?;
            let branch = match &node.kind {
                Kind::Leaf(hit, value) => return (rest.is_empty() && *hit == key.hit()).then_some(value),
                Kind::Branch(branch) => branch,
            };
            let Some(&first) = rest.first() else { return branch.value(key.hit()) };
            node = branch.children.get(first)?;
        }
    }

    /// Changes the value at a key, or puts one there.
    pub(super) fn upsert(&mut self, key: Key<'_>, change: impl FnOnce(&mut V), make: impl FnOnce() -> V) {
        match self.get_mut(key) {
            Some(value) => change(value),
            None => self.insert(key, make()),
        }
    }

    /// Takes the value at a key out, and the nodes that only led to it.
    pub(super) fn remove(&mut self, key: Key<'_>) {
        if self.get(key).is_none() {
            return;
        }
        let root = self.root.take();
        self.root = root.and_then(|root| root.edit(key.bytes(), |node, _| node.without(key.hit())));
    }

    /// All values whose keys the text satisfies.
    pub(super) fn lookup(&self, text: &[u8]) -> Lookup<'_, V> {
        let mut found = Lookup::new();
        let Some(mut node) = self.root.as_ref() else { return found };
        let mut rest = text;
        while let Some(after) = rest.strip_prefix(node.label.as_slice()) {
            let branch = match &node.kind {
                Kind::Leaf(Hit::Prefix, value) => {
                    found.push(value);
                    break;
                }
                Kind::Leaf(Hit::Exact, value) => {
                    found.exact = after.is_empty().then_some(value);
                    break;
                }
                Kind::Branch(branch) => branch,
            };
            if let Some(value) = &branch.prefix {
                found.push(value);
            }
            let Some(&first) = after.first() else {
                found.exact = branch.exact.as_ref();
                break;
            };
            let Some(child) = branch.children.get(first) else { break };
            (node, rest) = (child, after);
        }
        found
    }

    /// The value at a key, to be changed.
    pub(super) fn get_mut(&mut self, key: Key<'_>) -> Option<&mut V> {
        // What is not there must not be the reason for a copy of what leads to it.
        self.get(key)?;
        let mut node = self.root.as_mut()?;
        let mut rest = key.bytes();
        loop {
            rest = rest.strip_prefix(node.label.as_slice())?;
            let branch = match &mut node.kind {
                Kind::Leaf(_, value) => return Some(value),
                Kind::Branch(branch) => Arc::make_mut(branch),
            };
            let Some(&first) = rest.first() else { return branch.place(key.hit()).as_mut() };
            let at = branch.children.position(first).ok()?;
            node = &mut branch.children.nodes[at];
        }
    }

    /// Puts a value where none is yet.
    fn insert(&mut self, key: Key<'_>, value: V) {
        let (hit, text) = (key.hit(), key.bytes());
        self.root = match self.root.take() {
            Some(root) => root.edit(text, |node, rest| Some(node.with(hit, rest, value))),
            None => Some(Node::leaf(text, hit, value)),
        };
    }
}

impl<V: Clone> Clone for Tree<V> {
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

    fn hit(self) -> Hit {
        match self {
            Key::Exact(_) => Hit::Exact,
            Key::Prefix(_) => Hit::Prefix,
        }
    }
}

impl<V> Node<V> {
    fn leaf(label: &[u8], hit: Hit, value: V) -> Self {
        Node { label: Label::new(label), kind: Kind::Leaf(hit, value) }
    }
}

impl<V: Clone> Node<V> {
    /// Changes the node that lies nearest to a text, which is given what is left of the text, and what leads there.
    ///
    /// A loop with its own stack: a key of some thousand bytes can have as many nodes above it.
    fn edit(self, text: &[u8], change: impl FnOnce(Self, &[u8]) -> Option<Self>) -> Option<Self> {
        let mut above = Vec::new();
        let (mut node, mut rest) = (self, text);
        while let Some(first) = node.next(rest) {
            rest = &rest[node.label.as_slice().len()..];
            let Node { label, kind } = node;
            let mut branch = kind.into_branch();
            node = Arc::make_mut(&mut branch).children.take(first);
            above.push((label, branch, first));
        }
        let mut changed = change(node, rest);
        while let Some((label, mut branch, first)) = above.pop() {
            if let Some(child) = changed {
                Arc::make_mut(&mut branch).children.insert(first, child);
            }
            changed = Node::tight(label, branch);
        }
        changed
    }

    /// The byte after the label, if there is a child for it.
    fn next(&self, text: &[u8]) -> Option<u8> {
        let Kind::Branch(branch) = &self.kind else { return None };
        let first = *text.strip_prefix(self.label.as_slice())?.first()?;
        branch.children.get(first).map(|_| first)
    }

    /// Itself with a value for a key that has none, and no node below that is nearer to it.
    fn with(self, hit: Hit, text: &[u8], value: V) -> Self {
        let label = self.label.as_slice();
        let common = label.iter().zip(text).take_while(|(a, b)| a == b).count();
        let Node { label, kind } = if common < label.len() { self.split(common) } else { self };
        let mut branch = kind.into_branch();
        let inner = Arc::make_mut(&mut branch);
        let rest = &text[common..];
        match rest.first() {
            None => *inner.place(hit) = Some(value),
            Some(&first) => inner.children.insert(first, Node::leaf(rest, hit, value)),
        }
        Node { label, kind: Kind::Branch(branch) }
    }

    /// A branch of the first `at` bytes of the label, with all else one level down.
    fn split(self, at: usize) -> Self {
        let (kept, moved) = self.label.as_slice().split_at(at);
        let (kept, first, moved) = (Label::new(kept), moved[0], Label::new(moved));
        let mut upper = Branch::new();
        upper.children.insert(first, Node { label: moved, kind: self.kind });
        Node { label: kept, kind: Kind::Branch(Arc::new(upper)) }
    }

    /// Itself without a value that is known to be there; `None` if nothing is left.
    fn without(self, hit: Hit) -> Option<Self> {
        let Kind::Branch(mut branch) = self.kind else { return None };
        *Arc::make_mut(&mut branch).place(hit) = None;
        Node::tight(self.label, branch)
    }

    /// A branch, or the smaller thing that does for what is left in it; `None` if that is nothing.
    fn tight(label: Label, branch: Arc<Branch<V>>) -> Option<Self> {
        if branch.is_tight() {
            return Some(Node { label, kind: Kind::Branch(branch) });
        }
        Arc::unwrap_or_clone(branch).tightened(label)
    }
}

impl<V> Kind<V> {
    fn into_branch(self) -> Arc<Branch<V>> {
        match self {
            Kind::Branch(branch) => branch,
            Kind::Leaf(hit, value) => {
                let mut branch = Branch::new();
                *branch.place(hit) = Some(value);
                Arc::new(branch)
            }
        }
    }
}

impl<V> Branch<V> {
    fn new() -> Self {
        Branch { children: Children { firsts: [0; 4], nodes: Vec::new() }, prefix: None, exact: None }
    }

    fn value(&self, hit: Hit) -> Option<&V> {
        match hit {
            Hit::Exact => self.exact.as_ref(),
            Hit::Prefix => self.prefix.as_ref(),
        }
    }

    fn place(&mut self, hit: Hit) -> &mut Option<V> {
        match hit {
            Hit::Exact => &mut self.exact,
            Hit::Prefix => &mut self.prefix,
        }
    }

    /// Whether it holds more than one value or child, so that nothing smaller would do.
    fn is_tight(&self) -> bool {
        let values = usize::from(self.exact.is_some()) + usize::from(self.prefix.is_some());
        values + self.children.nodes.len() > 1
    }

    /// The leaf or the only child, which takes its place; `None` if it is empty.
    fn tightened(mut self, label: Label) -> Option<Node<V>> {
        if let Some(child) = self.children.nodes.pop() {
            let label = Label::new(&[label.as_slice(), child.label.as_slice()].concat());
            return Some(Node { label, kind: child.kind });
        }
        let exact = self.exact.map(|value| (Hit::Exact, value));
        let (hit, value) = exact.or(self.prefix.map(|value| (Hit::Prefix, value)))?;
        Some(Node { label, kind: Kind::Leaf(hit, value) })
    }
}

impl<V> Children<V> {
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
    fn insert(&mut self, first: u8, node: Node<V>) {
        let (Ok(at) | Err(at)) = self.position(first);
        let (word, bit) = Self::place(first);
        self.firsts[word] |= bit;
        self.nodes.insert(at, node);
    }

    /// Takes out a child that is there.
    fn take(&mut self, first: u8) -> Node<V> {
        let (Ok(at) | Err(at)) = self.position(first);
        let (word, bit) = Self::place(first);
        self.firsts[word] &= !bit;
        self.nodes.remove(at)
    }

    fn place(first: u8) -> (usize, u64) {
        (usize::from(first / 64), 1 << (first % 64))
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

    /// No branch that merely leads to one other, none where a leaf would do, children in order.
    fn assert_tight(node: &Node<u32>, root: bool) {
        assert!(root || !node.label.as_slice().is_empty(), "an empty label");
        let Kind::Branch(branch) = &node.kind else { return };
        assert!(branch.is_tight(), "a branch without purpose");
        let children = &branch.children;
        let firsts: u32 = children.firsts.iter().map(|bits| bits.count_ones()).sum();
        assert_eq!(firsts as usize, children.nodes.len());
        for (at, child) in children.nodes.iter().enumerate() {
            assert_eq!(children.position(child.label.as_slice()[0]), Ok(at));
            assert_tight(child, false);
        }
    }

    /// What the schema allows at most: every beginning of the longest path is a path, too.
    #[test]
    fn the_deepest_tree_fits_the_stack_of_a_thread() {
        let text = vec![b'a'; 4096];
        let mut tree = Tree::new();
        for len in 0..=text.len() {
            tree.upsert(Key::Prefix(&text[..len]), |_| (), || len);
        }
        let earlier = tree.clone();
        for len in (0..text.len()).rev() {
            tree.remove(Key::Prefix(&text[..len]));
        }
        assert_eq!(tree.lookup(&text).map(|(_, value)| *value).collect::<Vec<_>>(), [4096]);
        assert_eq!(earlier.lookup(&text).count(), 4097);
    }

    #[test]
    fn a_leaf_is_smaller_than_a_cache_line() {
        assert_eq!(size_of::<Node<[usize; 2]>>(), 48);
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
                    tree.upsert(key(exact, &text), |old| *old = value, || value);
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
            tree.upsert(Key::Prefix(&text[..len]), |_| (), || len);
        }
        let order: Vec<usize> = tree.lookup(&text).map(|(_, value)| *value).collect();
        assert_eq!(order, (0..=50).rev().collect::<Vec<_>>());
    }
}
