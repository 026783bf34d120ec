//! Which column looks how, on all sheets.
//!
//! The colours are Okabe and Ito's. What is warm is etcd and what is cool is quorate; a dashed line is the same side
//! with its callers at the leader.

use super::sheet::{Look, Mark};
use plotters::style::RGBColor;

const fn look(colour: (u8, u8, u8), mark: Mark, dashed: bool) -> Look {
    Look { colour: RGBColor(colour.0, colour.1, colour.2), mark, dashed }
}

/// The columns of a report in the order of a legend, with their names for people.
const COLUMNS: [(&str, &str, Look); 7] = [
    ("etcd", "etcd", look((213, 94, 0), Mark::Square, false)),
    ("etcd-leader", "etcd, at the leader", look((230, 159, 0), Mark::Square, true)),
    ("embedded", "quorate embedded", look((0, 114, 178), Mark::Circle, false)),
    (
        "embedded-leader",
        "quorate embedded, at the leader",
        look((86, 180, 233), Mark::Circle, true),
    ),
    ("remote", "quorate remote", look((0, 158, 115), Mark::Triangle, false)),
    ("hiqlite", "hiqlite", look((204, 121, 167), Mark::Square, false)),
    ("hiqlite-sql", "hiqlite, SQL", look((120, 120, 120), Mark::Triangle, true)),
];

/// For lines that are no column. None of them is a colour from above.
const OTHERS: [Look; 4] = [
    look((0, 0, 0), Mark::Circle, false),
    look((136, 34, 85), Mark::Triangle, false),
    look((153, 153, 51), Mark::Square, false),
    look((51, 34, 136), Mark::Circle, true),
];

/// The name for people and the look of a column.
pub(super) fn of(column: &str) -> (String, Look) {
    match COLUMNS.iter().find(|(name, ..)| *name == column) {
        Some((_, title, look)) => ((*title).into(), *look),
        None => (column.into(), OTHERS[0]),
    }
}

/// The looks of lines with any names. Those that are named as columns are look like them.
pub(super) fn of_all<'a>(names: impl Iterator<Item = &'a str>) -> Vec<(String, Look)> {
    let mut others = OTHERS.iter().cycle();
    names
        .map(|name| {
            let column =
                COLUMNS.iter().find(|(column, title, _)| [*column, *title].contains(&name));
            match column {
                Some((_, title, look)) => ((*title).into(), *look),
                None => (name.into(), *others.next().expect("a cycle does not end")),
            }
        })
        .collect()
}

/// Columns in the order of a legend, each once, and those that are not known at the end.
pub(super) fn in_order<'a>(columns: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let place = |column: &str| COLUMNS.iter().position(|(name, ..)| *name == column);
    let mut columns: Vec<&str> = columns.collect();
    columns.sort_by_key(|column| (place(column).unwrap_or(COLUMNS.len()), *column));
    columns.dedup();
    columns
}

/// The entries of a legend.
pub(super) fn legend<'a>(columns: impl Iterator<Item = &'a str>) -> Vec<(String, Look)> {
    in_order(columns).into_iter().map(of).collect()
}
