//! Where everybody writes down what they did and saw, in the order in which it happened.
//!
//! A run is one thread, so that order is the truth: a stamp is the time of the simulation, and a little later than the
//! stamp before it.

use crate::history::{Mode, Moment, Operation, Outcome, Txn};
use crate::net::HostId;
use quorate::{Changes, KeyValue};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The book of a run. Clones are the same.
#[derive(Clone, Default)]
pub struct Book(Arc<Inner>);

#[derive(Default)]
struct Inner {
    pages: Mutex<Pages>,
    clients: AtomicU32,
    is_closing: AtomicBool,
    is_tight: AtomicBool,
    speaks: AtomicBool,
}

/// What is in the book.
#[derive(Clone, Default)]
pub struct Pages {
    now: Moment,
    /// Hosts that have ended in the middle of a step, and do not know it yet.
    fallen: BTreeSet<HostId>,
    pub operations: Vec<Operation>,
    /// When operations were refused, by their place among all.
    refused_at: BTreeMap<usize, Moment>,
    pub reads: Vec<RangeRead>,
    pub watches: Vec<Watched>,
    pub leases: Vec<Lease>,
    pub acts: Vec<Act>,
    /// The revisions that somebody asked to compact to.
    pub compactions: Vec<u64>,
    /// The addresses of members that never come back.
    pub gone: BTreeSet<String>,
    /// How many have written after everything was healed.
    pub probed: usize,
    /// How many writes were refused for want of room.
    pub no_room: u64,
    /// The newest revision that the checks have seen.
    pub observed: u64,
    /// When each revision was first seen at any member.
    pub seen_at: BTreeMap<u64, Moment>,
    /// What must not have happened, as it was noticed.
    pub violations: Vec<String>,
}

/// A read of all keys.
#[derive(Clone, Debug)]
pub struct RangeRead {
    /// Who asked.
    pub client: u32,
    pub mode: Mode,
    pub start: Moment,
    pub end: Moment,
    /// The revision that was asked for.
    pub at: Option<u64>,
    pub revision: u64,
    pub entries: Vec<KeyValue>,
}

/// A watch, and what it was told.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Whose it is.
    pub client: u32,
    pub name: String,
    pub prefix: String,
    pub puts: bool,
    pub deletes: bool,
    pub from: u64,
    pub told: Vec<Changes>,
    /// When it was told each.
    pub told_at: Vec<Moment>,
    /// The positions that it said, each after so many batches.
    pub positions: Vec<(usize, u64)>,
    /// Where it was compacted away, if it was.
    pub compacted: Option<u64>,
    /// Whether somebody still listens.
    pub is_alive: bool,
    /// The member that it is asked of, by a client that knows no other.
    pub endpoint: String,
}

/// A lease, as whoever was given it knows it.
#[derive(Clone, Debug)]
pub struct Lease {
    pub ttl: Duration,
    pub key: String,
    /// When the last renewal was asked for that was answered; the lease lives on from then at least.
    pub renewed: Moment,
    /// Whether somebody may have ended it.
    pub is_revoked: bool,
    /// Whether somebody may still renew it.
    pub is_held: bool,
}

/// A moment at which somebody believed to hold something.
#[derive(Clone, Debug)]
pub struct Act {
    pub what: String,
    pub who: String,
    pub token: u64,
    #[expect(dead_code, reason = "for whoever reads of a violation")]
    pub at: Moment,
}

impl Watched {
    /// The same when nobody listens any more, at a moment of the past.
    fn as_of(&self, at: Moment) -> Self {
        let told = self.told_at.partition_point(|told_at| *told_at <= at);
        let (mut told_at, mut positions) = (self.told_at.clone(), self.positions.clone());
        told_at.truncate(told);
        // The last of them may have been said later.
        positions.retain(|(after, _)| *after < told);
        let told = self.told[..told].to_vec();
        Self { told, told_at, positions, compacted: None, is_alive: false, ..self.clone() }
    }
}

impl Lease {
    /// The same when nobody renews it any more, and anybody may have ended it.
    fn forgotten(&self) -> Self {
        Self { is_revoked: true, is_held: false, ..self.clone() }
    }
}

impl Book {
    /// A book in which something stands already.
    pub fn of(pages: Pages) -> Self {
        Self(Arc::new(Inner { pages: Mutex::new(pages), ..Inner::default() }))
    }

    pub fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is `now`, or later.
    pub fn turn(&self, now: Moment) {
        let mut pages = self.pages();
        pages.now = pages.now.max(now);
    }

    pub fn stamp(&self) -> Moment {
        self.pages().stamp()
    }

    /// Prints what happens from now on.
    pub fn speak(&self) {
        self.0.speaks.store(true, Ordering::Relaxed);
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.0.speaks.load(Ordering::Relaxed) {
            let now = self.stamp();
            println!("{:10.4} {}", now.as_secs_f64(), what());
        }
    }

    /// What a host does from now on has not happened.
    pub fn fall(&self, host: HostId) {
        self.pages().fallen.insert(host);
    }

    pub fn rise(&self, host: HostId) {
        self.pages().fallen.remove(&host);
    }

    pub fn has_fallen(&self, host: HostId) -> bool {
        self.pages().fallen.contains(&host)
    }

    /// Values are so large that the group runs out of room.
    pub fn fill_up(&self) {
        self.0.is_tight.store(true, Ordering::Relaxed);
    }

    pub fn is_tight(&self) -> bool {
        self.0.is_tight.load(Ordering::Relaxed)
    }

    /// A number that no other client has.
    pub fn client(&self) -> u32 {
        self.0.clients.fetch_add(1, Ordering::Relaxed)
    }

    /// Nobody is to begin anything new.
    pub fn close(&self) {
        self.0.is_closing.store(true, Ordering::Relaxed);
    }

    pub fn is_closing(&self) -> bool {
        self.0.is_closing.load(Ordering::Relaxed)
    }

    /// An operation begins. Until it has ended its outcome is unknown.
    pub fn begin(&self, client: u32, mode: Mode, txn: Txn) -> usize {
        let mut pages = self.pages();
        let start = pages.stamp();
        let outcome = Outcome::Unknown;
        pages.operations.push(Operation { client, mode, txn, start, outcome });
        pages.operations.len() - 1
    }

    pub fn end(&self, operation: usize, outcome: impl FnOnce(Moment) -> Outcome) {
        let mut pages = self.pages();
        let now = pages.stamp();
        let outcome = outcome(now);
        if outcome == Outcome::Refused {
            pages.refused_at.insert(operation, now);
        }
        pages.operations[operation].outcome = outcome;
    }

    pub fn watch(&self, watched: Watched) -> usize {
        let mut pages = self.pages();
        pages.watches.push(watched);
        pages.watches.len() - 1
    }

    pub fn watched(&self, watch: usize, note: impl FnOnce(&mut Watched)) {
        note(&mut self.pages().watches[watch]);
    }

    /// A watch is told something.
    pub fn told(&self, watch: usize, changes: Changes, position: u64) {
        let mut pages = self.pages();
        let now = pages.stamp();
        let watched = &mut pages.watches[watch];
        watched.told.push(changes);
        watched.told_at.push(now);
        watched.positions.push((watched.told.len(), position));
    }

    pub fn lease(&self, lease: Lease) -> usize {
        let mut pages = self.pages();
        pages.leases.push(lease);
        pages.leases.len() - 1
    }

    pub fn leased(&self, lease: usize, note: impl FnOnce(&mut Lease)) {
        note(&mut self.pages().leases[lease]);
    }

    pub fn act(&self, act: impl FnOnce(Moment) -> Act) {
        let mut pages = self.pages();
        let now = pages.stamp();
        pages.acts.push(act(now));
    }

    pub fn violation(&self, what: String) {
        self.say(|| format!("VIOLATION {what}"));
        self.pages().violations.push(what);
    }
}

impl Pages {
    /// Somebody has shown all revisions up to this one, by now.
    pub fn note_seen(&mut self, upto: u64) {
        let known = self.seen_at.last_key_value().map_or(1, |(revision, _)| *revision);
        let now = self.now;
        self.seen_at.extend((known + 1..=upto).map(|revision| (revision, now)));
    }

    /// When a revision was first seen anywhere.
    pub fn seen_at(&self, revision: u64) -> Option<Moment> {
        self.seen_at.get(&revision).copied()
    }

    /// The newest revision that was seen.
    pub fn newest(&self) -> u64 {
        self.seen_at.last_key_value().map_or(1, |(revision, _)| *revision)
    }

    /// What was in the book at a moment of the past at which all members, and all who worked with them, ended. Of leases
    /// and of those who hold something it says nothing that would be judged by a clock.
    pub fn as_of(&self, at: Moment) -> Self {
        let mut then = Self { now: at, compactions: self.compactions.clone(), ..Self::default() };
        let begun = self.operations.iter().filter(|operation| operation.start <= at);
        then.operations = begun.cloned().collect();
        for (index, operation) in then.operations.iter_mut().enumerate() {
            let end = operation.end().or_else(|| self.refused_at.get(&index).copied());
            if end > Some(at) {
                operation.outcome = Outcome::Unknown;
            }
        }
        then.reads = self.reads.iter().filter(|read| read.end <= at).cloned().collect();
        then.watches = self.watches.iter().map(|watched| watched.as_of(at)).collect();
        then.leases = self.leases.iter().map(Lease::forgotten).collect();
        then.seen_at =
            self.seen_at.iter().filter(|(_, seen)| **seen <= at).map(|(r, s)| (*r, *s)).collect();
        then
    }

    /// Whether a watch can still be told something.
    pub fn is_heard(&self, watched: &Watched) -> bool {
        watched.is_alive && !self.gone.contains(&watched.endpoint)
    }

    fn stamp(&mut self) -> Moment {
        self.now += Duration::from_nanos(1);
        self.now
    }
}
