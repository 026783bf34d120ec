//! Random commands, read from random bytes.
//!
//! proptest and the fuzzer make the bytes and shrink them; whatever they are, they read as commands, and fewer or smaller
//! bytes read as fewer or plainer ones. The tape is told where the state stands, so that most commands are legal and some
//! are not quite.

use crate::api::{Command, Cursor, Origin, Position, Proposal};
use crate::types::{
    Compare, DeleteOp, GetOp, KeyRange, LeaseId, Op, OpKind, Operand, PutOp, RangeOp, Relation,
    Revision, Shows, SortBy, TxnOp,
};
use bytes::Bytes;
use std::time::Duration;

/// The term that the commands are applied in.
pub(super) const TERM: u64 = 3;

pub(super) struct Tape<'bytes> {
    bytes: std::slice::Iter<'bytes, u8>,
    /// The oldest and the newest revision that can be read.
    pub(super) revisions: (u64, u64),
    pub(super) leases: Vec<LeaseId>,
    /// How many clients have registered.
    pub(super) clients: u64,
}

/// Few, so that commands meet; with zeros and prefixes of each other, so that escaping matters.
const KEYS: [&[u8]; 8] =
    [b"a", b"b", b"a\0", b"ab", b"a\0b", b"b\xff", b"\xff\xff", b"a\0\x01\xff"];

impl<'bytes> Tape<'bytes> {
    pub(super) fn new(bytes: &'bytes [u8]) -> Self {
        Self { bytes: bytes.iter(), revisions: (0, 1), leases: Vec::new(), clients: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() == 0
    }

    fn byte(&mut self) -> u8 {
        self.bytes.next().copied().unwrap_or(0)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    /// True once in `times`, and not for a zero.
    pub(super) fn once_in(&mut self, times: u8) -> bool {
        self.byte() % times == times - 1
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn list<T>(&mut self, end: usize, mut item: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(end)).map(|_| item(self)).collect()
    }

    pub(super) fn key(&mut self) -> Bytes {
        Bytes::from_static(self.pick(&KEYS))
    }

    fn value(&mut self) -> Bytes {
        let fill = self.pick(b"xyz");
        let length = self.pick(&[1, 0, 2, 64, 65, 300, 4000]);
        Bytes::from(vec![fill; length])
    }

    pub(super) fn range(&mut self) -> KeyRange {
        match self.below(8) {
            0..=2 => KeyRange::key(self.key()),
            3 => KeyRange::prefix(self.key()),
            4 => KeyRange::from(self.key()..),
            5 | 6 => {
                let (a, b) = (self.key(), self.key());
                let is_wrong = self.once_in(12);
                if (a < b) != is_wrong { KeyRange::from(a..b) } else { KeyRange::from(b..a) }
            }
            _ => KeyRange::all(),
        }
    }

    pub(super) fn revision(&mut self) -> Revision {
        let (oldest, newest) = self.revisions;
        let odd = self.once_in(12);
        let first = if odd { oldest.saturating_sub(2) } else { oldest };
        let last = if odd { newest + 2 } else { newest };
        Revision::from(first + self.below((last - first + 1) as usize) as u64)
    }

    fn maybe_revision(&mut self) -> Option<Revision> {
        self.once_in(4).then(|| self.revision())
    }

    /// Mostly the term in which it is applied.
    fn deciding_term(&mut self) -> u64 {
        if self.once_in(4) { TERM - 1 } else { TERM }
    }

    pub(super) fn lease(&mut self) -> LeaseId {
        let any = LeaseId::from(self.below(9) as u64);
        if self.leases.is_empty() || self.once_in(12) {
            return any;
        }
        let index = self.below(self.leases.len());
        self.leases[index]
    }

    fn compare(&mut self) -> Compare {
        let number = match self.once_in(2) {
            true => self.revision().get(),
            false => self.below(6) as u64,
        };
        Compare {
            range: self.range(),
            relation: self.pick(&[
                Relation::Equal,
                Relation::NotEqual,
                Relation::Less,
                Relation::Greater,
            ]),
            operand: match self.below(5) {
                0 => Operand::Version(number),
                1 => Operand::CreateRevision(number),
                2 => Operand::ModRevision(number),
                3 => Operand::Lease(number),
                _ => Operand::Value(self.value()),
            },
        }
    }

    fn put(&mut self) -> PutOp {
        let (ignore_value, ignore_lease) = (self.once_in(6), self.once_in(6));
        PutOp {
            key: self.key(),
            // Sometimes against the rules.
            value: if ignore_value && !self.once_in(20) { Bytes::new() } else { self.value() },
            lease: (!self.leases.is_empty() && self.once_in(3) && !ignore_lease)
                .then(|| self.lease()),
            ignore_value,
            ignore_lease,
            prev: self.once_in(2),
        }
    }

    pub(super) fn range_op(&mut self) -> RangeOp {
        let mut op = RangeOp::new(self.range());
        op.at = self.maybe_revision();
        op.limit = self.pick(&[0, 0, 1, 2, 3]);
        op.keys_only = self.once_in(5);
        op.shows =
            self.pick(&[Shows::Both, Shows::Both, Shows::Both, Shows::Entries, Shows::Count]);
        op.sort = self.pick(&[
            SortBy::Key,
            SortBy::Value,
            SortBy::CreateRevision,
            SortBy::ModRevision,
            SortBy::Version,
        ]);
        op.descending = self.once_in(2);
        op.mod_revision_min = self.maybe_revision();
        op.mod_revision_max = self.maybe_revision();
        op.create_revision_min = self.maybe_revision();
        op.create_revision_max = self.maybe_revision();
        op
    }

    pub(super) fn read(&mut self) -> Op {
        Op(match self.below(2) {
            0 => OpKind::Get(GetOp { key: self.key(), at: self.maybe_revision() }),
            _ => OpKind::Range(self.range_op()),
        })
    }

    fn op(&mut self, depth: usize) -> Op {
        match self.below(if depth == 0 { 9 } else { 11 }) {
            0..=4 => Op(OpKind::Put(self.put())),
            5 | 6 => Op(OpKind::Delete(DeleteOp { range: self.range(), prev: self.once_in(2) })),
            7 | 8 => self.read(),
            _ => Op(OpKind::Txn(self.nested(depth - 1))),
        }
    }

    fn nested(&mut self, depth: usize) -> TxnOp {
        let when = self.list(3, Self::compare);
        let then = self.list(4, |tape| tape.op(depth));
        let otherwise = self.list(4, |tape| tape.op(depth));
        TxnOp { when, then, otherwise }
    }

    pub(super) fn query(&mut self) -> TxnOp {
        let when = self.list(3, Self::compare);
        let then = self.list(4, Self::read);
        TxnOp { when, then, otherwise: vec![self.read()] }
    }

    pub(super) fn proposal(&mut self) -> Proposal {
        let origin = self.once_in(3).then(|| self.origin());
        Proposal { origin, command: self.command() }
    }

    /// Few clients with few numbers, so that writes are sent again.
    fn origin(&mut self) -> Origin {
        let client = self.below(self.clients.clamp(1, 3) as usize + 1) as u64;
        let sequence = 1 + self.below(6) as u64;
        let lowest_outstanding = match self.once_in(16) {
            true => sequence + 1,
            false => 1 + self.below(sequence as usize) as u64,
        };
        Origin { client, sequence, lowest_outstanding, again: self.once_in(2) }
    }

    fn command(&mut self) -> Command {
        let ttl = Duration::from_millis(self.below(9) as u64 * 1000);
        match self.below(18) {
            0..=5 => Command::Txn(TxnOp::single(OpKind::Put(self.put()))),
            6 | 7 => Command::Txn(TxnOp::single(self.op(0).0)),
            8..=10 => Command::Txn(self.nested(2)),
            11 => Command::Grant { id: None, ttl },
            12 => Command::Grant { id: Some(LeaseId::from(self.below(9) as u64)), ttl },
            13 => Command::Revoke(self.lease()),
            14 => Command::Expire {
                deciding_term: self.deciding_term(),
                leases: self.list(5, Self::lease),
            },
            15 => Command::Register,
            16 if self.once_in(2) => Command::AgeClients { deciding_term: self.deciding_term() },
            17 if self.once_in(8) => Command::Room { is_short: self.once_in(3) },
            _ if self.once_in(2) => Command::Age { deciding_term: self.deciding_term() },
            _ => Command::Compact(self.revision()),
        }
    }

    pub(super) fn cursor(&mut self) -> Cursor {
        Cursor {
            range: self.range(),
            next: Position { revision: self.revision(), sub: 0 },
            puts: !self.once_in(5),
            deletes: !self.once_in(5),
            prev: self.once_in(2),
        }
    }
}
