//! A group that is none: one map in memory behind the same contract, for tests of the client and the recipes.
//!
//! It keeps the rules that the client relies on (revisions, transactions, history, leases by tokio's clock, streams of
//! watches that take a lost answer back) and breaks everything that a network may break, on demand.

mod streams;

use super::Client;
use super::home::Home;
use super::link::Service;
use crate::api::{Applied, Call, Command, Follow, Followed, Proposal, Query, Request, Response};
use crate::error::{Error, Reason, Result};
use crate::types::{
    Changes, Compare, Event, KeyValue, LeaseId, LeaseStatus, NodeId, Op, OpKind, OpResult, Operand,
    Page, PutOp, RangeOp, Relation, Revision, Shows, SortBy, Status, TxnOp, TxnOutcome,
};
use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{self, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
pub(crate) use streams::Stream;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Which calls a fault is for, and what the log of calls tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Propose,
    Register,
    Query,
    Follow,
    KeepAlive,
    Leases,
    Status,
}

/// What goes wrong with one call.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Nothing is carried out.
    Refuse(Reason),
    /// It is carried out, and the connection breaks before the answer.
    LoseAnswer,
    /// It is not answered, ever.
    Hang,
    /// It takes so long until it is carried out.
    Delay(Duration),
    /// It is carried out, and the answer takes so long.
    DelayAnswer(Duration),
    /// Of a follow: the stream is not known.
    Forget,
    /// Of a follow: the answer before this one comes again.
    Repeat,
    /// Of a follow: an answer is lost, but counts as received.
    Skip,
}

#[derive(Clone)]
pub(crate) struct Fake {
    world: Arc<Mutex<World>>,
    committed: Arc<Notify>,
}

pub(crate) struct World {
    pub(crate) revision: u64,
    pub(crate) keys: BTreeMap<Bytes, KeyValue>,
    /// One for each revision from 2 on.
    history: Vec<Changes>,
    compacted: u64,
    leases: BTreeMap<u64, (Duration, Instant)>,
    lease_ids: u64,
    client_ids: u64,
    /// What was answered to writes that have names.
    answers: HashMap<(u64, u64), Result<Applied, Reason>>,
    /// No client up to this one is known any more.
    pub(crate) forgotten: u64,
    pub(crate) streams: HashMap<u64, Stream>,
    faults: VecDeque<(Kind, Fault)>,
    /// Every call fails like this.
    outage: Option<Reason>,
    /// The most events of one cursor in one answer.
    pub(crate) fragment: usize,
    /// So many revisions before a cursor's position are sent once more.
    pub(crate) stale: u64,
    /// The most entries of one page.
    pub(crate) page: usize,
    /// Every call, with how much it carried.
    pub(crate) calls: Vec<(Kind, usize)>,
    last_step: Option<Followed>,
    cut_off: Option<LeaseId>,
    /// Every stream is forgotten after its first answer.
    pub(crate) forgetful: bool,
    /// What the last read asked for.
    pub(crate) revision_min: Option<Revision>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        let world = World {
            revision: 1,
            keys: BTreeMap::new(),
            history: Vec::new(),
            compacted: 1,
            leases: BTreeMap::new(),
            lease_ids: 0,
            client_ids: 0,
            answers: HashMap::new(),
            forgotten: 0,
            streams: HashMap::new(),
            faults: VecDeque::new(),
            outage: None,
            fragment: 1000,
            stale: 0,
            page: 1000,
            calls: Vec::new(),
            last_step: None,
            cut_off: None,
            forgetful: false,
            revision_min: None,
        };
        Self { world: Arc::new(Mutex::new(world)), committed: Arc::new(Notify::new()) }
    }

    /// A client of this group, with the usual timeout.
    pub(crate) fn client(&self) -> Client {
        self.client_within(Duration::from_secs(10))
    }

    pub(crate) fn client_within(&self, timeout: Duration) -> Client {
        let fake = self.clone();
        let service = tower::service_fn(move |call| {
            let fake = fake.clone();
            async move { fake.call(call).await }
        });
        let home = Home::new(Handle::current());
        Client::over(Service::new(service), home, timeout, Arc::default())
    }

    /// A client of several members, one of which is asked at a time. They have nothing in common but what a test does to all.
    pub(crate) fn client_of(members: Vec<Self>, asked: Arc<AtomicUsize>) -> Client {
        let service = tower::service_fn(move |call| {
            let fake = members[asked.load(atomic::Ordering::Relaxed)].clone();
            async move { fake.call(call).await }
        });
        let home = Home::new(Handle::current());
        Client::over(Service::new(service), home, Duration::from_secs(10), Arc::default())
    }

    /// What its only member says of itself.
    pub(crate) fn status_of(revision: u64) -> Status {
        Status {
            id: NodeId::from(1),
            group: 1,
            leader: Some(NodeId::from(1)),
            term: 1,
            revision: Revision::from(revision),
            applied_index: None,
            state_hash: 0,
            bytes_in_use: 0,
            bytes_on_disk: 0,
            quota: 0,
            is_short_of_room: false,
            members: Vec::new(),
            states_differ_at: None,
        }
    }

    /// Lets the next call of that kind go wrong.
    pub(crate) fn next(&self, kind: Kind, fault: Fault) {
        self.world().faults.push_back((kind, fault));
    }

    /// Lets every call fail, or none.
    pub(crate) fn outage(&self, reason: Option<Reason>) {
        self.world().outage = reason;
        self.committed.notify_waiters();
    }

    pub(crate) fn down(&self) {
        self.outage(Some(Reason::Unreachable { detail: "the fake is down".to_owned() }));
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Writes without a client.
    pub(crate) fn put(&self, key: &str, value: &str) -> Revision {
        self.commit(vec![Op::put(key, value.to_owned())])
    }

    pub(crate) fn delete(&self, key: &str) -> Revision {
        self.commit(vec![Op::delete(key)])
    }

    pub(crate) fn commit(&self, then: Vec<Op>) -> Revision {
        let outcome = self.world().txn(&TxnOp { then, ..TxnOp::default() }).unwrap();
        self.committed.notify_waiters();
        outcome.revision
    }

    pub(crate) fn compact(&self, revision: Revision) {
        self.world().compacted = revision.get();
        self.committed.notify_waiters();
    }

    /// Renewals of this lease are not answered any more.
    pub(crate) fn cut_off(&self, lease: LeaseId) {
        self.world().cut_off = Some(lease);
    }

    /// Lets a lease expire now.
    pub(crate) fn expire(&self, lease: LeaseId) {
        self.world().end_lease(lease).unwrap();
        self.committed.notify_waiters();
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.world().keys.keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect()
    }

    /// How many calls of a kind there were.
    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.world().calls.iter().filter(|(it, _)| *it == kind).count()
    }

    /// Lets all tasks run until nothing more happens without time.
    pub(crate) async fn settle(&self) {
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
    }

    async fn call(&self, call: Call) -> Result<Response> {
        let (kind, size) = describe(&call.request);
        let fault = {
            let mut world = self.world();
            world.calls.push((kind, size));
            if let Some(reason) = &world.outage {
                return Err(Error::new(reason.clone()));
            }
            let at = world.faults.iter().position(|(it, _)| *it == kind);
            at.and_then(|at| world.faults.remove(at)).map(|(_, fault)| fault)
        };
        let is_write = call.request.is_write();
        if let Request::KeepAlive { leases, .. } = &call.request
            && self.world().cut_off.is_some_and(|it| leases.contains(&it))
        {
            return std::future::pending().await;
        }
        match fault {
            Some(Fault::Refuse(reason)) => Err(Error::new(reason)),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::LoseAnswer) => {
                self.answer(call.request).await?;
                let error = Error::new(Reason::ConnectionLost);
                Err(if is_write { error.unknown_outcome() } else { error })
            }
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                self.answer(call.request).await
            }
            Some(Fault::DelayAnswer(time)) => {
                let answer = self.answer(call.request).await;
                tokio::time::sleep(time).await;
                answer
            }
            Some(Fault::Forget) => {
                self.world().streams.clear();
                Ok(Response::Follow(Followed::Unknown))
            }
            Some(Fault::Repeat) => {
                let last = self.world().last_step.clone();
                match (&call.request, last) {
                    // One that was received before, that is: nothing mixes up the answers of two calls.
                    (
                        Request::Follow(Follow { after, .. }),
                        Some(last @ Followed::Step { number, .. }),
                    ) if number <= *after => Ok(Response::Follow(last)),
                    _ => self.answer(call.request).await,
                }
            }
            Some(Fault::Skip) => match (call.request.clone(), self.answer(call.request).await?) {
                (Request::Follow(follow), Response::Follow(Followed::Step { number, .. })) => {
                    let (added, removed) = (Vec::new(), Vec::new());
                    let wait = Duration::ZERO;
                    let next = Follow { after: number, added, removed, wait, ..follow };
                    self.answer(Request::Follow(next)).await
                }
                (_, answer) => Ok(answer),
            },
            None => self.answer(call.request).await,
        }
    }

    async fn answer(&self, request: Request) -> Result<Response> {
        self.expire_what_is_due();
        Ok(match request {
            Request::Propose { proposals, .. } => {
                let answers = {
                    let mut world = self.world();
                    let apply = |proposal| world.propose(proposal).map_err(Error::new);
                    proposals.into_iter().map(apply).collect()
                };
                self.committed.notify_waiters();
                Response::Propose(answers)
            }
            Request::Query(Query { txn, revision_min, .. }) => {
                let mut world = self.world();
                world.revision_min = revision_min;
                Response::Query(world.txn(&txn)?)
            }
            Request::Queries(queries) => {
                let mut world = self.world();
                let read = |query: Query| world.txn(&query.txn).map_err(Error::new);
                Response::Queries(queries.into_iter().map(read).collect())
            }
            Request::Follow(follow) => Response::Follow(self.follow(follow).await?),
            Request::KeepAlive { leases, .. } => {
                let mut world = self.world();
                let renew = |lease: LeaseId| match world.leases.get_mut(&lease.get()) {
                    Some((ttl, until)) => {
                        *until = Instant::now() + *ttl;
                        Ok(*ttl)
                    }
                    None => Err(Reason::LeaseNotFound { lease }),
                };
                Response::KeepAlive(leases.into_iter().map(renew).collect())
            }
            Request::Leases { only, keys, .. } => {
                let world = self.world();
                let all = || world.leases.keys().map(|id| LeaseId::from(*id)).collect();
                let ids: Vec<_> = only.unwrap_or_else(all);
                let shown = |mut status: LeaseStatus| {
                    status.keys.retain(|_| keys);
                    status
                };
                let leases = ids.into_iter().map(|id| world.lease_status(id).map(shown)).collect();
                Response::Leases { leases, revision: Revision::from(world.revision) }
            }
            Request::Status => Response::Status(Box::new(Self::status_of(self.world().revision))),
            Request::ReadIndex
            | Request::Founding(_)
            | Request::Join { .. }
            | Request::Members { .. }
            | Request::Change { .. } => {
                return Err(Error::new(Reason::Closed));
            }
        })
    }

    fn expire_what_is_due(&self) {
        let now = Instant::now();
        let mut world = self.world();
        let due = world.leases.iter().filter(|(_, (_, until))| *until <= now);
        let due: Vec<_> = due.map(|(id, _)| LeaseId::from(*id)).collect();
        for lease in &due {
            world.end_lease(*lease).unwrap();
        }
        drop(world);
        if !due.is_empty() {
            self.committed.notify_waiters();
        }
    }

    async fn follow(&self, follow: Follow) -> Result<Followed> {
        let deadline = Instant::now() + follow.wait;
        loop {
            let mut committed = std::pin::pin!(self.committed.notified());
            committed.as_mut().enable();
            self.expire_what_is_due();
            let expiry = {
                let mut world = self.world();
                if let Some(reason) = &world.outage {
                    return Err(Error::new(reason.clone()));
                }
                if let Some(answer) = world.step(&follow, Instant::now() >= deadline) {
                    world.last_step = Some(answer.clone());
                    return Ok(answer);
                }
                world.leases.values().map(|(_, until)| *until).min()
            };
            let until = expiry.map_or(deadline, |expiry| expiry.min(deadline));
            let _ = tokio::time::timeout_at(until, committed).await;
        }
    }
}

fn describe(request: &Request) -> (Kind, usize) {
    let registers = |it: &Proposal| it.command == Command::Register;
    match request {
        Request::Propose { proposals, .. } if proposals.iter().any(registers) => {
            (Kind::Register, proposals.len())
        }
        Request::Propose { proposals, .. } => (Kind::Propose, proposals.len()),
        Request::Query(query) => (Kind::Query, query.txn.then.len()),
        Request::Queries(queries) => (Kind::Query, queries.len()),
        Request::Follow(follow) => (Kind::Follow, follow.added.len()),
        Request::KeepAlive { leases, .. } => (Kind::KeepAlive, leases.len()),
        Request::Leases { .. } => (Kind::Leases, 1),
        Request::Status
        | Request::ReadIndex
        | Request::Founding(_)
        | Request::Join { .. }
        | Request::Members { .. }
        | Request::Change { .. } => (Kind::Status, 1),
    }
}

impl World {
    /// As a group does that forgets no answer.
    fn propose(&mut self, Proposal { origin, command }: Proposal) -> Result<Applied, Reason> {
        let Some(origin) = origin else { return self.apply(command) };
        if origin.client <= self.forgotten {
            return Err(Reason::ClientForgotten);
        }
        let name = (origin.client, origin.sequence);
        if let Some(answer) = self.answers.get(&name) {
            return answer.clone();
        }
        let answer = self.apply(command);
        self.answers.insert(name, answer.clone());
        answer
    }

    fn apply(&mut self, command: Command) -> Result<Applied, Reason> {
        match command {
            Command::Txn(txn) => self.txn(&txn).map(Applied::Txn),
            Command::Grant { id, ttl } => {
                self.lease_ids += 1;
                let id = id.unwrap_or_else(|| LeaseId::from(self.lease_ids));
                self.leases.insert(id.get(), (ttl, Instant::now() + ttl));
                Ok(Applied::Granted { id, ttl, revision: Revision::from(self.revision) })
            }
            Command::Revoke(lease) => {
                self.end_lease(lease)?;
                Ok(Applied::Revoked { revision: Revision::from(self.revision) })
            }
            Command::Expire { .. }
            | Command::Age { .. }
            | Command::AgeClients { .. }
            | Command::Room { .. } => unreachable!("never sent by a client"),
            Command::Register => {
                self.client_ids += 1;
                let (client, revision) = (self.client_ids, Revision::from(self.revision));
                Ok(Applied::Registered { client, revision })
            }
            Command::Compact(revision) => {
                self.compacted = revision.get();
                Ok(Applied::Compacted { revision })
            }
        }
    }

    fn end_lease(&mut self, lease: LeaseId) -> Result<(), Reason> {
        self.leases.remove(&lease.get()).ok_or(Reason::LeaseNotFound { lease })?;
        let mut events = Vec::new();
        let hung = |kv: &&KeyValue| kv.lease == Some(lease);
        let keys: Vec<_> = self.keys.values().filter(hung).map(|kv| kv.key.clone()).collect();
        for key in keys {
            self.remove(&key, &mut events);
        }
        self.seal(events);
        Ok(())
    }

    fn lease_status(&self, id: LeaseId) -> Option<LeaseStatus> {
        let (ttl, until) = *self.leases.get(&id.get())?;
        let hung = self.keys.values().filter(|kv| kv.lease == Some(id));
        let keys = hung.map(|kv| kv.key.clone()).collect();
        Some(LeaseStatus { id, ttl, remaining: until - Instant::now(), keys })
    }

    fn txn(&mut self, txn: &TxnOp) -> Result<TxnOutcome, Reason> {
        let succeeded = txn.when.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &txn.then } else { &txn.otherwise };
        // Nothing is written if a later operation is refused.
        let backup = self.keys.clone();
        let mut events = Vec::new();
        let mut results = Vec::new();
        for op in ops {
            match self.op(&op.0, &mut events) {
                Ok(result) => results.push(result),
                Err(reason) => {
                    self.keys = backup;
                    return Err(reason);
                }
            }
        }
        self.seal(events);
        Ok(TxnOutcome { succeeded, revision: Revision::from(self.revision), results })
    }

    /// Makes the events a revision.
    fn seal(&mut self, events: Vec<Event>) {
        if !events.is_empty() {
            self.revision += 1;
            self.history.push(Changes { revision: Revision::from(self.revision), events });
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let mut found = self.keys.values().filter(|kv| compare.range.contains(&kv.key)).peekable();
        if found.peek().is_none() {
            return holds_for(None, compare);
        }
        found.all(|kv| holds_for(Some(kv), compare))
    }

    fn op(&mut self, op: &OpKind, events: &mut Vec<Event>) -> Result<OpResult, Reason> {
        match op {
            OpKind::Put(put) => self.put(put, events),
            OpKind::Get(get) => {
                let keys = self.keys_at(get.at)?;
                Ok(OpResult::Get(keys.get(&get.key).cloned()))
            }
            OpKind::Delete(delete) => {
                let hit = self.keys.keys().filter(|key| delete.range.contains(key));
                let hit: Vec<_> = hit.cloned().collect();
                let prev: Vec<_> = hit.iter().filter_map(|key| self.remove(key, events)).collect();
                let count = prev.len() as u64;
                Ok(OpResult::Deleted { count, prev: if delete.prev { prev } else { vec![] } })
            }
            OpKind::Range(range) => self.range(range).map(OpResult::Range),
            OpKind::Txn(_) => unreachable!("no test of the client nests"),
        }
    }

    fn put(&mut self, put: &PutOp, events: &mut Vec<Event>) -> Result<OpResult, Reason> {
        if let Some(lease) = put.lease
            && !self.leases.contains_key(&lease.get())
        {
            return Err(Reason::LeaseNotFound { lease });
        }
        let prev = self.keys.get(&put.key).cloned();
        if (put.ignore_value || put.ignore_lease) && prev.is_none() {
            return Err(Reason::KeyNotFound);
        }
        let now = Revision::from(self.revision + 1);
        let old = prev.as_ref();
        let kv = KeyValue {
            key: put.key.clone(),
            value: old.filter(|_| put.ignore_value).map_or(&put.value, |kv| &kv.value).clone(),
            create_revision: old.map_or(now, |kv| kv.create_revision),
            mod_revision: now,
            version: old.map_or(1, |kv| kv.version + 1),
            lease: if put.ignore_lease { old.and_then(|kv| kv.lease) } else { put.lease },
        };
        self.keys.insert(put.key.clone(), kv.clone());
        events.push(Event::Put { kv, prev: prev.clone() });
        Ok(OpResult::Put { prev: prev.filter(|_| put.prev) })
    }

    fn remove(&mut self, key: &Bytes, events: &mut Vec<Event>) -> Option<KeyValue> {
        let prev = self.keys.remove(key);
        let revision = Revision::from(self.revision + 1);
        events.push(Event::Delete { key: key.clone(), revision, prev: prev.clone() });
        prev
    }

    fn keys_at(&self, at: Option<Revision>) -> Result<BTreeMap<Bytes, KeyValue>, Reason> {
        let Some(at) = at else { return Ok(self.keys.clone()) };
        if at.get() > self.revision {
            return Err(Reason::FutureRevision { current: Revision::from(self.revision) });
        }
        if at.get() < self.compacted {
            return Err(Reason::Compacted { at: Revision::from(self.compacted) });
        }
        let mut keys = BTreeMap::new();
        let past = self.history.iter().take_while(|changes| changes.revision <= at);
        for event in past.flat_map(|changes| &changes.events) {
            match event {
                Event::Put { kv, .. } => keys.insert(kv.key.clone(), kv.clone()),
                Event::Delete { key, .. } => keys.remove(key),
            };
        }
        Ok(keys)
    }

    fn range(&self, op: &RangeOp) -> Result<Page, Reason> {
        let keys = self.keys_at(op.at)?;
        let mut entries: Vec<_> = keys.into_values().collect();
        entries.retain(|kv| op.range.contains(&kv.key));
        let count = if op.shows == Shows::Entries { 0 } else { entries.len() as u64 };
        entries.retain(|kv| {
            op.mod_revision_min.is_none_or(|min| kv.mod_revision >= min)
                && op.mod_revision_max.is_none_or(|max| kv.mod_revision <= max)
                && op.create_revision_min.is_none_or(|min| kv.create_revision >= min)
                && op.create_revision_max.is_none_or(|max| kv.create_revision <= max)
        });
        match op.sort {
            SortBy::Key => {}
            SortBy::Value => entries.sort_by(|a, b| a.value.cmp(&b.value)),
            SortBy::CreateRevision => entries.sort_by_key(|kv| kv.create_revision),
            SortBy::ModRevision => entries.sort_by_key(|kv| kv.mod_revision),
            SortBy::Version => entries.sort_by_key(|kv| kv.version),
        }
        if op.descending {
            entries.reverse();
        }
        let limit = if op.limit == 0 { usize::MAX } else { op.limit as usize };
        let limit = if op.shows == Shows::Count { 0 } else { limit.min(self.page) };
        let more = entries.len() > limit && op.shows != Shows::Count;
        entries.truncate(limit);
        if op.keys_only {
            entries.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Ok(Page { entries, more, count, revision: Revision::from(self.revision) })
    }
}

fn holds_for(kv: Option<&KeyValue>, compare: &Compare) -> bool {
    let number = |stored: Option<u64>, operand: u64| stored.unwrap_or(0).cmp(&operand);
    let ordering = match &compare.operand {
        Operand::Value(operand) => match kv {
            Some(kv) => kv.value.cmp(operand),
            None => return false,
        },
        Operand::CreateRevision(it) => number(kv.map(|kv| kv.create_revision.get()), *it),
        Operand::ModRevision(it) => number(kv.map(|kv| kv.mod_revision.get()), *it),
        Operand::Version(it) => number(kv.map(|kv| kv.version), *it),
        Operand::Lease(it) => number(kv.and_then(|kv| kv.lease).map(LeaseId::get), *it),
    };
    match compare.relation {
        Relation::Equal => ordering == Ordering::Equal,
        Relation::NotEqual => ordering != Ordering::Equal,
        Relation::Less => ordering == Ordering::Less,
        Relation::Greater => ordering == Ordering::Greater,
    }
}
