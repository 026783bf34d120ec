//! Much of everything: long histories, large revisions, large values, long ranges.

use super::kit::{Lab, TERM, body, cursor, txn};
use crate::api::{Applied, Command, Position};
use crate::error::Reason;
use crate::mvcc::View;
use crate::types::{
    Changes, Compare, KeyRange, LeaseId, Op, OpKind, OpResult, Page, RangeOp, Revision, Shows,
    SortBy, TxnOp, limits,
};
use bytes::Bytes;

const MAP_BYTES: usize = 1 << 30;

/// Follows a cursor to its end; returns all events joined, and how many steps that took.
fn follow(view: &View, range: impl Into<KeyRange>, bytes_max: usize) -> (Vec<Changes>, usize) {
    let mut cursor = cursor(range, 0);
    let (mut all, mut steps) = (Vec::<Changes>::new(), 0);
    loop {
        let events = view.events(&cursor, view.revision(), bytes_max).unwrap().unwrap();
        for changes in events.changes {
            match all.last_mut() {
                Some(last) if last.revision == changes.revision => {
                    last.events.extend(changes.events);
                }
                _ => all.push(changes),
            }
        }
        assert!(events.next > cursor.next);
        cursor.next = events.next;
        steps += 1;
        if !events.more {
            return (all, steps);
        }
    }
}

#[test]
fn commands_of_one_batch_see_each_other() {
    let mut lab = Lab::new();
    let put = |key: &str, if_version: u64| {
        let when = Compare::version("a").equals(if_version);
        Command::Txn(txn([when], [Op::put(key, "v").prev()], [Op::get("a")]))
    };
    let grant = Command::Grant { id: Some(7.into()), ttl: std::time::Duration::from_secs(9) };
    let leased = Command::Txn(TxnOp::single(Op::put("l", "1").lease(7.into()).0));
    let commands = [
        put("a", 0),
        put("a", 1),
        put("b", 1),
        put("b", 2),
        grant,
        leased,
        Command::Revoke(7.into()),
        Command::Compact(Revision::from(5)),
        Command::Txn(txn([], [Op::range("a").at(Revision::from(4))], [])),
    ];
    let batch = lab.batch(commands);
    let shown: Vec<_> = batch.outcomes.iter().map(|outcome| format!("{outcome:?}")).collect();
    assert!(shown[1].contains("prev: Some("), "{shown:?}");
    assert!(shown[2].contains("succeeded: false"), "{shown:?}");
    assert!(shown[3].contains("succeeded: true, revision: Revision(4)"), "{shown:?}");
    assert!(shown[5].contains("revision: Revision(5)"), "{shown:?}");
    assert!(shown[6].contains("Revoked { revision: Revision(6) }"), "{shown:?}");
    assert!(shown[8].contains("Compacted"), "{shown:?}");
    let touched: Vec<_> = batch.touched.iter().map(|(revision, _)| revision.get()).collect();
    assert_eq!(touched, [2, 3, 4, 5, 6]);
    assert_eq!(batch.compacted, Some(Revision::from(5)));
    lab.view().verify().unwrap();
}

#[test]
fn a_hundred_thousand_events_come_in_pages() {
    const EVENTS: u64 = 100_000;
    let mut lab = Lab::with_map(MAP_BYTES);
    let mut number = 0;
    while number < EVENTS {
        let puts = (number..number + 5000).map(|number| {
            let key = if number == 70_000 { "quiet".into() } else { format!("k{}", number % 1000) };
            Command::Txn(TxnOp::single(Op::put(key, number.to_string()).0))
        });
        let commands: Vec<_> = puts.collect();
        lab.batch(commands);
        number += 5000;
    }
    let view = lab.view();
    let (all, steps) = follow(&view, .., 256 * 1024);
    let revisions = all.iter().map(|changes| changes.revision.get());
    assert!(revisions.eq(2..=EVENTS + 1), "every revision, in order, once");
    assert!(steps > 25, "{steps}");

    let (all, steps) = follow(&view, KeyRange::prefix("q"), usize::MAX);
    assert_eq!((all.len(), all[0].revision.get()), (1, 70_002));
    assert_eq!(steps as u64, EVENTS / 4096 + 1, "a step looks at so many rows at most");

    let (all, steps) = follow(&view, "quiet", usize::MAX);
    assert_eq!((all.len(), steps), (1, 1), "one key is looked up, not searched for");
    assert_eq!(lab.page(Op::range(..).count_only()).count, 1001);
}

#[test]
fn a_revision_too_large_for_a_step_comes_in_fragments() {
    const KEYS: u64 = 10_000;
    let mut lab = Lab::with_map(MAP_BYTES);
    for first in (0..KEYS).step_by(1000) {
        let puts = (first..first + 1000)
            .map(|number| Command::Txn(TxnOp::single(Op::put(format!("k{number:05}"), "v").0)));
        let commands: Vec<_> = puts.collect();
        lab.batch(commands);
    }
    let (result, revision) = lab.run(Op::delete(KeyRange::prefix("k"))).unwrap();
    assert!(matches!(result, OpResult::Deleted { count: KEYS, .. }));
    lab.put("after", "1");
    let view = lab.view();
    for (range, found) in [
        (KeyRange::all(), KEYS as usize),
        (KeyRange::prefix("k0777"), 10),
        (KeyRange::key("k09999"), 1),
        (KeyRange::key("none"), 0),
    ] {
        for bytes_max in [1000, 100_000, usize::MAX] {
            let (all, _) = follow(&view, range.clone(), bytes_max);
            let of_delete = all.iter().find(|changes| changes.revision.get() == revision);
            assert_eq!(of_delete.map_or(0, |changes| changes.events.len()), found);
        }
    }

    // A fragment that is cut by rows says so, though it may hold nothing; the last one ends it, also without an event.
    assert_eq!(
        steps(&view, "k0999", revision),
        [(4096, true, vec![0]), (8192, true, vec![0]), (0, false, vec![10])]
    );
    assert_eq!(
        steps(&view, "k0000", revision),
        [(4096, true, vec![10]), (8192, true, vec![0]), (0, false, vec![0])]
    );
}

/// The steps of a watch through one revision: where each ends, whether in a fragment, and its numbers of events.
fn steps(view: &View, prefix: &str, revision: u64) -> Vec<(u32, bool, Vec<usize>)> {
    let mut cursor = cursor(KeyRange::prefix(prefix), revision);
    let mut steps = Vec::new();
    while cursor.next.revision <= Revision::from(revision) {
        let events = view.events(&cursor, view.revision(), usize::MAX).unwrap().unwrap();
        let counts: Vec<_> = events.changes.iter().map(|changes| changes.events.len()).collect();
        steps.push((events.next.sub, events.fragment, counts));
        cursor.next = events.next;
    }
    assert_eq!(cursor.next, Position::start_of(view.revision().next()));
    steps
}

fn pages(lab: &Lab, op: impl Fn(Bytes) -> Op) -> Vec<Page> {
    let mut pages = vec![lab.page(op(Bytes::from_static(b"a")))];
    while let Some(page) = pages.last().filter(|page| page.more) {
        let mut next = page.entries.last().unwrap().key.to_vec();
        next.push(0);
        pages.push(lab.page(op(next.into())));
    }
    pages
}

#[test]
fn a_page_keeps_its_budget_of_bytes_and_the_next_one_goes_on() {
    let mut lab = Lab::with_map(MAP_BYTES);
    for number in 0..9u8 {
        lab.run(Op::put([b'k', number], vec![9 - number; limits::VALUE_BYTES_MAX])).unwrap();
    }
    let all = pages(&lab, |start| Op::range(KeyRange { start, end: None }));
    let sizes = all.iter().map(|page| (page.entries.len(), page.more, page.count));
    assert_eq!(sizes.collect::<Vec<_>>(), [(3, true, 9), (3, true, 6), (3, false, 3)]);
    let keys_only = lab.page(Op::range(..).keys_only());
    assert_eq!((keys_only.entries.len(), keys_only.more), (9, false));
    for descending in [false, true] {
        let Op(OpKind::Range(mut op)) = Op::range(..) else { panic!("a range") };
        (op.sort, op.descending) = (SortBy::Value, descending);
        let page = lab.page(Op(OpKind::Range(op)));
        let keys: Vec<_> = page.entries.iter().map(|kv| kv.key[1]).collect();
        assert_eq!(keys, if descending { [0, 1, 2] } else { [8, 7, 6] });
        assert!(page.more && page.count == 9);
    }
}

/// What was deleted last is history that stays until there is another revision. If there is no room for one, it must not be what
/// takes the room.
#[test]
fn what_goes_only_with_the_next_revision_takes_no_room() {
    let mut lab = Lab::new();
    for number in 0..3000 {
        lab.put(&format!("{number:0200}"), "ten bytes.");
    }
    let full = |lab: &mut Lab, revision: Revision| {
        lab.apply(Command::Compact(revision)).unwrap();
        while !lab.store().compact_step(1000).unwrap() {}
        lab.store().bytes_in_use().unwrap()
    };
    let newest = lab.view().revision();
    let before = full(&mut lab, newest);
    let newest = Revision::from(lab.run(Op::delete(..)).unwrap().1);
    let after = full(&mut lab, newest);
    assert!(after < before / 10, "{after} of {before}");
    lab.put("k", "v");
    let newest = lab.view().revision();
    assert!(full(&mut lab, newest) < before / 10);
}

#[test]
fn compaction_goes_on_where_it_stopped_and_after_a_restart() {
    let mut lab = Lab::new();
    for round in 0..10u8 {
        lab.run(Op::put("large", vec![round; 1000])).unwrap();
        lab.txn([], [Op::put("a", "1"), Op::put("b", "1"), Op::delete("c")], []).unwrap();
    }
    assert!(lab.store().compact_step(10).unwrap(), "nothing to do");
    lab.apply(Command::Compact(Revision::from(20))).unwrap();
    // 27 rows are below revision 20: a large value and two small ones, nine times.
    for done in [false, false, true] {
        assert_eq!(lab.store().compact_step(10).unwrap(), done);
        lab.view().verify().unwrap();
        lab.reopen();
    }
    assert!(lab.store().compact_step(10).unwrap());
    let txn = lab.store().env.read_txn().unwrap();
    let count = |table| lab.store().tables.count(&txn, table).unwrap();
    assert_eq!(count(crate::mvcc::records::Table::Events), 3);
    assert_eq!(count(crate::mvcc::records::Table::History), 0, "no key has changed so often");
    assert_eq!(count(crate::mvcc::records::Table::Values), 2, "the last, and what it replaced");
}

#[test]
fn a_view_stays_as_it_is_while_others_write() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    fn is_shared<T: Send + Sync + Clone>(_: &T) {}
    let mut lab = Lab::new();
    is_shared(lab.store());
    lab.put("a", "1");
    let old = is_send(lab.view());
    lab.put("a", "2");
    lab.apply(Command::Compact(Revision::from(3))).unwrap();
    lab.store().compact_step(100).unwrap();
    let read = std::thread::spawn(move || {
        let read = old.query(&txn([], [Op::get("a")], [])).unwrap().unwrap();
        old.verify().unwrap();
        (format!("{:?}", read.results), old.revision())
    });
    let (text, revision) = read.join().unwrap();
    assert!(text.contains("b\"1\"") && revision == Revision::from(2), "{text}");
}

#[test]
fn a_state_that_is_still_looked_at_does_not_close() {
    let mut lab = Lab::new();
    lab.put("a", "1");
    let view = lab.view();
    let store = lab.store().clone();
    assert!(!store.close(std::time::Duration::from_millis(1)));
    drop(view);
    lab.reopen();
    assert_eq!(lab.view().revision(), Revision::from(2));
    let entry = lab.entry(body(Command::Compact(Revision::from(2))));
    lab.store().apply(&[entry]).unwrap();
    lab.store().force_sync().unwrap();
}

#[test]
fn an_answer_that_is_too_large_is_refused_before_anything_happened() {
    let mut lab = Lab::with_map(MAP_BYTES);
    let value = "v".repeat(limits::VALUE_BYTES_MAX);
    for key in 0..4 {
        lab.put(&format!("k{key}"), &value);
    }
    let revision = lab.view().revision();
    let too_large = |result| {
        let limit = limits::ANSWER_BYTES_MAX as u64;
        assert_eq!(result, Err(Reason::ResultTooLarge { limit }));
    };
    let gets = |count: usize| (0..count).map(|n| Op::get(format!("k{}", n % 4)));
    let reads = |ops: Vec<Op>| lab.view().query(&txn([], ops, [])).unwrap();
    assert_eq!(reads(gets(11).collect()).unwrap().results.len(), 11);
    too_large(reads(gets(12).collect()));
    // Pages are cut at 4 MiB each.
    let pages = |count: usize| (0..count).map(|_| Op::range(KeyRange::prefix("k")));
    assert!(reads(pages(3).collect()).is_ok());
    too_large(reads(pages(4).collect()));
    // At any depth.
    too_large(reads((0..6).map(|_| Op::txn([], gets(2), [])).collect()));

    // What the transaction itself has put counts where it is read.
    let own = |count: usize| {
        [Op::put("mine", value.clone())].into_iter().chain((0..count).map(|_| Op::get("mine")))
    };
    too_large(lab.txn([], own(12), []));
    assert_eq!(lab.view().revision(), revision, "it has changed nothing");
    lab.txn([], own(11), []).unwrap();
    let range = [Op::put("k9", "small")].into_iter().chain(pages(3));
    lab.txn([], range, []).unwrap();
    // Previous values are a part of the answer.
    for key in 0..12 {
        lab.put(&format!("p{key:02}"), &value);
    }
    too_large(lab.txn([], [Op::delete(KeyRange::prefix("p")).prev()], []));
    assert_eq!(lab.run(Op::delete(KeyRange::prefix("p"))).unwrap().0, deleted(12));
}

/// A page that is cut off shows what was behind it, once the transaction has moved what was on it.
#[test]
fn an_answer_is_not_larger_than_it_was_reckoned_because_of_what_the_transaction_moves() {
    let mut lab = Lab::with_map(MAP_BYTES);
    let value = "v".repeat(limits::VALUE_BYTES_MAX - 100);
    lab.put("k0", "small");
    lab.put("k1", &value);
    let revision = lab.view().revision();
    let limit = limits::ANSWER_BYTES_MAX as u64;
    let first = || Op::range(KeyRange::prefix("k")).limit(1);
    let range =
        || RangeOp { limit: 1, sort: SortBy::ModRevision, ..RangeOp::new(KeyRange::prefix("k")) };
    let youngest = || Op(OpKind::Range(range()));
    let shifts: [(Op, &dyn Fn() -> Op); 3] = [
        (Op::delete("k0"), &first),
        (Op::delete("k0".."k1"), &first),
        (Op::put("k0", "again"), &youngest),
    ];
    for (shift, page) in shifts {
        let all = |pages: usize| [shift.clone()].into_iter().chain((0..pages).map(|_| page()));
        let refused = lab.txn([], all(13), []).map(|_| ());
        assert_eq!(refused, Err(Reason::ResultTooLarge { limit }), "{shift:?}");
        let nested = (0..13).map(|_| Op::txn([], [page()], []));
        let refused = lab.txn([], [shift.clone()].into_iter().chain(nested), []).map(|_| ());
        assert_eq!(refused, Err(Reason::ResultTooLarge { limit }), "{shift:?}");
        assert_eq!(lab.view().revision(), revision, "nothing has changed");
    }
    let all = [Op::delete("k0")].into_iter().chain((0..11).map(|_| first()));
    lab.txn([], all, []).expect("it is not reckoned larger than it can be");
}

/// All members go through what a write compares and reads, and nothing else is applied meanwhile.
#[test]
fn a_write_goes_through_so_many_keys_and_not_more() {
    let mut lab = Lab::with_map(MAP_BYTES);
    let limit = super::super::plan::READ_KEYS_MAX;
    for chunk in 0..limit / 100 {
        let puts = (0..100).map(|n| Op::put(format!("k{chunk:05}/{n:02}"), "v"));
        lab.txn([], puts, []).unwrap();
    }
    let all = || KeyRange::prefix("k");
    let exist = || Compare::version(all()).above(0u64);
    let put = || Op::put("put", "v");
    let refused = Err(Reason::TooManyKeysRead { limit });
    lab.txn([exist()], [put()], []).unwrap();
    lab.txn([], [put(), Op::range(all()).count_only()], []).unwrap();
    let revision = lab.view().revision();
    assert_eq!(lab.txn([exist()], [put(), Op::range(all()).limit(1)], []).map(drop), refused);
    assert_eq!(lab.txn([exist(), exist()], [put()], []).map(drop), refused);
    let nested = [put(), Op::txn([exist()], [Op::range(all()).count_only()], [])];
    assert_eq!(lab.txn([], nested, []).map(drop), refused);
    // To look for what was there once is to look at what is there now as well.
    let once = RangeOp { at: Some(Revision::from(2)), shows: Shows::Count, ..RangeOp::new(all()) };
    let once = || Op(OpKind::Range(once.clone()));
    assert_eq!(lab.txn([], [put(), once(), once()], []).map(drop), refused);
    // Whichever branch it is that only reads.
    assert_eq!(lab.txn([exist()], [Op::range(all()).count_only()], [put()]).map(drop), refused);
    assert_eq!(lab.view().revision(), revision, "nothing has changed");
    // Reads keep nobody from anything.
    let read = txn([exist(), exist()], [Op::range(all()).count_only()], []);
    assert!(lab.view().query(&read).unwrap().is_ok());
    // What has gone is looked through as long as history has it, wherever that is kept meanwhile.
    lab.txn([], [put(), once()], []).unwrap();
    assert_eq!(lab.run(Op::delete(all())).unwrap().0, deleted(limit));
    for _ in 0..2 {
        lab.txn([], [put(), once()], []).unwrap();
        assert_eq!(lab.txn([], [put(), once(), once()], []).map(drop), refused);
        lab.reopen();
    }
    // Large values that are compared count for more.
    let value = "v".repeat(limits::VALUE_BYTES_MAX);
    lab.put("large", &value);
    let differs = |count: u64| (0..count).map(|_| Compare::value("large").differs("v"));
    lab.txn(differs(limit / 256), [put()], []).unwrap();
    assert_eq!(lab.txn(differs(limit / 256 + 1), [put()], []).map(drop), refused);
    let sorted = RangeOp { sort: SortBy::Value, ..RangeOp::new(KeyRange::key("large")) };
    let sorted = || {
        Op(OpKind::Range(RangeOp {
            shows: Shows::Both,
            limit: 1,
            keys_only: true,
            ..sorted.clone()
        }))
    };
    let reads = |count: u64| [put()].into_iter().chain((0..count).map(|_| sorted()));
    lab.txn([], reads(limit / 258), []).unwrap();
    assert_eq!(lab.txn([], reads(limit / 257 + 1), []).map(drop), refused);
}

fn deleted(count: u64) -> OpResult {
    OpResult::Deleted { count, prev: Vec::new() }
}

/// All of them go in one revision, and what a lease has is looked at whenever it ends: so there is a most. And of several leases
/// that end at once, some are left for another entry.
#[test]
fn a_lease_that_is_full_takes_no_more_keys_and_leases_end_in_pieces() {
    let mut lab = Lab::with_map(MAP_BYTES);
    let [full, other, last] = [lab.grant(), lab.grant(), lab.grant()];
    let limit = limits::LEASE_KEYS_MAX;
    let chunks: Vec<u64> = (0..limit / 100).collect();
    for some in chunks.chunks(100) {
        let puts = |chunk: &u64| {
            let puts = (0..100).map(|n| Op::put(format!("{chunk:05}/{n:02}"), "v").lease(full));
            Command::Txn(txn([], puts, []))
        };
        let batch = lab.batch(some.iter().map(puts).collect::<Vec<_>>());
        assert!(batch.outcomes.iter().flatten().all(Result::is_ok));
    }
    let is_full = Err(Reason::LeaseFull { lease: full, limit });
    let put = |key: &str, lease| Op::put(key, "w").lease(lease);
    let revision = |done: Result<(OpResult, u64), Reason>| done.map(drop);
    assert_eq!(revision(lab.run(put("more", full))), is_full);
    let nested = TxnOp { then: vec![put("more", full)], ..TxnOp::default() };
    assert_eq!(revision(lab.run(Op(OpKind::Txn(nested)))), is_full);
    // It is the state that says so, not who has counted.
    lab.reopen();
    assert_eq!(revision(lab.run(put("more", full))), is_full);
    lab.run(put("00000/00", full)).expect("it has that one already");
    lab.run(put("00000/00", other)).unwrap();
    lab.run(put("more", full)).expect("another has gone");
    assert_eq!(revision(lab.run(put("00000/00", full))), is_full);
    lab.run(Op::delete("more")).unwrap();
    lab.run(put("00000/00", full)).unwrap();
    lab.run(put("more", last)).unwrap();

    let mut expire = |leases: &[LeaseId]| {
        let command = Command::Expire { deciding_term: TERM, leases: leases.to_vec() };
        let Ok(Applied::Expired { leases, .. }) = lab.apply(command) else { panic!("expired") };
        leases
    };
    assert_eq!(expire(&[other, full, last]), [full]);
    assert_eq!(expire(&[other, full, last]), [other, last]);
    assert_eq!(lab.view().keys(), 0);
}

#[test]
fn more_keys_than_a_transaction_may_delete_are_refused_and_can_go_in_pieces() {
    let mut lab = Lab::with_map(MAP_BYTES);
    let limit = limits::DELETED_KEYS_MAX;
    for chunk in 0..limit / 100 + 1 {
        let puts = (0..100).map(|n| Op::put(format!("{chunk:05}/{n:02}"), "v"));
        lab.txn([], puts, []).unwrap();
    }
    let all = Op::delete(KeyRange::all());
    assert_eq!(lab.run(all).map(|(result, _)| result), Err(Reason::TooManyKeys { limit }));
    assert_eq!(lab.view().keys(), limit + 100);
    let half = |range: KeyRange| Op::delete(range);
    let two = [half(KeyRange::prefix("00")), half(KeyRange::from("01000".."1"))];
    assert_eq!(lab.txn([], two, []).map(|_| ()), Err(Reason::TooManyKeys { limit }));
    assert_eq!(lab.run(Op::delete(KeyRange::prefix("00"))).unwrap().0, deleted(limit));
    assert_eq!(lab.view().keys(), 100);
}
