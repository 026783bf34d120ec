//! Random histories: of a store that is right, and of one that answers anything.

use super::store::Store;
use crate::history::{Compare, Did, Do, Key, Mode, Operation, Outcome, Txn, Value};
use std::collections::BTreeMap;
use std::time::Duration;

/// Random choices that a seed decides: xorshift.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        (0..8).for_each(|_| _ = dice.roll());
        dice
    }

    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        let len = u64::try_from(items.len()).unwrap();
        &items[usize::try_from(self.below(len)).unwrap()]
    }
}

/// What the clients do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) operations: usize,
    pub(super) clients: u32,
    pub(super) keys: u64,
    /// How many values there are, or `None` for a new one in each put.
    pub(super) values: Option<u64>,
    pub(super) reads_percent: u64,
    /// Transactions about several keys.
    pub(super) wide_percent: u64,
    pub(super) unknown_percent: u64,
    /// How long an operation takes at most. Clients pause for at most a quarter of it.
    pub(super) time_max: u64,
}

impl Plan {
    /// Many clients and operations that take long: about seven are open at any time.
    pub(super) fn usual(operations: usize) -> Self {
        Self {
            operations,
            clients: 15,
            keys: 16,
            values: None,
            reads_percent: 40,
            wide_percent: 5,
            unknown_percent: 3,
            time_max: 40,
        }
    }

    pub(super) fn any(operations: usize, dice: &mut Dice) -> Self {
        Self {
            operations,
            clients: *dice.pick(&[2, 5, 15]),
            keys: *dice.pick(&[2, 6, 16]),
            values: *dice.pick(&[None, None, Some(9)]),
            reads_percent: *dice.pick(&[20, 40, 70]),
            wide_percent: *dice.pick(&[0, 5, 20]),
            unknown_percent: *dice.pick(&[0, 2, 5]),
            time_max: *dice.pick(&[1, 10, 40]),
        }
    }

    /// The history of a store that is right.
    pub(super) fn play(&self, dice: &mut Dice) -> Vec<Operation> {
        Play {
            plan: *self,
            dice,
            store: Store::default(),
            events: BTreeMap::new(),
            made: Vec::new(),
            values: 0,
        }
        .run()
    }

    fn key(&self, dice: &mut Dice) -> Key {
        // The first keys are hot.
        let (one, other) = (dice.below(self.keys), dice.below(self.keys));
        format!("k{}", one.min(other))
    }
}

enum Event {
    Ask(u32),
    Effect(usize),
}

struct Play<'a> {
    plan: Plan,
    dice: &'a mut Dice,
    store: Store,
    events: BTreeMap<(u64, usize), Event>,
    made: Vec<Operation>,
    values: u64,
}

impl Play<'_> {
    fn run(mut self) -> Vec<Operation> {
        let mut number = 0;
        for client in 0..self.plan.clients {
            number += 1;
            self.events.insert((self.dice.below(20), number), Event::Ask(client));
        }
        while let Some(((now, _), event)) = self.events.pop_first() {
            number += 2;
            match event {
                Event::Effect(index) => {
                    let made = &mut self.made[index];
                    let (ok, did) = self.store.apply(&made.txn);
                    if let Outcome::Done { succeeded, results, .. } = &mut made.outcome {
                        (*succeeded, *results) = (ok, did);
                    }
                }
                Event::Ask(_) if self.made.len() == self.plan.operations => {}
                Event::Ask(client) => self.ask(client, now, number),
            }
        }
        self.made
    }

    fn ask(&mut self, client: u32, now: u64, number: usize) {
        let txn = self.txn();
        let end = now + self.dice.below(self.plan.time_max);
        let effect = now + self.dice.below(end - now + 1);
        let at = Duration::from_millis;
        let is_unknown = self.dice.chance(self.plan.unknown_percent);
        let (outcome, effect) = if is_unknown {
            let late = now + self.dice.below(self.plan.time_max * 20);
            (Outcome::Unknown, *self.dice.pick(&[None, Some(effect), Some(late)]))
        } else {
            let results = Vec::new();
            (Outcome::Done { end: at(end), revision: 0, succeeded: true, results }, Some(effect))
        };
        if let Some(effect) = effect {
            self.events.insert((effect, number), Event::Effect(self.made.len()));
        }
        let mode = Mode::Linearizable;
        self.made.push(Operation { client, mode, txn, start: at(now), outcome });
        let pause = self.dice.below(self.plan.time_max / 4 + 1);
        self.events.insert((end + pause, number + 1), Event::Ask(client));
    }

    fn value(&mut self) -> Value {
        self.values += 1;
        let value = self.plan.values.map_or(self.values, |values| self.dice.below(values));
        format!("v{value}")
    }

    /// Something that a client could want to do.
    fn txn(&mut self) -> Txn {
        let key = self.plan.key(self.dice);
        if self.dice.chance(self.plan.reads_percent) {
            return Txn::single(Do::Get(key));
        }
        if self.dice.chance(self.plan.wide_percent) {
            let other = self.plan.key(self.dice);
            return self.wide(key, other);
        }
        let value = self.value();
        match self.dice.below(8) {
            0 => Txn::single(Do::Delete(key)),
            1 => self.guarded(Compare::Missing(key.clone()), vec![Do::Put(key, value)]),
            2 | 3 => {
                let now = self.store.get(&key).cloned();
                let when = now.map_or_else(
                    || Compare::Missing(key.clone()),
                    |now| Compare::ValueIs(key.clone(), now),
                );
                self.guarded(when, vec![Do::Put(key, value)])
            }
            _ => Txn::single(Do::Put(key, value)),
        }
    }

    fn guarded(&mut self, when: Compare, then: Vec<Do>) -> Txn {
        let get = Do::Get(when.key().clone());
        let otherwise = if self.dice.chance(50) { vec![get] } else { Vec::new() };
        Txn { when: vec![when], then, otherwise }
    }

    fn wide(&mut self, one: Key, other: Key) -> Txn {
        let value = self.value();
        match self.dice.below(4) {
            0 => Txn { then: vec![Do::Get(one), Do::Get(other)], ..Txn::default() },
            1 => Txn {
                then: vec![Do::Put(one, value.clone()), Do::Put(other, value)],
                ..Txn::default()
            },
            2 => self.guarded(
                Compare::Exists(one.clone()),
                vec![Do::Delete(one), Do::Put(other, value)],
            ),
            _ => {
                let when = vec![Compare::Exists(one.clone()), Compare::Missing(other.clone())];
                let otherwise = vec![Do::Get(one.clone()), Do::Delete(other.clone())];
                Txn { when, then: vec![Do::Get(one), Do::Put(other, value)], otherwise }
            }
        }
    }
}

/// A small history with answers out of the blue, of few keys and values.
pub(super) fn nonsense(dice: &mut Dice) -> Vec<Operation> {
    let operations = 1 + dice.below(6);
    let mut busy = [0_u64; 3];
    let mut made = Vec::new();
    for _ in 0..operations {
        let client = dice.below(3);
        let slot = usize::try_from(client).unwrap();
        let start = busy[slot] + dice.below(3);
        let end = start + dice.below(6);
        busy[slot] = end;
        let txn = Txn {
            when: (0..dice.below(3).saturating_sub(dice.below(2))).map(|_| compare(dice)).collect(),
            then: (0..1 + dice.below(2)).map(|_| action(dice)).collect(),
            otherwise: (0..dice.below(2)).map(|_| action(dice)).collect(),
        };
        let mode = if dice.chance(90) { Mode::Linearizable } else { Mode::Serializable };
        let outcome = match dice.below(10) {
            0 => Outcome::Refused,
            1 | 2 => Outcome::Unknown,
            _ => answer(&txn, Duration::from_millis(end), dice),
        };
        let client = u32::try_from(client).unwrap();
        made.push(Operation { client, mode, txn, start: Duration::from_millis(start), outcome });
    }
    made
}

fn key(dice: &mut Dice) -> Key {
    dice.pick(&["a", "a", "b"]).to_string()
}

fn value(dice: &mut Dice) -> Value {
    dice.pick(&["1", "2"]).to_string()
}

fn compare(dice: &mut Dice) -> Compare {
    match dice.below(4) {
        0 => Compare::Exists(key(dice)),
        1 => Compare::Missing(key(dice)),
        _ => Compare::ValueIs(key(dice), value(dice)),
    }
}

fn action(dice: &mut Dice) -> Do {
    match dice.below(6) {
        0 => Do::Delete(key(dice)),
        1 | 2 => Do::Put(key(dice), value(dice)),
        _ => Do::Get(key(dice)),
    }
}

fn answer(txn: &Txn, end: Duration, dice: &mut Dice) -> Outcome {
    let succeeded = txn.when.is_empty() || dice.chance(60);
    let branch = if succeeded { &txn.then } else { &txn.otherwise };
    let did = |op: &Do| {
        let value = (!dice.chance(25)).then(|| value(dice));
        did(op, Did::Got(value), dice.chance(50))
    };
    let results = branch.iter().map(did).collect();
    Outcome::Done { end, revision: 0, succeeded, results }
}

/// A small history of a store that is right, with up to three answers changed.
pub(super) fn nearly_right(dice: &mut Dice) -> Vec<Operation> {
    let plan = Plan {
        operations: *dice.pick(&[3, 4, 5, 6, 7]),
        clients: *dice.pick(&[1, 2, 4, 6]),
        keys: 1 + dice.below(3),
        values: *dice.pick(&[None, Some(2), Some(4)]),
        reads_percent: *dice.pick(&[20, 40, 60]),
        wide_percent: *dice.pick(&[0, 20, 50]),
        unknown_percent: *dice.pick(&[0, 20, 50]),
        time_max: *dice.pick(&[1, 5, 20]),
    };
    let mut history = plan.play(dice);
    (0..dice.below(4)).for_each(|_| disturb(&mut history, dice));
    history
}

/// Changes one answer to what another operation was told, or to the other branch.
fn disturb(history: &mut [Operation], dice: &mut Dice) {
    let seen: Vec<Did> = history.iter().flat_map(|it| results(it).to_vec()).collect();
    let at = dice.below(u64::try_from(history.len()).unwrap());
    let Operation { txn, outcome, .. } = &mut history[usize::try_from(at).unwrap()];
    let Outcome::Done { succeeded, results, .. } = outcome else { return };
    if dice.chance(20) && !txn.when.is_empty() {
        *succeeded = !*succeeded;
        let branch = if *succeeded { &txn.then } else { &txn.otherwise };
        *results = branch.iter().map(|op| did(op, Did::Got(None), true)).collect();
    }
    for did in results {
        match did {
            Did::Put => {}
            Did::Deleted(was) => *was ^= dice.chance(50),
            Did::Got(_) => {
                let other = dice.pick(&seen).clone();
                *did = if matches!(other, Did::Got(_)) { other } else { Did::Got(None) };
            }
        }
    }
}

/// Makes one read see a value that was written only after it had ended, or never.
pub(super) fn falsify(history: &mut [Operation], dice: &mut Dice) {
    let is_read = |it: &&mut Operation| matches!(results(it), [Did::Got(_)]);
    let written = |at: &Operation| -> Vec<(Duration, Do)> {
        at.txn.then.iter().chain(&at.txn.otherwise).map(|op| (at.start, op.clone())).collect()
    };
    let written: Vec<_> = history.iter().flat_map(written).collect();
    let mut reads: Vec<&mut Operation> = history.iter_mut().filter(is_read).collect();
    let at = usize::try_from(dice.below(u64::try_from(reads.len()).unwrap())).unwrap();
    let read = &mut *reads[at];
    let Outcome::Done { end, succeeded, results, .. } = &mut read.outcome else { return };
    let branch = if *succeeded { &read.txn.then } else { &read.txn.otherwise };
    let key = branch[0].key();
    let puts = |value: &Value| {
        let puts = written.iter().filter(|(_, op)| *op == Do::Put(key.clone(), value.clone()));
        puts.map(|(start, _)| *start).min()
    };
    let later = written.iter().find_map(|(_, op)| match op {
        Do::Put(_, value) if puts(value) > Some(*end) => Some(value.clone()),
        Do::Put(..) | Do::Get(_) | Do::Delete(_) => None,
    });
    let never = || "never written".to_owned();
    *results = vec![Did::Got(Some(later.filter(|_| dice.chance(50)).unwrap_or_else(never)))];
}

fn results(operation: &Operation) -> &[Did] {
    match &operation.outcome {
        Outcome::Done { results, .. } => results,
        Outcome::Refused | Outcome::Unknown => &[],
    }
}

/// An answer of the right kind.
fn did(op: &Do, got: Did, was: bool) -> Did {
    match op {
        Do::Get(_) => got,
        Do::Put(..) => Did::Put,
        Do::Delete(_) => Did::Deleted(was),
    }
}
