//! quorate beside its peers: the same work, one run. `bench/README.md` says how to use it, and what the figures mean.
//!
//! ```text
//! compare ─▶ plan (rows) ─▶ group (processes) ─▶ agent (a process of callers) ─▶ work ─▶ Store: quorate, etcd, hiqlite
//!    │                        └─ proc: memory, processor, disk
//!    └─▶ report (JSON) ─▶ table, plots
//! ```

mod agent;
mod calm;
mod compare;
mod etcd;
mod group;
#[cfg(feature = "hiqlite")]
mod hiqlite;
mod job;
mod limit;
mod measure;
mod meter;
mod ours;
mod plan;
mod plots;
mod proc;
mod report;
mod scale;
mod soak;
mod store;
mod table;
mod work;

use clap::{Args, Parser, Subcommand};
use compare::Run;
use group::{Column, Group, Settings, Side};
use job::{Job, Load};
use plan::{Scale, Task};
use report::Report;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use store::Result;

#[derive(Parser)]
#[command(version, about = "quorate beside its peers: the same work, one run")]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every workload on fresh groups of quorate and its peers, in turns, and print the ratios.
    Compare(Compare),
    /// Run one workload on groups that grow: keys, watches, values, members.
    Scale(scale::Options),
    /// Have a group work for a long time, and say what has grown; fails if anything has.
    Soak(soak::Options),
    /// Puts while a million revisions are compacted, and while a follower gets a snapshot; fails if they are not as quick.
    Calm(calm::Options),
    /// Run one workload steadily, for a profiler to look at.
    Profile(Profile),
    /// Measure the physical limits of this machine.
    Limit {
        #[arg(long, default_value = "target/bench")]
        data: PathBuf,
    },
    /// Print the table of a report.
    Show {
        report: PathBuf,
        /// As Markdown.
        #[arg(long)]
        markdown: bool,
    },
    /// Say which ratios of two reports lie outside of each other's spread; fails if any does.
    Agree { one: PathBuf, other: PathBuf },
    /// A process of callers, started by the others.
    #[command(hide = true)]
    Agent { role: String },
}

/// The version of hiqlite, if it was compiled in.
#[cfg(feature = "hiqlite")]
const HIQLITE: Option<&str> = Some(hiqlite::VERSION);
#[cfg(not(feature = "hiqlite"))]
const HIQLITE: Option<&str> = None;

/// What is the same for all groups.
#[derive(Args)]
struct Common {
    /// Where groups put their files: on the disk that is to be measured.
    #[arg(long, default_value = "target/bench")]
    data: PathBuf,
    #[arg(long, default_value_t = 3)]
    members: usize,
    /// Of all sides.
    #[arg(long, default_value_t = 100)]
    heartbeat_ms: u64,
    /// Connections of remote callers to each member.
    #[arg(long, default_value_t = 2)]
    connections: usize,
}

#[derive(Args)]
struct Compare {
    #[command(flatten)]
    common: Common,
    /// Whom to run beside quorate: etcd, hiqlite if it was compiled in, or `none`.
    #[arg(long, value_delimiter = ',', default_value = "etcd")]
    peers: Vec<String>,
    /// Only rows whose names begin with one of these.
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<String>,
    /// Short rounds and few keys: under six minutes. The default.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Long rounds and a million keys: under forty minutes.
    #[arg(long)]
    full: bool,
    /// Other than the scale says.
    #[arg(long)]
    rounds: Option<u32>,
    /// How long each row is measured in each column and round, other than the scale says.
    #[arg(long)]
    run_ms: Option<u64>,
    /// Where the report goes.
    #[arg(long, default_value = "target/bench/report.json")]
    json: PathBuf,
    /// Where plots go.
    #[arg(long, default_value = "target/bench/plots")]
    plots: PathBuf,
}

#[derive(Args)]
struct Profile {
    #[command(flatten)]
    common: Common,
    /// The name of a row of `compare`, such as `put/256`.
    workload: String,
    /// Where the callers are: etcd, etcd-leader, embedded, embedded-leader, remote, hiqlite or hiqlite-sql.
    #[arg(long, default_value = "embedded")]
    column: String,
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

fn main() -> ExitCode {
    let done = match Options::parse().command {
        Command::Compare(options) => in_runtime(compare(options)),
        Command::Scale(options) => in_runtime(scale::run(options)),
        Command::Soak(options) => in_runtime(soak::soak(options)),
        Command::Calm(options) => in_runtime(calm::calm(options)),
        Command::Profile(options) => in_runtime(profile(options)),
        Command::Limit { data } => limits(&data),
        Command::Show { report, markdown } => show(&report, markdown),
        Command::Agree { one, other } => agree(&one, &other),
        Command::Agent { role } => agent::run(&role),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quorate-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn in_runtime(work: impl Future<Output = Result>) -> Result {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            done = work => done,
            // What was started is ended by being dropped.
            _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        }
    })
}

fn settings(common: &Common, etcd: Option<PathBuf>) -> Settings {
    Settings {
        members: common.members,
        heartbeat_ms: common.heartbeat_ms,
        // quorate's follows from its heartbeat: a random time between five and ten of them. etcd draws between its
        // setting and twice that.
        election_ms: common.heartbeat_ms * 5,
        data: common.data.clone(),
        etcd,
        connections: common.connections,
        history: None,
    }
}

async fn compare(options: Compare) -> Result {
    let mut scale = if options.full { Scale::FULL } else { Scale::QUICK };
    scale.rounds = options.rounds.unwrap_or(scale.rounds);
    scale.run_ms = options.run_ms.unwrap_or(scale.run_ms);
    let mut versions = BTreeMap::new();
    versions.insert("quorate".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    let (mut sides, mut absent, mut program) = (vec![Side::Quorate], BTreeMap::new(), None);
    for peer in &options.peers {
        match peer.as_str() {
            "etcd" => match etcd::server::find() {
                Ok(found) => {
                    versions.insert(peer.clone(), etcd::server::version(&found)?);
                    sides.push(Side::Etcd);
                    program = Some(found);
                }
                Err(reason) => {
                    eprintln!("NOTE: etcd is absent, so there are no ratios to it: {reason}");
                    absent.insert(peer.clone(), reason);
                }
            },
            "" | "none" => {}
            "hiqlite" => match HIQLITE {
                Some(version) => {
                    versions.insert(peer.clone(), version.to_owned());
                    sides.extend([Side::Hiqlite, Side::HiqliteSql]);
                }
                None => {
                    let reason = "built without the feature `hiqlite`".to_owned();
                    eprintln!("NOTE: hiqlite is absent: {reason}");
                    absent.insert(peer.clone(), reason);
                }
            },
            other => return Err(format!("no peer is called {other}").into()),
        }
    }
    let run = Run::new(scale, settings(&options.common, program), sides, &options.workloads);
    if run.plans.is_empty() {
        return Err("no workload has such a name".into());
    }
    eprintln!("about {:.0} s", run.estimate().as_secs_f64());
    let (began, date) = (tokio::time::Instant::now(), format!("{:.0}", jiff::Timestamp::now()));
    std::fs::create_dir_all(&options.common.data)?;
    let limits = limit::measure(&options.common.data, !options.full)?;
    let rows = run.carry_out().await?;
    let report = Report {
        schema: report::SCHEMA,
        command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        scale: run.scale.name.to_owned(),
        date,
        seconds: began.elapsed().as_secs_f64(),
        machine: limit::machine(&options.common.data),
        durability: "fsync on a majority before a write is acknowledged".to_owned(),
        members: options.common.members as u32,
        heartbeat_ms: options.common.heartbeat_ms,
        election_ms: run.settings.election_ms,
        rounds: run.scale.rounds,
        versions,
        absent,
        limits,
        rows,
    };
    print!("{}", table::text(&report)?);
    limit::print(&report.limits);
    if let Some(folder) = options.json.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&options.json, serde_json::to_vec_pretty(&report)?)?;
    let plots = plots::draw(&report, &options.plots)?;
    eprintln!("the report is in {}", options.json.display());
    eprintln!("{} plots are in {}", plots.len(), options.plots.display());
    Ok(())
}

async fn profile(options: Profile) -> Result {
    let scale = Scale { run_ms: 2000, ..Scale::QUICK };
    let columns = [
        Column::Etcd,
        Column::EtcdLeader,
        Column::Embedded,
        Column::EmbeddedLeader,
        Column::Remote,
        Column::Hiqlite,
        Column::HiqliteSql,
    ];
    let column = columns.into_iter().find(|column| column.name() == options.column);
    let column = column.ok_or("no column has such a name")?;
    let plans = plan::plans(&scale);
    let plan = plans.iter().find(|plan| plan.name == options.workload);
    let plan = plan.ok_or("no workload has such a name")?;
    let program = match column.side() {
        Side::Etcd => Some(etcd::server::find()?),
        Side::Quorate | Side::Hiqlite | Side::HiqliteSql => None,
    };
    let mut group = Group::start(column.side(), &settings(&options.common, program)).await?;
    measure::prepare(&mut group, plan.station).await?;
    // Once before, so that all processes are there to be named.
    measure::measure(&mut group, column, plan, &scale).await?;
    eprintln!("{}", group.processes());
    if let Task::Load { act, callers, value_bytes } = plan.task {
        let usual = group::load(act, callers);
        let run_ms = options.seconds * 1000;
        let load = Load { value_bytes, warm_ms: 0, run_ms, ..usual };
        let sample = group.work(column, &Job::Load(load)).await?;
        eprintln!("{:.0} per second, {} errors", sample.per_second(), sample.errors);
    } else {
        let until = tokio::time::Instant::now() + Duration::from_secs(options.seconds);
        while tokio::time::Instant::now() < until {
            let outcome = measure::measure(&mut group, column, plan, &scale).await?;
            eprintln!("{:?}: {:.3}", plan.figure, outcome.figure);
        }
    }
    group.end().await
}

fn limits(data: &PathBuf) -> Result {
    std::fs::create_dir_all(data)?;
    limit::print(&limit::measure(data, false)?);
    Ok(())
}

fn read(path: &PathBuf) -> Result<Report> {
    let mut report: Report = serde_json::from_slice(&std::fs::read(path)?)?;
    // They follow from the rounds, by whatever rule this program has now.
    report.rows.iter_mut().for_each(compare::compare_columns);
    Ok(report)
}

fn show(path: &PathBuf, markdown: bool) -> Result {
    let report = read(path)?;
    print!("{}", if markdown { table::markdown(&report)? } else { table::text(&report)? });
    Ok(())
}

fn agree(one: &PathBuf, other: &PathBuf) -> Result {
    let (compared, lines) = table::disagreements(&read(one)?, &read(other)?);
    lines.iter().for_each(|line| println!("{line}"));
    println!("{} of {compared} ratios agree", compared - lines.len());
    if lines.is_empty() { Ok(()) } else { Err("the others do not".into()) }
}
