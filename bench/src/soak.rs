//! `soak`: whether a group stays as it is when it works for a long time.
//!
//! A group of quorate does some of everything, at a steady rate that does not fill the machine: puts and deletes of random
//! keys, keys with leases that end, reads, and a watch of all of it. History is kept for a minute, so that compaction has as
//! much to do as there are writes. Every few seconds it is looked at what a member takes. Nothing of that may grow.
//!
//! ```text
//! writers, paced ─▶ group      every 10 s ─▶ sample: memory, files, threads, descriptors, time of a put
//!                              at the end ─▶ median of the last quarter by that of the second: the growth of each
//! ```
//!
//! The first quarter is left out: tables reach their size, and allocators theirs.

use crate::group::{Group, Settings, Side};
use crate::plots::{ScalePlot, draw_scale};
use crate::store::Result;
use crate::{Common, settings};
use clap::Args;
use futures::TryStreamExt;
use quorate::{Client, KeyRange, Op};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

const WRITERS: u64 = 16;
/// Keys that are put and deleted.
const KEYS: u64 = 20_000;
const VALUE_BYTES: usize = 256;
/// Of a hundred acts of a writer: deletes, keys with a lease, reads. The rest are puts.
const DELETES: u64 = 10;
const LEASES: u64 = 2;
const READS: u64 = 20;
/// How long history is kept.
const HISTORY: Duration = Duration::from_secs(60);
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// By what factor a figure may be larger in the last quarter than in the second.
const GROWTH_MAX: f64 = 1.1;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Acts a second, of all writers.
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Where the samples go, as CSV.
    #[arg(long, default_value = "target/bench/soak.csv")]
    csv: PathBuf,
    /// Where the plot goes.
    #[arg(long, default_value = "target/bench/plots")]
    plots: PathBuf,
}

/// What was done and seen so far.
#[derive(Debug, Default)]
struct Tally {
    acts: AtomicU64,
    failed: AtomicU64,
    events: AtomicU64,
    /// How long the puts since the last sample took, in nanoseconds.
    times: Mutex<Vec<u64>>,
}

/// One look at the group, by name.
type Sample = BTreeMap<&'static str, f64>;

pub(crate) async fn soak(options: Options) -> Result {
    let common = settings(&options.common, None);
    let settings = Settings { history: Some(HISTORY), ..common };
    let group = Group::start(Side::Quorate, &settings).await?;
    let addresses = group.addresses();
    let tally = Arc::new(Tally::default());
    let mut tasks = JoinSet::new();
    let pause = Duration::from_secs_f64(WRITERS as f64 / options.rate.max(1) as f64);
    for writer in 0..WRITERS {
        let address = &addresses[writer as usize % addresses.len()];
        let client = Client::connect([address]).await?;
        tasks.spawn(write(client, writer, pause, Arc::clone(&tally)));
    }
    tasks.spawn(watch(Client::connect([&addresses[0]]).await?, Arc::clone(&tally)));

    let began = Instant::now();
    let mut samples: Vec<(f64, Sample)> = Vec::new();
    let until = Duration::from_secs(options.minutes * 60);
    while began.elapsed() < until {
        sleep(SAMPLE_EVERY).await;
        let sample = look(&group, &tally);
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        eprintln!("{minutes:7.1} min {sample:?}");
        samples.push((minutes, sample));
        // What there is may be wanted if the rest does not come.
        write_csv(&options.csv, &samples)?;
    }
    tasks.shutdown().await;
    let plot = draw_scale(&plot(&options, &samples), &options.plots)?;
    eprintln!("the samples are in {}, and the plot in {}", options.csv.display(), plot.display());
    let (acts, failed) = (tally.acts.load(Ordering::Relaxed), tally.failed.load(Ordering::Relaxed));
    println!("{acts} acts, {failed} failed, {} events", tally.events.load(Ordering::Relaxed));
    let grown = report(&samples);
    group.end().await?;
    match grown.is_empty() {
        true => Ok(()),
        false => Err(format!("it grows: {}", grown.join(", ")).into()),
    }
}

/// Acts at a pace, until it is ended.
async fn write(client: Client, writer: u64, pause: Duration, tally: Arc<Tally>) {
    let mut random = fastrand::Rng::with_seed(writer);
    let mut value = vec![0; VALUE_BYTES];
    let mut pace = interval(pause);
    // A pause of the machine is no reason to make haste after it.
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        random.fill(&mut value);
        let key = format!("k/{:08}", random.u64(..KEYS));
        let done = match random.u64(..100) {
            draw if draw < DELETES => client.delete(key).await.map(drop),
            draw if draw < DELETES + LEASES => leased(&client, &key, &value).await,
            draw if draw < DELETES + LEASES + READS => client.get(key).await.map(drop),
            _ => {
                let began = Instant::now();
                let put = client.put(key, value.clone()).await.map(drop);
                let took = began.elapsed().as_nanos() as u64;
                tally.times.lock().expect("nobody panics with it").push(took);
                put
            }
        };
        tally.acts.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = done {
            tally.failed.fetch_add(1, Ordering::Relaxed);
            eprintln!("{error}");
        }
    }
}

/// A key that goes after a few seconds, with its lease.
async fn leased(client: &Client, key: &str, value: &[u8]) -> quorate::Result<()> {
    let lease = client.lease_grant(Duration::from_secs(5)).await?;
    let put = Op::put(format!("l/{key}"), value.to_vec()).lease(lease.id);
    client.txn().then(put).await.map(drop)
}

async fn watch(client: Client, tally: Arc<Tally>) {
    loop {
        let Ok(mut watch) = client.watch(KeyRange::all()).await else { continue };
        while let Ok(Some(changes)) = watch.try_next().await {
            tally.events.fetch_add(changes.events.len() as u64, Ordering::Relaxed);
        }
    }
}

/// What a member takes on average, and how long puts took since the last time.
fn look(group: &Group, tally: &Tally) -> Sample {
    let (memory, (threads, descriptors)) = (group.memory(), group.threads_and_descriptors());
    let mut times = std::mem::take(&mut *tally.times.lock().expect("nobody panics with it"));
    times.sort_unstable();
    let time = |part: f64| {
        let at = (times.len() as f64 * part) as usize;
        times.get(at).map_or(f64::NAN, |nanos| *nanos as f64 / 1e6)
    };
    const MIB: f64 = (1 << 20) as f64;
    BTreeMap::from([
        ("own memory, MiB", memory.anonymous as f64 / MIB),
        ("resident memory, MiB", memory.resident as f64 / MIB),
        ("files, MiB", group.file_bytes() as f64 / MIB),
        ("threads", threads),
        ("descriptors", descriptors),
        ("put p50, ms", time(0.5)),
        ("put p99, ms", time(0.99)),
    ])
}

fn write_csv(path: &PathBuf, samples: &[(f64, Sample)]) -> Result {
    let mut text = String::from("minutes");
    let names = samples.first().into_iter().flat_map(|(_, sample)| sample.keys());
    names.for_each(|name| _ = write!(text, ";{name}"));
    text.push('\n');
    for (minutes, sample) in samples {
        _ = write!(text, "{minutes:.2}");
        sample.values().for_each(|value| _ = write!(text, ";{value:.3}"));
        text.push('\n');
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    Ok(std::fs::write(path, text)?)
}

fn plot(options: &Options, samples: &[(f64, Sample)]) -> ScalePlot {
    let mut lines: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for (minutes, sample) in samples {
        for (name, value) in sample {
            lines.entry(name).or_default().push((*minutes, *value));
        }
    }
    let Options { minutes, rate, .. } = options;
    ScalePlot {
        title: format!("A group at work for {minutes} minutes"),
        x_label: "minutes".into(),
        y_label: "of a member".into(),
        note: format!("{rate} acts a second; history is kept for {} s", HISTORY.as_secs()),
        lines: lines.into_iter().map(|(name, line)| (name.to_owned(), line)).collect(),
    }
}

/// Prints how much each figure has grown, and returns those that have grown too much. Times tell of the machine, too.
fn report(samples: &[(f64, Sample)]) -> Vec<String> {
    let quarter = samples.len() / 4;
    let mut grown = Vec::new();
    for name in samples.first().into_iter().flat_map(|(_, sample)| sample.keys()) {
        let median = |part: &[(f64, Sample)]| {
            let mut values: Vec<f64> = part.iter().map(|(_, sample)| sample[name]).collect();
            values.sort_unstable_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
        };
        let early = median(&samples[quarter..2 * quarter]);
        let late = median(&samples[3 * quarter..]);
        println!("{name:>24}: {early:10.2} ─▶ {late:10.2}  {:.3}x", late / early);
        let is_time = name.ends_with("ms");
        let growth = late / early;
        // It is no number if nothing was seen.
        if !is_time && (growth.is_nan() || growth > GROWTH_MAX) {
            grown.push(format!("{name} {growth:.2}x"));
        }
    }
    grown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(of: impl Fn(usize) -> f64) -> Vec<(f64, Sample)> {
        (0..40).map(|at| (at as f64, BTreeMap::from([("threads", of(at))]))).collect()
    }

    #[test]
    fn what_grows_after_the_first_quarter_is_named() {
        assert!(report(&samples(|at| if at < 10 { at as f64 } else { 20.0 })).is_empty());
        assert_eq!(report(&samples(|at| 20.0 + at as f64)), ["threads 1.57x"]);
        assert_eq!(report(&[]).len(), 0);
    }
}
