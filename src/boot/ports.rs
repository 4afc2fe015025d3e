//! Looks whether the ports are free before anything starts.
//!
//! Pingora notices it in the thread of a service, half a minute later, and the process would live on and serve
//! nothing. A successor must not ask: its ports are in use by the process that it takes over from.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
};

use anyhow::{Result, anyhow, bail};
use tokio::net::TcpSocket;

use crate::settings::Settings;

/// Fails when somebody else listens where the gateway is to listen, or when it may not.
///
/// # Errors
/// The address and the reason.
pub fn free(settings: &Settings) -> Result<()> {
    let mut wanted: Vec<SocketAddr> =
        settings.http_listeners().iter().map(|listener| listener.address).collect();
    wanted.extend(settings.admin_address());
    wanted.extend(settings.control_address());
    wanted.extend(settings.status_address());
    wanted.extend(
        settings.prometheus_address().map_err(|e| anyhow!("plugin_attr.prometheus.export_addr: {e}"))?,
    );
    // Asked without `IPV6_V6ONLY`, an IPv6 address would clash with an IPv4 one; its twin is asked for anyway.
    for address in wanted.into_iter().filter(SocketAddr::is_ipv4) {
        let Err(e) = bind(address) else { continue };
        if matches!(
            e.kind(),
            ErrorKind::AddrInUse | ErrorKind::PermissionDenied | ErrorKind::AddrNotAvailable
        ) {
            bail!("cannot listen on {address}: {e}");
        }
    }
    Ok(())
}

/// Binds without listening: nobody may connect to what is gone a moment later.
fn bind(address: SocketAddr) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::settings::from_text;

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = taken.local_addr().expect("its address").port();
        let others = "control: {port: 0}}\nplugins: []\ndeployment: {role: data_plane}";
        let text = format!(
            "apisix: {{node_listen: [{{ip: 127.0.0.1, port: {port}}}], enable_admin: false, {others}"
        );
        let loaded = from_text(&text, None, &|_| None);
        let why = free(&loaded.settings).expect_err("the port is taken").to_string();
        assert!(why.starts_with(&format!("cannot listen on 127.0.0.1:{port}: ")), "{why}");
    }
}
