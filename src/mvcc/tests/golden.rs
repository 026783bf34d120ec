//! The rules as one story, step by step, and the odd cases that a real etcd showed.
//!
//! Every number here was replayed on a real etcd, except where the difference is on purpose.

use super::kit::{Lab, cursor, show, show_changes, txn};
use crate::api::{Applied, Command, Position};
use crate::error::Reason;
use crate::mvcc::LeaseChange;
use crate::types::{Compare, KeyRange, LeaseId, Op, OpResult, Revision, SortBy};
use std::time::Duration;

fn rev(number: u64) -> Revision {
    Revision::from(number)
}

#[test]
fn the_golden_trace() {
    let mut lab = Lab::new();

    // 0: an empty store.
    assert_eq!((lab.view().revision(), lab.view().compact_revision()), (rev(1), rev(0)));

    // 1, 2: a key is created, then changed.
    assert_eq!(lab.put("a", "1"), 2);
    assert_eq!(show(&lab.get("a").unwrap()), "a{2,2,1}=1");
    let (result, revision) = lab.run(Op::put("a", "2").prev()).unwrap();
    let OpResult::Put { prev: Some(prev) } = result else { panic!("{result:?}") };
    assert_eq!((show(&prev).as_str(), revision), ("a{2,2,1}=1", 3));
    assert_eq!(show(&lab.get("a").unwrap()), "a{2,3,2}=2");

    // 3: a grant is no revision; a put with the lease is.
    let lease = lab.grant();
    assert_eq!(lab.view().revision(), rev(3));
    assert_eq!(lab.run(Op::put("b", "1").lease(lease)).unwrap().1, 4);
    assert_eq!(lab.lease_keys(lease), ["b"]);

    // 4: a delete that hits nothing.
    let nothing = OpResult::Deleted { count: 0, prev: vec![] };
    assert_eq!(lab.run(Op::delete("z")), Ok((nothing, 4)));
    assert_eq!(show_changes(&lab.watch(.., 5).unwrap().changes), [""; 0]);

    // 5: one transaction, one revision, and its reads see its writes.
    let outcome = lab
        .txn(
            [Compare::version("a").equals(2u64)],
            [Op::put("c", "1"), Op::delete("b"), Op::range(..)],
            [],
        )
        .unwrap();
    assert!(outcome.succeeded);
    assert_eq!(outcome.revision, rev(5));
    let OpResult::Range(page) = &outcome.results[2] else { panic!("{outcome:?}") };
    assert_eq!(page.entries.iter().map(show).collect::<Vec<_>>(), ["a{2,3,2}=2", "c{5,5,1}=1"]);
    assert_eq!((page.count, page.more, page.revision), (2, false, rev(5)));
    let of_five = lab.watch(.., 5).unwrap();
    let b = format!("b{{4,4,1}}@{lease}=1");
    assert_eq!(show_changes(&of_five.changes), [format!("5: put c{{5,5,1}}=1, delete b was {b}")]);
    assert!(lab.lease_keys(lease).is_empty());

    // 6: a transaction that only reads has the revision of now.
    let outcome = lab.txn([Compare::absent("zz")], [Op::get("a")], []).unwrap();
    assert_eq!((outcome.succeeded, outcome.revision), (true, rev(5)));

    // 7: the past, and the future.
    let page = lab.page(Op::range("a").at(rev(2)));
    assert_eq!((show(&page.entries[0]).as_str(), page.revision), ("a{2,2,1}=1", rev(5)));
    let future = Err(Reason::FutureRevision { current: rev(5) });
    assert_eq!(lab.query(Op::range("a").at(rev(6))), future);

    // 8: compaction.
    let compacted = |at| Err(Reason::Compacted { at: rev(at) });
    let compact = |lab: &mut Lab, at| lab.apply(Command::Compact(rev(at)));
    assert_eq!(compact(&mut lab, 3), Ok(Applied::Compacted { revision: rev(5) }));
    let page = lab.page(Op::range("a").at(rev(3)));
    assert_eq!(show(&page.entries[0]), "a{2,3,2}=2");
    assert_eq!(lab.query(Op::range("a").at(rev(2))), compacted(3));
    assert_eq!(compact(&mut lab, 3), Err(Reason::Compacted { at: rev(3) }));
    assert_eq!(compact(&mut lab, 6), Err(Reason::FutureRevision { current: rev(5) }));

    // 9: a second life.
    assert_eq!(lab.run(Op::delete("a")).unwrap().1, 6);
    assert_eq!(lab.put("a", "9"), 7);
    assert_eq!(show(&lab.get("a").unwrap()), "a{7,7,1}=9");

    // 10: a watch of everything, before and after the rows below 3 are really gone.
    let history = [
        "3: put a{2,3,2}=2 was a{2,2,1}=1".to_owned(),
        format!("4: put {b}"),
        format!("5: put c{{5,5,1}}=1, delete b was {b}"),
        "6: delete a was a{2,3,2}=2".to_owned(),
        "7: put a{7,7,1}=9".to_owned(),
    ];
    for _ in 0..2 {
        assert_eq!(lab.watch(.., 2), Err(Reason::Compacted { at: rev(3) }));
        assert_eq!(show_changes(&lab.watch(.., 3).unwrap().changes), history);
        assert!(lab.store().compact_step(100).unwrap());
    }

    // 11: a revoke without keys is no revision.
    assert_eq!(lab.apply(Command::Revoke(lease)), Ok(Applied::Revoked { revision: rev(7) }));

    // 12: a revoke with keys is one.
    let lease = lab.grant();
    assert_eq!(lab.run(Op::put("c", "2").lease(lease)).unwrap().1, 8);
    assert_eq!(lab.run(Op::put("d", "1").lease(lease)).unwrap().1, 9);
    assert_eq!(lab.apply(Command::Revoke(lease)), Ok(Applied::Revoked { revision: rev(10) }));
    let (c, d) = (format!("c{{5,8,2}}@{lease}=2"), format!("d{{9,9,1}}@{lease}=1"));
    assert_eq!(
        show_changes(&lab.watch(.., 10).unwrap().changes),
        [format!("10: delete c was {c}, delete d was {d}")]
    );

    // 13 to 15: rejections.
    let put = Op::put("e", "1").lease(lease);
    assert_eq!(lab.run(put), Err(Reason::LeaseNotFound { lease }));
    assert_eq!(lab.run(Op::put("e", "").ignore_value()), Err(Reason::KeyNotFound));
    let k = || Op::put("k", "v");
    assert_eq!(lab.txn([], [k(), k()], []), Err(Reason::DuplicateKey));
    let prefix = Op::delete(KeyRange::prefix("k"));
    assert_eq!(lab.txn([], [k(), prefix], []), Err(Reason::DuplicateKey));
    assert_eq!(lab.view().revision(), rev(10));

    // 16, 17: comparisons of what is not there.
    for compare in [
        Compare::value("missing").equals("x"),
        Compare::value("missing").differs("x"),
        Compare::value("missing").below("x"),
        Compare::value("missing").above("x"),
    ] {
        assert!(!lab.txn([compare], [], []).unwrap().succeeded);
    }
    assert!(lab.txn([Compare::absent(KeyRange::prefix("p/"))], [], []).unwrap().succeeded);

    // 18: a nested comparison sees the state before.
    let inner =
        Op::txn([Compare::value("n").equals("1")], [Op::put("m", "1")], [Op::put("o", "1")]);
    let outcome = lab.txn([], [Op::put("n", "1"), inner], []).unwrap();
    assert_eq!(outcome.revision, rev(11));
    assert!(lab.get("m").is_none() && lab.get("o").is_some());

    // 19: count heeds neither limit nor filters.
    let page = lab.page(Op::range(..).limit(1));
    assert_eq!((page.entries.len(), page.more, page.count), (1, true, 3));
    let page = lab.page(edit_range(Op::range(..), |op| op.mod_revision_min = Some(rev(11))));
    let shown: Vec<_> = page.entries.iter().map(show).collect();
    assert_eq!(shown, ["n{11,11,1}=1", "o{11,11,1}=1"]);
    assert_eq!((page.more, page.count), (false, 3));

    // 20: the same value again.
    assert_eq!(lab.put("a", "9"), 12);
    assert_eq!(show(&lab.get("a").unwrap()), "a{7,12,2}=9");
    assert_eq!(
        show_changes(&lab.watch("a", 12).unwrap().changes),
        ["12: put a{7,12,2}=9 was a{7,7,1}=9"]
    );

    // 21: a watch from the future gets nothing, and no progress, until then.
    for number in 13..=21 {
        let events = lab.watch(.., 20).unwrap();
        assert!(events.changes.is_empty());
        assert_eq!(events.next, Position::start_of(rev(20)));
        assert_eq!(lab.put("w", "1"), number);
        if number == 19 {
            break;
        }
    }
    lab.put("w", "20");
    lab.put("w", "21");
    let events = lab.watch(.., 20).unwrap();
    let revisions: Vec<_> = events.changes.iter().map(|changes| changes.revision.get()).collect();
    assert_eq!((revisions, events.next), (vec![20, 21], Position::start_of(rev(22))));
    lab.view().verify().unwrap();
}

fn edit_range(op: Op, edit: impl FnOnce(&mut crate::types::RangeOp)) -> Op {
    match op.0 {
        crate::types::OpKind::Range(mut range) => {
            edit(&mut range);
            Op(crate::types::OpKind::Range(range))
        }
        other => Op(other),
    }
}

#[test]
fn the_transaction_that_kills_etcd_is_a_rejection() {
    let mut lab = Lab::new();
    lab.put("b", "1");
    let outcome = lab.txn([], [Op::delete("a"..), Op::put("b", "").ignore_value()], []);
    assert_eq!(outcome, Err(Reason::DuplicateKey));
    assert_eq!(show(&lab.get("b").unwrap()), "b{2,2,1}=1");
}

#[test]
fn a_put_moves_keeps_or_drops_the_lease() {
    let mut lab = Lab::new();
    let (one, two) = (lab.grant(), lab.grant());
    lab.run(Op::put("k", "v").lease(one)).unwrap();
    lab.run(Op::put("k", "").ignore_value().lease(two)).unwrap();
    assert_eq!((lab.lease_keys(one).len(), lab.lease_keys(two).len()), (0, 1));
    lab.run(Op::put("k", "w").ignore_lease()).unwrap();
    assert_eq!(lab.get("k").unwrap().lease, Some(two));
    lab.run(Op::put("k", "").ignore_value()).unwrap();
    let kv = lab.get("k").unwrap();
    assert_eq!((kv.lease, &kv.value[..], kv.version), (None, &b"w"[..], 4));
    assert!(lab.lease_keys(two).is_empty());
    lab.view().verify().unwrap();
}

#[test]
fn a_rejection_after_earlier_operations_leaves_nothing_behind() {
    let mut lab = Lab::new();
    lab.put("a", "1");
    let before = lab.view().hash();
    let unknown = LeaseId::from(99);
    let failing = [
        Op::put("x", "1").lease(unknown),
        Op::put("x", "").ignore_lease(),
        Op::range(..).at(rev(3)),
        Op::txn([], [Op::put("y", "1"), Op::get("a").at(rev(77))], []),
    ];
    for last in failing {
        lab.txn([], [Op::put("a", "2"), Op::delete("b".."c"), last], []).unwrap_err();
        assert_eq!(lab.view().hash(), before);
        assert_eq!(lab.view().revision(), rev(2));
    }
    assert!(lab.watch(.., 3).unwrap().changes.is_empty());
}

#[test]
fn only_the_branch_that_is_taken_must_be_possible() {
    let mut lab = Lab::new();
    let impossible = || Op::put("x", "1").lease(LeaseId::from(99));
    let outcome = lab.txn([Compare::exists("x")], [impossible()], [Op::put("y", "1")]).unwrap();
    assert!(!outcome.succeeded);
    let doubled = lab.txn([Compare::exists("x")], [impossible(), impossible()], []);
    assert_eq!(doubled, Err(Reason::DuplicateKey), "static rules hold for both branches");
}

#[test]
fn a_read_of_a_revision_inside_of_a_transaction_does_not_see_its_writes() {
    let mut lab = Lab::new();
    lab.put("a", "1");
    let ops = [Op::put("a", "2"), Op::put("b", "1"), Op::get("a").at(rev(2)), Op::get("a")];
    let outcome = lab.txn([], ops, []).unwrap();
    let values: Vec<_> = outcome.results[2..]
        .iter()
        .map(|result| match result {
            OpResult::Get(Some(kv)) => show(kv),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(values, ["a{2,2,1}=1", "a{2,3,2}=2"]);
}

#[test]
fn the_revision_of_a_nested_answer_moves_with_the_first_change() {
    let mut lab = Lab::new();
    let look = || Op::txn([], [Op::range(..)], []);
    let outcome = lab.txn([], [look(), Op::delete("z"), look(), Op::put("a", "1"), look()], []);
    let outcome = outcome.unwrap();
    let seen = outcome.results.iter().filter_map(|result| match result {
        OpResult::Txn(nested) => Some(nested.revision.get()),
        _ => None,
    });
    assert_eq!(seen.collect::<Vec<_>>(), [1, 1, 2]);
    assert_eq!(outcome.revision, rev(2));
}

#[test]
fn the_group_chooses_lease_ids_that_are_free() {
    let mut lab = Lab::new();
    let ttl = Duration::from_secs(60);
    let grant = |lab: &mut Lab, id: u64| {
        let id = Some(LeaseId::from(id));
        lab.apply(Command::Grant { id, ttl })
    };
    let granted = |id: u64| Ok(Applied::Granted { id: LeaseId::from(id), ttl, revision: rev(1) });
    assert_eq!(grant(&mut lab, 2), granted(2));
    assert_eq!(grant(&mut lab, 2), Err(Reason::LeaseExists { lease: LeaseId::from(2) }));
    assert_eq!(grant(&mut lab, 0), granted(1), "0 means: choose one");
    assert_eq!(lab.grant(), LeaseId::from(3));
    lab.apply(Command::Revoke(LeaseId::from(3))).unwrap();
    assert_eq!(lab.grant(), LeaseId::from(4), "a chosen id is never chosen again");
    let unknown = LeaseId::from(3);
    let again = lab.apply(Command::Revoke(unknown));
    assert_eq!(again, Err(Reason::LeaseNotFound { lease: unknown }));
}

#[test]
fn a_time_to_live_is_cut_to_what_the_log_carries() {
    let mut lab = Lab::new();
    let fine = Duration::from_millis(5000) + Duration::from_nanos(1);
    let outcome = lab.apply(Command::Grant { id: None, ttl: fine }).unwrap();
    let Applied::Granted { id, ttl, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(ttl, Duration::from_millis(5000));
    assert_eq!(lab.view().lease(id).unwrap().unwrap().ttl, ttl);
    let endless = lab.apply(Command::Grant { id: None, ttl: Duration::MAX });
    assert_eq!(endless, Err(Reason::TtlTooLarge));
}

#[test]
fn leases_that_expire_together_take_one_revision_each_in_order() {
    let mut lab = Lab::new();
    let leases: Vec<_> = (0..4).map(|_| lab.grant()).collect();
    lab.run(Op::put("y", "1").lease(leases[2])).unwrap();
    lab.run(Op::put("x", "1").lease(leases[2])).unwrap();
    lab.run(Op::put("z", "1").lease(leases[0])).unwrap();
    lab.apply(Command::Revoke(leases[3])).unwrap();
    let due = vec![leases[3], leases[2], leases[1], leases[0], leases[2]];
    let expire = |deciding_term| Command::Expire { deciding_term, leases: due.clone() };

    let void = lab.apply(expire(super::kit::TERM - 1));
    assert_eq!(void, Err(Reason::LeaderChanged), "decided in another term");
    assert_eq!(lab.view().leases().unwrap().len(), 3);

    let batch = lab.batch([expire(super::kit::TERM)]);
    let expired = Applied::Expired { leases: leases[..3].to_vec(), revision: rev(6) };
    assert_eq!(batch.outcomes, [Some(Ok(expired))]);
    let ended: Vec<_> = leases[..3].iter().map(|id| LeaseChange::Ended { id: *id }).collect();
    assert_eq!(batch.leases, ended);
    let lines = show_changes(&lab.watch(.., 5).unwrap().changes);
    assert!(lines[0].starts_with("5: delete z was"), "{lines:?}");
    assert!(lines[1].starts_with("6: delete x was") && lines[1].contains("delete y"), "{lines:?}");
    lab.view().verify().unwrap();
}

#[test]
fn a_top_n_is_sorted_before_it_is_cut() {
    let mut lab = Lab::new();
    for (key, value) in [("a", "3"), ("b", "1"), ("c", "2"), ("a", "0")] {
        lab.put(key, value);
    }
    let first = |sort, descending| {
        let op = edit_range(Op::range(..).limit(1), |op| {
            op.sort = sort;
            op.descending = descending;
        });
        let page = lab.page(op);
        assert_eq!((page.count, page.more), (3, true));
        page.entries[0].key.clone()
    };
    assert_eq!(first(SortBy::Key, true), "c");
    assert_eq!(first(SortBy::Value, false), "a");
    assert_eq!(first(SortBy::Value, true), "c");
    assert_eq!(first(SortBy::CreateRevision, true), "c");
    assert_eq!(first(SortBy::ModRevision, false), "b");
    assert_eq!(first(SortBy::ModRevision, true), "a");
    assert_eq!(first(SortBy::Version, true), "a");
}

#[test]
fn keys_only_keeps_the_lease_and_count_only_ignores_limit_and_filters() {
    let mut lab = Lab::new();
    let lease = lab.grant();
    lab.run(Op::put("a", "1").lease(lease)).unwrap();
    lab.put("b", "1");
    let page = lab.page(Op::range(..).keys_only());
    assert_eq!(show(&page.entries[0]), format!("a{{2,2,1}}@{lease}="));
    let op = Op::range(..).count_only().limit(1);
    let page = lab.page(edit_range(op, |op| op.mod_revision_min = Some(rev(50))));
    assert_eq!((page.entries.len(), page.more, page.count), (0, false, 2));
}

#[test]
fn compacting_where_a_key_was_created_again_keeps_it() {
    let mut lab = Lab::new();
    lab.put("k", "1");
    lab.run(Op::delete("k")).unwrap();
    lab.put("k", "2");
    lab.apply(Command::Compact(rev(4))).unwrap();
    assert!(lab.store().compact_step(100).unwrap());
    assert_eq!(show(&lab.get("k").unwrap()), "k{4,4,1}=2");
    assert_eq!(lab.page(Op::range("k").at(rev(4))).count, 1);
    lab.view().verify().unwrap();
}

#[test]
fn the_revision_survives_when_all_history_is_gone() {
    let mut lab = Lab::new();
    lab.put("k", "1");
    lab.run(Op::delete("k")).unwrap();
    lab.apply(Command::Compact(rev(3))).unwrap();
    assert!(lab.store().compact_step(100).unwrap());
    lab.reopen();
    assert_eq!(lab.view().revision(), rev(3));
    assert_eq!(show_changes(&lab.watch(.., 3).unwrap().changes), ["3: delete k was k{2,2,1}=1"]);
    assert_eq!(lab.put("k", "2"), 4);
}

#[test]
fn history_is_forgotten_ten_slices_of_time_after_it_was_the_present() {
    let mut lab = Lab::new();
    lab.put("k", "1");
    let age = |lab: &mut Lab| {
        let revision = lab.view().revision();
        assert_eq!(
            lab.apply(Command::Age { deciding_term: super::kit::TERM }),
            Ok(Applied::Noted { revision })
        );
        lab.view().compact_revision().get()
    };
    assert_eq!(age(&mut lab), 0);
    lab.put("k", "2");
    let later: Vec<u64> = (0..8).map(|_| age(&mut lab)).collect();
    assert_eq!(later, [0; 8]);
    lab.put("k", "3");
    assert_eq!(age(&mut lab), 0);
    // What was the present ten slices ago is still history; what was over by then is not.
    assert_eq!(age(&mut lab), 2);
    assert_eq!(show(&lab.page(Op::range("k").at(rev(2))).entries[0]), "k{2,2,1}=1");
    assert_eq!(age(&mut lab), 3);
    assert_eq!(lab.watch(.., 2).unwrap_err(), Reason::Compacted { at: rev(3) });
    // What a leader decided before is of no account under the next one, which counts anew.
    let late = Command::Age { deciding_term: super::kit::TERM - 1 };
    assert_eq!(lab.apply(late), Err(Reason::LeaderChanged));
    // Whatever somebody has compacted meanwhile stays so.
    lab.apply(Command::Compact(rev(4))).unwrap();
    lab.reopen();
    assert_eq!(age(&mut lab), 4);
    (0..20).for_each(|_| assert_eq!(age(&mut lab), 4));
}

#[test]
fn without_room_whatever_takes_none_goes_on() {
    let mut lab = Lab::new();
    let lease = lab.grant();
    lab.run(Op::put("leased", "1").lease(lease)).unwrap();
    (0..3).for_each(|key| assert!(lab.put(&format!("k{key}"), "1") > 0));
    let revision = lab.view().revision();
    let room = |lab: &mut Lab, is_short| {
        let revision = lab.view().revision();
        assert_eq!(lab.apply(Command::Room { is_short }), Ok(Applied::Noted { revision }));
    };
    room(&mut lab, true);
    lab.reopen();
    let put = || Op::put("k0", "2");
    assert_eq!(lab.run(put()), Err(Reason::NoSpace));
    // In the branch that is not taken as well, and inside.
    let when = || [Compare::exists("missing")];
    assert_eq!(lab.txn(when(), [put()], []), Err(Reason::NoSpace));
    assert_eq!(lab.txn([], [], [Op::txn([], [put()], [])]), Err(Reason::NoSpace));
    let grant = Command::Grant { id: None, ttl: std::time::Duration::from_secs(9) };
    assert_eq!(lab.apply(grant), Err(Reason::NoSpace));
    assert_eq!(lab.view().revision(), revision);

    assert_eq!(show(&lab.get("k0").unwrap()), "k0{3,3,1}=1");
    lab.txn(when(), [], [Op::delete("k0"), Op::get("k1")]).unwrap();
    lab.apply(Command::Revoke(lease)).unwrap();
    lab.apply(Command::Compact(lab.view().revision())).unwrap();
    assert_eq!(lab.view().keys(), 2);
    room(&mut lab, false);
    lab.run(put()).unwrap();
    lab.view().verify().unwrap();
}

#[test]
fn a_query_that_writes_is_refused() {
    let lab = Lab::new();
    let write = txn([Compare::exists("a")], [], [Op::put("a", "1")]);
    assert!(matches!(lab.view().query(&write).unwrap(), Err(Reason::BadOption { .. })));
    let empty_key = txn([], [Op::get("")], []);
    assert_eq!(lab.view().query(&empty_key).unwrap(), Err(Reason::EmptyKey));
}

#[test]
fn what_no_gateway_lets_through_is_a_rejection_and_no_panic() {
    let mut lab = Lab::new();
    assert_eq!(lab.run(Op::put("", "1")), Err(Reason::EmptyKey));
    assert_eq!(lab.run(Op::put("\0a", "1")), Err(Reason::ReservedKey));
    let long = "k".repeat(1025);
    assert!(matches!(lab.run(Op::put(&long, "1")), Err(Reason::KeyTooLong { .. })));
    assert_eq!(lab.run(Op::delete("b".."a")), Err(Reason::EmptyRange));
    let many = vec![LeaseId::from(1); 1001];
    let expire = Command::Expire { deciding_term: super::kit::TERM, leases: many };
    assert!(matches!(lab.apply(expire), Err(Reason::TooManyOperations { .. })));
    let future = lab.apply(Command::Compact(rev(u64::MAX)));
    assert_eq!(future, Err(Reason::FutureRevision { current: rev(1) }));
    assert_eq!(lab.apply(Command::Compact(rev(0))), Err(Reason::Compacted { at: rev(0) }));
    for (revision, sub) in [(0, 7), (1, 1), (u64::MAX, u32::MAX), (0, 0)] {
        let mut odd = cursor(.., revision);
        odd.next.sub = sub;
        lab.view().events(&odd, rev(u64::MAX), 0).unwrap().unwrap();
    }
}

#[test]
fn the_longest_keys_fit() {
    let mut lab = Lab::new();
    let plain = [b'k'; 1024];
    let mut zeros = [0; 1024];
    zeros[..148].fill(b'k');
    for key in [plain, zeros] {
        let lease = lab.grant();
        lab.run(Op::put(key, "1").lease(lease)).unwrap();
        lab.run(Op::put(key, "2").lease(lease)).unwrap();
        let page = lab.page(Op::range(&key).at(lab.view().revision()));
        assert_eq!(page.count, 1);
        lab.apply(Command::Revoke(lease)).unwrap();
    }
    let far = lab.page(Op::range(KeyRange::prefix([b'k'; 1024])).at(rev(2)));
    assert_eq!(far.count, 1);
    lab.view().verify().unwrap();
}

#[test]
fn a_log_entry_that_comes_twice_is_a_fault() {
    let mut lab = Lab::new();
    lab.put("a", "1");
    lab.index -= 1;
    let entry = lab.entry(super::kit::body(Command::Compact(rev(1))));
    let fault = lab.store().apply(&[entry]).unwrap_err();
    assert!(fault.to_string().contains("applied after"), "{fault}");
    assert_eq!(lab.view().applied().unwrap().index, 1, "nothing of it is there");
}
