//! What is said about a history that is not linearizable: as much as a person needs to look into it.
//!
//! There is no single place where a history is wrong. The longest beginning of an order comes close to it, and it is
//! short where one key is wrong already by itself, because then only that key is reported.

use super::call::Call;
use super::part::Part;
use super::search::Search;
use crate::history::{Compare, Did, Do, Key, Operation, Outcome, Txn, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How many operations, or keys, are printed at most.
const SHOWN_MAX: usize = 12;

/// How far the search came in one part of the history.
#[derive(Clone, Debug)]
pub struct Report {
    /// The keys of the part.
    pub keys: Vec<Key>,
    /// How many operations it has.
    pub operations: usize,
    /// The configurations that were visited.
    pub configurations: usize,
    /// The longest beginning of a right order that was found.
    pub linearized: Vec<Operation>,
    /// What it leads to.
    pub state: BTreeMap<Key, Value>,
    /// An operation whose answer nothing explains after that, if there is a particular one.
    pub lost: Option<Operation>,
    /// The operations that had begun and could not come next, and whether each would be right there by itself.
    pub stuck: Vec<(Operation, bool)>,
}

impl Report {
    pub(super) fn new(search: &Search<'_>) -> Self {
        let part = search.part;
        let mut state = part.names.missing.clone();
        for index in &search.best {
            let writes = part.calls[*index].run(&state).expect("it was found to be right");
            writes.to_vec().iter().for_each(|&(key, pair)| state[key] = pair);
        }
        let operation = |index: usize| part.calls[index].operation.clone();
        // An answer that is wrong in any order says it all.
        let is_hopeless = search.best.is_empty() && search.lost.is_some();
        let stuck = open(part, &search.best).filter(|call| !call.is_unknown() && !is_hopeless);
        let is_right = |call: &Call<'_>| call.run(&state).is_some();
        let values = state.iter().filter_map(|pair| part.names.of(*pair));
        Self {
            keys: part.names.keys.iter().map(|key| (*key).clone()).collect(),
            operations: part.calls.len(),
            configurations: search.configurations,
            linearized: search.best.iter().copied().map(operation).collect(),
            state: values.filter_map(|(key, it)| Some((key.clone(), it?.clone()))).collect(),
            lost: search.lost.map(operation),
            stuck: stuck.map(|call| (call.operation.clone(), is_right(call))).collect(),
        }
    }
}

/// The calls that are not in the order and have begun before the first end of such a call.
fn open<'a, 'b>(part: &'b Part<'a>, order: &[usize]) -> impl Iterator<Item = &'b Call<'a>> {
    let order: BTreeSet<&usize> = order.iter().collect();
    let left = part.calls.iter().enumerate().filter(|(index, _)| !order.contains(index));
    let left: Vec<_> = left.map(|(_, call)| call).collect();
    let first_end = left.iter().filter_map(|call| call.end()).min();
    let has_begun = move |call: &&Call<'_>| first_end.is_none_or(|end| call.start() <= end);
    left.into_iter().filter(has_begun)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  keys: {}", some(&self.keys, ", ", |key| key.clone()))?;
        let (done, all) = (self.linearized.len(), self.operations);
        write!(f, "  in order: {done} of {all}, after {} configurations", self.configurations)?;
        for operation in &self.linearized[done.saturating_sub(SHOWN_MAX / 3)..] {
            write!(f, "\n    {}", Line(operation))?;
        }
        if done > 0 {
            let state: Vec<_> = self.state.iter().collect();
            let state = some(&state, ", ", |(key, value)| format!("{key}={value:?}"));
            write!(f, "\n  state: {}", if state.is_empty() { "nothing" } else { &state })?;
        }
        if let Some(lost) = &self.lost {
            write!(f, "\n  nothing explains any more:\n    {}", Line(lost))?;
        }
        if self.stuck.is_empty() {
            return Ok(());
        }
        let stuck = some(&self.stuck, "\n    ", |(operation, is_right)| {
            let but = if *is_right { " (right here, but not what follows)" } else { "" };
            format!("{}{but}", Line(operation))
        });
        write!(f, "\n  cannot come next:\n    {stuck}")
    }
}

/// The first items, and how many more there are.
fn some<T>(items: &[T], separator: &str, show: impl Fn(&T) -> String) -> String {
    let mut shown: Vec<String> = items.iter().take(SHOWN_MAX).map(show).collect();
    if items.len() > SHOWN_MAX {
        shown.push(format!("and {} more", items.len() - SHOWN_MAX));
    }
    shown.join(separator)
}

/// An operation in one line.
struct Line<'a>(&'a Operation);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Operation { client, txn, start, outcome, .. } = self.0;
        write!(f, "client {client}, {start:?} to ")?;
        match outcome {
            Outcome::Done { end, .. } => write!(f, "{end:?}: ")?,
            Outcome::Refused | Outcome::Unknown => write!(f, "…: ")?,
        }
        write_txn(f, txn)?;
        match outcome {
            Outcome::Refused => write!(f, " -> refused"),
            Outcome::Unknown => write!(f, " -> unknown"),
            Outcome::Done { succeeded, results, .. } => {
                let did: Vec<_> = results.iter().map(did).collect();
                let branch = if *succeeded { "" } else { "else " };
                write!(f, " -> {branch}{}", did.join(", "))
            }
        }
    }
}

fn write_txn(f: &mut fmt::Formatter<'_>, txn: &Txn) -> fmt::Result {
    let list = |branch: &[Do]| branch.iter().map(what).collect::<Vec<_>>().join(", ");
    if !txn.when.is_empty() {
        let when: Vec<_> = txn.when.iter().map(condition).collect();
        write!(f, "if {}: ", when.join(" and "))?;
    }
    f.write_str(&list(&txn.then))?;
    if !txn.otherwise.is_empty() {
        write!(f, "; else: {}", list(&txn.otherwise))?;
    }
    Ok(())
}

fn condition(compare: &Compare) -> String {
    match compare {
        Compare::Exists(key) => format!("{key} exists"),
        Compare::Missing(key) => format!("{key} is missing"),
        Compare::ValueIs(key, value) => format!("{key} is {value:?}"),
    }
}

fn what(op: &Do) -> String {
    match op {
        Do::Get(key) => format!("get {key}"),
        Do::Put(key, value) => format!("put {key}={value:?}"),
        Do::Delete(key) => format!("delete {key}"),
    }
}

fn did(did: &Did) -> String {
    match did {
        Did::Got(None) => "nothing".to_owned(),
        Did::Got(Some(value)) => format!("{value:?}"),
        Did::Put => "put".to_owned(),
        Did::Deleted(true) => "deleted".to_owned(),
        Did::Deleted(false) => "not there".to_owned(),
    }
}
