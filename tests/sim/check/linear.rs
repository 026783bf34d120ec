//! Whether a history is linearizable: every operation takes effect once, at one moment between its call and its answer,
//! and at that moment its answer is right. To begin with, the store is empty.
//!
//! ```text
//! client 1   ├── put a=1 ───┤
//! client 2         ├──────── put a=2 ────────┤
//! client 3               ├── get a: 1 ─┤        ├── get a: 2 ─┤   ├── get a: 1 ─┤
//! at once       a := 1        1       a := 2           2                 ✗
//! ```
//!
//! The search is that of Wing & Gong (Testing and verifying concurrent objects, 1993) as refined by Lowe (Testing for
//! linearizability, 2017): try the operations one after the other in every order that their times allow, each only when
//! it is needed, and no configuration twice. `search` says what else is left out, and why nothing is overlooked.
//!
//! ```text
//!   operations ── names ──▶ calls ── part ──▶ what they say together ── search ──▶ an order, or a report
//! ```
//!
//! Only values are believed. Revisions are for other checks.
//!
//! Invariants
//! - what says nothing about the order is left out: a serializable read may be old, a refused operation did not happen,
//!   and a read without an answer could be anywhere;
//! - an operation without an answer has no end, and need not have happened;
//! - no operation is about keys of two parts, so a history is linearizable if and only if each part is;
//! - whoever gave up says so: [`Violation::TooHard`] is not a success.
//!
//! Two operations that share a moment overlap, unless they are of one client: a client does one thing after the other,
//! also within a moment. That is kept within each part, where it matters.

mod call;
mod events;
mod memo;
mod names;
mod part;
mod report;
mod search;
mod tests;

use crate::history::{Key, Mode, Operation, Outcome};
use part::{Part, View};
pub use report::Report;
use search::{Search, Verdict};
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// Configurations that one check visits before it gives up. A history that is right needs about one for each write.
const CONFIGURATIONS_MAX: usize = 1_000_000;

/// How much there was to check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Operations that count.
    pub operations: usize,
    /// Parts of the history that have no key in common.
    pub parts: usize,
    /// Configurations that were visited, apart from those of single keys.
    pub configurations: usize,
}

/// Why a history is not known to be linearizable.
#[derive(Clone, Debug)]
pub enum Violation {
    /// There is no order in which all answers are right.
    NotLinearizable(Box<Report>),
    /// The search was given up. It may be either.
    TooHard(Box<Report>),
}

/// Looks for an order of all operations, each at a moment between its start and its end, that makes all answers right.
pub fn check(operations: &[Operation]) -> Result<Stats, Violation> {
    check_within(operations, CONFIGURATIONS_MAX)
}

fn check_within(operations: &[Operation], configurations_max: usize) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    for operations in parts(operations) {
        stats.parts += 1;
        stats.operations += operations.len();
        let left = configurations_max - stats.configurations;
        stats.configurations += check_part(operations, left)?;
    }
    Ok(stats)
}

/// Checks operations that are about the same keys, and returns how many configurations were visited.
fn check_part(operations: Vec<&Operation>, configurations_max: usize) -> Result<usize, Violation> {
    let part = Part::new(operations);
    let keys = 0..part.names.keys.len();
    let views: Vec<View<'_>> =
        if keys.len() > 1 { keys.map(|key| part.view(key)).collect() } else { Vec::new() };
    let mut search = Search::new(&part, &views);
    let (verdict, search) = search.start(configurations_max);
    match verdict {
        Verdict::Found => Ok(search.configurations),
        Verdict::NotFound => Err(Violation::NotLinearizable(Box::new(Report::new(search)))),
        Verdict::TooHard => Err(Violation::TooHard(Box::new(Report::new(search)))),
    }
}

/// Whether an operation says anything about the order.
fn counts(operation: &Operation) -> bool {
    match operation.outcome {
        Outcome::Refused => false,
        Outcome::Unknown => operation.txn.may_write(),
        Outcome::Done { end, .. } => {
            assert!(operation.start <= end, "answered before it was asked: {operation:?}");
            operation.mode == Mode::Linearizable || operation.txn.may_write()
        }
    }
}

/// The operations that count, so that those which share a key, directly or through others, are together.
fn parts(operations: &[Operation]) -> Vec<Vec<&Operation>> {
    let mut groups = Groups::default();
    let counted: Vec<_> = operations.iter().filter(|operation| counts(operation)).collect();
    let mut first_keys = Vec::new();
    for operation in &counted {
        let keys = operation.txn.keys();
        let keys: Vec<usize> = keys.into_iter().map(|key| groups.number(key)).collect();
        keys.windows(2).for_each(|pair| groups.join(pair[0], pair[1]));
        first_keys.push(keys.first().copied());
    }
    // What names no key is a part as well.
    let mut parts: BTreeMap<Option<usize>, Vec<&Operation>> = BTreeMap::new();
    for (operation, key) in counted.into_iter().zip(first_keys) {
        parts.entry(key.map(|key| groups.root(key))).or_default().push(operation);
    }
    parts.into_values().collect()
}

/// Keys in groups: each points to another key of its group, and the root to itself.
#[derive(Default)]
struct Groups<'a> {
    numbers: HashMap<&'a Key, usize>,
    points_to: Vec<usize>,
}

impl<'a> Groups<'a> {
    fn number(&mut self, key: &'a Key) -> usize {
        *self.numbers.entry(key).or_insert_with(|| {
            self.points_to.push(self.points_to.len());
            self.points_to.len() - 1
        })
    }

    fn root(&mut self, mut key: usize) -> usize {
        while self.points_to[key] != key {
            self.points_to[key] = self.points_to[self.points_to[key]];
            key = self.points_to[key];
        }
        key
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        self.points_to[one.max(other)] = one.min(other);
    }
}

impl Violation {
    pub fn report(&self) -> &Report {
        let (Self::NotLinearizable(report) | Self::TooHard(report)) = self;
        report
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::NotLinearizable(_) => "not linearizable: no order explains all answers",
            Self::TooHard(_) => "too hard: the search for an order was given up",
        };
        write!(f, "{what}\n{}", self.report())
    }
}

impl std::error::Error for Violation {}
