//! The figures of `scale` for people: a table on a terminal, and what is drawn.
//!
//! Both show the rise from each size to the next, because that is what one looks for; the table also says where it is
//! steep. The figures themselves are left to the JSON file.

use super::{Curves, Point, Scaled};
use crate::plots::{ScalePlot, note, short_cpu};
use crate::store::Result;
use crate::table::digits;
use std::fmt::Write;

/// A rise by more than this, from one size to the next and all that follow, is a knee.
const KNEE: f64 = 1.5;

/// The lines side by side, each cost with its rise over the size before, and where the knees are.
pub(super) fn table(curves: &Curves, scaled: &Scaled) -> Result<String> {
    let mut out = String::new();
    writeln!(out, "\n{} by {}: {}", scaled.workload, curves.by, fixed(curves))?;
    let (many, one) = (format!("{} callers, µs each", scaled.callers), "1 caller, p50 µs");
    write!(out, "{:>12}", curves.by)?;
    for column in curves.columns.keys() {
        write!(out, "  | {:>30} {:>7} {one:>18} {:>7}", format!("{column}: {many}"), "", "")?;
    }
    writeln!(out)?;
    let longest = curves.columns.values().max_by_key(|points| points.len());
    for (row, at) in longest.into_iter().flatten().map(|point| point.size).enumerate() {
        write!(out, "{:>12}", size(&curves.by, at))?;
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
        let of_cost = knee(points, |point| point.cost_us).map(|knee| (many.as_str(), knee));
        let of_p50 = knee(points, |point| point.p50_us).map(|knee| (one, knee));
        for (what, (at, rise)) in of_cost.into_iter().chain(of_p50) {
            let (at, rise) = (size(&curves.by, at), digits(rise));
            writeln!(out, "{column}, {what}: a knee at {at}, ×{rise}")?;
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

pub(super) fn plot(curves: &Curves, scaled: &Scaled) -> ScalePlot {
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
pub(super) fn size(by: &str, count: u64) -> String {
    match count {
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
    use crate::report::{Machine, SCHEMA};
    use std::collections::BTreeMap;

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
    fn sizes_are_legible() {
        let shown = [
            size("keys", 10_000_000),
            size("members", 7),
            size("value", 1 << 20),
            size("value", 16),
        ];
        assert_eq!(shown, ["10,000,000", "7", "1 MiB", "16 B"]);
    }
}
