//! The payloads: requests are written, replies and questions are read.
//!
//! Invariant: every buffer that came from a runner is verified before a field of it is read, so that no bytes can
//! make the reader leave them. What is read is owned: slices of the payload, not copies.

use std::net::IpAddr;

use bytes::Bytes;
use flatbuffers::{FlatBufferBuilder, Vector, WIPOffset};
use http::{HeaderMap, Method};
use pingora::http::{HeaderNameVariant, ResponseHeader};

use super::{
    error::{CallError, Code},
    frame::kind,
    proto::a6::{self, extra_info, httpreq_call, httpresp_call, prepare_conf},
};
use crate::net::{args, lossless};

/// A request that passes through the runner's plugins.
pub struct RequestCall<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// The method.
    pub method: &'a Method,
    /// The path: decoded, or as an earlier plugin rewrote it.
    pub path: &'a [u8],
    /// The query without `?`, as on the wire.
    pub args: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The Host that the upstream will see; stands in place of the header.
    pub host: Option<&'a [u8]>,
}

/// A response that passes through the runner's plugins.
pub struct ResponseCall<'a> {
    /// The upstream's status and headers; names in the case in which it wrote them.
    pub head: &'a ResponseHeader,
}

/// A name with a value; one without a value deletes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The name, in whatever case the runner wrote it.
    pub name: Bytes,
    /// The value.
    pub value: Option<Bytes>,
}

/// What a runner decided about a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Go on unchanged.
    None,
    /// Answer the client.
    Stop(Stop),
    /// Go on with changes.
    Rewrite(Rewrite),
}

impl Action {
    /// A word for it, as logs have it.
    pub fn name(&self) -> &'static str {
        match self {
            Action::None => "pass",
            Action::Stop(_) => "stop",
            Action::Rewrite(_) => "rewrite",
        }
    }
}

impl ResponseChange {
    /// A word for it, as logs have it.
    pub fn name(&self) -> &'static str {
        if *self == ResponseChange::default() { "pass" } else { "change" }
    }
}

/// The answer for the client.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stop {
    /// 0 stands for 200.
    pub status: u16,
    /// Headers: the first of a name replaces, later ones stand beside it.
    pub headers: Vec<Entry>,
    /// The body; an empty one is none.
    pub body: Bytes,
}

/// Changes of a request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rewrite {
    /// The new path, not escaped.
    pub path: Option<Bytes>,
    /// Request headers: the last of a name counts.
    pub headers: Vec<Entry>,
    /// Arguments: the first of a name replaces, later ones stand beside it.
    pub args: Vec<Entry>,
    /// Headers of the response to come: the first of a name replaces, later ones stand beside it.
    pub response_headers: Vec<Entry>,
    /// The new body; an empty one is none.
    pub body: Bytes,
}

/// What a runner decided about a response.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ResponseChange {
    /// The new status; 0 leaves it.
    pub status: u16,
    /// Headers: the first of a name replaces, later ones stand beside it, one without a value deletes.
    pub headers: Vec<Entry>,
    /// The new body; an empty one is none.
    pub body: Bytes,
}

/// What a runner asks for inside of a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Question {
    /// A variable, by its name without `$`.
    Var(String),
    /// The body of the request.
    RequestBody,
    /// The body of the upstream's response.
    ResponseBody,
}

/// More entries than these of one kind are nonsense; each costs a look at those before it.
const MAX_ENTRIES: usize = 16_384;

type Text<'b> = WIPOffset<Vector<'b, u8>>;

/// Writes payloads. Keeps its memory: one for each connection.
pub struct Encoder {
    builder: FlatBufferBuilder<'static>,
    entries: Vec<WIPOffset<a6::TextEntry<'static>>>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { builder: FlatBufferBuilder::with_capacity(2048), entries: Vec::with_capacity(32) }
    }
}

impl Encoder {
    /// The payload of a PrepareConf: plugins with their configurations in running order, and the key that the runner
    /// may cache by.
    pub fn prepare_conf(&mut self, conf: &[(String, String)], key: &str) -> &[u8] {
        self.start();
        for (name, value) in conf {
            self.entry(name.as_bytes(), Some(value.as_bytes()));
        }
        let conf = (!conf.is_empty()).then(|| self.vector());
        let key = Some(self.text(key.as_bytes()));
        let root = prepare_conf::Req::create(&mut self.builder, &prepare_conf::ReqArgs { conf, key });
        self.builder.finish_minimal(root);
        self.builder.finished_data()
    }

    /// The payload of an HTTPReqCall.
    ///
    /// # Errors
    /// The method has no number.
    pub fn request(&mut self, call: &RequestCall<'_>, id: u32, token: u32) -> Result<&[u8], CallError> {
        let Some(method) = method_number(call.method) else {
            return Err(CallError::Method(call.method.to_string()));
        };
        self.start();
        for (name, value) in args::pairs(call.args.as_bytes()) {
            let value = value.as_deref().map(lossless::to_bytes);
            self.entry(&lossless::to_bytes(&name), value.as_deref());
        }
        let arguments = self.vector();
        for (name, value) in call.headers {
            if *name != http::header::HOST {
                self.entry(name.as_str().as_bytes(), Some(value.as_bytes()));
            }
        }
        if let Some(host) = call.host {
            self.entry(b"host", Some(host));
        }
        let headers = self.vector();
        let path = self.text(call.path);
        let src_ip = match call.client {
            IpAddr::V4(ip) => self.builder.create_vector(&ip.octets()),
            IpAddr::V6(ip) => self.builder.create_vector(&ip.octets()),
        };
        let args = httpreq_call::ReqArgs {
            id,
            src_ip: Some(src_ip),
            method,
            path: Some(path),
            args: Some(arguments),
            headers: Some(headers),
            conf_token: token,
        };
        let root = httpreq_call::Req::create(&mut self.builder, &args);
        self.builder.finish_minimal(root);
        Ok(self.builder.finished_data())
    }

    /// The payload of an HTTPRespCall.
    pub fn response(&mut self, call: &ResponseCall<'_>, id: u32, token: u32) -> &[u8] {
        self.start();
        let each = call.head.map(|name, value| {
            let name = match name {
                HeaderNameVariant::Case(name) => name.as_slice(),
                HeaderNameVariant::Titled(name) => name.as_bytes(),
            };
            self.entry(name, Some(value.as_bytes()));
            Ok(())
        });
        each.expect("the closure never fails");
        let headers = Some(self.vector());
        let status = call.head.status.as_u16();
        let args = httpresp_call::ReqArgs { id, status, headers, conf_token: token };
        let root = httpresp_call::Req::create(&mut self.builder, &args);
        self.builder.finish_minimal(root);
        self.builder.finished_data()
    }

    /// The payload that answers a question; `None`: there is no such value.
    pub fn answer(&mut self, result: Option<&[u8]>) -> &[u8] {
        self.start();
        let result = result.map(|bytes| self.builder.create_vector(bytes));
        let root = extra_info::Resp::create(&mut self.builder, &extra_info::RespArgs { result });
        self.builder.finish_minimal(root);
        self.builder.finished_data()
    }

    fn start(&mut self) {
        self.builder.reset();
        self.entries.clear();
    }

    /// Bytes with a zero behind them: what readers expect of a string.
    fn text(&mut self, bytes: &[u8]) -> Text<'static> {
        WIPOffset::new(self.builder.create_byte_string(bytes).value())
    }

    fn entry(&mut self, name: &[u8], value: Option<&[u8]>) {
        let name = Some(self.text(name));
        let value = value.map(|value| self.text(value));
        let entry = a6::TextEntry::create(&mut self.builder, &a6::TextEntryArgs { name, value });
        self.entries.push(entry);
    }

    /// The entries so far as a vector.
    fn vector(&mut self) -> WIPOffset<Vector<'static, flatbuffers::ForwardsUOffset<a6::TextEntry<'static>>>> {
        let vector = self.builder.create_vector(&self.entries);
        self.entries.clear();
        vector
    }
}

/// The number of a method; those that the protocol does not know have none.
fn method_number(method: &Method) -> Option<a6::Method> {
    Some(match method.as_str() {
        "GET" => a6::Method::GET,
        "HEAD" => a6::Method::HEAD,
        "POST" => a6::Method::POST,
        "PUT" => a6::Method::PUT,
        "DELETE" => a6::Method::DELETE,
        "MKCOL" => a6::Method::MKCOL,
        "COPY" => a6::Method::COPY,
        "MOVE" => a6::Method::MOVE,
        "OPTIONS" => a6::Method::OPTIONS,
        "PROPFIND" => a6::Method::PROPFIND,
        "PROPPATCH" => a6::Method::PROPPATCH,
        "LOCK" => a6::Method::LOCK,
        "UNLOCK" => a6::Method::UNLOCK,
        "PATCH" => a6::Method::PATCH,
        "TRACE" => a6::Method::TRACE,
        _ => return None,
    })
}

/// The conf token of a PrepareConf's reply.
///
/// # Errors
/// The payload is none.
pub fn read_token(payload: &Bytes) -> Result<u32, CallError> {
    Ok(root::<prepare_conf::Resp<'_>>(payload)?.conf_token())
}

/// The error that a frame of type [`kind::ERROR`] tells; one that cannot be read is one, too.
pub fn read_error(payload: &Bytes) -> CallError {
    match root::<a6::err::Resp<'_>>(payload) {
        Ok(error) => CallError::Refused(Code::new(error.code().0)),
        Err(error) => error,
    }
}

/// Id and decision of an HTTPReqCall's reply. An action that nobody knows is none.
///
/// # Errors
/// The payload is none.
pub fn read_request_reply(payload: &Bytes) -> Result<(u32, Action), CallError> {
    let reply = root::<httpreq_call::Resp<'_>>(payload)?;
    let action = if let Some(stop) = reply.action_as_stop() {
        Action::Stop(Stop {
            status: stop.status(),
            headers: entries(payload, stop.headers())?,
            body: bytes(payload, stop.body()).unwrap_or_default(),
        })
    } else if let Some(rewrite) = reply.action_as_rewrite() {
        Action::Rewrite(Rewrite {
            path: bytes(payload, rewrite.path()),
            headers: entries(payload, rewrite.headers())?,
            args: entries(payload, rewrite.args())?,
            response_headers: entries(payload, rewrite.resp_headers())?,
            body: bytes(payload, rewrite.body()).unwrap_or_default(),
        })
    } else {
        Action::None
    };
    Ok((reply.id(), action))
}

/// Id and decision of an HTTPRespCall's reply.
///
/// # Errors
/// The payload is none.
pub fn read_response_reply(payload: &Bytes) -> Result<(u32, ResponseChange), CallError> {
    let reply = root::<httpresp_call::Resp<'_>>(payload)?;
    let change = ResponseChange {
        status: reply.status(),
        headers: entries(payload, reply.headers())?,
        body: bytes(payload, reply.body()).unwrap_or_default(),
    };
    Ok((reply.id(), change))
}

/// What the runner asks.
///
/// # Errors
/// The payload is no question, or of a type that nobody knows.
pub fn read_question(payload: &Bytes) -> Result<Question, CallError> {
    let question = root::<extra_info::Req<'_>>(payload)?;
    if let Some(var) = question.info_as_var() {
        let name = var.name().map(|name| String::from_utf8_lossy(name.bytes()).into_owned());
        return Ok(Question::Var(name.unwrap_or_default()));
    }
    match question.info_type() {
        extra_info::Info::ReqBody => Ok(Question::RequestBody),
        extra_info::Info::RespBody => Ok(Question::ResponseBody),
        other => Err(CallError::UnknownQuestion(other.0)),
    }
}

/// The name of a type, for messages and metrics.
pub fn kind_name(number: u8) -> &'static str {
    match number {
        kind::PREPARE_CONF => "prepare_conf",
        kind::HTTP_REQ_CALL => "http_req_call",
        kind::HTTP_RESP_CALL => "http_resp_call",
        kind::EXTRA_INFO => "extra_info",
        kind::ERROR => "error",
        _ => "unknown",
    }
}

fn root<'b, T>(payload: &'b [u8]) -> Result<T, CallError>
where
    T: flatbuffers::Follow<'b, Inner = T> + flatbuffers::Verifiable + 'b,
{
    flatbuffers::root::<T>(payload).map_err(|e| CallError::Malformed(brief(&e.to_string())))
}

/// The verifier tells where it was in several lines; the first says what is wrong.
fn brief(error: &str) -> String {
    error.lines().next().unwrap_or_default().trim().to_owned()
}

fn bytes(payload: &Bytes, found: Option<Vector<'_, u8>>) -> Option<Bytes> {
    found.map(|found| payload.slice_ref(found.bytes()))
}

/// Entries without a name change nothing.
fn entries<'b>(
    payload: &Bytes,
    found: Option<Vector<'b, flatbuffers::ForwardsUOffset<a6::TextEntry<'b>>>>,
) -> Result<Vec<Entry>, CallError> {
    let Some(found) = found else { return Ok(Vec::new()) };
    if found.len() > MAX_ENTRIES {
        return Err(CallError::Malformed(format!("{} entries are too many", found.len())));
    }
    let entry = |entry: a6::TextEntry<'_>| {
        let name = bytes(payload, entry.name())?;
        Some(Entry { name, value: bytes(payload, entry.value()) })
    };
    Ok(found.iter().filter_map(entry).collect())
}

#[cfg(test)]
mod tests;
