//! Expressions over variables: `[["arg_x", "==", "1"], ["uri", "~~", "^/a"]]`.
//!
//! The language and its refusals are lua-resty-expr's: operators `== ~= > >= < <= ~~ ~* in has ipmatch`, `!`
//! before an operator, and lists that begin with `AND`, `OR`, `!AND`, `!OR`. Comparison is Lua's, so types
//! matter: `["arg_x", "==", 1]` compares numbers, `["arg_x", "in", [1]]` never holds, as text is no number.
//! Expressions are compiled with configuration; evaluating one never fails, and on text it does not allocate.

use serde_json::Value as Json;

use crate::net::ip_set::IpSet;
use crate::vars::jsonpath::JsonPath;
use crate::vars::lua::{Value, number_to_text, text_to_number};
use crate::vars::pcre::{Case, Pcre};
use crate::vars::var::{Lookup, Var};

/// A compiled expression.
#[derive(Clone, Debug)]
pub struct Expr {
    /// `None` for the empty expression, which always holds.
    root: Option<Node>,
}

#[derive(Clone, Debug)]
enum Node {
    All(Vec<Node>),
    Any(Vec<Node>),
    Not(Box<Node>),
    Test { var: Var, check: Check },
}

#[derive(Clone, Debug)]
enum Check {
    Equal(Operand),
    Order(Order, Option<f64>),
    /// `None` for a pattern that does not compile: it matches nothing, and APISIX accepts it, too.
    Match(Option<Pcre>),
    In(Vec<Operand>),
    Has(Operand),
    IpIn(IpSet),
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Greater,
    GreaterEqual,
    Less,
    LessEqual,
}

/// The right side of a comparison.
#[derive(Clone, Debug)]
enum Operand {
    /// No value; what `null` means, except inside lists.
    Nil,
    Null,
    Text(Box<str>),
    Number(f64),
    Bool(bool),
    Table,
}

#[derive(Clone, Copy)]
enum Operator {
    Equal,
    NotEqual,
    Order(Order),
    Match(Case),
    In,
    Has,
    IpMatch,
}

#[derive(Clone, Copy)]
enum Logic {
    And,
    Or,
    NotAnd,
    NotOr,
}

impl Expr {
    /// Compiles an expression; the empty list always holds.
    ///
    /// # Errors
    /// lua-resty-expr's words; callers put `failed to validate the 'vars' expression: ` before them.
    /// Differs from APISIX: what makes the Lua code itself fail (an operator that is a list, a rule that is a
    /// text) is `invalid expression` here.
    pub fn parse(rule: &Json) -> Result<Self, String> {
        let rules = match rule {
            Json::Null | Json::Bool(false) => return Err("missing argument rule".to_owned()),
            Json::Object(_) => return Ok(Self { root: None }),
            Json::Array(rules) => rules,
            _ => return Err("rule should be wrapped inside brackets".to_owned()),
        };
        let Some(first) = rules.first() else { return Ok(Self { root: None }) };
        if !is_table(first) && logic(first).is_none() {
            return Err("rule should be wrapped inside brackets".to_owned());
        }
        Ok(Self { root: Some(compile(rule)?) })
    }

    /// Whether the expression holds for a request.
    #[must_use]
    pub fn eval(&self, lookup: &dyn Lookup) -> bool {
        self.root.as_ref().is_none_or(|root| root.eval(lookup))
    }

    /// Whether a variable in it needs the request body.
    #[must_use]
    pub fn needs_body(&self) -> bool {
        self.vars().iter().any(|var| var.needs_body())
    }

    /// The variables in it, with repetitions.
    #[must_use]
    pub fn vars(&self) -> Vec<&Var> {
        let mut vars = Vec::new();
        if let Some(root) = &self.root {
            root.collect(&mut vars);
        }
        vars
    }

    /// Whether the expression is empty and so always holds.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }
}

/// Checks the JSONPath of every `post_arg.…` in an expression, as the Admin API does for routes.
/// APISIX: admin/routes.lua `validate_post_arg`.
///
/// # Errors
/// The JSONPath library's words.
pub fn check_post_args(rule: &Json) -> Result<(), String> {
    let Json::Array(items) = rule else { return Ok(()) };
    if items.len() >= 3
        && let Json::String(name) = &items[0]
        && let Some(path) = name.strip_prefix("post_arg.")
    {
        return JsonPath::parse(&format!("$.{path}")).map(|_| ());
    }
    items.iter().try_for_each(check_post_args)
}

impl Node {
    fn eval(&self, lookup: &dyn Lookup) -> bool {
        match self {
            Self::All(nodes) => nodes.iter().all(|node| node.eval(lookup)),
            Self::Any(nodes) => nodes.iter().any(|node| node.eval(lookup)),
            Self::Not(node) => !node.eval(lookup),
            Self::Test { var, check } => check.holds(lookup.value(var)),
        }
    }

    fn collect<'n>(&'n self, vars: &mut Vec<&'n Var>) {
        match self {
            Self::All(nodes) | Self::Any(nodes) => nodes.iter().for_each(|node| node.collect(vars)),
            Self::Not(node) => node.collect(vars),
            Self::Test { var, .. } => vars.push(var),
        }
    }
}

impl Check {
    fn holds(&self, value: Option<Value<'_>>) -> bool {
        match self {
            Self::Equal(Operand::Nil) => value.is_none(),
            Self::Equal(Operand::Number(right)) => {
                value.and_then(|left| left.to_number()).is_some_and(|left| left == *right)
            }
            Self::Equal(right) => value.is_some_and(|left| right.equals(&left)),
            Self::Order(order, right) => {
                let left = value.and_then(|left| left.to_number());
                left.zip(*right).is_some_and(|(left, right)| order.holds(left, right))
            }
            Self::Match(pattern) => match (value, pattern) {
                (None | Some(Value::Bool(false)), _) | (_, None) => false,
                (Some(left), Some(pattern)) => pattern.is_match(&left.into_text()),
            },
            Self::In(list) => value.is_some_and(|left| list.iter().any(|right| right.equals(&left))),
            Self::Has(right) => match value {
                Some(Value::List(items)) => items.iter().any(|item| right.equals(item)),
                _ => false,
            },
            Self::IpIn(set) => matches!(value, Some(Value::Text(ip)) if set.contains_text(&ip)),
        }
    }
}

impl Order {
    fn holds(self, left: f64, right: f64) -> bool {
        match self {
            Self::Greater => left > right,
            Self::GreaterEqual => left >= right,
            Self::Less => left < right,
            Self::LessEqual => left <= right,
        }
    }
}

impl Operand {
    fn from_json(json: &Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(b) => Self::Bool(*b),
            Json::Number(n) => Self::Number(n.as_f64().unwrap_or(f64::NAN)),
            Json::String(s) => Self::Text(s.as_str().into()),
            Json::Array(_) | Json::Object(_) => Self::Table,
        }
    }

    /// Lua's `==`: no conversion, and tables equal only themselves.
    fn equals(&self, value: &Value<'_>) -> bool {
        match (self, value) {
            (Self::Text(right), Value::Text(left)) => **right == **left,
            (Self::Number(right), Value::Number(left)) => right == left,
            (Self::Bool(right), Value::Bool(left)) => right == left,
            (Self::Null, Value::Null) => true,
            _ => false,
        }
    }

    fn to_number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text_to_number(text),
            _ => None,
        }
    }

    /// The pattern that a right side is, by Lua's `tostring`.
    fn to_pattern(&self) -> String {
        match self {
            Self::Text(text) => text.to_string(),
            Self::Number(number) => number_to_text(*number),
            Self::Bool(b) => b.to_string(),
            Self::Nil | Self::Null => "nil".to_owned(),
            Self::Table => "table".to_owned(),
        }
    }
}

impl Operator {
    fn parse(lower: &str) -> Option<Self> {
        Some(match lower {
            "==" => Self::Equal,
            "~=" => Self::NotEqual,
            ">" => Self::Order(Order::Greater),
            ">=" => Self::Order(Order::GreaterEqual),
            "<" => Self::Order(Order::Less),
            "<=" => Self::Order(Order::LessEqual),
            "~~" => Self::Match(Case::Sensitive),
            "~*" => Self::Match(Case::Insensitive),
            "in" => Self::In,
            "has" => Self::Has,
            "ipmatch" => Self::IpMatch,
            _ => return None,
        })
    }
}

const INVALID: &str = "invalid expression";

fn is_table(json: &Json) -> bool {
    matches!(json, Json::Array(_) | Json::Object(_))
}

/// Text as Lua's string functions take it: numbers are converted.
fn text(json: &Json) -> Option<String> {
    match json {
        Json::String(text) => Some(text.clone()),
        Json::Number(number) => Some(number_to_text(number.as_f64()?)),
        _ => None,
    }
}

fn logic(json: &Json) -> Option<Logic> {
    match text(json)?.to_ascii_uppercase().as_str() {
        "AND" => Some(Logic::And),
        "OR" => Some(Logic::Or),
        "!AND" => Some(Logic::NotAnd),
        "!OR" => Some(Logic::NotOr),
        _ => None,
    }
}

fn compile(rule: &Json) -> Result<Node, String> {
    const SHORT: &str = "rule too short";
    let rules = match rule {
        Json::Array(rules) => rules.as_slice(),
        Json::Object(_) => &[],
        _ => return Err(INVALID.to_owned()),
    };
    let Some(first) = rules.first() else { return Err(SHORT.to_owned()) };
    let all = |rules: &[Json]| rules.iter().map(compile).collect::<Result<Vec<_>, _>>();
    if is_table(first) {
        return Ok(Node::All(all(rules)?));
    }
    let Some(logic) = logic(first) else { return compile_test(rules) };
    if rules.len() <= 2 {
        return Err(SHORT.to_owned());
    }
    let nodes = all(&rules[1..])?;
    Ok(match logic {
        Logic::And => Node::All(nodes),
        Logic::Or => Node::Any(nodes),
        Logic::NotAnd => Node::Not(Box::new(Node::All(nodes))),
        Logic::NotOr => Node::Not(Box::new(Node::Any(nodes))),
    })
}

/// Compiles `[name, op, value]`, `[name, "!", op, value]` or `[name, value]`.
fn compile_test(rule: &[Json]) -> Result<Node, String> {
    let (reverse, operator, right) = match rule {
        [_, bang, operator, right] => {
            if bang.as_str() != Some("!") {
                return Err("bad 'not' expression".to_owned());
            }
            (true, Some(operator), Some(right))
        }
        _ => (false, rule.get(1), rule.get(2)),
    };
    let name = rule.first().and_then(text).ok_or(INVALID)?;
    let operator = text(operator.ok_or(INVALID)?).ok_or(INVALID)?.to_ascii_lowercase();
    let (operator, right) = match (Operator::parse(&operator), right) {
        (Some(parsed), right) => (parsed, right.cloned()),
        // The short form; its value is in lower case by now, in APISIX as well.
        (None, None) => (Operator::Equal, Some(Json::String(operator))),
        (None, Some(_)) => return Err(format!("invalid operator '{operator}'")),
    };
    let check = compile_check(operator, right.as_ref())?;
    let test = Node::Test { var: Var::parse(&name), check };
    let negate = reverse != matches!(operator, Operator::NotEqual);
    Ok(if negate { Node::Not(Box::new(test)) } else { test })
}

fn compile_check(operator: Operator, right: Option<&Json>) -> Result<Check, String> {
    let operand = match right {
        None | Some(Json::Null) => Operand::Nil,
        Some(json) => Operand::from_json(json),
    };
    Ok(match operator {
        Operator::Equal | Operator::NotEqual => Check::Equal(operand),
        Operator::Order(order) => Check::Order(order, operand.to_number()),
        Operator::Match(case) => Check::Match(Pcre::new(&operand.to_pattern(), case).ok()),
        Operator::Has => Check::Has(operand),
        Operator::In => match right {
            Some(Json::Array(items)) => Check::In(items.iter().map(Operand::from_json).collect()),
            _ => Check::In(Vec::new()),
        },
        Operator::IpMatch => Check::IpIn(ip_set(right)?),
    })
}

fn ip_set(right: Option<&Json>) -> Result<IpSet, String> {
    let invalid = || "invalid ip address".to_owned();
    let blocks = match right {
        Some(Json::String(block)) if !block.is_empty() => vec![block.as_str()],
        Some(Json::Array(items)) if !items.is_empty() => {
            items.iter().map(|item| item.as_str().ok_or_else(invalid)).collect::<Result<_, _>>()?
        }
        _ => return Err(invalid()),
    };
    IpSet::parse(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::borrow::Cow;

    /// Variables as a JSON object.
    struct Vars(Json);

    impl Lookup for Vars {
        fn get(&self, var: &Var) -> Option<Cow<'_, str>> {
            self.value(var).map(Value::into_text)
        }

        fn value(&self, var: &Var) -> Option<Value<'_>> {
            self.0.get(&*var.name()).map(Value::from_json)
        }
    }

    #[track_caller]
    fn check(rule: Json, vars: Json, expected: bool) {
        let expr = Expr::parse(&rule).unwrap();
        assert_eq!(expr.eval(&Vars(vars.clone())), expected, "{rule} with {vars}");
    }

    /// One test, both ways round.
    #[track_caller]
    fn check_test(operator: &str, right: Json, left: Json, expected: bool) {
        let vars = if left.is_null() { json!({}) } else { json!({"k": left}) };
        check(json!([["k", operator, right]]), vars.clone(), expected);
        check(json!([["k", "!", operator, right]]), vars, !expected);
    }

    #[track_caller]
    fn refuse(rule: Json, expected: &str) {
        assert_eq!(Expr::parse(&rule).map(|_| ()), Err(expected.to_owned()), "{rule}");
    }

    #[test]
    fn equality() {
        check_test("==", json!("v"), json!("v"), true);
        check_test("==", json!("v"), json!("w"), false);
        check_test("==", json!("v"), json!(null), false);
        check_test("==", json!("18"), json!("18.0"), false);
        check_test("==", json!(18), json!("18.0"), true);
        check_test("==", json!(18), json!("0x12"), true);
        check_test("==", json!(18), json!("aa"), false);
        check_test("==", json!(18), json!(null), false);
        check_test("==", json!("5"), json!(5), false);
        check_test("==", json!(true), json!(true), true);
        check_test("==", json!("true"), json!(true), false);
        check_test("==", json!(null), json!(null), true);
        check_test("==", json!(null), json!("v"), false);
        check_test("==", json!([1]), json!([1]), false);
        check_test("~=", json!("v"), json!("w"), true);
        check_test("~=", json!("v"), json!(null), true);
        check_test("~=", json!(18), json!("18"), false);
        check_test("~=", json!(18), json!("aa"), true);
        check_test("~=", json!(null), json!("v"), true);
        check_test("~=", json!(null), json!(null), false);
    }

    #[test]
    fn order() {
        check_test(">", json!(10), json!("11"), true);
        check_test(">", json!("10"), json!("9"), false);
        check_test(">", json!(10), json!(null), false);
        check_test(">", json!("x"), json!("11"), false);
        check_test(">=", json!("2"), json!("2"), true);
        check_test(">=", json!(3), json!("2"), false);
        check_test("<", json!(1), json!("abc"), false);
        check_test("<", json!(1), json!("0.5"), true);
        check_test("<=", json!(3), json!("3"), true);
        check_test("<=", json!("2"), json!("3"), false);
    }

    #[test]
    fn patterns() {
        check_test("~~", json!("[a-z]+"), json!("1a"), true);
        check_test("~~", json!("ABC"), json!("abc"), false);
        check_test("~*", json!("ABC"), json!("abc"), true);
        check_test("~~", json!("^(?!a)"), json!("b"), true);
        check_test("~~", json!("x"), json!(null), false);
        check_test("~~", json!(""), json!(""), true);
        check_test("~~", json!(1), json!("21"), true);
        check_test("~~", json!("("), json!("("), false);
        check_test("~~", json!("^true$"), json!(true), true);
        check_test("~~", json!("false"), json!(false), false);
    }

    #[test]
    fn lists() {
        check_test("in", json!(["1", "2"]), json!("2"), true);
        check_test("in", json!(["1", "2"]), json!("4"), false);
        check_test("in", json!([1, 2]), json!("1"), false);
        check_test("in", json!([1, 2]), json!(1), true);
        check_test("in", json!(["1"]), json!(null), false);
        check_test("in", json!("1"), json!("1"), false);
        check_test("has", json!("a"), json!(["a", "b"]), true);
        check_test("has", json!("a"), json!(["b"]), false);
        check_test("has", json!("a"), json!("a"), false);
        check_test("has", json!(1), json!([1, 2]), true);
        check_test("has", json!("1"), json!([1, 2]), false);
        check_test("HAS", json!("a"), json!(["a"]), true);
    }

    #[test]
    fn addresses() {
        check_test("ipmatch", json!("127.0.0.0/8"), json!("127.1.2.3"), true);
        check_test("ipmatch", json!(["10.0.0.0/8", "::1"]), json!("::1"), true);
        check_test("ipmatch", json!(["10.0.0.0/8"]), json!("11.0.0.1"), false);
        check_test("ipmatch", json!(["10.0.0.0/8"]), json!("nobody"), false);
        check_test("ipmatch", json!(["10.0.0.0/8"]), json!(null), false);
    }

    #[test]
    fn logic_operators() {
        let vars = json!({"arg_w": "16", "arg_h": "16", "arg_n": "json"});
        let yes = json!(["arg_w", ">", 10]);
        let no = json!(["arg_w", "<", 10]);
        check(json!([yes, yes]), vars.clone(), true);
        check(json!([yes, no]), vars.clone(), false);
        check(json!(["and", yes, no]), vars.clone(), false);
        check(json!(["OR", no, yes]), vars.clone(), true);
        check(json!(["OR", no, no]), vars.clone(), false);
        check(json!(["!AND", yes, no]), vars.clone(), true);
        check(json!(["!AND", yes, yes]), vars.clone(), false);
        check(json!(["!OR", no, no]), vars.clone(), true);
        check(json!(["!or", no, yes]), vars.clone(), false);
        check(json!([[yes, yes], ["OR", no, ["AND", yes, yes]]]), vars.clone(), true);
        check(json!(["!AND", ["arg_n", "json"], ["OR", no, ["arg_h", "!", ">", 15]]]), vars, true);
    }

    #[test]
    fn oddities_kept() {
        check(json!([]), json!({}), true);
        check(json!({}), json!({}), true);
        // The short form compares with its value in lower case.
        check(json!([["arg_k", "V"]]), json!({"arg_k": "V"}), false);
        check(json!([["arg_k", "V"]]), json!({"arg_k": "v"}), true);
        check(json!([["arg_k", 5]]), json!({"arg_k": "5"}), true);
        check(json!([["arg_k", "=="]]), json!({}), true);
        // A fifth element and what follows is not looked at.
        check(json!([["arg_k", "==", "v", "x", "y"]]), json!({"arg_k": "v"}), true);
    }

    #[test]
    fn refusals() {
        refuse(json!([["arg_k", "=", "v"]]), "invalid operator '='");
        refuse(json!([["arg_k", "??", "v"]]), "invalid operator '??'");
        refuse(json!([["arg_k", "INVALID", 10]]), "invalid operator 'invalid'");
        refuse(json!([["arg_k"]]), "invalid expression");
        refuse(json!([[]]), "rule too short");
        refuse(json!([{}]), "rule too short");
        refuse(json!([["!", "arg_k", "==", "1"]]), "bad 'not' expression");
        refuse(json!(["OR", ["arg_w", ">", 10]]), "rule too short");
        refuse(json!(["OR", ["arg_w", ">", 10], ["AND"]]), "rule too short");
        refuse(json!(["arg_k", "==", "v"]), "rule should be wrapped inside brackets");
        refuse(json!([1]), "rule should be wrapped inside brackets");
        refuse(json!(null), "missing argument rule");
        refuse(json!([["k", "ipmatch", "foo"]]), "invalid ip address: foo");
        refuse(json!([["k", "ipmatch", []]]), "invalid ip address");
        refuse(json!([["k", "ipmatch", ""]]), "invalid ip address");
        refuse(json!([["k", "ipmatch"]]), "invalid ip address");
    }

    #[test]
    fn bodies() {
        let needs = |rule: Json| Expr::parse(&rule).unwrap().needs_body();
        assert!(needs(json!(["OR", ["uri", "/"], [["post_arg.a", "==", "1"]]])));
        assert!(!needs(json!([["uri", "/"]])));
        assert!(!needs(json!([])));
        assert_eq!(check_post_args(&json!([["post_arg.a[*].b", "has", "x"]])), Ok(()));
        let near = "invalid expression \"$.a[.b\" near \"[.b\"".to_owned();
        assert_eq!(check_post_args(&json!([["OR", ["post_arg.a[.b", "==", 1]]])), Err(near));
    }

    /// A request whose variables are all the same text.
    struct Constant(&'static str);

    impl Lookup for Constant {
        fn get(&self, _: &Var) -> Option<Cow<'_, str>> {
            Some(self.0.into())
        }
    }

    #[test]
    fn evaluates_without_allocating() {
        let rule = json!([
            ["arg_a", "==", "127.0.0.1"],
            ["arg_a", "!", "==", 1],
            ["arg_a", "~~", "^127"],
            ["OR", ["http_a", ">", 1], ["remote_addr", "ipmatch", ["10.0.0.0/8", "127.0.0.0/8"]]],
            ["uri", "in", ["a", "127.0.0.1"]]
        ]);
        let expr = Expr::parse(&rule).unwrap();
        let request = Constant("127.0.0.1");
        // The first match of a pattern fills the engine's cache.
        assert!(expr.eval(&request));
        let used = allocation_counter::measure(|| assert!(expr.eval(&request)));
        assert_eq!(used.count_total, 0);
    }

    fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(Json::from),
            (-3i64..3).prop_map(Json::from),
            any::<f64>().prop_map(Json::from),
            "AND|or|!OR|!|==|~=|~~|~\\*|>|in|has|ipmatch|k|post_arg\\.a|1|::1/64|\\PC{0,4}"
                .prop_map(Json::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                4 => proptest::collection::vec(inner.clone(), 0..5).prop_map(Json::from),
                1 => inner.prop_map(|v| json!({"k": v})),
            ]
        })
    }

    proptest! {
        #[test]
        fn never_panics(rule in any_json(), left in any_json()) {
            let _ = check_post_args(&rule);
            if let Ok(expr) = Expr::parse(&rule) {
                let _ = expr.eval(&Vars(json!({"k": left, "post_arg.a": 1})));
                let _ = expr.needs_body();
            }
        }

        #[test]
        fn negations_negate(
            operator in "==|~=|>|>=|<|<=|~~|~\\*|in|has", right in any_json(), left in any_json()
        ) {
            let vars = Vars(json!({"k": left}));
            let test = json!(["k", operator, right]);
            let eval = |rule: Json| Expr::parse(&rule).unwrap().eval(&vars);
            let plain = eval(json!([test]));
            prop_assert_eq!(eval(json!([["k", "!", operator, right]])), !plain);
            prop_assert_eq!(eval(json!(["!AND", test, test])), !plain);
            prop_assert_eq!(eval(json!(["!OR", test, test])), !plain);
            prop_assert_eq!(eval(json!(["OR", test, test])), plain);
        }
    }
}
