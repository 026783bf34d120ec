//! One run, from its seed to its verdict.
use crate::book::Book;
use crate::dice::Dice;
use crate::disk;
use crate::group::{Group, Setup};
use crate::net::Weather;
use crate::system;
use std::time::Duration;

pub fn setup(seed: u64) -> Setup {
    let mut dice = Dice::new(seed).fork("setup");
    let millis = Duration::from_millis;
    let members = *dice.pick(&[1, 2, 3, 3, 3, 4, 5, 5, 7]);
    Setup {
        seed,
        members,
        heartbeat: millis(50),
        step: millis(2),
        snapshot_every: dice.within(20, 2000),
        weather: Weather { latency: (millis(1), millis(dice.within(1, 10))), loss: 0, twice: 0, again: millis(200) },
        rates: (0..=members).map(|_| dice.within(0, 40) as i64 - 20).collect(),
        sync_takes: (0..members).map(|_| millis(dice.within(0, 5))).collect(),
        workers: dice.within(1, 3) as usize,
    }
}

pub fn run(seed: u64) {
    let started = std::time::Instant::now();
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let dice = Dice::new(seed);
    system::take_over_randomness(dice.fork("system"));
    system::set_clock(Duration::ZERO);
    disk::take_over(root.path(), dice.fork("disk"));
    let book = Book::default();
    if std::env::var("TRACE").is_ok() {
        book.speak();
    }
    let mut group = Group::new(setup(seed), root.path(), book.clone());
    println!("{:?}", group.setup);
    (0..group.members.len()).for_each(|index| group.start(index));
    group.start_clients();
    for _ in 0..10_000 {
        group.step();
    }
    for member in &group.members {
        println!("{:?} {:?}", member.refused(), member.peek());
    }
    println!("{} operations, {} reads, net {:?}", book.pages().operations.len(), book.pages().reads.len(), group.net.counts());
    let _ = started;
    group.stop();
}
