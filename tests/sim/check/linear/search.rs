//! The search for a right order of the calls of one part.
//!
//! ```text
//!   configuration ── take ──▶ configuration ── take ──▶ … ──▶ every call with an answer is in the order: found
//!         ▲                        │
//!         └───────── undo ─────────┘ nothing can come next, or it was visited before
//! ```
//!
//! A *configuration* is the set of calls in the order and the state that they lead to. By far not every open call is
//! tried in each. The rules below leave something out only where that cannot be the sole way: if the calls that are
//! left have a right order at all, then they have one that is still tried, and that is not longer.
//!
//! - *Reads at once.* An open call that writes nothing, and whose answer is right now, comes now.
//! - *Just in time* (Lowe). The call that ends first must be next. Only calls that share a key with it, directly or
//!   through other open calls, can have to come before it. The rest may as well come after it.
//! - *Each key by itself.* Nothing goes on from a configuration in which one key, without regard to the others, has no
//!   right order. This is cheap to know: such views have few configurations, and remember all of them.
//! - *Nothing lost.* Nor if a value has still to be seen, is not there, and nobody is left who could write it.
//! - *Of equals the first.* See [`Call::goes_before`].
//! - *Unknown needs a reason.* A call without an answer is taken only if it writes what some call seeks, or overwrites
//!   what some call shuns. If it does not then the order is right without it, too.
//! - *Not twice.* A configuration is not tried if it was before, perhaps with fewer unknown calls used up.
//!
//! Invariants
//! - events, state, counts, views and the set of taken calls say the same: `take` and `undo` change all of them;
//! - what has `failed` has no right order, and what is `solved` has one. What was visited on the way to a success is
//!   neither: it may have been left because of a configuration that was not finished then.

use super::call::{ANY, Call, Pair, Write};
use super::events::{Events, HEAD};
use super::memo::{Configuration, Memo, Taken};
use super::part::{Future, Part, View};

/// Configurations that a view visits before it is not asked any more.
const VIEW_CONFIGURATIONS_MAX: usize = 200_000;

/// How a search ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Found,
    NotFound,
    TooHard,
}

#[derive(Debug)]
pub(super) struct Search<'a> {
    pub(super) part: &'a Part<'a>,
    /// By key; none if the part has one key only.
    views: Vec<Follower<'a>>,
    events: Events,
    state: Vec<Pair>,
    /// What the calls say that are not in the order.
    future: Future,
    taken: Taken,
    order: Vec<Step>,
    /// What keys had before they were changed.
    log: Vec<Write>,
    /// Configurations since the last verdict, and those with a verdict.
    visited: Memo,
    failed: Memo,
    solved: Memo,
    pub(super) configurations: usize,
    /// The longest beginning of an order so far, and the call whose answer nothing explains after it.
    pub(super) best: Vec<usize>,
    pub(super) lost: Option<usize>,
}

/// A search about one key, which takes what the whole takes.
#[derive(Debug)]
struct Follower<'a> {
    search: Search<'a>,
    places: &'a [[Option<usize>; 2]],
    has_given_up: bool,
}

/// A call in the order, the branch that it took, and how long the log was before it.
#[derive(Debug)]
struct Step {
    call: usize,
    branch: usize,
    log: usize,
}

/// A configuration on the way to the present one, and what is still to be tried from there, last first.
struct Frame {
    length: usize,
    configuration: Configuration,
    choices: Vec<usize>,
}

impl<'a> Search<'a> {
    pub(super) fn new(part: &'a Part<'a>, views: &'a [View<'a>]) -> Self {
        let mut search = Self {
            part,
            views: views.iter().map(Follower::new).collect(),
            events: Events::new(&part.calls),
            state: part.names.missing.clone(),
            future: part.future.clone(),
            taken: Taken::new(&part.calls),
            order: Vec::new(),
            log: Vec::new(),
            visited: Memo::default(),
            failed: Memo::default(),
            solved: Memo::default(),
            configurations: 0,
            best: Vec::new(),
            lost: None,
        };
        (0..search.state.len()).for_each(|key| search.forget(key));
        search.log.clear();
        search
    }

    /// Searches from the empty store. What was found is of this search, or of that about one key which fails already.
    pub(super) fn start(&mut self, configurations_max: usize) -> (Verdict, &Self) {
        self.lost = self.hopeless();
        if self.lost.is_some() {
            return (Verdict::NotFound, self);
        }
        let hopeless = self.views.iter_mut().position(|view| !view.is_hopeful());
        if let Some(key) = hopeless {
            return (Verdict::NotFound, &self.views[key].search);
        }
        (self.run(configurations_max), self)
    }

    /// A call that cannot be right in any order.
    fn hopeless(&self) -> Option<usize> {
        let is_hopeless =
            |call: &Call<'_>| !call.is_possible || call.wants().any(|pair| self.is_lost(pair));
        self.part.calls.iter().position(is_hopeless)
    }

    /// Searches from here, and comes back here.
    fn run(&mut self, configurations_max: usize) -> Verdict {
        let length = self.order.len();
        let mut way = Vec::new();
        let verdict = self.go_on(&mut way, configurations_max);
        self.undo(length);
        let visited = std::mem::take(&mut self.visited);
        match verdict {
            Verdict::Found => way.iter().for_each(|frame| self.solved.insert(&frame.configuration)),
            Verdict::NotFound => self.failed.append(visited),
            Verdict::TooHard => {}
        }
        verdict
    }

    fn go_on(&mut self, way: &mut Vec<Frame>, configurations_max: usize) -> Verdict {
        loop {
            self.take_reads();
            let (open, next) = self.events.open();
            let Some(next) = next else { return Verdict::Found };
            let configuration = self.taken.configuration(&self.state, next);
            if self.solved.has_more(&configuration) {
                return Verdict::Found;
            }
            let is_new = self.visit(&configuration);
            if self.configurations > configurations_max {
                self.note(None);
                return Verdict::TooHard;
            }
            let choices = if is_new { self.choices(&open, next) } else { Vec::new() };
            way.push(Frame { length: self.order.len(), configuration, choices });
            loop {
                let Some(frame) = way.last_mut() else { return Verdict::NotFound };
                self.undo(frame.length);
                match frame.choices.pop() {
                    Some(call) if self.try_take(call) => break,
                    Some(_) => {}
                    None => {
                        self.note(None);
                        way.pop();
                    }
                }
            }
        }
    }

    /// Whether a configuration is worth a try.
    fn visit(&mut self, configuration: &Configuration) -> bool {
        // Counted also if it is not new, because there may be many more of those.
        self.configurations += 1;
        if self.failed.has_less(configuration) || self.visited.has_less(configuration) {
            return false;
        }
        self.visited.insert(configuration);
        true
    }

    /// Takes the open calls that write nothing and are right.
    fn take_reads(&mut self) {
        // One that waits for another begins after it, so it is enough to go through them once.
        let mut at = HEAD;
        while let Some((place, index)) = self.events.begin_after(at) {
            let call = &self.part.calls[index];
            if call.is_read() && self.may_come(call) && call.run(&self.state).is_some() {
                self.take(index);
            } else {
                at = place;
            }
        }
    }

    fn may_come(&self, call: &Call<'_>) -> bool {
        call.after.iter().all(|before| self.taken.has(*before))
    }

    /// What may come next, the most promising last.
    fn choices(&self, open: &[usize], next: usize) -> Vec<usize> {
        let calls = &self.part.calls;
        let writes = |index: usize, pair| calls[index].may_write().any(|(_, it)| it == pair);
        let missing: Vec<Pair> =
            calls[next].wants().filter(|pair| !self.state.contains(pair)).collect();
        let mut choices = self.connected(open, next);
        if !missing.iter().all(|pair| choices.iter().any(|index| writes(*index, *pair))) {
            return Vec::new();
        }
        choices.retain(|index| {
            let call = &calls[*index];
            let has_reason = |writes| !call.is_unknown() || self.has_reason(call, writes);
            let is_right = call.run(&self.state).is_some_and(has_reason);
            is_right && !call.is_read() && self.may_come(call)
        });
        let goes_before = |one: &usize, other: &usize| calls[*one].goes_before(&calls[*other]);
        let all = choices.clone();
        choices.retain(|index| !all.iter().any(|other| goes_before(other, index)));
        choices.sort_by_cached_key(|&index| {
            let helps = missing.iter().any(|pair| writes(index, *pair));
            let end = calls[index].end();
            std::cmp::Reverse((index != next, !helps, end.is_none(), end, index))
        });
        choices
    }

    /// The open calls that cannot simply come after `next`, with `next`.
    fn connected(&self, open: &[usize], next: usize) -> Vec<usize> {
        let calls = &self.part.calls;
        let (mut found, mut rest) = (vec![next], open.to_vec());
        let (mut touches, mut after) = (calls[next].touches, calls[next].after.clone());
        rest.retain(|index| *index != next);
        loop {
            let before = found.len();
            rest.retain(|index| {
                let call = &calls[*index];
                let joins = touches.meets(call.touches) || after.contains(index);
                if joins {
                    found.push(*index);
                    touches = touches.with(call.touches);
                    after.extend(&call.after);
                }
                !joins
            });
            if found.len() == before {
                return found;
            }
        }
    }

    /// Takes a call. Whether the end can still be reached.
    fn try_take(&mut self, index: usize) -> bool {
        let keys = &self.part.calls[index].keys;
        let may_be_right = self.take(index);
        may_be_right
            && keys.iter().all(|key| self.views.get_mut(*key).is_none_or(Follower::is_hopeful))
    }

    /// Whether these writes give other calls a value that they seek, or take one away that they shun.
    fn has_reason(&self, call: &Call<'_>, writes: &[Write]) -> bool {
        let is_sought = |pair| self.future.of(pair).sought > call.mentions(pair);
        let is_shunned = |pair| self.future.of(pair).shunned > call.mentions(pair);
        writes.iter().any(|&(key, pair)| {
            let before = self.state[key];
            before != pair && (is_sought(pair) || is_shunned(before))
        })
    }

    /// Appends a call to the order. Whether everything that is wanted can still come.
    fn take(&mut self, index: usize) -> bool {
        let call = &self.part.calls[index];
        let branch = call.branch(&self.state);
        let writes = call.run(&self.state).expect("a call is taken where its answer is right");
        let log = self.log.len();
        self.order.push(Step { call: index, branch, log });
        self.events.take_out(index);
        self.taken.insert(index);
        self.future.count(call, -1);
        for &(key, pair) in writes {
            self.log.push((key, std::mem::replace(&mut self.state[key], pair)));
        }
        let overwritten = self.log[log..].iter().map(|(_, pair)| *pair);
        let not_written = call.may_write().map(|(_, pair)| pair);
        let lost = overwritten.chain(not_written).find(|pair| self.is_lost(*pair));
        if lost.is_some() {
            self.note(lost);
        }
        let mut may_be_right = lost.is_none();
        for &key in &call.keys {
            self.forget(key);
            if let Some(view) = self.views.get_mut(key) {
                may_be_right &= view.follow(index, branch);
            }
        }
        may_be_right
    }

    /// Goes back to an order of this length.
    fn undo(&mut self, length: usize) {
        while self.order.len() > length {
            let Step { call: index, branch, log } = self.order.pop().expect("it is longer");
            let call = &self.part.calls[index];
            for (key, pair) in self.log.drain(log..).rev() {
                self.state[key] = pair;
            }
            self.events.put_back(index);
            self.taken.remove(index);
            self.future.count(call, 1);
            for &key in &call.keys {
                if let Some(view) = self.views.get_mut(key) {
                    view.go_back(index, branch);
                }
            }
        }
    }

    fn is_lost(&self, pair: Pair) -> bool {
        let count = self.future.of(pair);
        count.wanted > 0 && count.writers == 0 && !self.state.contains(&pair)
    }

    /// Forgets the value of a key if no call tells it from others.
    fn forget(&mut self, key: usize) {
        let pair = self.state[key];
        if pair != ANY && self.future.of(pair).mentions == 0 {
            self.log.push((key, pair));
            self.state[key] = ANY;
        }
    }

    /// Remembers a dead end, if none was further away.
    fn note(&mut self, lost: Option<Pair>) {
        if self.order.len() > self.best.len() {
            self.best = self.order.iter().map(|step| step.call).collect();
            let wants = |call: &Call<'_>| call.wants().any(|pair| Some(pair) == lost);
            let mut calls = self.part.calls.iter().enumerate();
            let left = calls.find(|(index, call)| !self.taken.has(*index) && wants(call));
            self.lost = left.map(|(index, _)| index);
        }
    }
}

impl<'a> Follower<'a> {
    fn new(view: &'a View<'a>) -> Self {
        let search = Search::new(&view.part, &[]);
        Self { search, places: &view.places, has_given_up: false }
    }

    /// Takes what the whole has taken, if it is about this key.
    fn follow(&mut self, call: usize, branch: usize) -> bool {
        self.places[call][branch].is_none_or(|place| self.search.take(place))
    }

    fn go_back(&mut self, call: usize, branch: usize) {
        if self.places[call][branch].is_some() {
            self.search.undo(self.search.order.len() - 1);
        }
    }

    /// Whether there is a right order from here, as far as this key is concerned.
    fn is_hopeful(&mut self) -> bool {
        if self.has_given_up {
            return true;
        }
        let verdict = self.search.run(VIEW_CONFIGURATIONS_MAX);
        self.has_given_up = verdict == Verdict::TooHard;
        verdict != Verdict::NotFound
    }
}
