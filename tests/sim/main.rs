//! Whole groups in one thread, under everything that can go wrong, and the checks of what came out.

#![allow(clippy::print_stdout, reason = "a simulation says what it does")]
#![allow(unreachable_pub, reason = "a test has no interface")]

mod book;
mod check;
mod dice;
mod disk;
mod group;
mod history;
mod nemesis;
mod net;
mod run;
mod system;
mod work;

#[test]
fn one_seed() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let report = run::run(seed);
    println!("{report:#?}");
    assert_eq!(report.violations, [""; 0]);
}
