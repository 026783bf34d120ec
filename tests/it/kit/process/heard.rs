//! What members have said, of all their lives together.
//!
//! Moments are those of [`clock`](crate::kit::os::clock), taken by the member that speaks: before it asked, or after it
//! was answered. So they can be compared between members, and with them what was answered before something else began.

use super::Lines;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Instant;

#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) acks: Vec<Ack>,
    /// How many of them are of each member.
    pub(crate) acks_of: BTreeMap<usize, usize>,
    pub(crate) failures: Vec<Failure>,
    /// Increments that came too late, and so have not happened.
    pub(crate) missed: Vec<String>,
    pub(crate) reads: Vec<Read>,
    pub(crate) acts: Vec<Act>,
    /// How often somebody who had the lock has noticed that its session is lost.
    pub(crate) losses: usize,
    /// For each member, what its watch has delivered, over all its lives.
    pub(crate) events: BTreeMap<usize, Vec<SeenChanges>>,
    /// Lives that have ended in the middle of things.
    pub(crate) killed: BTreeSet<String>,
    /// What happened at points: the point, and what.
    #[cfg(feature = "sim")]
    pub(crate) fired: Vec<(String, String)>,
}

/// An acknowledged write.
#[derive(Clone, Debug)]
pub(crate) struct Ack {
    /// Who has written what: see [`author`].
    pub(crate) id: String,
    pub(crate) revision: u64,
    /// When it was answered, by its member's word.
    pub(crate) answered: u64,
    /// When it was heard of.
    pub(crate) at: Instant,
}

/// A write that has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) id: String,
    /// Whether it may have been applied.
    pub(crate) is_unknown: bool,
    pub(crate) text: String,
}

/// An answered read.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) begun: u64,
    pub(crate) member: usize,
    /// Of the state that it read, or, with a value, of the counter.
    pub(crate) revision: u64,
    /// What the counter was, if that was read.
    pub(crate) value: Option<String>,
}

/// Something that was done under the lock.
#[derive(Clone, Debug)]
pub(crate) struct Act {
    pub(crate) at: u64,
    pub(crate) token: u64,
    pub(crate) life: String,
    pub(crate) member: usize,
}

/// All that happened in a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenChanges {
    pub(crate) revision: u64,
    /// `put KEY VALUE PREVIOUS` or `delete KEY PREVIOUS`.
    pub(crate) changes: Vec<String>,
}

/// The life and the worker that an id is of: of `3.w0.17` they are `3` and `w0`.
pub(crate) fn author(id: &str) -> (&str, &str) {
    let (rest, _number) = id.rsplit_once('.').unwrap();
    rest.rsplit_once('.').unwrap()
}

/// Notes what a member has said, if it is no answer to a question of the test.
pub(super) fn hear(heard: &Mutex<Heard>, lines: &Lines, member: usize, said: &str) {
    let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
    let words: Vec<&str> = rest.split(' ').collect();
    let number = |word: usize| words[word].parse::<u64>().unwrap();
    let mut heard = heard.lock().unwrap();
    match word {
        "ack" => {
            let (id, revision, answered) = (words[0].to_owned(), number(1), number(2));
            heard.acks.push(Ack { id, revision, answered, at: Instant::now() });
            *heard.acks_of.entry(member).or_default() += 1;
        }
        "failed" => {
            let (id, is_unknown, text) =
                (words[0].to_owned(), words[1] == "true", words[2..].join(" "));
            heard.failures.push(Failure { id, is_unknown, text });
        }
        "missed" => heard.missed.push(words[0].to_owned()),
        "read" => {
            let value = (words[2] != "-").then(|| words[2].to_owned());
            heard.reads.push(Read { begun: number(0), member, revision: number(1), value });
        }
        "act" => {
            let (at, token, life) = (number(0), number(1), words[2].to_owned());
            heard.acts.push(Act { at, token, life, member });
        }
        "lost" => heard.losses += 1,
        "event" => {
            let (revision, changes) = rest.split_once(' ').unwrap();
            let changes = changes.split(',').map(str::to_owned).collect();
            let seen = SeenChanges { revision: revision.parse().unwrap(), changes };
            heard.events.entry(member).or_default().push(seen);
        }
        #[cfg(feature = "sim")]
        "fired" => heard.fired.push((words[0].to_owned(), words[1].to_owned())),
        _ => {
            drop(heard);
            lines.take(word, rest, &words);
        }
    }
}

impl Lines {
    fn take(&self, word: &str, rest: &str, words: &[&str]) {
        match word {
            "ready" => self.ready.store(true, Ordering::SeqCst),
            "down" => self.down.store(true, Ordering::SeqCst),
            "fatal" => *self.fatal.lock().unwrap() = Some(rest.to_owned()),
            "leases" => *self.leases.lock().unwrap() = Some(words[0].parse().unwrap()),
            "status" => {
                *self.status.lock().unwrap() = Some(super::Status {
                    applied: words[0].parse().unwrap(),
                    revision: words[1].parse().unwrap(),
                    hash: words[2].to_owned(),
                    is_leader: words[3] == "true",
                });
            }
            other => panic!("a member said {other:?}"),
        }
    }
}
