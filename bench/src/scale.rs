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

use crate::etcd::server as etcd;
use crate::group::{Column, Group, Settings, load};
use crate::job::{Act, Job, Load, Sample};
use crate::measure::p50_ms;
use crate::plan::KEYS;
use crate::plots::{ScalePlot, draw_scale, note, short_cpu};
use crate::report::{Machine, SCHEMA};
use crate::store::{Fresh, Result};
use crate::table::digits;
use crate::{Common, limit, settings};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use tokio::time::Instant;

const WINDOWS: usize = 5;
const WARM_MS: u64 = 200;
/// A window in which not every caller was answered twice is made longer, but not longer than this.
const LONGEST_MS: u64 = 8000;
/// Keys of the axis of values: so few that a gigabyte need not be written before the largest can be measured.
const VALUE_KEYS: u64 = 64;
/// A rise by more than this, from one size to the next and all that follow, is a knee.
const KNEE: f64 = 1.5;

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
        let mut curves = axis.curves(&settings);
        for column in &columns {
            let line = measure_line(axis, &sizes, *column, &options, &settings).await?;
            curves.columns.insert(column.name().to_owned(), line);
        }
        print!("{}", table(&curves, &scaled)?);
        let plot = draw_scale(&plot(&curves, &scaled), &options.plots)?;
        eprintln!("drawn in {}", plot.display());
        scaled.axes.push(curves);
    }
    scaled.seconds = began.elapsed().as_secs_f64();
    if let Some(file) = &options.json {
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
        eprintln!("{said}: {}", shown(&name(axis), *size));
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

// ------------------------------------------------------------------------------------------------- for people

/// The lines side by side, each cost with its rise over the size before, and where the knees are.
fn table(curves: &Curves, scaled: &Scaled) -> Result<String> {
    let mut out = String::new();
    writeln!(out, "\n{} by {}: {}", scaled.workload, curves.by, fixed(curves))?;
    let (many, one) = (format!("{} callers, µs each", scaled.callers), "1 caller, p50 µs");
    write!(out, "{:>12}", curves.by)?;
    for column in curves.columns.keys() {
        write!(out, "  | {:>30} {:>7} {one:>18} {:>7}", format!("{column}: {many}"), "", "")?;
    }
    writeln!(out)?;
    let longest = curves.columns.values().max_by_key(|points| points.len());
    for (row, size) in longest.into_iter().flatten().map(|point| point.size).enumerate() {
        write!(out, "{:>12}", shown(&curves.by, size))?;
        for points in curves.columns.values() {
            let rise = |of: fn(&Point) -> f64| {
                let before = row.checked_sub(1).map(|before| of(&points[before]));
                before.map_or_else(String::new, |it| format!("×{}", digits(of(&points[row]) / it)))
            };
            match points.get(row) {
                Some(point) => {
                    let (cost, p50) = (digits(point.cost_us), digits(point.p50_us));
                    let (of_cost, of_p50) = (rise(|it| it.cost_us), rise(|it| it.p50_us));
                    write!(out, "  | {cost:>30} {of_cost:>7} {p50:>18} {of_p50:>7}")?;
                    if point.errors > 0 {
                        write!(out, " [{} failed]", point.errors)?;
                    }
                }
                None => write!(out, "  | {:>30} {:>7} {:>18} {:>7}", "-", "", "-", "")?,
            }
        }
        writeln!(out)?;
    }
    for (column, points) in &curves.columns {
        let knees = [
            (&many, knee(points, |point| point.cost_us)),
            (&one.to_owned(), knee(points, |point| point.p50_us)),
        ];
        for (what, knee) in knees {
            if let Some((size, rise)) = knee {
                let size = shown(&curves.by, size);
                writeln!(out, "{column}, {what}: a knee at {size}, ×{}", digits(rise))?;
            }
        }
    }
    Ok(out)
}

/// The first size that costs more than half as much again as the one before it, and how much more. If a larger size
/// does not, it was a mood of the machine.
fn knee(points: &[Point], of: fn(&Point) -> f64) -> Option<(u64, f64)> {
    (1..points.len()).find_map(|at| {
        let before = of(&points[at - 1]);
        let stays = points[at..].iter().all(|point| of(point) > KNEE * before);
        stays.then(|| (points[at].size, of(&points[at]) / before))
    })
}

fn plot(curves: &Curves, scaled: &Scaled) -> ScalePlot {
    let mut lines = Vec::new();
    let line = |points: &[Point], of: fn(&Point) -> f64| {
        points.iter().map(|point| (point.size as f64, of(point))).collect::<Vec<_>>()
    };
    for (column, points) in &curves.columns {
        lines.push((column.clone(), line(points, |point| point.cost_us)));
        lines.push((format!("{column}, 1 caller"), line(points, |point| point.p50_us)));
    }
    let parts = vec![
        format!("{} callers: wall time each; 1: median", scaled.callers),
        fixed(curves),
        format!("{} × {}", scaled.machine.cores, short_cpu(&scaled.machine.cpu)),
        scaled.date.get(..10).unwrap_or_default().to_owned(),
    ];
    ScalePlot {
        title: format!("{} by {}", scaled.workload, curves.by),
        x_label: if curves.by == "value" { "bytes of a value".into() } else { curves.by.clone() },
        y_label: "time for one operation (µs)".into(),
        note: note(parts),
        lines,
    }
}

/// What stays as it is, in words.
fn fixed(curves: &Curves) -> String {
    let worded = curves.fixed.iter().filter(|(_, value)| **value > 0);
    let worded = worded.map(|(name, value)| match name.as_str() {
        "value_bytes" => format!("values of {value} B"),
        name => format!("{value} {name}"),
    });
    worded.collect::<Vec<_>>().join(", ")
}

/// `1,000,000` or, of bytes, `1 MiB`.
fn shown(by: &str, size: u64) -> String {
    match size {
        bytes if by == "value" && bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes if by == "value" && bytes >= 1 << 10 => format!("{} KiB", bytes >> 10),
        bytes if by == "value" => format!("{bytes} B"),
        count if count >= 1_000_000 => {
            format!("{},{:03},{:03}", count / 1_000_000, count / 1000 % 1000, count % 1000)
        }
        count if count >= 1000 => format!("{},{:03}", count / 1000, count % 1000),
        count => count.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(costs: &[f64]) -> Vec<Point> {
        let point = |(index, cost): (usize, &f64)| Point {
            size: 10_u64.pow(index as u32),
            cost_us: *cost,
            cost_us_windows: vec![*cost],
            p50_us: 100.0,
            p50_us_windows: vec![100.0],
            operations: 1000,
            errors: 0,
            first_error: None,
        };
        costs.iter().enumerate().map(point).collect()
    }

    #[test]
    fn a_knee_is_the_first_steep_rise() {
        let cost = |point: &Point| point.cost_us;
        assert_eq!(knee(&points(&[10.0, 11.0, 14.0, 9.0]), cost), None);
        assert_eq!(knee(&points(&[10.0, 11.0, 33.0, 99.0]), cost), Some((100, 3.0)));
        assert_eq!(knee(&points(&[10.0, 50.0, 11.0]), cost), None, "it did not stay");
        assert_eq!(knee(&[], cost), None);
    }

    #[test]
    fn the_table_names_the_knee_and_goes_on_where_a_line_ends() {
        let columns = [("embedded", &[10.0, 11.0, 33.0][..]), ("etcd", &[20.0])];
        let columns = columns.map(|(name, costs)| (name.to_owned(), points(costs))).into();
        let curves = Curves { by: "keys".into(), fixed: [("members".into(), 3)].into(), columns };
        let scaled = Scaled {
            schema: SCHEMA,
            command: String::new(),
            date: String::new(),
            seconds: 1.0,
            machine: Machine::default(),
            versions: BTreeMap::new(),
            absent: BTreeMap::new(),
            workload: "put".into(),
            callers: 64,
            axes: Vec::new(),
        };
        let table = table(&curves, &scaled).unwrap();
        assert!(table.contains("embedded, 64 callers, µs each: a knee at 100, ×3.00"), "{table}");
        assert!(table.contains("×1.10") && table.contains("3 members"), "{table}");
        assert_eq!(table.matches(" - ").count(), 4, "{table}");
        assert!(!table.contains("etcd, 64"), "{table}");
        assert_eq!(plot(&curves, &scaled).lines.len(), 4);
    }

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

    #[test]
    fn sizes_are_legible() {
        let shown = [
            shown("keys", 10_000_000),
            shown("members", 7),
            shown("value", 1 << 20),
            shown("value", 16),
        ];
        assert_eq!(shown, ["10,000,000", "7", "1 MiB", "16 B"]);
    }
}
