//! What the group knows of its leases, its members and itself.

use super::{LeaseId, NodeId, Revision};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What the group knows about a lease.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// let id = client.lease_grant(std::time::Duration::from_secs(30)).await?.id;
/// let status = client.lease_time_to_live(id).await?.expect("it exists");
/// assert!(status.remaining <= status.ttl && status.keys.is_empty());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LeaseStatus {
    /// The lease.
    pub id: LeaseId,
    /// The time to live that was granted, and that each keep-alive starts anew.
    pub ttl: Duration,
    /// How much of it is left, by the clock of the leader that answered.
    pub remaining: Duration,
    /// The keys that are attached to it, in order.
    pub keys: Vec<Bytes>,
}

/// What a node knows about itself and its group.
///
/// ```
/// # async fn f(client: quorate::Client) -> quorate::Result<()> {
/// let status = client.status().await?;
/// println!("node {} at revision {}, leader {:?}", status.id, status.revision, status.leader);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// Its id in the group.
    pub id: NodeId,
    /// The group's id, the same on every member.
    pub group: u128,
    /// The leader of the group's Raft, as far as this node knows. Nothing to act on: an application's leader is made by
    /// an election, and has a token.
    pub leader: Option<NodeId>,
    /// The term of the group's Raft.
    pub term: u64,
    /// The revision that this node has applied.
    pub revision: Revision,
    /// The log index that it has applied.
    pub applied_index: Option<u64>,
    /// A hash of the whole state at that index. Equal on all members that have applied the same index.
    pub state_hash: u128,
    /// How many bytes of its state's file are in use: keys, history, leases.
    pub bytes_in_use: u64,
    /// How large that file is. It gets smaller some time after more than half of it, and more than 64 MiB, is not in use.
    pub bytes_on_disk: u64,
    /// How many bytes may be in use. With more than that, or with a leader whose disk is nearly full, the group refuses whatever
    /// takes room.
    pub quota: u64,
    /// Whether it does.
    pub is_short_of_room: bool,
    /// The members of the group, with their addresses.
    pub members: Vec<(NodeId, String)>,
    /// The log index at which members have different states, and no majority has the same one, so that nobody can tell which
    /// is right. All go on. Compare what they answer, and rebuild those that are wrong; until then do not trust the group.
    pub states_differ_at: Option<u64>,
}

/// A member of the group, as its leader sees it: one of [`Client::members`](crate::Client::members).
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// for member in node.client().members().await? {
///     println!("{} at {}: voter {}, lacks {:?}", member.id, member.address, member.is_voter, member.behind);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Member {
    /// Its id. Never that of another, not even after it was removed.
    pub id: NodeId,
    /// Where the others reach it.
    pub address: String,
    /// Whether it counts when the group agrees. Who has joined and was not promoted does not: it is a learner, follows the
    /// log, and answers clients.
    pub is_voter: bool,
    /// Whether it is the leader, which has answered.
    pub is_leader: bool,
    /// How many entries of the leader's log it lacks; `None` if it was not heard of since this leader leads.
    pub behind: Option<u64>,
    /// How long ago it answered the leader last; `None` if it has not since this leader leads.
    pub silent_for: Option<Duration>,
}
