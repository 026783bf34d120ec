//! How much, how many and how long: every bound of the wire, with its reason.
//!
//! Sizes are part of the protocol, so they are constants. Times and counts are this side's own, so they are fields of
//! [`Bounds`], which tests make small.
//!
//! What is *not* bounded here: the memory of all connections together. It is bounded only by their number, times one
//! half-received frame and twice [`Bounds::bytes_in_flight`].

use std::time::Duration;

/// The largest payload of an Rpc request: a few of the largest writes in one batch.
pub(crate) const RPC_REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The largest payload of an Rpc response: a transaction that reads a few full pages.
pub(crate) const RPC_RESPONSE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The largest payload on a Raft connection. An append carries 1–2 MiB at most, and one entry at least.
pub(crate) const RAFT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The largest payload on a Snapshot connection: one chunk.
pub(crate) const SNAPSHOT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The largest hello, with room for what later versions add to its end.
pub(crate) const HELLO_BYTES_MAX: usize = 4096;

/// How long an attempt to connect may take, handshake included, unless its caller has less time.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one of several addresses behind a name is tried.
pub(super) const CANDIDATE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the first of them is tried alone; then the next is as well. Raft's calls have a second in all.
pub(super) const CANDIDATE_HEAD_START: Duration = Duration::from_millis(200);
/// How long a failed endpoint is left alone; doubles with each failure up to [`BACK_OFF_MAX`].
pub(super) const BACK_OFF_MIN: Duration = Duration::from_millis(50);
/// The longest that a failed endpoint is left alone.
pub(super) const BACK_OFF_MAX: Duration = Duration::from_secs(2);
/// After so long without a frame a client closes its Rpc connection. Well below [`Bounds::rpc_idle`] of the server, so
/// that the server never closes on a request that is on its way.
pub(super) const CLIENT_IDLE: Duration = Duration::from_secs(5 * 60);
/// The longest silence in the middle of a frame, or while the peer does not read what we write.
pub(super) const STALL: Duration = Duration::from_secs(10);

/// What a server allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// From accepting to the end of the handshake.
    pub(crate) handshake: Duration,
    /// The longest silence in the middle of a frame, or while the peer does not read what we write.
    pub(crate) stall: Duration,
    /// An Rpc connection may rest so long between two frames. Generous: opening one costs more than keeping it.
    pub(crate) rpc_idle: Duration,
    /// A Raft or Snapshot connection may rest so long, and a call on it may take so long. Short, since each cut network
    /// leaves a dead one behind, and the caller opens another without being asked; but longer than any call may wait.
    pub(crate) peer_idle: Duration,
    /// Handshakes at once. While there are so many, the next connection waits in the kernel's queue.
    pub(crate) handshakes: usize,
    /// Connections of kind Rpc; a client has two.
    pub(crate) rpc_connections: usize,
    /// Connections of kind Raft.
    pub(crate) raft_connections: usize,
    /// Connections of kind Snapshot.
    pub(crate) snapshot_connections: usize,
    /// Calls under way on one Rpc connection, without follows.
    pub(crate) calls: usize,
    /// Follows under way on one Rpc connection. They mostly wait, so they have their own budget.
    pub(crate) follows: usize,
    /// Bytes of requests in work and of responses that wait to be written, on one Rpc connection: a few of the largest; and as
    /// many of responses that wait for those. Not shared between connections, so that a client that is slow to read harms
    /// itself only.
    pub(crate) bytes_in_flight: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            stall: STALL,
            rpc_idle: Duration::from_secs(15 * 60),
            peer_idle: Duration::from_secs(90),
            handshakes: 256,
            rpc_connections: 1024,
            raft_connections: 64,
            snapshot_connections: 16,
            calls: 1024,
            follows: 256,
            bytes_in_flight: 64 * 1024 * 1024,
        }
    }
}
