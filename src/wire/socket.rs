//! The sockets: the only file that names TCP, so that a simulation can put its own network here.
//!
//! Everything above works on any `AsyncRead + AsyncWrite`. Nagle's algorithm is off on both sides: it would hold each
//! small call back until the previous one is acknowledged.
//!
//! Traffic is not encrypted, so an address that is not loopback needs the caller's leave; it is the *resolved* address
//! that counts, at each connect anew, since a name may change its meaning.

use super::limits::CANDIDATE_TIMEOUT;
use crate::error::{Error, Reason};
use std::io;
use std::net::SocketAddr;
#[cfg(not(feature = "sim"))]
use tokio::net::{TcpListener as Listener, TcpStream as Stream};
use tokio::net::{TcpSocket, lookup_host};
use tokio::time::timeout;

#[cfg(feature = "sim")]
mod simulated;
#[cfg(feature = "sim")]
use simulated::{Listener, Stream};

/// How many connections the kernel queues before they are accepted.
const BACKLOG: u32 = 1024;

/// An open connection.
pub(super) type Socket = Stream;

/// A bound port.
#[derive(Debug)]
pub(super) struct Port(Listener);

/// Connects to the first address behind `address` that answers. Nothing was sent if this fails.
///
/// # Cancel safety
/// A dropped attempt leaves nothing behind.
pub(super) async fn connect(address: &str, plaintext: bool) -> Result<Socket, Error> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let resolved = match resolve(address).await {
        Ok(resolved) => resolved,
        Err(error) => return Err(unreachable(address, &error)),
    };
    check_resolved(address, &resolved, plaintext)?;
    for candidate in resolved {
        match timeout(CANDIDATE_TIMEOUT, Stream::connect(candidate)).await {
            Ok(Ok(socket)) => {
                let _ = socket.set_nodelay(true);
                return Ok(socket);
            }
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(unreachable(address, &failure))
}

/// Listens on `address`. A port that was in use a moment ago, and whose connections still fade, can be had at once.
pub(super) async fn bind(address: &str) -> Result<Port, Error> {
    let bad = |error: &io::Error| {
        Error::from(Reason::BadAddress { detail: format!("cannot listen on {address}: {error}") })
    };
    let resolved = resolve(address).await.map_err(|error| bad(&error))?;
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in resolved {
        match listen(candidate) {
            Ok(listener) => return Ok(Port(listener)),
            Err(error) => failure = error,
        }
    }
    Err(bad(&failure))
}

/// Refuses an address that others could listen to, unless that is `allowed`.
pub(crate) async fn check_plaintext(address: &str, allowed: bool) -> Result<(), Error> {
    let resolved = resolve(address).await.map_err(|error| {
        Error::from(Reason::BadAddress { detail: format!("cannot resolve {address}: {error}") })
    })?;
    check_resolved(address, &resolved, allowed)
}

impl Port {
    /// The next connection.
    ///
    /// # Cancel safety
    /// A dropped wait loses no connection.
    pub(super) async fn accept(&self) -> io::Result<Socket> {
        let (socket, _) = self.0.accept().await?;
        // It fails only for a caller that has gone by now, and that is no failure of the port.
        let _ = socket.set_nodelay(true);
        Ok(socket)
    }

    pub(super) fn local_address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

fn listen(address: SocketAddr) -> io::Result<Listener> {
    #[cfg(feature = "sim")]
    if let Some(world) = crate::sim::world() {
        return world.bind(address).map(Listener::Simulated);
    }
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Elsewhere than on Unix this option would let two processes share the port.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    #[cfg(feature = "sim")]
    let listener = Listener::Tcp(listener);
    Ok(listener)
}

async fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    Ok(lookup_host(address).await?.collect())
}

fn check_resolved(address: &str, resolved: &[SocketAddr], allowed: bool) -> Result<(), Error> {
    if allowed || resolved.iter().all(|address| address.ip().to_canonical().is_loopback()) {
        return Ok(());
    }
    Err(Reason::PlaintextRefused { address: address.to_owned() }.into())
}

fn unreachable(address: &str, error: &io::Error) -> Error {
    Reason::Unreachable { detail: format!("{address}: {error}") }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn plain_text_stays_on_loopback_unless_allowed() {
        for local in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            check_plaintext(local, false).await.unwrap();
        }
        for other in ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "[2001:db8::1]:1"] {
            let error = check_plaintext(other, false).await.unwrap_err();
            assert_eq!(*error.reason(), Reason::PlaintextRefused { address: other.into() });
            check_plaintext(other, true).await.unwrap();
        }
        let error = connect("10.0.0.1:1", false).await.unwrap_err();
        assert!(matches!(error.reason(), Reason::PlaintextRefused { .. }));
        let error = check_plaintext("no port", true).await.unwrap_err();
        assert!(matches!(error.reason(), Reason::BadAddress { .. }));
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let taken = bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_address().unwrap().to_string();
        let error = bind(&address).await.unwrap_err();
        assert!(
            matches!(error.reason(), Reason::BadAddress { detail } if detail.contains(&address))
        );
        drop(taken);
        bind(&address).await.unwrap();
    }
}
