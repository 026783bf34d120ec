//! Where everybody writes down what they did and saw, in the order in which it happened.
//!
//! A run is one thread, so that order is the truth: a stamp is the time of the simulation, and a little later than the
//! stamp before it.

use crate::history::{Mode, Moment, Operation, Outcome, Txn};
use crate::net::HostId;
use quorate::{Changes, KeyValue};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The book of a run. Clones are the same.
#[derive(Clone, Default)]
pub struct Book(Arc<Inner>);

#[derive(Default)]
struct Inner {
    pages: Mutex<Pages>,
    is_closing: AtomicBool,
    speaks: AtomicBool,
}

/// What is in the book.
#[derive(Default)]
pub struct Pages {
    now: Moment,
    /// Hosts that have ended in the middle of a step, and do not know it yet.
    fallen: BTreeSet<HostId>,
    pub operations: Vec<Operation>,
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
    pub name: String,
    pub prefix: String,
    pub puts: bool,
    pub deletes: bool,
    pub from: u64,
    pub told: Vec<Changes>,
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

impl Book {
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
        pages.operations[operation].outcome = outcome(now);
    }

    pub fn watch(&self, watched: Watched) -> usize {
        let mut pages = self.pages();
        pages.watches.push(watched);
        pages.watches.len() - 1
    }

    pub fn watched(&self, watch: usize, note: impl FnOnce(&mut Watched)) {
        note(&mut self.pages().watches[watch]);
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
    /// Whether a watch can still be told something.
    pub fn is_heard(&self, watched: &Watched) -> bool {
        watched.is_alive && !self.gone.contains(&watched.endpoint)
    }

    fn stamp(&mut self) -> Moment {
        self.now += Duration::from_nanos(1);
        self.now
    }
}
