//! What a run found, as it is written to the JSON file. `bench/README.md` documents it; names here are stable.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of this layout. It grows when a name goes or changes its meaning, not when one is added.
pub(crate) const SCHEMA: u32 = 1;

/// One run of `compare`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) schema: u32,
    /// The command that was run.
    pub(crate) command: String,
    /// `quick` or `full`.
    pub(crate) scale: String,
    /// When it began, in UTC: `2026-11-26T05:31:51Z`.
    pub(crate) date: String,
    pub(crate) seconds: f64,
    pub(crate) machine: Machine,
    /// When a write counts as done, on both sides.
    pub(crate) durability: String,
    pub(crate) members: u32,
    pub(crate) heartbeat_ms: u64,
    pub(crate) election_ms: u64,
    pub(crate) rounds: u32,
    /// The version of each side that took part: `quorate`, `etcd`, `hiqlite`.
    pub(crate) versions: BTreeMap<String, String>,
    /// Peers that were asked for and were not there, with the reason.
    pub(crate) absent: BTreeMap<String, String>,
    pub(crate) limits: Limits,
    pub(crate) rows: Vec<Row>,
}

/// Where it ran.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    /// Of the folder that the groups wrote to.
    pub(crate) file_system: String,
}

/// The physical limits of the machine, measured in the same run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// One 4 KiB write in place and `fdatasync`, in microseconds.
    pub(crate) fdatasync_p50_us: f64,
    pub(crate) fdatasync_p99_us: f64,
    /// 256 records of 300 bytes appended, and one `fdatasync`, as records per second.
    pub(crate) batched_records_per_second: f64,
    /// 64 bytes there and back over TCP on loopback, in microseconds.
    pub(crate) loopback_p50_us: f64,
    /// Copying 64 MiB in memory, in bytes per second.
    pub(crate) copy_bytes_per_second: f64,
}

/// One workload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Stable: `put/256`.
    pub(crate) name: String,
    /// For people: `put, 256 callers`.
    pub(crate) title: String,
    /// Which figure is compared, and its unit.
    pub(crate) figure: Figure,
    /// Whatever else the figures depend on: `value_bytes`, `keys`, `callers`, `watchers` …
    pub(crate) parameters: BTreeMap<String, u64>,
    /// By column: `etcd`, `etcd-leader`, `embedded`, `embedded-leader`, `remote`, `hiqlite`, `hiqlite-sql`.
    pub(crate) columns: BTreeMap<String, Column>,
    /// By column of quorate, to the column of etcd with callers in the same places.
    pub(crate) ratios: BTreeMap<String, Ratios>,
}

/// The figure that a row compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Figure {
    /// Operations per second. More is better.
    PerSecond,
    /// The median time of one operation, in milliseconds. Less is better.
    Milliseconds,
    /// Bytes. Less is better.
    Bytes,
    /// Share of one core, in percent. Less is better.
    CorePercent,
    /// A plain factor, such as bytes written per byte. Less is better.
    Factor,
}

/// What one side did in all rounds of a row.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Column {
    /// The figure of the row, one for each round, in order; absent where the round failed.
    pub(crate) rounds: Vec<Option<f64>>,
    /// Their median.
    pub(crate) value: f64,
    /// Operations that were measured, over all rounds. 0 if the row does not count operations.
    pub(crate) operations: u64,
    /// Operations that failed. They are in no other figure.
    pub(crate) errors: u64,
    /// The time of one operation over all rounds, in milliseconds. Absent if the row does not time operations.
    pub(crate) latency: Option<Latency>,
    /// Why the first of them did.
    pub(crate) first_error: Option<String>,
    /// The median time of each round, in milliseconds, for the ratio of latencies.
    pub(crate) p50_rounds: Vec<Option<f64>>,
    /// Further figures: bytes of memory, of disk, seconds of processor …
    pub(crate) extra: BTreeMap<String, f64>,
}

/// A distribution of times, in milliseconds. A percentile that fewer than ten operations lie above is absent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: Option<f64>,
    pub(crate) p90: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) p999: Option<f64>,
    pub(crate) max: f64,
    /// Points of the distribution for drawing: quantile and milliseconds, rising.
    pub(crate) curve: Vec<(f64, f64)>,
}

/// quorate's figure divided by etcd's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ratios {
    /// The column that it was divided by.
    pub(crate) beside: String,
    /// Of the row's figure.
    pub(crate) figure: Ratio,
    /// Of the median times, where both have some and the row's figure is another.
    pub(crate) p50: Option<Ratio>,
}

/// A ratio, measured once in each round.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Ratio {
    /// The geometric mean of the rounds.
    pub(crate) mean: f64,
    /// The spread: where the mean of many such runs lies with 99 % confidence, by Student's t over the rounds.
    pub(crate) low: f64,
    pub(crate) high: f64,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    fn column(value: f64) -> Column {
        Column {
            rounds: vec![Some(value), None],
            value,
            operations: 700,
            errors: 3,
            latency: Some(Latency {
                p50: Some(0.5),
                p90: Some(0.9),
                p99: Some(1.5),
                p999: None,
                max: 2.5,
                curve: vec![(0.0, 0.25), (0.5, 0.5)],
            }),
            first_error: Some("too busy".into()),
            p50_rounds: vec![Some(0.5), None],
            extra: [("per_second".to_owned(), value)].into(),
        }
    }

    /// A row with something in each field.
    pub(crate) fn row() -> Row {
        let ratio = Ratio { mean: 2.0, low: 1.5, high: 2.5 };
        let ratios = Ratios { beside: "etcd".into(), figure: ratio, p50: Some(ratio) };
        let own = Column { rounds: vec![Some(2000.0), Some(2000.0)], errors: 0, ..column(2000.0) };
        Row {
            name: "put/16".into(),
            title: "put, 16 callers".into(),
            figure: Figure::PerSecond,
            parameters: [("callers".to_owned(), 16)].into(),
            columns: [("etcd".to_owned(), column(1000.0)), ("embedded".to_owned(), own)].into(),
            ratios: [("embedded".to_owned(), ratios)].into(),
        }
    }

    pub(crate) fn report() -> Report {
        Report {
            schema: SCHEMA,
            command: "compare".into(),
            scale: "quick".into(),
            date: "2026-11-26T05:31:51Z".into(),
            seconds: 60.0,
            machine: Machine {
                cpu: "EPYC".into(),
                cores: 2,
                memory_bytes: 1 << 30,
                kernel: "6.18".into(),
                file_system: "ext4".into(),
            },
            durability: "fsync".into(),
            members: 3,
            heartbeat_ms: 100,
            election_ms: 500,
            rounds: 2,
            versions: [("etcd".to_owned(), "3.5.1".to_owned())].into(),
            absent: [("hiqlite".to_owned(), "not built".to_owned())].into(),
            limits: Limits {
                fdatasync_p50_us: 200.0,
                fdatasync_p99_us: 400.0,
                batched_records_per_second: 50_000.0,
                loopback_p50_us: 13.5,
                copy_bytes_per_second: 8e9,
            },
            rows: vec![row()],
        }
    }

    /// The names are promised to whoever reads the files; see SCHEMA before changing one here.
    #[test]
    fn a_report_is_written_as_it_is_documented() {
        let ratio = json!({ "mean": 2.0, "low": 1.5, "high": 2.5 });
        let cell = |rounds: serde_json::Value, value: f64, errors: u64| {
            json!({
                "rounds": rounds, "value": value, "operations": 700, "errors": errors,
                "latency": {
                    "p50": 0.5, "p90": 0.9, "p99": 1.5, "p999": null, "max": 2.5,
                    "curve": [[0.0, 0.25], [0.5, 0.5]],
                },
                "first_error": "too busy", "p50_rounds": [0.5, null],
                "extra": { "per_second": value },
            })
        };
        let expected = json!({
            "schema": 1, "command": "compare", "scale": "quick", "date": "2026-11-26T05:31:51Z",
            "seconds": 60.0,
            "machine": {
                "cpu": "EPYC", "cores": 2, "memory_bytes": 1 << 30, "kernel": "6.18",
                "file_system": "ext4",
            },
            "durability": "fsync", "members": 3, "heartbeat_ms": 100, "election_ms": 500,
            "rounds": 2, "versions": { "etcd": "3.5.1" }, "absent": { "hiqlite": "not built" },
            "limits": {
                "fdatasync_p50_us": 200.0, "fdatasync_p99_us": 400.0,
                "batched_records_per_second": 50_000.0, "loopback_p50_us": 13.5,
                "copy_bytes_per_second": 8e9,
            },
            "rows": [{
                "name": "put/16", "title": "put, 16 callers", "figure": "per_second",
                "parameters": { "callers": 16 },
                "columns": {
                    "etcd": cell(json!([1000.0, null]), 1000.0, 3),
                    "embedded": cell(json!([2000.0, 2000.0]), 2000.0, 0),
                },
                "ratios": { "embedded": { "beside": "etcd", "figure": ratio, "p50": ratio } },
            }],
        });
        assert_eq!(serde_json::to_value(report()).unwrap(), expected);
        // And it is read as it is written.
        let read: Report = serde_json::from_value(expected.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), expected);
    }

    #[test]
    fn figures_have_names() {
        let all = [
            Figure::PerSecond,
            Figure::Milliseconds,
            Figure::Bytes,
            Figure::CorePercent,
            Figure::Factor,
        ];
        let names = ["per_second", "milliseconds", "bytes", "core_percent", "factor"];
        assert_eq!(serde_json::to_value(all).unwrap(), json!(names));
    }
}
