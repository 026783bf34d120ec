//! The first words on a connection: who calls, in which group, for what, and whether that is welcome.
//!
//! ```text
//! caller                                              callee
//!   preamble, 41 bytes ───────────────────────────────▶
//!     0  magic "QRT\0"
//!     4  kind: 1 Rpc, 2 Raft, 3 Snapshot
//!     5  lowest, 7 highest protocol version (u16)
//!     9  feature bits (u64)
//!    17  group (u128), 0 = any: only kind Rpc
//!    33  node of the caller (u64), 0 = a client
//!   ◀──────────────────────────────── answer, 35 bytes
//!                     0  status
//!                     1  version to speak (u16)
//!                     3  feature bits in common (u64)
//!                    11  group of the callee (u128), 0 = none yet
//!                    27  node of the callee (u64), 0 = none yet
//!   hello frame: from, to, incarnations, timing ──────▶     Raft and Snapshot only
//!   ◀────────────────────────── hello frame: status
//! ```
//!
//! Fixed and not negotiable, so that any two versions can at least say why they do not understand each other. The hello
//! comes after, because it may grow: whatever follows its known fields is skipped.
//!
//! Invariants
//! - nothing is allocated for a caller before its preamble was read and its kind has a place left;
//! - whoever is refused is told why, unless the bytes are not a preamble at all;
//! - a status of a newer version is a typed error, never a guess.

use crate::codec::layout::{Input, Layout, Malformed, layout};
use crate::error::{Error, Reason};
use crate::types::NodeId;
use bytes::{Buf, BufMut, Bytes};

/// The only protocol version so far.
pub(super) const VERSION: u16 = 1;
/// The length of a preamble.
pub(super) const PREAMBLE_BYTES: usize = 41;
/// The length of the answer to it.
pub(super) const ANSWER_BYTES: usize = 35;

const MAGIC: [u8; 4] = *b"QRT\0";

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// 0 = any, or not known yet.
    pub(crate) group: u128,
    /// 0 = a client.
    pub(crate) node: u64,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Rpc,
    Peer(PeerKind),
}

/// What an ordered connection between members is for. Bulk has its own, so that it never delays a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerKind {
    Raft,
    Snapshot,
}

/// What a caller says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Preamble {
    pub(crate) kind: Kind,
    pub(crate) version_lowest: u16,
    pub(crate) version_highest: u16,
    pub(crate) features: u64,
    pub(crate) caller: Endpoint,
}

/// What the callee says to a preamble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: Status,
    pub(super) version: u16,
    pub(super) features: u64,
    pub(super) callee: Endpoint,
}

/// Whether a connection is welcome, or why not. The numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    Ok = 0,
    NoCommonVersion = 1,
    WrongGroup = 2,
    WrongTarget = 3,
    CallerRemoved = 4,
    IncarnationRefused = 5,
    TimingDiffers = 6,
    TooManyConnections = 7,
    Starting = 8,
    ShuttingDown = 9,
    NotAMember = 10,
}

/// What a member says to another before anything else: who talks to whom, and under which rules of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) from_incarnation: u64,
    /// 0 = unknown to the caller.
    pub(crate) to_incarnation: u64,
    pub(crate) heartbeat_ms: u64,
    pub(crate) election_min_ms: u64,
    pub(crate) election_max_ms: u64,
    pub(crate) lease_reads: bool,
}
layout!(struct Hello {
    from, to, from_incarnation, to_incarnation, heartbeat_ms, election_min_ms, election_max_ms, lease_reads,
});

impl Endpoint {
    /// A caller that is no member, and takes the group that it finds.
    pub(crate) const fn client() -> Self {
        Self { group: 0, node: 0 }
    }
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Rpc => 1,
            Self::Peer(PeerKind::Raft) => 2,
            Self::Peer(PeerKind::Snapshot) => 3,
        }
    }

    fn from_number(number: u8) -> Result<Self, Malformed> {
        match number {
            1 => Ok(Self::Rpc),
            2 => Ok(Self::Peer(PeerKind::Raft)),
            3 => Ok(Self::Peer(PeerKind::Snapshot)),
            _ => Err(Malformed),
        }
    }
}

impl Preamble {
    /// The preamble of this version.
    pub(super) fn new(kind: Kind, caller: Endpoint) -> Self {
        Self { kind, version_lowest: VERSION, version_highest: VERSION, features: 0, caller }
    }

    pub(super) fn encode(&self) -> [u8; PREAMBLE_BYTES] {
        let mut bytes = [0; PREAMBLE_BYTES];
        let mut rest = &mut bytes[..];
        rest.put_slice(&MAGIC);
        rest.put_u8(self.kind.number());
        rest.put_u16(self.version_lowest);
        rest.put_u16(self.version_highest);
        rest.put_u64(self.features);
        rest.put_u128(self.caller.group);
        rest.put_u64(self.caller.node);
        bytes
    }

    pub(super) fn decode(bytes: &[u8; PREAMBLE_BYTES]) -> Result<Self, Malformed> {
        let mut rest = bytes.strip_prefix(&MAGIC).ok_or(Malformed)?;
        Ok(Self {
            kind: Kind::from_number(rest.get_u8())?,
            version_lowest: rest.get_u16(),
            version_highest: rest.get_u16(),
            features: rest.get_u64(),
            caller: Endpoint { group: rest.get_u128(), node: rest.get_u64() },
        })
    }

    /// The highest version that both sides speak.
    pub(super) fn common_version(&self) -> Option<u16> {
        (self.version_lowest..=self.version_highest).contains(&VERSION).then_some(VERSION)
    }

    /// Whether the caller may talk to a member of `group`. Only on kind Rpc may it not know the group.
    pub(crate) fn check_group(&self, group: u128) -> Status {
        let any = self.caller.group == 0 && self.kind == Kind::Rpc;
        if any || self.caller.group == group { Status::Ok } else { Status::WrongGroup }
    }
}

impl Answer {
    pub(super) fn encode(&self) -> [u8; ANSWER_BYTES] {
        let mut bytes = [0; ANSWER_BYTES];
        let mut rest = &mut bytes[..];
        rest.put_u8(self.status as u8);
        rest.put_u16(self.version);
        rest.put_u64(self.features);
        rest.put_u128(self.callee.group);
        rest.put_u64(self.callee.node);
        bytes
    }

    pub(super) fn decode(bytes: &[u8; ANSWER_BYTES]) -> Result<Self, Error> {
        let mut rest = &bytes[..];
        Ok(Self {
            status: Status::from_number(rest.get_u8())?,
            version: rest.get_u16(),
            features: rest.get_u64(),
            callee: Endpoint { group: rest.get_u128(), node: rest.get_u64() },
        })
    }
}

impl Status {
    const ALL: [Self; 11] = [
        Self::Ok,
        Self::NoCommonVersion,
        Self::WrongGroup,
        Self::WrongTarget,
        Self::CallerRemoved,
        Self::IncarnationRefused,
        Self::TimingDiffers,
        Self::TooManyConnections,
        Self::Starting,
        Self::ShuttingDown,
        Self::NotAMember,
    ];

    fn from_number(number: u8) -> Result<Self, Error> {
        let known = Self::ALL.into_iter().find(|status| *status as u8 == number);
        known.ok_or_else(|| {
            let text = format!("the peer refuses with status {number}, which this version lacks");
            Reason::Unrecognized { text }.into()
        })
    }

    /// The error that a caller returns who was answered so by `address`. `expected` is whom it meant to call.
    pub(super) fn check(
        self,
        address: &str,
        caller: u64,
        expected: u64,
        callee: u64,
    ) -> Result<(), Error> {
        let reason = match self {
            Self::Ok => return Ok(()),
            Self::NoCommonVersion => Reason::NoCommonVersion,
            Self::WrongGroup => Reason::GroupMismatch,
            Self::WrongTarget => Reason::NodeMismatch {
                actual: NodeId::from(callee),
                expected: NodeId::from(expected),
            },
            // There is no way back under the same id after either: one has to join as somebody new.
            Self::CallerRemoved => Reason::MemberRemoved { node: NodeId::from(caller) },
            Self::IncarnationRefused => Reason::IncarnationRefused { node: NodeId::from(caller) },
            Self::TimingDiffers => Reason::TimingDiffers,
            Self::TooManyConnections => Reason::TooManyRequests,
            Self::Starting => Reason::Starting,
            // Not `Closed`: that is what a caller says of itself, and it ends sessions that could go on elsewhere.
            Self::ShuttingDown => {
                Reason::Unreachable { detail: format!("{address}: it is shutting down") }
            }
            Self::NotAMember => {
                let detail = format!("{address}: the certificate is not that of a member");
                Reason::Untrusted { detail }
            }
        };
        Err(reason.into())
    }

    /// The payload of the frame that answers a hello.
    pub(super) fn to_payload(self) -> Bytes {
        with_tail(|out| (self as u8).write(out))
    }

    pub(super) fn from_payload(payload: Bytes) -> Result<Self, Error> {
        let number = before_tail(payload, u8::read);
        Self::from_number(
            number.map_err(|_| Reason::Malformed { what: "answer to a hello".into() })?,
        )
    }
}

impl Hello {
    pub(super) fn to_payload(&self) -> Bytes {
        with_tail(|out| self.write(out))
    }

    pub(super) fn from_payload(payload: Bytes) -> Result<Self, Malformed> {
        before_tail(payload, Self::read)
    }
}

/// A record that later versions may lengthen: its fields, the length of the tail (u16), the tail.
fn with_tail(write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut out = Vec::new();
    write(&mut out);
    0u16.write(&mut out);
    out.into()
}

/// Reads the fields that this version knows, and skips the tail.
fn before_tail<T>(
    payload: Bytes,
    read: impl FnOnce(&mut Input) -> Result<T, Malformed>,
) -> Result<T, Malformed> {
    let mut input = Input::new(payload);
    let record = read(&mut input)?;
    let tail = u16::read(&mut input)?;
    input.take(usize::from(tail))?;
    if input.remaining() == 0 { Ok(record) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CALLER: Endpoint = Endpoint { group: 0x0102, node: 7 };

    fn hello() -> Hello {
        Hello {
            from: 1,
            to: 2,
            from_incarnation: 3,
            to_incarnation: 0,
            heartbeat_ms: 100,
            election_min_ms: 500,
            election_max_ms: 1000,
            lease_reads: true,
        }
    }

    #[test]
    fn the_bytes_of_a_preamble_are_golden() {
        let preamble =
            Preamble { features: 5, ..Preamble::new(Kind::Peer(PeerKind::Raft), CALLER) };
        let golden: [u8; 41] = [
            b'Q', b'R', b'T', 0, 2, // magic, kind
            0, 1, 0, 1, // versions
            0, 0, 0, 0, 0, 0, 0, 5, // features
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, // group
            0, 0, 0, 0, 0, 0, 0, 7, // node
        ];
        assert_eq!(preamble.encode(), golden);
        assert_eq!(Preamble::decode(&golden).unwrap(), preamble);
    }

    #[test]
    fn the_bytes_of_an_answer_are_golden() {
        let answer =
            Answer { status: Status::TimingDiffers, version: 1, features: 5, callee: CALLER };
        let golden: [u8; 35] = [
            6, 0, 1, // status, version
            0, 0, 0, 0, 0, 0, 0, 5, // features
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, // group
            0, 0, 0, 0, 0, 0, 0, 7, // node
        ];
        assert_eq!(answer.encode(), golden);
        assert_eq!(Answer::decode(&golden).unwrap(), answer);
    }

    #[test]
    fn the_bytes_of_a_hello_are_golden() {
        let golden: &[u8] = &[
            0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, // from, to
            0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, // incarnations
            0, 0, 0, 0, 0, 0, 0, 100, // heartbeat
            0, 0, 0, 0, 0, 0, 1, 244, 0, 0, 0, 0, 0, 0, 3, 232, // election
            1, 0, 0, // lease reads, no tail
        ];
        assert_eq!(hello().to_payload(), golden);
        assert_eq!(Hello::from_payload(Bytes::from_static(golden)).unwrap(), hello());
        assert_eq!(Status::Ok.to_payload(), &[0, 0, 0][..]);
    }

    #[test]
    fn the_tail_of_a_newer_hello_is_skipped() {
        let mut longer = hello().to_payload().to_vec();
        longer.truncate(longer.len() - 2);
        longer.extend([0, 3, 9, 9, 9]);
        assert_eq!(Hello::from_payload(longer.clone().into()).unwrap(), hello());
        longer.push(9);
        assert_eq!(Hello::from_payload(longer.into()), Err(Malformed));
    }

    #[test]
    fn statuses_keep_their_numbers_and_unknown_ones_are_typed() {
        for (number, status) in Status::ALL.into_iter().enumerate() {
            assert_eq!(status as usize, number);
            assert_eq!(Status::from_payload(status.to_payload()).unwrap(), status);
            assert_eq!(status.check("a:1", 1, 2, 3).is_ok(), status == Status::Ok);
        }
        let error = Status::from_number(11).unwrap_err();
        assert!(matches!(error.reason(), Reason::Unrecognized { .. }));
    }

    #[test]
    fn only_a_client_may_not_know_the_group() {
        let knows_none = Endpoint { group: 0, node: 0 };
        let client = Preamble::new(Kind::Rpc, knows_none);
        assert_eq!(client.check_group(9), Status::Ok);
        let member = Preamble::new(Kind::Peer(PeerKind::Raft), knows_none);
        assert_eq!(member.check_group(9), Status::WrongGroup);
        assert_eq!(Preamble::new(Kind::Rpc, CALLER).check_group(9), Status::WrongGroup);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            preamble: [u8; 32], rest: [u8; 9], answer in proptest::collection::vec(any::<u8>(), 35),
            payload in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let mut bytes = [0; PREAMBLE_BYTES];
            bytes[..32].copy_from_slice(&preamble);
            bytes[32..].copy_from_slice(&rest);
            let _ = Preamble::decode(&bytes);
            bytes[..4].copy_from_slice(&MAGIC);
            let _ = Preamble::decode(&bytes);
            let _ = Answer::decode(answer[..].try_into().unwrap());
            let _ = Hello::from_payload(payload.clone().into());
            let _ = Status::from_payload(payload.into());
        }
    }
}
