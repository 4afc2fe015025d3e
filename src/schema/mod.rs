//! JSON-schema validation with APISIX's wording.
