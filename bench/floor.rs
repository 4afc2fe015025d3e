//! The framework's floor: the least that a proxy on Pingora does, for `make bench` to compare with.
//!
//! Same package, same build flags, same allocator as the gateway. It forwards every request to one address and does
//! nothing else. Invariant: never add a feature here; what the gateway costs is what lies above this file.
//!
//! `floor LISTEN UPSTREAM`, such as `floor 127.0.0.1:8000 127.0.0.1:9000`.

use std::{net::SocketAddr, process::ExitCode};

use async_trait::async_trait;
use pingora::{
    Result,
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

fn main() -> ExitCode {
    let addresses: Vec<SocketAddr> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let [listen, upstream] = addresses[..] else {
        eprintln!("usage: floor LISTEN UPSTREAM");
        return ExitCode::from(2);
    };
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: POOL, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = pingora_proxy::http_proxy_service(&server.configuration, Floor { upstream });
    service.add_tcp(&listen.to_string());
    server.add_service(service);
    server.run_forever()
}
