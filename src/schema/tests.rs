//! Sentences and verdicts, one table per keyword.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::Schema;

/// Judges `value`; an empty `expected` means it passes.
#[track_caller]
fn check(schema: Value, value: Value, expected: &str) {
    let verdict = Schema::compile(&schema).expect("the schema compiles").check(&value);
    assert_eq!(verdict.err().unwrap_or_default(), expected, "{value} against {schema}");
}

#[track_caller]
fn check_filled(schema: Value, mut value: Value, expected: Value) {
    Schema::compile(&schema).expect("the schema compiles").fill_defaults(&mut value);
    assert_eq!(value, expected);
}

#[track_caller]
fn check_refused(schema: Value, expected: &str) {
    let error = Schema::compile(&schema).expect_err("the schema is no schema");
    assert_eq!(error.to_string(), expected);
}

#[test]
fn types() {
    let property = |kind: &str| json!({"properties": {"count": {"type": kind}}});
    check(
        property("integer"),
        json!({"count": "a"}),
        "property \"count\" validation failed: wrong type: expected integer, got string",
    );
    check(json!({"type": "string"}), json!({}), "wrong type: expected string, got table");
    check(json!({"type": "string"}), json!(null), "wrong type: expected string, got userdata");
    check(json!({"type": "integer"}), json!(1.5), "wrong type: expected integer, got number");
    check(json!({"type": "integer"}), json!(2.0), "");
    check(json!({"type": "object"}), json!([1]), "wrong type: expected object, got table");
    check(json!({"type": "object"}), json!([]), "");
    check(json!({"type": "array"}), json!({}), "");
    check(json!({"type": "array"}), json!({"a": 1}), "wrong type: expected array, got table");
    check(json!({"type": "null"}), json!(null), "");
    check(
        json!({"type": ["string", "number"]}),
        json!(true),
        "wrong type: expected one of string, number, got boolean",
    );
    check(json!(false), json!(1), "expect false always");
    check(json!(true), json!(1), "");
}

#[test]
fn objects() {
    check(json!({"required": ["uri"]}), json!({}), "property \"uri\" is required");
    check(json!({"required": ["uri"]}), json!([]), "property \"uri\" is required");
    check(json!({"required": ["uri"]}), json!("no object"), "");
    check(json!({"required": []}), json!({}), "");
    check(json!({"required": []}), json!({"a": 1}), "the input data should be an empty table");
    let closed = json!({"properties": {"a": {}}, "additionalProperties": false});
    check(closed.clone(), json!({"a": 1}), "");
    check(closed, json!({"x": 1}), "additional properties forbidden, found x");
    check(
        json!({"additionalProperties": {"type": "string"}}),
        json!({"x": 1}),
        "failed to validate additional property x: wrong type: expected string, got number",
    );
    check(
        json!({"patternProperties": {"^\\w+$": {"minLength": 1}}}),
        json!({"x": ""}),
        "failed to validate x (matching \"^\\w+$\"): string too short, expected at least 1, got 0",
    );
    check(json!({"minProperties": 1}), json!([]), "expect object to have at least 1 properties");
    check(json!({"maxProperties": 1}), json!({"a": 1, "b": 1}), "expect object to have at most 1 properties");
}

#[test]
fn dependencies() {
    let names = json!({"properties": {"cert": {}}, "dependencies": {"cert": ["key"]}});
    check(names, json!({"cert": 1}), "property \"key\" is required when \"cert\" is set");
    let undeclared = json!({"dependencies": {"cert": ["key"]}});
    check(undeclared, json!({"cert": 1}), "property \"key\" is required when \"cert\" is set");
    let schema = json!({"dependencies": {"id": {"not": {"required": ["cert"]}}}});
    check(schema.clone(), json!({"id": 1}), "");
    check(
        schema,
        json!({"id": 1, "cert": 1}),
        "failed to validate dependent schema for \"id\": value wasn't supposed to match schema",
    );
}

#[test]
fn lists() {
    check(json!({"minItems": 2}), json!([1]), "expect array to have at least 2 items");
    check(json!({"minItems": 1}), json!({}), "expect array to have at least 1 items");
    check(json!({"maxItems": 1}), json!([1, 2]), "expect array to have at most 1 items");
    check(
        json!({"items": {"type": "string"}}),
        json!(["a", 1]),
        "failed to validate item 2: wrong type: expected string, got number",
    );
    check(
        json!({"items": [{"type": "string"}], "additionalItems": false}),
        json!(["a", 1]),
        "found unexpected extra items in array",
    );
    check(
        json!({"items": [true], "additionalItems": {"type": "string"}}),
        json!([1, "a", 2]),
        "failed to validate additional item 3: wrong type: expected string, got number",
    );
    let unique = json!({"uniqueItems": true});
    check(unique.clone(), json!([1, "1", true]), "");
    check(unique.clone(), json!([1, 2, 1.0]), "expected unique items but items 1 and 3 are equal");
    check(unique.clone(), json!([0, -0.0]), "expected unique items but items 1 and 2 are equal");
    check(unique.clone(), json!([{}, []]), "expected unique items but items 1 and 2 are equal");
    check(unique, json!([{"a": [1]}, 5, {"a": [1]}, 5]), "expected unique items but items 2 and 4 are equal");
    check(json!({"contains": {"const": 1}}), json!([2, 1]), "");
    check(json!({"contains": {"const": 1}}), json!([2]), "failed to check contains");
    check(json!({"contains": {"const": 1}}), json!([]), "check contains: empty array is invalid");
    check(json!({"items": false}), json!([1]), "expect false always");
}

#[test]
fn texts() {
    check(json!({"minLength": 2}), json!("é"), "string too short, expected at least 2, got 1");
    check(json!({"maxLength": 2}), json!("éab"), "string too long, expected at most 2, got 3");
    check(
        json!({"pattern": r"^\*$|^[a-z]+$"}),
        json!("\u{1} bad\"!"),
        r#"failed to match pattern "^\\*$|^[a-z]+$" with "\1 bad\"!""#,
    );
    check(json!({"pattern": "^100%$"}), json!("x"), "failed to match pattern \"^100%$\" with \"x\"");
    check(json!({"format": "ipv4"}), json!("1.2.3.256"), "expect valid ipv4 format but got: 1.2.3.256");
    check(json!({"format": "ipv6"}), json!("::1"), "");
    check(json!({"format": "date"}), json!("2024-13-01"), "expect valid date format but got: 2024-13-01");
    check(json!({"format": "email"}), json!("a.b@c.de"), "");
    check(json!({"format": "unknown"}), json!("x"), "");
}

#[test]
fn numbers() {
    check(json!({"minimum": 1}), json!(0), "expected 0 to be at least 1");
    check(json!({"maximum": 1.5}), json!(2), "expected 2 to be at most 1.5");
    check(json!({"exclusiveMinimum": 0}), json!(0), "expected 0 to be greater than 0");
    check(json!({"exclusiveMaximum": 1}), json!(1), "expected 1 to be smaller than 1");
    check(json!({"multipleOf": 2}), json!(3), "expected 3 to be a multiple of 2");
    check(json!({"multipleOf": 0.01}), json!(1.13), "");
    check(json!({"minimum": 1}), json!("0"), "");
    check(json!({"minimum": 0}), json!(-100_000_000_000_000_000_i64), "expected -1e+17 to be at least 0");
}

#[test]
fn enumerations_and_constants() {
    check(json!({"enum": ["a", 1]}), json!(1.0), "");
    check(json!({"enum": ["a", 1]}), json!("1"), "matches none of the enum values");
    check(json!({"enum": [{}]}), json!([]), "");
    check(json!({"const": {"a": 1}}), json!({"a": 1}), "");
    check(json!({"const": null}), json!(0), "failed to check const value");
}

#[test]
fn compounds() {
    check(
        json!({"allOf": [true, {"type": "string"}]}),
        json!(1),
        "allOf 2 failed: wrong type: expected string, got number",
    );
    check(
        json!({"anyOf": [{"required": ["active"]}, {"required": ["active", "passive"]}]}),
        json!({}),
        r#"object matches none of the required: ["active"] or ["active","passive"]"#,
    );
    check(json!({"anyOf": [{"type": "string"}]}), json!(1), "object matches none of the required");
    let one = json!({"oneOf": [{"minimum": 1}, {"minimum": 5}]});
    check(one.clone(), json!(2), "");
    check(one.clone(), json!(0), "value should match only one schema, but matches none");
    check(one, json!(9), "value should match only one schema, but matches both schemas 1 and 2");
    check(json!({"not": {"type": "string"}}), json!("a"), "value wasn't supposed to match schema");
    let condition =
        json!({"if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": {"required": ["c"]}});
    check(condition.clone(), json!({"a": 1, "b": 1}), "");
    check(condition.clone(), json!({"a": 1}), "then clause did not match");
    check(condition, json!({}), "else clause did not match");
}

#[test]
fn secret_references_pass_where_a_text_is_meant() {
    check(json!({"type": "string", "minLength": 128}), json!("$secret://vault/1/a/b"), "");
    check(json!({"enum": ["http"]}), json!("$Env://SCHEME"), "");
    check(json!({"type": "integer"}), json!("$env://PORT"), "wrong type: expected integer, got string");
    check(json!({"type": "string", "maxLength": 3}), json!("$ENV:/x"), {
        "string too long, expected at most 3, got 7"
    });
}

#[test]
fn defaults() {
    let schema = json!({"properties": {"a": {"default": 1}, "b": {"properties": {"c": {"default": [1]}}}}});
    check_filled(schema.clone(), json!({}), json!({"a": 1}));
    check_filled(schema.clone(), json!([]), json!({"a": 1}));
    check_filled(schema, json!({"a": 2, "b": []}), json!({"a": 2, "b": {"c": [1]}}));
    // A default counts for the rules that come after it.
    let counted = json!({"properties": {"a": {"default": 1}}, "maxProperties": 0});
    check(counted, json!({}), "expect object to have at most 0 properties");
    let required = json!({"properties": {"a": {"default": 1}}, "required": ["a"]});
    check(required, json!({}), "property \"a\" is required");
}

#[test]
fn references() {
    let tree = json!({
        "definitions": {"node": {"properties": {"child": {"$ref": "#/definitions/node"}}, "required": ["name"]}},
        "$ref": "#/definitions/node",
    });
    check(tree.clone(), json!({"name": 1, "child": {"name": 2}}), "");
    check(
        tree,
        json!({"name": 1, "child": {}}),
        "property \"child\" validation failed: property \"name\" is required",
    );
    check(
        json!({"properties": {"a": {"$ref": "#/x~1y/0"}}, "x/y": [{"type": "string"}]}),
        json!({"a": 1}),
        "property \"a\" validation failed: wrong type: expected string, got number",
    );
    check(
        json!({"properties": {"a": {"$id": "#text", "type": "string"}, "b": {"$ref": "#text"}}}),
        json!({"b": 1}),
        "property \"b\" validation failed: wrong type: expected string, got number",
    );
    check(json!({"allOf": [{"$ref": "#"}]}), json!(1), "schemas are nested too deeply");
    check(json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}), json!(1), "schemas are nested too deeply");
    check_refused(json!({"$ref": "#"}), "reference not found: circle of references");
    check_refused(json!({"$ref": "#/nope"}), "reference not found: #/nope");
    check_refused(json!({"$ref": "http://a.com/schema"}), "reference not found: http://a.com/schema");
}

#[test]
fn documents_that_are_no_schemas() {
    check_refused(json!({"type": "text"}), "invalid JSON type: text");
    check_refused(json!({"enum": [null]}), "unsupported enum type: userdata");
    check_refused(json!("x"), "invalid value of schema keyword \"schema\": expected object or boolean");
    check_refused(
        json!({"minLength": "1"}),
        "invalid value of schema keyword \"minLength\": expected number",
    );
    check_refused(
        json!({"required": true}),
        "invalid value of schema keyword \"required\": table expected, got boolean",
    );
    assert!(Schema::compile(&json!({"pattern": "("})).is_err());
}

/// Any JSON, keywords of schemas among the names so that documents are often schemas.
fn any_json() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec![
        "type",
        "properties",
        "required",
        "items",
        "enum",
        "anyOf",
        "oneOf",
        "allOf",
        "not",
        "if",
        "then",
        "default",
        "$ref",
        "minimum",
        "pattern",
        "dependencies",
        "patternProperties",
        "additionalProperties",
        "uniqueItems",
        "a",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec!["string", "object", "array", "#", "#/a", "^a", "a", "$secret://x"])
            .prop_map(Value::from),
        "\\PC{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((name.clone(), inner), 0..5)
                .prop_map(|members| members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn no_schema_and_no_value_panics(schema in any_json(), value in any_json()) {
        if let Ok(schema) = Schema::compile(&schema) {
            let mut filled = value.clone();
            prop_assert_eq!(schema.check(&value), schema.check_and_fill(&mut filled));
            schema.fill_defaults(&mut filled);
        }
    }

    #[test]
    fn a_schema_of_constants_accepts_exactly_itself(value in any_json(), other in any_json()) {
        let schema = Schema::compile(&json!({"const": value})).expect("a constant is a schema");
        let is_reference = value.as_str().is_some_and(|text| text.starts_with("$secret://"));
        prop_assert!(is_reference || schema.check(&value).is_ok());
        if value.is_string() && value != other && other.as_str().is_none_or(|text| !text.starts_with('$')) {
            prop_assert!(schema.check(&other).is_err());
        }
    }
}
