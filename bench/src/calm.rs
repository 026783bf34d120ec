//! `calm`: whether puts stay as quick as they are while a group does what it has to do beside them.
//!
//! Writers put at a steady pace that does not fill the machine. Meanwhile a million revisions are compacted, and then a
//! member that was away for a gigabyte of puts gets a snapshot. Each is compared with the quiet before and after it, since
//! the machine does not stay the same.
//!
//! ```text
//! writers, paced   ├─ quiet ─┤ ├─ compaction ─┤ ├─ quiet ─┤      p99 of what is in the middle by that of both ends
//!       many puts ▲
//!                  ├─ quiet ─┤ ├─ snapshot ─┤ ├─ quiet ─┤
//!                 ▲ a member is killed, and many bytes are put
//! ```
//!
//! A put is timed from when it was due: one that has to wait for the one before it is late, too.

use crate::group::{Column, Group, Settings, Side, load};
use crate::job::{Act, Job, Load};
use crate::store::Result;
use crate::{Common, settings};
use clap::Args;
use quorate::{Client, Revision, Status};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

const WRITERS: u64 = 16;
const KEYS: u64 = 10_000;
const VALUE_BYTES: usize = 256;
/// The values that the snapshot is made of.
const LARGE_BYTES: usize = 4096;
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Work is over when so many looks in a row have seen none.
const STILL_LOOKS: u32 = 5;
/// By what factor the p99 of puts may be larger than in quiet.
const FACTOR_MAX: f64 = 1.5;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// Puts a second, of all writers.
    #[arg(long, default_value_t = 500)]
    rate: u64,
    /// How long it is quiet before each, and again after it, in seconds.
    #[arg(long, default_value_t = 30)]
    quiet: u64,
    /// Revisions that are compacted.
    #[arg(long, default_value_t = 1_000_000)]
    revisions: u64,
    /// The size of the snapshot, in MiB of values.
    #[arg(long, default_value_t = 1024)]
    snapshot_mib: u64,
}

/// How long puts took, in milliseconds.
type Times = Arc<Mutex<Vec<f64>>>;

/// How long the puts of a phase took, sorted, and how long the phase was, in seconds.
struct Phase {
    times: Vec<f64>,
    seconds: f64,
}

impl Phase {
    /// Both together.
    fn and(mut self, other: Self) -> Self {
        self.times.extend(other.times);
        self.times.sort_unstable_by(f64::total_cmp);
        self.seconds += other.seconds;
        self
    }
}

pub(crate) async fn calm(options: Options) -> Result {
    let common = settings(&options.common, None);
    // Nothing is to be compacted before it is asked for.
    let settings = Settings { history: Some(Duration::from_secs(24 * 3600)), ..common };
    let mut group = Group::start(Side::Quorate, &settings).await?;
    let leader = group.find_leader().await?;
    let addresses = group.addresses();
    let times = Times::default();

    let client = Client::connect([&addresses[leader]]).await?;
    while client.status().await?.revision.get() < options.revisions {
        let puts = Load { keys: KEYS, run_ms: 5_000, ..load(Act::Put, 256) };
        group.work(Column::Embedded, &Job::Load(puts)).await?;
    }
    let writers = start_writers(&addresses[leader], &options, &times).await?;
    let revision = client.status().await?.revision;
    let what = format!("{revision} revisions compacted");
    let mut missed = Vec::new();
    let verdict = beside_quiet(&what, &options, &times, compact(&client, revision)).await;
    missed.extend(verdict.0);
    verdict.1?;
    drop(writers);

    let away = (leader + 1) % group.size();
    group.kill(away).await?;
    let keys = options.snapshot_mib * (1 << 20) / LARGE_BYTES as u64;
    let (from, to) = (KEYS, KEYS + keys);
    let puts = Job::Distinct { from, to, callers: 64, value_bytes: LARGE_BYTES };
    group.work(Column::EmbeddedLeader, &puts).await?;
    let writers = start_writers(&addresses[leader], &options, &times).await?;
    let what = format!("a follower came back for {} MiB", options.snapshot_mib);
    let verdict = beside_quiet(&what, &options, &times, group.start_again(&[away])).await;
    missed.extend(verdict.0);
    println!("  it served again after {:.1} s", verdict.1?.as_secs_f64());
    drop(writers);
    group.end().await?;
    match missed.is_empty() {
        true => Ok(()),
        false => Err(format!("not calm: {}", missed.join(", ")).into()),
    }
}

/// Writers that put until they are dropped.
async fn start_writers(address: &str, options: &Options, times: &Times) -> Result<JoinSet<()>> {
    let mut writers = JoinSet::new();
    let pause = Duration::from_secs_f64(WRITERS as f64 / options.rate.max(1) as f64);
    for writer in 0..WRITERS {
        let client = Client::connect([address]).await?;
        writers.spawn(write(client, writer, pause, Arc::clone(times)));
    }
    Ok(writers)
}

async fn write(client: Client, writer: u64, pause: Duration, times: Times) {
    let mut random = fastrand::Rng::with_seed(writer);
    let mut value = vec![0; VALUE_BYTES];
    let mut pace = interval(pause);
    // One that is late is late by all that it waited.
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        let due = pace.tick().await;
        random.fill(&mut value);
        let put = client.put(format!("k/{:08}", random.u64(..KEYS)), value.clone()).await;
        let took = if put.is_ok() { due.elapsed().as_secs_f64() * 1e3 } else { f64::INFINITY };
        times.lock().expect("nobody panics with it").push(took);
    }
}

/// What is compacted is gone from the tables when a member uses no fewer bytes any more.
async fn compact(client: &Client, revision: Revision) -> Result<()> {
    client.compact(revision).await?;
    let (mut least, mut still) = (u64::MAX, 0);
    while still < STILL_LOOKS {
        sleep(LOOK_EVERY).await;
        let Status { bytes_in_use, .. } = client.status().await?;
        still = if bytes_in_use < least { 0 } else { still + 1 };
        least = least.min(bytes_in_use);
    }
    Ok(())
}

/// What is wrong with the puts beside some work, if anything is, and what came of the work.
async fn beside_quiet<T>(
    what: &str,
    options: &Options,
    times: &Times,
    work: impl Future<Output = T>,
) -> (Option<String>, T) {
    let quiet = || measure(times, sleep(Duration::from_secs(options.quiet)));
    let (before, ()) = quiet().await;
    let (busy, done) = measure(times, work).await;
    let (after, ()) = quiet().await;
    (report(what, options.rate, &before.and(after), &busy), done)
}

/// How long puts took while something went on; and what came of that.
async fn measure<T>(times: &Times, work: impl Future<Output = T>) -> (Phase, T) {
    times.lock().expect("nobody panics with it").clear();
    let began = Instant::now();
    let done = work.await;
    let mut taken = std::mem::take(&mut *times.lock().expect("nobody panics with it"));
    taken.sort_unstable_by(f64::total_cmp);
    let seconds = began.elapsed().as_secs_f64();
    println!("  {} puts in {seconds:.1} s", taken.len());
    (Phase { times: taken, seconds }, done)
}

fn part(sorted: &[f64], part: f64) -> f64 {
    sorted.get((sorted.len() as f64 * part) as usize).copied().unwrap_or(f64::NAN)
}

/// Prints what the puts of both took, and returns what is wrong with that.
fn report(what: &str, rate: u64, quiet: &Phase, busy: &Phase) -> Option<String> {
    let [quiet_p50, quiet_p99] = [0.5, 0.99].map(|it| part(&quiet.times, it));
    let [busy_p50, busy_p99] = [0.5, 0.99].map(|it| part(&busy.times, it));
    let factor = busy_p99 / quiet_p99;
    println!(
        "{what}: p50 {quiet_p50:.2} ─▶ {busy_p50:.2} ms, p99 {quiet_p99:.2} ─▶ {busy_p99:.2} ms, {factor:.2}x"
    );
    // Those that have not ended when a phase does are not counted: there must not be many.
    let are_there = |phase: &Phase| phase.times.len() as f64 >= 0.9 * rate as f64 * phase.seconds;
    let is_fine =
        quiet_p99.is_finite() && factor <= FACTOR_MAX && are_there(quiet) && are_there(busy);
    (!is_fine).then(|| format!("{what} {factor:.2}x"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_slower_than_quiet_is_named() {
        let phase = |of: f64| Phase {
            times: (0..1000).map(|at| of + at as f64 / 1000.0).collect(),
            seconds: 1.0,
        };
        let found = |quiet: &Phase, busy: &Phase| report("it", 1000, quiet, busy);
        assert_eq!(found(&phase(1.0), &phase(1.5)), None);
        assert_eq!(found(&phase(1.0), &phase(4.0)).as_deref(), Some("it 2.51x"));
        let nothing = Phase { times: Vec::new(), seconds: 1.0 };
        assert!(found(&phase(1.0), &nothing).is_some(), "nothing was put");
        let held_up = Phase { seconds: 2.0, ..phase(1.0) };
        assert!(found(&phase(1.0), &held_up).is_some(), "half of it has not ended");
        let failed = [vec![1.0; 900], vec![f64::INFINITY; 100]].concat();
        let failed = || Phase { times: failed.clone(), seconds: 1.0 };
        assert!(found(&phase(1.0), &failed()).is_some(), "puts failed");
        assert!(found(&failed(), &phase(1.0)).is_some(), "puts failed in quiet");
    }
}
