//! Our own form of everything that openraft gives us to keep or to send.
//!
//! openraft's structs change between its versions, and are never written as they are. Each record here begins with a
//! version, and its layout is held in place by golden bytes.
//!
//! ```text
//! log id      term u64 | node u64 | index u64
//! vote        version u8 | term u64 | node u64 | committed u8
//! membership  version u8 | configs [[node u64]] | members [(node u64, address, incarnation u64)]
//! entry       version u8 | log id | kind u8 | body        kind: 1 blank, 2 command, 3 membership
//! ```

use super::{Entry, EntryPayload, LogId, Membership, Payload, Peer, StoredMembership, Types, Vote};
use crate::codec::layout::{Input, Layout, Malformed, layout};
use crate::mvcc::LogPosition;
use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft::vote::RaftLeaderId;
use std::collections::{BTreeMap, BTreeSet};

type LeaderId = openraft::alias::LeaderIdOf<Types>;

/// The version of vote, membership and entry.
const VERSION: u8 = 1;

/// Nobody has come so far. openraft adds one to indexes and terms, and would end where there is no next one.
const COUNT_MAX: u64 = 1 << 62;

fn read_count(input: &mut Input) -> Result<u64, Malformed> {
    let count = u64::read(input)?;
    if count <= COUNT_MAX { Ok(count) } else { Err(Malformed) }
}

/// Reads the version of a record, of which this build knows one.
fn read_version(input: &mut Input) -> Result<(), Malformed> {
    if u8::read(input)? == VERSION { Ok(()) } else { Err(Malformed) }
}

pub(crate) fn position(id: &LogId) -> LogPosition {
    let leader = id.committed_leader_id();
    LogPosition { term: leader.term, node: leader.node_id, index: id.index }
}

pub(crate) fn log_id(position: LogPosition) -> LogId {
    LogId::new(LeaderId::new(position.term, position.node), position.index)
}

impl Layout for LogId {
    fn write(&self, out: &mut Vec<u8>) {
        position(self).write(out);
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        let (term, node) = (read_count(input)?, u64::read(input)?);
        Ok(log_id(LogPosition { term, node, index: read_count(input)? }))
    }
}

impl Layout for Vote {
    fn write(&self, out: &mut Vec<u8>) {
        VERSION.write(out);
        self.leader_id.term.write(out);
        self.leader_id.node_id.write(out);
        self.committed.write(out);
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        read_version(input)?;
        let leader_id = LeaderId::new(read_count(input)?, u64::read(input)?);
        Ok(Self { leader_id, committed: bool::read(input)? })
    }
}

layout!(struct Peer { address, incarnation });

impl Layout for Membership {
    fn write(&self, out: &mut Vec<u8>) {
        VERSION.write(out);
        let configs = self.get_joint_config().iter();
        let configs: Vec<Vec<u64>> = configs.map(|ids| ids.iter().copied().collect()).collect();
        configs.write(out);
        let members: Vec<(u64, Peer)> =
            self.nodes().map(|(id, peer)| (*id, peer.clone())).collect();
        members.write(out);
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        read_version(input)?;
        let configs = Vec::<Vec<u64>>::read(input)?;
        let members = Vec::<(u64, Peer)>::read(input)?;
        let configs: Vec<BTreeSet<u64>> =
            configs.into_iter().map(|ids| ids.into_iter().collect()).collect();
        let members: BTreeMap<u64, Peer> = members.into_iter().collect();
        if configs.is_empty() && members.is_empty() {
            return Ok(Self::default());
        }
        // Of nobody who votes any set would be a majority.
        if configs.is_empty() || configs.iter().any(BTreeSet::is_empty) {
            return Err(Malformed);
        }
        Self::new(configs, members).map_err(|_| Malformed)
    }
}

impl Layout for StoredMembership {
    fn write(&self, out: &mut Vec<u8>) {
        self.log_id().write(out);
        self.membership().write(out);
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        Ok(Self::new(Option::read(input)?, Membership::read(input)?))
    }
}

impl Layout for Entry {
    fn write(&self, out: &mut Vec<u8>) {
        VERSION.write(out);
        self.log_id.write(out);
        match &self.payload {
            EntryPayload::Blank => out.push(1),
            EntryPayload::Normal(payload) => {
                out.push(2);
                payload.bytes.write(out);
            }
            EntryPayload::Membership(membership) => {
                out.push(3);
                membership.write(out);
            }
        }
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        read_version(input)?;
        let log_id = LogId::read(input)?;
        let payload = match u8::read(input)? {
            1 => EntryPayload::Blank,
            2 => EntryPayload::Normal(Payload::from_bytes(Bytes::read(input)?)?),
            3 => EntryPayload::Membership(Membership::read(input)?),
            _ => return Err(Malformed),
        };
        Ok(Self { log_id, payload })
    }
}

/// How many bytes an entry takes on the wire, closely enough to bound a batch of them.
pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    const HEADER: usize = 32;
    match &entry.payload {
        EntryPayload::Blank => HEADER,
        EntryPayload::Normal(payload) => HEADER + payload.bytes.len(),
        EntryPayload::Membership(membership) => HEADER + 64 * membership.nodes().count(),
    }
}

/// How many bytes an entry takes in memory, about: a small one takes more than what it says.
pub(crate) fn memory_bytes(entry: &Entry) -> usize {
    const DECODED: usize = 448;
    DECODED + entry_bytes(entry)
}

impl Layout for AppendEntriesRequest<Types> {
    fn write(&self, out: &mut Vec<u8>) {
        self.vote.write(out);
        self.prev_log_id.write(out);
        self.leader_commit.write(out);
        self.entries.write(out);
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        let request = Self {
            vote: Vote::read(input)?,
            prev_log_id: Option::read(input)?,
            leader_commit: Option::read(input)?,
            entries: Vec::read(input)?,
        };
        // openraft takes them for one after the other.
        let first = request.prev_log_id.map_or(0, |prev| prev.index.saturating_add(1));
        let mut entries = request.entries.iter().zip(first..);
        let is_whole = entries.all(|(entry, index)| entry.log_id.index == index);
        if is_whole { Ok(request) } else { Err(Malformed) }
    }
}

impl Layout for AppendEntriesResponse<Types> {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Success => out.push(1),
            Self::PartialSuccess(matching) => {
                out.push(2);
                matching.write(out);
            }
            Self::Conflict => out.push(3),
            Self::HigherVote(vote) => {
                out.push(4);
                vote.write(out);
            }
        }
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        Ok(match u8::read(input)? {
            1 => Self::Success,
            2 => Self::PartialSuccess(Option::read(input)?),
            3 => Self::Conflict,
            4 => Self::HigherVote(Vote::read(input)?),
            _ => return Err(Malformed),
        })
    }
}

impl Layout for VoteRequest<Types> {
    fn write(&self, out: &mut Vec<u8>) {
        self.vote.write(out);
        self.last_log_id.write(out);
        self.leadership_transfer.write(out);
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        let mut request = Self::new(Vote::read(input)?, Option::read(input)?);
        request.leadership_transfer = bool::read(input)?;
        Ok(request)
    }
}

impl Layout for VoteResponse<Types> {
    fn write(&self, out: &mut Vec<u8>) {
        self.vote.write(out);
        self.last_log_id.write(out);
        self.vote_granted.write(out);
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        let vote = Vote::read(input)?;
        Ok(Self::new(vote, Option::read(input)?, bool::read(input)?))
    }
}

impl Layout for TransferLeaderRequest<Types> {
    fn write(&self, out: &mut Vec<u8>) {
        self.from_leader().write(out);
        self.to_node_id().write(out);
        self.last_log_id().copied().write(out);
    }
    fn read(input: &mut Input) -> Result<Self, Malformed> {
        Ok(Self::new(Vote::read(input)?, u64::read(input)?, Option::read(input)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Command, Proposal};
    use crate::types::LeaseId;

    fn at(term: u64, node: u64, index: u64) -> LogId {
        log_id(LogPosition { term, node, index })
    }

    #[test]
    fn the_bytes_of_vote_and_entries_are_golden() {
        let vote = Vote { leader_id: LeaderId::new(3, 2), committed: true };
        let golden = [1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 1];
        assert_eq!(vote.to_bytes()[..], golden);
        assert_eq!(Vote::from_bytes(Bytes::from(golden.to_vec())).unwrap(), vote);

        let blank = Entry { log_id: at(3, 2, 7), payload: EntryPayload::Blank };
        let id = [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 7];
        assert_eq!(blank.to_bytes()[..], [&[1][..], &id, &[1]].concat());

        let revoke = Proposal::from(Command::Revoke(LeaseId::from(1)));
        let command = Entry { log_id: at(3, 2, 7), payload: EntryPayload::Normal(revoke.into()) };
        let body = [2, 0, 0, 0, 11, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1];
        let golden = [&[1][..], &id, &body].concat();
        assert_eq!(command.to_bytes()[..], golden);
        assert_eq!(Entry::from_bytes(golden.into()).unwrap(), command);
    }

    /// Otherwise a bound of memory is none: a small entry takes twice what it says.
    #[test]
    fn a_small_entry_takes_in_memory_what_is_counted_for_it() {
        let put = crate::types::Op::put("a-key-of-usual-length", vec![7; 100]);
        let put = Proposal::from(Command::Txn(crate::types::TxnOp::single(put.0)));
        let entry = Entry { log_id: at(3, 2, 7), payload: EntryPayload::Normal(put.into()) };
        let received = vec![entry; 1000].to_bytes();
        let mut decoded = None;
        let taken = allocation_counter::measure(|| {
            decoded = Some(Vec::<Entry>::from_bytes(received.clone()).unwrap());
        });
        let taken = taken.bytes_current as usize + received.len();
        let counted: usize = decoded.iter().flatten().map(memory_bytes).sum();
        assert!((counted / 2..=counted).contains(&taken), "{taken} bytes, {counted} counted");
    }

    #[test]
    fn the_bytes_of_a_membership_are_golden() {
        let peer = Peer { address: "a".into(), incarnation: 9 };
        let membership =
            Membership::new(vec![BTreeSet::from([1])], BTreeMap::from([(1, peer)])).unwrap();
        let golden = [
            &[1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1][..], // one config of node 1
            &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1],                    // one member, node 1
            &[0, 0, 0, 1, b'a', 0, 0, 0, 0, 0, 0, 0, 9],              // its address and incarnation
        ];
        assert_eq!(membership.to_bytes()[..], golden.concat());
        assert_eq!(Membership::from_bytes(golden.concat().into()).unwrap(), membership);
    }

    #[test]
    fn messages_come_back() {
        let entry = Entry { log_id: at(1, 1, 1), payload: EntryPayload::Blank };
        let vote = Vote { leader_id: LeaderId::new(3, 2), committed: false };
        let append = AppendEntriesRequest::<Types> {
            vote,
            prev_log_id: Some(at(1, 1, 0)),
            entries: vec![entry],
            leader_commit: None,
        };
        let back = AppendEntriesRequest::<Types>::from_bytes(append.to_bytes()).unwrap();
        assert_eq!(format!("{back:?}"), format!("{append:?}"));
        let mut request = VoteRequest::<Types>::new(vote, Some(at(1, 1, 1)));
        request.leadership_transfer = true;
        assert_eq!(VoteRequest::from_bytes(request.to_bytes()).unwrap(), request);
        let transfer = TransferLeaderRequest::<Types>::new(vote, 2, None);
        assert_eq!(TransferLeaderRequest::from_bytes(transfer.to_bytes()).unwrap(), transfer);
    }

    #[test]
    fn a_term_or_index_without_a_next_one_is_malformed() {
        let last = COUNT_MAX;
        for (term, index, is_read) in [(last, last, true), (last + 1, 1, false), (1, !0, false)] {
            assert_eq!(LogId::from_bytes(at(term, 1, index).to_bytes()).is_ok(), is_read);
        }
        let vote = |term| Vote { leader_id: LeaderId::new(term, 1), committed: false };
        assert!(Vote::from_bytes(vote(last).to_bytes()).is_ok());
        assert!(Vote::from_bytes(vote(u64::MAX).to_bytes()).is_err());
    }

    #[test]
    fn a_membership_that_contradicts_itself_is_malformed() {
        // A voter that is no member.
        let bytes = [&[1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1][..], &[0, 0, 0, 0]];
        assert!(Membership::from_bytes(bytes.concat().into()).is_err());
    }

    /// The bytes of a membership whose voters are these, and whose one member is node 1.
    fn membership_of(configs: &[&[u64]]) -> Bytes {
        let configs: Vec<Vec<u64>> = configs.iter().map(|config| config.to_vec()).collect();
        let members = vec![(1_u64, Peer { address: "a".into(), incarnation: 9 })];
        let mut bytes = vec![VERSION];
        configs.write(&mut bytes);
        members.write(&mut bytes);
        bytes.into()
    }

    /// Of no voters every set is a majority, so one of them would agree on anything by itself.
    #[test]
    fn a_membership_without_voters_is_malformed_unless_it_is_that_of_nobody() {
        assert!(Membership::from_bytes(membership_of(&[&[1]])).is_ok());
        let without: [&[&[u64]]; 4] = [&[], &[&[]], &[&[1], &[]], &[&[], &[1]]];
        for configs in without {
            assert!(Membership::from_bytes(membership_of(configs)).is_err(), "{configs:?}");
        }
        let nobody = Membership::default();
        assert_eq!(Membership::from_bytes(nobody.to_bytes()).unwrap(), nobody);
    }

    /// openraft takes the entries of a message for one after the other, and writes them so.
    #[test]
    fn entries_with_a_gap_are_malformed() {
        let read = |prev: Option<u64>, indexes: &[u64]| {
            let blank = |index| Entry { log_id: at(1, 1, index), payload: EntryPayload::Blank };
            let request = AppendEntriesRequest::<Types> {
                vote: Vote { leader_id: LeaderId::new(3, 2), committed: true },
                prev_log_id: prev.map(|index| at(1, 1, index)),
                entries: indexes.iter().map(|index| blank(*index)).collect(),
                leader_commit: None,
            };
            AppendEntriesRequest::<Types>::from_bytes(request.to_bytes()).is_ok()
        };
        assert!(read(None, &[]) && read(None, &[0, 1, 2]) && read(Some(6), &[7, 8]));
        assert!(!read(None, &[1]), "it does not begin where it should");
        assert!(!read(Some(6), &[8]) && !read(Some(6), &[6]));
        assert!(!read(Some(6), &[7, 9]), "there is one missing");
        assert!(!read(Some(6), &[7, 7]) && !read(Some(6), &[8, 7]), "they are in no order");
    }
}
