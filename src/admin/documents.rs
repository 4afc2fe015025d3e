//! Documents that hold all resources: judging them (`POST /apisix/admin/configs/validate`) and, in the API-driven
//! standalone mode, putting them into force (`/apisix/admin/configs`). APISIX: admin/config_validate.lua,
//! admin/standalone.lua.
//!
//! Differs from APISIX: keys of consumers and plugins of global rules are not compared with what is in force at the
//! moment, so that a document may move them; references between resources are looked up in neither. A document in
//! YAML is answered as JSON, which is YAML too.

use std::{
    collections::HashSet,
    time::{SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderName};
use serde_json::{Map, Value, json};

use super::{
    Admin,
    error::{AdminError, Response},
    judge::{self, Subject, id_text},
};
use crate::{
    resource::{Key, Kind},
    schema::{cjson, lua},
    store::standalone::{Applied, ApplyError, DIGEST, Document, LAST_MODIFIED, LISTS, Standalone},
    yaml,
};

impl Admin {
    /// `POST /apisix/admin/configs/validate`: names every fault, changes nothing.
    pub(super) fn validate_document(&self, headers: &HeaderMap, body: &[u8]) -> Result<Response, AdminError> {
        let document = read(headers, body)?;
        let faults = self.faults(&document);
        if faults.is_empty() { Ok(Response::json(200, &json!({}))) } else { Err(AdminError::Faults(faults)) }
    }

    /// `GET /apisix/admin/configs`.
    pub(super) async fn document(&self, standalone: &Standalone, headers: &HeaderMap) -> Response {
        let document = standalone.document().await;
        let members = Value::Object(document.members().clone());
        let mut response = Response::text(200, &members.to_string());
        if is_yaml(headers, http::header::ACCEPT) {
            response.set(http::header::CONTENT_TYPE, "application/yaml");
        }
        identify(&mut response, &document);
        response
    }

    /// `HEAD /apisix/admin/configs`.
    pub(super) async fn document_head(&self, standalone: &Standalone) -> Response {
        let mut response = Response::empty(200);
        identify(&mut response, &standalone.document().await);
        response
    }

    /// `PUT /apisix/admin/configs`.
    pub(super) async fn replace_document(
        &self,
        standalone: &Standalone,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response, AdminError> {
        let digest = headers.get(DIGEST).and_then(|digest| digest.to_str().ok());
        let digest = digest.ok_or_else(|| AdminError::Invalid("missing digest header".into()))?;
        let document = read(headers, body)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let applied = standalone.put(&document, digest, now, |list, item| self.judge_item(list, item)).await;
        match applied {
            Ok(Applied::Unchanged) => Ok(Response::empty(204)),
            Ok(Applied::Accepted(document)) => {
                self.visible(standalone.store().revision()).await;
                let mut response = Response::empty(202);
                identify(&mut response, &document);
                Ok(response)
            }
            Err(ApplyError::Faulty(text)) => Err(AdminError::Invalid(text)),
            Err(ApplyError::Store(error)) => Err(error.into()),
        }
    }

    fn faults(&self, document: &Value) -> Vec<Value> {
        let mut faults = Vec::new();
        if !document.is_object() && !document.is_array() {
            let what = lua::type_name(document);
            faults.push(json!({"error": format!("the document must be an object, got {what}")}));
        }
        for list in LISTS {
            let version = format!("{list}_conf_version");
            let given =
                document.get(&version).filter(|given| !given.is_number() && **given != Value::Bool(false));
            if let Some(given) = given {
                let error = format!("{version} must be a number, got {}", lua::type_name(given));
                faults.push(json!({"resource_type": list, "error": error}));
            }
            let items = document.get(list).and_then(Value::as_array);
            let mut known = HashSet::new();
            for (index, item) in items.into_iter().flatten().enumerate() {
                let id = item.get("id").filter(|id| !id.is_null()).or_else(|| item.get("username"));
                let id = id.cloned().unwrap_or_else(|| json!(""));
                let fault = |error: String| json!({"resource_type": list, "resource_id": id, "index": index, "error": error});
                if let Err(error) = self.judge_item(list, item) {
                    faults.push(fault(error));
                }
                if let Some(error) = duplicate(list, item, &mut known) {
                    faults.push(fault(error));
                }
            }
        }
        faults
    }

    /// Judges one item of a list as a write of it, but for what it says about others.
    fn judge_item(&self, list: &str, item: &Value) -> Result<(), String> {
        let Some(kind) = Kind::from_dir(list) else { return Ok(()) };
        let Value::Object(members) = item else {
            return judge::object(kind, Some(item.clone()), self.control.env().compat).map(drop);
        };
        let mut members = members.clone();
        self.take_index(&mut members)?;
        judge::tidy(&mut members);
        let id = members.get("id").and_then(id_text);
        let key = match (kind, &id) {
            (Kind::Consumer, Some(id)) if id.contains("/credentials/") => {
                Key::new(Kind::Credential, id.as_str())
            }
            (Kind::Secret, id) if !id.as_ref().is_some_and(|id| id.contains('/')) => {
                return Err(format!("invalid secret id: {}", id.as_deref().unwrap_or("nil")));
            }
            (kind, id) => Key::new(kind, id.as_deref().unwrap_or_default()),
        };
        let value = Value::Object(members);
        let subject =
            Subject { kind: key.kind(), id: id.as_deref(), consumer: key.consumer(), value: &value };
        self.judge_form(&subject)?;
        self.judge_plugins(&subject)?;
        self.control.check(&key, &value)
    }

    /// In the standalone mode an item may say its revision, which no other mode's schema knows.
    fn take_index(&self, members: &mut Map<String, Value>) -> Result<(), String> {
        if self.standalone.is_none() {
            return Ok(());
        }
        match members.shift_remove("modifiedIndex") {
            Some(index) if index.is_i64() || index.is_u64() => Ok(()),
            Some(index) => {
                let what = lua::type_name(&index);
                Err(format!(
                    "invalid configuration: property \"modifiedIndex\" validation failed: wrong type: expected \
                     integer, got {what}"
                ))
            }
            None => Ok(()),
        }
    }
}

fn read(headers: &HeaderMap, bytes: &[u8]) -> Result<Value, AdminError> {
    let refuse = |reason: &str| AdminError::Invalid(format!("invalid request body: {reason}"));
    if bytes.is_empty() {
        return Err(refuse("empty request body"));
    }
    if !is_yaml(headers, http::header::CONTENT_TYPE) {
        return cjson::parse(bytes).map_err(|reason| refuse(&reason));
    }
    let document = std::str::from_utf8(bytes).ok().and_then(|text| yaml::parse(text).ok());
    document.filter(Value::is_object).ok_or_else(|| refuse("invalid yaml request body"))
}

fn is_yaml(headers: &HeaderMap, name: HeaderName) -> bool {
    headers.get(name).is_some_and(|value| value.as_bytes().starts_with(b"application/yaml"))
}

fn identify(response: &mut Response, document: &Document) {
    if let Some(time) = document.last_modified() {
        set(response, LAST_MODIFIED, &time.to_string());
    }
    if let Some(digest) = document.digest() {
        set(response, DIGEST, digest);
    }
}

fn set(response: &mut Response, name: &str, value: &str) {
    if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
        response.set(name, value);
    }
}

fn duplicate(list: &str, item: &Value, known: &mut HashSet<String>) -> Option<String> {
    let own = item.get("id").filter(|id| !id.is_null());
    let (id, what) = match (list, own) {
        ("consumers", Some(id)) => (id, "credential id"),
        ("consumers", None) => (item.get("username")?, "username"),
        (_, id) => (id?, "id"),
    };
    // A number is not the text that shows it, as in Lua.
    let exact = id.to_string();
    if known.insert(exact) {
        return None;
    }
    Some(format!("found duplicate {what} {} in {list}", id_text(id).unwrap_or_else(|| id.to_string())))
}
