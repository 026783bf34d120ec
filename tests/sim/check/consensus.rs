//! **Raft's own invariants, after each step**: what is committed stays, and is the same for all;
//! terms, votes, commits and cuts of the log go forward; and the order `purged ≤ snapshot ≤ committed ≤ log`.

use crate::book::Book;
use crate::group::Member;
use quorate::Peek;
use std::collections::BTreeMap;

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Consensus {
    /// Who led. A term may have several leaders, one after the other, by their ids.
    led: BTreeMap<(u64, u64), usize>,
    /// The entry at an index, once somebody knew it to be committed.
    committed: BTreeMap<u64, (u64, u64)>,
    /// By id: a member that comes back as somebody new has a vote of its own.
    members: BTreeMap<u64, Seen>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    starts: u32,
    vote: (u64, u64),
    committed: Option<u64>,
    purged: Option<u64>,
    applied: Option<u64>,
    revision: u64,
    /// What was applied, and is yet to be said to be committed; and what was said until then.
    owed: Option<(Option<u64>, Said)>,
}

/// What openraft says of a member: its vote, the end of its log, how far that is committed, and up to where it was cut.
type Said = ((u64, u64), Option<u64>, Option<u64>, Option<u64>);

impl Consensus {
    pub fn observe(
        &mut self,
        book: &Book,
        peeks: &[(&Member, Peek)],
        violations: &mut Vec<String>,
    ) {
        for (member, peek) in peeks {
            let (term, candidate, _) = peek.vote;
            if peek.is_leader && !self.led.contains_key(&(term, candidate)) {
                book.say(|| format!("m{} leads in term {term}", member.index));
            }
            self.check(member.index, member.starts, peek, violations);
        }
    }

    fn check(&mut self, index: usize, starts: u32, peek: &Peek, violations: &mut Vec<String>) {
        let mut must = |holds: bool, what: &str| {
            if !holds {
                violations.push(format!("consensus: m{index}: {what}: {peek:?}"));
            }
        };
        let (term, candidate, _) = peek.vote;
        if peek.is_leader {
            must(candidate == peek.node, "it leads, and has voted for another");
            must(
                self.led.insert((term, candidate), index).is_none_or(|it| it == index),
                "two are one leader",
            );
        }
        for (term, node, at) in [peek.committed, peek.snapshot, peek.purged].into_iter().flatten() {
            let known = *self.committed.entry(at).or_insert((term, node));
            must(known == (term, node), "another entry is committed at an index");
        }
        let index_of = |id: Option<(u64, u64, u64)>| id.map(|(_, _, index)| index);
        let (committed, purged) = (index_of(peek.committed), index_of(peek.purged));
        must(committed <= peek.last, "committed beyond the log");
        // openraft hears of an installed snapshot, and cuts the log, only once the state has been swapped.
        let covered = index_of(peek.snapshot).max(peek.durable).max(peek.installed);
        must(peek.durable_state <= covered, "the state is on the disk ahead of the log");
        must(purged <= index_of(peek.snapshot), "the log is cut beyond the snapshot");
        let seen = self.members.entry(peek.node).or_default();
        if seen.starts != starts {
            // Its disk remembers terms and cuts; what was committed and applied it may have to learn again.
            *seen = Seen { starts, vote: seen.vote, ..Seen::default() };
        }
        // openraft says what it knows when it has come to the end of its work, and some of that waits for the disk: what it
        // says next counts.
        let said: Said = ((term, candidate), peek.last, committed, purged);
        let mut owed = seen.owed;
        if let Some((applied, before)) = owed
            && before != said
        {
            must(applied <= committed, "applied beyond what is committed");
            owed = None;
        }
        if peek.applied > committed {
            owed = owed.or(Some((peek.applied, said)));
        }
        must(seen.vote <= (term, candidate), "the vote has gone back");
        must(seen.committed <= committed, "the commit has gone back");
        must(seen.purged <= purged, "the cut of the log has gone back");
        must(seen.applied <= peek.applied, "the applied index has gone back");
        must(seen.revision <= peek.revision, "the revision has gone back");
        *seen = Seen {
            starts,
            vote: (term, candidate),
            committed,
            purged,
            applied: peek.applied,
            revision: peek.revision,
            owed,
        };
    }
}
