//! The binary, as somebody runs it: real groups of three processes, shortly, and what it writes down.
//!
//! The agents of a group are the binary itself, so nothing less than the binary can be tested. No figure is looked at
//! closely: it has to be there and to be more than nothing.

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

/// Runs a command line in a folder of its own. There is no etcd, unless the environment names one.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate-bench"));
    command.current_dir(folder).env("ETCD_BIN", "/nonexistent").args(arguments);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    output
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn names(object: &Value) -> BTreeSet<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

fn assert_positive(figure: &Value, what: &str) {
    assert!(figure.as_f64().is_some_and(|it| it.is_finite() && it > 0.0), "{what} is {figure}");
}

#[test]
fn a_comparison_without_peers_is_reported_whole() {
    let folder = tempfile::tempdir().unwrap();
    // On a busy machine an unoptimised group has not answered anybody after a tenth of a second.
    let line = "compare --peers none --rounds 2 --run-ms 500 --workloads put/64,get-serializable/64 \
                --data data --json report.json --plots plots";
    let output = run(folder.path(), &line.split_whitespace().collect::<Vec<_>>());
    assert!(String::from_utf8_lossy(&output.stdout).contains("put, 64 callers"));
    assert!(folder.path().join("plots/put-64-latency.svg").is_file());
    assert_eq!(std::fs::read_dir(folder.path().join("data")).unwrap().count(), 0, "files are left");

    let report = json(&folder.path().join("report.json"));
    assert_head(&report);
    let rows = report["rows"].as_array().unwrap();
    let expected = [
        ("put/64", &["embedded", "embedded-leader", "remote"][..]),
        ("get-serializable/64", &["embedded", "remote"]),
    ];
    assert_eq!(rows.len(), expected.len());
    for (row, (name, columns)) in rows.iter().zip(expected) {
        let fields = ["name", "title", "figure", "parameters", "columns", "ratios"];
        assert_eq!(names(row), fields.into());
        assert_eq!(row["name"], name);
        assert_eq!(row["figure"], "per_second");
        assert_eq!(names(&row["parameters"]), ["callers", "keys", "value_bytes"].into());
        assert_eq!(names(&row["columns"]), columns.iter().copied().collect());
        assert!(names(&row["ratios"]).is_empty(), "there is nobody to compare with");
        for (column, cell) in row["columns"].as_object().unwrap() {
            assert_cell(cell, &format!("{name}, {column}"));
        }
    }

    let shown = run(folder.path(), &["show", "report.json", "--markdown"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("| put, 64 callers | - |"));
    run(folder.path(), &["agree", "report.json", "report.json"]);
}

fn assert_head(report: &Value) {
    let fields = [
        "schema",
        "command",
        "scale",
        "date",
        "seconds",
        "machine",
        "durability",
        "members",
        "heartbeat_ms",
        "election_ms",
        "rounds",
        "versions",
        "absent",
        "limits",
        "rows",
    ];
    assert_eq!(names(report), fields.into());
    assert_eq!((&report["schema"], &report["scale"]), (&1.into(), &"quick".into()));
    assert_eq!((&report["members"], &report["rounds"]), (&3.into(), &2.into()));
    assert_eq!(names(&report["versions"]), ["quorate"].into());
    assert!(names(&report["absent"]).is_empty());
    assert_positive(&report["seconds"], "seconds");
    let limits = [
        "fdatasync_p50_us",
        "fdatasync_p99_us",
        "batched_records_per_second",
        "loopback_p50_us",
        "copy_bytes_per_second",
    ];
    assert_eq!(names(&report["limits"]), limits.into());
    for (name, limit) in report["limits"].as_object().unwrap() {
        assert_positive(limit, name);
    }
}

fn assert_cell(cell: &Value, what: &str) {
    let fields = [
        "rounds",
        "value",
        "operations",
        "errors",
        "latency",
        "first_error",
        "p50_rounds",
        "extra",
    ];
    assert_eq!(names(cell), fields.into());
    for rounds in ["rounds", "p50_rounds"] {
        let rounds = cell[rounds].as_array().unwrap();
        assert_eq!(rounds.len(), 2, "{what}");
        rounds.iter().for_each(|round| assert_positive(round, what));
    }
    for figure in [&cell["value"], &cell["operations"], &cell["extra"]["per_second"]] {
        assert_positive(figure, what);
    }
    for time in ["p50", "max"] {
        assert_positive(&cell["latency"][time], what);
    }
    assert_eq!((&cell["errors"], &cell["first_error"]), (&0.into(), &Value::Null), "{what}");
}

#[test]
fn a_peer_that_is_not_there_is_named_and_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let line = "compare --peers etcd --rounds 1 --run-ms 100 --workloads get-serializable/1 --data data \
                --json report.json --plots plots";
    let output = run(folder.path(), &line.split_whitespace().collect::<Vec<_>>());
    assert!(String::from_utf8_lossy(&output.stderr).contains("NOTE: etcd is absent"));
    let report = json(&folder.path().join("report.json"));
    assert!(report["absent"]["etcd"].as_str().unwrap().contains("/nonexistent"));
    assert_eq!(names(&report["versions"]), ["quorate"].into());
    let row = &report["rows"][0];
    assert_eq!(names(&row["columns"]), ["embedded", "remote"].into());
}

#[test]
fn a_group_that_grows_has_a_point_for_each_size() {
    let folder = tempfile::tempdir().unwrap();
    let line = "scale put --by watchers --max 10 --run-ms 50 --callers 8 --data data --json scale.json \
                --plots plots";
    let output = run(folder.path(), &line.split_whitespace().collect::<Vec<_>>());
    assert!(String::from_utf8_lossy(&output.stdout).contains("put by watchers"));
    assert!(folder.path().join("plots/put-by-watchers.svg").is_file());
    let scaled = json(&folder.path().join("scale.json"));
    let points = scaled["axes"][0]["columns"]["embedded"].as_array().unwrap();
    assert_eq!(points.iter().map(|point| &point["size"]).collect::<Vec<_>>(), [1, 10]);
    for point in points {
        for figure in ["cost_us", "p50_us", "operations"] {
            assert_positive(&point[figure], figure);
        }
        assert_eq!(point["errors"], 0, "{point}");
    }
}
