//! Real processes under load, with real disks and sockets, that are killed, stopped, and restarted.
//!
//! ```text
//!            SIGKILL, SIGSTOP, SIGCONT               lines: what was asked for, when, and what was answered
//! crash ──────────────────────────────▶ 3 members ─────────────────────────────────────────────────────────▶ check
//!            points: here it ends, or stands still              and what each watch has seen
//! ```
//!
//! | file | |
//! |---|---|
//! | `check` | what members were told, held against what has happened |
//! | `outside` | clients of other processes |
//! | `pauses` | members that are stopped for a while |
//! | `points` | every named point of the code, with the feature `sim` |
//!
//! `KILLS=300 PAUSES=50 OUTSIDE=600` says how much of it; `make crash` does.

mod check;
mod outside;
mod pauses;
#[cfg(feature = "sim")]
mod points;

use crate::kit::Dice;
use crate::kit::process::Group;
use check::{Tally, check};
use std::collections::BTreeSet;
use std::time::Duration;

/// A group keeps its history, so that in the end a test of it would be of how fast large snapshots are.
const KILLS_OF_A_GROUP: usize = 30;

/// A number that the environment says, or else what is quick.
fn number(name: &str, quick: usize) -> usize {
    std::env::var(name).map_or(quick, |number| number.parse().unwrap())
}

/// No acknowledged write is lost, no revision is used twice, no read is stale, nobody acts under a lock that another has,
/// all members end equal, and every watch has seen every event once and in order.
#[test]
fn kills_and_pauses_lose_nothing() {
    let (kills, pauses) = (number("KILLS", 30), number("PAUSES", 6));
    let mut dice = Dice::new("kills_and_pauses_lose_nothing");
    let (mut done, mut killed, mut paused) = (0, 0, pauses::Paused::default());
    let mut tally = Tally::default();
    while done < kills {
        let mut group = Group::new(3);
        group.start();
        for _ in 0..(kills - done).min(KILLS_OF_A_GROUP) {
            killed += kill_some(&mut group, &mut dice);
            done += 1;
            while paused.pauses * kills < done * pauses {
                paused.pause(&mut group, &mut dice);
            }
        }
        // Those who have gone do not hold up those who came after them.
        group.wait_act(&[]);
        let end = group.settle();
        tally.add(&check(&group, end.revision));
        println!("{done} kills, of {killed} members; {paused}; {tally}");
    }
}

/// Kills one or more members, and restarts them. Returns how many.
fn kill_some(group: &mut Group, dice: &mut Dice) -> usize {
    group.wait_acks(20 + dice.roll(60), &[]);
    // Now and then everybody at once: what was acknowledged is on the disks of a majority, not in its memory.
    let victims: Vec<usize> = match dice.roll(8) {
        0 => vec![0, 1, 2],
        1 => BTreeSet::from([dice.roll(3), 0, 1]).into_iter().take(2).collect(),
        _ => vec![dice.roll(3)],
    };
    victims.iter().for_each(|member| group.kill(*member));
    if victims.len() == 1 && dice.roll(2) == 0 {
        // Long enough for a new leader, if it was the leader.
        group.wait_acks(20 + dice.roll(200), &victims);
    }
    victims.iter().for_each(|member| group.spawn(*member));
    victims.iter().for_each(|member| group.begin(*member));
    victims.len()
}

/// A rolling restart of all members loses no write and fails none.
#[test]
fn a_rolling_restart_fails_no_write() {
    let mut group = Group::new(3);
    // Writes only, so that a gap between two of them is the group's.
    group.order = "write 4";
    group.start();
    group.wait_acks(100, &[]);
    for member in 0..3 {
        group.shutdown(member);
        group.wait_acks(100, &[member]);
        group.spawn(member);
        group.begin(member);
        group.wait_acks(100, &[]);
    }
    let end = group.settle();
    println!("{}", check(&group, end.revision));
    let heard = group.heard.lock().unwrap();
    assert_eq!(heard.failures, [], "no write may fail");
    let gaps = heard.acks.windows(2).map(|pair| pair[1].at - pair[0].at);
    let longest = gaps.max().unwrap();
    println!("a rolling restart: {} writes, the longest gap {longest:?}", heard.acks.len());
    // Not a measurement: it only tells a hand-over from an election that had to be waited for.
    assert!(longest < Duration::from_secs(20));
}
