//! Sockets that are TCP's, or the simulation's if there is one.

use crate::sim::{self, Io, Port};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

#[derive(Debug)]
pub(in crate::wire) enum Stream {
    Tcp(TcpStream),
    Simulated(Box<dyn Io>),
}

#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Simulated(Box<dyn Port>),
}

impl Listener {
    pub(super) async fn accept(&self) -> io::Result<(Stream, ())> {
        let socket = match self {
            Self::Tcp(listener) => Stream::Tcp(listener.accept().await?.0),
            Self::Simulated(port) => {
                Stream::Simulated(poll_fn(|context| port.poll_accept(context)).await?)
            }
        };
        Ok((socket, ()))
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Simulated(port) => Ok(port.address()),
        }
    }
}

impl Stream {
    pub(super) async fn connect(address: SocketAddr) -> io::Result<Self> {
        match sim::world() {
            Some(world) => world.connect(address).await.map(Self::Simulated),
            None => TcpStream::connect(address).await.map(Self::Tcp),
        }
    }

    pub(super) fn set_nodelay(&self, on: bool) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nodelay(on),
            Self::Simulated(_) => Ok(()),
        }
    }
}

/// Does the same to either.
macro_rules! either {
    ($self:ident, $socket:ident => $call:expr) => {
        match $self.get_mut() {
            Self::Tcp(socket) => {
                let $socket = Pin::new(socket);
                $call
            }
            Self::Simulated(socket) => {
                let $socket = Pin::new(socket);
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, socket => socket.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_shutdown(cx))
    }
}
