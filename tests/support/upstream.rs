//! An upstream node that remembers what it saw and can be told to misbehave.

use std::{
    io::{BufReader, ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    Gate,
    client::{find, read_chunks, read_headers},
};

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its method.
    pub method: String,
    /// Its target, not decoded.
    pub target: String,
    /// In the order they came in.
    pub headers: Vec<(String, String)>,
    /// Without its framing.
    pub body: Vec<u8>,
}

impl Seen {
    /// The first header of a name.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// Every header of a name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }
}

/// The upstream's end of a connection while it answers.
pub struct Wire<'a> {
    stream: &'a mut TcpStream,
    open: bool,
}

impl Wire<'_> {
    /// A response with its length.
    pub fn answer(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        let length = format!("Content-Length: {}\r\n", body.len());
        self.head(status, headers, &length);
        self.raw(body);
    }

    /// A response in chunks, flushed one by one.
    pub fn chunked(&mut self, status: u16, headers: &[(&str, &str)], chunks: &[&[u8]]) {
        self.head(status, headers, "Transfer-Encoding: chunked\r\n");
        for chunk in chunks {
            self.raw(&[format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
        }
        self.raw(b"0\r\n\r\n");
    }

    fn head(&mut self, status: u16, headers: &[(&str, &str)], framing: &str) {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        self.raw(format!("HTTP/1.1 {status} Status\r\n{headers}{framing}\r\n").as_bytes());
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        if self.stream.write_all(bytes).is_err() {
            self.open = false;
        }
    }

    /// Ends the connection after this request.
    pub fn close(&mut self) {
        self.open = false;
    }

    /// Answers nothing until the other side gives up; whether it did. The end comes anyway, before the gateway's usual
    /// time limit of a minute: no test takes that for a limit of its own.
    pub fn hang(&mut self) -> bool {
        let _ = self.stream.set_read_timeout(Some(Duration::from_secs(30)));
        let read = self.stream.read(&mut [0; 16]);
        self.open = false;
        !matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Sends back whatever comes, until the other side ends: a tunnel after 101.
    pub fn echo_bytes(&mut self) {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = self.stream.read(&mut buffer) {
            self.raw(&buffer[..count]);
        }
        self.open = false;
    }
}

type Answer = dyn Fn(&Seen, &mut Wire<'_>) + Send + Sync;

/// A server on a free port of this machine. It ends when it is dropped.
pub struct Upstream {
    /// Where it listens.
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    over: AtomicBool,
    answer: Box<Answer>,
}

impl Upstream {
    /// Tells back what it saw, as JSON: `{"method","uri","headers":{"name":"value"},"body"}`, header names in lower
    /// case. `?status=418` and `?delay=50` (milliseconds) in the target are obeyed.
    pub fn echo() -> Self {
        Self::with(|seen, wire| {
            if let Some(delay) = argument(&seen.target, "delay") {
                std::thread::sleep(Duration::from_millis(delay));
            }
            let status =
                argument(&seen.target, "status").and_then(|code| u16::try_from(code).ok()).unwrap_or(200);
            let body = tell(seen).to_string();
            let headers = [("Content-Type", "application/json"), ("X-Up", "1")];
            // A HEAD has no body whatever its length says.
            let body = if seen.method == "HEAD" { "" } else { &body };
            wire.answer(status, &headers, body.as_bytes());
        })
    }

    /// Answers 200 with its name.
    pub fn named(name: &str) -> Self {
        let name = name.to_owned();
        Self::with(move |_, wire| wire.answer(200, &[], name.as_bytes()))
    }

    /// Answers 200, and what is sent to `/hold` not before the gate is open.
    pub fn holding(gate: &Gate) -> Self {
        let gate = gate.clone();
        Self::with(move |seen, wire| {
            if seen.target == "/hold" {
                gate.pass();
            }
            wire.answer(200, &[], b"");
        })
    }

    /// Answers as it is told.
    pub fn with(answer: impl Fn(&Seen, &mut Wire<'_>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Self::on(listener, answer)
    }

    /// As [`Upstream::with`], on a port that the caller chose.
    pub fn on(listener: TcpListener, answer: impl Fn(&Seen, &mut Wire<'_>) + Send + Sync + 'static) -> Self {
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            answer: Box::new(answer),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.over.load(Ordering::Relaxed) {
                    return;
                }
                let connection = serving.clone();
                std::thread::spawn(move || connection.serve(stream));
            }
        });
        Self { port, shared }
    }

    /// `127.0.0.1:PORT`.
    pub fn node(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// An upstream resource with this node alone.
    pub fn resource(&self) -> Value {
        json!({"type": "roundrobin", "nodes": {self.node(): 1}})
    }

    /// Everything seen so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// The newest request.
    #[track_caller]
    pub fn last(&self) -> Seen {
        self.shared.seen.lock().unwrap().last().cloned().expect("no request reached the upstream")
    }

    /// How many requests came.
    pub fn count(&self) -> usize {
        self.shared.seen.lock().unwrap().len()
    }

    /// Forgets what was seen, for tests with many requests.
    pub fn forget(&self) {
        self.shared.seen.lock().unwrap().clear();
    }

    /// How many connections came.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let _ = stream.set_nodelay(true);
        let Ok(input) = stream.try_clone() else { return };
        let mut input = BufReader::new(input);
        while let Some(seen) = read_request(&mut input, &mut stream) {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            self.seen.lock().unwrap().push(seen.clone());
            let mut wire = Wire { stream: &mut stream, open: true };
            (self.answer)(&seen, &mut wire);
            if !wire.open {
                break;
            }
        }
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

fn read_request(input: &mut BufReader<TcpStream>, out: &mut TcpStream) -> Option<Seen> {
    use std::io::BufRead;
    let mut line = String::new();
    if input.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut parts = line.split_whitespace();
    let (method, target) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let headers = read_headers(input).ok()?;
    if find(&headers, "expect").is_some() {
        out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    let body = if find(&headers, "transfer-encoding").is_some() {
        read_chunks(input).ok()?
    } else {
        let length = find(&headers, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        input.read_exact(&mut body).ok()?;
        body
    };
    Some(Seen { method, target, headers, body })
}

fn argument(target: &str, name: &str) -> Option<u64> {
    let query = target.split_once('?')?.1;
    let found = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    found?.parse().ok()
}

fn tell(seen: &Seen) -> Value {
    let mut headers = serde_json::Map::new();
    for (name, value) in &seen.headers {
        headers.insert(name.to_ascii_lowercase(), json!(value));
    }
    let body = String::from_utf8_lossy(&seen.body);
    let body = if body.len() > 4096 { format!("{} bytes", body.len()) } else { body.into_owned() };
    json!({"method": seen.method, "uri": seen.target, "headers": headers, "body": body})
}
