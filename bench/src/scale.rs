//! `scale`: what one operation costs while one thing grows and all others stay as they are.
//!
//! `compare` says who is faster at one size; this says at which size that stops being true. A good curve is flat; where
//! it is not, there is a *knee*, and the table names it.
//!
//! ```text
//! axis ─▶ sizes ─▶ shape ─▶ Grown: a group that is brought to the shape ─▶ windows of load ─▶ Point
//!                            └─ fills keys, opens watches; other members are another group
//! ```
//!
//! Two things are measured at each size: with many callers the wall time for each operation, which is what work there is
//! to do; and with one caller the median time, which is what there is to wait for. Each is the median of the windows, so
//! that a hiccup makes no knee.
//!
//! A line that cannot go on, because a side refuses a size, ends there, with a word on standard error. The others go on.

mod show;

use crate::etcd::server as etcd;
use crate::group::{Column, Group, Settings, load};
use crate::job::{Act, Job, Load, Sample};
use crate::measure::p50_ms;
use crate::plan::KEYS;
use crate::plots::draw_scale;
use crate::report::{Machine, SCHEMA};
use crate::store::{Fresh, Result};
use crate::{Common, limit, settings};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tokio::time::Instant;

const WINDOWS: usize = 5;
const WARM_MS: u64 = 200;
/// A window in which not every caller was answered twice is made longer, but not longer than this.
const LONGEST_MS: u64 = 8000;
/// Keys of the axis of values: so few that a gigabyte need not be written before the largest can be measured.
const VALUE_KEYS: u64 = 64;

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    workload: Workload,
    /// What grows; all four, one after the other, if not said.
    #[arg(long)]
    by: Option<Axis>,
    /// The largest size. Ten million keys are measured only if they are asked for here.
    #[arg(long, requires = "by")]
    max: Option<u64>,
    /// Whom to measure beside quorate: `etcd`.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    #[arg(long, default_value_t = 64)]
    callers: usize,
    /// How long each window is. There are five with all callers and five with one, at each size.
    #[arg(long, default_value_t = 600)]
    run_ms: u64,
    /// Where the figures go, if anywhere.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where plots go.
    #[arg(long, default_value = "target/bench/plots")]
    plots: PathBuf,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Workload {
    Put,
    GetSerializable,
    GetLinearizable,
    /// One comparison, two puts.
    Txn,
}

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Axis {
    Keys,
    Watchers,
    Value,
    Members,
}

/// What a group is like when it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    members: u64,
    keys: u64,
    value_bytes: u64,
    /// Watches, none of which sees what is written.
    watchers: u64,
}

/// What a run found, as it is written to the JSON file.
#[derive(Debug, Serialize, Deserialize)]
struct Scaled {
    /// Of this layout and that of the reports of `compare`.
    schema: u32,
    command: String,
    date: String,
    seconds: f64,
    machine: Machine,
    versions: BTreeMap<String, String>,
    /// Peers that were asked for and were not there, with the reason.
    absent: BTreeMap<String, String>,
    /// `put`, `get-serializable`, `get-linearizable` or `txn`.
    workload: String,
    /// Who share the load of `cost_us`.
    callers: usize,
    axes: Vec<Curves>,
}

/// One axis.
#[derive(Debug, Serialize, Deserialize)]
struct Curves {
    /// What grows: `keys`, `watchers`, `value` (in bytes) or `members`.
    by: String,
    /// What stays as it is: `members`, `keys`, `value_bytes`, `watchers`, without the one that grows.
    fixed: BTreeMap<String, u64>,
    /// `embedded`, `etcd`: points with rising sizes. A line that is shorter than another could not go on.
    columns: BTreeMap<String, Vec<Point>>,
}

/// One size.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Point {
    size: u64,
    /// Wall time for each operation while all callers call, in microseconds: the median of the windows.
    cost_us: f64,
    cost_us_windows: Vec<f64>,
    /// The median time of an operation if there is one caller, in microseconds: again of the windows.
    p50_us: f64,
    p50_us_windows: Vec<f64>,
    /// All that were measured, and those that failed, which are in no other figure.
    operations: u64,
    errors: u64,
    first_error: Option<String>,
}

pub(crate) async fn run(options: Options) -> Result {
    let began = Instant::now();
    let mut scaled = Scaled {
        schema: SCHEMA,
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        date: format!("{:.0}", jiff::Timestamp::now()),
        seconds: 0.0,
        machine: Machine::default(),
        versions: [("quorate".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
        absent: BTreeMap::new(),
        workload: name(options.workload),
        callers: options.callers,
        axes: Vec::new(),
    };
    let (columns, program) = columns(&options.peers, &mut scaled)?;
    let settings = settings(&options.common, program);
    std::fs::create_dir_all(&settings.data)?;
    scaled.machine = limit::machine(&settings.data);
    let axes = options.by.map_or_else(|| Axis::value_variants().to_vec(), |axis| vec![axis]);
    for axis in axes {
        let sizes = axis.sizes(options.workload, options.max);
        if sizes.is_empty() {
            return Err("no size is so small".into());
        }
        let mut curves = axis.curves(&settings);
        for column in &columns {
            let line = measure_line(axis, &sizes, *column, &options, &settings).await?;
            curves.columns.insert(column.name().to_owned(), line);
        }
        print!("{}", show::table(&curves, &scaled)?);
        match draw_scale(&show::plot(&curves, &scaled), &options.plots) {
            Ok(plot) => eprintln!("drawn in {}", plot.display()),
            // The lines ended before they began. The other axes may fare better.
            Err(error) => eprintln!("{error}"),
        }
        scaled.axes.push(curves);
    }
    scaled.seconds = began.elapsed().as_secs_f64();
    if let Some(file) = &options.json {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(file, serde_json::to_vec_pretty(&scaled)?)?;
    }
    Ok(())
}

/// Who is measured, and etcd's program.
fn columns(peers: &[String], scaled: &mut Scaled) -> Result<(Vec<Column>, Option<PathBuf>)> {
    let (mut columns, mut program) = (vec![Column::Embedded], None);
    for peer in peers {
        match peer.as_str() {
            "" | "none" => {}
            "etcd" => match etcd::find() {
                Ok(found) => {
                    scaled.versions.insert(peer.clone(), etcd::version(&found)?);
                    columns.push(Column::Etcd);
                    program = Some(found);
                }
                Err(reason) => {
                    eprintln!("NOTE: etcd is absent: {reason}");
                    scaled.absent.insert(peer.clone(), reason);
                }
            },
            other => return Err(format!("no peer is called {other}").into()),
        }
    }
    Ok((columns, program))
}

impl Workload {
    fn act(self) -> Act {
        match self {
            Self::Put => Act::Put,
            Self::GetSerializable => Act::Get(Fresh::Serializable),
            Self::GetLinearizable => Act::Get(Fresh::Linearizable),
            Self::Txn => Act::Txn,
        }
    }
}

impl Axis {
    fn sizes(self, workload: Workload, max: Option<u64>) -> Vec<u64> {
        let (sizes, usual_max): (&[u64], u64) = match self {
            Self::Keys => (&[10_000, 100_000, 1_000_000, 10_000_000], 1_000_000),
            Self::Watchers => (&[1, 10, 100, 1_000, 10_000, 100_000], 100_000),
            // Two values of 1 MiB are more than either side takes in one transaction.
            Self::Value if workload == Workload::Txn => (&[16, 256, 4 << 10, 64 << 10], 64 << 10),
            Self::Value => (&[16, 256, 4 << 10, 64 << 10, 1 << 20], 1 << 20),
            Self::Members => (&[1, 3, 5, 7], 7),
        };
        let max = max.unwrap_or(usual_max);
        sizes.iter().copied().filter(|size| *size <= max).collect()
    }

    /// What the group is like at a size.
    fn shape(self, size: u64, settings: &Settings) -> Shape {
        let members = settings.members as u64;
        let usual = Shape { members, keys: KEYS, value_bytes: 256, watchers: 0 };
        match self {
            Self::Keys => Shape { keys: size, ..usual },
            Self::Watchers => Shape { watchers: size, ..usual },
            Self::Value => Shape { keys: VALUE_KEYS, value_bytes: size, ..usual },
            Self::Members => Shape { members: size, ..usual },
        }
    }

    /// No lines yet, and what they have in common.
    fn curves(self, settings: &Settings) -> Curves {
        let shape = self.shape(0, settings);
        let all = [
            (Self::Members, "members", shape.members),
            (Self::Keys, "keys", shape.keys),
            (Self::Value, "value_bytes", shape.value_bytes),
            (Self::Watchers, "watchers", shape.watchers),
        ];
        let fixed = all.into_iter().filter(|(axis, ..)| *axis != self);
        let fixed = fixed.map(|(_, name, value)| (name.to_owned(), value)).collect();
        Curves { by: name(self), fixed, columns: BTreeMap::new() }
    }
}

/// A group, and what it holds by now.
struct Grown {
    group: Group,
    column: Column,
    shape: Shape,
}

impl Grown {
    async fn start(column: Column, members: u64, settings: &Settings) -> Result<Self> {
        let settings = Settings { members: members as usize, ..settings.clone() };
        let group = Group::start(column.side(), &settings).await?;
        let shape = Shape { members, keys: 0, value_bytes: 0, watchers: 0 };
        Ok(Self { group, column, shape })
    }

    /// Brings the group to a shape that is no smaller, with as many members.
    async fn grow(&mut self, to: Shape) -> Result {
        let value_bytes = to.value_bytes as usize;
        let from = if to.value_bytes == self.shape.value_bytes { self.shape.keys } else { 0 };
        if from < to.keys {
            let fill = Job::Fill { from, to: to.keys, value_bytes };
            self.group.work(self.column, &fill).await?;
        }
        let count = (to.watchers - self.shape.watchers) as usize;
        if count > 0 {
            self.group.work(self.column, &Job::OpenWatches { count, apart: true }).await?;
        }
        self.shape = to;
        Ok(())
    }

    async fn measure(&mut self, size: u64, options: &Options) -> Result<Point> {
        let mut point = Point { size, ..Point::default() };
        let (mut many_ms, mut one_ms) = (options.run_ms, options.run_ms);
        for _ in 0..WINDOWS {
            let many = self.window(options, options.callers, &mut many_ms, &mut point).await?;
            point.cost_us_windows.push(1e6 / many.per_second());
            let one = self.window(options, 1, &mut one_ms, &mut point).await?;
            let p50_ms = p50_ms(&one.times).expect("a window has an operation");
            point.p50_us_windows.push(p50_ms * 1e3);
        }
        point.cost_us = median(&point.cost_us_windows);
        point.p50_us = median(&point.p50_us_windows);
        Ok(point)
    }

    /// One window of load in which at least one operation ends. Adds to `point` how many that were, and to `run_ms` if
    /// they were too few.
    async fn window(
        &mut self,
        options: &Options,
        callers: usize,
        run_ms: &mut u64,
        point: &mut Point,
    ) -> Result<Sample> {
        let (keys, value_bytes) = (self.shape.keys, self.shape.value_bytes as usize);
        let usual = load(options.workload.act(), callers);
        loop {
            let load = Load { keys, value_bytes, warm_ms: WARM_MS, run_ms: *run_ms, ..usual };
            let sample = self.group.work(self.column, &Job::Load(load)).await?;
            if sample.operations < 2 * callers as u64 && *run_ms < LONGEST_MS {
                *run_ms = (*run_ms * 4).min(LONGEST_MS);
                continue;
            }
            if sample.operations == 0 {
                let why = sample.first_error.unwrap_or_else(|| "nothing was answered".to_owned());
                return Err(why.into());
            }
            point.operations += sample.operations;
            point.errors += sample.errors;
            point.first_error = point.first_error.take().or_else(|| sample.first_error.clone());
            return Ok(sample);
        }
    }
}

/// The points of one column, as far as it goes.
async fn measure_line(
    axis: Axis,
    sizes: &[u64],
    column: Column,
    options: &Options,
    settings: &Settings,
) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    let mut current: Option<Grown> = None;
    for size in sizes {
        let shape = axis.shape(*size, settings);
        let said = format!("{} by {}, {}", name(options.workload), name(axis), column.name());
        eprintln!("{said}: {}", show::size(&name(axis), *size));
        let point = async {
            let mut grown = match current.take() {
                Some(grown) if grown.shape.members == shape.members => grown,
                other => {
                    if let Some(smaller) = other {
                        smaller.group.end().await?;
                    }
                    Grown::start(column, shape.members, settings).await?
                }
            };
            grown.grow(shape).await?;
            let point = grown.measure(*size, options).await?;
            current = Some(grown);
            Result::Ok(point)
        };
        match point.await {
            Ok(point) => points.push(point),
            Err(error) => {
                eprintln!("{said} ends here: {error}");
                break;
            }
        }
    }
    if let Some(grown) = current {
        grown.group.end().await?;
    }
    Ok(points)
}

fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().expect("no variant is skipped").get_name().to_owned()
}

fn median(values: &[f64]) -> f64 {
    let mut rising = values.to_vec();
    rising.sort_by(f64::total_cmp);
    rising[rising.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_rise_and_end_at_what_was_asked_for() {
        for axis in Axis::value_variants() {
            for workload in Workload::value_variants() {
                assert!(axis.sizes(*workload, None).is_sorted());
                assert!(axis.sizes(*workload, Some(0)).is_empty());
            }
        }
        let sizes = |max| Axis::Keys.sizes(Workload::Put, max);
        assert_eq!(sizes(None), [10_000, 100_000, 1_000_000]);
        assert_eq!(sizes(Some(10_000_000)).last(), Some(&10_000_000));
        assert_eq!(Axis::Value.sizes(Workload::Put, None).last(), Some(&1_048_576));
    }
}
