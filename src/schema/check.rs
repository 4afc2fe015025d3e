//! Walks a value along a compiled schema and words the first failure.
//!
//! The order of rules is the library's: type, object, array, string, number, enum, allOf, anyOf, oneOf, if, not,
//! propertyNames, format, const, contains. Where Lua iterates a table in no particular order (the declared
//! properties), this walks in the order the schema was written.
//! Invariant: the value changes only by defaults; recursion is bounded.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;

use serde_json::{Map, Value};

use super::node::{
    Additional, ArrayRule, Contains, Count, Dependency, Format, Items, JsonType, Node, NodeId, NumberKind,
    NumberRule, ObjectRule, Property, Rules, StringRule, TypeRule,
};
use super::{is_secret_reference, lua};

/// Deepest nesting of schemas over one value. Documents of 128 levels, the JSON reader's limit, fit twice.
const MAX_DEPTH: usize = 300;

type Verdict = Result<(), String>;
/// `Break`: judged valid right here, without the rules that follow.
type Step = Result<ControlFlow<()>, String>;

const GO_ON: Step = Ok(ControlFlow::Continue(()));
const DONE: Step = Ok(ControlFlow::Break(()));

pub(super) struct Walk<'s> {
    nodes: &'s [Node],
    depth: usize,
    /// The limit was met: every judgement fails from there on, so that branches do not multiply.
    exhausted: bool,
}

/// What a value is to Lua, as far as rules on objects and lists ask.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Scalar,
    Object,
    /// `{}` and `[]` are the same.
    Empty,
    List,
}

impl Shape {
    fn of(value: &Value) -> Shape {
        match value {
            Value::Array(items) if items.is_empty() => Shape::Empty,
            Value::Object(members) if members.is_empty() => Shape::Empty,
            Value::Array(_) => Shape::List,
            Value::Object(_) => Shape::Object,
            _ => Shape::Scalar,
        }
    }

    fn is_object(self) -> bool {
        matches!(self, Shape::Object | Shape::Empty)
    }

    fn is_list(self) -> bool {
        matches!(self, Shape::List | Shape::Empty)
    }
}

impl<'s> Walk<'s> {
    pub(super) fn new(nodes: &'s [Node]) -> Walk<'s> {
        Walk { nodes, depth: 0, exhausted: false }
    }

    /// Judges a whole document.
    pub(super) fn run(mut self, root: NodeId, value: &mut Value) -> Verdict {
        let verdict = self.check(root, value);
        if self.exhausted { Err("schemas are nested too deeply".to_owned()) } else { verdict }
    }

    fn check(&mut self, id: NodeId, value: &mut Value) -> Verdict {
        if self.exhausted || self.depth == MAX_DEPTH {
            self.exhausted = true;
            return Err(String::new());
        }
        self.depth += 1;
        let nodes = self.nodes;
        let verdict = match &nodes[id.0] {
            Node::Always => Ok(()),
            Node::Never => Err("expect false always".to_owned()),
            Node::Rules(rules) => self.rules(rules, value),
        };
        self.depth -= 1;
        verdict
    }

    fn passes(&mut self, id: NodeId, value: &mut Value) -> bool {
        self.check(id, value).is_ok()
    }

    fn rules(&mut self, rules: &Rules, value: &mut Value) -> Verdict {
        if rules.admits_secret && value.as_str().is_some_and(is_secret_reference) {
            return Ok(());
        }
        let shape = Shape::of(value);
        if let Some(types) = &rules.types {
            check_type(types, value, shape)?;
        }
        if let Some(object) = &rules.object {
            if shape.is_object() {
                self.object(object, value)?;
            }
            if object.only_empty && shape != Shape::Empty {
                return Err("the input data should be an empty table".to_owned());
            }
        }
        if let Some(array) = &rules.array
            && self.array(array, value, shape)?.is_break()
        {
            return Ok(());
        }
        if let (Some(string), Value::String(text)) = (&rules.string, &*value) {
            check_string(string, text)?;
        }
        if let Some(number) = value.as_f64() {
            rules.numbers.iter().try_for_each(|rule| check_number(rule, number))?;
        }
        if let Some(values) = &rules.one_of_values
            && !values.iter().any(|allowed| equal(value, allowed))
        {
            return Err("matches none of the enum values".to_owned());
        }
        self.compound(rules, value)?;
        self.last_rules(rules, value, shape)
    }

    fn compound(&mut self, rules: &Rules, value: &mut Value) -> Verdict {
        for (at, branch) in rules.all_of.iter().enumerate() {
            self.check(*branch, value).map_err(|reason| format!("allOf {} failed: {reason}", at + 1))?;
        }
        if let Some(any_of) = &rules.any_of
            && !any_of.branches.iter().any(|branch| self.passes(*branch, value))
        {
            return Err(any_of.message.clone());
        }
        if let Some(branches) = &rules.one_of {
            self.one_of(branches, value)?;
        }
        if let Some(condition) = &rules.condition {
            let (branch, name) = match self.passes(condition.test, value) {
                true => (condition.then, "then"),
                false => (condition.otherwise, "else"),
            };
            if branch.is_some_and(|branch| !self.passes(branch, value)) {
                return Err(format!("{name} clause did not match"));
            }
        }
        if rules.not.is_some_and(|not| self.passes(not, value)) {
            return Err("value wasn't supposed to match schema".to_owned());
        }
        Ok(())
    }

    fn one_of(&mut self, branches: &[NodeId], value: &mut Value) -> Verdict {
        let mut matched = None;
        for (at, branch) in branches.iter().enumerate() {
            if !self.passes(*branch, value) {
                continue;
            }
            if let Some(first) = matched {
                let both = format!("matches both schemas {first} and {}", at + 1);
                return Err(format!("value should match only one schema, but {both}"));
            }
            matched = Some(at + 1);
        }
        match matched {
            Some(_) => Ok(()),
            None => Err("value should match only one schema, but matches none".to_owned()),
        }
    }

    fn last_rules(&mut self, rules: &Rules, value: &mut Value, shape: Shape) -> Verdict {
        match rules.property_names {
            Some(true) => return Ok(()),
            Some(false) if shape == Shape::Empty => return Ok(()),
            Some(false) => return Err("expect false always".to_owned()),
            None => {}
        }
        if let (Some(format), Value::String(text)) = (&rules.format, &*value) {
            check_format(format, text)?;
        }
        if rules.constant.as_ref().is_some_and(|constant| !equal(value, constant)) {
            return Err("failed to check const value".to_owned());
        }
        match &rules.contains {
            None => Ok(()),
            Some(Contains::True) if shape == Shape::List => Ok(()),
            Some(Contains::True) => Err("check contains: expect array table".to_owned()),
            Some(Contains::False) if shape == Shape::Scalar => Ok(()),
            Some(Contains::False) => Err("check contains: expect table".to_owned()),
            Some(Contains::Schema(_)) if shape == Shape::Empty => {
                Err("check contains: empty array is invalid".to_owned())
            }
            Some(Contains::Schema(node)) => {
                let Value::Array(items) = value else {
                    return Ok(());
                };
                match items.iter_mut().any(|item| self.passes(*node, item)) {
                    true => Ok(()),
                    false => Err("failed to check contains".to_owned()),
                }
            }
        }
    }

    fn object(&mut self, rule: &ObjectRule, value: &mut Value) -> Verdict {
        for property in &rule.properties {
            self.property(property, value)?;
        }
        for name in &rule.required {
            if value.get(name).is_none() {
                return Err(format!("property \"{name}\" is required"));
            }
        }
        for (name, dependency) in &rule.dependencies {
            if value.get(name).is_some() {
                self.dependency(name, dependency, value)?;
            }
        }
        if let Value::Object(members) = value {
            self.undeclared(rule, members)?;
        }
        let count = value.as_object().map_or(0, Map::len);
        check_count(count, rule.min.as_ref(), rule.max.as_ref(), "object", "properties")
    }

    fn property(&mut self, property: &Property, value: &mut Value) -> Verdict {
        let name = &property.name;
        if let Some(member) = value.get_mut(name) {
            let failed = |reason| format!("property \"{name}\" validation failed: {reason}");
            self.check(property.node, member).map_err(failed)?;
            return match &property.dependency {
                Some(dependency) => self.dependency(name, dependency, value),
                None => Ok(()),
            };
        }
        if property.required {
            return Err(format!("property \"{name}\" is required"));
        }
        if let Some(default) = &property.default {
            if !value.is_object() {
                *value = Value::Object(Map::new());
            }
            if let Value::Object(members) = value {
                members.insert(name.clone(), default.clone());
            }
        }
        Ok(())
    }

    fn dependency(&mut self, name: &str, dependency: &Dependency, value: &mut Value) -> Verdict {
        match dependency {
            Dependency::Names(names) => match names.iter().find(|needed| value.get(needed).is_none()) {
                Some(needed) => Err(format!("property \"{needed}\" is required when \"{name}\" is set")),
                None => Ok(()),
            },
            Dependency::Schema(node) => self
                .check(*node, value)
                .map_err(|reason| format!("failed to validate dependent schema for \"{name}\": {reason}")),
        }
    }

    /// `patternProperties` and `additionalProperties`, in one walk over the members.
    fn undeclared(&mut self, rule: &ObjectRule, members: &mut Map<String, Value>) -> Verdict {
        if rule.patterns.is_empty() && matches!(rule.additional, Additional::Allowed) {
            return Ok(());
        }
        for (name, member) in members {
            let mut matched = false;
            for (pattern, node) in &rule.patterns {
                if !pattern.is_match(name) {
                    continue;
                }
                matched = true;
                self.check(*node, member).map_err(|reason| {
                    format!("failed to validate {name} (matching \"{}\"): {reason}", pattern.source())
                })?;
            }
            if matched || rule.properties.iter().any(|property| property.name == *name) {
                continue;
            }
            match rule.additional {
                Additional::Allowed => {}
                Additional::Forbidden => {
                    return Err(format!("additional properties forbidden, found {name}"));
                }
                Additional::Schema(node) => self
                    .check(node, member)
                    .map_err(|reason| format!("failed to validate additional property {name}: {reason}"))?,
            }
        }
        Ok(())
    }

    fn array(&mut self, rule: &ArrayRule, value: &mut Value, shape: Shape) -> Step {
        match rule.items {
            Items::True => return DONE,
            Items::False if shape == Shape::Empty => return DONE,
            Items::False => return Err("expect false always".to_owned()),
            _ => {}
        }
        if !shape.is_list() {
            return GO_ON;
        }
        let count = value.as_array().map_or(0, Vec::len);
        check_count(count, rule.min.as_ref(), rule.max.as_ref(), "array", "items")?;
        let Value::Array(items) = value else {
            return GO_ON;
        };
        match &rule.items {
            Items::Each(node) => self.each(*node, items, 0, "item")?,
            Items::Tuple { items: nodes, additional } => self.tuple(nodes, additional, items)?,
            Items::Any | Items::True | Items::False => {}
        }
        if rule.unique {
            check_unique(items)?;
        }
        GO_ON
    }

    fn each(&mut self, node: NodeId, items: &mut [Value], skip: usize, what: &str) -> Verdict {
        for (at, item) in items.iter_mut().enumerate().skip(skip) {
            self.check(node, item)
                .map_err(|reason| format!("failed to validate {what} {}: {reason}", at + 1))?;
        }
        Ok(())
    }

    fn tuple(&mut self, nodes: &[NodeId], additional: &Additional, items: &mut [Value]) -> Verdict {
        for (at, (node, item)) in nodes.iter().zip(items.iter_mut()).enumerate() {
            self.check(*node, item)
                .map_err(|reason| format!("failed to validate item {}: {reason}", at + 1))?;
        }
        match additional {
            Additional::Forbidden if items.len() > nodes.len() => {
                Err("found unexpected extra items in array".to_owned())
            }
            Additional::Schema(node) => self.each(*node, items, nodes.len(), "additional item"),
            _ => Ok(()),
        }
    }
}

fn check_type(rule: &TypeRule, value: &Value, shape: Shape) -> Verdict {
    let is = |expected: &JsonType| match expected {
        JsonType::Object => shape.is_object(),
        JsonType::Array => shape.is_list(),
        JsonType::Table => shape != Shape::Scalar,
        JsonType::Integer => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        JsonType::Number => value.is_number(),
        JsonType::String => value.is_string(),
        JsonType::Boolean => value.is_boolean(),
        JsonType::Null => value.is_null(),
        JsonType::Function => false,
    };
    if rule.types.iter().any(is) {
        return Ok(());
    }
    Err(format!("wrong type: {}, got {}", rule.expected, lua::type_name(value)))
}

fn check_count(count: usize, min: Option<&Count>, max: Option<&Count>, of: &str, what: &str) -> Verdict {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    if let Some(min) = min.filter(|min| count < min.limit) {
        return Err(format!("expect {of} to have at least {} {what}", min.text));
    }
    if let Some(max) = max.filter(|max| count > max.limit) {
        return Err(format!("expect {of} to have at most {} {what}", max.text));
    }
    Ok(())
}

fn check_string(rule: &StringRule, text: &str) -> Verdict {
    if rule.min.is_some() || rule.max.is_some() {
        let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
        if let Some(min) = rule.min.filter(|min| length < *min) {
            return Err(format!("string too short, expected at least {min}, got {length}"));
        }
        if let Some(max) = rule.max.filter(|max| length > *max) {
            return Err(format!("string too long, expected at most {max}, got {length}"));
        }
    }
    match &rule.pattern {
        Some(pattern) if !pattern.is_match(text) => {
            let (pattern, text) = (lua::quoted(pattern.source()), lua::quoted(text));
            Err(format!("failed to match pattern {pattern} with {text}"))
        }
        _ => Ok(()),
    }
}

fn check_number(rule: &NumberRule, number: f64) -> Verdict {
    let reference = rule.reference;
    let (holds, expected) = match rule.kind {
        NumberKind::Minimum => (number >= reference, "at least"),
        NumberKind::ExclusiveMinimum => (number > reference, "greater than"),
        NumberKind::Maximum => (number <= reference, "at most"),
        NumberKind::ExclusiveMaximum => (number < reference, "smaller than"),
        NumberKind::MultipleOf => (is_multiple(number, reference), "a multiple of"),
    };
    if holds {
        return Ok(());
    }
    let (number, reference) = (lua::number_text(number), lua::number_text(reference));
    Err(format!("expected {number} to be {expected} {reference}"))
}

fn is_multiple(number: f64, of: f64) -> bool {
    if of.fract() == 0.0 {
        return number % of == 0.0;
    }
    // Relative tolerance, so that 1.13 is a multiple of 0.01.
    let quotient = number / of;
    let rounded = (quotient + 0.5).floor();
    let size = if rounded == 0.0 { 1.0 } else { rounded.abs() };
    (quotient - rounded).abs() <= 1e-12 * size
}

fn check_format(format: &Format, text: &str) -> Verdict {
    let (valid, name) = match format {
        Format::Ipv4 => (text.parse::<Ipv4Addr>().is_ok(), "ipv4"),
        Format::Ipv6 => (text.parse::<Ipv6Addr>().is_ok(), "ipv6"),
        Format::Pattern { name, pattern } => (pattern.is_match(text), name.as_str()),
    };
    if valid { Ok(()) } else { Err(format!("expect valid {name} format but got: {text}")) }
}

/// Plain values are compared first, tables after them, as the library does.
fn check_unique(items: &[Value]) -> Verdict {
    let repeated = |first: usize, second: usize| {
        Err(format!("expected unique items but items {} and {} are equal", first + 1, second + 1))
    };
    let mut plain = HashMap::new();
    let mut tables = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let Some(key) = Plain::of(item) else {
            tables.push((at, item));
            continue;
        };
        if let Some(first) = plain.insert(key, at) {
            return repeated(first, at);
        }
    }
    for (n, (first, one)) in tables.iter().enumerate() {
        if let Some((second, _)) = tables[n + 1..].iter().find(|(_, other)| equal(one, other)) {
            return repeated(*first, *second);
        }
    }
    Ok(())
}

/// A value that is no table, as a key: equal keys are equal to Lua.
#[derive(PartialEq, Eq, Hash)]
enum Plain<'v> {
    Null,
    Bool(bool),
    Number(u64),
    Text(&'v str),
}

impl Plain<'_> {
    fn of(value: &Value) -> Option<Plain<'_>> {
        match value {
            Value::Null => Some(Plain::Null),
            Value::Bool(bool) => Some(Plain::Bool(*bool)),
            // Adding zero makes one zero of the two.
            Value::Number(number) => Some(Plain::Number((number.as_f64()? + 0.0).to_bits())),
            Value::String(text) => Some(Plain::Text(text)),
            Value::Array(_) | Value::Object(_) => None,
        }
    }
}

/// Equality as Lua's: numbers by value whatever their notation, and one empty table.
fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(_), Value::Number(_)) => one.as_f64() == other.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(x, y)| equal(x, y)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, x)| b.get(name).is_some_and(|y| equal(x, y)))
        }
        (Value::Array(_) | Value::Object(_), Value::Array(_) | Value::Object(_)) => {
            Shape::of(one) == Shape::Empty && Shape::of(other) == Shape::Empty
        }
        _ => one == other,
    }
}
