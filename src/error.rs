//! The one error of the crate, and the fault that stops a node.
//!
//! There are two kinds of "no". A *rejection* by the rules is an answer: every member would give the same one, and it
//! is a [`Reason`]. A *fault* is this member's own, a failed disk or bytes that are not what was written, and stops the
//! node; it is a `Fault`. They are two types, so that they cannot be confused: the state machine returns
//! `Result<Result<_, Reason>, Fault>`, and only the inner error is ever replicated.
//!
//! What a caller should do next follows from [`Error::kind`], [`Error::is_retryable`] and [`Error::may_have_applied`];
//! details to show or log are in the [`Reason`] and in the text.

mod text;

use crate::types::{LeaseId, NodeId, Revision};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A result with the crate's own [`Error`].
///
/// ```
/// fn port(text: &str) -> quorate::Result<u16, std::num::ParseIntError> {
///     text.parse()
/// }
/// assert_eq!(port("7401"), Ok(7401));
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed, and what to do about it. Cheap to clone.
///
/// ```
/// # use quorate::{Error, ErrorKind};
/// fn advice(error: &Error) -> &'static str {
///     match error.kind() {
///         ErrorKind::Compacted => "read the range again, then watch from there",
///         ErrorKind::LeaseExpired => "open a new session",
///         _ if error.is_retryable() && !error.may_have_applied() => "call again",
///         _ if error.may_have_applied() => "look whether the write happened",
///         _ => "mend the call",
///     }
/// }
/// # let _ = advice;
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    reason: Reason,
    may_have_applied: bool,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// What class of failure it is, by who has to act.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// use quorate::ErrorKind;
///
/// let unknown = client.lease_revoke(7.into()).await.unwrap_err();
/// assert_eq!(unknown.kind(), ErrorKind::NotFound);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A key, value, transaction or argument breaks a rule. The caller has to change it.
    InvalidInput,
    /// What the call names does not exist.
    NotFound,
    /// What the call would make exists already, or somebody else was faster.
    Conflict,
    /// The revision is outside of the history that the group keeps.
    Compacted,
    /// The lease, and with it the session and all that hung on it, is gone.
    LeaseExpired,
    /// Too much at once. Later, or smaller.
    Overloaded,
    /// The group has no room for more. Delete, compact, or give it a larger quota.
    NoSpace,
    /// No quorum, no leader, or no endpoint answers.
    Unavailable,
    /// The deadline passed. A write may or may not have happened.
    Timeout,
    /// The peer belongs to another group, is another member, or speaks another protocol version.
    WrongGroup,
    /// One side does not take the other's certificate. Give it another, or its authority.
    Unauthenticated,
    /// A value could not be decoded as the asked type.
    Codec,
    /// The disk failed, is in use, or holds data that this version cannot read.
    Storage,
    /// The node or client was shut down.
    Closed,
}

/// The typed reason of an [`Error`].
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// use quorate::Reason;
///
/// let error = client.put("", "a value without a key").await.unwrap_err();
/// assert_eq!(*error.reason(), Reason::EmptyKey);
/// assert!(!error.is_retryable() && !error.may_have_applied());
/// assert_eq!(error.to_string(), "a key has at least one byte");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// A key has at least one byte.
    EmptyKey,
    /// The key is longer than a key may be.
    KeyTooLong {
        /// Its length in bytes.
        actual: u64,
        /// The longest allowed.
        limit: u64,
    },
    /// Keys that begin with a zero byte belong to the group itself.
    ReservedKey,
    /// The range cannot hold a key: its end is not above its start.
    EmptyRange,
    /// The value is larger than a value may be.
    ValueTooLarge {
        /// Its length in bytes.
        actual: u64,
        /// The largest allowed.
        limit: u64,
    },
    /// The request is larger than a request may be.
    RequestTooLarge {
        /// Its size in bytes.
        actual: u64,
        /// The largest allowed.
        limit: u64,
    },
    /// The transaction would delete more keys than a transaction may: delete them in pieces.
    TooManyKeys {
        /// The most allowed.
        limit: u64,
    },
    /// The comparisons and ranges of the write go through more keys than those of a write may: read first, and compare what was
    /// found.
    TooManyKeysRead {
        /// The most allowed.
        limit: u64,
    },
    /// The transaction has more comparisons or operations than a transaction may have.
    TooManyOperations {
        /// How many it has.
        actual: u64,
        /// The most allowed.
        limit: u64,
    },
    /// Two operations of the transaction would change the same key: a key changes at most once per revision.
    DuplicateKey,
    /// A put that keeps the old value was given a value.
    ValueProvided,
    /// A put that keeps the old lease was given a lease.
    LeaseProvided,
    /// The time to live is shorter than a change of leader takes.
    TtlTooSmall {
        /// The shortest that this group grants.
        floor: Duration,
    },
    /// The time to live is longer than 100 years.
    TtlTooLarge,
    /// The address is not `host:port`, or cannot be listened on.
    BadAddress {
        /// Which, and why.
        detail: String,
    },
    /// The list of members makes no sense.
    BadMembers {
        /// Why.
        detail: String,
    },
    /// An option makes no sense.
    BadOption {
        /// Which, and why.
        detail: String,
    },
    /// Traffic to an address that is not loopback would be readable by others; say `.plaintext()` if that is meant.
    PlaintextRefused {
        /// The address.
        address: String,
    },
    /// One side of a connection does not trust the other: a certificate is missing, has expired, is of another authority, or
    /// is not that of a member where one is needed.
    Untrusted {
        /// The address, and what is wrong.
        detail: String,
    },
    /// The put keeps the old value or lease of a key that does not exist.
    KeyNotFound,
    /// The lease is unknown, revoked or expired.
    LeaseNotFound {
        /// Which.
        lease: LeaseId,
    },
    /// The lease would have more keys than one may have. What the same transaction takes off it does not count.
    LeaseFull {
        /// Which.
        lease: LeaseId,
        /// The most allowed.
        limit: u64,
    },
    /// A lease of this id exists.
    LeaseExists {
        /// Which.
        lease: LeaseId,
    },
    /// The revision was compacted away.
    Compacted {
        /// The oldest revision that can be read and watched from.
        at: Revision,
    },
    /// The revision has not happened yet.
    FutureRevision {
        /// The newest revision.
        current: Revision,
    },
    /// The session did not reach the group in time, so its lease counts as lost.
    SessionLost,
    /// The group has used up its quota, or the disk of its leader is nearly full. Deleting and compacting go on, and what takes
    /// no room.
    NoSpace,
    /// More requests are waiting than this node takes on.
    TooManyRequests,
    /// The answer does not fit: ask for less at once.
    ResultTooLarge {
        /// The most bytes that one answer carries.
        limit: u64,
    },
    /// The group has no leader now.
    NoLeader,
    /// The asked member does not lead, and was not to pass the request on.
    NotLeader {
        /// Who leads, if it knows.
        leader: Option<NodeId>,
    },
    /// The leader changed while the request was under way.
    LeaderChanged,
    /// The peer cannot be reached.
    Unreachable {
        /// Its address, and why.
        detail: String,
    },
    /// The node is starting and does not serve yet.
    Starting,
    /// The group does not know this client any more: it has not written for an hour, or the group was made from a backup. It
    /// makes itself known again with its next write. What it had sent before, and had no answer to, may have been applied.
    ClientForgotten,
    /// The write was sent again after its sender had said that it had the answer. Nobody waits for this.
    AlreadyAnswered,
    /// The write was applied, its answer was lost on the way, and it was too large to be kept: more than 16 KiB, or there were
    /// too many. Read what is there now.
    AnswerNotKept {
        /// The revision of the write.
        revision: Revision,
    },
    /// This client has more writes under way than the group keeps answers for, or all clients have.
    TooManyOutstanding {
        /// The most of one client.
        limit: u64,
    },
    /// More clients have made themselves known within an hour than the group remembers. Writes of others are sent once.
    TooManyClients {
        /// The most that it remembers.
        limit: u64,
    },
    /// No answer within the time allowed.
    DeadlinePassed {
        /// How long the call waited.
        waited: Duration,
    },
    /// The connection broke before the answer came.
    ConnectionLost,
    /// The peer, or the data folder, belongs to another group.
    GroupMismatch,
    /// The peer, or the data folder, is another member than expected.
    NodeMismatch {
        /// Who it is.
        actual: NodeId,
        /// Who was expected.
        expected: NodeId,
    },
    /// A member of this id has other data: its folder was replaced. It has to join as somebody new.
    IncarnationRefused {
        /// The id.
        node: NodeId,
    },
    /// The member was removed from the group, and its id is never used again. It can join with an empty folder.
    MemberRemoved {
        /// The id.
        node: NodeId,
    },
    /// The group has no member of this id.
    MemberNotFound {
        /// The id.
        node: NodeId,
    },
    /// The member lacks too much of the log to be a voter yet, or does not answer. Call again: it catches up meanwhile.
    NotCaughtUp {
        /// The id.
        node: NodeId,
        /// How many entries it lacks; `None` if the leader has not heard of it.
        behind: Option<u64>,
    },
    /// Another change of the members is not finished. Call again when it is.
    MembersAreChanging,
    /// After the change the voters that answer would be no majority, and the group could not go on.
    QuorumAtRisk {
        /// How many of how many.
        detail: String,
    },
    /// The members list that founded the group is another one.
    FoundersDiffer {
        /// How they differ.
        detail: String,
    },
    /// The members run with different timing, so that their leases would disagree.
    TimingDiffers,
    /// The peer speaks no protocol version that this one speaks.
    NoCommonVersion,
    /// The bytes of a message or record make no sense.
    Malformed {
        /// What they should have been.
        what: String,
    },
    /// A value is not of the asked type.
    WrongType {
        /// Where, and why.
        detail: String,
    },
    /// The disk refused, or broke its word.
    DiskFailed {
        /// What was tried.
        detail: String,
    },
    /// What is on the disk is not what was written. If it is the state of a member, and there are others, the text says so:
    /// start the member again, and it gets the state of another before it does anything else. If it is the log, or there is
    /// nobody else, what was promised is lost with it: [`replace`](crate::Client::replace_member) the member, or restore a
    /// backup.
    Corrupt {
        /// What, and where.
        detail: String,
    },
    /// A newer version wrote this, or a program with another LMDB.
    UnreadableFormat {
        /// What was found.
        detail: String,
    },
    /// Another node, in this process or another, has the data folder open.
    AlreadyOpen {
        /// The folder.
        path: String,
    },
    /// The bytes of a backup are not those that were written.
    BackupDamaged {
        /// Where the damage begins.
        offset: u64,
        /// What is wrong, and where: the byte, and the table and row if it is in one.
        detail: String,
    },
    /// A backup is restored into an empty folder, or one that does not exist.
    FolderNotEmpty {
        /// The folder.
        path: String,
    },
    /// Restoring a backup into this folder was begun and did not end. Restore it again.
    RestoreInterrupted {
        /// The folder.
        path: String,
    },
    /// This member has applied the same entries as the others and has another state than most of them: its memory or its disk
    /// has failed it, or there is a bug. It takes no part any more. Start it again: it then gets the state of another member
    /// before it does anything else.
    StateDiffers {
        /// The log index at which they were compared.
        index: u64,
        /// The hash of this member's state there.
        own: u128,
        /// The hash that a majority has.
        others: u128,
    },
    /// A snapshot, or a state that another member asked for, came forward so slowly that sending it was given up: as long as it
    /// is sent, the file and the log of its sender grow. It is begun again. If the connection carries no more, lower
    /// [`snapshot_rate`](crate::NodeBuilder::snapshot_rate) on the members that send: an eighth of that is what is asked for.
    TransferTooSlow {
        /// How much of it has come.
        bytes: u64,
        /// In which time.
        took: Duration,
    },
    /// An assertion of this crate failed, and stopped the node before it could do harm. This is a bug: report it.
    AssertionFailed {
        /// Which.
        detail: String,
    },
    /// The node or client was shut down.
    Closed,
    /// An answer of a newer version that this one has no name for.
    Unrecognized {
        /// Its text.
        text: String,
    },
}

impl Reason {
    /// Whether the state has said so, of what it knows of clients: the write was in the log.
    pub(crate) fn is_of_clients(&self) -> bool {
        matches!(
            self,
            Self::ClientForgotten
                | Self::AlreadyAnswered
                | Self::AnswerNotKept { .. }
                | Self::TooManyOutstanding { .. }
                | Self::TooManyClients { .. }
        )
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::EmptyKey
            | Self::KeyTooLong { .. }
            | Self::ReservedKey
            | Self::EmptyRange
            | Self::ValueTooLarge { .. }
            | Self::RequestTooLarge { .. }
            | Self::TooManyOperations { .. }
            | Self::TooManyKeys { .. }
            | Self::TooManyKeysRead { .. }
            | Self::LeaseFull { .. }
            | Self::ResultTooLarge { .. }
            | Self::AnswerNotKept { .. }
            | Self::DuplicateKey
            | Self::ValueProvided
            | Self::LeaseProvided
            | Self::TtlTooSmall { .. }
            | Self::TtlTooLarge
            | Self::BadAddress { .. }
            | Self::BadMembers { .. }
            | Self::BadOption { .. }
            | Self::QuorumAtRisk { .. }
            | Self::FolderNotEmpty { .. }
            | Self::PlaintextRefused { .. } => ErrorKind::InvalidInput,
            Self::KeyNotFound | Self::LeaseNotFound { .. } | Self::MemberNotFound { .. } => {
                ErrorKind::NotFound
            }
            Self::LeaseExists { .. } | Self::AlreadyAnswered => ErrorKind::Conflict,
            Self::Compacted { .. } | Self::FutureRevision { .. } => ErrorKind::Compacted,
            Self::SessionLost => ErrorKind::LeaseExpired,
            Self::NoSpace => ErrorKind::NoSpace,
            Self::TooManyRequests
            | Self::TooManyOutstanding { .. }
            | Self::TooManyClients { .. } => ErrorKind::Overloaded,
            Self::NoLeader
            | Self::NotLeader { .. }
            | Self::LeaderChanged
            | Self::Unreachable { .. }
            | Self::Starting
            | Self::NotCaughtUp { .. }
            | Self::MembersAreChanging
            | Self::TransferTooSlow { .. }
            | Self::Unrecognized { .. } => ErrorKind::Unavailable,
            Self::DeadlinePassed { .. } | Self::ConnectionLost | Self::ClientForgotten => {
                ErrorKind::Timeout
            }
            Self::GroupMismatch
            | Self::NodeMismatch { .. }
            | Self::IncarnationRefused { .. }
            | Self::MemberRemoved { .. }
            | Self::FoundersDiffer { .. }
            | Self::TimingDiffers
            | Self::NoCommonVersion
            | Self::Malformed { .. } => ErrorKind::WrongGroup,
            Self::Untrusted { .. } => ErrorKind::Unauthenticated,
            Self::WrongType { .. } => ErrorKind::Codec,
            Self::DiskFailed { .. }
            | Self::Corrupt { .. }
            | Self::UnreadableFormat { .. }
            | Self::BackupDamaged { .. }
            | Self::RestoreInterrupted { .. }
            | Self::AlreadyOpen { .. }
            | Self::StateDiffers { .. }
            | Self::AssertionFailed { .. } => ErrorKind::Storage,
            Self::Closed => ErrorKind::Closed,
        }
    }
}

impl Error {
    /// A failure before which nothing happened.
    pub(crate) fn new(reason: Reason) -> Self {
        Self(Arc::new(Inner { reason, may_have_applied: false, source: None }))
    }

    /// The same failure, of a write that may have happened all the same.
    #[must_use]
    pub(crate) fn unknown_outcome(mut self) -> Self {
        Arc::make_mut(&mut self.0).may_have_applied = true;
        self
    }

    /// The same failure with what caused it.
    #[must_use]
    pub(crate) fn because(
        mut self,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Arc::make_mut(&mut self.0).source = Some(Arc::new(source));
        self
    }

    /// The same failure, said otherwise.
    #[must_use]
    pub(crate) fn for_reason(mut self, reason: Reason) -> Self {
        Arc::make_mut(&mut self.0).reason = reason;
        self
    }

    /// What class of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.reason.kind()
    }

    /// The typed reason.
    #[must_use]
    pub fn reason(&self) -> &Reason {
        &self.0.reason
    }

    /// Whether the same call can succeed later without a change by the caller.
    ///
    /// A write that [may have been applied](Self::may_have_applied) would then perhaps happen twice.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Overloaded)
    }

    /// Whether the group may have carried out the write despite this error.
    ///
    /// A client sends a write again as long as its time lasts, and it happens once. So this is left for six cases: the time was
    /// up, or the client was shut down, before there was an answer; the member in whose process the client is has failed, or was
    /// removed, while the write was under way; an answer was lost, and then the client's only endpoint refused it for good (its
    /// certificate has expired, say); the group had forgotten the client ([`ClientForgotten`](Reason::ClientForgotten)), or
    /// remembers too many others to know it, and an answer was lost; the answer was lost and too large to be kept
    /// ([`AnswerNotKept`](Reason::AnswerNotKept): then it was applied); and changes of the members.
    #[must_use]
    pub fn may_have_applied(&self) -> bool {
        self.0.may_have_applied
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        Self::new(reason)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("reason", &self.0.reason)
            .field("may_have_applied", &self.0.may_have_applied)
            .field("source", &self.0.source)
            .finish()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.reason.fmt(f)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        if self.0.may_have_applied {
            f.write_str("; the write may have been applied")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source.as_ref() as &(dyn std::error::Error + 'static))
    }
}

/// A failure of this member's own: it stops the node, with this as the cause, and never becomes an answer of the group.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    error: Error,
    /// Whether it is the tables of the state that are damaged, which others have as well.
    is_of_tables: bool,
}

impl Fault {
    fn new(error: Error) -> Self {
        Self { error, is_of_tables: false }
    }

    /// The disk refused, or broke its word.
    pub(crate) fn disk(
        tried: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::new(Error::new(Reason::DiskFailed { detail: tried.into() }).because(source))
    }

    /// What is on the disk is not what was written.
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::from_reason(Reason::Corrupt { detail: what.into() })
    }

    /// The same, of the tables of the state, and of nothing else: not of the log, nor of how the two fit together.
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self { is_of_tables: true, ..Self::corrupt(what) }
    }

    /// The same, of tables that are not those of the state: of a copy that is being made.
    pub(crate) fn elsewhere(self) -> Self {
        Self { is_of_tables: false, ..self }
    }

    /// Whether it is the tables of the state that are damaged.
    pub(crate) fn is_of_tables(&self) -> bool {
        self.is_of_tables
    }

    /// A newer version wrote this, or another LMDB.
    pub(crate) fn format(found: impl Into<String>) -> Self {
        Self::from_reason(Reason::UnreadableFormat { detail: found.into() })
    }

    /// Its reason.
    pub(crate) fn reason(&self) -> &Reason {
        self.error.reason()
    }

    /// A fault of any other reason.
    pub(crate) fn from_reason(reason: Reason) -> Self {
        Self::new(Error::new(reason))
    }

    /// An assertion failed.
    pub(crate) fn assertion(detail: impl Into<String>) -> Self {
        Self::from_reason(Reason::AssertionFailed { detail: detail.into() })
    }

    /// Another node has the folder open.
    pub(crate) fn already_open(path: &std::path::Path) -> Self {
        Self::from_reason(Reason::AlreadyOpen { path: path.display().to_string() })
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        fault.error
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Fault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

#[cfg(test)]
mod tests;
