//! Clients outside of the group, while its members are killed, one after the other.

use super::number;
use crate::kit::process::Group;
use crate::kit::{Dice, until};
use futures::future::join_all;
use quorate::{Client, Consistency, KeyRange, Revision};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const WRITERS: usize = 8;

/// What a writer has done.
#[derive(Default)]
struct Done {
    writes: AtomicU64,
}

/// No error reaches a caller, each write happens once, no read goes back in time, and a watch sees each change once.
/// `OUTSIDE=600` says for how many seconds.
#[test]
fn clients_outside_of_the_group_notice_nothing_but_a_pause() {
    let time = Duration::from_secs(number("OUTSIDE", 8) as u64);
    let mut dice = Dice::new("clients_outside_of_the_group_notice_nothing_but_a_pause");
    let mut group = Group::new(3);
    group.order = "pause";
    group.start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let stop = Arc::new(AtomicBool::new(false));
    let done: Arc<Vec<Done>> = Arc::new((0..WRITERS).map(|_| Done::default()).collect());
    let clients = join_all((0..WRITERS).map(|n| Client::connect([group.addresses[n % 3].clone()])));
    let clients: Vec<Client> = runtime.block_on(clients).into_iter().map(Result::unwrap).collect();
    let mut seen =
        runtime.block_on(clients[0].watch(KeyRange::prefix("w/")).into_future()).unwrap();
    let mut writers = JoinSet::new();
    for (n, client) in clients.iter().enumerate() {
        writers.spawn(write(n, client.clone(), Arc::clone(&done), Arc::clone(&stop)));
    }
    let began = Instant::now();
    let mut kills = 0;
    while kills < 3 || began.elapsed() < time {
        let member = kills % 3;
        all_write(&done, 20 + dice.roll(100) as u64);
        group.kill(member);
        if dice.roll(2) == 0 {
            all_write(&done, 10);
        }
        group.spawn(member);
        group.begin(member);
        kills += 1;
    }
    stop.store(true, Ordering::Relaxed);
    let longest = runtime.block_on(writers.join_all()).into_iter().max().unwrap();
    let counts: Vec<u64> = done.iter().map(|it| it.writes.load(Ordering::Relaxed)).collect();
    let writes: u64 = counts.iter().sum();
    let mut next = [1; WRITERS];
    for _ in 0..writes {
        let changes = runtime.block_on(seen.recv()).unwrap();
        assert_eq!(changes.events.len(), 1, "each write is a revision of its own");
        let quorate::Event::Put { kv, .. } = &changes.events[0] else { panic!("{changes:?}") };
        let writer: usize = std::str::from_utf8(&kv.key[2..]).unwrap().parse().unwrap();
        assert_eq!(kv.version, next[writer], "each once, and in order");
        next[writer] += 1;
    }
    println!(
        "{writes} writes, {kills} kills in {:?}; the longest pause {longest:?}",
        began.elapsed()
    );
}

/// Writes and reads, in a way that would show what is lost, happens twice, or goes back. Yields the longest time between
/// two writes.
async fn write(n: usize, client: Client, done: Arc<Vec<Done>>, stop: Arc<AtomicBool>) -> Duration {
    let key = format!("w/{n}");
    let (mut count, mut newest) = (0, Revision::from(0));
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let (revision, before) = client.put(&key, format!("{count}")).prev().await.unwrap();
        assert_eq!(before.map_or(0, |kv| kv.version), count, "nothing is lost, and nothing twice");
        count += 1;
        longest = longest.max(last.elapsed());
        last = Instant::now();
        done[n].writes.fetch_add(1, Ordering::Relaxed);
        let consistency = match count % 2 {
            0 => Consistency::Serializable,
            _ => Consistency::Linearizable,
        };
        let read = client.get(&key).consistency(consistency).await.unwrap().unwrap();
        assert!(read.mod_revision >= revision && read.mod_revision >= newest);
        newest = read.mod_revision;
    }
    longest
}

/// Waits until each has written so often.
fn all_write(done: &[Done], times: u64) {
    let counts = || done.iter().map(|it| it.writes.load(Ordering::Relaxed));
    let before: Vec<u64> = counts().collect();
    until("all write", || {
        counts().zip(&before).all(|(now, before)| now >= before + times).then_some(())
    });
}
