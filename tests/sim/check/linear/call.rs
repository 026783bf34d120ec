//! One operation as the search sees it: what has to hold before it, and what it leaves behind.
//!
//! An operation that was answered has told which branch it took and what it saw there, so both are known before the
//! search begins. One without an answer may still take either branch:
//!
//! ```text
//! if a is 1: put b 2, get c  ── succeeded, got 3 ──▶   tests  a is 1, c is 3   writes  b := 2
//! if a is 1: put a 2         ── unknown ───────────▶   tests  a is 1           writes  a := 2, or nothing
//! ```
//!
//! Keys are numbers here, and so are *pairs* of a key and a value; that a key is missing counts as a value. States that
//! differ only in values which no remaining call tells from others behave alike, so all those values are [`ANY`].
//!
//! Invariant: a test is about the state before the whole call, and holds either for one pair only or for all others of
//! the key. So it never holds for `ANY` if it asks for a pair, and always if it asks for another one.

use crate::history::{Moment, Operation};
use std::collections::BTreeSet;

/// A key with a value.
pub(super) type Pair = u32;
/// Some value that no remaining call tells from others.
pub(super) const ANY: Pair = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Test {
    pub(super) key: usize,
    pub(super) pair: Pair,
    /// Whether it has to be this pair, or must not be.
    pub(super) is: bool,
}

pub(super) type Write = (usize, Pair);

#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) operation: &'a Operation,
    /// With an answer: all of them held. Without: they decide between `writes` and `otherwise`.
    pub(super) tests: Vec<Test>,
    /// With an answer: one of them held, at least. Empty if that says nothing.
    pub(super) one_of: Vec<Test>,
    pub(super) writes: Vec<Write>,
    pub(super) otherwise: Vec<Write>,
    /// Whether the answer does not contradict itself.
    pub(super) is_possible: bool,
    /// Calls that come before this one although their times do not say so.
    pub(super) after: Vec<usize>,
    /// Whether it is in another call's `after`.
    pub(super) is_awaited: bool,
    /// Calls of one class do the same, as far as others can tell.
    pub(super) class: usize,
    /// All keys of the above.
    pub(super) keys: Vec<usize>,
    pub(super) touches: Touches,
}

/// The keys of tests and of writes: one bit for each, or for several.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Touches {
    tested: u64,
    written: u64,
}

impl Touches {
    /// Whether it can make a difference which of the two comes first.
    pub(super) fn meets(self, other: Self) -> bool {
        let touches = |one: Self, other: Self| one.written & (other.tested | other.written) != 0;
        touches(self, other) || touches(other, self)
    }

    pub(super) fn with(self, other: Self) -> Self {
        let Self { tested, written } = other;
        Self { tested: self.tested | tested, written: self.written | written }
    }
}

impl Test {
    pub(super) fn holds(self, state: &[Pair]) -> bool {
        (state[self.key] == self.pair) == self.is
    }

    pub(super) fn negated(self) -> Self {
        Self { is: !self.is, ..self }
    }
}

impl<'a> Call<'a> {
    pub(super) fn new(operation: &'a Operation, tests: Vec<Test>, writes: Vec<Write>) -> Self {
        Self {
            operation,
            tests,
            one_of: Vec::new(),
            writes,
            otherwise: Vec::new(),
            is_possible: true,
            after: Vec::new(),
            is_awaited: false,
            class: 0,
            keys: Vec::new(),
            touches: Touches::default(),
        }
    }

    /// Fills in what follows from the tests and writes.
    pub(super) fn indexed(mut self) -> Self {
        let tested: BTreeSet<usize> = self.all_tests().map(|test| test.key).collect();
        let written: BTreeSet<usize> = self.may_write().map(|(key, _)| key).collect();
        let bits = |keys: &BTreeSet<usize>| keys.iter().fold(0, |bits, key| bits | 1 << (key % 64));
        self.touches = Touches { tested: bits(&tested), written: bits(&written) };
        self.keys = tested.union(&written).copied().collect();
        self
    }

    pub(super) fn start(&self) -> Moment {
        self.operation.start
    }

    pub(super) fn end(&self) -> Option<Moment> {
        self.operation.end()
    }

    /// Whether it has no answer, and so need not have happened.
    pub(super) fn is_unknown(&self) -> bool {
        self.end().is_none()
    }

    /// Whether it leaves no trace.
    pub(super) fn is_read(&self) -> bool {
        !self.is_unknown() && self.writes.is_empty()
    }

    /// Which branch it takes in this state: 0 if the tests hold, else 1. With an answer it is always 0.
    pub(super) fn branch(&self, state: &[Pair]) -> usize {
        usize::from(self.is_unknown() && !self.tests.iter().all(|test| test.holds(state)))
    }

    /// What it writes in this state, if it can have answered as it did.
    pub(super) fn run(&self, state: &[Pair]) -> Option<&[Write]> {
        if self.is_unknown() {
            return Some(if self.branch(state) == 0 { &self.writes } else { &self.otherwise });
        }
        let all = self.tests.iter().all(|test| test.holds(state));
        let one = self.one_of.is_empty() || self.one_of.iter().any(|test| test.holds(state));
        (self.is_possible && all && one).then_some(&self.writes)
    }

    /// The writes of both branches.
    pub(super) fn may_write(&self) -> impl Iterator<Item = Write> {
        self.writes.iter().chain(&self.otherwise).copied()
    }

    pub(super) fn all_tests(&self) -> impl Iterator<Item = Test> {
        self.tests.iter().chain(&self.one_of).copied()
    }

    /// The pairs that must be there before it.
    pub(super) fn wants(&self) -> impl Iterator<Item = Pair> {
        let tests = self.tests.iter().filter(|test| test.is && !self.is_unknown());
        tests.map(|test| test.pair)
    }

    /// How many of its tests name this pair.
    pub(super) fn mentions(&self, pair: Pair) -> i32 {
        self.all_tests().map(|test| i32::from(test.pair == pair)).sum()
    }

    /// Whether it may always go first where both are open and could come next, since both do the same.
    ///
    /// In a right order they can change places: the other one then comes before this one's end, which is not later than
    /// its own. Only if both end together, then a call that waits for the other one might be in between.
    pub(super) fn goes_before(&self, other: &Self) -> bool {
        let is_earlier = match (self.end(), other.end()) {
            (Some(end), Some(other_end)) if end == other_end => {
                !other.is_awaited && self.start() < other.start()
            }
            (Some(end), Some(other_end)) => end < other_end,
            (None, None) => self.start() < other.start(),
            (end, _) => end.is_some(),
        };
        self.class == other.class && is_earlier
    }

    /// Leaves out what follows from the rest, so that fewer pairs are mentioned.
    pub(super) fn simplified(mut self) -> Self {
        let all = std::mem::take(&mut self.tests);
        let exact = |key| all.iter().find(|test| test.is && test.key == key);
        for test in &all {
            let follows = !test.is && exact(test.key).is_some_and(|known| known.pair != test.pair);
            if !follows && !self.tests.contains(test) {
                self.tests.push(*test);
            }
        }
        let known = |test: &Test| exact(test.key).map(|it| (it.pair == test.pair) == test.is);
        if self.one_of.iter().any(|test| known(test) == Some(true)) {
            self.one_of.clear();
        }
        let had_some = !self.one_of.is_empty();
        self.one_of.retain(|test| known(test).is_none());
        self.is_possible &= !had_some || !self.one_of.is_empty();
        if let [only] = self.one_of[..] {
            self.one_of.clear();
            self.tests.push(only);
        }
        self
    }

    /// Whether it is another key that decides what becomes of this one.
    pub(super) fn is_split(&self, key: usize) -> bool {
        self.is_unknown() && self.tests.iter().any(|test| test.key != key)
    }

    /// What it has to do with one key, which gets the number 0: by its branches if another key decides between them.
    pub(super) fn view(&self, key: usize) -> [Option<Self>; 2] {
        if self.is_split(key) {
            let branch = |writes| Self::new(self.operation, Vec::new(), writes_of(key, writes));
            return [&self.writes, &self.otherwise].map(|writes| branch(writes).if_it_matters());
        }
        let is_of_others = self.one_of.iter().any(|test| test.key != key);
        let one_of = if is_of_others { Vec::new() } else { tests_of(key, &self.one_of) };
        let writes = writes_of(key, &self.writes);
        let call = Self {
            one_of,
            otherwise: writes_of(key, &self.otherwise),
            is_possible: self.is_possible,
            ..Self::new(self.operation, tests_of(key, &self.tests), writes)
        };
        [call.if_it_matters(), None]
    }

    fn if_it_matters(self) -> Option<Self> {
        let call = self.indexed();
        let has_effect = call.may_write().next().is_some();
        (has_effect || (!call.is_unknown() && !call.keys.is_empty())).then_some(call)
    }
}

fn tests_of(key: usize, tests: &[Test]) -> Vec<Test> {
    tests.iter().filter(|test| test.key == key).map(|test| Test { key: 0, ..*test }).collect()
}

fn writes_of(key: usize, writes: &[Write]) -> Vec<Write> {
    writes.iter().filter(|(at, _)| *at == key).map(|(_, pair)| (0, *pair)).collect()
}
