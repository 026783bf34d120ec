//! Opening a connection: connect, say the preamble, read the answer. Shared by both kinds of client.
//!
//! Whatever fails here failed before a request was sent, so no error of this file leaves an outcome unknown.

use super::preamble::{ANSWER_BYTES, Answer, Endpoint, Kind, Preamble, VERSION};
use super::security::Security;
use super::socket::{self, Socket};
use crate::error::{Error, Reason};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Where to, and who may read along on the way.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) address: String,
    pub(super) security: Security,
}

impl Target {
    /// A connection on which `caller` is welcome, and whose it is at the other end. `expected` is the node that it
    /// should be, 0 = any.
    ///
    /// # Cancel safety
    /// A dropped attempt closes its socket.
    pub(super) async fn open(
        &self,
        kind: Kind,
        caller: Endpoint,
        expected: u64,
    ) -> Result<(Socket, Endpoint), Error> {
        let mut socket = socket::connect(&self.address, &self.security).await?;
        let answer = greet(&mut socket, &Preamble::new(kind, caller)).await;
        let answer = answer.map_err(|error| socket::unreachable(&self.address, &error))?;
        let answer = Answer::decode(&answer)?;
        answer.status.check(&self.address, caller.node, expected, answer.callee.node)?;
        if answer.version != VERSION {
            return Err(Reason::NoCommonVersion.into());
        }
        if caller.group != 0 && answer.callee.group != caller.group {
            return Err(Reason::GroupMismatch.into());
        }
        Ok((socket, answer.callee))
    }

    /// Nothing was sent, because of `why`.
    pub(super) fn unreachable(&self, why: &(impl std::fmt::Display + ?Sized)) -> Error {
        Reason::Unreachable { detail: format!("{}: {why}", self.address) }.into()
    }

    /// Nothing was sent within the time allowed.
    pub(super) fn not_in_time(&self) -> Error {
        self.unreachable(&io::Error::from(io::ErrorKind::TimedOut))
    }
}

/// Says the preamble, and hears the answer. One who does not trust the caller says why before he closes, and then what was
/// written to him has failed too.
async fn greet(socket: &mut Socket, preamble: &Preamble) -> io::Result<[u8; ANSWER_BYTES]> {
    let said = async {
        socket.write_all(&preamble.encode()).await?;
        socket.flush().await
    };
    let said = said.await;
    let mut answer = [0; ANSWER_BYTES];
    let heard = socket.read_exact(&mut answer).await;
    match (said, heard) {
        (Ok(()), Ok(_)) => Ok(answer),
        (_, Err(why)) if why.kind() == io::ErrorKind::InvalidData => Err(why),
        (Err(why), _) | (Ok(()), Err(why)) => Err(why),
    }
}
