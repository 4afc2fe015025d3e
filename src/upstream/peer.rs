//! From a picked address to a Pingora peer.
//!
//! Everything that does not depend on the request is put together once, in a [`PeerTemplate`]; a request clones it.
//! Upstreams with the same settings share one: it is large, and most configurations have a handful of settings.
//! Invariant: peers are made from socket addresses only, since Pingora resolves strings in the calling thread.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    net::SocketAddr,
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
};

use ahash::AHasher;
use pingora::{
    protocols::l4::socket::SocketAddr as PeerAddr,
    tls::{pkey::PKey, x509::X509},
    upstreams::peer::{HttpPeer, Scheme as PeerScheme},
    utils::tls::CertKey,
};

use super::{
    conf::{ClientCert, KeepaliveConf, Scheme, TimeoutConf, UpstreamConf, UpstreamDefaults, seconds},
    node::parse_ip,
    upgrade,
};

/// Requests that may share one HTTP/2 connection, if the node allows as many.
const H2_STREAMS: usize = 100;

/// What a request wants differently from its upstream.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeerOverride<'a> {
    /// The timeouts of the route.
    pub timeout: Option<&'a TimeoutConf>,
    /// The scheme a plugin chose.
    pub scheme: Option<Scheme>,
    /// The connection may become a tunnel (WebSocket).
    pub upgrade: bool,
}

/// A peer but for its address.
pub(super) struct PeerTemplate {
    peer: HttpPeer,
    keepalive: KeepaliveConf,
    /// Kept for requests that change to a TLS scheme.
    client: Option<Arc<CertKey>>,
    /// Why there can be no peer.
    fault: Option<PeerFault>,
}

/// What is answered where there can be no peer.
pub struct PeerFault {
    /// The status for the client.
    pub status: u16,
    /// The reason for the log.
    pub reason: String,
}

/// All that tells two templates without TLS settings of their own apart.
#[derive(PartialEq, Eq, Hash)]
struct Settings {
    scheme: Scheme,
    /// The bits of the seconds.
    timeout: [u64; 3],
    keepalive: (u32, u64, u32),
}

impl Settings {
    fn of(conf: &UpstreamConf, defaults: &UpstreamDefaults) -> Settings {
        let timeout = conf.timeout.unwrap_or(defaults.timeout);
        let keepalive = conf.keepalive_pool.unwrap_or(defaults.keepalive);
        Settings {
            scheme: conf.scheme,
            timeout: [timeout.connect, timeout.send, timeout.read].map(f64::to_bits),
            keepalive: (keepalive.size, keepalive.idle_timeout.to_bits(), keepalive.requests),
        }
    }
}

/// Templates in use. Locked while a configuration is compiled, never per request.
static IN_USE: LazyLock<Mutex<HashMap<Settings, Weak<PeerTemplate>>>> = LazyLock::new(Mutex::default);

impl PeerTemplate {
    /// The template for these settings: the one in use, or a new one.
    ///
    /// # Errors
    /// As [`PeerTemplate::compile`].
    pub(super) fn shared(
        conf: &UpstreamConf,
        defaults: &UpstreamDefaults,
    ) -> Result<Arc<PeerTemplate>, String> {
        if conf.tls.is_some() {
            return PeerTemplate::compile(conf, defaults).map(Arc::new);
        }
        let settings = Settings::of(conf, defaults);
        let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(template) = in_use.get(&settings).and_then(Weak::upgrade) {
            return Ok(template);
        }
        if in_use.len() == in_use.capacity() {
            // Before it grows for the sake of templates that nobody has any more.
            in_use.retain(|_, template| template.strong_count() > 0);
        }
        let template = Arc::new(PeerTemplate::compile(conf, defaults)?);
        in_use.insert(settings, Arc::downgrade(&template));
        Ok(template)
    }

    /// # Errors
    /// For a client certificate or key that cannot be read.
    fn compile(conf: &UpstreamConf, defaults: &UpstreamDefaults) -> Result<PeerTemplate, String> {
        let timeout = conf.timeout.unwrap_or(defaults.timeout);
        let keepalive = conf.keepalive_pool.unwrap_or(defaults.keepalive);
        let (client, fault) = match conf.tls.as_ref().map(|tls| &tls.client) {
            None | Some(ClientCert::None) => (None, None),
            Some(ClientCert::Pair { cert, key }) => (Some(certificate(cert, key)?), None),
            Some(ClientCert::Missing { status, reason }) => {
                (None, Some(PeerFault { status: *status, reason: reason.clone() }))
            }
        };
        let placeholder = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut peer = HttpPeer::new(placeholder, false, String::new());
        let verify = conf.tls.as_ref().is_some_and(|tls| tls.verify);
        peer.options.verify_cert = verify;
        peer.options.verify_hostname = verify;
        peer.options.idle_timeout = Some(seconds(keepalive.idle_timeout));
        set_timeouts(&mut peer, &timeout);
        let mut template = PeerTemplate { peer, keepalive, client, fault };
        let mut peer = template.peer.clone();
        template.set_scheme(&mut peer, conf.scheme);
        template.peer = peer;
        Ok(template)
    }

    /// Why there can be no peer, if so.
    pub(super) fn fault(&self) -> Option<&PeerFault> {
        self.fault.as_ref()
    }

    /// `host` is the `Host` sent; its name is the TLS server name (APISIX: proxy_ssl_name).
    pub(super) fn peer(&self, addr: SocketAddr, host: &str, wanted: PeerOverride<'_>) -> Box<HttpPeer> {
        let mut peer = Box::new(self.peer.clone());
        peer._address = PeerAddr::Inet(addr);
        if let Some(scheme) = wanted.scheme {
            self.set_scheme(&mut peer, scheme);
        }
        if let Some(timeout) = wanted.timeout {
            set_timeouts(&mut peer, timeout);
        }
        if peer.is_tls() {
            peer.sni = tls_name(host, peer.options.verify_cert, addr);
        }
        if wanted.upgrade {
            upgrade::prepare(&mut peer);
        }
        peer
    }

    fn set_scheme(&self, peer: &mut HttpPeer, scheme: Scheme) {
        peer.scheme = PeerScheme::from_tls_bool(scheme.is_tls());
        peer.client_cert_key = self.client.clone().filter(|_| scheme.is_tls());
        let version = if scheme.is_h2() { 2 } else { 1 };
        peer.options.set_http_version(version, version);
        peer.options.max_h2_streams = if scheme.is_h2() { H2_STREAMS } else { 1 };
        peer.group_key = self.group(scheme);
    }

    /// Separates what Pingora's own pool key does not: the protocol on the connection, and how long it lives.
    fn group(&self, scheme: Scheme) -> u64 {
        let mut hasher = AHasher::default();
        scheme.hash(&mut hasher);
        self.keepalive.size.hash(&mut hasher);
        self.keepalive.requests.hash(&mut hasher);
        seconds(self.keepalive.idle_timeout).hash(&mut hasher);
        hasher.finish()
    }
}

fn set_timeouts(peer: &mut HttpPeer, timeout: &TimeoutConf) {
    // Pingora, as nginx, gives the TLS handshake the connection timeout again
    peer.options.connection_timeout = Some(seconds(timeout.connect));
    peer.options.write_timeout = Some(seconds(timeout.send));
    peer.options.read_timeout = Some(seconds(timeout.read));
}

/// The name that is sent and verified; empty: none.
///
/// Without one the framework verifies nothing at all. So where the certificate counts an address stands for its own
/// name: it is not sent (rust-openssl leaves addresses out), and no certificate is for it, as in nginx. A client that
/// chooses `Host` could switch verification off otherwise.
fn tls_name(host: &str, verified: bool, addr: SocketAddr) -> String {
    match server_name(host) {
        "" if verified => addr.ip().to_string(),
        name => name.to_owned(),
    }
}

/// The name for SNI: without its port, and none for an address (RFC 6066 section 3).
fn server_name(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    if name.starts_with('[') || parse_ip(name).is_some() {
        return "";
    }
    name.strip_suffix('.').unwrap_or(name)
}

/// Reads a client certificate and its key, both in PEM.
///
/// # Errors
/// One of them is none. APISIX: ssl.lua validate.
pub fn certificate(cert: &str, key: &str) -> Result<Arc<CertKey>, String> {
    let chain = X509::stack_from_pem(cert.as_bytes()).map_err(|e| format!("failed to parse cert: {e}"))?;
    if chain.is_empty() {
        return Err("failed to parse cert: no certificate".to_owned());
    }
    let key = PKey::private_key_from_pem(key.as_bytes()).map_err(|e| format!("failed to parse key: {e}"))?;
    Ok(Arc::new(CertKey::new(chain, key)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pingora::{protocols::ALPN, upstreams::peer::Peer};

    use super::*;
    use crate::upstream::{
        conf::{ChecksSwitch, NodeConf, TlsConf},
        resolve::{Resolver, ResolverConf},
    };

    fn defaults() -> UpstreamDefaults {
        UpstreamDefaults {
            resolver: Resolver::new(&ResolverConf::default()).expect("a resolver"),
            timeout: TimeoutConf::default(),
            keepalive: KeepaliveConf::default(),
            checks: ChecksSwitch::On,
        }
    }

    fn template(conf: &UpstreamConf) -> PeerTemplate {
        PeerTemplate::compile(conf, &defaults()).expect("a template")
    }

    const ADDR: ([u8; 4], u16) = ([127, 0, 0, 1], 8080);

    #[test]
    fn server_names() {
        for (host, want) in [
            ("a.com", "a.com"),
            ("a.com:8443", "a.com"),
            ("a.com.", "a.com"),
            ("127.0.0.1", ""),
            ("127.0.0.1:443", ""),
            ("[::1]", ""),
            ("[::1]:443", ""),
            ("::1", ""),
            ("", ""),
        ] {
            assert_eq!(server_name(host), want, "{host}");
        }
    }

    #[test]
    fn whom_a_certificate_must_be_for() {
        for verify in [false, true] {
            let tls = Some(TlsConf { verify, ..TlsConf::default() });
            let template = template(&UpstreamConf { scheme: Scheme::Https, tls, ..UpstreamConf::default() });
            let name = |host| template.peer(ADDR.into(), host, PeerOverride::default()).sni;
            assert_eq!(name("a.com:8443"), "a.com");
            // never nothing, which would switch verification off
            for host in ["10.0.0.1", "10.0.0.1:443", "[::1]", ""] {
                assert_eq!(name(host), if verify { "127.0.0.1" } else { "" }, "{host}");
            }
        }
    }

    #[test]
    fn timeouts_are_always_set_and_a_route_s_win() {
        let template = template(&UpstreamConf {
            timeout: Some(TimeoutConf { connect: 0.5, send: 1.0, read: 2.25 }),
            ..UpstreamConf::default()
        });
        let peer = template.peer(ADDR.into(), "a.com", PeerOverride::default());
        let of = |p: &HttpPeer| {
            let o = &p.options;
            (o.connection_timeout, o.write_timeout, o.read_timeout, o.idle_timeout)
        };
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(of(&peer), (ms(500), ms(1000), ms(2250), ms(60_000)));
        let timeout = TimeoutConf { connect: 3.0, send: 4.0, read: 5.0 };
        let wanted = PeerOverride { timeout: Some(&timeout), ..PeerOverride::default() };
        let peer = template.peer(ADDR.into(), "a.com", wanted);
        assert_eq!(of(&peer), (ms(3000), ms(4000), ms(5000), ms(60_000)));
    }

    #[test]
    fn schemes() {
        for (scheme, tls, alpn, sni) in [
            (Scheme::Http, false, ALPN::H1, ""),
            (Scheme::Https, true, ALPN::H1, "a.com"),
            (Scheme::Grpc, false, ALPN::H2, ""),
            (Scheme::Grpcs, true, ALPN::H2, "a.com"),
        ] {
            let plain = template(&UpstreamConf::default());
            let wanted = PeerOverride { scheme: Some(scheme), ..PeerOverride::default() };
            let compiled = template(&UpstreamConf { scheme, ..UpstreamConf::default() });
            for peer in [
                compiled.peer(ADDR.into(), "a.com:80", PeerOverride::default()),
                plain.peer(ADDR.into(), "a.com:80", wanted),
            ] {
                assert_eq!(peer.is_tls(), tls, "{scheme:?}");
                assert_eq!(peer.get_alpn(), Some(&alpn), "{scheme:?}");
                assert_eq!(peer.sni(), sni, "{scheme:?}");
                assert!(!peer.verify_cert());
            }
        }
    }

    #[test]
    fn pools_are_separated_by_protocol_keepalive_and_name() {
        let https = UpstreamConf { scheme: Scheme::Https, ..UpstreamConf::default() };
        let grpcs = UpstreamConf { scheme: Scheme::Grpcs, ..UpstreamConf::default() };
        let short = UpstreamConf {
            keepalive_pool: Some(KeepaliveConf { idle_timeout: 1.0, ..KeepaliveConf::default() }),
            ..https.clone()
        };
        let key = |conf: &UpstreamConf, host| {
            template(conf).peer(ADDR.into(), host, PeerOverride::default()).reuse_hash()
        };
        let own = key(&https, "a.com");
        assert_eq!(own, key(&https, "a.com"));
        for (other, what) in [
            (key(&https, "b.com"), "name"),
            (key(&grpcs, "a.com"), "protocol"),
            (key(&short, "a.com"), "keepalive"),
        ] {
            assert_ne!(own, other, "{what}");
        }
    }

    #[test]
    fn a_bad_client_certificate_is_refused() {
        let tls = |cert: &str| TlsConf {
            client: ClientCert::Pair { cert: cert.to_owned(), key: "k".to_owned() },
            verify: false,
        };
        for cert in ["", "not a certificate"] {
            let conf = UpstreamConf { tls: Some(tls(cert)), ..UpstreamConf::default() };
            let error = PeerTemplate::compile(&conf, &defaults()).err();
            assert!(error.is_some_and(|e| e.starts_with("failed to parse cert")), "{cert}");
        }
    }

    #[test]
    fn upstreams_share_a_template_unless_their_settings_differ() {
        let shared = |conf: &UpstreamConf| PeerTemplate::shared(conf, &defaults()).expect("a template");
        let own = shared(&UpstreamConf::default());
        let node = NodeConf { host: "a.com".to_owned(), port: None, weight: 1, priority: 0 };
        let same = UpstreamConf { nodes: vec![node], retries: Some(1), ..UpstreamConf::default() };
        assert!(Arc::ptr_eq(&own, &shared(&same)));
        let timeout = Some(TimeoutConf { connect: 1.0, send: 1.0, read: 1.0 });
        let tls = Some(TlsConf { verify: true, ..TlsConf::default() });
        for other in [
            UpstreamConf { timeout, ..UpstreamConf::default() },
            UpstreamConf { scheme: Scheme::Grpc, ..UpstreamConf::default() },
            UpstreamConf { tls, ..UpstreamConf::default() },
        ] {
            assert!(!Arc::ptr_eq(&own, &shared(&other)), "{other:?}");
        }
    }

    #[test]
    fn cloning_a_template_is_cheap() {
        let template = template(&UpstreamConf::default());
        let used = allocation_counter::measure(|| {
            std::hint::black_box(template.peer(ADDR.into(), "a.com", PeerOverride::default()));
        });
        assert_eq!(used.count_total, 1, "only the box itself");
    }
}
