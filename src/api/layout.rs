//! The layout of the contract, on the wire and in the log. `tests` at the end hold the bytes of each command in place.
//!
//! Numbers are never reused or reordered. A command that this version does not know does not decode, and that stops
//! the node: skipping it would let this member disagree with the others.

use super::{
    Applied, Change, Command, Cursor, CursorId, Follow, Followed, Join, News, Origin, Position,
    Proposal, QUERIES_MAX, Query, Request, Response,
};
use crate::codec::layout::{Input, Layout, Malformed, layout, read_list};
use crate::error::{Error, Reason};
use crate::types::{
    Changes, Compare, Consistency, DeleteOp, Event, GetOp, KeyRange, KeyValue, LeaseId,
    LeaseStatus, Member, NodeId, Op, OpKind, OpResult, Operand, Page, PutOp, RangeOp, Relation,
    Revision, Shows, SortBy, Status, TxnOp, TxnOutcome, limits,
};
use bytes::Bytes;

macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Layout for $type {
            fn write(&self, out: &mut Vec<u8>) {
                self.get().write(out);
            }
            fn read(input: &mut Input) -> Result<Self, Malformed> {
                u64::read(input).map(Self::from)
            }
        }
    )*};
}
numbers!(Revision, NodeId, LeaseId);

layout!(struct CursorId(number));
layout!(struct KeyRange { start, end });
layout!(struct KeyValue { key, value, create_revision, mod_revision, version, lease });
layout!(enum Event { 1 => Put { kv, prev }, 2 => Delete { key, revision, prev } });
layout!(struct Changes { revision, events });
layout!(enum Consistency { 1 => Linearizable, 2 => Serializable });
layout!(enum SortBy { 1 => Key, 2 => Value, 3 => CreateRevision, 4 => ModRevision, 5 => Version });
layout!(enum Shows { 0 => Both, 1 => Count, 2 => Entries });
layout!(enum Relation { 1 => Equal, 2 => NotEqual, 3 => Less, 4 => Greater });
layout!(enum Operand {
    1 => Value(value), 2 => CreateRevision(revision), 3 => ModRevision(revision), 4 => Version(version),
    5 => Lease(lease),
});
layout!(struct Compare { range, relation, operand });
layout!(struct PutOp { key, value, lease, ignore_value, ignore_lease, prev });
layout!(struct GetOp { key, at });
layout!(struct DeleteOp { range, prev });
layout!(struct RangeOp {
    range, at, limit, keys_only, shows, sort, descending,
    mod_revision_min, mod_revision_max, create_revision_min, create_revision_max,
});

impl Layout for TxnOp {
    fn write(&self, out: &mut Vec<u8>) {
        self.when.write(out);
        self.then.write(out);
        self.otherwise.write(out);
    }

    fn read(input: &mut Input) -> Result<Self, Malformed> {
        // Counted again by `check`, which says what is wrong; this only bounds what a stranger can make us hold.
        let max = 4 * limits::TXN_OPERATIONS_MAX;
        Ok(Self {
            when: read_list(input, max)?,
            then: read_list(input, max)?,
            otherwise: read_list(input, max)?,
        })
    }
}

layout!(enum OpKind {
    1 => Put(put), 2 => Get(get), 3 => Delete(delete), 4 => Range(range), 5 => Txn(txn),
});
layout!(struct Op(kind));
layout!(struct Page { entries, more, count, revision });
layout!(enum OpResult {
    1 => Put { prev }, 2 => Get(kv), 3 => Deleted { count, prev }, 4 => Range(page), 5 => Txn(outcome),
});
layout!(struct TxnOutcome { succeeded, revision, results });
layout!(struct LeaseStatus { id, ttl, remaining, keys });

layout!(struct Origin { client, sequence, lowest_outstanding, again });
layout!(enum Command {
    1 => Txn(txn), 2 => Grant { id, ttl }, 3 => Revoke(lease), 4 => Expire { deciding_term, leases },
    5 => Compact(revision), 6 => Age { deciding_term }, 7 => Room { is_short }, 8 => Register,
    9 => AgeClients { deciding_term },
});
layout!(enum Applied {
    1 => Txn(outcome), 2 => Granted { id, ttl, revision }, 3 => Revoked { revision },
    4 => Expired { leases, revision }, 5 => Compacted { revision }, 6 => Noted { revision },
    7 => Registered { client, revision },
});
layout!(struct Query { txn, consistency, revision_min });
layout!(struct Position { revision, sub });
layout!(struct Cursor { range, next, puts, deletes, prev });

impl Layout for Follow {
    fn write(&self, out: &mut Vec<u8>) {
        self.stream.write(out);
        self.call.write(out);
        self.after.write(out);
        self.added.write(out);
        self.removed.write(out);
        self.wait.write(out);
        self.bytes_max.write(out);
    }

    fn read(input: &mut Input) -> Result<Self, Malformed> {
        Ok(Self {
            stream: u64::read(input)?,
            call: u64::read(input)?,
            after: u64::read(input)?,
            added: read_list(input, limits::BATCH_MAX)?,
            removed: read_list(input, limits::BATCH_MAX)?,
            wait: Layout::read(input)?,
            bytes_max: u32::read(input)?,
        })
    }
}

layout!(enum Followed { 1 => Step { number, progress, news }, 2 => Unknown });
layout!(enum News { 1 => Changes { changes, next, fragment }, 2 => Ended(reason) });
layout!(struct Status {
    id, group, leader, term, revision, applied_index, state_hash,
    bytes_in_use, bytes_on_disk, quota, is_short_of_room, members, states_differ_at,
});

layout!(struct Member { id, address, is_voter, is_leader, behind, silent_for });
layout!(struct Join { address, incarnation, name, heartbeat });
layout!(enum Change { 1 => Promote(node), 2 => Remove(node), 3 => Replace { old, new } });

/// The version of the layout of [`Proposal`]. A new field goes to the end of a new version.
const PROPOSAL_VERSION: u8 = 1;

impl Layout for Proposal {
    fn write(&self, out: &mut Vec<u8>) {
        PROPOSAL_VERSION.write(out);
        self.origin.write(out);
        self.command.write(out);
    }

    fn read(input: &mut Input) -> Result<Self, Malformed> {
        match u8::read(input)? {
            PROPOSAL_VERSION => {
                Ok(Self { origin: Option::read(input)?, command: Command::read(input)? })
            }
            _ => Err(Malformed),
        }
    }
}

impl Request {
    /// The number of its method on the wire. Never reused.
    pub(crate) fn method(&self) -> u16 {
        match self {
            Self::Propose { .. } => 1,
            Self::Query(_) => 2,
            Self::Follow(_) => 3,
            Self::KeepAlive { .. } => 4,
            Self::Leases { .. } => 5,
            Self::ReadIndex => 6,
            Self::Status => 7,
            Self::Founding(_) => 8,
            Self::Join { .. } => 9,
            Self::Members { .. } => 10,
            Self::Change { .. } => 11,
            Self::Queries(_) => 12,
        }
    }

    /// Appends what a frame of its method carries.
    pub(crate) fn write_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Propose { proposals, forwarded } => {
                proposals.write(out);
                forwarded.write(out);
            }
            Self::Query(query) => query.write(out),
            Self::Queries(queries) => queries.write(out),
            Self::Follow(follow) => follow.write(out),
            Self::KeepAlive { leases, forwarded } => {
                leases.write(out);
                forwarded.write(out);
            }
            Self::Leases { only, keys, forwarded } => {
                only.write(out);
                keys.write(out);
                forwarded.write(out);
            }
            Self::ReadIndex | Self::Status => {}
            Self::Founding(message) => message.write(out),
            Self::Join { join, forwarded } => {
                join.write(out);
                forwarded.write(out);
            }
            Self::Members { forwarded } => forwarded.write(out),
            Self::Change { change, forwarded } => {
                change.write(out);
                forwarded.write(out);
            }
        }
    }

    /// Reads what a frame of `method` carries.
    pub(crate) fn read_body(method: u16, body: Bytes) -> Result<Self, Malformed> {
        let input = &mut Input::new(body);
        let request = match method {
            1 => Self::Propose {
                proposals: read_list(input, limits::BATCH_MAX)?,
                forwarded: bool::read(input)?,
            },
            2 => Self::Query(Query::read(input)?),
            3 => Self::Follow(Follow::read(input)?),
            4 => Self::KeepAlive {
                leases: read_list(input, limits::BATCH_MAX)?,
                forwarded: bool::read(input)?,
            },
            5 => Self::Leases {
                only: Option::read(input)?,
                keys: bool::read(input)?,
                forwarded: bool::read(input)?,
            },
            6 => Self::ReadIndex,
            7 => Self::Status,
            8 => Self::Founding(Bytes::read(input)?),
            9 => Self::Join { join: Join::read(input)?, forwarded: bool::read(input)? },
            10 => Self::Members { forwarded: bool::read(input)? },
            12 => Self::Queries(read_list(input, QUERIES_MAX)?),
            11 => Self::Change { change: Change::read(input)?, forwarded: bool::read(input)? },
            _ => return Err(Malformed),
        };
        if input.remaining() == 0 { Ok(request) } else { Err(Malformed) }
    }
}

layout!(enum Response {
    1 => Propose(outcomes), 2 => Query(outcome), 3 => Follow(followed), 4 => KeepAlive(leases),
    5 => Leases { leases, revision }, 6 => ReadIndex(index), 7 => Status(status), 8 => Founding(message),
    9 => Join { node, founding }, 10 => Members(members), 11 => Change,
    12 => Queries(outcomes),
});

/// `may_have_applied ++ text ++ reason`: an older reader that lacks a name for the reason still has its text.
impl Layout for Error {
    fn write(&self, out: &mut Vec<u8>) {
        self.may_have_applied().write(out);
        self.reason().write(out);
    }

    fn read(input: &mut Input) -> Result<Self, Malformed> {
        let may_have_applied = bool::read(input)?;
        let error = Self::from(Reason::read(input)?);
        Ok(if may_have_applied { error.unknown_outcome() } else { error })
    }
}

/// `text ++ u32 length ++ number and fields`: an older reader that lacks a name for the reason still has its text.
impl Layout for Reason {
    fn write(&self, out: &mut Vec<u8>) {
        self.to_string().write(out);
        Numbered::to_bytes(&Numbered(self.clone())).write(out);
    }

    fn read(input: &mut Input) -> Result<Self, Malformed> {
        let text = String::read(input)?;
        let numbered = Numbered::from_bytes(Bytes::read(input)?);
        Ok(numbered.map_or(Self::Unrecognized { text }, |Numbered(reason)| reason))
    }
}

impl Reason {
    /// The same without a text, whose words may change from version to version: for what has to be the same on all members.
    pub(crate) fn write_number(&self, out: &mut Vec<u8>) {
        String::new().write(out);
        Numbered::to_bytes(&Numbered(self.clone())).write(out);
    }
}

/// A reason whose number both sides know.
struct Numbered(Reason);

macro_rules! reasons {
    ($($number:literal => $variant:ident $({$($field:ident),*})?),* $(,)?) => {
        impl Layout for Numbered {
            fn write(&self, out: &mut Vec<u8>) {
                match &self.0 {
                    $(Reason::$variant $({$($field),*})? => {
                        out.push($number);
                        $($($field.write(out);)*)?
                    })*
                }
            }
            fn read(input: &mut Input) -> Result<Self, Malformed> {
                match u8::read(input)? {
                    $($number => Ok(Self(Reason::$variant $({$($field: Layout::read(input)?),*})?)),)*
                    _ => Err(Malformed),
                }
            }
        }
    };
}
reasons! {
    1 => EmptyKey,
    2 => KeyTooLong { actual, limit },
    3 => ReservedKey,
    4 => EmptyRange,
    5 => ValueTooLarge { actual, limit },
    6 => RequestTooLarge { actual, limit },
    7 => TooManyOperations { actual, limit },
    8 => DuplicateKey,
    9 => ValueProvided,
    10 => LeaseProvided,
    11 => TtlTooSmall { floor },
    12 => TtlTooLarge,
    13 => BadAddress { detail },
    14 => BadMembers { detail },
    15 => BadOption { detail },
    16 => PlaintextRefused { address },
    17 => KeyNotFound,
    18 => LeaseNotFound { lease },
    19 => LeaseExists { lease },
    20 => Compacted { at },
    21 => FutureRevision { current },
    22 => SessionLost,
    23 => TooManyRequests,
    24 => ResultTooLarge { limit },
    25 => NoLeader,
    26 => NotLeader { leader },
    27 => LeaderChanged,
    28 => Unreachable { detail },
    29 => Starting,
    30 => DeadlinePassed { waited },
    31 => ConnectionLost,
    32 => GroupMismatch,
    33 => NodeMismatch { actual, expected },
    34 => IncarnationRefused { node },
    35 => FoundersDiffer { detail },
    36 => TimingDiffers,
    37 => NoCommonVersion,
    38 => Malformed { what },
    39 => WrongType { detail },
    40 => DiskFailed { detail },
    41 => Corrupt { detail },
    42 => UnreadableFormat { detail },
    43 => AlreadyOpen { path },
    44 => Closed,
    45 => Unrecognized { text },
    46 => AssertionFailed { detail },
    47 => TooManyKeys { limit },
    48 => NoSpace,
    49 => BackupDamaged { offset, detail },
    50 => FolderNotEmpty { path },
    51 => RestoreInterrupted { path },
    52 => StateDiffers { index, own, others },
    53 => MemberRemoved { node },
    54 => MemberNotFound { node },
    55 => NotCaughtUp { node, behind },
    56 => MembersAreChanging,
    57 => QuorumAtRisk { detail },
    58 => TransferTooSlow { bytes, took },
    59 => ClientForgotten,
    60 => AlreadyAnswered,
    61 => AnswerNotKept { revision },
    62 => TooManyClients { limit },
    63 => TooManyOutstanding { limit },
    64 => Untrusted { detail },
    65 => LeaseFull { lease, limit },
    66 => TooManyKeysRead { limit },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_bytes_of_a_put_are_golden() {
        let txn = TxnOp::single(Op::put("k", "v").lease(LeaseId::from(3)).0);
        let proposal = Proposal::from(Command::Txn(txn));
        let golden: &[u8] = &[
            1, 0, 1, // version, no origin, a transaction
            0, 0, 0, 0, // no comparison
            0, 0, 0, 1, 1, // one operation, a put
            0, 0, 0, 1, b'k', 0, 0, 0, 1, b'v', // key, value
            1, 0, 0, 0, 0, 0, 0, 0, 3, // lease
            0, 0, 0, // ignore value, ignore lease, prev
            0, 0, 0, 0, // nothing otherwise
        ];
        assert_eq!(proposal.to_bytes(), golden);
        assert_eq!(Proposal::from_bytes(Bytes::from_static(golden)).unwrap(), proposal);
    }

    #[test]
    fn the_bytes_of_lease_commands_are_golden() {
        let origin = Some(Origin { client: 1, sequence: 2, lowest_outstanding: 2, again: true });
        let expire = Command::Expire { deciding_term: 5, leases: vec![LeaseId::from(9)] };
        let golden: &[u8] = &[
            1, 1, // version, an origin
            0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 1, //
            4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9,
        ];
        assert_eq!(Proposal { origin, command: expire }.to_bytes(), golden);
        let grant = Command::Grant { id: None, ttl: Duration::from_millis(258) };
        assert_eq!(Proposal::from(grant).to_bytes()[..], [1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        let revoke = Command::Revoke(LeaseId::from(1));
        assert_eq!(Proposal::from(revoke).to_bytes()[..], [1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1]);
        let compact = Command::Compact(Revision::from(7));
        assert_eq!(Proposal::from(compact).to_bytes()[..], [1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(
            Proposal::from(Command::Age { deciding_term: 5 }).to_bytes()[..],
            [1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 5]
        );
        let short = Command::Room { is_short: true };
        assert_eq!(Proposal::from(short).to_bytes()[..], [1, 0, 7, 1]);
        assert_eq!(Proposal::from(Command::Register).to_bytes()[..], [1, 0, 8]);
        assert_eq!(
            Proposal::from(Command::AgeClients { deciding_term: 5 }).to_bytes()[..],
            [1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5]
        );
    }

    #[test]
    fn the_bytes_of_changes_of_the_members_are_golden() {
        let join = Join {
            address: "d:1".into(),
            incarnation: 7,
            name: "x".into(),
            heartbeat: Duration::from_millis(258),
        };
        let replace = Change::Replace { old: NodeId::from(2), new: Some(NodeId::from(9)) };
        let all: [(Request, u16, &[u8]); 5] = [
            (
                Request::Join { join, forwarded: true },
                9,
                &[
                    0, 0, 0, 3, b'd', b':', b'1', 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, b'x', //
                    0, 0, 0, 0, 0, 0, 1, 2, 1,
                ],
            ),
            (Request::Members { forwarded: false }, 10, &[0]),
            (
                Request::Change { change: Change::Promote(NodeId::from(9)), forwarded: false },
                11,
                &[1, 0, 0, 0, 0, 0, 0, 0, 9, 0],
            ),
            (
                Request::Change { change: Change::Remove(NodeId::from(9)), forwarded: false },
                11,
                &[2, 0, 0, 0, 0, 0, 0, 0, 9, 0],
            ),
            (
                Request::Change { change: replace, forwarded: true },
                11,
                &[3, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 9, 1],
            ),
        ];
        for (request, method, golden) in all {
            let mut body = Vec::new();
            request.write_body(&mut body);
            assert_eq!((request.method(), &body[..]), (method, golden));
            assert_eq!(Request::read_body(method, body.into()).unwrap(), request);
        }
    }

    #[test]
    fn an_unknown_version_or_command_does_not_decode() {
        assert!(Proposal::from_bytes(Bytes::from_static(&[2, 0, 1, 0, 0])).is_err());
        assert!(Proposal::from_bytes(Bytes::from_static(&[1, 0, 99])).is_err());
    }

    #[test]
    fn a_list_that_is_longer_than_a_batch_is_refused_before_it_is_read() {
        let revoke = Proposal::from(Command::Revoke(LeaseId::from(1)));
        let body = |count: usize| {
            let mut body = Vec::new();
            vec![revoke.clone(); count].write(&mut body);
            false.write(&mut body);
            Bytes::from(body)
        };
        assert!(Request::read_body(1, body(limits::BATCH_MAX)).is_ok());
        assert!(Request::read_body(1, body(limits::BATCH_MAX + 1)).is_err());
    }

    #[test]
    fn errors_travel_with_reason_and_outcome() {
        let error = Error::from(Reason::Compacted { at: Revision::from(7) }).unknown_outcome();
        let back = Error::from_bytes(error.to_bytes()).unwrap();
        assert_eq!(back.reason(), error.reason());
        assert!(back.may_have_applied());
    }

    #[test]
    fn a_reason_of_a_newer_version_keeps_its_text() {
        let mut bytes = Vec::new();
        "the moon is full".to_owned().write(&mut bytes);
        Bytes::from_static(&[200, 1, 2]).write(&mut bytes);
        let reason = Reason::from_bytes(bytes.into()).unwrap();
        assert_eq!(reason, Reason::Unrecognized { text: "the moon is full".into() });
    }
}
