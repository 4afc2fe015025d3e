//! JSONPath: every match is a part of the document.

use portcullis::vars::jsonpath::JsonPath;

/// Asks the document that follows for the path of the first line.
pub fn run(data: &[u8]) {
    let Some((path, document)) = crate::lines(data) else { return };
    // Every `..` multiplies the matches by the depth of the document, in the original as well.
    if path.matches("..").count() > 2 || document.len() > 512 {
        return;
    }
    let (Ok(path), Some(document)) = (JsonPath::parse(path), crate::json(document)) else { return };
    let whole = document.to_string();
    for found in path.query(&document) {
        assert!(whole.contains(&found.to_string()), "{found}");
    }
}
