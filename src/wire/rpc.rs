//! Calls: any number at once, answered in any order, each with its deadline.
//!
//! ```text
//!  RpcClient ─┬─ Lane "calls"   ═══ connection ═══▶ serve_rpc ──▶ Handler::service, one for each connection
//!             └─ Lane "follows" ═══ connection ═══▶ serve_rpc ──▶ the same
//! ```
//!
//! Small calls of many callers share one ([`together`]).
//!
//! tarpc keeps the books on both sides: ids, deadlines, cancellations. Follows have a lane of their own, because they
//! carry pages of events that must not delay a small call.
//!
//! A call that fails says how much is known: what was never sent is [`Reason::Unreachable`](crate::error::Reason) or
//! what the handshake said, and has certainly not happened; what was sent, and is a write, may have happened.

mod client;
mod lane;
mod server;
mod together;

pub(crate) use client::RpcClient;
pub(super) use server::{panicked, serve_rpc};
