//! What is promised of the drawings: they are there, they say what they show, and no figure breaks them.

use super::*;
use crate::report::{Latency, Limits, Machine, Ratio, Ratios, SCHEMA};

fn report(rows: Vec<Row>) -> Report {
    Report {
        schema: SCHEMA,
        command: "compare".into(),
        scale: "quick".into(),
        date: "2026-11-26T05:31:51Z".into(),
        seconds: 600.0,
        machine: Machine {
            cpu: "Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz".into(),
            cores: 2,
            ..Machine::default()
        },
        durability: "fdatasync on a majority of the members before the answer".into(),
        members: 3,
        heartbeat_ms: 100,
        election_ms: 1000,
        rounds: 5,
        versions: BTreeMap::new(),
        absent: BTreeMap::new(),
        limits: Limits::default(),
        rows,
    }
}

/// A distribution with a long tail.
fn latency(p50: f64, operations: u64) -> Latency {
    let at = |share: f64| p50 * (0.7 + 0.2 * (1.0 / (1.0 - share)).powf(0.6));
    let mut curve: Vec<_> = (0..99).map(|step| f64::from(step) / 99.0).collect();
    curve.extend([0.99, 0.995, 0.999, 0.9995, 0.9999, 1.0]);
    let tail = |share: f64| ((1.0 - share) * operations as f64 >= 10.0).then(|| at(share));
    Latency {
        p50: tail(0.5),
        p90: tail(0.9),
        p99: tail(0.99),
        p999: tail(0.999),
        max: at(0.9999),
        curve: curve.into_iter().map(|share| (share, at(share.min(0.9999)))).collect(),
    }
}

fn column(value: f64, p50: f64, operations: u64) -> Column {
    Column {
        rounds: vec![Some(value)],
        value,
        operations,
        latency: Some(latency(p50, operations)),
        p50_rounds: vec![Some(p50)],
        extra: [("per_second".to_string(), 1000.0 / p50)].into(),
        ..Column::default()
    }
}

fn ratio(mean: f64) -> Ratio {
    Ratio { mean, low: mean / 1.2, high: mean * 1.25 }
}

const COLUMNS: [(&str, f64); 7] = [
    ("etcd", 1.0),
    ("etcd-leader", 1.2),
    ("embedded", 1.7),
    ("embedded-leader", 2.1),
    ("remote", 1.4),
    ("hiqlite", 0.6),
    ("hiqlite-sql", 0.3),
];

/// A row in which all columns took part. A figure of times is the median itself.
fn row(name: &str, figure: Figure, callers: u64) -> Row {
    let columns = COLUMNS.map(|(column_name, speed)| {
        let p50 = 4.0 / speed * (callers as f64).powf(0.4);
        let value = if figure == Figure::PerSecond { callers as f64 * 1e3 / p50 } else { p50 };
        (column_name.to_string(), column(value, p50, 40_000))
    });
    let turn = if figure == Figure::PerSecond { 1.0 } else { -1.0 };
    let ratios = [("embedded", 1.7_f64), ("embedded-leader", 1.75), ("remote", 0.8)].map(
        |(column_name, speed)| {
            let p50 = (figure == Figure::PerSecond).then(|| ratio(1.0 / speed));
            let figure = ratio(speed.powf(turn));
            (column_name.to_string(), Ratios { beside: "etcd".into(), figure, p50 })
        },
    );
    Row {
        name: name.into(),
        title: format!("{}, {callers} callers", name.split('/').next().unwrap()),
        figure,
        parameters: [("value_bytes".to_string(), 256), ("callers".to_string(), callers)].into(),
        columns: columns.into(),
        ratios: ratios.into(),
    }
}

fn rows() -> Vec<Row> {
    let mut rows = vec![row("put/1", Figure::Milliseconds, 1)];
    rows.extend([16, 64, 256].map(|n| row(&format!("put/{n}"), Figure::PerSecond, n)));
    for family in ["get-linearizable", "get-serializable"] {
        rows.push(row(&format!("{family}/1"), Figure::Milliseconds, 1));
        rows.extend([64, 256].map(|n| row(&format!("{family}/{n}"), Figure::PerSecond, n)));
    }
    rows.push(row("txn/64", Figure::PerSecond, 64));
    rows.push(row("watch-latency", Figure::Milliseconds, 1));
    rows.push(row("memory", Figure::Bytes, 1));
    rows
}

fn names(files: &[PathBuf]) -> Vec<&str> {
    files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect()
}

#[test]
fn a_whole_report_becomes_a_handful_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let files = draw(&report(rows()), &folder.path().join("plots")).unwrap();
    let expected = [
        "overview.svg",
        "overview-median.svg",
        "get-linearizable-callers.svg",
        "get-serializable-callers.svg",
        "put-callers.svg",
        "put-1-latency.svg",
        "put-64-latency.svg",
        "put-256-latency.svg",
        "get-linearizable-64-latency.svg",
        "watch-latency.svg",
    ];
    let mut drawn = names(&files);
    drawn.sort_unstable();
    let mut sorted = expected;
    sorted.sort_unstable();
    assert_eq!(drawn, sorted);
    for file in &files {
        assert_is_whole(&fs::read_to_string(file).unwrap());
    }
}

/// A drawing that is closed, without a figure that no browser could place, and with the footer.
fn assert_is_whole(svg: &str) {
    assert!(svg.trim_end().ends_with("</svg>"));
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    for part in ["fdatasync", "3 members", "values of 256 B", "2 × Intel Xeon", "2026-11-26, quick"]
    {
        assert!(svg.contains(part), "no {part:?} in {svg}");
    }
}

#[test]
fn a_drawing_says_what_it_shows_and_in_which_units() {
    let folder = tempfile::tempdir().unwrap();
    draw(&report(rows()), folder.path()).unwrap();
    let has = |file: &str, texts: &[&str]| {
        let svg = fs::read_to_string(folder.path().join(file)).unwrap();
        for text in texts {
            assert!(svg.contains(text), "no {text:?} in {file}");
        }
    };
    has("put-callers.svg", &["put: throughput against callers", "(1/s", "callers at once"]);
    has("put-callers.svg", &["quorate embedded, at the leader", "etcd", "hiqlite", "256"]);
    has("put-64-latency.svg", &["put, 64 callers: how long it takes", "(ms", "(%", "99.9 %"]);
    has(
        "overview.svg",
        &["quorate beside etcd", "(×", "turned round", "memory, 1 callers *", "1×"],
    );
    has("overview-median.svg", &["quorate beside etcd: median times", "(×", "put, 64 callers"]);
}

#[test]
fn rows_of_one_caller_are_on_the_curve_by_their_throughput() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = rows();
    for row in rows.iter_mut().filter(|row| row.name.starts_with("put/")) {
        row.columns.retain(|column, _| column == "etcd");
        // 250, 1319, 3031 and 6966 per second.
        assert_eq!(row.figure == Figure::Milliseconds, row.name == "put/1");
    }
    draw(&report(rows), folder.path()).unwrap();
    let svg = fs::read_to_string(folder.path().join("put-callers.svg")).unwrap();
    assert!(svg.contains("200\n") && svg.contains("10k"), "{svg}");
}

#[test]
fn numbers_that_are_not_callers_make_no_curve() {
    let sizes = [16, 64, 256].map(|bytes| {
        let mut row = row(&format!("value/{bytes}"), Figure::PerSecond, 1);
        row.ratios.clear();
        row
    });
    let folder = tempfile::tempdir().unwrap();
    assert!(draw(&report(sizes.into()), folder.path()).unwrap().is_empty());
}

#[test]
fn an_empty_report_draws_nothing() {
    let folder = tempfile::tempdir().unwrap();
    assert!(draw(&report(Vec::new()), folder.path()).unwrap().is_empty());
    let mut rows = rows();
    for row in &mut rows {
        row.columns.clear();
        row.ratios.clear();
    }
    assert!(draw(&report(rows), folder.path()).unwrap().is_empty());
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
}

#[test]
fn figures_without_a_place_are_left_out() {
    let odd = [0.0, -1.0, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE, f64::MAX];
    for value in odd {
        let mut rows = rows();
        for row in &mut rows {
            for name in ["etcd", "embedded"] {
                let column = row.columns.get_mut(name).unwrap();
                column.value = value;
                column.extra.insert("per_second".into(), value);
                let latency = column.latency.as_mut().unwrap();
                latency.curve = vec![(0.5, value), (value, 1.0), (0.9, 3.0)];
                latency.p50 = Some(value);
            }
            let ratio = Ratio { mean: value, low: value, high: value };
            row.ratios.get_mut("embedded").unwrap().figure = ratio;
            let bar = &mut row.ratios.get_mut("remote").unwrap().figure;
            (bar.low, bar.high) = (value, value);
        }
        let folder = tempfile::tempdir().unwrap();
        for file in draw(&report(rows), folder.path()).unwrap() {
            assert_is_whole(&fs::read_to_string(file).unwrap());
        }
    }
}

#[test]
fn a_report_of_nothing_but_zeros_draws_nothing() {
    let mut rows = rows();
    for row in &mut rows {
        row.columns.values_mut().for_each(|column| *column = Column::default());
        let zero = Ratio { mean: 0.0, low: 0.0, high: 0.0 };
        row.ratios.values_mut().for_each(|ratios| {
            (ratios.figure, ratios.p50) = (zero, Some(zero));
        });
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(draw(&report(rows), folder.path()).unwrap().is_empty());
}

fn scale(lines: Vec<(String, Vec<(f64, f64)>)>) -> ScalePlot {
    ScalePlot {
        title: "Memory, by number of keys".into(),
        x_label: "keys in the group (number)".into(),
        y_label: "resident memory (MiB)".into(),
        note: "keys of 32 B, values of 256 B · 2 × AMD EPYC · 2026-11-26".into(),
        lines,
    }
}

#[test]
fn curves_over_a_size_are_drawn() {
    let sizes = [1e3, 1e4, 1e5, 1e6];
    let curve = |factor: f64| sizes.map(|keys| (keys, 20.0 + keys * factor)).to_vec();
    let lines =
        [("etcd", 1e-3), ("embedded", 4e-4), ("limit", 3e-4)].map(|(n, f)| (n.into(), curve(f)));
    let folder = tempfile::tempdir().unwrap();
    let file = draw_scale(&scale(lines.into()), folder.path()).unwrap();
    assert_eq!(names(std::slice::from_ref(&file)), ["memory-by-number-of-keys.svg"]);
    let svg = fs::read_to_string(file).unwrap();
    for text in ["Memory, by number of keys", "(MiB), log scale", "(number)", "2 × AMD EPYC"] {
        assert!(svg.contains(text), "no {text:?} in {svg}");
    }
    assert!(svg.contains("quorate embedded") && svg.contains("limit"));
}

#[test]
fn curves_without_points_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    assert!(draw_scale(&scale(Vec::new()), folder.path()).is_err());
    let odd = vec![("etcd".to_string(), vec![(0.0, 1.0), (1.0, f64::NAN)])];
    assert!(draw_scale(&scale(odd), folder.path()).is_err());
}

#[test]
fn a_footer_keeps_its_short_parts() {
    let parts = vec!["durable ".repeat(20), "3 members".into(), "Xeon ".repeat(12), "day".into()];
    let footer = join(parts, 60);
    assert!(footer.chars().count() <= 60, "{footer}");
    assert!(footer.contains(" · 3 members · ") && footer.ends_with("day"), "{footer}");
    assert_eq!(join(Vec::new(), 60), "");
}
