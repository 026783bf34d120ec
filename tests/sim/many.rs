//! Many runs, each in a process of its own, as many at once as there are processors.

use crate::points;
use crate::power;
use crate::run::{self, Report};
use crate::system;
use quorate::sim::{Bug, Point};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A run that takes longer than this hangs.
const LONGEST: u32 = 300;
/// Before the report of a run, in the output of its process.
const MARK: &str = "report: ";
/// How many losses of power are tried of one recording.
const IMAGES_OF_ONE: u64 = 200;

/// Runs one seed here, and says what came out.
pub fn one(seed: u64) {
    system::end_after(LONGEST);
    settle_down();
    let report = run::run(seed);
    println!("{MARK}{}", encode(&report));
    assert!(report.violations.is_empty(), "seed {seed}: {:#?}", report.violations);
}

/// Tries losses of power of one recording here, and says what came out.
pub fn one_recording(seed: u64, images: u64) {
    system::end_after(LONGEST * 2);
    let report = power::one(seed, images);
    let (counts, simulated) = (&report.counts, report.simulated.as_secs_f64());
    let violations = &report.violations;
    println!(
        "{MARK}{}",
        json!({ "seed": seed, "violations": violations, "simulated": simulated, "counts": counts })
    );
    assert!(violations.is_empty(), "recording {seed}: {violations:#?}");
}

/// From now on one thread runs at a time.
pub fn settle_down() {
    if let Some(processor) = std::env::var("PROCESSOR").ok().and_then(|it| it.parse().ok()) {
        system::stay_on(processor);
    }
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
    let set = [("SEED", seed.to_string()), (run::FOLDER, std::process::id().to_string())];
    start("seeds", seed, 0, set.into_iter())
}

/// The same with bugs put back, on one of the processors.
fn child_with(seed: u64, bugs: &str, processor: usize) -> Value {
    let mix = Bug::named(bugs).and_then(mix_for).map(|mix| ("MIX", mix.to_owned()));
    let set = [("SEED", seed.to_string()), ("BUGS", bugs.to_owned())];
    start("seeds", seed, processor, set.into_iter().chain(mix))
}

/// A recording with bugs put back.
fn recording_with(seed: u64, bugs: &str, processor: usize) -> Value {
    let images = ("IMAGES", IMAGES_OF_ONE.to_string());
    let set = [("RECORDING", seed.to_string()), images, ("BUGS", bugs.to_owned())];
    start("power", seed, processor, set.into_iter())
}

/// Runs one of the tests in a process, and returns its report, or how the process ended.
fn start(
    test: &str,
    seed: u64,
    processor: usize,
    set: impl Iterator<Item = (&'static str, String)>,
) -> Value {
    let program = std::env::current_exe().expect("a program knows where it is");
    let ran = Command::new(program)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .envs(set)
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

/// Calls `work` with each seed and the number of a processor, on all of them at once, until it says that it is enough.
fn on_all_processors(from: u64, seeds: u64, work: impl Fn(u64, usize) -> bool + Sync) {
    let (next, is_enough) = (AtomicU64::new(from), AtomicBool::new(false));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for processor in 0..processors {
            let (next, is_enough, work) = (&next, &is_enough, &work);
            scope.spawn(move || {
                while !is_enough.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + seeds {
                        return;
                    }
                    is_enough.fetch_or(work(seed, processor), Ordering::Relaxed);
                }
            });
        }
    });
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
    let sum = Mutex::new(Sum::default());
    on_all_processors(from, seeds, |seed, processor| {
        let report = child_with(seed, "", processor);
        sum.lock().unwrap().add(report, &format!("repeat it with: make sim SEED={seed}"));
        false
    });
    let sum = sum.into_inner().unwrap();
    sum.print(&format!("{seeds} seeds"), started.elapsed());
    sum.print_points();
    assert!(sum.failed.is_empty(), "{} of {seeds} seeds failed", sum.failed.len());
}

/// Tries so many losses of power, of as many recordings as that takes, and fails if any of them does.
pub fn recordings(images: u64) {
    let started = std::time::Instant::now();
    let sum = Mutex::new(Sum::default());
    let recordings = images.div_ceil(IMAGES_OF_ONE);
    on_all_processors(1, recordings, |seed, processor| {
        let images = IMAGES_OF_ONE.min(images - (seed - 1) * IMAGES_OF_ONE);
        let set = [("RECORDING", seed.to_string()), ("IMAGES", images.to_string())];
        let report = start("power", seed, processor, set.into_iter());
        // Real threads do not come back to it.
        sum.lock().unwrap().add(report, "look at the disks");
        false
    });
    let sum = sum.into_inner().unwrap();
    sum.print(&format!("{images} losses of power"), started.elapsed());
    assert!(sum.failed.is_empty(), "{} of {recordings} recordings failed", sum.failed.len());
}

/// The only faults of runs that look for a bug, where others would be in the way.
fn mix_for(bug: Bug) -> Option<&'static str> {
    match bug {
        Bug::LateFollowIsAnswered => Some("Twice"),
        Bug::ReportsAnotherHash => Some("Kill"),
        Bug::UntrustedIsOpened | Bug::TrustedTooEarly => Some("Distrust,PowerLoss,Point"),
        _ => None,
    }
}

/// Whether a bug shows when the power goes right after a process was killed, in a moment that simulated faults hardly meet.
fn is_of_power(bug: Bug) -> bool {
    bug == Bug::FoundNamesNotSynced
}

/// Looks for the first seed, of a simulation or a recording, that finds a bug, and says which check did.
pub fn find(bug: Bug, seeds: u64) -> Option<(u64, String)> {
    let found = Mutex::new(None::<(u64, String)>);
    on_all_processors(1, seeds, |seed, processor| {
        let bugs = format!("{bug:?}");
        let report = match is_of_power(bug) {
            true => recording_with(seed, &bugs, processor),
            false => child_with(seed, &bugs, processor),
        };
        let violations = report["violations"].as_array().into_iter().flatten();
        let texts: Vec<_> = violations.take(2).filter_map(Value::as_str).collect();
        if texts.is_empty() {
            return false;
        }
        let text = texts.join(" ");
        let mut found = found.lock().unwrap();
        if found.as_ref().is_none_or(|(first, _)| seed < *first) {
            *found = Some((seed, text));
        }
        true
    });
    found.into_inner().unwrap()
}

impl Sum {
    fn add(&mut self, report: Value, again: &str) {
        self.simulated += report["simulated"].as_f64().unwrap_or(0.0);
        for (name, count) in report["counts"].as_object().into_iter().flatten() {
            *self.counts.entry(name.clone()).or_default() += count.as_u64().unwrap_or(0);
        }
        if report["violations"].as_array().is_none_or(|violations| !violations.is_empty()) {
            println!("seed {} failed; {again}", report["seed"]);
            for violation in report["violations"].as_array().into_iter().flatten().take(5) {
                println!("    {}", violation.as_str().unwrap_or_default());
            }
            self.failed.push(report);
        }
    }

    fn print(&self, what: &str, took: Duration) {
        println!(
            "{what}, {} failed, {:.1} hours simulated in {took:.0?}",
            self.failed.len(),
            self.simulated / 3600.0
        );
        for (name, count) in &self.counts {
            println!("    {count:>10} {name}");
        }
    }

    /// Which points of the code something has happened at.
    fn print_points(&self) {
        for how in [points::ENDED, points::STALLED] {
            let fired = |point: &&Point| self.counts.contains_key(&format!("{how}: {point:?}"));
            let (fired, never): (Vec<&Point>, Vec<&Point>) = Point::ALL.iter().partition(fired);
            println!("{} of {} points: {how}; never: {never:?}", fired.len(), Point::ALL.len());
        }
    }
}
