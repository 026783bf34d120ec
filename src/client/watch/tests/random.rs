//! Many watches at random, of the same and of different keys, quick and slow, while calls and streams break: each sees what
//! it is due, once and in order, whomever it shares a cursor with.

use crate::client::fake::{Fake, Fault, Kind};
use crate::client::{Client, Watch};
use crate::error::Reason;
use crate::types::{Changes, Event, KeyRange, Op, Revision};
use bytes::Bytes;
use std::time::Duration;

const SEEDS: u64 = 300;
const STEPS: usize = 120;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(0x9e37_79b9);
        (self.0 >> 33) % sides
    }
}

/// A watch, and what it has to see.
struct Watched {
    watch: Watch,
    range: KeyRange,
    from: u64,
    puts: bool,
    deletes: bool,
    seen: Vec<(u64, Vec<(Bytes, bool)>)>,
}

impl Watched {
    async fn open(client: &Client, dice: &mut Dice, newest: u64) -> Self {
        let range = match dice.roll(4) {
            0 => KeyRange::prefix("k"),
            number => KeyRange::key(format!("k{number}")),
        };
        let (puts, deletes) = [(true, true), (true, true), (true, false)][dice.roll(3) as usize];
        let from = match dice.roll(3) {
            0 => newest + 1,
            1 => 2 + dice.roll(newest),
            _ => newest + 1 + dice.roll(5),
        };
        let mut watch = client.watch(range.clone()).from(Revision::from(from));
        if !deletes {
            watch = watch.puts_only();
        }
        let watch = watch.await.unwrap();
        Self { watch, range, from, puts, deletes, seen: Vec::new() }
    }

    fn take(&mut self, changes: &Changes) {
        let events = changes.events.iter();
        let events = events.map(|it| (it.key().clone(), matches!(it, Event::Put { .. })));
        self.seen.push((changes.revision.get(), events.collect()));
    }

    /// What of the history it is due.
    fn due(&self, history: &[(u64, Vec<(Bytes, bool)>)]) -> Vec<(u64, Vec<(Bytes, bool)>)> {
        let matches = |(key, is_put): &&(Bytes, bool)| {
            self.range.contains(key) && if *is_put { self.puts } else { self.deletes }
        };
        let later = history.iter().filter(|(revision, _)| *revision >= self.from);
        let due = later.map(|(revision, events)| {
            (*revision, events.iter().filter(matches).cloned().collect::<Vec<_>>())
        });
        due.filter(|(_, events)| !events.is_empty()).collect()
    }
}

/// Writes something, and notes what it comes to.
fn commit(fake: &Fake, dice: &mut Dice, history: &mut Vec<(u64, Vec<(Bytes, bool)>)>) {
    let first = dice.roll(4);
    let mut keys: Vec<u64> = (0..=dice.roll(5)).map(|n| (first + n) % 6).collect();
    keys.sort_unstable();
    let (mut ops, mut events) = (Vec::new(), Vec::new());
    for number in keys {
        let key = Bytes::from(format!("k{number}"));
        let is_there = fake.world().keys.contains_key(&key);
        if is_there && dice.roll(4) == 0 {
            ops.push(Op::delete(&key));
            events.push((key, false));
        } else {
            // Now and then so much that a slot is full with a few.
            let size = if dice.roll(3) == 0 { 30_000 } else { 10 };
            ops.push(Op::put(&key, vec![b'v'; size]));
            events.push((key, true));
        }
    }
    history.push((fake.commit(ops).get(), events));
}

fn disturb(fake: &Fake, dice: &mut Dice) {
    let late = Duration::from_millis(dice.roll(50));
    let fault = match dice.roll(7) {
        0 => Fault::Forget,
        1 => Fault::Repeat,
        2 => Fault::Skip,
        3 => Fault::LoseAnswer,
        4 => Fault::Delay(late),
        5 => Fault::DelayAnswer(late),
        _ => Fault::Refuse(Reason::NoLeader),
    };
    fake.next(Kind::Follow, fault);
}

async fn run(seed: u64) {
    let (mut dice, fake) = (Dice(seed), Fake::new());
    let client = fake.client();
    // The fake cannot send pieces and old revisions at once.
    match dice.roll(3) {
        0 => fake.world().stale = 1 + dice.roll(3),
        _ => fake.world().fragment = 1 + dice.roll(6) as usize,
    }
    let (mut history, mut watches) = (Vec::new(), Vec::<Watched>::new());
    for _ in 0..STEPS {
        match dice.roll(8) {
            0..=2 => commit(&fake, &mut dice, &mut history),
            3 => {
                let newest = fake.world().revision;
                watches.push(Watched::open(&client, &mut dice, newest).await);
            }
            4 if watches.len() > 3 => {
                let gone = dice.roll(watches.len() as u64) as usize;
                drop(watches.swap_remove(gone));
            }
            5 => disturb(&fake, &mut dice),
            _ => {
                // Some take what there is, and others let it lie.
                let wait = Duration::from_millis(dice.roll(30));
                for watched in &mut watches {
                    if dice.roll(3) == 0
                        && let Ok(changes) = tokio::time::timeout(wait, watched.watch.recv()).await
                    {
                        watched.take(&changes.unwrap());
                    }
                }
            }
        }
    }
    // Whatever they wait for, it comes.
    for _ in 0..6 {
        commit(&fake, &mut dice, &mut history);
    }
    for (index, watched) in watches.iter_mut().enumerate() {
        let due = watched.due(&history);
        while watched.seen.len() < due.len() {
            let next = tokio::time::timeout(Duration::from_secs(600), watched.watch.recv()).await;
            let Ok(changes) = next else { break };
            watched.take(&changes.unwrap());
        }
        assert_eq!(watched.seen, due, "seed {seed}, watch {index} from {}", watched.from);
    }
    for watched in &mut watches {
        let more = tokio::time::timeout(Duration::from_secs(90), watched.watch.recv()).await;
        assert!(more.is_err(), "seed {seed}: nothing comes twice");
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_breaks_each_watch_sees_what_it_is_due() {
    for seed in 1..=SEEDS {
        run(seed).await;
    }
}
