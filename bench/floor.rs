//! The framework's floor: the least that a proxy on Pingora does, for `make bench` to compare with.
//!
//! Same package, same build flags, same allocator as the gateway. It forwards every request to one address and does
//! nothing else. Invariant: never add a feature here; what the gateway costs is what lies above this file.
//!
//! With `duties` it also does what a gateway owes every request, whatever its configuration: tell the upstream who
//! asks, in five headers, put its name on the answer, and bound each wait. No table, no matching, no plugin, no count.
//! What that costs beside the bare floor is the framework's price for it, and none of the gateway's.
//!
//! `floor LISTEN UPSTREAM [duties]`, such as `floor 127.0.0.1:8000 127.0.0.1:9000`.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use async_trait::async_trait;
use pingora::{
    Result,
    http::{RequestHeader, ResponseHeader},
    modules::http::HttpModules,
    server::{Server, configuration::ServerConf},
    upstreams::peer::HttpPeer,
};
use pingora_proxy::{ProxyHttp, Session};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Idle upstream connections, more than the load opens.
const POOL: usize = 320;

struct Floor {
    upstream: SocketAddr,
}

#[async_trait]
impl ProxyHttp for Floor {
    type CTX = ();

    fn new_ctx(&self) {}

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {
        // Pingora's default is a compression module, which the gateway does not load either.
    }

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.upstream, false, String::new())))
    }
}

/// The floor that does what a gateway owes every request.
struct Duties {
    upstream: SocketAddr,
    /// The port that clients ask, as a header tells it.
    port: String,
}

/// What every wait is bounded with; APISIX's default for upstreams.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(60));

#[async_trait]
impl ProxyHttp for Duties {
    type CTX = ();

    fn new_ctx(&self) {}

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, _ctx: &mut ()) -> Result<bool> {
        let downstream = session.as_downstream_mut();
        downstream.set_read_timeout(PATIENCE);
        downstream.set_write_timeout(PATIENCE);
        Ok(false)
    }

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        let mut peer = HttpPeer::new(self.upstream, false, String::new());
        peer.options.connection_timeout = PATIENCE;
        peer.options.write_timeout = PATIENCE;
        peer.options.read_timeout = PATIENCE;
        peer.options.idle_timeout = PATIENCE;
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        _ctx: &mut (),
    ) -> Result<()> {
        let client = session.client_addr().and_then(|address| address.as_inet());
        let client = client.map(|address| address.ip().to_string()).unwrap_or_default();
        if let Some(host) = request.headers.get("host").cloned() {
            request.insert_header("X-Forwarded-Host", host)?;
        }
        request.insert_header("X-Real-IP", &client)?;
        request.insert_header("X-Forwarded-For", client)?;
        request.insert_header("X-Forwarded-Proto", "http")?;
        request.insert_header("X-Forwarded-Port", &self.port)
    }

    async fn response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        _ctx: &mut (),
    ) -> Result<()> {
        response.insert_header("Server", "floor")
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let addresses: Vec<SocketAddr> = arguments.iter().filter_map(|text| text.parse().ok()).collect();
    let rest: Vec<&str> = arguments.iter().skip(2).map(String::as_str).collect();
    match (&addresses[..], &rest[..]) {
        (&[listen, upstream], []) => serve(listen, Floor { upstream }),
        (&[listen, upstream], ["duties"]) => {
            serve(listen, Duties { upstream, port: listen.port().to_string() })
        }
        _ => {
            eprintln!("usage: floor LISTEN UPSTREAM [duties]");
            ExitCode::from(2)
        }
    }
}

fn serve<P>(listen: SocketAddr, proxy: P) -> !
where
    P: ProxyHttp + Send + Sync + 'static,
    P::CTX: Send + Sync,
{
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: POOL, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = pingora_proxy::http_proxy_service(&server.configuration, proxy);
    service.add_tcp(&listen.to_string());
    server.add_service(service);
    server.run_forever()
}
