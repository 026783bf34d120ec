//! Real processes that are killed, and restarted, under a writing load.

use crate::kit::process::{Group, SeenEvent};
use crate::kit::{Dice, until};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const KILLS: usize = 30;
const WRITERS: &str = "write 4";

/// No acknowledged write is lost, no revision is used twice, all members end equal, and every watch has seen every event
/// once and in order.
#[test]
fn thirty_kills_lose_nothing() {
    let mut dice = Dice::new("thirty_kills_lose_nothing");
    let mut group = Group::start(3);
    for member in 0..3 {
        group.tell(member, WRITERS);
        group.watch(member);
    }
    for kill in 0..KILLS {
        group.wait_acks(20 + dice.roll(60), &[]);
        // Now and then everybody at once: what was acknowledged is on the disks of a majority, not in its memory.
        let victims: Vec<usize> = match dice.roll(8) {
            0 => vec![0, 1, 2],
            1 => vec![dice.roll(3), 0, 1]
                .into_iter()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .take(2)
                .collect(),
            _ => vec![dice.roll(3)],
        };
        victims.iter().for_each(|member| group.kill(*member));
        if victims.len() == 1 && dice.roll(2) == 0 {
            // Long enough for a new leader, if it was the leader.
            group.wait_acks(20 + dice.roll(200), &victims);
        }
        victims.iter().for_each(|member| group.spawn(*member));
        for member in victims {
            group.wait_ready(member);
            group.watch(member);
            group.tell(member, WRITERS);
        }
        if kill % 10 == 9 {
            println!("{} kills, {} writes acknowledged", kill + 1, group.acks(&[]));
        }
    }
    let end = group.settle();
    check(&group, end.revision);
}

/// A rolling restart of all members loses no write and fails none.
#[test]
fn a_rolling_restart_fails_no_write() {
    let mut group = Group::start(3);
    for member in 0..3 {
        group.tell(member, WRITERS);
        group.watch(member);
    }
    group.wait_acks(100, &[]);
    for member in 0..3 {
        group.shutdown(member);
        group.wait_acks(100, &[member]);
        group.spawn(member);
        group.wait_ready(member);
        group.watch(member);
        group.tell(member, WRITERS);
        group.wait_acks(100, &[]);
    }
    let end = group.settle();
    check(&group, end.revision);
    let heard = group.heard.lock().unwrap();
    assert_eq!(heard.failures, [], "no write may fail");
    let gaps = heard.acks.windows(2).map(|pair| pair[1].at - pair[0].at);
    let longest = gaps.max().unwrap();
    println!("a rolling restart: {} writes, the longest gap {longest:?}", heard.acks.len());
    // Not a measurement: it only tells a hand-over from an election that had to be waited for.
    assert!(longest < Duration::from_secs(20));
}

/// Holds what the members have said against what the group has.
fn check(group: &Group, head: u64) {
    // Events come a little after the answers.
    until("all watches have seen the newest revision", || {
        let heard = group.heard.lock().unwrap();
        let seen = (0..3).all(|member| {
            heard.events.get(&member).and_then(|events| events.last()).map(|event| event.revision)
                == Some(head)
        });
        seen.then_some(())
    });
    let heard = group.heard.lock().unwrap();
    let history = &heard.events[&0];
    let mut by_revision: BTreeMap<u64, &SeenEvent> = BTreeMap::new();
    for event in history {
        assert!(by_revision.insert(event.revision, event).is_none(), "{event:?} was seen twice");
        assert!(event.text.ends_with("put false"), "each key is written once: {event:?}");
    }
    assert!(
        history.windows(2).all(|pair| pair[0].revision + 1 == pair[1].revision),
        "a gap, or disorder"
    );
    assert_eq!(history.first().map(|event| event.revision), Some(2));
    for member in 1..3 {
        let other = &heard.events[&member];
        let differ = history.iter().zip(other).find(|(ours, theirs)| ours != theirs);
        assert_eq!(differ, None, "member {member} has seen another history than member 0");
        assert_eq!(other.len(), history.len());
    }
    let mut revisions = BTreeSet::new();
    for ack in &heard.acks {
        let event = by_revision.get(&ack.revision);
        assert_eq!(
            event.map(|event| &event.key),
            Some(&ack.key),
            "an acknowledged write is lost: {ack:?}"
        );
        assert!(revisions.insert(ack.revision), "a revision was given twice: {ack:?}");
    }
    let definite: Vec<_> = heard.failures.iter().filter(|(unknown, _)| !unknown).collect();
    println!(
        "{} acknowledged, {} failed with an unknown outcome, {} definitely, of {} revisions",
        heard.acks.len(),
        heard.failures.len() - definite.len(),
        definite.len(),
        history.len()
    );
}
