//! A part of a history: calls that are about the same keys, and what they say together.
//!
//! Invariants
//! - calls are in the order of their starts, and those of one client in the order in which it made them;
//! - a call without an answer that cannot explain anything is left out.

use super::call::{ANY, Call, Pair, Write};
use super::names::Names;
use crate::history::{Moment, Operation};
use std::collections::HashMap;

#[derive(Debug)]
pub(super) struct Part<'a> {
    pub(super) calls: Vec<Call<'a>>,
    pub(super) names: Names<'a>,
    pub(super) future: Future,
}

/// What some calls say about each pair: all calls to begin with, later those that are left.
#[derive(Clone, Debug)]
pub(super) struct Future {
    pairs: Vec<Count>,
    /// By key, how often any of its pairs is shunned.
    shunned: Vec<i32>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    /// Calls that must see the pair.
    pub(super) wanted: i32,
    /// Calls that may write it.
    pub(super) writers: i32,
    /// Tests that tell it from others.
    pub(super) mentions: i32,
    /// Those among them that may gain from this value, and from another one.
    pub(super) sought: i32,
    pub(super) shunned: i32,
}

/// What a part says about one key.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) part: Part<'a>,
    /// Where a call of the whole is, by the branch that it takes.
    pub(super) places: Vec<[Option<usize>; 2]>,
}

impl Future {
    fn new(names: &Names<'_>, calls: &[Call<'_>]) -> Self {
        let pairs = vec![Count::default(); names.pair_count()];
        let mut future = Self { pairs, shunned: vec![0; names.keys.len()] };
        calls.iter().for_each(|call| future.count(call, 1));
        future
    }

    pub(super) fn of(&self, pair: Pair) -> Count {
        self.pairs[pair as usize]
    }

    /// A call is among those that are left, or (with -1) is no longer.
    pub(super) fn count(&mut self, call: &Call<'_>, by: i32) {
        let is_unknown = call.is_unknown();
        for test in call.all_tests() {
            let count = &mut self.pairs[test.pair as usize];
            count.mentions += by;
            if is_unknown || test.is {
                count.sought += by;
            }
            if is_unknown || !test.is {
                count.shunned += by;
                self.shunned[test.key] += by;
            }
        }
        call.wants().for_each(|pair| self.pairs[pair as usize].wanted += by);
        call.may_write().for_each(|(_, pair)| self.pairs[pair as usize].writers += by);
    }
}

impl<'a> Part<'a> {
    pub(super) fn new(mut operations: Vec<&'a Operation>) -> Self {
        operations.sort_by_key(|operation| operation.start);
        let mut names = Names::default();
        let calls: Vec<_> = operations.into_iter().map(|it| names.call(it)).collect();
        let future = Future::new(&names, &calls);
        let mut part = Self { calls, names, future };
        while part.drop_useless() {}
        part.find_order();
        part.find_classes();
        part
    }

    /// What the part says about one key. Whatever is right for the whole is right for each key, but not the other way
    /// round: for one key, calls without an answer may take both branches, and some tests are not there.
    pub(super) fn view(&self, key: usize) -> View<'a> {
        let mut calls: Vec<Call<'a>> = Vec::new();
        let mut place = |call: Option<Call<'a>>| {
            calls.push(call?);
            Some(calls.len() - 1)
        };
        let mut places = Vec::with_capacity(self.calls.len());
        for call in &self.calls {
            let [then, otherwise] = call.view(key);
            let then = place(then);
            places.push([then, if call.is_split(key) { place(otherwise) } else { then }]);
        }
        for (call, branches) in self.calls.iter().zip(&places) {
            for (branch, place) in branches.iter().enumerate() {
                let after = call.after.iter().filter_map(|before| places[*before][branch]);
                if let Some(place) = *place {
                    calls[place].after = after.collect();
                }
            }
        }
        let names = self.names.view(key);
        let future = Future::new(&names, &calls);
        let mut part = Self { calls, names, future };
        part.find_classes();
        View { part, places }
    }

    /// Drops calls without an answer that explain nothing: none seeks what they write, or shuns what they overwrite.
    fn drop_useless(&mut self) -> bool {
        let Self { calls, future, .. } = self;
        let before = calls.len();
        calls.retain(|call| {
            if !call.is_unknown() {
                return true;
            }
            future.count(call, -1);
            let is_of_use = call
                .may_write()
                .any(|(key, pair)| future.of(pair).sought > 0 || future.shunned[key] > 0);
            if is_of_use {
                future.count(call, 1);
            }
            is_of_use
        });
        calls.len() < before
    }

    /// A client that asks again at the very moment of an answer asks after it.
    fn find_order(&mut self) {
        let mut answered: HashMap<u32, (usize, Moment)> = HashMap::new();
        for (index, call) in self.calls.iter_mut().enumerate() {
            let before = answered.get(&call.operation.client);
            call.after.extend(before.filter(|(_, end)| *end == call.start()).map(|it| it.0));
            if let Some(end) = call.end() {
                answered.insert(call.operation.client, (index, end));
            }
        }
    }

    fn find_classes(&mut self) {
        let Self { calls, future, .. } = self;
        let mut classes = HashMap::new();
        let seen = |writes: &[Write]| -> Vec<Write> {
            let seen = |pair| if future.of(pair).mentions > 0 { pair } else { ANY };
            writes.iter().map(|&(key, pair)| (key, seen(pair))).collect()
        };
        for call in calls.iter_mut() {
            let tests = (call.tests.clone(), call.one_of.clone(), call.is_possible);
            let next = classes.len();
            let class = classes.entry((tests, seen(&call.writes), seen(&call.otherwise)));
            call.class = *class.or_insert(next);
        }
        for before in calls.iter().flat_map(|call| call.after.clone()).collect::<Vec<_>>() {
            calls[before].is_awaited = true;
        }
    }
}
