//! JSON schemas: whatever compiles judges any value, always alike, and so does it where it fills in defaults.

use portcullis::schema::Schema;

/// Judges the value that follows by the schema of the first line.
pub fn run(data: &[u8]) {
    let Some((schema, value)) = crate::lines(data) else { return };
    // References to itself in many places take time exponential in the depth, in the original as well.
    if schema.len() > 400 || schema.matches("$ref").count() > 2 {
        return;
    }
    let (Some(schema), Some(value)) = (crate::json(schema), crate::json(value)) else { return };
    let Ok(schema) = Schema::compile(&schema) else { return };
    let verdict = schema.check(&value);
    assert_eq!(schema.check(&value), verdict);
    assert_eq!(schema.check_and_fill(&mut value.clone()), verdict);
    schema.fill_defaults(&mut value.clone());
}
