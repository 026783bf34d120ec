//! What each reason says to people: what happened, with the figures, and what to do about it where that is known.

use super::Reason;
use std::fmt;

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyKey => f.write_str("a key has at least one byte"),
            Self::KeyTooLong { actual, limit } => {
                write!(f, "the key has {actual} bytes, more than the {limit} allowed")
            }
            Self::ReservedKey => {
                f.write_str("keys that begin with a zero byte are reserved for the group itself")
            }
            Self::EmptyRange => f.write_str("the range is empty: its end is not above its start"),
            Self::ValueTooLarge { actual, limit } => {
                write!(f, "the value has {actual} bytes, more than the {limit} allowed")
            }
            Self::RequestTooLarge { actual, limit } => {
                write!(f, "the request has {actual} bytes, more than the {limit} allowed")
            }
            Self::TooManyOperations { actual, limit } => {
                write!(f, "the transaction has {actual} operations, more than the {limit} allowed")
            }
            Self::TooManyKeys { limit } => {
                write!(
                    f,
                    "the transaction would delete more than {limit} keys: delete them in pieces"
                )
            }
            Self::TooManyKeysRead { limit } => {
                write!(
                    f,
                    "the write goes through more than {limit} keys: read first, and compare what was found"
                )
            }
            Self::DuplicateKey => {
                f.write_str("two operations of the transaction would change the same key")
            }
            Self::ValueProvided => f.write_str("a put that keeps the old value was given a value"),
            Self::LeaseProvided => f.write_str("a put that keeps the old lease was given a lease"),
            Self::TtlTooSmall { floor } => {
                write!(f, "the time to live is too short: a change of leader needs {floor:?}")
            }
            Self::TtlTooLarge => f.write_str("the time to live is longer than 100 years"),
            Self::BadAddress { detail }
            | Self::BadMembers { detail }
            | Self::BadOption { detail }
            | Self::FoundersDiffer { detail }
            | Self::QuorumAtRisk { detail }
            | Self::WrongType { detail }
            | Self::DiskFailed { detail }
            | Self::Corrupt { detail }
            | Self::BackupDamaged { detail, .. }
            | Self::UnreadableFormat { detail } => f.write_str(detail),
            Self::PlaintextRefused { address } => {
                write!(f, "{address} is not loopback: give it certificates with tls(), or allow unencrypted traffic with plaintext()")
            }
            Self::KeyNotFound => {
                f.write_str("the key, whose value or lease is to be kept, does not exist")
            }
            Self::LeaseNotFound { lease } => write!(f, "lease {lease} is unknown or has expired"),
            Self::LeaseFull { lease, limit } => {
                write!(f, "lease {lease} would have more than {limit} keys: take another")
            }
            Self::LeaseExists { lease } => write!(f, "lease {lease} exists already"),
            Self::Compacted { at } => {
                write!(f, "the revision was compacted away: history begins at {at}")
            }
            Self::FutureRevision { current } => {
                write!(f, "the revision has not happened yet: the group is at {current}")
            }
            Self::SessionLost => {
                f.write_str("the session is lost: its lease could not be kept alive")
            }
            Self::NoSpace => f.write_str(
                "the group's quota is used up, or its leader's disk: delete keys, compact history, or give it more",
            ),
            Self::TooManyRequests => f.write_str("too many requests are waiting"),
            Self::ResultTooLarge { limit } => {
                write!(f, "the answer is larger than the {limit} bytes that fit: ask for less")
            }
            Self::NoLeader => f.write_str("the group has no leader now"),
            Self::NotLeader { leader: Some(leader) } => {
                write!(f, "node {leader} leads, not this one")
            }
            Self::NotLeader { leader: None } => f.write_str("this node does not lead"),
            Self::LeaderChanged => f.write_str("the leader changed meanwhile"),
            Self::Unreachable { detail } => write!(f, "unreachable: {detail}"),
            Self::Untrusted { detail } => write!(f, "not trusted: {detail}"),
            Self::Starting => f.write_str("the node is starting and does not serve yet"),
            Self::DeadlinePassed { waited } => write!(f, "no answer within {waited:?}"),
            Self::ConnectionLost => f.write_str("the connection broke before the answer came"),
            Self::GroupMismatch => {
                f.write_str("the peer, or the data folder, belongs to another group")
            }
            Self::NodeMismatch { actual, expected } => {
                write!(f, "the peer, or the data folder, is node {actual}, not node {expected}")
            }
            Self::IncarnationRefused { node } => {
                write!(
                    f,
                    "node {node} has other data than the member of that id: it has to join as a new member"
                )
            }
            Self::MemberRemoved { node } => {
                write!(f, "member {node} was removed from the group: it can join as a new member")
            }
            Self::MemberNotFound { node } => write!(f, "the group has no member {node}"),
            Self::NotCaughtUp { node, behind: Some(behind) } => {
                write!(f, "member {node} has not caught up yet: it lacks {behind} entries")
            }
            Self::NotCaughtUp { node, .. } => write!(f, "member {node} does not answer"),
            Self::MembersAreChanging => {
                f.write_str("another change of the members is not finished yet")
            }
            Self::TimingDiffers => {
                f.write_str("heartbeat or election timeouts differ between the members")
            }
            Self::NoCommonVersion => f.write_str("no protocol version in common"),
            Self::Malformed { what } => write!(f, "malformed {what}"),
            Self::AssertionFailed { detail } => {
                write!(f, "an assertion failed, which is a bug of quorate: {detail}")
            }
            Self::AlreadyOpen { path } => write!(f, "{path} is open in another node"),
            Self::FolderNotEmpty { path } => {
                write!(f, "{path} is not empty: a backup is restored into a folder of its own")
            }
            Self::RestoreInterrupted { path } => {
                write!(f, "restoring a backup into {path} did not end: restore it again")
            }
            Self::StateDiffers { index, own, others } => {
                write!(
                    f,
                    "the state at log index {index} has hash {own:032x} and that of a majority {others:032x}: \
                     start this member again, and it gets the state of another"
                )
            }
            Self::TransferTooSlow { bytes, took } => write!(
                f,
                "after {took:?} only {bytes} bytes of a state have come, and sending it was given up: if the connection \
                 carries no more, lower snapshot_rate"
            ),
            Self::ClientForgotten => f.write_str("the group does not know this client any more"),
            Self::AlreadyAnswered => f.write_str("this write was answered before"),
            Self::AnswerNotKept { revision } => write!(
                f,
                "applied at revision {revision}, but its answer was lost, and too large to be kept: read what is there now"
            ),
            Self::TooManyOutstanding { limit } => {
                write!(f, "more writes under way than {limit} of one client, or too many of all")
            }
            Self::TooManyClients { limit } => {
                write!(f, "the group remembers no more than {limit} clients")
            }
            Self::Closed => f.write_str("shut down"),
            Self::Unrecognized { text } => f.write_str(text),
        }
    }
}
