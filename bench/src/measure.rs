//! One task, on one group, for one column.

use crate::group::{Column, Group, Side, load};
use crate::job::{Act, Job, Load, Place, Sample};
use crate::meter::histogram;
use crate::plan::{Plan, Scale, Task};
use crate::report::Figure;
use crate::store::Result;
use crate::{meter::monotonic_ns, plan};
use std::time::Duration;
use tokio::time::sleep;

/// What a task gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// The figure of the row.
    pub(crate) figure: f64,
    pub(crate) sample: Sample,
}

/// How long writes go on around the end of a leader that is asked to stop.
const STOP_WINDOW_MS: u64 = 2500;

pub(crate) async fn measure(
    group: &mut Group,
    column: Column,
    plan: &Plan,
    scale: &Scale,
) -> Result<Outcome> {
    let (warm_ms, run_ms) = (scale.warm_ms, scale.run_ms);
    match &plan.task {
        Task::Load { act, callers, value_bytes } => {
            let usual = load(*act, *callers);
            let job = Job::Load(Load { value_bytes: *value_bytes, warm_ms, run_ms, ..usual });
            let sample = group.work(column, &job).await?;
            if *act == Act::Count {
                // Counted often, so that the median is one; what it counts was put before.
                return Ok(timed(sample));
            }
            Ok(by(plan.figure, sample))
        }
        Task::Distinct { keys, callers } => {
            let from = if column == Column::Remote { *keys } else { 0 };
            let to = from + keys;
            let job = Job::Distinct { from, to, callers: *callers, value_bytes: 256 };
            Ok(by(plan.figure, group.work(column, &job).await?))
        }
        Task::WatchLatency => Ok(timed(group.work(column, &Job::WatchLatency { run_ms }).await?)),
        Task::FanOut { watchers, putters } => {
            let open = Job::OpenWatches { count: *watchers, apart: false };
            group.work(column, &open).await?;
            let sample = group.work(column, &Job::FanOut { putters: *putters, run_ms }).await;
            group.work(column, &Job::CloseWatches).await?;
            Ok(by(plan.figure, sample?))
        }
        Task::IdleWatches { watchers } => idle_watches(group, column, *watchers).await,
        Task::KeepAlive { leases, callers } => {
            let place = Place::Spread;
            let open = Job::OpenLeases { count: *leases, ttl_ms: 60_000, place };
            group.work(column, &open).await?;
            let job = Job::KeepAlive { callers: *callers, run_ms, place };
            Ok(by(plan.figure, group.work(column, &job).await?))
        }
        Task::Expiry { leases, ttl_ms } => {
            let job = Job::Expiry { leases: *leases, ttl_ms: *ttl_ms };
            Ok(timed(group.work(column, &job).await?))
        }
        Task::Lock { callers, names } => {
            let job = Job::Lock { first: 0, callers: *callers, names: *names, run_ms };
            Ok(by(plan.figure, group.work(column, &job).await?))
        }
        Task::HandOver { turns, waited_ms } => {
            let job = Job::HandOver { turns: *turns, waited_ms: *waited_ms };
            Ok(timed(group.work(column, &job).await?))
        }
        Task::IdleProcessor => Ok(idle_processor(group, scale).await),
        Task::Memory { resident } => {
            let memory = group.memory();
            Ok(plain(if *resident { memory.resident } else { memory.anonymous } as f64))
        }
        Task::Files => Ok(plain(group.file_bytes() as f64)),
        Task::Written { callers } => written(group, column, *callers, scale).await,
        Task::RestartMember => restart(group, false).await,
        Task::RestartGroup => restart(group, true).await,
        Task::Failover { kills } => failover(group, column, *kills).await,
        Task::StopLeader => stop_leader(group).await,
    }
}

/// The figure of a sample.
fn by(figure: Figure, mut sample: Sample) -> Outcome {
    let per_second = sample.per_second();
    sample.extra.insert("per_second".to_owned(), per_second);
    match figure {
        Figure::PerSecond => Outcome { figure: per_second, sample },
        _ => timed(sample),
    }
}

fn timed(sample: Sample) -> Outcome {
    Outcome { figure: p50_ms(&sample.times).unwrap_or(f64::NAN), sample }
}

fn plain(figure: f64) -> Outcome {
    Outcome { figure, sample: Sample::default() }
}

/// The median of recorded times, in milliseconds.
pub(crate) fn p50_ms(times: &[(u64, u64)]) -> Option<f64> {
    let mut all = histogram();
    times.iter().for_each(|(time, count)| all.saturating_record_n(*time, *count));
    (!all.is_empty()).then(|| all.value_at_quantile(0.5) as f64 / 1e6)
}

/// What the watches of a group cost its members, and those who watch, each.
async fn idle_watches(group: &mut Group, column: Column, watchers: usize) -> Result<Outcome> {
    let before = group.memory().anonymous;
    let opened = group.work(column, &Job::OpenWatches { count: watchers, apart: true }).await?;
    sleep(Duration::from_millis(100)).await;
    let after = group.memory().anonymous;
    group.work(column, &Job::CloseWatches).await?;
    let members = group.size() as f64;
    let per_watch = after.saturating_sub(before) as f64 * members / watchers as f64;
    let mut outcome = plain(per_watch);
    outcome.sample.extra.insert("opened_per_second".to_owned(), opened.per_second());
    Ok(outcome)
}

async fn idle_processor(group: &Group, scale: &Scale) -> Outcome {
    let (before, began) = (group.processor_ns(), monotonic_ns());
    sleep(Duration::from_millis(scale.idle_ms)).await;
    let used = group.processor_ns().saturating_sub(before) as f64;
    let passed = (monotonic_ns() - began) as f64;
    plain(100.0 * used / passed / group.size() as f64)
}

async fn written(
    group: &mut Group,
    column: Column,
    callers: usize,
    scale: &Scale,
) -> Result<Outcome> {
    let usual = load(Act::Put, callers);
    // Files that grow are written more often than files that have grown. And as all that is written counts, the load
    // that is measured has no warm-up of its own.
    let warm = Job::Load(Load { warm_ms: 0, run_ms: scale.warm_ms, ..usual });
    group.work(column, &warm).await?;
    let others = disk_bytes_per_second_of_others(group, scale).await?;
    let job = Job::Load(Load { warm_ms: 0, run_ms: scale.run_ms, ..usual });
    let before = group.disk_written_bytes()?;
    let mut sample = group.work(column, &job).await?;
    let written = (group.disk_written_bytes()? - before) as f64;
    let key_bytes = 10;
    let put = sample.operations as f64 * (usual.value_bytes + key_bytes) as f64;
    sample.extra.insert("others_bytes_per_second".to_owned(), others);
    Ok(Outcome { figure: written / put / group.size() as f64, sample })
}

/// What the disk is given while the group has nothing to do. Nothing is subtracted, because what others do comes in
/// bursts; but whoever wonders about a figure can look here first.
async fn disk_bytes_per_second_of_others(group: &Group, scale: &Scale) -> Result<f64> {
    let (before, began) = (group.disk_written_bytes()?, monotonic_ns());
    sleep(Duration::from_millis(scale.run_ms)).await;
    let written = (group.disk_written_bytes()? - before) as f64;
    Ok(written * 1e9 / (monotonic_ns() - began) as f64)
}

async fn restart(group: &mut Group, all: bool) -> Result<Outcome> {
    let leader = group.find_leader().await?;
    let members: Vec<usize> = match all {
        true => (0..group.size()).collect(),
        false => vec![(leader + 1) % group.size()],
    };
    for index in &members {
        group.kill(*index).await?;
    }
    let took = group.start_again(&members).await?;
    group.find_leader().await?;
    Ok(plain(took.as_secs_f64() * 1e3))
}

async fn failover(group: &mut Group, column: Column, kills: usize) -> Result<Outcome> {
    let mut sample = Sample::default();
    for _ in 0..kills {
        let leader = group.find_leader().await?;
        let survivors: Vec<usize> = (0..group.size()).filter(|index| *index != leader).collect();
        let probe = Job::FirstWrite { limit_ms: 30_000 };
        let mut callers = match column.side() {
            Side::Etcd => Some(group.callers(&survivors).await?),
            Side::Quorate | Side::Hiqlite | Side::HiqliteSql => None,
        };
        let killed = monotonic_ns();
        group.kill(leader).await?;
        let caller = match &mut callers {
            Some(agent) => agent,
            None => group.agent(survivors[0])?,
        };
        let first = caller.ask(&probe).await?.at_ns.ok_or("no time was told")?;
        sample.times.push((first.saturating_sub(killed).max(1), 1));
        sample.operations += 1;
        group.start_again(&[leader]).await?;
    }
    Ok(timed(sample))
}

async fn stop_leader(group: &mut Group) -> Result<Outcome> {
    let leader = group.find_leader().await?;
    let survivors: Vec<usize> = (0..group.size()).filter(|index| *index != leader).collect();
    let mut callers = group.callers(&survivors).await?;
    let writes = async { callers.ask(&Job::Gap { run_ms: STOP_WINDOW_MS }).await };
    let stop = async {
        sleep(Duration::from_millis(500)).await;
        group.ask_to_stop(leader).await
    };
    let (sample, stopped) = tokio::join!(writes, stop);
    stopped?;
    let sample = sample?;
    let gap = sample.extra.get("gap_ms").copied().ok_or("no gap was told")?;
    // It has ended by now, in good order or not.
    group.kill(leader).await?;
    group.start_again(&[leader]).await?;
    Ok(Outcome { figure: gap, sample: Sample { times: Vec::new(), ..sample } })
}

/// Fills a fresh group with what a station needs.
pub(crate) async fn prepare(group: &mut Group, station: plan::Station) -> Result {
    if station == plan::Station::Keys {
        let column = match group.side() {
            Side::Etcd => Column::Etcd,
            Side::Quorate => Column::Embedded,
            Side::Hiqlite => Column::Hiqlite,
            Side::HiqliteSql => Column::HiqliteSql,
        };
        let job = Job::Fill { from: 0, to: plan::KEYS, value_bytes: 256 };
        group.work(column, &job).await?;
    }
    Ok(())
}
