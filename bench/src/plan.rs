//! What is measured: the rows, in the order in which a group goes through them, and how long each takes.
//!
//! A *station* is a fresh group and the rows that it goes through. Short stations keep the two sides close in time, so
//! that a machine that becomes slower does so for both.

use crate::group::{Column, Side};
use crate::job::Act;
use crate::report::Figure;
use crate::store::Fresh;
use Column::{Embedded, EmbeddedLeader, Etcd, EtcdLeader, Hiqlite, HiqliteSql, Remote};
use std::collections::BTreeMap;

/// How much is measured.
#[derive(Clone, Debug)]
pub(crate) struct Scale {
    pub(crate) name: &'static str,
    pub(crate) rounds: u32,
    /// Load that is not measured, and load that is, for each row and column.
    pub(crate) warm_ms: u64,
    pub(crate) run_ms: u64,
    /// Keys of the rows about many keys.
    pub(crate) many_keys: u64,
    pub(crate) idle_ms: u64,
    /// Watches that are fanned out to, besides a hundred.
    pub(crate) many_watchers: usize,
    /// Watches that only lie there.
    pub(crate) idle_watchers: &'static [usize],
    pub(crate) leases: usize,
    pub(crate) expiring: usize,
    /// Elections in a round, and failures.
    pub(crate) turns: usize,
    pub(crate) kills: usize,
}

impl Scale {
    pub(crate) const QUICK: Self = Self {
        name: "quick",
        rounds: 4,
        warm_ms: 100,
        run_ms: 350,
        many_keys: 10_000,
        idle_ms: 1000,
        many_watchers: 2_000,
        idle_watchers: &[2_000],
        leases: 1_000,
        expiring: 50,
        turns: 4,
        kills: 1,
    };
    pub(crate) const FULL: Self = Self {
        name: "full",
        rounds: 3,
        warm_ms: 500,
        run_ms: 2000,
        many_keys: 1_000_000,
        idle_ms: 5000,
        many_watchers: 10_000,
        idle_watchers: &[10_000, 100_000],
        leases: 10_000,
        expiring: 200,
        turns: 10,
        kills: 4,
    };
}

/// A fresh group and what it goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Station {
    /// Ten thousand keys, read and written.
    Keys,
    /// Watches, leases, locks and elections.
    Waits,
    /// From an idle group to one with many keys, that fails and comes back.
    Life,
}

impl Station {
    pub(crate) const ALL: [Self; 3] = [Self::Keys, Self::Waits, Self::Life];
}

/// One workload, and in which columns.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) station: Station,
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) figure: Figure,
    pub(crate) columns: Vec<Column>,
    pub(crate) task: Task,
}

/// What is done, and in the end measured.
#[derive(Clone, Debug)]
pub(crate) enum Task {
    Load {
        act: Act,
        callers: usize,
        value_bytes: usize,
    },
    /// Each of so many new keys once. Those of remote callers lie behind those of embedded ones.
    Distinct {
        keys: u64,
        callers: usize,
    },
    WatchLatency,
    FanOut {
        watchers: usize,
        putters: usize,
    },
    IdleWatches {
        watchers: usize,
    },
    KeepAlive {
        leases: usize,
        callers: usize,
    },
    Expiry {
        leases: usize,
        ttl_ms: u64,
    },
    Lock {
        callers: usize,
        names: usize,
    },
    HandOver {
        turns: usize,
        waited_ms: u64,
    },
    IdleProcessor,
    Memory {
        resident: bool,
    },
    Files,
    /// Bytes that the disk was given, by the whole machine, for each byte of key and value and each member.
    Written {
        callers: usize,
    },
    RestartMember,
    RestartGroup,
    /// The leader is killed.
    Failover {
        kills: usize,
    },
    /// The leader is asked to stop.
    StopLeader,
}

impl Task {
    /// About how long it takes, in milliseconds. What is not timed by a window was measured once, generously.
    pub(crate) fn estimate_ms(&self, scale: &Scale, side: Side) -> u64 {
        let window = scale.warm_ms + scale.run_ms + 20;
        let etcd = side == Side::Etcd;
        let at_rate = |count: u64, of_etcd: u64, of_ours: u64| {
            count * 1000 / if etcd { of_etcd } else { of_ours }
        };
        match self {
            Self::Load { .. } => window,
            Self::Written { .. } => 3 * window,
            Self::Distinct { keys, .. } => at_rate(*keys, 5_500, 15_000),
            Self::WatchLatency | Self::Lock { .. } => window + 50,
            Self::FanOut { watchers, .. } => window + at_rate(*watchers as u64, 8_000, 8_000),
            Self::IdleWatches { watchers } => at_rate(*watchers as u64, 8_000, 8_000) + 200,
            Self::KeepAlive { leases, .. } => window + at_rate(*leases as u64, 4_000, 10_000),
            Self::Expiry { ttl_ms, leases } => ttl_ms + 500 + *leases as u64 * 3,
            Self::HandOver { turns, waited_ms } => *turns as u64 * (waited_ms + 20),
            Self::IdleProcessor => scale.idle_ms,
            Self::Memory { .. } | Self::Files => 20,
            Self::RestartMember => 600 + at_rate(scale.many_keys, 150_000, 2_000_000),
            Self::RestartGroup => 1_700 + at_rate(scale.many_keys, 80_000, 2_000_000),
            Self::Failover { kills } => *kills as u64 * 2_200,
            Self::StopLeader => 2_600,
        }
    }
}

/// All rows.
pub(crate) fn plans(scale: &Scale) -> Vec<Plan> {
    let mut plans = keys();
    plans.extend(waits(scale));
    plans.extend(life(scale));
    for plan in &mut plans {
        plan.columns.extend(of_hiqlite(plan));
    }
    plans
}

/// The columns of hiqlite in a row. It has neither watches, leases nor elections. It is left out of the rows in which
/// members fail, because it takes seconds to start whatever its timeouts are, and that would be all they show.
fn of_hiqlite(plan: &Plan) -> &'static [Column] {
    match plan.task {
        Task::Load { act: Act::Put, value_bytes: 256, .. }
        | Task::Load { act: Act::Get(Fresh::Serializable), .. } => &[Hiqlite, HiqliteSql],
        Task::Load { act: Act::Get(Fresh::Linearizable), .. } => &[HiqliteSql],
        // A member is idle in both of its parts.
        Task::Lock { .. } | Task::IdleProcessor => &[Hiqlite],
        Task::Memory { .. } if plan.name == "idle/memory" => &[Hiqlite],
        _ => &[],
    }
}

/// Callers at all members and, of quorate, outside.
const SPREAD: [Column; 3] = [Etcd, Embedded, Remote];
/// The same, and callers at the leader only.
const EVERYWHERE: [Column; 5] = [Etcd, EtcdLeader, Embedded, EmbeddedLeader, Remote];
/// What is no matter of callers.
const GROUP: [Column; 2] = [Etcd, Embedded];

fn keys() -> Vec<Plan> {
    let mut plans = Vec::new();
    let mut load =
        |name: &str, title: &str, act, callers: usize, value_bytes, columns: &[Column]| {
            // One caller calls the leader, so its columns are the same.
            let columns = if callers == 1 { &SPREAD } else { columns };
            plans.push(Plan {
                station: Station::Keys,
                name: format!("{name}/{callers}"),
                title: format!(
                    "{title}, {callers} {}",
                    if callers == 1 { "caller" } else { "callers" }
                ),
                figure: if callers == 1 { Figure::Milliseconds } else { Figure::PerSecond },
                columns: columns.to_vec(),
                task: Task::Load { act, callers, value_bytes },
            });
        };
    for callers in [1, 16, 64, 256, 1024] {
        load("put", "put", Act::Put, callers, 256, &EVERYWHERE);
    }
    load("txn", "transaction (1 comparison, 2 puts)", Act::Txn, 64, 256, &SPREAD);
    for callers in [1, 64, 256] {
        let act = Act::Get(Fresh::Linearizable);
        load("get-linearizable", "linearizable get", act, callers, 256, &EVERYWHERE);
    }
    for callers in [1, 64, 256] {
        let act = Act::Get(Fresh::Serializable);
        load("get-serializable", "serializable get", act, callers, 256, &SPREAD);
    }
    load("range-10k", "range of 10,000 keys", Act::Range, 1, 256, &SPREAD);
    for callers in [1, 16] {
        load("put-64k", "put of 64 KiB", Act::Put, callers, 64 << 10, &SPREAD);
    }
    for callers in [1, 256] {
        plans.push(Plan {
            station: Station::Keys,
            name: format!("disk/{callers}"),
            title: format!("the machine's disk bytes per byte put and member, {callers} at once"),
            figure: Figure::Factor,
            columns: GROUP.to_vec(),
            task: Task::Written { callers },
        });
    }
    plans
}

fn waits(scale: &Scale) -> Vec<Plan> {
    let plan = |name: &str, title: &str, figure, columns: &[Column], task| Plan {
        station: Station::Waits,
        name: name.to_owned(),
        title: title.to_owned(),
        figure,
        columns: columns.to_vec(),
        task,
    };
    let per_second = Figure::PerSecond;
    let in_ms = Figure::Milliseconds;
    // First of all, while no member has memory to give out that something else has left. Only remote watches: those of
    // embedded callers have their other end in the same process.
    let idle = scale.idle_watchers.iter().map(|watchers| {
        let (name, title) = (format!("watch-memory/{watchers}"), "own memory per watch, ");
        let task = Task::IdleWatches { watchers: *watchers };
        plan(&name, &format!("{title}{watchers}"), Figure::Bytes, &[Etcd, Remote], task)
    });
    let mut plans: Vec<Plan> = idle.collect();
    plans.extend([
        plan("watch-latency", "watch: put to event", in_ms, &SPREAD, Task::WatchLatency),
        plan(
            "lease-grant/64",
            "lease grant, 64 callers",
            per_second,
            &SPREAD,
            Task::Load { act: Act::Grant, callers: 64, value_bytes: 0 },
        ),
        plan(
            "keep-alive",
            &format!("keep-alives of {} leases", scale.leases),
            per_second,
            // A follower of etcd asks the leader for each renewal, one after the other.
            &EVERYWHERE,
            Task::KeepAlive { leases: scale.leases, callers: 512 },
        ),
        plan(
            "lease-expiry",
            "lateness of an expiry, TTL 2 s",
            in_ms,
            &GROUP,
            Task::Expiry { leases: scale.expiring, ttl_ms: 2000 },
        ),
    ]);
    for (name, title, callers, names) in [
        ("lock/1", "lock + unlock, 1 caller", 1, 1),
        ("lock/16-names", "lock + unlock, 16 callers on 16 names", 16, 16),
        ("lock/contended", "lock + unlock, 16 callers on one name", 16, 1),
    ] {
        plans.push(plan(name, title, per_second, &SPREAD, Task::Lock { callers, names }));
    }
    for (name, title, waited_ms) in [
        ("election/waiting", "election hand-over, waited 150 ms", 150),
        ("election/fresh", "election hand-over, waited 30 ms", 30),
    ] {
        let task = Task::HandOver { turns: scale.turns, waited_ms };
        plans.push(plan(name, title, in_ms, &SPREAD, task));
    }
    for watchers in [100, scale.many_watchers] {
        plans.push(plan(
            &format!("fan-out/{watchers}"),
            &format!("events to {watchers} watches"),
            per_second,
            &SPREAD,
            Task::FanOut { watchers, putters: 16 },
        ));
    }
    plans
}

fn life(scale: &Scale) -> Vec<Plan> {
    let keys = scale.many_keys;
    let plan = |name: &str, title: &str, figure, columns: &[Column], task| Plan {
        station: Station::Life,
        name: name.to_owned(),
        title: title.to_owned(),
        figure,
        columns: columns.to_vec(),
        task,
    };
    let distinct = |columns: &[Column]| {
        let task = Task::Distinct { keys, callers: 256 };
        let title = format!("put of {keys} new keys, 256 callers");
        plan("put-distinct/256", &title, Figure::PerSecond, columns, task)
    };
    let count = Task::Load { act: Act::Count, callers: 1, value_bytes: 0 };
    let (in_ms, bytes) = (Figure::Milliseconds, Figure::Bytes);
    vec![
        plan("idle/processor", "idle member", Figure::CorePercent, &GROUP, Task::IdleProcessor),
        plan(
            "idle/memory",
            "fresh member, own memory",
            bytes,
            &GROUP,
            Task::Memory { resident: false },
        ),
        distinct(&GROUP),
        plan("count", &format!("count of {keys} keys"), in_ms, &SPREAD, count),
        plan(
            "memory/own",
            &format!("own memory with {keys} keys"),
            bytes,
            &GROUP,
            Task::Memory { resident: false },
        ),
        plan(
            "memory/resident",
            &format!("resident memory with {keys} keys"),
            bytes,
            &GROUP,
            Task::Memory { resident: true },
        ),
        plan("disk/files", &format!("files with {keys} keys"), bytes, &GROUP, Task::Files),
        plan(
            "restart/member",
            &format!("restart of a member, {keys} keys"),
            in_ms,
            &GROUP,
            Task::RestartMember,
        ),
        plan(
            "failover",
            "leader killed, to the next write",
            in_ms,
            &GROUP,
            Task::Failover { kills: scale.kills },
        ),
        plan(
            "stop-leader",
            "leader stopped, longest gap of writes",
            in_ms,
            &GROUP,
            Task::StopLeader,
        ),
        plan(
            "restart/group",
            &format!("restart of all members, {keys} keys"),
            in_ms,
            &GROUP,
            Task::RestartGroup,
        ),
        distinct(&[Remote]),
    ]
}

impl Plan {
    /// What the figures depend on.
    pub(crate) fn parameters(&self, scale: &Scale) -> BTreeMap<String, u64> {
        let mut named: Vec<(&str, u64)> = Vec::new();
        match &self.task {
            Task::Load { act: Act::Count, .. } => named.push(("keys", scale.many_keys)),
            Task::Load { act: Act::Grant, callers, .. } => named.push(("callers", *callers as u64)),
            Task::Load { callers, value_bytes, .. } => {
                named.push(("callers", *callers as u64));
                named.push(("value_bytes", *value_bytes as u64));
                named.push(("keys", KEYS));
            }
            Task::Written { callers } => {
                named.extend([("callers", *callers as u64), ("value_bytes", 256), ("keys", KEYS)]);
            }
            Task::Distinct { keys, callers } => {
                named.extend([("callers", *callers as u64), ("value_bytes", 256), ("keys", *keys)]);
            }
            Task::WatchLatency => named.push(("value_bytes", 256)),
            Task::FanOut { watchers, putters } => {
                let (watchers, putters) = (*watchers as u64, *putters as u64);
                named.extend([("watchers", watchers), ("putters", putters), ("value_bytes", 256)]);
            }
            Task::IdleWatches { watchers } => named.push(("watchers", *watchers as u64)),
            Task::KeepAlive { leases, callers } => {
                named.extend([("leases", *leases as u64), ("callers", *callers as u64)]);
            }
            Task::Expiry { leases, ttl_ms } => {
                named.extend([("leases", *leases as u64), ("ttl_ms", *ttl_ms)]);
            }
            Task::Lock { callers, names } => {
                named.extend([("callers", *callers as u64), ("names", *names as u64)]);
            }
            Task::HandOver { turns, waited_ms } => {
                named.extend([("turns", *turns as u64), ("waited_ms", *waited_ms)]);
            }
            Task::Failover { kills } => named.push(("kills", *kills as u64)),
            Task::Memory { .. } | Task::Files | Task::RestartMember | Task::RestartGroup
                if self.name != "idle/memory" =>
            {
                named.extend([("value_bytes", 256), ("keys", scale.many_keys)]);
            }
            Task::IdleProcessor
            | Task::Memory { .. }
            | Task::Files
            | Task::RestartMember
            | Task::RestartGroup
            | Task::StopLeader => {}
        }
        named.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Keys of the rows that do not say otherwise.
pub(crate) const KEYS: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Whoever keeps reports finds a row again by its name. One that is renamed here is lost to them.
    const NAMES: [&str; 38] = [
        "put/1",
        "put/16",
        "put/64",
        "put/256",
        "put/1024",
        "txn/64",
        "get-linearizable/1",
        "get-linearizable/64",
        "get-linearizable/256",
        "get-serializable/1",
        "get-serializable/64",
        "get-serializable/256",
        "range-10k/1",
        "put-64k/1",
        "put-64k/16",
        "disk/1",
        "disk/256",
        "watch-memory/2000",
        "watch-latency",
        "lease-grant/64",
        "keep-alive",
        "lease-expiry",
        "lock/1",
        "lock/16-names",
        "lock/contended",
        "election/waiting",
        "election/fresh",
        "fan-out/100",
        "fan-out/2000",
        "idle/processor",
        "idle/memory",
        "put-distinct/256",
        "count",
        "memory/own",
        "memory/resident",
        "disk/files",
        "restart/member",
        "failover",
    ];
    const LAST: [&str; 2] = ["stop-leader", "restart/group"];

    /// Each once: a row may be measured in two places of a station.
    fn names(scale: &Scale) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for plan in plans(scale) {
            if !names.contains(&plan.name) {
                names.push(plan.name);
            }
        }
        names
    }

    #[test]
    fn rows_keep_their_names() {
        let expected: Vec<&str> = NAMES.into_iter().chain(LAST).collect();
        assert_eq!(names(&Scale::QUICK), expected);
        let quick: BTreeSet<String> = names(&Scale::QUICK).into_iter().collect();
        let full: BTreeSet<String> = names(&Scale::FULL).into_iter().collect();
        let of_full: Vec<&String> = full.difference(&quick).collect();
        assert_eq!(of_full, ["fan-out/10000", "watch-memory/10000", "watch-memory/100000"]);
        let of_quick: Vec<&String> = quick.difference(&full).collect();
        assert_eq!(of_quick, ["fan-out/2000", "watch-memory/2000"]);
    }

    #[test]
    fn no_row_is_measured_twice_in_a_column() {
        for scale in [Scale::QUICK, Scale::FULL] {
            let mut seen = BTreeSet::new();
            for plan in plans(&scale) {
                for column in &plan.columns {
                    assert!(seen.insert((plan.name.clone(), *column)), "{}", plan.name);
                }
            }
        }
    }

    #[test]
    fn each_row_has_something_to_be_compared_with() {
        for scale in [Scale::QUICK, Scale::FULL] {
            let plans = plans(&scale);
            for name in names(&scale) {
                let of_row = plans.iter().filter(|plan| plan.name == name);
                let columns: Vec<Column> = of_row.flat_map(|plan| plan.columns.clone()).collect();
                let is_of_quorate = columns.contains(&Embedded) || columns.contains(&Remote);
                assert!(columns.contains(&Etcd) && is_of_quorate, "{name}");
                assert_eq!(
                    columns.contains(&EtcdLeader),
                    columns.contains(&EmbeddedLeader),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn parts_of_a_row_say_the_same_of_it() {
        let plans = plans(&Scale::FULL);
        for plan in &plans {
            let same = plans.iter().filter(|other| other.name == plan.name);
            for other in same {
                assert_eq!((&plan.title, plan.figure), (&other.title, other.figure));
                assert_eq!(plan.parameters(&Scale::FULL), other.parameters(&Scale::FULL));
            }
        }
    }
}
