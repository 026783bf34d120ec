//! What members send each other and keep in their logs, for [`mod@crate::fuzz`].
//!
//! openraft itself is not in here: what a message does to a member is for the simulation to try. This is about its bytes.
//!
//! The inputs of the targets:
//!
//! ```text
//! entry       what: u8 (0 entry, 1 vote, 2 membership, 3 stored membership, 4 log id) ++ bytes
//! peer_call   number of the method: u8 (and 128 for the answer to it) ++ body
//! founding    what: u8 (0 question, 1 answer, 2 record, 3 incarnation) ++ bytes
//! ```

use super::format::{entry_bytes, log_id, position};
use super::founding::{Answer, Ask};
use super::identity::{Founding, Joined};
use super::marks::{Report, Verdict, judge};
use super::network::method;
use super::server::speaks_for;
use super::{Entry, LogId, Membership, StoredMembership, Types, Vote};
use crate::codec;
use crate::codec::layout::{Input, Layout};
use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use std::fmt::Debug;

/// The member at the other end of the connection.
const FROM: u64 = 1;

/// What the log is made of.
pub(crate) fn entry(input: &[u8]) {
    let Some((what, bytes)) = input.split_first() else { return };
    let bytes = Bytes::copy_from_slice(bytes);
    match what {
        0 => {
            let Some(entry) = comes_back::<Entry>(bytes) else { return };
            let _ = entry_bytes(&entry);
            assert_eq!(log_id(position(&entry.log_id)), entry.log_id);
        }
        1 => drop(comes_back::<Vote>(bytes)),
        2 => drop(comes_back::<Membership>(bytes)),
        3 => drop(comes_back::<StoredMembership>(bytes)),
        4 => drop(comes_back::<LogId>(bytes)),
        _ => {}
    }
}

/// A message of another member, and the answer to one of ours.
pub(crate) fn peer_call(input: &[u8]) {
    let Some((number, body)) = input.split_first() else { return };
    let (is_answer, number) = (number & 128 != 0, u16::from(number & 127));
    let body = Bytes::copy_from_slice(body);
    let vote = match (number, is_answer) {
        (method::APPEND, false) => {
            comes_back::<AppendEntriesRequest<Types>>(body).map(|request| request.vote)
        }
        (method::APPEND, true) => {
            comes_back::<AppendEntriesResponse<Types>>(body);
            None
        }
        (method::VOTE | method::PRE_VOTE, false) => {
            comes_back::<VoteRequest<Types>>(body).map(|request| request.vote)
        }
        (method::VOTE | method::PRE_VOTE, true) => {
            comes_back::<VoteResponse<Types>>(body).map(|answer| answer.vote)
        }
        (method::TRANSFER, false) => {
            comes_back::<TransferLeaderRequest<Types>>(body).map(|request| *request.from_leader())
        }
        (method::TRANSFER, true) => {
            comes_back::<bool>(body);
            None
        }
        (method::SNAPSHOT_BEGIN | method::SNAPSHOT_RESUME, false) => {
            comes_back::<u64>(body);
            None
        }
        (method::SNAPSHOT_RESUME, true) => {
            comes_back::<Option<u64>>(body);
            None
        }
        (method::SNAPSHOT_CHUNK, false) => {
            let mut input = Input::new(body);
            let _ = (u64::read(&mut input), input.rest());
            None
        }
        (method::SNAPSHOT_END, _) => comes_back::<Vote>(body),
        (method::MARKS, true) => {
            if let Some(report) = comes_back::<Report>(body) {
                let others = [(2, report.clone()), (3, report.clone())].into();
                let judged = judge(FROM, &[FROM, 2, 3].into(), &report, &others);
                assert!(matches!(judged, Verdict::Equal | Verdict::Unknown), "{judged:?}");
            }
            None
        }
        (method::SEED_BEGIN, false) => {
            comes_back::<u64>(body);
            None
        }
        (method::SEED_BEGIN, true) => {
            comes_back::<LogId>(body);
            None
        }
        (method::SEED_NEXT, false) => {
            comes_back::<(u64, u64)>(body);
            None
        }
        _ => None,
    };
    if let Some(vote) = vote {
        let speaks = speaks_for(FROM, &vote);
        assert_eq!(speaks.is_ok(), vote.leader_id.node_id == FROM);
    }
}

/// A record, if the bytes are one. It comes out of what it is written as; the bytes may be others, for what is a set in
/// memory may be a list in disorder outside.
fn comes_back<T: Layout + Debug>(bytes: Bytes) -> Option<T> {
    let record = T::from_bytes(bytes).ok()?;
    let written = record.to_bytes();
    let again = T::from_bytes(written.clone()).expect("what was written can be read");
    assert_eq!(again.to_bytes(), written);
    assert_eq!(format!("{again:?}"), format!("{record:?}"));
    Some(record)
}

/// What founders say to each other, and what they keep.
pub(crate) fn founding(input: &[u8]) {
    let Some((what, bytes)) = input.split_first() else { return };
    match what {
        0 => cold::<Ask>(bytes, |_| {}),
        1 => cold::<Answer>(bytes, |answer| {
            if let Answer::Founded(founding) = answer {
                believe(founding);
            }
        }),
        2 => cold::<Founding>(bytes, believe),
        3 => cold::<u64>(bytes, |_| {}),
        4 => cold::<Joined>(bytes, |joined| believe(&joined.founding)),
        _ => {}
    }
}

fn believe(founding: &Founding) {
    let _ = founding.check("group", &["a:1".to_owned()]);
    let _ = founding.identity("a:1", 1);
    assert_eq!(founding.members().count(), founding.addresses().count());
}

fn cold<T: serde::Serialize + serde::de::DeserializeOwned + Debug>(
    bytes: &[u8],
    with: impl FnOnce(&T),
) {
    let Ok(record) = codec::decode::<T>(bytes) else { return };
    let again: T = codec::decode(&codec::encode(&record)).expect("what was written can be read");
    assert_eq!(format!("{again:?}"), format!("{record:?}"));
    with(&record);
}

/// What these targets begin with: the name of each input, and the input.
#[cfg(test)]
pub(crate) mod seeds {
    use super::super::identity::{Base, Founder};
    use super::super::{EntryPayload, Peer};
    use super::*;
    use crate::api::{Command, Proposal};
    use crate::mvcc::{HASH_FORMAT, LogPosition, Mark};
    use crate::types::{LeaseId, Op, TxnOp};
    use std::collections::{BTreeMap, BTreeSet};

    fn at(index: u64) -> LogId {
        log_id(LogPosition { term: 3, node: FROM, index })
    }

    fn vote() -> Vote {
        Vote { leader_id: *at(0).committed_leader_id(), committed: true }
    }

    fn membership() -> Membership {
        let peer = |id: u64| (id, Peer { address: format!("host{id}:2380"), incarnation: id * 77 });
        let voters = [BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, 4])];
        Membership::new(voters.into(), BTreeMap::from([1, 2, 3, 4].map(peer))).unwrap()
    }

    pub(crate) fn entries() -> [Entry; 4] {
        let put = Command::Txn(TxnOp::single(Op::put("key", "value").lease(LeaseId::from(7)).0));
        let expire = Command::Expire { deciding_term: 3, leases: vec![LeaseId::from(7)] };
        let normal = |command: Command| EntryPayload::Normal(Proposal::from(command).into());
        [
            Entry { log_id: at(1), payload: EntryPayload::Membership(membership()) },
            Entry { log_id: at(2), payload: EntryPayload::Blank },
            Entry { log_id: at(3), payload: normal(put) },
            Entry { log_id: at(4), payload: normal(expire) },
        ]
    }

    fn seed(what: u8, name: &str, bytes: &[u8]) -> (String, Vec<u8>) {
        (name.to_owned(), [&[what], bytes].concat())
    }

    pub(crate) fn entry() -> Vec<(String, Vec<u8>)> {
        let [members, blank, put, expire] = entries().map(|entry| entry.to_bytes());
        let stored = StoredMembership::new(Some(at(1)), membership());
        vec![
            seed(0, "entry-membership", &members),
            seed(0, "entry-blank", &blank),
            seed(0, "entry-put", &put),
            seed(0, "entry-expire", &expire),
            seed(0, "entry-cut-off", &put[..put.len() - 1]),
            seed(1, "vote", &vote().to_bytes()),
            seed(2, "membership", &membership().to_bytes()),
            seed(2, "membership-empty", &Membership::default().to_bytes()),
            seed(3, "membership-stored", &stored.to_bytes()),
            seed(4, "log-id", &at(u64::MAX).to_bytes()),
        ]
    }

    pub(crate) fn peer_call() -> Vec<(String, Vec<u8>)> {
        let append = AppendEntriesRequest::<Types> {
            vote: vote(),
            prev_log_id: Some(at(0)),
            entries: entries().into(),
            leader_commit: Some(at(2)),
        };
        let mut asked = VoteRequest::<Types>::new(vote(), Some(at(4)));
        asked.leadership_transfer = true;
        let transfer = TransferLeaderRequest::<Types>::new(vote(), 2, Some(at(4)));
        let partly = AppendEntriesResponse::<Types>::PartialSuccess(Some(at(2)));
        let higher = AppendEntriesResponse::<Types>::HigherVote(vote());
        let granted = VoteResponse::<Types>::new(vote(), Some(at(4)), true);
        let chunk = [&[0; 8], &b"QSNP\x03"[..]].concat();
        let mark = |index: u64| Mark { index, hash: u128::from(index) << 64 };
        let report = Report {
            format: HASH_FORMAT,
            marks: vec![mark(1024), mark(1040)],
            quota: Some(8 << 30),
        };
        vec![
            seed(1, "append", &append.to_bytes()),
            seed(129, "append-partly", &partly.to_bytes()),
            seed(129, "append-higher-vote", &higher.to_bytes()),
            seed(2, "vote", &asked.to_bytes()),
            seed(130, "vote-granted", &granted.to_bytes()),
            seed(3, "pre-vote", &asked.to_bytes()),
            seed(4, "transfer", &transfer.to_bytes()),
            seed(132, "transfer-accepted", &[1]),
            seed(5, "snapshot-begin", &[]),
            seed(5, "snapshot-begin-named", &7u64.to_bytes()),
            seed(11, "snapshot-resume", &7u64.to_bytes()),
            seed(139, "snapshot-resume-answered", &Some(512u64 << 10).to_bytes()),
            seed(6, "snapshot-chunk", &chunk),
            seed(7, "snapshot-end", &vote().to_bytes()),
            seed(8, "marks", &[]),
            seed(136, "marks-answered", &report.to_bytes()),
            seed(9, "seed-begin", &7u64.to_bytes()),
            seed(137, "seed-begun", &at(4).to_bytes()),
            seed(10, "seed-next", &(7u64, 512u64 << 10).to_bytes()),
        ]
    }

    pub(crate) fn founding() -> Vec<(String, Vec<u8>)> {
        let founder = |address: &str| Founder { address: address.into(), incarnation: 1 };
        let founders = vec![founder("a:1"), founder("b:1")];
        let record = Founding { group: 1 << 100, name: "group".into(), founders, base: None };
        let base = Some(Base { revision: 1 << 30, hash: 1 << 99 });
        let restored = Founding { base, ..record.clone() };
        let address = "d:1".to_owned();
        let joined = Joined { node: 1030, address, founding: restored.clone() };
        let addresses = vec!["a:1".to_owned(), "b:1".to_owned()];
        let name = String::from("group");
        let (own, list) = ("b:1".to_owned(), addresses.clone());
        let ask = Ask { own, name: name.clone(), addresses: list, base };
        let empty = Answer::Empty { name, addresses, incarnation: 1, base };
        vec![
            seed(0, "question", &codec::encode(&ask)),
            seed(1, "answer-empty", &codec::encode(&empty)),
            seed(1, "answer-founded", &codec::encode(&Answer::Founded(record.clone()))),
            seed(2, "record", &codec::encode(&record)),
            seed(2, "record-restored", &codec::encode(&restored)),
            seed(2, "record-of-a-wild-length", &[1, 0, 253, 255, 255, 255, 255, 255, 255, 255, 1]),
            seed(3, "incarnation", &codec::encode(&u64::MAX)),
            seed(4, "joined", &codec::encode(&joined)),
        ]
    }
}
