//! AWS Secrets Manager: `GetSecretValue`, signed with Signature Version 4.
//!
//! APISIX: secret/aws.lua. The key is a secret's name, and a member's behind it when the secret is a JSON object. Names
//! may have slashes, so the longest possible name is asked for first.

use std::time::SystemTime;

use async_trait::async_trait;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{client, conf, failed, member};
use crate::{
    builtin::shared::http_call::{Answer, Call},
    resource::secret,
    secret::{ResolveError, Revealed, SecretSource},
    vars::clock,
};

const SERVICE: &str = "secretsmanager";
const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
const TARGET: &str = "secretsmanager.GetSecretValue";

/// See the module.
pub struct Aws;

#[async_trait]
impl SecretSource for Aws {
    async fn fetch(&self, conf: &Value, key: &str) -> Result<Revealed, ResolveError> {
        fetch(conf, key).await.map_err(|why| failed("aws", why))
    }
}

async fn fetch(resource: &Value, key: &str) -> Result<Revealed, String> {
    let conf: secret::Aws = conf(resource)?;
    if key.is_empty() || key.starts_with('/') {
        return Err(format!("can't find main key, key: {key}"));
    }
    let mut end = key.len();
    loop {
        let answer = ask(&conf, &key[..end]).await?;
        if answer.status.is_success() {
            let mut value: Value = answer.json()?;
            // Not by index: that would panic at an answer that is no object.
            let Some(Value::String(text)) = value.get_mut("SecretString").map(Value::take) else {
                return Err("the secret is not a text".into());
            };
            return match key.get(end + 1..) {
                Some(name) => member(&text, name),
                None => Ok(Revealed::new(Value::String(text))),
            };
        }
        let fault = fault(&answer);
        let shorter = key[..end].rfind('/').filter(|_| fault.contains("ResourceNotFoundException"));
        match shorter {
            Some(shorter) => end = shorter,
            None => return Err(format!("invalid status code {}, {fault}", answer.status.as_u16())),
        }
    }
}

/// The kind of error: a name, as far as it looks like one.
fn fault(answer: &Answer) -> String {
    let named = answer.json::<Value>().ok().and_then(|body| body["__type"].as_str().map(str::to_owned));
    let named = named.unwrap_or_default();
    named.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '#')).take(128).collect()
}

async fn ask(conf: &secret::Aws, name: &str) -> Result<Answer, String> {
    let default = || format!("https://{SERVICE}.{}.amazonaws.com", conf.region);
    let endpoint = conf.endpoint_url.clone().unwrap_or_else(default);
    let (scheme, rest) = endpoint.split_once("://").ok_or("endpoint_url has no scheme")?;
    // APISIX takes scheme, host and port and nothing behind.
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match (scheme, authority.rsplit_once(':')) {
        ("https", Some((host, "443"))) | ("http", Some((host, "80"))) => host,
        _ => authority,
    };
    let body = json!({"SecretId": name, "VersionStage": "AWSCURRENT"}).to_string();
    let stamp = clock::basic_iso8601(SystemTime::now());
    let mut headers = vec![
        ("content-type", CONTENT_TYPE),
        ("host", host),
        ("x-amz-date", &*stamp),
        ("x-amz-target", TARGET),
    ];
    if let Some(token) = &conf.session_token {
        headers.push(("x-amz-security-token", token));
    }
    headers.sort_unstable();
    let request = Request { method: "POST", path: "/", query: "", headers: &headers, body: body.as_bytes() };
    let key = Key { id: &conf.access_key_id, secret: &conf.secret_access_key, region: &conf.region };
    let authorization = request.authorization(&key, SERVICE, &stamp);
    let mut call = Call::post(format!("{scheme}://{authority}/")).body(CONTENT_TYPE, body.clone());
    for (name, value) in headers.iter().chain(&[("authorization", &*authorization)]) {
        if *name == "host" || *name == "content-type" {
            continue;
        }
        let mut value = HeaderValue::try_from(*value).map_err(|_| "a text that no header can hold")?;
        value.set_sensitive(true);
        call = call.header(HeaderName::from_bytes(name.as_bytes()).map_err(|_| "no header name")?, value);
    }
    client(true)?.send(call).await.map_err(|error| error.to_string())
}

/// An access key and where it counts.
struct Key<'k> {
    id: &'k str,
    secret: &'k str,
    region: &'k str,
}

/// What is signed. Path and query are canonical already, headers sorted by their names in lower case.
struct Request<'r> {
    method: &'r str,
    path: &'r str,
    query: &'r str,
    headers: &'r [(&'r str, &'r str)],
    body: &'r [u8],
}

impl Request<'_> {
    /// The Authorization header. `stamp` is the time as `x-amz-date` has it.
    fn authorization(&self, key: &Key<'_>, service: &str, stamp: &str) -> String {
        let date = stamp.split('T').next().unwrap_or_default();
        let scope = format!("{date}/{}/{service}/aws4_request", key.region);
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let headers: String =
            self.headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
        let Self { method, path, query, body, .. } = self;
        let canonical = format!("{method}\n{path}\n{query}\n{headers}\n{names}\n{}", hash(body));
        let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", hash(canonical.as_bytes()));
        let mut signing = format!("AWS4{}", key.secret).into_bytes();
        for part in [date, key.region, service, "aws4_request"] {
            signing = mac(&signing, part);
        }
        let signature = hex(&mac(&signing, &text));
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            key.id
        )
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // The worked example of AWS's documentation of Signature Version 4.
    #[test]
    fn signs_as_documented() {
        let key = Key {
            id: "AKIDEXAMPLE",
            secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            region: "us-east-1",
        };
        let headers = [
            ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
            ("host", "iam.amazonaws.com"),
            ("x-amz-date", "20150830T123600Z"),
        ];
        let query = "Action=ListUsers&Version=2010-05-08";
        let request = Request { method: "GET", path: "/", query, headers: &headers, body: b"" };
        assert_eq!(
            request.authorization(&key, "iam", "20150830T123600Z"),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, \
             Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
        );
    }

    // get-vanilla of the published test suite of Signature Version 4.
    #[test]
    fn signs_as_the_test_suite() {
        let key = Key {
            id: "AKIDEXAMPLE",
            secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            region: "us-east-1",
        };
        let headers = [("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")];
        let request = Request { method: "GET", path: "/", query: "", headers: &headers, body: b"" };
        let authorization = request.authorization(&key, "service", "20150830T123600Z");
        let signature = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";
        assert!(authorization.ends_with(signature), "{authorization}");
    }
}
