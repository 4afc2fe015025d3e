//! The compiled form of a schema: one node per subschema, in the order in which its rules are applied.
//!
//! Invariant: plain data; a [`NodeId`] always indexes the list it was compiled into.

use serde_json::Value;

use super::pattern::Pattern;

/// Index of a node in its schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeId(pub(super) usize);

#[derive(Debug)]
pub(super) enum Node {
    /// `true`, or an empty schema.
    Always,
    /// `false`.
    Never,
    Rules(Box<Rules>),
}

/// Rules of one subschema; fields stand in the order in which they are applied.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// A `$secret://` or `$env://` reference passes unjudged here (no `type`, or `type: string`).
    pub(super) admits_secret: bool,
    pub(super) types: Option<TypeRule>,
    pub(super) object: Option<ObjectRule>,
    pub(super) array: Option<ArrayRule>,
    pub(super) string: Option<StringRule>,
    pub(super) numbers: Vec<NumberRule>,
    pub(super) one_of_values: Option<Vec<Value>>,
    pub(super) all_of: Vec<NodeId>,
    pub(super) any_of: Option<AnyOf>,
    pub(super) one_of: Option<Vec<NodeId>>,
    pub(super) condition: Option<Condition>,
    pub(super) not: Option<NodeId>,
    pub(super) property_names: Option<bool>,
    pub(super) format: Option<Format>,
    pub(super) constant: Option<Value>,
    pub(super) contains: Option<Contains>,
}

#[derive(Debug)]
pub(super) struct TypeRule {
    pub(super) types: Vec<JsonType>,
    /// "expected string" or "expected one of string, number".
    pub(super) expected: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JsonType {
    Object,
    Array,
    Table,
    Integer,
    Number,
    String,
    Boolean,
    Null,
    /// Lua's functions: no JSON value is one.
    Function,
}

#[derive(Debug, Default)]
pub(super) struct ObjectRule {
    pub(super) properties: Vec<Property>,
    /// Required names that are no declared property.
    pub(super) required: Vec<String>,
    /// Dependencies of names that are no declared property.
    pub(super) dependencies: Vec<(String, Dependency)>,
    pub(super) patterns: Vec<(Pattern, NodeId)>,
    pub(super) additional: Additional,
    pub(super) min: Option<Count>,
    pub(super) max: Option<Count>,
    /// `required: []`, which the library reads as "must be empty".
    pub(super) only_empty: bool,
}

#[derive(Debug)]
pub(super) struct Property {
    pub(super) name: String,
    pub(super) node: NodeId,
    pub(super) required: bool,
    pub(super) default: Option<Value>,
    pub(super) dependency: Option<Dependency>,
}

#[derive(Debug)]
pub(super) enum Dependency {
    Names(Vec<String>),
    Schema(NodeId),
}

#[derive(Debug, Default)]
pub(super) enum Additional {
    #[default]
    Allowed,
    Forbidden,
    Schema(NodeId),
}

/// A limit on a number of items or properties, with its number as the sentence shows it.
#[derive(Debug)]
pub(super) struct Count {
    pub(super) limit: i64,
    pub(super) text: String,
}

#[derive(Debug)]
pub(super) struct ArrayRule {
    pub(super) items: Items,
    pub(super) min: Option<Count>,
    pub(super) max: Option<Count>,
    pub(super) unique: bool,
}

#[derive(Debug)]
pub(super) enum Items {
    Any,
    /// `items: true`: the library stops judging right there, whatever the value is.
    True,
    /// `items: false`: only an empty table passes, and nothing after it is judged.
    False,
    Each(NodeId),
    Tuple {
        items: Vec<NodeId>,
        additional: Additional,
    },
}

#[derive(Debug, Default)]
pub(super) struct StringRule {
    pub(super) min: Option<i64>,
    pub(super) max: Option<i64>,
    pub(super) pattern: Option<Pattern>,
}

#[derive(Debug)]
pub(super) struct NumberRule {
    pub(super) kind: NumberKind,
    pub(super) reference: f64,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum NumberKind {
    Minimum,
    ExclusiveMinimum,
    Maximum,
    ExclusiveMaximum,
    MultipleOf,
}

#[derive(Debug)]
pub(super) struct AnyOf {
    pub(super) branches: Vec<NodeId>,
    /// The whole sentence: it lists the `required` of the branches.
    pub(super) message: String,
}

#[derive(Debug)]
pub(super) struct Condition {
    pub(super) test: NodeId,
    pub(super) then: Option<NodeId>,
    pub(super) otherwise: Option<NodeId>,
}

#[derive(Debug)]
pub(super) enum Format {
    Ipv4,
    Ipv6,
    Pattern { name: String, pattern: Pattern },
}

#[derive(Debug)]
pub(super) enum Contains {
    True,
    False,
    Schema(NodeId),
}
