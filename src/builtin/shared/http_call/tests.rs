//! Calls against servers of the test's own, one thread each.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use openssl::{
    asn1::Asn1Time,
    hash::MessageDigest,
    pkey::PKey,
    rsa::Rsa,
    ssl::{SslAcceptor, SslMethod},
    x509::{X509, X509NameBuilder},
};

use super::*;

/// What the server saw and how often it was connected to.
#[derive(Clone)]
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Answers each request with these bytes; with none, never.
    fn new(answer: impl Into<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Self { address, connections: Arc::default(), seen: Arc::default() };
        let (answer, shared) = (answer.into(), server.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, shared) = (answer.clone(), shared.clone());
                shared.connections.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || serve(stream.unwrap(), &answer, &shared));
            }
        });
        server
    }

    fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.address)
    }
}

fn serve(mut stream: impl Read + Write, answer: &[u8], server: &Server) {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        seen.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&seen).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
        if body.len() < length.parse().unwrap() {
            continue;
        }
        server.seen.lock().unwrap().push(text);
        seen.clear();
        if !answer.is_empty() && stream.write_all(answer).is_err() {
            break;
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn send(options: &Options, call: Call) -> Result<Answer, CallError> {
    let client = Client::new(options).unwrap();
    block_on(client.send(call))
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}";

/// Options that no other test shares connections with.
fn own(seconds: u64) -> Options {
    let keepalive = Keepalive { idle: Duration::from_secs(seconds), pool: 5 };
    Options { keepalive: Some(keepalive), timeout: Duration::from_secs(30), ..Options::default() }
}

#[test]
fn asks_and_hears() {
    let server = Server::new(OK);
    let call = Call::post(server.url("/p?q=1"))
        .header(header::AUTHORIZATION, HeaderValue::from_static("Basic abc"))
        .form([("token", "a b&c"), ("x", "ü")]);
    let answer = send(&own(100), call).unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-length"], "7");
    assert_eq!(answer.json::<serde_json::Value>().unwrap(), serde_json::json!({"a": 1}));
    let seen = server.seen.lock().unwrap()[0].clone();
    assert!(seen.starts_with("POST /p?q=1 HTTP/1.1\r\n"), "{seen}");
    assert!(seen.contains("authorization: Basic abc\r\n"), "{seen}");
    assert!(seen.contains("content-type: application/x-www-form-urlencoded\r\n"), "{seen}");
    assert!(seen.ends_with("\r\n\r\ntoken=a+b%26c&x=%C3%BC"), "{seen}");
}

#[test]
fn follows_no_redirect() {
    let server = Server::new("HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n");
    let answer = send(&own(101), Call::get(server.url("/"))).unwrap();
    assert_eq!((answer.status.as_u16(), server.seen.lock().unwrap().len()), (302, 1));
    assert!(answer.json::<serde_json::Value>().unwrap_err().contains("line 1 column 0"));
}

#[test]
fn connections_are_shared_by_configurations_and_runtimes() {
    let server = Server::new(OK);
    let (one, other) = (Client::new(&own(102)).unwrap(), Client::new(&own(102)).unwrap());
    let (opened, wait_opened) = std::sync::mpsc::channel();
    let (finish, wait_finish) = tokio::sync::oneshot::channel::<()>();
    let url = server.url("/");
    // The first runtime goes on running while the second one uses its connection.
    let first = std::thread::spawn(move || {
        block_on(async move {
            one.send(Call::get(url)).await.unwrap();
            opened.send(()).unwrap();
            wait_finish.await.unwrap();
        });
    });
    wait_opened.recv().unwrap();
    // How many connections a call opens.
    let opens = || {
        let before = server.connections.load(Ordering::SeqCst);
        block_on(other.send(Call::get(server.url("/")))).unwrap();
        server.connections.load(Ordering::SeqCst) - before
    };
    // A connection is put back a moment after its answer was read.
    assert!((0..100).any(|_| opens() == 0));
    // And when the first one is gone, its connection is not missed.
    finish.send(()).unwrap();
    first.join().unwrap();
    assert_eq!(opens(), 1);
}

#[test]
fn connections_are_kept_only_where_asked_for() {
    let server = Server::new(OK);
    let client = Client::new(&Options { keepalive: None, ..own(0) }).unwrap();
    block_on(async {
        for _ in 0..2 {
            client.send(Call::get(server.url("/"))).await.unwrap();
        }
    });
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
}

#[track_caller]
fn fails(options: &Options, url: &str, expected: &str) {
    let text = send(options, Call::get(url)).unwrap_err().to_string();
    let mut rest = text.as_str();
    for part in expected.split('*') {
        let at = rest.find(part).unwrap_or_else(|| panic!("{expected}: {text}"));
        rest = &rest[at + part.len()..];
    }
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn says_what_failed_and_no_secret() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = own(103);
    fails(&options, &format!("http://user:secret@{free}/secret"), "no connection to 127.0.0.1:*: *refused");
    fails(&options, "ftp://secret/", "not an address that can be called");
    fails(&options, "secret", "not an address that can be called: relative URL");
    fails(&options, "http://does-not-exist.invalid/?secret", "no connection to does-not-exist.invalid:80: ");
    let garbage = Server::new("hello\r\n\r\n");
    fails(&options, &garbage.url("/secret"), "127.0.0.1:* broke off: ");
    let halved = Server::new("HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{");
    let limited = Options { timeout: Duration::from_millis(200), ..own(104) };
    fails(&limited, &halved.url("/secret"), "127.0.0.1:* did not answer within 200 ms");
    fails(&limited, &Server::new("").url("/secret"), "127.0.0.1:* did not answer within 200 ms");
}

#[test]
fn bodies_are_bounded() {
    let small = Options { max_body: 6, ..own(105) };
    fails(&small, &Server::new(OK).url("/"), "127.0.0.1:* answered with more than 6 bytes");
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n4\r\nefgh\r\n0\r\n\r\n";
    fails(&small, &Server::new(chunked).url("/"), "answered with more than 6 bytes");
    assert_eq!(send(&own(105), Call::get(Server::new(chunked).url("/"))).unwrap().body, "abcdefgh");
}

/// A server whose certificate nobody vouches for.
fn self_signed() -> SocketAddr {
    let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "localhost").unwrap();
    let name = name.build();
    let mut certificate = X509::builder().unwrap();
    certificate.set_subject_name(&name).unwrap();
    certificate.set_issuer_name(&name).unwrap();
    certificate.set_pubkey(&key).unwrap();
    certificate.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    certificate.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    certificate.sign(&key, MessageDigest::sha256()).unwrap();
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor.set_private_key(&key).unwrap();
    acceptor.set_certificate(&certificate.build()).unwrap();
    let acceptor = acceptor.build();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server { address, connections: Arc::default(), seen: Arc::default() };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            if let Ok(stream) = acceptor.accept(stream.unwrap()) {
                serve(stream, OK.as_bytes(), &server);
            }
        }
    });
    address
}

#[test]
fn certificates_are_verified() {
    let url = format!("https://localhost:{}/secret", self_signed().port());
    fails(&own(106), &url, "no connection to localhost:*: *certificate verify failed");
    let trusting = Options { verify: false, ..own(106) };
    assert_eq!(send(&trusting, Call::get(url)).unwrap().status, 200);
}

#[test]
fn goes_through_a_proxy_when_told() {
    let server = Server::new(OK);
    let proxy = Proxy {
        http: Some(server.url("")),
        http_authorization: Some("Basic secret".into()),
        except: Some("direct.invalid".into()),
        ..Proxy::default()
    };
    let options = Options { proxy: Some(proxy.clone()), ..own(107) };
    assert_eq!(send(&options, Call::get("http://somewhere.invalid/x")).unwrap().status, 200);
    let seen = server.seen.lock().unwrap()[0].clone();
    assert!(seen.starts_with("GET http://somewhere.invalid/x HTTP/1.1\r\n"), "{seen}");
    assert!(seen.contains("proxy-authorization: Basic secret\r\n"), "{seen}");
    fails(&options, "http://direct.invalid/", "no connection to direct.invalid:80");
    assert!(!format!("{proxy:?}").contains("secret"));
    let wrong = Options { proxy: Some(Proxy { http: Some("::".into()), ..Proxy::default() }), ..own(108) };
    assert!(Client::new(&wrong).is_err());
}
