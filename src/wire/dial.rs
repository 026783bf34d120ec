//! Opening a connection: connect, say the preamble, read the answer. Shared by both kinds of client.
//!
//! Whatever fails here failed before a request was sent, so no error of this file leaves an outcome unknown.

use super::preamble::{ANSWER_BYTES, Answer, Endpoint, Kind, Preamble, VERSION};
use super::socket::{self, Socket};
use crate::error::{Error, Reason};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Where to, and whether others on the way may read along.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) address: String,
    pub(super) plaintext: bool,
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
        let mut socket = socket::connect(&self.address, self.plaintext).await?;
        let greeted = async {
            socket.write_all(&Preamble::new(kind, caller).encode()).await?;
            let mut answer = [0; ANSWER_BYTES];
            socket.read_exact(&mut answer).await?;
            io::Result::Ok(answer)
        };
        let bytes = greeted.await.map_err(|error| self.unreachable(&error))?;
        let answer = Answer::decode(&bytes)?;
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
