//! Request bodies: a form field is what the query string reader finds, and no path into a body fails.

use portcullis::{
    net::args,
    vars::body::{PostBody, PostPath},
};

const TYPES: [&str; 4] = [
    "application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "multipart/form-data; boundary=\"--\"",
];

/// Reads the body that follows by each type, and looks for the path of the first line.
pub fn run(data: &[u8]) {
    let Some(at) = data.iter().position(|byte| *byte == b'\n').filter(|at| *at < 40) else { return };
    let Ok(text) = std::str::from_utf8(&data[..at]) else { return };
    let (path, body) = (PostPath::parse(text), &data[at + 1..]);
    if text.matches("..").count() > 2 || body.len() > 1024 {
        return;
    }
    let _ = PostBody::parse(Some(text), body);
    for kind in TYPES {
        let Ok(parsed) = PostBody::parse(Some(kind), body) else { continue };
        let _ = parsed.path(&path);
        let field = parsed.field(text).map(|value| value.into_text());
        if kind.ends_with("urlencoded") {
            assert_eq!(field, args::text(body, text), "{text}");
        }
    }
}
