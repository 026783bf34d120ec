//! What clients asked for, and what they were told: the input of every check.
//!
//! Everything that a client does to keys is a transaction here, a single put no less than a comparison with two branches,
//! so that each check has one shape to deal with. Times are the simulation's own, which no member knows.
//!
//! Invariant: an operation without an answer is *unknown*. It may have happened at any moment after its start, also after
//! the end of the history, or never.

use std::collections::BTreeSet;
use std::time::Duration;

/// A moment, counted from the start of the simulation.
pub type Moment = Duration;
pub type Key = String;
pub type Value = String;

/// If all comparisons hold then one list of operations, else the other. The whole is one step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Txn {
    pub when: Vec<Compare>,
    pub then: Vec<Do>,
    pub otherwise: Vec<Do>,
}

/// A comparison. A key that does not exist has no value, which equals no value and differs from none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Compare {
    Exists(Key),
    Missing(Key),
    ValueIs(Key, Value),
}

/// An operation within a transaction. It sees the effects of those before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Do {
    Get(Key),
    Put(Key, Value),
    Delete(Key),
}

/// What an operation answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Did {
    Got(Option<Value>),
    Put,
    /// Whether the key was there.
    Deleted(bool),
}

/// The end of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done {
        end: Moment,
        revision: u64,
        succeeded: bool,
        results: Vec<Did>,
    },
    /// Certainly not carried out.
    Refused,
    Unknown,
}

/// How a read was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Linearizable,
    Serializable,
}

/// One operation of one client.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Who asked. One client asks for one thing at a time.
    pub client: u32,
    pub mode: Mode,
    pub txn: Txn,
    pub start: Moment,
    pub outcome: Outcome,
}

impl Compare {
    pub fn key(&self) -> &Key {
        let (Self::Exists(key) | Self::Missing(key) | Self::ValueIs(key, _)) = self;
        key
    }
}

impl Do {
    pub fn key(&self) -> &Key {
        let (Self::Get(key) | Self::Put(key, _) | Self::Delete(key)) = self;
        key
    }

    pub fn is_write(&self) -> bool {
        !matches!(self, Self::Get(_))
    }
}

impl Txn {
    /// Without a comparison, and with one operation.
    pub fn single(op: Do) -> Self {
        Self { then: vec![op], ..Self::default() }
    }

    /// All keys that it names.
    pub fn keys(&self) -> BTreeSet<&Key> {
        let compared = self.when.iter().map(Compare::key);
        compared.chain(self.then.iter().chain(&self.otherwise).map(Do::key)).collect()
    }

    /// Whether it could change anything.
    pub fn may_write(&self) -> bool {
        self.then.iter().chain(&self.otherwise).any(Do::is_write)
    }
}

impl Operation {
    /// When it was answered, if it was carried out for certain.
    pub fn end(&self) -> Option<Moment> {
        match self.outcome {
            Outcome::Done { end, .. } => Some(end),
            Outcome::Refused | Outcome::Unknown => None,
        }
    }
}
