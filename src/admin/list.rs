//! The list of a kind: filters, order, pages. APISIX: admin/v3_adapter.lua `filter` and `pagination`.

use std::borrow::Cow;

use serde_json::Value;

use super::{error::AdminError, kinds::rules, refs::value};
use crate::{
    net::args,
    resource::Kind,
    store::Entry,
    vars::pcre::{Case, Pcre},
};

/// A part of a list, and how long the whole is.
pub struct Page {
    /// The entries to show.
    pub entries: Vec<Entry>,
    /// How many passed the filters.
    pub total: usize,
}

/// Takes the entries that a query asks for. Without `page` and `page_size` these are all, by id; with both they
/// are in the order of creation.
///
/// # Errors
/// The page size is out of bounds.
pub fn select(kind: Kind, mut entries: Vec<Entry>, query: &str) -> Result<Page, AdminError> {
    let filter = Filter::new(kind, query);
    if !filter.is_empty() {
        entries.retain(|entry| filter.lets_through(&value(entry)));
    }
    let total = entries.len();
    let number = |name: &str| argument(query, name).and_then(|text| text.trim().parse::<f64>().ok());
    let (Some(page), Some(size)) = (number("page"), number("page_size")) else {
        return Ok(Page { entries, total });
    };
    if !(10.0..=500.0).contains(&size) {
        return Err(AdminError::BareText("page_size must be between 10 and 500"));
    }
    entries.sort_by_key(|entry| entry.created);
    // The bounds above, and saturation, make these whole numbers.
    let (page, size) = (page.max(1.0) as usize, size as usize);
    let start = (page - 1).saturating_mul(size);
    let entries = entries.into_iter().skip(start).take(size).collect();
    Ok(Page { entries, total })
}

fn argument<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    args::text(query.as_bytes(), name)
}

/// What entries must be like.
struct Filter<'q> {
    /// `None` inside: the pattern is broken, so it finds nothing.
    name: Option<Option<Pcre>>,
    uri: Option<Option<Pcre>>,
    label: Option<Cow<'q, str>>,
    members: Vec<(&'static str, String)>,
}

impl<'q> Filter<'q> {
    fn new(kind: Kind, query: &'q str) -> Filter<'q> {
        let pattern = |name| argument(query, name).map(|text| Pcre::new(&text, Case::Sensitive).ok());
        let fields = argument(query, "filter").unwrap_or_default();
        let member = |name: &'static str| Some((name, argument(&fields, name)?.into_owned()));
        Filter {
            name: pattern("name"),
            uri: pattern("uri"),
            label: argument(query, "label"),
            members: rules(kind).filters.iter().filter_map(|name| member(name)).collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.name.is_none() && self.uri.is_none() && self.label.is_none() && self.members.is_empty()
    }

    fn lets_through(&self, value: &Value) -> bool {
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let name = self.name.as_ref().is_none_or(|name| finds(name, text("name")));
        let label = self.label.as_ref().is_none_or(|label| {
            let labels = value.get("labels").and_then(Value::as_object);
            labels.is_some_and(|labels| labels.contains_key(&**label))
        });
        let uri = self.uri.as_ref().is_none_or(|uri| {
            let uris = value.get("uris").and_then(Value::as_array);
            finds(uri, text("uri")) || uris.into_iter().flatten().any(|one| finds(uri, one.as_str()))
        });
        // A number is not the text that shows it, as in Lua.
        name && label && uri && self.members.iter().all(|(name, wanted)| text(name) == Some(wanted))
    }
}

fn finds(pattern: &Option<Pcre>, text: Option<&str>) -> bool {
    pattern.as_ref().zip(text).is_some_and(|(pattern, text)| pattern.is_match(text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{resource::Key, store::compact};

    fn entry(id: &str, created: u64, value: &Value) -> Entry {
        let key = Key::new(Kind::Route, id);
        Entry { key, value: compact(value), created, modified: created, expires: None }
    }

    fn entries() -> Vec<Entry> {
        vec![
            entry(
                "a",
                9,
                &json!({"name": "first", "uri": "/hello", "labels": {"env": "x"}, "service_id": "1"}),
            ),
            entry("b", 5, &json!({"name": "second", "uris": ["/x", "/world"], "service_id": 1})),
            entry("c", 7, &json!({"uri": "/hello/world", "labels": {"build": "16"}, "upstream_id": "2"})),
        ]
    }

    #[track_caller]
    fn check(query: &str, ids: &[&str], total: usize) {
        let page = select(Kind::Route, entries(), query).unwrap();
        let found: Vec<&str> = page.entries.iter().map(|entry| entry.key.id()).collect();
        assert_eq!((found.as_slice(), page.total), (ids, total), "{query}");
    }

    #[test]
    fn filters() {
        check("", &["a", "b", "c"], 3);
        check("name=irs", &["a"], 1);
        check("name=^(first|second)$", &["a", "b"], 2);
        check("name=(", &[], 0);
        check("label=env", &["a"], 1);
        check("label=", &[], 0);
        check("uri=world", &["b", "c"], 2);
        check("uri=world&label=build", &["c"], 1);
        check("filter=service_id%3D1", &["a"], 1);
        check("filter=service_id%3D1%26upstream_id%3D2", &[], 0);
        check("filter=name%3Dx", &["a", "b", "c"], 3);
    }

    #[test]
    fn pages() {
        check("page=1&page_size=10", &["b", "c", "a"], 3);
        check("page=-1&page_size=10", &["b", "c", "a"], 3);
        check("page=2&page_size=10", &[], 3);
        check("page=1", &["a", "b", "c"], 3);
        check("page=x&page_size=1", &["a", "b", "c"], 3);
        for size in ["9", "501", "-1"] {
            let query = format!("page=1&page_size={size}");
            assert!(matches!(select(Kind::Route, entries(), &query), Err(AdminError::BareText(_))), "{size}");
        }
    }
}
