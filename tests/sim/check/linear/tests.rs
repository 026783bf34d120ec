//! Histories made by hand, each good or bad for one reason; and random ones, checked against a simpler checker.
//!
//! Moments are milliseconds. What is expected of a history by hand is also what the simple checker says.

mod random;
mod store;

use super::{Report, Stats, Violation, check, check_within};
use crate::history::{Compare, Did, Do, Mode, Operation, Outcome, Txn};
use random::{Dice, Plan};
use std::time::Duration;

/// A client that asks at a moment, and is answered at another or never.
struct At(u32, u64, Option<u64>);

fn at(client: u32, start: u64, end: u64) -> At {
    At(client, start, Some(end))
}

fn unanswered(client: u32, start: u64) -> At {
    At(client, start, None)
}

impl At {
    fn txn(self, txn: Txn, succeeded: bool, results: &[Did]) -> Operation {
        let At(client, start, end) = self;
        let outcome = end.map_or(Outcome::Unknown, |end| Outcome::Done {
            end: Duration::from_millis(end),
            revision: 0,
            succeeded,
            results: results.to_vec(),
        });
        let start = Duration::from_millis(start);
        Operation { client, mode: Mode::Linearizable, txn, start, outcome }
    }

    fn all(self, ops: &[Do], results: &[Did]) -> Operation {
        self.txn(Txn { then: ops.to_vec(), ..Txn::default() }, true, results)
    }

    fn put(self, key: &str, value: &str) -> Operation {
        self.all(&[put(key, value)], &[Did::Put])
    }

    fn get(self, key: &str, value: &str) -> Operation {
        self.all(&[get(key)], &[got(value)])
    }

    fn get_nothing(self, key: &str) -> Operation {
        self.all(&[get(key)], &[Did::Got(None)])
    }

    fn delete(self, key: &str, was: bool) -> Operation {
        self.all(&[delete(key)], &[Did::Deleted(was)])
    }

    /// A put under one condition.
    fn put_if(self, when: Compare, key: &str, value: &str, succeeded: bool) -> Operation {
        let txn = Txn { when: vec![when], then: vec![put(key, value)], otherwise: Vec::new() };
        self.txn(txn, succeeded, if succeeded { &[Did::Put] } else { &[] })
    }

    fn create(self, key: &str, value: &str, succeeded: bool) -> Operation {
        self.put_if(missing(key), key, value, succeeded)
    }

    fn swap(self, key: &str, from: &str, to: &str, succeeded: bool) -> Operation {
        self.put_if(is(key, from), key, to, succeeded)
    }
}

fn get(key: &str) -> Do {
    Do::Get(key.into())
}

fn put(key: &str, value: &str) -> Do {
    Do::Put(key.into(), value.into())
}

fn delete(key: &str) -> Do {
    Do::Delete(key.into())
}

fn got(value: &str) -> Did {
    Did::Got(Some(value.into()))
}

fn is(key: &str, value: &str) -> Compare {
    Compare::ValueIs(key.into(), value.into())
}

fn missing(key: &str) -> Compare {
    Compare::Missing(key.into())
}

fn exists(key: &str) -> Compare {
    Compare::Exists(key.into())
}

fn txn(when: &[Compare], then: &[Do], otherwise: &[Do]) -> Txn {
    Txn { when: when.to_vec(), then: then.to_vec(), otherwise: otherwise.to_vec() }
}

fn serializable(operation: Operation) -> Operation {
    Operation { mode: Mode::Serializable, ..operation }
}

#[track_caller]
fn good(history: &[Operation]) -> Stats {
    assert!(store::is_linearizable(history), "the simple checker disagrees");
    check(history).unwrap_or_else(|violation| panic!("{violation}"))
}

#[track_caller]
fn bad(history: &[Operation]) -> Report {
    assert!(!store::is_linearizable(history), "the simple checker disagrees");
    match check(history) {
        Err(Violation::NotLinearizable(report)) => *report,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_linearizable() {
    assert_eq!(good(&[]), Stats::default());
}

#[test]
fn a_read_sees_the_latest_write() {
    let writes = [at(1, 0, 10).put("a", "1"), at(1, 20, 30).put("a", "2")];
    let reads = [at(2, 11, 12).get("a", "1"), at(2, 31, 40).get("a", "2")];
    good(&[writes, reads].concat());
}

#[test]
fn a_stale_read_is_found() {
    let writes = [at(1, 0, 10).put("a", "1"), at(1, 20, 30).put("a", "2")];
    let report = bad(&[&writes[..], &[at(2, 31, 40).get("a", "1")]].concat());
    assert_eq!(report.linearized.len(), 2);
    assert_eq!(report.state["a"], "2");
    assert_eq!(report.lost.map(|lost| lost.client), Some(2));
}

#[test]
fn an_absence_can_be_stale_too() {
    bad(&[at(1, 0, 10).put("a", "1"), at(2, 11, 12).get_nothing("a")]);
    good(&[at(1, 0, 10).put("a", "1"), at(2, 9, 12).get_nothing("a")]);
}

#[test]
fn a_value_that_nobody_wrote_is_found() {
    let report = bad(&[at(1, 0, 10).put("a", "1"), at(2, 5, 20).get("a", "2")]);
    assert_eq!(report.lost.map(|lost| lost.client), Some(2));
}

#[test]
fn a_value_of_another_key_is_found() {
    bad(&[at(1, 0, 10).put("a", "1"), at(1, 11, 20).put("b", "2"), at(2, 21, 30).get("a", "2")]);
}

#[test]
fn a_read_does_not_see_the_future() {
    bad(&[at(2, 0, 5).get("a", "1"), at(1, 6, 10).put("a", "1")]);
    good(&[at(2, 0, 5).get("a", "1"), at(1, 5, 10).put("a", "1")]);
}

#[test]
fn a_lost_update_is_found() {
    let swaps = [at(1, 10, 20).swap("a", "0", "1", true), at(2, 10, 20).swap("a", "0", "2", true)];
    let report = bad(&[&[at(1, 0, 9).put("a", "0")], &swaps[..]].concat());
    assert_eq!(report.linearized.len(), 2);
    let swaps = [at(1, 10, 20).swap("a", "0", "1", true), at(2, 10, 20).swap("a", "0", "2", false)];
    good(&[&[at(1, 0, 9).put("a", "0")], &swaps[..]].concat());
}

#[test]
fn swaps_form_a_chain() {
    let start = at(1, 0, 1).put("a", "0");
    let one = at(1, 2, 30).swap("a", "0", "1", true);
    let two = at(2, 2, 30).swap("a", "1", "2", true);
    let three = at(3, 2, 30).swap("a", "2", "3", true);
    let four = at(4, 2, 30).swap("a", "3", "0", true);
    let chain = [start, four, three, two, one];
    good(&chain);
    good(&[&chain[..], &[at(5, 31, 40).get("a", "0")]].concat());
    bad(&[&chain[..], &[at(5, 31, 40).get("a", "1")]].concat());
    bad(&chain[..4]);
    good(&[&chain[..], &[at(5, 3, 4).get("a", "2"), at(5, 5, 6).get("a", "3")]].concat());
    bad(&[&chain[..], &[at(5, 3, 4).get("a", "3"), at(5, 5, 6).get("a", "2")]].concat());
}

#[test]
fn a_key_is_created_once() {
    bad(&[at(1, 0, 10).create("a", "1", true), at(2, 0, 10).create("a", "2", true)]);
    good(&[at(1, 0, 10).create("a", "1", true), at(2, 0, 10).create("a", "2", false)]);
    bad(&[at(1, 0, 10).create("a", "1", false), at(2, 0, 10).create("a", "2", false)]);
}

#[test]
fn a_key_is_created_again_once_it_was_deleted() {
    let creations = [at(1, 0, 1).create("a", "1", true), at(2, 0, 10).create("a", "2", true)];
    good(&[&creations[..], &[at(3, 5, 20).delete("a", true)]].concat());
    bad(&[&creations[..], &[at(3, 11, 20).delete("a", true)]].concat());
    good(&[&creations[..], &[unanswered(3, 5).delete("a", true)]].concat());
}

#[test]
fn an_unknown_write_that_was_seen_stays() {
    let writes = [at(1, 0, 10).put("a", "1"), unanswered(1, 11).put("a", "2")];
    let new = [at(2, 20, 30).get("a", "2"), at(3, 31, 40).get("a", "2")];
    good(&[&writes[..], &new].concat());
    let old = [at(2, 20, 30).get("a", "2"), at(3, 31, 40).get("a", "1")];
    bad(&[&writes[..], &old].concat());
}

#[test]
fn an_unknown_write_need_not_be_seen() {
    let writes = [at(1, 0, 10).put("a", "1"), unanswered(1, 11).put("a", "2")];
    good(&[&writes[..], &[at(2, 20, 30).get("a", "1"), at(3, 31, 40).get("a", "1")]].concat());
}

#[test]
fn an_unknown_write_may_come_late() {
    let writes = [unanswered(1, 0).put("a", "1"), at(2, 10, 20).put("a", "2")];
    let reads = [at(3, 30, 40).get("a", "2"), at(3, 1000, 1001).get("a", "1")];
    good(&[writes, reads].concat());
}

#[test]
fn an_unknown_write_does_not_come_before_its_start() {
    bad(&[unanswered(1, 10).put("a", "1"), at(2, 0, 5).get("a", "1")]);
}

#[test]
fn an_unknown_write_happens_once() {
    let writes = [unanswered(1, 0).put("a", "1"), at(2, 10, 20).put("a", "2")];
    let reads = [at(3, 5, 6).get("a", "1"), at(3, 30, 40).get("a", "1")];
    bad(&[&writes[..], &reads].concat());
    good(&[&writes[..], &[unanswered(4, 1).put("a", "1")], &reads].concat());
}

#[test]
fn an_unknown_write_explains_only_what_its_condition_allows() {
    let history = |from: &str| {
        let unknown = unanswered(1, 0).swap("a", from, "2", true);
        [at(2, 0, 5).put("a", "1"), unknown, at(3, 6, 7).get("a", "2")]
    };
    good(&history("1"));
    bad(&history("0"));
}

#[test]
fn an_unknown_transaction_takes_either_branch() {
    let unknown = |client| {
        let both = txn(&[exists("a")], &[put("b", "then")], &[put("b", "else")]);
        unanswered(client, 0).txn(both, true, &[])
    };
    let history = |first: &str, second: &str| {
        let put = at(2, 10, 20).put("a", "1");
        [unknown(1), put, at(3, 5, 6).get("b", first), at(3, 21, 30).get("b", second)]
    };
    good(&history("else", "else"));
    bad(&history("then", "then"));
    bad(&history("else", "then"));
    good(&[&history("else", "then")[..], &[unknown(4)]].concat());
}

#[test]
fn two_unknown_deletes_explain_two_absences() {
    let history = |deletes: u32| {
        let mut history: Vec<_> =
            (1..=deletes).map(|it| unanswered(it, 0).delete("a", true)).collect();
        for (start, value) in [(10, "1"), (20, "2")] {
            history.push(at(9, start, start + 1).put("a", value));
            history.push(at(9, start + 2, start + 3).get_nothing("a"));
        }
        history
    };
    good(&history(2));
    bad(&history(1));
}

#[test]
fn an_unknown_write_is_not_used_up_too_early() {
    // Either unknown put explains that the first swap failed, but only one of them then also explains the rest.
    let unknown = [unanswered(2, 2).put("a", "1"), unanswered(3, 3).put("a", "2")];
    let history = [
        at(1, 0, 1).put("a", "0"),
        at(1, 10, 20).swap("a", "0", "3", false),
        at(1, 30, 40).get("a", "2"),
        at(1, 50, 60).put("a", "4"),
        at(1, 70, 80).swap("a", "4", "5", false),
    ];
    good(&[&unknown[..], &history].concat());
    bad(&[&unknown[1..], &history].concat());
}

#[test]
fn a_read_without_an_answer_says_nothing() {
    let stats = good(&[unanswered(1, 0).get("a", "1"), at(2, 0, 5).get_nothing("a")]);
    assert_eq!(stats.operations, 1);
}

#[test]
fn a_refused_write_is_not_seen() {
    let refused = Operation { outcome: Outcome::Refused, ..at(1, 0, 10).put("a", "1") };
    bad(&[refused.clone(), at(2, 11, 12).get("a", "1")]);
    assert_eq!(good(&[refused, at(2, 11, 12).get_nothing("a")]).operations, 1);
}

#[test]
fn a_delete_says_whether_the_key_was_there() {
    let put = at(1, 0, 10).put("a", "1");
    good(&[put.clone(), at(1, 11, 20).delete("a", true), at(1, 21, 30).delete("a", false)]);
    bad(&[put.clone(), at(1, 11, 20).delete("a", false)]);
    bad(&[put.clone(), at(1, 11, 20).delete("a", true), at(1, 21, 30).delete("a", true)]);
    bad(&[put.clone(), at(2, 11, 20).delete("a", true), at(3, 11, 20).delete("a", true)]);
    good(&[put, at(2, 11, 20).delete("a", true), at(3, 11, 20).delete("a", false)]);
}

#[test]
fn an_unknown_put_explains_a_second_delete() {
    let put = [at(1, 0, 10).put("a", "1"), unanswered(4, 5).put("a", "never seen")];
    let deletes = |third| [at(2, 11, 20).delete("a", true), third];
    good(&[put.clone(), deletes(at(3, 11, 20).delete("a", true))].concat());
    let more = [at(5, 21, 30).delete("a", true)];
    bad(&[&put[..], &deletes(at(3, 11, 20).delete("a", true)), &more].concat());
}

#[test]
fn clients_agree_on_the_order_of_writes_in_real_time() {
    let writes = [at(1, 0, 10).put("a", "1"), at(2, 11, 20).put("a", "2")];
    bad(&[&writes[..], &[at(3, 5, 30).get("a", "2"), at(3, 31, 40).get("a", "1")]].concat());
    // Each value may be seen while its write is open, but not the older one last.
    good(&[&writes[..], &[at(3, 5, 30).get("a", "1"), at(3, 31, 40).get("a", "2")]].concat());
}

#[test]
fn two_readers_see_concurrent_writes_in_one_order() {
    let writes = [at(1, 0, 100).put("a", "1"), at(2, 0, 100).put("a", "2")];
    let reader = |client, first, second| {
        [at(client, 10, 20).get("a", first), at(client, 30, 40).get("a", second)]
    };
    good(&[writes.clone(), reader(3, "1", "2"), reader(4, "1", "2")].concat());
    good(&[writes.clone(), reader(3, "2", "1"), reader(4, "2", "1")].concat());
    bad(&[writes, reader(3, "1", "2"), reader(4, "2", "1")].concat());
}

#[test]
fn a_transaction_is_not_seen_half() {
    let both = at(1, 0, 10).all(&[put("a", "1"), put("b", "1")], &[Did::Put, Did::Put]);
    let look = |client, start, end, a: Did, b: Did| {
        at(client, start, end).all(&[get("a"), get("b")], &[a, b])
    };
    good(&[both.clone(), look(2, 5, 20, got("1"), got("1"))]);
    good(&[both.clone(), look(2, 5, 20, Did::Got(None), Did::Got(None))]);
    bad(&[both.clone(), look(2, 5, 20, got("1"), Did::Got(None))]);
    bad(&[both.clone(), at(2, 1, 2).get("a", "1"), at(2, 3, 4).get_nothing("b")]);
    good(&[both, at(2, 1, 2).get_nothing("b"), at(2, 3, 4).get("a", "1")]);
}

#[test]
fn two_snapshots_do_not_contradict_each_other() {
    let puts = [at(1, 0, 100).put("a", "1"), at(2, 0, 100).put("b", "1")];
    let look = |client, a: Did, b: Did| at(client, 10, 20).all(&[get("a"), get("b")], &[a, b]);
    let one = look(3, got("1"), Did::Got(None));
    let other = look(4, Did::Got(None), got("1"));
    good(&[&puts[..], std::slice::from_ref(&one)].concat());
    good(&[&puts[..], std::slice::from_ref(&other)].concat());
    let report = bad(&[&puts[..], &[one, other]].concat());
    assert_eq!(report.keys, ["a", "b"]);
}

#[test]
fn transactions_do_not_form_a_cycle() {
    let one = at(1, 0, 10).put_if(missing("a"), "b", "1", true);
    let other = |succeeded| at(2, 0, 10).put_if(missing("b"), "a", "1", succeeded);
    bad(&[one.clone(), other(true)]);
    good(&[one, other(false)]);
}

#[test]
fn three_transactions_do_not_form_a_cycle() {
    let step = |client, of: &str, to: &str| at(client, 0, 10).put_if(missing(of), to, "1", true);
    good(&[step(1, "a", "b"), step(2, "b", "c")]);
    bad(&[step(1, "a", "b"), step(2, "b", "c"), step(3, "c", "a")]);
}

#[test]
fn a_serializable_read_may_be_old() {
    let writes = [at(1, 0, 10).put("a", "1"), at(1, 20, 30).put("a", "2")];
    let read = at(2, 31, 40).get("a", "1");
    bad(&[&writes[..], std::slice::from_ref(&read)].concat());
    assert_eq!(good(&[&writes[..], &[serializable(read)]].concat()).operations, 2);
}

#[test]
fn a_serializable_request_that_writes_counts() {
    bad(&[at(1, 0, 10).put("a", "1"), serializable(at(2, 11, 12).create("a", "2", true))]);
}

#[test]
fn the_wrong_branch_is_found() {
    let read = txn(&[is("a", "1")], &[get("a")], &[get("b")]);
    let history = |succeeded, answer: Did| {
        [at(1, 0, 10).put("a", "1"), at(2, 11, 20).txn(read.clone(), succeeded, &[answer])]
    };
    good(&history(true, got("1")));
    bad(&history(false, Did::Got(None)));
    bad(&history(true, got("2")));
}

#[test]
fn the_other_branch_needs_one_comparison_that_fails() {
    let both = txn(&[exists("a"), is("b", "1")], &[], &[get("c")]);
    let history = |a: &str, b: &str| {
        let seen = at(2, 11, 20).txn(both.clone(), false, &[Did::Got(None)]);
        [at(1, 0, 5).put(a, "1"), at(1, 6, 10).put("b", b), seen]
    };
    bad(&history("a", "1"));
    good(&history("a", "2"));
    good(&history("d", "1"));
}

#[test]
fn a_missing_key_has_no_value() {
    good(&[at(1, 0, 10).swap("a", "", "1", false)]);
    bad(&[at(1, 0, 10).swap("a", "", "1", true)]);
    good(&[at(1, 0, 5).put("a", ""), at(1, 6, 10).swap("a", "", "1", true)]);
}

#[test]
fn comparisons_see_the_state_before() {
    let when = [missing("a"), missing("b")];
    let both = txn(&when, &[put("a", "1"), put("b", "1"), get("a")], &[]);
    good(&[at(1, 0, 10).txn(both.clone(), true, &[Did::Put, Did::Put, got("1")])]);
    bad(&[at(1, 0, 10).txn(both, false, &[])]);
}

#[test]
fn a_transaction_sees_its_own_writes() {
    let ops = [get("a"), put("a", "2"), get("a"), delete("a"), get("a"), delete("a")];
    let right =
        [got("1"), Did::Put, got("2"), Did::Deleted(true), Did::Got(None), Did::Deleted(false)];
    let history = |results: &[Did]| {
        let end = at(3, 21, 30).get_nothing("a");
        [at(1, 0, 10).put("a", "1"), at(2, 11, 20).all(&ops, results), end]
    };
    good(&history(&right));
    for (index, wrong) in [(0, got("2")), (2, got("1")), (3, Did::Deleted(false)), (4, got("2"))] {
        let mut results = right.to_vec();
        results[index] = wrong;
        bad(&history(&results));
    }
    bad(&history(&right[..5]));
}

#[test]
fn an_answer_to_another_question_is_found() {
    bad(&[at(1, 0, 10).all(&[put("a", "1")], &[Did::Got(None)])]);
    bad(&[at(1, 0, 10).all(&[get("a")], &[Did::Put])]);
    bad(&[at(1, 0, 10).all(&[get("a")], &[])]);
    bad(&[at(1, 0, 10).all(&[], &[Did::Put])]);
}

#[test]
fn a_transaction_about_nothing_succeeds() {
    good(&[at(1, 0, 10).all(&[], &[])]);
    bad(&[at(1, 0, 10).txn(Txn::default(), false, &[])]);
}

#[test]
fn what_shares_a_moment_overlaps_except_for_one_client() {
    good(&[at(1, 0, 10).put("a", "1"), at(2, 10, 20).get_nothing("a")]);
    bad(&[at(1, 0, 10).put("a", "1"), at(1, 10, 20).get_nothing("a")]);
    bad(&[at(1, 5, 5).put("a", "1"), at(1, 5, 5).put("a", "2"), at(1, 5, 5).get("a", "1")]);
    good(&[at(1, 5, 5).put("a", "1"), at(2, 5, 5).put("a", "2"), at(1, 5, 5).get("a", "2")]);
}

#[test]
fn of_equals_that_end_together_the_later_one_may_be_first() {
    let start = at(1, 0, 1).put("a", "1");
    let one = at(2, 2, 5).delete("a", true);
    let other = at(3, 3, 5).delete("a", true);
    let then = at(3, 5, 9).put("a", "2");
    good(&[start, one, other, then, at(4, 10, 11).get_nothing("a")]);
}

#[test]
fn a_client_did_one_thing_before_the_other_also_with_two_keys() {
    let read = at(1, 0, 5).get("a", "2");
    let before = at(2, 0, 5).put("b", "1");
    let then = at(2, 5, 9).put("a", "2");
    let look = |b: Did| at(3, 10, 20).all(&[get("a"), get("b")], &[got("2"), b]);
    good(&[read.clone(), before.clone(), then.clone(), look(got("1"))]);
    bad(&[read, before, then, look(Did::Got(None))]);
}

#[test]
fn keys_are_apart_unless_a_transaction_joins_them() {
    let puts: Vec<_> = ["a", "b", "c", "d"].iter().map(|key| at(1, 0, 10).put(key, "1")).collect();
    assert_eq!(good(&puts).parts, 4);
    let look =
        |one, other| at(2, 0, 10).all(&[get(one), get(other)], &[Did::Got(None), Did::Got(None)]);
    assert_eq!(good(&[&puts[..], &[look("a", "b")]].concat()).parts, 3);
    let joined = [&puts[..], &[look("a", "b"), look("c", "b"), look("d", "a")]].concat();
    assert_eq!(good(&joined), Stats { operations: 7, parts: 1, configurations: 4 });
}

#[test]
fn giving_up_is_not_a_success() {
    let history = [at(1, 0, 10).put("a", "1"), at(2, 0, 10).put("a", "2")];
    let Err(Violation::TooHard(report)) = check_within(&history, 1) else { panic!("not given up") };
    assert_eq!(report.configurations, 2);
    good(&history);
}

#[test]
fn a_violation_says_where_to_look() {
    let history = [
        at(1, 0, 10).put("other", "1"),
        at(1, 10, 20).put("a", "1"),
        at(2, 21, 30).put("a", "2"),
        at(3, 31, 40).swap("a", "1", "3", true),
        at(4, 35, 45).put("a", "4"),
        unanswered(5, 0).delete("b", true),
    ];
    let text = check(&history).unwrap_err().to_string();
    let expected = [
        "not linearizable: no order explains all answers",
        "  keys: a",
        "  in order: 2 of 4, after 2 configurations",
        "    client 1, 10ms to 20ms: put a=\"1\" -> put",
        "    client 2, 21ms to 30ms: put a=\"2\" -> put",
        "  state: a=\"2\"",
        "  nothing explains any more:",
        "    client 3, 31ms to 40ms: if a is \"1\": put a=\"3\" -> put",
        "  cannot come next:",
        "    client 3, 31ms to 40ms: if a is \"1\": put a=\"3\" -> put",
        "    client 4, 35ms to 45ms: put a=\"4\" -> put (right here, but not what follows)",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn it_agrees_with_the_simple_checker() {
    let makers: [fn(&mut Dice) -> Vec<Operation>; 2] = [random::nonsense, random::nearly_right];
    for make in makers {
        let mut verdicts = [0, 0];
        for seed in 0..3000 {
            let history = make(&mut Dice::new(seed));
            let expected = store::is_linearizable(&history);
            let verdict = check(&history);
            assert_eq!(verdict.is_ok(), expected, "seed {seed}: {verdict:?} of {history:#?}");
            verdicts[usize::from(expected)] += 1;
        }
        assert!(verdicts.iter().all(|count| *count > 200), "one-sided: {verdicts:?}");
    }
}

#[test]
fn a_store_that_is_right_passes_until_one_answer_is_wrong() {
    for seed in 0..60 {
        let mut dice = Dice::new(seed);
        let mut history = Plan::any(300, &mut dice).play(&mut dice);
        check(&history).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        random::falsify(&mut history, &mut dice);
        let verdict = check(&history);
        let is_found = matches!(verdict, Err(Violation::NotLinearizable(_)));
        assert!(is_found, "seed {seed}: {verdict:?}");
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "the times are for people")]
#[expect(clippy::disallowed_methods, reason = "it measures")]
fn a_long_history_is_no_trouble() {
    for seed in 0..3 {
        let mut dice = Dice::new(seed);
        let mut history = Plan::usual(3000).play(&mut dice);
        let started = std::time::Instant::now();
        let stats = check(&history).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        println!("seed {seed}: good in {:?}, {stats:?}", started.elapsed());
        random::falsify(&mut history, &mut dice);
        let started = std::time::Instant::now();
        let violation = check(&history).unwrap_err();
        println!("seed {seed}: bad in {:?}, {violation}", started.elapsed());
    }
}
