//! Exactly once, as the state sees it. That it does what the rules say, whatever comes, is the model's to find.

use super::kit::{Lab, TERM};
use crate::api::{Applied, CLIENT_AGES, Command, Origin, Proposal};
use crate::error::Reason;
use crate::mvcc::{Body, Outcome};
use crate::types::{Op, OpResult, TxnOp, limits};
use std::sync::Arc;

fn register(lab: &mut Lab) -> u64 {
    match lab.apply(Command::Register) {
        Ok(Applied::Registered { client, .. }) => client,
        other => panic!("{other:?}"),
    }
}

fn send(lab: &mut Lab, (client, sequence, lowest): (u64, u64, u64), op: Op) -> Outcome {
    let origin = Origin { client, sequence, lowest_outstanding: lowest, again: false };
    let proposal = Proposal { origin: Some(origin), command: Command::Txn(TxnOp::single(op.0)) };
    let entry = lab.entry(Body::Command(Arc::new(proposal)));
    lab.store().apply(&[entry]).unwrap().outcomes.remove(0).unwrap()
}

fn age(lab: &mut Lab, slices: u64) {
    for _ in 0..slices {
        assert!(lab.apply(Command::AgeClients { deciding_term: TERM }).is_ok());
    }
}

#[test]
fn what_is_sent_again_happens_once_and_is_answered_the_same() {
    let mut lab = Lab::new();
    let client = register(&mut lab);
    let first = send(&mut lab, (client, 1, 1), Op::put("k", "1").prev());
    lab.reopen();
    assert_eq!(send(&mut lab, (client, 1, 1), Op::put("k", "1").prev()), first);
    // By its number, and not by what it says.
    assert_eq!(send(&mut lab, (client, 1, 1), Op::delete("k")), first);
    assert_eq!(lab.get("k").unwrap().version, 1);
    // A refusal is an answer too, whatever has changed since.
    let refused = send(&mut lab, (client, 2, 1), Op::put("new", "").ignore_value());
    assert_eq!(refused, Err(Reason::KeyNotFound));
    lab.put("new", "there");
    assert_eq!(send(&mut lab, (client, 2, 1), Op::put("new", "").ignore_value()), refused);
    // Out of order, and another client with the same numbers.
    let other = register(&mut lab);
    for (who, sequence) in [(client, 4), (other, 1), (client, 3), (other, 4)] {
        send(&mut lab, (who, sequence, 1), Op::put(format!("{who}.{sequence}"), "v")).unwrap();
    }
    // What its sender has the answer to is forgotten, and never done again.
    send(&mut lab, (client, 5, 4), Op::put("k", "5")).unwrap();
    for sequence in 1..4 {
        let late = send(&mut lab, (client, sequence, 1), Op::put("k", "late"));
        assert_eq!(late, Err(Reason::AlreadyAnswered));
    }
    assert_eq!(lab.get("k").unwrap().value, "5");
    lab.view().verify().unwrap();
}

#[test]
fn an_id_that_was_not_given_or_is_forgotten_does_nothing() {
    let mut lab = Lab::new();
    let (idle, busy) = (register(&mut lab), register(&mut lab));
    send(&mut lab, (idle, 1, 1), Op::put("idle", "1")).unwrap();
    for slice in 1..=CLIENT_AGES {
        age(&mut lab, 1);
        send(&mut lab, (busy, slice, slice), Op::put("busy", "1")).unwrap();
    }
    // It has written within all of the time, and that counts as a sign of life.
    send(&mut lab, (idle, 1, 1), Op::put("idle", "2")).unwrap();
    assert_eq!(lab.get("idle").unwrap().version, 1, "it is still known");
    age(&mut lab, CLIENT_AGES);
    lab.reopen();
    age(&mut lab, 1);
    for client in [idle, busy, 99] {
        let refused = send(&mut lab, (client, 50, 50), Op::put("k", "v"));
        assert_eq!(refused, Err(Reason::ClientForgotten));
    }
    assert_eq!(lab.get("k"), None);
    assert_eq!(register(&mut lab), busy + 1, "no id is given twice");
    let before = Command::AgeClients { deciding_term: TERM - 1 };
    assert_eq!(lab.apply(before), Err(Reason::LeaderChanged));
    lab.view().verify().unwrap();
}

#[test]
fn what_is_kept_is_bounded_and_the_lowest_always_has_a_place() {
    let mut lab = Lab::new();
    let client = register(&mut lab);
    let far = limits::OUTSTANDING_MAX as u64;
    for sequence in 2..=far {
        send(&mut lab, (client, sequence, 1), Op::put("k", "v")).unwrap();
    }
    let limit = far;
    let refused = send(&mut lab, (client, far + 1, 1), Op::put("k", "far"));
    assert_eq!(refused, Err(Reason::TooManyOutstanding { limit }));
    send(&mut lab, (client, 1, 1), Op::put("k", "lowest")).unwrap();
    assert_eq!(lab.get("k").unwrap().value, "lowest");
    send(&mut lab, (client, far + 1, 2), Op::put("k", "far")).unwrap();
    // Numbers that nobody can have counted to.
    for (sequence, lowest) in [(0, 0), (5, 0), (5, 6), (u64::MAX, 1), (u64::MAX, u64::MAX)] {
        let refused = send(&mut lab, (client, sequence, lowest), Op::put("k", "wild"));
        assert!(refused.is_err(), "{sequence}, {lowest}");
    }
    assert_eq!(lab.get("k").unwrap().value, "far");
    lab.view().verify().unwrap();
}

/// A large answer is not kept, but that it was given is.
#[test]
fn of_a_large_answer_the_revision_is_kept() {
    let mut lab = Lab::new();
    let client = register(&mut lab);
    lab.run(Op::put("k", vec![7; 20_000])).unwrap();
    let Ok(Applied::Txn(outcome)) = send(&mut lab, (client, 1, 1), Op::put("k", "1").prev()) else {
        panic!("it was carried out")
    };
    assert!(matches!(&outcome.results[..], [OpResult::Put { prev: Some(_) }]));
    let again = send(&mut lab, (client, 1, 1), Op::put("k", "1").prev());
    assert_eq!(again, Err(Reason::AnswerNotKept { revision: outcome.revision }));
    assert_eq!(lab.get("k").unwrap().version, 2);
}

#[test]
fn the_group_remembers_so_many_clients_and_no_more() {
    let mut lab = Lab::new();
    let limit = limits::CLIENTS_MAX;
    let batch = lab.batch(std::iter::repeat_n(Command::Register, limit + 1));
    let refused = Some(Err(Reason::TooManyClients { limit: limit as u64 }));
    assert_eq!(batch.outcomes.last(), Some(&refused));
    assert!(batch.outcomes[..limit].iter().all(|it| matches!(it, Some(Ok(_)))));
    age(&mut lab, CLIENT_AGES + 1);
    assert_eq!(register(&mut lab), limit as u64 + 1);
    lab.view().verify().unwrap();
}
