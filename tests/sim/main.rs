//! Whole groups in one thread, under everything that can go wrong, and the checks of what came out.
//!
//! ```text
//! seed ─▶ dice ─▶ setup, nemesis, work, net, disk, randomness     one process for each seed: nothing of another run
//!                      │                                          can have a part in it
//!                      ▼
//!                 group, step by step ──▶ book, truth ──▶ checks ──▶ report
//! ```
//!
//! `make sim SEEDS=200` runs that many; `make sim SEED=17` repeats one and says what happens in it.
//!
//! The library is the one that everybody links. What is taken from under it: its sockets and its threads
//! (`quorate::sim`), and the functions of the C library ([`system`]).

#![allow(clippy::print_stdout, reason = "a simulation says what it does")]
#![allow(clippy::disallowed_methods, reason = "how long many runs take is told by a real clock")]
#![allow(unreachable_pub, reason = "a test has no interface")]

mod book;
mod check;
mod dice;
mod disk;
mod failing;
mod group;
mod history;
mod many;
mod nemesis;
mod net;
mod points;
mod power;
mod restoring;
mod run;
mod said;
mod system;
mod work;

use std::sync::Mutex;

/// As many seeds as `SEEDS` says, from `FROM` on; or the one that is `SEED`, in this process.
#[test]
fn seeds() {
    match number("SEED") {
        Some(seed) => many::one(seed),
        None => many::many(number("FROM").unwrap_or(0), number("SEEDS").unwrap_or(20)),
    }
}

/// As many losses of power as `IMAGES` says.
#[test]
fn power() {
    let images = number("IMAGES").unwrap_or(200);
    match number("RECORDING") {
        Some(seed) => many::one_recording(seed, images),
        None => many::recordings(images),
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|it| it.parse().ok())
}

/// The power goes at any change of the disk that restoring a backup makes.
#[test]
fn restoring() {
    let _disk = DISK.lock();
    restoring::at_every_change();
}

/// The disk of a node fails at any of its changes.
#[test]
fn failing() {
    let _disk = DISK.lock();
    failing::at_every_change();
}

/// A process has one simulated disk.
static DISK: Mutex<()> = Mutex::new(());

/// Each bug that was put back is found, by some check, within so many seeds.
#[test]
fn bugs_are_found() {
    let Some(seeds) = number("BUG_SEEDS") else { return };
    let mut missed = Vec::new();
    let only = std::env::var("BUG").ok();
    let wanted =
        |bug: &&quorate::sim::Bug| only.as_ref().is_none_or(|it| format!("{bug:?}") == *it);
    for bug in quorate::sim::Bug::ALL.iter().filter(wanted) {
        match many::find(*bug, seeds) {
            Some((seed, what)) => {
                let what: String = what.chars().take(160).collect();
                println!("| {bug:?} | {seed} | {what} |");
            }
            None => {
                println!("| {bug:?} | - | not found in {seeds} seeds |");
                missed.push(bug);
            }
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}

/// The same seed twice is the same run, to the last byte that was sent.
#[test]
fn a_seed_is_one_run() {
    if std::env::var_os("SEED").is_some() {
        return;
    }
    for seed in [3, 4] {
        let [one, other] = [many::child(seed), many::child(seed)];
        let trace = one["trace"].as_u64();
        assert!(trace.is_some_and(|trace| trace != 0), "{one}");
        assert_eq!(trace, other["trace"].as_u64(), "seed {seed}");
    }
}
