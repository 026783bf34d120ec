//! Many runs, each in a process of its own, as many at once as there are processors.

use crate::points;
use crate::run::{self, Report};
use crate::system;
use quorate::sim::{Bug, Point};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A run that takes longer than this hangs.
const LONGEST: u32 = 300;
/// Before the report of a run, in the output of its process.
const MARK: &str = "report: ";

/// Runs one seed here, and says what came out.
pub fn one(seed: u64) {
    if let Some(processor) = std::env::var("PROCESSOR").ok().and_then(|it| it.parse().ok()) {
        system::stay_on(processor);
    }
    system::end_after(LONGEST);
    let report = run::run(seed);
    println!("{MARK}{}", encode(&report));
    assert!(report.violations.is_empty(), "seed {seed}: {:#?}", report.violations);
}

fn encode(report: &Report) -> Value {
    json!({
        "seed": report.seed,
        "violations": report.violations,
        "trace": report.trace,
        "simulated": report.simulated.as_secs_f64(),
        "summary": report.summary,
        "counts": report.counts,
    })
}

/// Runs one seed in a process, and returns its report, or how the process ended.
pub fn child(seed: u64) -> Value {
    child_with(seed, "", 0)
}

/// The same with bugs put back, on one of the processors.
fn child_with(seed: u64, bugs: &str, processor: usize) -> Value {
    let program = std::env::current_exe().expect("a program knows where it is");
    let ran = Command::new(program)
        .args(["--exact", "seeds", "--nocapture", "--test-threads=1"])
        .env("SEED", seed.to_string())
        .env("BUGS", bugs)
        .envs(Bug::named(bugs).and_then(mix_for).map(|mix| ("MIX", mix)))
        .env("PROCESSOR", processor.to_string())
        .stdin(Stdio::null())
        .output()
        .expect("a process can be started");
    let text = String::from_utf8_lossy(&ran.stdout);
    // The test's own name may stand before it.
    let report = text.lines().find_map(|line| line.split_once(MARK)).map(|(_, report)| report);
    report.and_then(|report| serde_json::from_str(report).ok()).unwrap_or_else(|| {
        let said = String::from_utf8_lossy(&ran.stderr);
        let tail: Vec<&str> = said.lines().rev().take(30).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        json!({ "seed": seed, "violations": [format!("the process ended with {}: {}", ran.status, tail.join("\n"))] })
    })
}

/// What came out of many runs.
#[derive(Default)]
struct Sum {
    simulated: f64,
    counts: BTreeMap<String, u64>,
    failed: Vec<Value>,
}

/// Runs so many seeds, and fails if any of them does.
pub fn many(from: u64, seeds: u64) {
    let started = std::time::Instant::now();
    let next = AtomicU64::new(from);
    let sum = Mutex::new(Sum::default());
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for processor in 0..processors {
            let (next, sum) = (&next, &sum);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + seeds {
                        return;
                    }
                    let report = child_with(seed, "", processor);
                    sum.lock().unwrap().add(report);
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap();
    sum.print(seeds, started.elapsed());
    assert!(sum.failed.is_empty(), "{} of {seeds} seeds failed", sum.failed.len());
}

/// The only faults of runs that look for a bug, where others would be in the way.
fn mix_for(bug: Bug) -> Option<&'static str> {
    match bug {
        Bug::LateFollowIsAnswered => Some("Twice"),
        _ => None,
    }
}

/// Looks for the first seed that finds a bug, and says which check did.
pub fn find(bug: Bug, seeds: u64) -> Option<(u64, String)> {
    let next = AtomicU64::new(1);
    let found = Mutex::new(None::<(u64, String)>);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for processor in 0..processors {
            let (next, found) = (&next, &found);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > seeds || found.lock().unwrap().is_some() {
                        return;
                    }
                    let report = child_with(seed, &format!("{bug:?}"), processor);
                    let first = report["violations"].as_array().and_then(|it| it.first().cloned());
                    if let Some(violation) = first {
                        let text = violation.as_str().unwrap_or_default().to_owned();
                        let mut found = found.lock().unwrap();
                        if found.as_ref().is_none_or(|(first, _)| seed < *first) {
                            *found = Some((seed, text));
                        }
                    }
                }
            });
        }
    });
    found.into_inner().unwrap()
}

impl Sum {
    fn add(&mut self, report: Value) {
        self.simulated += report["simulated"].as_f64().unwrap_or(0.0);
        for (name, count) in report["counts"].as_object().into_iter().flatten() {
            *self.counts.entry(name.clone()).or_default() += count.as_u64().unwrap_or(0);
        }
        if report["violations"].as_array().is_none_or(|violations| !violations.is_empty()) {
            println!(
                "seed {} failed; repeat it with: make sim SEED={}",
                report["seed"], report["seed"]
            );
            for violation in report["violations"].as_array().into_iter().flatten().take(5) {
                println!("    {}", violation.as_str().unwrap_or_default());
            }
            self.failed.push(report);
        }
    }

    fn print(&self, seeds: u64, took: Duration) {
        println!(
            "{seeds} seeds, {} failed, {:.1} hours simulated in {took:.0?}",
            self.failed.len(),
            self.simulated / 3600.0
        );
        for (name, count) in &self.counts {
            println!("    {count:>10} {name}");
        }
        for how in [points::ENDED, points::STALLED] {
            let fired = |point: &&Point| self.counts.contains_key(&format!("{how}: {point:?}"));
            let (fired, never): (Vec<&Point>, Vec<&Point>) = Point::ALL.iter().partition(fired);
            println!("{} of {} points: {how}; never: {never:?}", fired.len(), Point::ALL.len());
        }
    }
}
