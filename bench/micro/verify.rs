//! What it costs to believe a signature for the first time, beside what OpenSSL alone takes for it.
//!
//! `cargo bench --bench verify`. Each figure is for one request: with jwt-auth or hmac-auth on the route, less the same
//! request on a route without plugins, so it holds all that the plugin does: finding and reading the token, finding
//! the consumer, verifying, claims. OpenSSL's is one `EVP_DigestVerify`, or one HMAC, of the same bytes with a key that
//! was read before. Every token is another one, and gateways begin without memory; "again" is the same token once more.
//! No statistics: each figure is the best of a few rounds, taken in turns.

use std::{
    hint::black_box,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose};
use http::{HeaderName, HeaderValue};
use openssl::{
    ec::{EcGroup, EcKey},
    ecdsa::EcdsaSig,
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private, Public},
    rsa::Rsa,
    sign::{Signer, Verifier},
};
use pingora::http::RequestHeader;
use pingora_proxy::ProxyHttp;
use portcullis::{proxy::testing, resource::Kind};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 7;
/// Tokens, each of which is seen once in a round.
const TOKENS: usize = 1000;
const SECRET: &[u8] = b"a secret of the bench that is long enough";

/// A way of signing.
struct Case {
    name: &'static str,
    plugin: &'static str,
    /// The consumer's side.
    consumer: Value,
    /// What goes into `Authorization`, and what OpenSSL has to do for it.
    signed: Vec<(String, Work)>,
}

/// What OpenSSL does alone.
enum Work {
    Verify { key: PKey<Public>, message: Vec<u8>, signature: Vec<u8> },
    Mac { key: PKey<Private>, message: Vec<u8>, expected: Vec<u8> },
}

impl Work {
    fn run(&self) -> bool {
        let done = match self {
            Self::Verify { key, message, signature } => Verifier::new(MessageDigest::sha256(), key)
                .and_then(|mut verifier| verifier.verify_oneshot(signature, message)),
            Self::Mac { key, message, expected } => Signer::new(MessageDigest::sha256(), key)
                .and_then(|mut signer| signer.sign_oneshot_to_vec(message))
                .map(|mac| openssl::memcmp::eq(&mac, expected)),
        };
        done.expect("OpenSSL verifies")
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    println!("{:12} {:>12} {:>12} {:>8} {:>12}", "", "OpenSSL ns", "first ns", "ratio", "again ns");
    for case in [rsa(), ecdsa(), hmac(), signature()] {
        let (alone, first, again) = measure(&runtime, &case);
        let each = |time: Duration| time.as_nanos() as f64 / TOKENS as f64;
        let ratio = each(first) / each(alone);
        println!(
            "{:12} {:12.0} {:12.0} {:8.2} {:12.0}",
            case.name,
            each(alone),
            each(first),
            ratio,
            each(again)
        );
    }
}

/// OpenSSL alone, the plugin with new tokens, the plugin with known ones.
fn measure(runtime: &Runtime, case: &Case) -> (Duration, Duration, Duration) {
    let heads = |path: &str| case.signed.iter().map(|(text, _)| head(path, text)).collect::<Vec<_>>();
    let (plain, guarded) = (heads("/plain"), heads("/guarded"));
    let mut best = [Duration::MAX; 4];
    for _ in 0..ROUNDS {
        let start = Instant::now();
        assert!(case.signed.iter().all(|(_, work)| black_box(work.run())));
        let alone = start.elapsed();
        let gateway = testing::gateway(resources(case));
        let run = |heads: &[RequestHeader]| {
            runtime.block_on(async {
                let mut session =
                    testing::session("GET /plain HTTP/1.1\r\nHost: bench.example\r\n\r\n").await;
                let start = Instant::now();
                for head in heads {
                    session.req_header_mut().clone_from(head);
                    let mut ctx = gateway.new_ctx();
                    let answered = gateway
                        .request_filter(&mut session, &mut ctx)
                        .await
                        .expect("no input or output here");
                    assert!(!answered, "{}: every request goes on to the upstream", case.name);
                }
                start.elapsed()
            })
        };
        // The first walk warms what both share.
        run(&plain);
        let times = [alone, run(&plain), run(&guarded), run(&guarded)];
        for (best, time) in best.iter_mut().zip(times) {
            *best = time.min(*best);
        }
    }
    let [alone, plain, first, again] = best;
    (alone, first.saturating_sub(plain), again.saturating_sub(plain))
}

fn head(path: &str, authorization: &str) -> RequestHeader {
    let mut head = RequestHeader::build("GET", path.as_bytes(), Some(8)).expect("a path");
    for (name, value) in [("host", "bench.example"), ("authorization", authorization)] {
        let value = HeaderValue::try_from(value).expect("a header value");
        head.insert_header(HeaderName::from_static(name), value).expect("few headers");
    }
    head
}

fn resources(case: &Case) -> Vec<(Kind, String, Value)> {
    let upstream = json!({"type": "roundrobin", "nodes": {"127.0.0.1:1980": 1}});
    let route = |path: &str, plugins: Value| json!({"id": path, "uri": format!("/{path}"), "plugins": plugins, "upstream": upstream});
    let plugin = case.plugin;
    vec![
        (Kind::Route, "plain".into(), route("plain", json!({}))),
        (Kind::Route, "guarded".into(), route("guarded", json!({plugin: {}}))),
        (Kind::Consumer, "ann".into(), json!({"username": "ann", "plugins": {plugin: case.consumer}})),
    ]
}

fn url64(bytes: &[u8]) -> String {
    general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// What a token of an algorithm signs; no two are the same.
fn unsigned(algorithm: &str, number: usize) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let head = json!({"typ": "JWT", "alg": algorithm}).to_string();
    let body =
        json!({"key": "ann", "exp": now + 3600, "jti": number, "iss": "https://issuer.example"}).to_string();
    format!("{}.{}", url64(head.as_bytes()), url64(body.as_bytes()))
}

fn public(key: &PKey<Private>) -> PKey<Public> {
    PKey::public_key_from_pem(&key.public_key_to_pem().expect("a key")).expect("a key")
}

fn text(pem: Vec<u8>) -> String {
    String::from_utf8(pem).expect("PEM is text")
}

fn rsa() -> Case {
    let key = PKey::from_rsa(Rsa::generate(2048).expect("a key")).expect("a key");
    let signed = (0..TOKENS).map(|number| {
        let message = unsigned("RS256", number);
        let mut signer = Signer::new(MessageDigest::sha256(), &key).expect("a signer");
        let signature = signer.sign_oneshot_to_vec(message.as_bytes()).expect("a signature");
        let token = format!("{message}.{}", url64(&signature));
        (token, Work::Verify { key: public(&key), message: message.into_bytes(), signature })
    });
    let signed = signed.collect();
    let pem = text(key.public_key_to_pem().expect("a key"));
    let consumer = json!({"key": "ann", "algorithm": "RS256", "public_key": pem});
    Case { name: "RS256", plugin: "jwt-auth", consumer, signed }
}

fn ecdsa() -> Case {
    let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("a curve");
    let key = PKey::from_ec_key(EcKey::generate(&curve).expect("a key")).expect("a key");
    let signed = (0..TOKENS).map(|number| {
        let message = unsigned("ES256", number);
        let mut signer = Signer::new(MessageDigest::sha256(), &key).expect("a signer");
        let signature = signer.sign_oneshot_to_vec(message.as_bytes()).expect("a signature");
        let parts = EcdsaSig::from_der(&signature).expect("a signature");
        let half = |number: &openssl::bn::BigNumRef| number.to_vec_padded(32).expect("32 bytes");
        let token = format!("{message}.{}", url64(&[half(parts.r()), half(parts.s())].concat()));
        (token, Work::Verify { key: public(&key), message: message.into_bytes(), signature })
    });
    let signed = signed.collect();
    let pem = text(key.public_key_to_pem().expect("a key"));
    let consumer = json!({"key": "ann", "algorithm": "ES256", "public_key": pem});
    Case { name: "ES256", plugin: "jwt-auth", consumer, signed }
}

fn mac(message: &str) -> (Vec<u8>, Work) {
    let key = PKey::hmac(SECRET).expect("a key");
    let mut signer = Signer::new(MessageDigest::sha256(), &key).expect("a signer");
    let expected = signer.sign_oneshot_to_vec(message.as_bytes()).expect("a signature");
    (expected.clone(), Work::Mac { key, message: message.as_bytes().to_vec(), expected })
}

fn hmac() -> Case {
    let signed = (0..TOKENS).map(|number| {
        let message = unsigned("HS256", number);
        let (signature, work) = mac(&message);
        (format!("{message}.{}", url64(&signature)), work)
    });
    let consumer = json!({"key": "ann", "secret": String::from_utf8_lossy(SECRET)});
    Case { name: "HS256", plugin: "jwt-auth", consumer, signed: signed.collect() }
}

/// hmac-auth in the form that needs no date; all requests are signed alike, and nothing is remembered.
fn signature() -> Case {
    let signed = (0..TOKENS).map(|_| {
        let (signature, work) = mac("GET\n/guarded\n\nann\n-\nhost:bench.example\n");
        let signature = general_purpose::STANDARD.encode(signature);
        (format!("hmac-auth-v1#ann#{signature}#hmac-sha256#-#host"), work)
    });
    let consumer = json!({"access_key": "ann", "secret_key": String::from_utf8_lossy(SECRET)});
    Case { name: "hmac-auth", plugin: "hmac-auth", consumer, signed: signed.collect() }
}
