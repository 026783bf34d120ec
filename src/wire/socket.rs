//! The sockets: the only file that names TCP, so that a simulation can put its own network here.
//!
//! Everything above works on any `AsyncRead + AsyncWrite`. Nagle's algorithm is off on both sides: it would hold each
//! small call back until the previous one is acknowledged.
//!
//! Plain text to an address that is not loopback needs the caller's leave; it is the *resolved* address that counts, at
//! each connect anew, since a name may change its meaning.

use super::limits::{CANDIDATE_HEAD_START, CANDIDATE_TIMEOUT};
use super::security::Security;
#[cfg(feature = "tls")]
use super::tls;
use crate::error::{Error, Reason};
use futures::stream::{FuturesUnordered, StreamExt};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
#[cfg(not(feature = "sim"))]
use tokio::net::TcpListener as Listener;
#[cfg(not(feature = "sim"))]
pub(super) use tokio::net::TcpStream as Stream;
use tokio::net::{TcpSocket, lookup_host};
use tokio::time::timeout;

#[cfg(feature = "sim")]
mod simulated;
#[cfg(feature = "sim")]
use simulated::Listener;
#[cfg(feature = "sim")]
pub(super) use simulated::Stream;

/// How many connections the kernel queues before they are accepted.
const BACKLOG: u32 = 1024;

/// An open connection, in plain text or not.
#[derive(Debug)]
pub(super) enum Socket {
    Plain(Stream),
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::TlsStream<Stream>>),
}

/// A bound port.
#[derive(Debug)]
pub(super) struct Port(Listener);

/// Connects to the first address behind `address` that answers, and makes sure of who it is. Nothing was sent if this
/// fails.
///
/// # Cancel safety
/// A dropped attempt leaves nothing behind.
pub(super) async fn connect(address: &str, security: &Security) -> Result<Socket, Error> {
    security.meet(reach(address, security).await?, address).await
}

async fn reach(address: &str, security: &Security) -> Result<Stream, Error> {
    let resolved = match resolve(address).await {
        Ok(resolved) => resolved,
        Err(error) => return Err(unreachable(address, &error)),
    };
    check_resolved(address, &resolved, security)?;
    first_of(resolved).await.map_err(|error| unreachable(address, &error))
}

/// Connects to the first that answers. One that is silent must not have all the time that there is: a network may drop what goes to
/// the first address of a name, and Raft's calls have a second.
async fn first_of(candidates: impl IntoIterator<Item = SocketAddr>) -> io::Result<Stream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut candidates = candidates.into_iter().peekable();
    let mut under_way = FuturesUnordered::new();
    loop {
        let next = candidates.next();
        under_way.extend(next.map(|it| timeout(CANDIDATE_TIMEOUT, Stream::connect(it))));
        let ended = match candidates.peek() {
            Some(_) => match timeout(CANDIDATE_HEAD_START, under_way.next()).await {
                Ok(ended) => ended,
                Err(_) => continue,
            },
            None => under_way.next().await,
        };
        match ended {
            Some(Ok(Ok(socket))) => {
                let _ = socket.set_nodelay(true);
                return Ok(socket);
            }
            Some(Ok(Err(error))) => failure = error,
            Some(Err(_)) => failure = io::ErrorKind::TimedOut.into(),
            None => return Err(failure),
        }
    }
}

/// Listens on `address`. A port that was in use a moment ago, and whose connections still fade, can be had at once.
///
/// # Errors
/// If others could listen to the address, and that is not allowed.
pub(super) async fn bind(address: &str, security: &Security) -> Result<Port, Error> {
    let bad = |error: &io::Error| {
        Error::from(Reason::BadAddress { detail: format!("cannot listen on {address}: {error}") })
    };
    let resolved = resolve(address).await.map_err(|error| bad(&error))?;
    check_resolved(address, &resolved, security)?;
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in resolved {
        match listen(candidate) {
            Ok(listener) => return Ok(Port(listener)),
            Err(error) => failure = error,
        }
    }
    Err(bad(&failure))
}

impl Port {
    /// The next connection.
    ///
    /// # Cancel safety
    /// A dropped wait loses no connection.
    pub(super) async fn accept(&self) -> io::Result<Stream> {
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

/// Refuses an address that others could listen to, unless that is allowed or of no use to them.
fn check_resolved(
    address: &str,
    resolved: &[SocketAddr],
    security: &Security,
) -> Result<(), Error> {
    let is_local = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
    if security.plaintext() != Some(false) || resolved.iter().all(is_local) {
        return Ok(());
    }
    Err(Reason::PlaintextRefused { address: address.to_owned() }.into())
}

/// Nothing was sent to `address`, for this reason.
pub(super) fn unreachable(address: &str, error: &io::Error) -> Error {
    #[cfg(feature = "tls")]
    return tls::failure(address, error);
    #[cfg(not(feature = "tls"))]
    Reason::Unreachable { detail: format!("{address}: {error}") }.into()
}

/// Does the same to either.
macro_rules! either {
    ($self:ident, $socket:ident => $call:expr) => {
        match $self.get_mut() {
            Self::Plain(socket) => {
                let $socket = Pin::new(socket);
                $call
            }
            #[cfg(feature = "tls")]
            Self::Tls(socket) => {
                let $socket = Pin::new(socket);
                $call
            }
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_read(context, buffer))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, socket => socket.poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_shutdown(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host has two addresses, and what goes to the first is dropped on the way.
    #[tokio::test]
    async fn a_silent_address_does_not_keep_the_next_from_being_tried() {
        let listen = |backlog| {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            socket.listen(backlog).unwrap()
        };
        let (silent, alive) = (listen(1), listen(16));
        let address = |port: &tokio::net::TcpListener| port.local_addr().unwrap();
        // What nobody takes is dropped, once there is enough of it.
        let mut taken = Vec::new();
        let brief = std::time::Duration::from_millis(100);
        while let Ok(socket) = timeout(brief, Stream::connect(address(&silent))).await {
            taken.push(socket.unwrap());
        }
        let found = first_of([address(&silent), address(&alive)]);
        let found =
            timeout(CANDIDATE_TIMEOUT / 2, found).await.expect("the next is tried").unwrap();
        drop(found);
        // One that refuses is not waited for.
        let gone = address(&listen(1));
        assert!(first_of([gone, address(&alive)]).await.is_ok());
        assert!(first_of([gone, gone]).await.is_err());
    }

    #[tokio::test]
    async fn plain_text_stays_on_loopback_unless_allowed() {
        let check = async |address: &str, security: Security| {
            check_resolved(address, &resolve(address).await.unwrap(), &security)
        };
        for local in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            check(local, Security::Loopback).await.unwrap();
        }
        for other in ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "[2001:db8::1]:1"] {
            let error = check(other, Security::Loopback).await.unwrap_err();
            assert_eq!(*error.reason(), Reason::PlaintextRefused { address: other.into() });
            check(other, Security::Plaintext).await.unwrap();
        }
        for refused in [
            connect("10.0.0.1:1", &Security::Loopback).await.map(drop),
            bind("0.0.0.0:0", &Security::Loopback).await.map(drop),
        ] {
            assert!(matches!(refused.unwrap_err().reason(), Reason::PlaintextRefused { .. }));
        }
        let error = bind("no port", &Security::Plaintext).await.unwrap_err();
        assert!(matches!(error.reason(), Reason::BadAddress { .. }));
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let bind = |address: String| async move { bind(&address, &Security::Loopback).await };
        let taken = bind("127.0.0.1:0".to_owned()).await.unwrap();
        let address = taken.local_address().unwrap().to_string();
        let error = bind(address.clone()).await.unwrap_err();
        assert!(
            matches!(error.reason(), Reason::BadAddress { detail } if detail.contains(&address))
        );
        drop(taken);
        bind(address).await.unwrap();
    }
}
