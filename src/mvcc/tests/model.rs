//! The same rules written once more, as plainly as possible, and a comparison with the real thing after every step.
//!
//! The model keeps the whole state of every revision as a map, and every event in a list. A transaction works on a copy
//! and is thrown away if an operation fails. There are no before-images, no escaping, no plan, no bytes: whatever the
//! two have in common they have from the rules.

use super::kit::{Lab, TERM, rows, txn};
use super::lazy::Lazy;
use crate::api::{AGES, Applied, CLIENT_AGES, Command, Cursor, Position, Proposal, check_txn};
use crate::codec::layout::Layout;
use crate::error::Reason;
use crate::mvcc::snapshot::{SnapshotLoader, SnapshotReader};
use crate::mvcc::tape::Tape;
use crate::mvcc::{Body, Entry, LeaseChange, Outcome, View};
use crate::types::{
    Changes, Compare, Event, KeyValue, LeaseId, Op, OpKind, OpResult, Operand, Page, PutOp,
    RangeOp, Relation, Revision, Shows, SortBy, TxnOp, TxnOutcome,
};
use bytes::Bytes;
use proptest::prelude::*;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

type Keys = BTreeMap<Bytes, KeyValue>;

#[derive(Clone)]
struct Model {
    /// The keys at each revision; the first is of revision 0, when there were none either.
    states: Vec<Keys>,
    /// The events of each revision.
    events: Vec<Vec<Event>>,
    leases: BTreeMap<LeaseId, Duration>,
    lease_chosen: u64,
    compact_revision: u64,
    /// The revision at the end of each slice of time.
    ages: Vec<u64>,
    is_short_of_room: bool,
    lease_changes: Vec<LeaseChange>,
    clients: BTreeMap<u64, Client>,
    client_chosen: u64,
    client_age: u64,
}

/// What was answered to a client.
#[derive(Clone, Default)]
struct Client {
    floor: u64,
    seen: u64,
    answers: BTreeMap<u64, Outcome>,
}

/// A revision in the making.
struct Draft<'model> {
    model: &'model Model,
    keys: Keys,
    events: Vec<Event>,
}

impl Model {
    fn new() -> Self {
        Self {
            states: vec![Keys::new(); 2],
            events: vec![Vec::new(); 2],
            leases: BTreeMap::new(),
            lease_chosen: 0,
            compact_revision: 0,
            ages: Vec::new(),
            is_short_of_room: false,
            lease_changes: Vec::new(),
            clients: BTreeMap::new(),
            client_chosen: 0,
            client_age: 0,
        }
    }

    fn revision(&self) -> u64 {
        self.states.len() as u64 - 1
    }

    fn now(&self) -> &Keys {
        self.states.last().unwrap()
    }

    fn draft(&self) -> Draft<'_> {
        Draft { model: self, keys: self.now().clone(), events: Vec::new() }
    }

    /// Makes a revision of what a draft changed, if it changed anything.
    fn publish(&mut self, keys: Keys, events: Vec<Event>) -> Revision {
        if !events.is_empty() {
            self.states.push(keys);
            self.events.push(events);
        }
        Revision::from(self.revision())
    }

    /// Carries out a command, unless it was sent before.
    fn propose(&mut self, proposal: &Proposal) -> Outcome {
        let Some(origin) = proposal.origin else { return self.apply(&proposal.command) };
        let age = self.client_age;
        let client = self.clients.get_mut(&origin.client).ok_or(Reason::ClientForgotten)?;
        if origin.lowest_outstanding > origin.sequence {
            return Err(Reason::Malformed { what: "number of a write".to_owned() });
        }
        if origin.sequence < client.floor {
            return Err(Reason::AlreadyAnswered);
        }
        client.seen = age;
        client.floor = client.floor.max(origin.lowest_outstanding);
        client.answers.retain(|number, _| *number >= client.floor);
        if let Some(answer) = client.answers.get(&origin.sequence) {
            return answer.clone();
        }
        let outcome = self.apply(&proposal.command);
        if let Some(client) = self.clients.get_mut(&origin.client) {
            let kept = match &outcome {
                Ok(applied) if outcome.to_bytes().len() > 16 << 10 => {
                    Err(Reason::AnswerNotKept { revision: applied.revision() })
                }
                outcome => outcome.clone(),
            };
            client.answers.insert(origin.sequence, kept);
        }
        outcome
    }

    fn apply(&mut self, command: &Command) -> Outcome {
        match command {
            command if self.is_short_of_room && command.takes_room() => Err(Reason::NoSpace),
            Command::Room { is_short } => {
                self.is_short_of_room = *is_short;
                Ok(Applied::Noted { revision: Revision::from(self.revision()) })
            }
            Command::Txn(txn) => {
                let mut draft = self.draft();
                let outcome = draft.transaction(txn)?;
                let Draft { keys, events, .. } = draft;
                self.publish(keys, events);
                Ok(Applied::Txn(outcome))
            }
            Command::Grant { id, ttl } => self.grant(*id, *ttl),
            Command::Revoke(lease) if !self.leases.contains_key(lease) => {
                Err(Reason::LeaseNotFound { lease: *lease })
            }
            Command::Revoke(lease) => Ok(Applied::Revoked { revision: self.end(*lease) }),
            Command::Expire { deciding_term, .. }
            | Command::Age { deciding_term }
            | Command::AgeClients { deciding_term }
                if *deciding_term != TERM =>
            {
                Err(Reason::LeaderChanged)
            }
            Command::Register => {
                self.client_chosen += 1;
                let (client, revision) = (self.client_chosen, Revision::from(self.revision()));
                let new = Client { floor: 1, seen: self.client_age, ..Client::default() };
                self.clients.insert(client, new);
                Ok(Applied::Registered { client, revision })
            }
            Command::AgeClients { .. } => {
                self.client_age += 1;
                let now = self.client_age;
                self.clients.retain(|_, client| client.seen + CLIENT_AGES >= now);
                Ok(Applied::Noted { revision: Revision::from(self.revision()) })
            }
            Command::Expire { leases, .. } => {
                let mut due: Vec<_> =
                    self.leases.keys().filter(|id| leases.contains(id)).copied().collect();
                due.sort();
                due.iter().for_each(|id| {
                    self.end(*id);
                });
                Ok(Applied::Expired { leases: due, revision: Revision::from(self.revision()) })
            }
            Command::Age { .. } => {
                self.ages.push(self.revision());
                let oldest = self.ages.len().checked_sub(AGES + 1).map_or(0, |at| self.ages[at]);
                if oldest > 1 {
                    self.compact_revision = self.compact_revision.max(oldest);
                }
                Ok(Applied::Noted { revision: Revision::from(self.revision()) })
            }
            Command::Compact(at) if at.get() <= self.compact_revision => Err(self.compacted()),
            Command::Compact(at) if at.get() > self.revision() => Err(self.future()),
            Command::Compact(at) => {
                self.compact_revision = at.get();
                Ok(Applied::Compacted { revision: Revision::from(self.revision()) })
            }
        }
    }

    fn grant(&mut self, id: Option<LeaseId>, ttl: Duration) -> Outcome {
        let id = match id {
            Some(id) if id.get() > 0 => id,
            _ => loop {
                self.lease_chosen += 1;
                let id = LeaseId::from(self.lease_chosen);
                if !self.leases.contains_key(&id) {
                    break id;
                }
            },
        };
        if self.leases.contains_key(&id) {
            return Err(Reason::LeaseExists { lease: id });
        }
        self.leases.insert(id, ttl);
        self.lease_changes.push(LeaseChange::Granted { id, ttl });
        Ok(Applied::Granted { id, ttl, revision: Revision::from(self.revision()) })
    }

    fn lease_keys(&self, id: LeaseId) -> Vec<Bytes> {
        let attached = self.now().values().filter(|kv| kv.lease == Some(id));
        attached.map(|kv| kv.key.clone()).collect()
    }

    fn end(&mut self, id: LeaseId) -> Revision {
        self.leases.remove(&id).unwrap();
        self.lease_changes.push(LeaseChange::Ended { id });
        let mut draft = self.draft();
        self.lease_keys(id).iter().for_each(|key| draft.delete(key));
        let Draft { keys, events, .. } = draft;
        self.publish(keys, events)
    }

    fn compacted(&self) -> Reason {
        Reason::Compacted { at: Revision::from(self.compact_revision) }
    }

    fn future(&self) -> Reason {
        Reason::FutureRevision { current: Revision::from(self.revision()) }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let in_range: Vec<_> =
            self.now().values().filter(|kv| compare.range.contains(&kv.key)).collect();
        if in_range.is_empty() {
            return relates(None, compare);
        }
        in_range.iter().all(|kv| relates(Some(kv), compare))
    }

    fn events_from(&self, cursor: &Cursor) -> Result<Vec<Changes>, Reason> {
        if cursor.next.revision.get() < self.compact_revision {
            return Err(self.compacted());
        }
        let from = cursor.next.revision.get() as usize;
        let mut all = Vec::new();
        for (revision, events) in self.events.iter().enumerate().skip(from) {
            let events = events.iter().filter(|event| {
                let kind = matches!(event, Event::Put { .. });
                cursor.range.contains(event.key())
                    && if kind { cursor.puts } else { cursor.deletes }
            });
            let events: Vec<_> =
                events.map(|event| without_prev(event.clone(), !cursor.prev)).collect();
            if !events.is_empty() {
                all.push(Changes { revision: Revision::from(revision as u64), events });
            }
        }
        Ok(all)
    }
}

fn without_prev(event: Event, without: bool) -> Event {
    match event {
        Event::Put { kv, .. } if without => Event::Put { kv, prev: None },
        Event::Delete { key, revision, .. } if without => {
            Event::Delete { key, revision, prev: None }
        }
        event => event,
    }
}

fn relates(kv: Option<&KeyValue>, compare: &Compare) -> bool {
    let of = |number: fn(&KeyValue) -> u64| kv.map_or(0, number);
    let order = match &compare.operand {
        Operand::Value(wanted) => match kv {
            Some(kv) => kv.value.cmp(wanted),
            None => return false,
        },
        Operand::CreateRevision(wanted) => of(|kv| kv.create_revision.get()).cmp(wanted),
        Operand::ModRevision(wanted) => of(|kv| kv.mod_revision.get()).cmp(wanted),
        Operand::Version(wanted) => of(|kv| kv.version).cmp(wanted),
        Operand::Lease(wanted) => of(|kv| kv.lease.map_or(0, LeaseId::get)).cmp(wanted),
    };
    match compare.relation {
        Relation::Equal => order == Ordering::Equal,
        Relation::NotEqual => order != Ordering::Equal,
        Relation::Less => order == Ordering::Less,
        Relation::Greater => order == Ordering::Greater,
    }
}

impl Draft<'_> {
    fn revision(&self) -> u64 {
        self.model.revision() + u64::from(!self.events.is_empty())
    }

    fn transaction(&mut self, txn: &TxnOp) -> Result<TxnOutcome, Reason> {
        check_txn(txn)?;
        self.run(txn)
    }

    fn run(&mut self, txn: &TxnOp) -> Result<TxnOutcome, Reason> {
        let succeeded = txn.when.iter().all(|compare| self.model.holds(compare));
        let branch = if succeeded { &txn.then } else { &txn.otherwise };
        let results = branch.iter().map(|op| self.op(op)).collect::<Result<_, _>>()?;
        Ok(TxnOutcome { succeeded, revision: Revision::from(self.revision()), results })
    }

    fn op(&mut self, op: &Op) -> Result<OpResult, Reason> {
        Ok(match &op.0 {
            OpKind::Put(put) => self.put(put)?,
            OpKind::Get(get) => OpResult::Get(self.at(get.at)?.get(&get.key).cloned()),
            OpKind::Delete(delete) => {
                let inside = self.keys.values().filter(|kv| delete.range.contains(&kv.key));
                let found: Vec<_> = inside.cloned().collect();
                found.iter().for_each(|kv| self.delete(&kv.key));
                let count = found.len() as u64;
                OpResult::Deleted { count, prev: if delete.prev { found } else { Vec::new() } }
            }
            OpKind::Range(op) => {
                let keys = self.at(op.at)?;
                OpResult::Range(page(keys, op, Revision::from(self.revision())))
            }
            OpKind::Txn(nested) => OpResult::Txn(self.run(nested)?),
        })
    }

    fn at(&self, at: Option<Revision>) -> Result<&Keys, Reason> {
        match at.map(Revision::get) {
            None => Ok(&self.keys),
            Some(at) if at < self.model.compact_revision => Err(self.model.compacted()),
            Some(at) if at > self.model.revision() => Err(self.model.future()),
            Some(at) => Ok(&self.model.states[at as usize]),
        }
    }

    fn put(&mut self, put: &PutOp) -> Result<OpResult, Reason> {
        if let Some(lease) = put.lease
            && !self.model.leases.contains_key(&lease)
        {
            return Err(Reason::LeaseNotFound { lease });
        }
        let old = self.keys.get(&put.key).cloned();
        if (put.ignore_value || put.ignore_lease) && old.is_none() {
            return Err(Reason::KeyNotFound);
        }
        let revision = Revision::from(self.model.revision() + 1);
        let mut kv = KeyValue {
            key: put.key.clone(),
            value: put.value.clone(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: put.lease,
        };
        if let Some(old) = &old {
            kv.create_revision = old.create_revision;
            kv.version = old.version + 1;
            if put.ignore_value {
                kv.value = old.value.clone();
            }
            if put.ignore_lease {
                kv.lease = old.lease;
            }
        }
        self.keys.insert(put.key.clone(), kv.clone());
        self.event(Event::Put { kv, prev: old.clone() });
        Ok(OpResult::Put { prev: old.filter(|_| put.prev) })
    }

    fn delete(&mut self, key: &Bytes) {
        let prev = self.keys.remove(key);
        let revision = Revision::from(self.model.revision() + 1);
        self.event(Event::Delete { key: key.clone(), revision, prev });
    }

    fn event(&mut self, event: Event) {
        let twice = self.events.iter().any(|earlier| earlier.key() == event.key());
        assert!(!twice, "a key changes at most once per revision");
        self.events.push(event);
    }
}

fn page(keys: &Keys, op: &RangeOp, revision: Revision) -> Page {
    let inside: Vec<_> = keys.values().filter(|kv| op.range.contains(&kv.key)).collect();
    let count = if op.shows == Shows::Entries { 0 } else { inside.len() as u64 };
    if op.shows == Shows::Count {
        return Page { entries: Vec::new(), more: false, count, revision };
    }
    let keep = |kv: &&KeyValue| {
        op.mod_revision_min.is_none_or(|min| kv.mod_revision >= min)
            && op.mod_revision_max.is_none_or(|max| kv.mod_revision <= max)
            && op.create_revision_min.is_none_or(|min| kv.create_revision >= min)
            && op.create_revision_max.is_none_or(|max| kv.create_revision <= max)
    };
    let mut entries: Vec<KeyValue> = inside.into_iter().filter(keep).cloned().collect();
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
    let more = op.limit > 0 && entries.len() > op.limit as usize;
    if more {
        entries.truncate(op.limit as usize);
    }
    if op.keys_only {
        entries.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    Page { entries, more, count, revision }
}

/// The real thing beside the model, twice: one that flushes whatever it applies, and one that does so now and then.
struct Pair {
    lab: Lab,
    lazy: Lazy,
    model: Model,
    log: Vec<Entry>,
}

impl Pair {
    fn step(&mut self, tape: &mut Tape<'_>) {
        if tape.once_in(12) {
            self.lab.reopen();
        }
        if tape.once_in(3) {
            self.lab.store().compact_step(1 + tape.below(4)).unwrap();
        }
        tape.revisions = (self.model.compact_revision, self.model.revision());
        tape.leases = self.model.leases.keys().copied().collect();
        tape.clients = self.model.client_chosen;
        let proposals: Vec<_> = (0..tape.below(8)).map(|_| tape.proposal()).collect();
        self.batch(&proposals);
        let view = self.lab.view();
        self.check_state(&view);
        assert_eq!(view.recompute_hash().unwrap(), view.hash());
        if tape.once_in(3) {
            view.verify().unwrap();
        }
        self.check_query(&view, tape);
        self.check_watch(&view, tape);
        let lazy = self.lazy.view();
        self.check_state(&lazy);
        assert_eq!(lazy.hash(), view.hash());
        self.check_query(&lazy, tape);
        self.check_watch(&lazy, tape);
        drop(lazy);
        for _ in 0..tape.below(4) {
            self.lazy.step(tape, &self.log);
        }
        if tape.once_in(16) {
            self.check_backup(self.lab.view());
            self.check_snapshot(view);
        }
    }

    fn batch(&mut self, proposals: &[Proposal]) {
        let (revision, compacted) = (self.model.revision(), self.model.compact_revision);
        self.model.lease_changes.clear();
        let blank = self.lab.entry(Body::Blank);
        let body = |proposal: &Proposal| Body::Command(Arc::new(proposal.clone()));
        let entries = proposals.iter().map(|proposal| self.lab.entry(body(proposal)));
        let entries: Vec<_> = std::iter::once(blank).chain(entries).collect();
        let batch = self.lab.store().apply(&entries).unwrap();
        let lazy = self.lazy.core.apply(&entries).unwrap();
        assert_eq!(format!("{lazy:?}"), format!("{batch:?}"));
        self.log.extend(entries);
        assert_eq!(batch.outcomes[0], None);
        for (proposal, outcome) in proposals.iter().zip(&batch.outcomes[1..]) {
            let expected = self.model.propose(proposal);
            assert_eq!(outcome.as_ref(), Some(&expected), "{proposal:?}");
        }
        assert_eq!(batch.revision.get(), self.model.revision());
        let new = &self.model.events[revision as usize + 1..];
        let touched = new.iter().flatten().map(|event| (event.revision(), event.key().clone()));
        assert_eq!(batch.touched, touched.collect::<Vec<_>>());
        assert_eq!(batch.leases, self.model.lease_changes);
        let moved = Some(self.model.compact_revision).filter(|now| *now != compacted);
        assert_eq!(batch.compacted.map(Revision::get), moved);
    }

    fn check_state(&self, view: &View) {
        let model = &self.model;
        assert_eq!(view.revision().get(), model.revision());
        assert_eq!(view.compact_revision().get(), model.compact_revision);
        assert_eq!(view.applied().unwrap().index, self.lab.index);
        assert_eq!(view.keys(), model.now().len() as u64);
        let all: Vec<_> = model.leases.iter().map(|(id, ttl)| (*id, *ttl)).collect();
        assert_eq!(view.leases().unwrap(), all);
        for id in (0..8).map(LeaseId::from) {
            let lease = view.lease(id).unwrap();
            let expected = model.leases.get(&id).map(|ttl| (id, *ttl, model.lease_keys(id)));
            assert_eq!(lease.map(|lease| (lease.id, lease.ttl, lease.keys)), expected);
        }
    }

    fn check_query(&self, view: &View, tape: &mut Tape<'_>) {
        let query = tape.query();
        let expected = self.model.draft().transaction(&query);
        assert_eq!(view.query(&query).unwrap(), expected, "{query:?}");
        let everything = txn([], [Op::range(..), Op::range(..).at(tape.revision())], []);
        let expected = self.model.draft().transaction(&everything);
        assert_eq!(view.query(&everything).unwrap(), expected, "{everything:?}");
    }

    fn check_watch(&self, view: &View, tape: &mut Tape<'_>) {
        let cursor = tape.cursor();
        let bytes_max = [usize::MAX, 0, 200, 600, 2000][tape.below(5)];
        let seen = watch(view, cursor.clone(), bytes_max);
        assert_eq!(seen, self.model.events_from(&cursor), "{cursor:?}");
    }

    /// Each state can be backed up, and what is restored has its keys and leases.
    fn check_backup(&self, view: View) {
        let (revision, leases) = (view.revision(), view.leases().unwrap());
        let (bytes, info) = super::backups::backup(view);
        assert_eq!(info.keys, self.model.now().len() as u64);
        let (_folder, store) = super::backups::restore(&bytes, 7).unwrap();
        let restored = store.view().unwrap();
        restored.verify().unwrap();
        assert_eq!(restored.revision().get(), revision.get() + 7);
        assert_eq!(restored.leases().unwrap(), leases);
        let found = restored.query(&txn([], [Op::range(..)], [])).unwrap().unwrap();
        let page = match found.results.into_iter().next() {
            Some(OpResult::Range(page)) => page.entries,
            other => panic!("{other:?}"),
        };
        assert!(page.iter().eq(self.model.now().values()));
    }

    fn check_snapshot(&self, view: View) {
        let (hash, folder) = (view.hash(), tempfile::tempdir().unwrap());
        let sync = crate::lmdb::Sync::Never;
        let mut loader =
            SnapshotLoader::new_with(folder.path(), super::kit::MAP_BYTES, sync).unwrap();
        let mut reader = SnapshotReader::new(view);
        while let Some(chunk) = reader.next_chunk(333).unwrap() {
            loader.push(&chunk).unwrap();
        }
        let loaded = loader.finish().unwrap().view().unwrap();
        assert_eq!(loaded.hash(), hash);
        assert_eq!(loaded.recompute_hash().unwrap(), hash);
        self.check_state(&loaded);
    }

    /// However lazy it was, in the end the tables hold the same, to the byte.
    fn check_end(&mut self) {
        self.lazy.settle();
        let (lab, lazy) = (self.lab.store(), self.lazy.core.moment().store());
        for store in [lab, &lazy] {
            assert!(store.compact_step(1 << 20).unwrap());
            store.view().unwrap().verify().unwrap();
        }
        assert_eq!(rows(lab), rows(&lazy));
    }
}

/// Follows a cursor to the newest revision, step by step, and joins the fragments.
fn watch(view: &View, mut cursor: Cursor, bytes_max: usize) -> Result<Vec<Changes>, Reason> {
    let mut all: Vec<Changes> = Vec::new();
    loop {
        let begin = cursor.next;
        let events = view.events(&cursor, view.revision(), bytes_max).unwrap()?;
        for changes in events.changes {
            match all.last_mut() {
                Some(last) if last.revision == changes.revision => {
                    assert!(begin.sub > 0, "a revision comes in pieces only if it was cut");
                    last.events.extend(changes.events);
                }
                _ => all.push(changes),
            }
        }
        assert_eq!(events.fragment, events.next.sub > 0);
        if events.fragment {
            assert_eq!(all.last().unwrap().revision, events.next.revision);
        }
        cursor.next = events.next;
        if !events.more {
            let end = Position::start_of(view.revision().next());
            assert_eq!(events.next, end.max(begin));
            return Ok(all);
        }
        assert!(events.next > begin, "each step moves on");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000, failure_persistence: None, max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_store_does_what_the_rules_say(bytes in proptest::collection::vec(any::<u8>(), 0..900)) {
        let mut tape = Tape::new(&bytes);
        let (lab, lazy, log) = (Lab::new(), Lazy::new(), Vec::new());
        let mut pair = Pair { lab, lazy, model: Model::new(), log };
        while !tape.is_empty() {
            pair.step(&mut tape);
        }
        pair.check_end();
    }
}

/// A key that has changed so often that the way back through its changes is cut short, with flushes and compaction in
/// between, and deletes: read at each revision, and watched from each.
#[test]
fn a_long_history_of_a_key_is_found_from_any_place() {
    const CHANGES: u64 = 500;
    let mut pair =
        Pair { lab: Lab::new(), lazy: Lazy::new(), model: Model::new(), log: Vec::new() };
    for number in 0..CHANGES {
        let put = |key: &'static str| {
            Command::Txn(TxnOp::single(Op::put(key, number.to_string()).0)).into()
        };
        let delete = Command::Txn(TxnOp::single(Op::delete("k".."l").0)).into();
        pair.batch(&[put("k"), put("other")]);
        if number % 37 == 36 {
            pair.batch(&[delete]);
        }
        if number % 150 == 149 {
            pair.batch(&[Command::Compact(Revision::from(pair.model.revision() / 3)).into()]);
            pair.lab.store().compact_step(100).unwrap();
        }
        if number % 90 == 89 {
            pair.lazy.settle();
        }
    }
    let (compacted, newest) = (pair.model.compact_revision, pair.model.revision());
    for view in [pair.lab.view(), pair.lazy.view()] {
        for revision in compacted..=newest {
            let read = txn(
                [],
                [
                    Op::get("k").at(Revision::from(revision)),
                    Op::range(..).at(Revision::from(revision)),
                ],
                [],
            );
            assert_eq!(view.query(&read).unwrap(), pair.model.draft().transaction(&read));
            let cursor = super::kit::cursor("k", revision);
            let bytes_max = [usize::MAX, 600][(revision % 2) as usize];
            let seen = watch(&view, cursor.clone(), bytes_max);
            assert_eq!(seen, pair.model.events_from(&cursor), "from {revision}");
        }
    }
    pair.check_end();
}
