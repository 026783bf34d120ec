//! What members compare: the hashes that their states had on the way, and the rule by which one of them is at fault.
//!
//! ```text
//! applying ─▶ every 16th index ─▶ fine    the last 64 of them: members that are nearly as far
//!                              └▶ coarse  every 1024th, the last 64: one that lags behind a busy group
//! now ─────────────────────────▶ report   those, and where this member stands: a group that rests
//! ```
//!
//! Two members that have applied the same index have applied the same entries, and so the same hash. One whose hash is another
//! is wrong, or the other is. A majority decides, as about everything else, and it is counted over all voters, also those that
//! do not answer: so no two majorities can be of two minds. Whoever is alone against it is at fault; where there is none, nobody
//! can tell who is right.
//!
//! Invariants
//! - a mark is of the state that counts: a snapshot that takes its place clears them;
//! - only hashes of one format are compared.

use crate::codec::layout::{Input, Layout, Malformed, read_list};
use crate::mvcc::{HASH_FORMAT, MARK_EVERY, Mark};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How many marks of each kind are kept.
const KEPT: usize = 64;
/// The distance of those that reach far back.
const COARSE: u64 = 1024;
/// The most that a report has: both kinds, and where the member stands.
const REPORT_MAX: usize = 2 * KEPT + 1;
const _: () = assert!(COARSE.is_multiple_of(MARK_EVERY));

/// The marks of a member's own state.
#[derive(Debug, Default)]
pub(super) struct Marks {
    fine: VecDeque<Mark>,
    coarse: VecDeque<Mark>,
}

impl Marks {
    /// Takes marks in, in the order of their indexes.
    pub(super) fn note(&mut self, marks: &[Mark]) {
        for mark in marks {
            keep(&mut self.fine, *mark);
            if mark.index.is_multiple_of(COARSE) {
                keep(&mut self.coarse, *mark);
            }
        }
    }

    /// Another state has taken the place of the one that they are of.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// All of them, with where the state is now.
    pub(super) fn report(&self, now: Option<Mark>) -> Report {
        let marks = self.coarse.iter().chain(&self.fine).copied().chain(now).collect();
        Report { format: HASH_FORMAT, marks, quota: None }
    }
}

fn keep(ring: &mut VecDeque<Mark>, mark: Mark) {
    if ring.len() == KEPT {
        ring.pop_front();
    }
    ring.push_back(mark);
}

/// What a member says of its state, to be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) format: u8,
    /// In no order, and some of them twice.
    pub(super) marks: Vec<Mark>,
    /// How much room it would give the group as its leader, in bytes. At the end, where a report of before this is over.
    pub(super) quota: Option<u64>,
}

impl Layout for Report {
    fn write(&self, out: &mut Vec<u8>) {
        self.format.write(out);
        self.marks.write(out);
        self.quota.iter().for_each(|quota| quota.write(out));
    }

    fn read(input: &mut Input) -> Result<Self, Malformed> {
        let (format, marks) = (u8::read(input)?, read_list(input, REPORT_MAX)?);
        let quota = if input.remaining() > 0 { Some(u64::read(input)?) } else { None };
        Ok(Self { format, marks, quota })
    }
}

/// What comparing came to, by how much it matters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// Nothing: too few had anything to say.
    Unknown,
    /// A majority has the same state, and nothing speaks against anybody.
    Equal,
    /// Members differ, and none of the states is that of a majority.
    Undecided { index: u64 },
    /// This member is of the majority, and some have another state.
    Others { index: u64, nodes: BTreeSet<u64> },
    /// A majority has another state than this member.
    OwnFault { index: u64, own: u128, others: u128 },
}

/// Compares the report of a member with those of others, by what all voters are. What is worst at any index counts, and of
/// that the newest: not all are as far, so an older index may decide what a newer one does not.
pub(super) fn judge(
    own: u64,
    voters: &BTreeSet<u64>,
    own_report: &Report,
    others: &BTreeMap<u64, Report>,
) -> Verdict {
    let may_speak = |node: u64, report: &Report| {
        voters.contains(&node) && node != own && report.format == own_report.format
    };
    let others = others.iter().filter(|(node, report)| may_speak(**node, report));
    let others: Vec<(u64, BTreeMap<u64, u128>)> =
        others.map(|(node, report)| (*node, by_index(report))).collect();
    let mut worst = Verdict::Unknown;
    for (index, hash) in by_index(own_report).into_iter().rev() {
        let mut sides: BTreeMap<u128, BTreeSet<u64>> = BTreeMap::from([(hash, [own].into())]);
        for (node, marks) in &others {
            if let Some(theirs) = marks.get(&index) {
                sides.entry(*theirs).or_default().insert(*node);
            }
        }
        let found = judge_at(index, hash, sides, voters);
        let is_worse = std::mem::discriminant(&found) != std::mem::discriminant(&worst);
        if is_worse && found > worst {
            worst = found;
        }
    }
    worst
}

/// The same at one index, by who has which hash there.
fn judge_at(
    index: u64,
    own: u128,
    sides: BTreeMap<u128, BTreeSet<u64>>,
    voters: &BTreeSet<u64>,
) -> Verdict {
    let is_majority = |side: &BTreeSet<u64>| 2 * side.intersection(voters).count() > voters.len();
    match sides.iter().find(|(_, side)| is_majority(side)) {
        Some((theirs, _)) if *theirs != own => Verdict::OwnFault { index, own, others: *theirs },
        Some(_) if sides.len() == 1 => Verdict::Equal,
        Some(_) => {
            let others = sides.into_iter().filter(|(hash, _)| *hash != own);
            Verdict::Others { index, nodes: others.flat_map(|(_, nodes)| nodes).collect() }
        }
        None if sides.len() == 1 => Verdict::Unknown,
        None => Verdict::Undecided { index },
    }
}

fn by_index(report: &Report) -> BTreeMap<u64, u128> {
    report.marks.iter().map(|mark| (mark.index, mark.hash)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn report(marks: &[(u64, u128)]) -> Report {
        let marks = marks.iter().map(|(index, hash)| Mark { index: *index, hash: *hash });
        Report { format: HASH_FORMAT, marks: marks.collect(), quota: None }
    }

    /// Of so many voters, from 1 on. The first one judges, and the others say something or nothing.
    fn judged(voters: u64, own: &[(u64, u128)], others: &[(u64, &[(u64, u128)])]) -> Verdict {
        let others = others.iter().map(|(node, marks)| (*node, report(marks))).collect();
        judge(1, &(1..=voters).collect(), &report(own), &others)
    }

    fn others(index: u64, nodes: &[u64]) -> Verdict {
        Verdict::Others { index, nodes: nodes.iter().copied().collect() }
    }

    #[test]
    fn one_against_a_majority_is_at_fault() {
        let fault = Verdict::OwnFault { index: 16, own: 1, others: 2 };
        assert_eq!(judged(3, &[(16, 1)], &[(2, &[(16, 2)]), (3, &[(16, 2)])]), fault);
        let five = [(2, &[(16, 2)][..]), (3, &[(16, 2)]), (4, &[(16, 2)]), (5, &[(16, 1)])];
        assert_eq!(judged(5, &[(16, 1)], &five), fault, "two are not better than one");
        assert_eq!(judged(3, &[(16, 2)], &[(2, &[(16, 2)]), (3, &[(16, 1)])]), others(16, &[3]));
        let all = [(2, &[(16, 1)][..]), (3, &[(16, 1)])];
        assert_eq!(judged(3, &[(16, 1)], &all), Verdict::Equal);
    }

    #[test]
    fn a_majority_is_counted_over_all_voters() {
        let undecided = Verdict::Undecided { index: 16 };
        assert_eq!(judged(2, &[(16, 1)], &[(2, &[(16, 2)])]), undecided);
        assert_eq!(judged(3, &[(16, 1)], &[(2, &[(16, 2)])]), undecided, "one is silent");
        assert_eq!(judged(4, &[(16, 1)], &[(2, &[(16, 2)]), (3, &[(16, 2)])]), undecided);
        let three = [(2, &[(16, 2)][..]), (3, &[(16, 2)]), (4, &[(16, 2)])];
        assert!(matches!(judged(4, &[(16, 1)], &three), Verdict::OwnFault { .. }));
        assert_eq!(judged(5, &[(16, 1)], &three[..2]), undecided);
        assert_eq!(judged(3, &[(16, 1)], &[(2, &[(16, 2)]), (3, &[(16, 3)])]), undecided);
        // Whoever is no voter does not count.
        assert_eq!(judged(3, &[(16, 1)], &[(8, &[(16, 2)]), (9, &[(16, 2)])]), Verdict::Unknown);
        let theirs = BTreeMap::from([2, 3].map(|node| (node, report(&[(16, 2)]))));
        let learner = judge(9, &[1, 2, 3].into(), &report(&[(16, 1)]), &theirs);
        assert!(matches!(learner, Verdict::OwnFault { .. }), "but it is counted against");
    }

    #[test]
    fn the_index_that_decides_need_not_be_the_newest() {
        let own = [(16, 1), (32, 5), (48, 6)];
        let found = judged(3, &own, &[(2, &[(16, 2), (32, 7)]), (3, &[(16, 2)])]);
        assert_eq!(found, Verdict::OwnFault { index: 16, own: 1, others: 2 });
        let found = judged(3, &own, &[(2, &[(32, 5), (64, 9)]), (3, &[(32, 4), (16, 3)])]);
        assert_eq!(found, others(32, &[3]));
        // Nothing in common is nothing to say.
        assert_eq!(judged(3, &own, &[(2, &[(17, 2)]), (3, &[])]), Verdict::Unknown);
    }

    #[test]
    fn hashes_of_another_format_are_not_compared() {
        let newer = Report { format: HASH_FORMAT + 1, ..report(&[(16, 2)]) };
        let others = BTreeMap::from([(2, newer.clone()), (3, newer)]);
        let found = judge(1, &[1, 2, 3].into(), &report(&[(16, 1)]), &others);
        assert_eq!(found, Verdict::Unknown);
    }

    #[test]
    fn a_busy_group_is_covered_as_far_back_as_one_that_rests() {
        let mut marks = Marks::default();
        let mark = |index: u64| Mark { index, hash: u128::from(index) };
        let all: Vec<_> = (0..200 * COARSE).step_by(MARK_EVERY as usize).map(mark).collect();
        all.chunks(100).for_each(|some| marks.note(some));
        let now = mark(200 * COARSE + 1);
        let report = marks.report(Some(now));
        assert_eq!(report.marks.len(), REPORT_MAX);
        let indexes: BTreeSet<u64> = report.marks.iter().map(|mark| mark.index).collect();
        assert_eq!(indexes.first(), Some(&(136 * COARSE)));
        assert!(indexes.contains(&(200 * COARSE - 64 * MARK_EVERY)));
        assert_eq!(indexes.last(), Some(&now.index));
        marks.clear();
        assert_eq!(marks.report(None).marks, []);
    }

    #[test]
    fn the_bytes_of_a_report_are_golden() {
        let golden: &[u8] = &[
            4, 0, 0, 0, 1, // format, one mark
            0, 0, 0, 0, 0, 0, 0, 16, // index
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, // hash
        ];
        let report = report(&[(16, 258)]);
        assert_eq!(report.to_bytes(), golden, "of a version that says nothing of a quota");
        assert_eq!(Report::from_bytes(Bytes::from_static(golden)).unwrap(), report);
        let with_quota = Report { quota: Some(3), ..report.clone() };
        let bytes = [golden, &[0, 0, 0, 0, 0, 0, 0, 3]].concat();
        assert_eq!(with_quota.to_bytes(), bytes);
        assert_eq!(Report::from_bytes(bytes.clone().into()).unwrap(), with_quota);
        for length in golden.len() + 1..bytes.len() {
            assert!(Report::from_bytes(bytes[..length].to_vec().into()).is_err());
        }
        let many = Report { marks: vec![report.marks[0]; REPORT_MAX + 1], ..report };
        assert!(Report::from_bytes(many.to_bytes()).is_err());
    }
}
