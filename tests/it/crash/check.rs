//! Holds what the members were told against what the group has.
//!
//! The watches of three members that have all seen the same, without a gap, are the history. Then
//! - every acknowledged write is in it, at the revision that was said, and no revision was said twice;
//! - what has certainly failed is not in it; what else is in it was asked for by somebody who could not say so: it was
//!   killed, or did not know;
//! - the counter has only ever gone up by one, so that its value is the number of increments;
//! - a read has shown no less than what was acknowledged before it began, and the counter as the history has it;
//! - under the lock acts have come in the order of their tokens, by a clock that all processes share, also those of
//!   members that were stopped; and so have the writes that were fenced by them.

use crate::kit::process::{COUNTER, FENCE, Group, Heard, SeenChanges, author};
use crate::kit::until;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How much there was to hold. What is lost fails the check, and so is not counted.
#[derive(Default)]
pub(crate) struct Tally {
    acknowledged: usize,
    unknown: usize,
    definite: usize,
    /// Writes that have happened, of members that were killed before they could say so.
    in_flight: usize,
    revisions: usize,
    counted: usize,
    reads: usize,
    acts: usize,
    tokens: usize,
    losses: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.definite += other.definite;
        self.in_flight += other.in_flight;
        self.revisions += other.revisions;
        self.counted += other.counted;
        self.reads += other.reads;
        self.acts += other.acts;
        self.tokens += other.tokens;
        self.losses += other.losses;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, unknown, definite, in_flight, revisions, .. } = self;
        let Self { counted, reads, acts, tokens, losses, .. } = self;
        write!(
            f,
            "{acknowledged} acknowledged, 0 lost, {unknown} failed with an unknown outcome, {definite} definitely, \
             {in_flight} done by who was killed before it said so, {revisions} revisions; {counted} increments, \
             {reads} reads, {acts} acts under {tokens} tokens, a lock was lost {losses} times"
        )
    }
}

/// Holds what the members were told against what has happened up to revision `head`, which is all.
pub(crate) fn check(group: &Group, head: u64) -> Tally {
    // Events come a little after the answers.
    until("all watches have seen the newest revision", || {
        (0..3).all(|member| group.seen(member) == head).then_some(())
    });
    let heard = group.heard.lock().unwrap();
    let history = history(&heard);
    let written = written(history);
    let in_flight = check_answers(&heard, &written);
    let counter = counter(history);
    check_reads(&heard, &counter, head);
    check_acts(&heard, history);
    let unknown = heard.failures.iter().filter(|failure| failure.is_unknown).count();
    Tally {
        acknowledged: heard.acks.len(),
        unknown,
        definite: heard.failures.len() - unknown,
        in_flight,
        revisions: history.len(),
        counted: counter.len(),
        reads: heard.reads.len(),
        acts: heard.acts.len(),
        tokens: heard.acts.iter().map(|act| act.token).collect::<BTreeSet<_>>().len(),
        losses: heard.losses,
    }
}

/// What has happened, as all have seen it.
fn history(heard: &Heard) -> &[SeenChanges] {
    let history = &heard.events[&0];
    assert_eq!(history.first().map(|changes| changes.revision), Some(2));
    let gap = history.windows(2).find(|pair| pair[0].revision + 1 != pair[1].revision);
    assert_eq!(gap, None, "a gap, disorder, or a revision that was seen twice");
    for member in 1..3 {
        let other = &heard.events[&member];
        let differ = history.iter().zip(other).find(|(ours, theirs)| ours != theirs);
        assert_eq!(differ, None, "member {member} has seen another history than member 0");
        assert_eq!(other.len(), history.len());
    }
    history
}

/// What was put into a key, with the value before: revision, value, previous value.
fn puts<'a>(
    history: &'a [SeenChanges],
    key: &'a str,
) -> impl Iterator<Item = (u64, &'a str, &'a str)> {
    history.iter().flat_map(move |seen| {
        seen.changes.iter().filter_map(move |change| {
            let words: Vec<&str> = change.split(' ').collect();
            (words[0] == "put" && words[1] == key).then(|| (seen.revision, words[2], words[3]))
        })
    })
}

/// All writes that have an id, with their revisions.
fn written(history: &[SeenChanges]) -> BTreeMap<&str, u64> {
    let mut written = BTreeMap::new();
    for seen in history {
        for change in &seen.changes {
            let words: Vec<&str> = change.split(' ').collect();
            let id = match words[..] {
                ["put", COUNTER, value, _] => value.split_once(':').unwrap().1,
                [what, key, ..] if key.starts_with("w/") => {
                    let id = key.strip_prefix("w/").unwrap();
                    assert_eq!((what, &words[2..]), ("put", &[id, "-"][..]), "{seen:?}");
                    id
                }
                _ => continue,
            };
            assert_eq!(written.insert(id, seen.revision), None, "{id} has happened twice");
        }
    }
    written
}

/// Returns how many writes have happened of which nobody has heard.
fn check_answers(heard: &Heard, written: &BTreeMap<&str, u64>) -> usize {
    let (mut revisions, mut known) = (BTreeSet::new(), BTreeSet::new());
    for ack in &heard.acks {
        let found = written.get(&*ack.id);
        assert_eq!(found, Some(&ack.revision), "an acknowledged write is lost: {ack:?}");
        assert!(revisions.insert(ack.revision), "a revision was given twice: {ack:?}");
        known.insert(&*ack.id);
    }
    for failure in &heard.failures {
        let has_happened = written.contains_key(&*failure.id);
        assert!(failure.is_unknown || !has_happened, "it has happened: {failure:?}");
        known.insert(&*failure.id);
    }
    for id in &heard.missed {
        assert!(!written.contains_key(&**id), "{id} has happened, but was said to be too late");
    }
    let mut authors = BTreeSet::new();
    for id in written.keys().filter(|id| !known.contains(*id)) {
        let (life, _) = author(id);
        assert!(heard.killed.contains(life), "{id} has happened, and its member did not say so");
        assert!(authors.insert(author(id)), "{id}: one writes one at a time");
    }
    authors.len()
}

/// The counter's values by their revisions. It is as high as it was counted up.
fn counter(history: &[SeenChanges]) -> BTreeMap<u64, &str> {
    let mut counter = BTreeMap::new();
    let (mut last, mut count) = ("-", 0);
    for (revision, value, before) in puts(history, COUNTER) {
        assert_eq!(before, last, "revision {revision} does not follow the one before");
        count += 1;
        let text = value.split_once(':').unwrap().0;
        assert_eq!(text.parse(), Ok(count), "an increment is lost at revision {revision}");
        counter.insert(revision, value);
        last = value;
    }
    counter
}

fn check_reads(heard: &Heard, counter: &BTreeMap<u64, &str>, head: u64) {
    // What was acknowledged by when: of all keys, and of the counter.
    let (mut of_all, mut of_counter) = (Newest::default(), Newest::default());
    for ack in &heard.acks {
        of_all.acknowledged.push((ack.answered, ack.revision));
        if counter.contains_key(&ack.revision) {
            of_counter.acknowledged.push((ack.answered, ack.revision));
        }
    }
    of_all.sort();
    of_counter.sort();
    for read in &heard.reads {
        let floor = match &read.value {
            Some(value) => {
                assert_eq!(counter.get(&read.revision), Some(&&**value), "never so: {read:?}");
                of_counter.before(read.begun)
            }
            None => of_all.before(read.begun),
        };
        let member = read.member;
        assert!(read.revision >= floor, "{floor} came before a read on member {member}: {read:?}");
        assert!(read.revision <= head, "it is of a future that did not come: {read:?}");
    }
}

/// The newest revision that was acknowledged by some time.
#[derive(Default)]
struct Newest {
    acknowledged: Vec<(u64, u64)>,
}

impl Newest {
    fn sort(&mut self) {
        self.acknowledged.sort_unstable();
        let mut newest = 0;
        for (_, revision) in &mut self.acknowledged {
            newest = newest.max(*revision);
            *revision = newest;
        }
    }

    fn before(&self, time: u64) -> u64 {
        let count = self.acknowledged.partition_point(|(answered, _)| *answered < time);
        count.checked_sub(1).map_or(0, |last| self.acknowledged[last].1)
    }
}

fn check_acts(heard: &Heard, history: &[SeenChanges]) {
    let mut acts: Vec<_> = heard.acts.iter().collect();
    acts.sort_by_key(|act| act.at);
    for pair in acts.windows(2) {
        assert!(pair[0].token <= pair[1].token, "an act under a lock that another has: {pair:?}");
        let is_other = pair[0].life != pair[1].life;
        assert!(!is_other || pair[0].token < pair[1].token, "a token of two: {pair:?}");
    }
    let mut newest = 0;
    for (revision, token, _) in puts(history, FENCE) {
        let token: u64 = token.parse().unwrap();
        assert!(token >= newest, "{token} was written after {newest}, at revision {revision}");
        newest = token;
    }
}
