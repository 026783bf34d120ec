//! What travels between processes: one port, three kinds of connections, frames, and the calls above them.
//!
//! ```text
//!   RpcClient            PeerClient(Raft)      PeerClient(Snapshot)        callers
//!   calls ║ ║ follows           ║                     ║
//! ════════║═║═══════════════════║═════════════════════║══════════════════ one port
//!         ▼ ▼                   ▼                     ▼
//!      Handler::service    Handler::peer_call, in order                   callee: Server
//!
//! bytes:  preamble 41 ▶      ◀ answer 35      [hello frame ▶ ◀ hello frame]      then frames, either way:
//!         ┌─────┬──────┬───────┬────────┬─────┬────────┬──────────────────────────────────────┐
//!         │ len │ type │ flags │ method │ id  │ crc32c │ payload                              │
//!         │ u32 │ u8   │ u8    │ u16    │ u64 │ u32    │ of an Rpc request: timeout_ms ++ body│
//!         └─────┴──────┴───────┴────────┴─────┴────────┴──────────────────────────────────────┘
//! ```
//!
//! Each class of traffic has a connection of its own, so that a snapshot never delays a heartbeat, nor a page of events
//! a small call. Calls of clients and gateways are many at once and unordered, and tarpc keeps their books, above a
//! transport of our own; between members calls are ordered, and need no books.
//!
//! | file | what it is |
//! |---|---|
//! | [`preamble`], [`frame`] | the bytes, without a socket |
//! | [`connection`] | frames over a byte stream, with watchdogs |
//! | [`dial`], [`listener`] | the two ends of a handshake; the listener owns every task of a server |
//! | [`rpc`], [`transport`] | calls of kind Rpc, and tarpc below them |
//! | [`peer`] | calls of kinds Raft and Snapshot |
//! | [`socket`] | TCP, and the rule about plain text |
//! | [`security`], `tls` | who may read along, and who is at the other end |
//! | [`limits`] | every bound, with its reason |
//!
//! Invariants
//! - no bytes from outside can panic a task, reserve memory that they do not fill, or end a server;
//! - an error says how much is known: what was never sent has not happened; a write that was sent and not answered may
//!   have happened ([`Error::may_have_applied`](crate::error::Error::may_have_applied));
//! - every request is answered in words while its caller is there, a panic of its handler included;
//! - every task has an owner, and ends with it.
//!
//! What the wire does not do: retry a request that may have been received, choose between endpoints, know who leads, or,
//! without certificates, authenticate more than the ids that a caller claims.

mod connection;
mod dial;
mod frame;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
pub(crate) mod limits;
mod listener;
mod peer;
mod preamble;
mod rpc;
mod security;
mod socket;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(feature = "tls")]
mod tls;
mod transport;

#[cfg(feature = "bench")]
pub(crate) use frame::{framed, unframed};
pub(crate) use listener::{Handler, Listener, Server, Welcome, bind, serve};
pub(crate) use peer::PeerClient;
pub(crate) use preamble::{Endpoint, Hello, Kind, PeerKind, Preamble, Status};
pub(crate) use rpc::RpcClient;
pub(crate) use security::Security;
#[cfg(feature = "tls")]
pub use tls::Tls;
