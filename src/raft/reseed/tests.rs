//! Which states a log leads on from, and what of it goes.

use super::*;
use crate::api::{Call, Response};
use crate::mvcc::LogPosition;
use crate::raft::{Entry, EntryPayload};
use crate::wire::{Handler, Hello, Preamble, Security, Status, Welcome, bind, serve};
use futures::FutureExt;
use futures::future::{BoxFuture, pending, ready};
use openraft::storage::IOFlushed;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tower::util::BoxCloneSyncService;

fn id(term: u64, index: u64) -> LogId {
    log_id(LogPosition { term, node: term, index })
}

/// A log with entries of these terms, from index 0 on.
async fn log(folder: &Path, terms: &[u64]) -> LogStore {
    let mut log = LogStore::open(folder, 64 << 20).unwrap();
    let entry = |(index, term)| Entry { log_id: id(term, index), payload: EntryPayload::Blank };
    let entries: Vec<_> = (0..).zip(terms.iter().copied()).map(entry).collect();
    log.append(entries, IOFlushed::noop()).await.unwrap();
    log
}

/// Where a log ends after it was made to fit a state; none, if that state is not for it.
async fn end_after_fitting(log: &LogStore, at: LogId) -> Option<Option<LogId>> {
    match fit(log, at).await {
        Ok(()) => Some(log.ends().1),
        Err(Refused::Now(_)) => None,
        Err(Refused::Fault(fault)) => panic!("{fault}"),
    }
}

#[tokio::test]
async fn a_log_goes_on_from_a_state_at_one_of_its_entries() {
    let folder = tempfile::tempdir().unwrap();
    let log = log(folder.path(), &[0, 1, 1, 2, 2]).await;
    for at in [id(0, 0), id(1, 2), id(2, 4)] {
        assert_eq!(end_after_fitting(&log, at).await, Some(Some(id(2, 4))), "{at}");
    }
    // Behind its end nothing contradicts it.
    assert_eq!(end_after_fitting(&log, id(2, 9)).await, Some(Some(id(2, 4))));
    assert_eq!(end_after_fitting(&log, id(5, 5)).await, Some(Some(id(2, 4))));
}

#[tokio::test]
async fn entries_that_contradict_a_state_go_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[u64], LogId, Option<LogId>); 3] = [
        (&[0, 1, 2, 2, 2], id(3, 3), Some(id(2, 2))),
        (&[0, 1, 1, 2], id(3, 1), Some(id(0, 0))),
        (&[3, 3], id(4, 0), None),
    ];
    for (number, (terms, at, end)) in cases.into_iter().enumerate() {
        let folder = folder.path().join(number.to_string());
        let log = log(&folder, terms).await;
        assert_eq!(end_after_fitting(&log, at).await, Some(end), "case {number}");
        assert!(log.close(Duration::from_secs(10)));
        let log = LogStore::open(&folder, 64 << 20).unwrap();
        assert_eq!(log.ends().1, end, "case {number}: it is on the disk");
    }
}

/// What was committed is in the log of whoever leads later, so such a state is of entries that never were.
#[tokio::test]
async fn a_log_of_later_terms_is_not_cut_for_a_state() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[u64], LogId); 3] =
        [(&[0, 1, 5, 5], id(4, 9)), (&[0, 1, 5, 5, 6], id(4, 3)), (&[5, 5], id(4, 0))];
    for (number, (terms, at)) in cases.into_iter().enumerate() {
        let log = log(&folder.path().join(number.to_string()), terms).await;
        let before = log.ends();
        assert_eq!(end_after_fitting(&log, at).await, None, "case {number}");
        assert_eq!(log.ends(), before);
    }
}

#[tokio::test]
async fn a_state_that_the_log_does_not_lead_on_from_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = log(folder.path(), &[0, 1, 1, 2, 2, 3]).await;
    log.purge(id(2, 3)).await.unwrap();
    log.save_committed(Some(id(2, 4))).await.unwrap();
    assert_eq!(end_after_fitting(&log, id(1, 2)).await, None, "there would be a hole");
    assert_eq!(end_after_fitting(&log, id(1, 3)).await, None, "another entry was cut off");
    assert_eq!(end_after_fitting(&log, id(4, 4)).await, None, "another entry was committed");
    assert_eq!(log.ends().1, Some(id(3, 5)), "and nothing is lost");
    assert_eq!(end_after_fitting(&log, id(2, 3)).await, Some(Some(id(3, 5))));
    assert_eq!(end_after_fitting(&log, id(4, 5)).await, Some(Some(id(2, 4))), "its end was not");
}

/// openraft takes entries from whoever has a vote as high as the own one: a leader whose time is over must not be such.
#[tokio::test]
async fn the_vote_is_no_lower_than_the_state_and_never_gets_lower() {
    let vote = |term: u64, node: u64, committed| Vote {
        leader_id: *log_id(LogPosition { term, node, index: 0 }).committed_leader_id(),
        committed,
    };
    let folder = tempfile::tempdir().unwrap();
    let raised = [
        // None was given.
        (None, vote(5, 5, true)),
        // To somebody before it; to it; to somebody who may have led in the same term, and later.
        (Some(vote(3, 1, true)), vote(5, 5, true)),
        (Some(vote(5, 2, false)), vote(5, 5, true)),
        (Some(vote(5, 5, false)), vote(5, 5, true)),
        (Some(vote(5, 6, false)), vote(5, 6, false)),
        (Some(vote(6, 1, false)), vote(6, 1, false)),
        (Some(vote(7, 1, true)), vote(7, 1, true)),
    ];
    for (number, (own, expected)) in raised.into_iter().enumerate() {
        let folder = folder.path().join(number.to_string());
        let mut log = log(&folder, &[0, 1]).await;
        if let Some(own) = &own {
            log.save_vote(own).await.unwrap();
        }
        raise_vote(&log, id(5, 9)).await.unwrap();
        assert_eq!(log.vote(), Some(expected), "{own:?}");
        assert!(log.close(Duration::from_secs(10)));
        let log = LogStore::open(&folder, 64 << 20).unwrap();
        assert_eq!(log.vote(), Some(expected), "{own:?}: it is on the disk");
    }
}

#[test]
fn a_mark_names_members_and_is_one_without() {
    let peer = |id: u64| (id, Peer { address: format!("a:{id}"), incarnation: id });
    let voters = vec![BTreeSet::from([1, 2])];
    let members = Membership::new(voters, BTreeMap::from([1, 2].map(peer))).unwrap();
    for why in [Why::Differs, Why::IsDamaged] {
        let said = why.word(Some(&members));
        assert_eq!(Why::read(said.to_vec()), (why, Some(members.clone())));
        for length in 0..said.len() {
            assert_eq!(Why::read(said[..length].to_vec()), (Why::Differs, None));
        }
        assert_eq!(Why::read(why.word(None).to_vec()), (why, None));
    }
    let old = members.to_bytes();
    let old = [&crc32c::crc32c(&old).to_be_bytes()[..], &old].concat();
    assert_eq!(Why::read(old).0, Why::Differs, "a mark of before told of nothing else");
    let said = Why::Differs.word(Some(&members));
    let mut changed = said.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    assert_eq!(Why::read(changed), (Why::Differs, None));
}

/// A member that says where its state stands, and counts how often it is asked for more.
struct Seeder {
    stands: Mutex<LogId>,
    begun: AtomicUsize,
    pulled: AtomicUsize,
}

struct Peers(Arc<Seeder>);

impl Handler for Peers {
    fn welcome(&self, _: &Preamble) -> Welcome {
        Welcome { status: Status::Ok, group: 1, node: 2 }
    }

    fn service(&self, _: bool) -> BoxCloneSyncService<Call, Response, Error> {
        BoxCloneSyncService::new(tower::service_fn(|_: Call| pending()))
    }

    fn hello(&self, _: PeerKind, _: &Hello) -> Status {
        Status::Ok
    }

    fn peer_call(
        &self,
        _: PeerKind,
        _: u64,
        number: u16,
        _: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Error>> {
        let asked = if number == method::SEED_BEGIN { &self.0.begun } else { &self.0.pulled };
        asked.fetch_add(1, Ordering::Relaxed);
        ready(Ok(self.0.stands.lock().unwrap().to_bytes())).boxed()
    }
}

/// It would be gigabytes, and a share of the disk of whoever hands it out.
#[tokio::test]
async fn a_state_of_no_use_is_not_pulled() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = log(&folder.path().join("raft"), &[0, 1, 1, 2, 2, 3]).await;
    log.purge(id(2, 3)).await.unwrap();
    let stands = Mutex::new(id(1, 2));
    let seeder = Arc::new(Seeder { stands, begun: 0.into(), pulled: 0.into() });
    let server = serve(
        bind("127.0.0.1:0", Security::Loopback).await.unwrap(),
        Arc::new(Peers(Arc::clone(&seeder))),
    );
    let peer = Peer { address: server.local_address().to_string(), incarnation: 2 };
    let identity = Identity { group: 1, node: 1, incarnation: 1 };
    let timing = Timing { heartbeat: Duration::from_millis(20) };
    let asker = Asker { identity, timing, security: Security::default() };
    let run = async || {
        Generations::open(folder.path()).unwrap().distrust(b"").unwrap();
        let reseed = Reseed::find(folder.path(), 64 << 20).unwrap().unwrap();
        let others = std::iter::once((2, peer.clone()));
        reseed.run(&log, &asker, others, Duration::ZERO).await.unwrap_err()
    };
    let error = run().await;
    assert!(error.to_string().contains("before the own log begins"), "{error}");
    let count = |asked: &AtomicUsize| asked.load(Ordering::Relaxed);
    assert!(count(&seeder.begun) > 0);
    assert_eq!(count(&seeder.pulled), 0, "there would be a hole");
    // One that fits is.
    *seeder.stands.lock().unwrap() = id(3, 5);
    run().await;
    assert!(count(&seeder.pulled) > 0);
    assert_eq!(
        log.ends(),
        (Some(id(2, 3)), Some(id(3, 5))),
        "and nothing is cut for one that is none"
    );
}
