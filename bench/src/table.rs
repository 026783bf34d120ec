//! A report as a table, for a terminal and for a README, and the question whether two reports agree.
//!
//! The table is one of quorate beside etcd. hiqlite has a line of its own for its figure, and its ratios, which are to
//! quorate's embedded column and not to etcd, are a list below.

use crate::compare::ratio;
use crate::report::{Column, Figure, Latency, Ratio, Report, Row};
use crate::store::Result;
use std::fmt::Write;

/// Prints all rows with both sides, times and ratios.
pub(crate) fn text(report: &Report) -> Result<String> {
    let mut out = String::new();
    writeln!(out, "{}", head(report))?;
    let header = ("workload", "column", "figure", "p50/p99/p99.9 ms", "etcd", "p50/p99/p99.9 ms");
    writeln!(
        out,
        "\n{:<42} {:<16} {:>11} {:>22} {:>11} {:>22}  quorate/etcd (99 %)",
        header.0, header.1, header.2, header.3, header.4, header.5
    )?;
    for row in &report.rows {
        let mut title = row.title.as_str();
        for (name, column) in row.columns.iter().filter(|(name, _)| !name.starts_with("etcd")) {
            let ratios = row.ratios.get(name);
            let beside = ratios.map_or("etcd", |ratios| ratios.beside.as_str());
            let beside = row.columns.get(beside).filter(|_| !HIQLITE.contains(&name.as_str()));
            let own = (figure(row.figure, Some(column)), times(column.latency.as_ref()));
            let other = figure(row.figure, beside);
            let other_times = times(beside.and_then(|it| it.latency.as_ref()));
            let ratio = ratios.map_or_else(String::new, |it| spread(it.figure));
            writeln!(
                out,
                "{title:<42} {name:<16} {:>11} {:>22} {other:>11} {other_times:>22}  {ratio}{}",
                own.0,
                own.1,
                faults(column, beside)
            )?;
            title = "";
        }
    }
    let beside_hiqlite = beside_hiqlite(report);
    if !beside_hiqlite.is_empty() {
        writeln!(out, "\n{:<42} {:<16} embedded/hiqlite (99 %)", "workload", "column of hiqlite")?;
    }
    for (row, name, ratio) in beside_hiqlite {
        writeln!(out, "{:<42} {name:<16} {}", row.title, spread(ratio))?;
    }
    Ok(out)
}

/// The columns of hiqlite.
const HIQLITE: [&str; 2] = ["hiqlite", "hiqlite-sql"];

/// quorate's embedded column divided by those of hiqlite, whose callers are in the same places.
fn beside_hiqlite(report: &Report) -> Vec<(&Row, &'static str, Ratio)> {
    let ratio_to = |row: &Row, name: &str| {
        let (own, other) = (row.columns.get("embedded")?, row.columns.get(name)?);
        ratio(&own.rounds, &other.rounds)
    };
    let pairs = report.rows.iter().flat_map(|row| HIQLITE.map(|name| (row, name)));
    pairs.filter_map(|(row, name)| Some((row, name, ratio_to(row, name)?))).collect()
}

/// The rows and ratios as Markdown.
pub(crate) fn markdown(report: &Report) -> Result<String> {
    let mut out = format!("{}\n\n", head(report));
    writeln!(out, "| | etcd | quorate, embedded | ratio | quorate, remote | ratio |")?;
    writeln!(out, "|---|---|---|---|---|---|")?;
    for row in &report.rows {
        let shown = |name: &str| figure(row.figure, row.columns.get(name));
        let ratio = |name: &str| {
            row.ratios.get(name).map_or_else(String::new, |ratios| spread(ratios.figure))
        };
        let (title, etcd) = (&row.title, shown("etcd"));
        let (embedded, remote) = (shown("embedded"), shown("remote"));
        let (of_embedded, of_remote) = (ratio("embedded"), ratio("remote"));
        writeln!(
            out,
            "| {title} | {etcd} | {embedded} | {of_embedded} | {remote} | {of_remote} |"
        )?;
    }
    let beside_hiqlite = beside_hiqlite(report);
    if !beside_hiqlite.is_empty() {
        writeln!(out, "\n| | column of hiqlite | quorate, embedded | hiqlite | ratio |")?;
        writeln!(out, "|---|---|---|---|---|")?;
    }
    for (row, name, ratio) in beside_hiqlite {
        let shown = |name: &str| figure(row.figure, row.columns.get(name));
        let (title, own, other) = (&row.title, shown("embedded"), shown(name));
        writeln!(out, "| {title} | `{name}` | {own} | {other} | {} |", spread(ratio))?;
    }
    Ok(out)
}

/// The ratios of two reports that lie outside of each other's spread, a line each.
pub(crate) fn disagreements(one: &Report, other: &Report) -> (usize, Vec<String>) {
    let (mut compared, mut lines) = (0, Vec::new());
    for row in &one.rows {
        let Some(same) = other.rows.iter().find(|it| it.name == row.name) else { continue };
        for (name, ratios) in &row.ratios {
            let Some(others) = same.ratios.get(name) else { continue };
            compared += 1;
            let (a, b) = (ratios.figure, others.figure);
            if a.low > b.high || b.low > a.high {
                let (a, b) = (spread(a), spread(b));
                lines.push(format!("{}, {name}: {a} and {b}", row.name));
            }
        }
    }
    (compared, lines)
}

fn head(report: &Report) -> String {
    let versions: Vec<String> =
        report.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    format!(
        "{}; {} members, {}; heartbeat {} ms, election {} ms; {} rounds, {:.0} s; {}, {} cores, {}; {}",
        versions.join(", "),
        report.members,
        report.durability,
        report.heartbeat_ms,
        report.election_ms,
        report.rounds,
        report.seconds,
        report.machine.cpu,
        report.machine.cores,
        report.machine.file_system,
        report.date,
    )
}

/// A figure with its unit.
fn figure(kind: Figure, column: Option<&Column>) -> String {
    let Some(column) = column.filter(|it| it.rounds.iter().any(Option::is_some)) else {
        return "-".to_owned();
    };
    let value = column.value;
    match kind {
        Figure::PerSecond => format!("{}/s", short(value)),
        Figure::Milliseconds => format!("{} ms", digits(value)),
        Figure::Bytes if value >= 1e6 => format!("{} MB", digits(value / 1e6)),
        Figure::Bytes => format!("{} B", value.round()),
        Figure::CorePercent => format!("{} %", digits(value)),
        Figure::Factor => format!("{}x", digits(value)),
    }
}

fn times(latency: Option<&Latency>) -> String {
    let Some(latency) = latency else { return String::new() };
    let show = |time: Option<f64>| time.map_or_else(|| "-".to_owned(), digits);
    format!("{}/{}/{}", show(latency.p50), show(latency.p99), show(latency.p999))
}

pub(crate) fn spread(ratio: Ratio) -> String {
    format!("{}x ({} - {})", digits(ratio.mean), digits(ratio.low), digits(ratio.high))
}

fn faults(own: &Column, beside: Option<&Column>) -> String {
    let failed = |column: &Column| {
        column.errors + column.rounds.iter().filter(|round| round.is_none()).count() as u64
    };
    match (failed(own), beside.map_or(0, failed)) {
        (0, 0) => String::new(),
        (own, 0) => format!("  [{own} failed]"),
        (own, beside) => format!("  [{own} failed, {beside} of etcd]"),
    }
}

/// Three significant digits, or all before the point.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.9995 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        size if size >= 0.01 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", digits(value / 1e6)),
        value if value >= 1e3 => format!("{}k", digits(value / 1e3)),
        value => digits(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Ratios, Row};

    #[test]
    fn figures_have_three_digits() {
        let shown: Vec<String> =
            [0.0, 0.001_23, 0.0123, 0.123, 1.23, 12.34, 123.4, 9999.0].map(digits).into();
        assert_eq!(shown, ["0", "0.0012", "0.012", "0.123", "1.23", "12.3", "123", "9999"]);
        assert_eq!([short(12.0), short(43_210.0), short(1.5e6)], ["12.0", "43.2k", "1.50M"]);
    }

    fn ratios(low: f64, high: f64) -> Ratios {
        let figure = Ratio { mean: f64::midpoint(low, high), low, high };
        Ratios { beside: "etcd".into(), figure, p50: None }
    }

    /// A column and the ends of its ratio.
    type Spread<'a> = (&'a str, f64, f64);

    fn report(rows: &[(&str, &[Spread<'_>])]) -> Report {
        let row = |(name, columns): &(&str, &[Spread<'_>])| {
            let columns = columns.iter();
            let ratios = columns.map(|(column, low, high)| ((*column).into(), ratios(*low, *high)));
            Row { name: (*name).into(), ratios: ratios.collect(), ..crate::report::tests::row() }
        };
        Report { rows: rows.iter().map(row).collect(), ..crate::report::tests::report() }
    }

    #[test]
    fn ratios_agree_if_their_spreads_touch() {
        let one = report(&[("put/1", &[("embedded", 1.0, 2.0), ("remote", 0.5, 0.8)])]);
        let other = report(&[("put/1", &[("embedded", 2.0, 3.0), ("remote", 0.9, 1.0)])]);
        let (compared, lines) = disagreements(&one, &other);
        assert_eq!((compared, lines.len()), (2, 1));
        assert!(
            lines[0].starts_with("put/1, remote: 0.650x (0.500 - 0.800) and 0.95"),
            "{lines:?}"
        );
        assert_eq!(disagreements(&other, &one).1.len(), 1);
        assert_eq!(disagreements(&one, &one), (2, Vec::new()));
    }

    #[test]
    fn what_only_one_report_has_is_not_compared() {
        let one = report(&[("put/1", &[("embedded", 1.0, 2.0)]), ("txn/64", &[])]);
        let other = report(&[("put/1", &[("remote", 9.0, 9.0)]), ("put/16", &[])]);
        assert_eq!(disagreements(&one, &other), (0, Vec::new()));
    }

    #[test]
    fn both_tables_show_each_row() {
        let report = report(&[("put/1", &[("embedded", 1.0, 2.0)])]);
        let text = text(&report).unwrap();
        assert!(text.contains("put, 16 callers") && text.contains("1.50x (1.00 - 2.00)"), "{text}");
        // A round of etcd failed, and three operations.
        assert!(text.contains("[4 of etcd]") || text.contains("[0 failed, 4 of etcd]"), "{text}");
        let markdown = markdown(&report).unwrap();
        assert!(markdown.contains("| put, 16 callers | 1.00k/s | 2.00k/s | 1.50x"), "{markdown}");
    }
}
