//! A runner of external plugins that does what the configuration of its plugins says: answer, change, ask, or fail in
//! any way a runner can fail. Tests start it as users start theirs; benchmarks measure the wire with it.
//!
//! Its plugins, by name; values are JSON unless said otherwise:
//! - `nothing`: no change.
//! - `stop`: `{"status", "headers": [[name, value|null]], "body"}`.
//! - `rewrite`: `{"path", "headers", "args", "resp_headers": [[name, value|null]], "body"}`.
//! - `respond`: the same as `stop`, for a response.
//! - `echo`: a stop whose body tells what was received.
//! - `ask`: `["var:NAME", "reqbody", "respbody"]`; a stop (or a response's body) with the answers.
//! - `look`: the same questions, but no change.
//! - `fault`: text; see [`Fault`].
//!
//! With `FORGET_AFTER` in its environment it forgets each configuration after so many calls.
//!
//! Several of them run in order; the first that decides ends it. It listens on `APISIX_LISTEN_ADDRESS`.

#![allow(clippy::unwrap_used)]

#[path = "../src/ext_plugin/proto.rs"]
#[allow(unsafe_code, missing_docs, unused, clippy::all, clippy::unwrap_used)]
mod proto;

use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, Vector, WIPOffset};
use proto::a6::{self, err, extra_info, httpreq_call, httpresp_call, prepare_conf};
use serde_json::{Value, json};

const ERROR: u8 = 0;
const PREPARE_CONF: u8 = 1;
const HTTP_REQ_CALL: u8 = 2;
const EXTRA_INFO: u8 = 3;
const HTTP_RESP_CALL: u8 = 4;

/// What the plugin `fault` does; `error:N` answers an error, `sleep:N` waits milliseconds and changes nothing,
/// `hang_while:FILE` and `wait_while:FILE` do what they say.
#[derive(Clone, PartialEq)]
enum Fault {
    /// Never answers.
    Hang,
    /// Closes the connection.
    Close,
    /// Closes it when the connection is used for the second call or later.
    CloseReused,
    /// Answers bytes that are no message.
    Garbage,
    /// Announces more than it sends, then closes.
    Half,
    /// Sends two bytes of the header, then closes.
    HalfHeader,
    /// A frame of a type that there is not.
    WrongType,
    /// Another call's reply.
    WrongId,
    /// A reply with id 0.
    NoId,
    /// A stray frame behind the reply.
    Twice,
    /// Answers PrepareConf twice and goes on, as the Java runner does.
    PrepareTwice,
    /// A question of a type that there is not.
    OddQuestion,
    /// Ends the process.
    Exit,
    /// Does not know the token of the first so many calls.
    Forget(usize),
    Error(u8),
    Sleep(u64),
    /// Never answers what comes while there is this file.
    HangWhile(String),
    /// Answers nothing while there is this file.
    WaitWhile(String),
}

fn fault(text: &str) -> Fault {
    let (word, number) = text.split_once(':').unwrap_or((text, "0"));
    match word {
        "hang_while" => return Fault::HangWhile(number.into()),
        "wait_while" => return Fault::WaitWhile(number.into()),
        _ => {}
    }
    let number: u64 = number.parse().expect("a number");
    match word {
        "hang" => Fault::Hang,
        "close" => Fault::Close,
        "close_reused" => Fault::CloseReused,
        "garbage" => Fault::Garbage,
        "half" => Fault::Half,
        "half_header" => Fault::HalfHeader,
        "wrong_type" => Fault::WrongType,
        "wrong_id" => Fault::WrongId,
        "no_id" => Fault::NoId,
        "twice" => Fault::Twice,
        "prepare_twice" => Fault::PrepareTwice,
        "odd_question" => Fault::OddQuestion,
        "exit" => Fault::Exit,
        "forget" => Fault::Forget(number as usize),
        "error" => Fault::Error(number as u8),
        "sleep" => Fault::Sleep(number),
        _ => panic!("no fault is called {text}"),
    }
}

enum Plugin {
    Nothing,
    Stop(Value),
    Rewrite(Value),
    Respond(Value),
    Echo,
    Ask(Vec<String>),
    Look(Vec<String>),
    Fault(Fault),
}

fn plugin(name: &str, value: &str) -> Option<Plugin> {
    let json = || serde_json::from_str::<Value>(value).expect("JSON");
    Some(match name {
        "nothing" => Plugin::Nothing,
        "stop" => Plugin::Stop(json()),
        "rewrite" => Plugin::Rewrite(json()),
        "respond" => Plugin::Respond(json()),
        "echo" => Plugin::Echo,
        "ask" => Plugin::Ask(serde_json::from_str(value).expect("a list")),
        "look" => Plugin::Look(serde_json::from_str(value).expect("a list")),
        "fault" => Plugin::Fault(fault(value)),
        _ => return None,
    })
}

struct Conf {
    since: Instant,
    calls: AtomicUsize,
    key: String,
    plugins: Vec<Plugin>,
    forgotten: AtomicUsize,
}

/// What all connections share.
struct Runner {
    confs: Mutex<HashMap<u32, Arc<Conf>>>,
    next_token: AtomicU32,
    calls: AtomicUsize,
    connections: AtomicUsize,
    forget_after: usize,
    /// How long a configuration is kept.
    expire: Duration,
}

/// A reply: type and payload; nothing ends the connection.
type Reply = Option<(u8, Vec<u8>)>;

struct Connection<'a> {
    runner: &'a Runner,
    stream: UnixStream,
    calls: usize,
}

fn main() {
    let address = std::env::var("APISIX_LISTEN_ADDRESS").expect("APISIX_LISTEN_ADDRESS");
    let path = address.strip_prefix("unix:").unwrap_or(&address).to_owned();
    let listener = UnixListener::bind(&path).expect("the socket can be made");
    let expire = std::env::var("APISIX_CONF_EXPIRE_TIME").unwrap_or_default();
    eprintln!("stub runner listens, expire time {expire}, greeting {:?}", std::env::var("GREETING").ok());
    let runner = Arc::new(Runner {
        confs: Mutex::default(),
        // No process knows the tokens of another.
        next_token: AtomicU32::new(std::process::id().wrapping_mul(7919) | 1),
        calls: AtomicUsize::new(0),
        connections: AtomicUsize::new(0),
        forget_after: std::env::var("FORGET_AFTER")
            .map_or(usize::MAX, |text| text.parse().expect("a number")),
        expire: Duration::from_secs(expire.parse().unwrap_or(3600)),
    });
    for stream in listener.incoming() {
        let (stream, runner) = (stream.expect("a connection"), runner.clone());
        std::thread::spawn(move || {
            runner.connections.fetch_add(1, Relaxed);
            Connection { runner: &runner, stream, calls: 0 }.serve();
            runner.connections.fetch_sub(1, Relaxed);
        });
    }
}

impl Connection<'_> {
    fn serve(&mut self) {
        let mut builder = FlatBufferBuilder::new();
        let mut buffer = Vec::new();
        while let Some(kind) = self.receive(&mut buffer) {
            let reply = match kind {
                PREPARE_CONF => self.prepare(&buffer),
                HTTP_REQ_CALL | HTTP_RESP_CALL => self.call(kind, &buffer, &mut builder),
                other => panic!("a frame of type {other}"),
            };
            let Some((kind, payload)) = reply else { return };
            if self.send(kind, &payload).is_err() {
                return;
            }
        }
    }

    /// One read for header and payload where they came together, as they should.
    fn receive(&mut self, buffer: &mut Vec<u8>) -> Option<u8> {
        buffer.resize(64 << 10, 0);
        let first = loop {
            match self.stream.read(buffer) {
                Ok(0) => return None,
                Ok(count) => break count,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        };
        assert!(first >= 4, "the header came in pieces");
        let kind = buffer[0];
        let length = u32::from_be_bytes([0, buffer[1], buffer[2], buffer[3]]) as usize;
        if first < 4 + length {
            buffer.resize(4 + length, 0);
            self.stream.read_exact(&mut buffer[first..]).ok()?;
        }
        assert!(first <= 4 + length, "two frames at once");
        buffer.truncate(4 + length);
        buffer.drain(..4);
        Some(kind)
    }

    fn send(&mut self, kind: u8, payload: &[u8]) -> std::io::Result<()> {
        let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
        self.stream.write_all(&[&[kind, a, b, c], payload].concat())
    }

    fn prepare(&mut self, payload: &[u8]) -> Reply {
        let request = flatbuffers::root::<prepare_conf::Req<'_>>(payload).expect("a PrepareConf");
        let entries = request.conf().map(pairs).unwrap_or_default();
        let plugins: Vec<Plugin> =
            entries.iter().filter_map(|(name, value)| plugin(name, value.as_ref()?)).collect();
        let twice = plugins.iter().any(|plugin| matches!(plugin, Plugin::Fault(Fault::PrepareTwice)));
        let key = text(request.key().expect("a key"));
        let token = self.runner.next_token.fetch_add(1, Relaxed);
        let conf = Conf {
            calls: AtomicUsize::new(0),
            key,
            plugins,
            forgotten: AtomicUsize::new(0),
            since: Instant::now(),
        };
        self.runner.confs.lock().unwrap().insert(token, Arc::new(conf));
        let mut builder = FlatBufferBuilder::new();
        let root = prepare_conf::Resp::create(&mut builder, &prepare_conf::RespArgs { conf_token: token });
        builder.finish(root, None);
        if twice {
            let _ = self.send(PREPARE_CONF, builder.finished_data());
        }
        Some((PREPARE_CONF, builder.finished_data().to_vec()))
    }

    fn call(&mut self, kind: u8, payload: &[u8], builder: &mut FlatBufferBuilder<'_>) -> Reply {
        self.calls += 1;
        self.runner.calls.fetch_add(1, Relaxed);
        let (id, token, received) = self.received(kind, payload);
        let Some(conf) = self.runner.confs.lock().unwrap().get(&token).cloned() else {
            return error(2);
        };
        let spent = conf.calls.fetch_add(1, Relaxed) >= self.runner.forget_after;
        if spent || conf.since.elapsed() >= self.runner.expire {
            self.runner.confs.lock().unwrap().remove(&token);
            return error(2);
        }
        let mut decision = Decision::None;
        for plugin in &conf.plugins {
            decision = match plugin {
                Plugin::Nothing => continue,
                Plugin::Stop(value) | Plugin::Respond(value) => Decision::Stop(value.clone()),
                Plugin::Rewrite(value) => Decision::Rewrite(value.clone()),
                Plugin::Echo => Decision::Stop(json!({"body": self.tell(received(), &conf)})),
                Plugin::Ask(questions) => Decision::Stop(json!({"body": self.ask(questions)?.to_string()})),
                Plugin::Look(questions) => {
                    self.ask(questions)?;
                    continue;
                }
                Plugin::Fault(fault) => match self.fail(fault, kind, id, &conf) {
                    Failed::Goes => continue,
                    Failed::Answers(reply) => return reply,
                },
            };
            break;
        }
        Some((kind, decision.encode(kind, id, builder)))
    }

    /// Id, token, and what else there is, as JSON.
    fn received<'p>(&self, kind: u8, payload: &'p [u8]) -> (u32, u32, Box<dyn Fn() -> Value + 'p>) {
        if kind == HTTP_REQ_CALL {
            let call = flatbuffers::root::<httpreq_call::Req<'_>>(payload).expect("an HTTPReqCall");
            let tell = move || {
                json!({
                    "id": call.id(),
                    "src_ip": call.src_ip().map(|ip| ip.bytes().to_vec()),
                    "method": call.method().variant_name(),
                    "path": call.path().map(text),
                    "args": call.args().map(pairs),
                    "headers": call.headers().map(pairs),
                })
            };
            return (call.id(), call.conf_token(), Box::new(tell));
        }
        let call = flatbuffers::root::<httpresp_call::Req<'_>>(payload).expect("an HTTPRespCall");
        let tell =
            move || json!({"id": call.id(), "status": call.status(), "headers": call.headers().map(pairs)});
        (call.id(), call.conf_token(), Box::new(tell))
    }

    fn tell(&self, mut received: Value, conf: &Conf) -> String {
        received["pid"] = std::process::id().into();
        received["key"] = conf.key.as_str().into();
        received["confs"] = self.runner.confs.lock().unwrap().len().into();
        received["connections"] = self.runner.connections.load(Relaxed).into();
        received["calls_of_connection"] = self.calls.into();
        received.to_string()
    }

    fn ask(&mut self, questions: &[String]) -> Option<Value> {
        let mut answers = Vec::new();
        for question in questions {
            let mut builder = FlatBufferBuilder::new();
            let (info_type, info) = match question.as_str() {
                "reqbody" => {
                    let info = extra_info::ReqBody::create(&mut builder, &extra_info::ReqBodyArgs {});
                    (extra_info::Info::ReqBody, info.as_union_value())
                }
                "respbody" => {
                    let info = extra_info::RespBody::create(&mut builder, &extra_info::RespBodyArgs {});
                    (extra_info::Info::RespBody, info.as_union_value())
                }
                var => {
                    let name = var.strip_prefix("var:").expect("var:NAME");
                    let name = Some(string(&mut builder, name));
                    let info = extra_info::Var::create(&mut builder, &extra_info::VarArgs { name });
                    (extra_info::Info::Var, info.as_union_value())
                }
            };
            let request = extra_info::ReqArgs { info_type, info: Some(info) };
            let root = extra_info::Req::create(&mut builder, &request);
            builder.finish(root, None);
            self.send(EXTRA_INFO, builder.finished_data()).ok()?;
            let mut buffer = Vec::new();
            assert_eq!(self.receive(&mut buffer)?, EXTRA_INFO);
            let answer = flatbuffers::root::<extra_info::Resp<'_>>(&buffer).expect("an answer");
            answers.push(match answer.result() {
                None => Value::Null,
                Some(bytes) if bytes.len() > 1000 => json!({"length": bytes.len()}),
                Some(bytes) => text(bytes).into(),
            });
        }
        Some(answers.into())
    }

    fn fail(&mut self, fault: &Fault, kind: u8, id: u32, conf: &Conf) -> Failed {
        let mut builder = FlatBufferBuilder::new();
        let reply = match fault {
            Fault::HangWhile(file) if !Path::new(file).exists() => return Failed::Goes,
            Fault::Hang | Fault::HangWhile(_) => {
                // Until the gateway goes away.
                let _ = self.stream.read(&mut [0]);
                None
            }
            Fault::WaitWhile(file) => {
                while Path::new(file).exists() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                return Failed::Goes;
            }
            Fault::Close => None,
            Fault::CloseReused if self.calls > 1 => None,
            Fault::CloseReused => return Failed::Goes,
            Fault::Garbage => Some((kind, vec![0xff; 40])),
            Fault::Half => {
                let _ = self.stream.write_all(&[kind, 0, 1, 0, 1, 2, 3]);
                None
            }
            Fault::HalfHeader => {
                let _ = self.stream.write_all(&[kind, 0]);
                None
            }
            Fault::WrongType => Some((9, Vec::new())),
            Fault::WrongId => Some((kind, Decision::None.encode(kind, id + 1, &mut builder))),
            Fault::NoId => Some((kind, Decision::None.encode(kind, 0, &mut builder))),
            Fault::Twice => {
                let reply = Decision::None.encode(kind, id, &mut builder);
                let _ = self.send(kind, &reply);
                Some((kind, reply))
            }
            Fault::PrepareTwice => return Failed::Goes,
            Fault::OddQuestion => {
                let request =
                    extra_info::ReqArgs { info_type: extra_info::Info(9), info: Some(empty(&mut builder)) };
                let root = extra_info::Req::create(&mut builder, &request);
                builder.finish(root, None);
                Some((EXTRA_INFO, builder.finished_data().to_vec()))
            }
            Fault::Exit => std::process::exit(3),
            Fault::Forget(times) if conf.forgotten.fetch_add(1, Relaxed) < *times => error(2),
            Fault::Forget(_) => return Failed::Goes,
            Fault::Error(code) => error(*code),
            Fault::Sleep(time) => {
                std::thread::sleep(Duration::from_millis(*time));
                return Failed::Goes;
            }
        };
        Failed::Answers(reply)
    }
}

/// What a fault leads to.
enum Failed {
    /// The next plugin.
    Goes,
    Answers(Reply),
}

enum Decision {
    None,
    Stop(Value),
    Rewrite(Value),
}

impl Decision {
    fn encode(self, kind: u8, id: u32, builder: &mut FlatBufferBuilder<'_>) -> Vec<u8> {
        builder.reset();
        if kind == HTTP_RESP_CALL {
            let value = if let Decision::Stop(value) = &self { value } else { &Value::Null };
            let headers = entries(builder, &value["headers"]);
            let body = bytes(builder, &value["body"]);
            let status = value["status"].as_u64().unwrap_or(0) as u16;
            let reply = httpresp_call::RespArgs { id, status, headers, body };
            let root = httpresp_call::Resp::create(builder, &reply);
            builder.finish(root, None);
            return builder.finished_data().to_vec();
        }
        let (action_type, action) = match &self {
            Decision::None => (httpreq_call::Action::NONE, None),
            Decision::Stop(value) => {
                let headers = entries(builder, &value["headers"]);
                let body = bytes(builder, &value["body"]);
                let status = value["status"].as_u64().unwrap_or(0) as u16;
                let stop =
                    httpreq_call::Stop::create(builder, &httpreq_call::StopArgs { status, headers, body });
                (httpreq_call::Action::Stop, Some(stop.as_union_value()))
            }
            Decision::Rewrite(value) => {
                let path = value["path"].as_str().map(|path| string(builder, path));
                let rewrite = httpreq_call::RewriteArgs {
                    path,
                    headers: entries(builder, &value["headers"]),
                    args: entries(builder, &value["args"]),
                    resp_headers: entries(builder, &value["resp_headers"]),
                    body: bytes(builder, &value["body"]),
                };
                let rewrite = httpreq_call::Rewrite::create(builder, &rewrite);
                (httpreq_call::Action::Rewrite, Some(rewrite.as_union_value()))
            }
        };
        let reply = httpreq_call::RespArgs { id, action_type, action };
        let root = httpreq_call::Resp::create(builder, &reply);
        builder.finish(root, None);
        builder.finished_data().to_vec()
    }
}

fn error(code: u8) -> Reply {
    let mut builder = FlatBufferBuilder::new();
    let root = err::Resp::create(&mut builder, &err::RespArgs { code: err::Code(code) });
    builder.finish(root, None);
    Some((ERROR, builder.finished_data().to_vec()))
}

fn empty(builder: &mut FlatBufferBuilder<'_>) -> WIPOffset<flatbuffers::UnionWIPOffset> {
    extra_info::ReqBody::create(builder, &extra_info::ReqBodyArgs {}).as_union_value()
}

type Entries<'b> = Vector<'b, ForwardsUOffset<a6::TextEntry<'b>>>;

fn string<'b>(builder: &mut FlatBufferBuilder<'b>, text: &str) -> WIPOffset<Vector<'b, u8>> {
    WIPOffset::new(builder.create_string(text).value())
}

fn bytes<'b>(builder: &mut FlatBufferBuilder<'b>, value: &Value) -> Option<WIPOffset<Vector<'b, u8>>> {
    value.as_str().map(|text| builder.create_vector(text.as_bytes()))
}

fn entries<'b>(builder: &mut FlatBufferBuilder<'b>, list: &Value) -> Option<WIPOffset<Entries<'b>>> {
    let list = list.as_array()?;
    let mut all = Vec::new();
    for pair in list {
        let name = pair[0].as_str().map(|name| string(builder, name));
        let value = pair[1].as_str().map(|value| string(builder, value));
        all.push(a6::TextEntry::create(builder, &a6::TextEntryArgs { name, value }));
    }
    Some(builder.create_vector(&all))
}

fn text(bytes: Vector<'_, u8>) -> String {
    String::from_utf8_lossy(bytes.bytes()).into_owned()
}

fn pairs(entries: Entries<'_>) -> Vec<(String, Option<String>)> {
    entries.iter().map(|entry| (text(entry.name().expect("a name")), entry.value().map(text))).collect()
}
