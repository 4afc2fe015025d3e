//! A DNS server with a few names, for upstream nodes that are domains.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

/// Answers A queries; every other type gets an empty answer, unknown names NXDOMAIN.
pub struct Dns {
    /// Where it listens, by UDP.
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    names: Mutex<HashMap<String, Vec<Ipv4Addr>>>,
    queries: AtomicUsize,
    over: AtomicBool,
}

impl Dns {
    /// Starts with these names.
    pub fn start(names: &[(&str, &[Ipv4Addr])]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout can be set");
        let port = socket.local_addr().expect("a bound socket has an address").port();
        let shared = Arc::new(Shared::default());
        let server = Self { port, shared: shared.clone() };
        for (name, addresses) in names {
            server.set(name, addresses);
        }
        std::thread::spawn(move || {
            let mut packet = [0; 512];
            while !shared.over.load(Ordering::Relaxed) {
                let Ok((count, from)) = socket.recv_from(&mut packet) else { continue };
                shared.queries.fetch_add(1, Ordering::Relaxed);
                if let Some(answer) = shared.answer(&packet[..count]) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        server
    }

    /// Changes a name; no addresses: it is gone.
    pub fn set(&self, name: &str, addresses: &[Ipv4Addr]) {
        self.shared.names.lock().unwrap().insert(name.to_owned(), addresses.to_vec());
    }

    /// How many questions came.
    pub fn queries(&self) -> usize {
        self.shared.queries.load(Ordering::Relaxed)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    /// RFC 1035: the question is repeated, the answers point to its name.
    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let (name, end) = question(query)?;
        let is_a = query.get(end..end + 2)? == [0, 1];
        let addresses = self.names.lock().unwrap().get(&name).cloned().filter(|known| !known.is_empty());
        let code = if addresses.is_some() { 0 } else { 3 };
        let addresses = addresses.filter(|_| is_a).unwrap_or_default();
        let mut out = query.get(..2)?.to_vec();
        out.extend_from_slice(&[0x81, 0x80 | code, 0, 1, 0, u8::try_from(addresses.len()).ok()?, 0, 0, 0, 0]);
        out.extend_from_slice(query.get(12..end + 4)?);
        for address in addresses {
            out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
            out.extend_from_slice(&address.octets());
        }
        Some(out)
    }
}

/// The name asked for, in lower case, and where its type stands.
fn question(query: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
}
