//! Draws a report as a handful of small SVGs.
//!
//! A table answers what a figure is; these answer what a table hides: where a curve bends, how slow the slowest are,
//! and whether thirty ratios tell the same story.
//!
//! | file | shows | drawn for |
//! |---|---|---|
//! | `overview.svg` | all ratios of figures | any report that has some |
//! | `overview-median.svg` | all ratios of median times | any report that has some |
//! | `put-callers.svg` | throughput against callers | rows `put/N`, if N are callers and there are three |
//! | `put-64-latency.svg` | how long operations took | the rows in [`LATENCIES`] |
//! | named by its title | growth | each [`ScalePlot`] |
//!
//! Zero, infinity and what is no number have no place on a logarithmic axis; such points are left out, and a sheet
//! without points is not drawn. Whoever asks for the drawings of an empty report gets an empty list.

mod axis;
mod look;
mod overview;
mod sheet;

use crate::report::{Column, Figure, Report, Row};
use crate::store::Result;
use axis::{Axis, is_log, is_share};
use sheet::{HEIGHT, Look, Sheet, Words};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The rows whose distributions of times are drawn.
const LATENCIES: [&str; 5] = ["put/1", "put/64", "put/256", "get-linearizable/64", "watch-latency"];
/// A curve needs that many points.
const FAMILY_MIN: usize = 3;
/// Where plots of lines begin: right of the label and the texts of the y axis.
const LEFT: i32 = 84;

/// Curves over a size, on logarithmic axes.
#[derive(Clone, Debug, Default)]
pub(crate) struct ScalePlot {
    pub(crate) title: String,
    /// With its unit.
    pub(crate) x_label: String,
    /// With its unit.
    pub(crate) y_label: String,
    /// The footer: what the curves depend on, the machine, the day.
    pub(crate) note: String,
    /// By name. A line that is named as a column of a report looks like that column.
    pub(crate) lines: Vec<(String, Vec<(f64, f64)>)>,
}

/// Draws whatever can be drawn of a report, and returns the files.
pub(crate) fn draw(report: &Report, folder: &Path) -> Result<Vec<PathBuf>> {
    let mut drawn = Drawn { folder, files: Vec::new() };
    overview::draw(report, &mut drawn)?;
    for (family, rows) in families(report) {
        draw_callers(report, family, &rows, &mut drawn)?;
    }
    for row in report.rows.iter().filter(|row| LATENCIES.contains(&row.name.as_str())) {
        draw_latency(report, row, &mut drawn)?;
    }
    Ok(drawn.files)
}

/// Draws curves over a size. Fails if none of them has a point.
pub(crate) fn draw_scale(curves: &ScalePlot, folder: &Path) -> Result<PathBuf> {
    let looks = look::of_all(curves.lines.iter().map(|(name, _)| name.as_str()));
    let lines = looks.into_iter().zip(&curves.lines).map(|((name, look), (_, points))| {
        let points = drawable(points, is_log);
        Line { name, look, marks: points.clone(), points }
    });
    let lines = with_points(lines);
    let (xs, ys) = values(&lines);
    let (Some(x), Some(y)) = (
        Axis::chosen(&with_scale(&curves.x_label), xs.into_iter()),
        Axis::log(&with_scale(&curves.y_label), ys.into_iter()),
    ) else {
        return Err(format!("nothing to draw for {:?}", curves.title).into());
    };
    let words =
        Words { title: curves.title.clone(), caption: Vec::new(), footer: curves.note.clone() };
    let mut drawn = Drawn { folder, files: Vec::new() };
    draw_lines(&words, &x, &y, &lines, &file_name(&curves.title), &mut drawn)?;
    Ok(drawn.files.remove(0))
}

/// The files that were written so far.
struct Drawn<'a> {
    folder: &'a Path,
    files: Vec<PathBuf>,
}

struct Line {
    name: String,
    look: Look,
    points: Vec<(f64, f64)>,
    /// Points that are marked; of a curve that was measured densely only some.
    marks: Vec<(f64, f64)>,
}

/// Rows that differ only in their number of callers, by the name that they share.
fn families(report: &Report) -> BTreeMap<&str, Vec<(f64, &Row)>> {
    let mut families: BTreeMap<&str, Vec<(f64, &Row)>> = BTreeMap::new();
    for row in &report.rows {
        if let Some((family, callers)) = callers(row) {
            families.entry(family).or_default().push((callers, row));
        }
    }
    families.retain(|_, rows| rows.len() >= FAMILY_MIN);
    families
}

/// `put` and 16 of `put/16`, unless 16 is something else than callers.
fn callers(row: &Row) -> Option<(&str, f64)> {
    let (family, number) = row.name.rsplit_once('/')?;
    let number: u32 = number.parse().ok()?;
    let is_parameter = row.parameters.get("callers") == Some(&u64::from(number));
    let is_title = row.title.contains(&format!("{number} caller"));
    (is_parameter || is_title).then_some((family, f64::from(number)))
}

fn draw_callers(
    report: &Report,
    family: &str,
    rows: &[(f64, &Row)],
    drawn: &mut Drawn<'_>,
) -> Result {
    let columns = look::in_order(rows.iter().flat_map(|(_, row)| columns(row)));
    let lines = columns.into_iter().map(|column| {
        let at = |(callers, row): &(f64, &Row)| {
            Some((*callers, per_second(row.figure, row.columns.get(column)?)?))
        };
        let all: Vec<_> = rows.iter().filter_map(at).collect();
        let mut points = drawable(&all, is_log);
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (name, look) = look::of(column);
        Line { name, look, marks: points.clone(), points }
    });
    let lines = with_points(lines);
    let (xs, ys) = values(&lines);
    let (Some(x), Some(y)) = (
        Axis::chosen("callers at once (number, log scale)", xs.into_iter()),
        Axis::log("operations per second (1/s, log scale)", ys.into_iter()),
    ) else {
        return Ok(());
    };
    let words = Words {
        title: format!("{family}: throughput against callers"),
        caption: Vec::new(),
        footer: footer(report, rows.iter().map(|(_, row)| *row)),
    };
    draw_lines(&words, &x, &y, &lines, &file_name(&format!("{family}-callers")), drawn)
}

fn draw_latency(report: &Report, row: &Row, drawn: &mut Drawn<'_>) -> Result {
    let lines = look::in_order(columns(row)).into_iter().filter_map(|column| {
        let (name, look) = look::of(column);
        let column = &row.columns[column];
        let latency = column.latency.as_ref()?;
        let has_enough = |share: f64| {
            // As with the percentiles: what fewer than ten operations lie above is chance.
            column.operations == 0 || (1.0 - share) * column.operations as f64 >= 9.999
        };
        let points = drawable(&latency.curve, |share| is_share(share) && has_enough(share));
        let percentiles =
            [(0.5, latency.p50), (0.9, latency.p90), (0.99, latency.p99), (0.999, latency.p999)];
        let marks = percentiles.into_iter().filter_map(|(share, time)| Some((share, time?)));
        let marks = drawable(&marks.collect::<Vec<_>>(), is_share);
        Some(Line { name, look, points, marks })
    });
    let lines = with_points(lines);
    let (xs, ys) = values(&lines);
    let Some(y) = Axis::log("time (ms, log scale)", ys.into_iter()) else { return Ok(()) };
    let x = Axis::nines("share of operations that took no longer (%, by nines)", xs.into_iter());
    let words = Words {
        title: format!("{}: how long it takes", row.title),
        caption: Vec::new(),
        footer: footer(report, std::iter::once(row)),
    };
    let name = row.name.strip_suffix("-latency").unwrap_or(&row.name);
    draw_lines(&words, &x, &y, &lines, &file_name(&format!("{name}-latency")), drawn)
}

/// Draws a sheet with lines and saves it.
fn draw_lines(
    words: &Words,
    x: &Axis,
    y: &Axis,
    lines: &[Line],
    name: &str,
    drawn: &mut Drawn<'_>,
) -> Result {
    let legend: Vec<_> = lines.iter().map(|line| (line.name.clone(), line.look)).collect();
    let mut svg = String::new();
    let sheet = Sheet::new(&mut svg, HEIGHT, LEFT, words, &legend)?;
    sheet.axes(x, y)?;
    let at = |(px, py): &(f64, f64)| (sheet.x(x.place(*px)), sheet.y(y.place(*py)));
    for line in lines {
        let points = thinned(line.points.iter().map(at));
        if points.len() > 1 {
            sheet.line(&points, line.look)?;
        }
        for mark in &line.marks {
            sheet.mark(at(mark), line.look)?;
        }
    }
    sheet.finish()?;
    save(drawn, name, &svg)
}

/// Pixels of a line, without those that lie too close for a pixel to show the slope between them.
fn thinned(pixels: impl ExactSizeIterator<Item = (i32, i32)>) -> Vec<(i32, i32)> {
    let last = pixels.len().saturating_sub(1);
    let mut kept: Vec<(i32, i32)> = Vec::new();
    for (number, (x, y)) in pixels.enumerate() {
        let is_far = |(kept_x, kept_y): &(i32, i32)| (x - kept_x).abs() + (y - kept_y).abs() >= 8;
        if number == last || kept.last().is_none_or(is_far) {
            kept.push((x, y));
        }
    }
    kept
}

fn save(drawn: &mut Drawn<'_>, name: &str, svg: &str) -> Result {
    fs::create_dir_all(drawn.folder)?;
    let path = drawn.folder.join(format!("{name}.svg"));
    fs::write(&path, svg)?;
    drawn.files.push(path);
    Ok(())
}

fn columns(row: &Row) -> impl Iterator<Item = &str> {
    row.columns.keys().map(String::as_str)
}

/// The throughput of a column, also of a row that compares times.
fn per_second(figure: Figure, column: &Column) -> Option<f64> {
    match figure {
        Figure::PerSecond => Some(column.value),
        _ => column.extra.get("per_second").copied(),
    }
}

/// The points that have a place on both axes.
fn drawable(points: &[(f64, f64)], has_x: impl Fn(f64) -> bool) -> Vec<(f64, f64)> {
    points.iter().copied().filter(|(x, y)| has_x(*x) && is_log(*y)).collect()
}

fn with_points(lines: impl Iterator<Item = Line>) -> Vec<Line> {
    lines.filter(|line| !line.points.is_empty() || !line.marks.is_empty()).collect()
}

/// All values on the x axis, and all on the y axis.
fn values(lines: &[Line]) -> (Vec<f64>, Vec<f64>) {
    lines.iter().flat_map(|line| line.points.iter().chain(&line.marks)).copied().unzip()
}

fn with_scale(label: &str) -> String {
    format!("{label}, log scale")
}

/// What the figures of a sheet depend on, on one line.
fn footer<'a>(report: &Report, rows: impl Iterator<Item = &'a Row>) -> String {
    let mut values: Vec<_> =
        rows.filter_map(|row| row.parameters.get("value_bytes").copied()).collect();
    values.sort_unstable();
    values.dedup();
    let values = match values.as_slice() {
        [bytes] => format!("values of {bytes} B"),
        _ => String::new(),
    };
    let plural = if report.members == 1 { "" } else { "s" };
    let day = report.date.get(..10).unwrap_or(&report.date);
    let mut parts = vec![
        report.durability.clone(),
        format!("{} member{plural}", report.members),
        values,
        format!("{} × {}", report.machine.cores, short_cpu(&report.machine.cpu)),
        if report.scale == "quick" { format!("{day}, quick") } else { day.into() },
    ];
    parts.retain(|part| !part.is_empty());
    note(parts)
}

/// A footer of these parts, as long as there is room for.
pub(crate) fn note(parts: Vec<String>) -> String {
    join(parts, sheet::characters_max())
}

/// Joins the parts of a footer. If they are too long together, the longest are cut, so that all others stay whole.
fn join(mut parts: Vec<String>, characters: usize) -> String {
    let length = |text: &String| text.chars().count();
    loop {
        let text = parts.join(" · ");
        let Some(longest) = parts.iter_mut().max_by_key(|part| length(part)) else { return text };
        if length(&text) <= characters || length(longest) <= 8 {
            return text;
        }
        let over = length(&text) - characters;
        // Not all at once: the second longest may have to give as well.
        let step = over.min(4).min(length(longest) - 8).max(1);
        *longest = sheet::cut(longest, length(longest) - step);
    }
}

/// The name of a processor without what says nothing.
pub(crate) fn short_cpu(cpu: &str) -> String {
    let cpu = cpu.split(" @ ").next().unwrap_or(cpu);
    let cpu = ["(R)", "(TM)", "(tm)", " CPU", " Processor"]
        .iter()
        .fold(cpu.to_string(), |cpu, noise| cpu.replace(noise, ""));
    if cpu.is_empty() { "cores".into() } else { cpu }
}

/// A name for a file: letters, digits and single dashes.
fn file_name(title: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    let name: String = title.to_lowercase().chars().map(plain).collect();
    let words: Vec<&str> = name.split('-').filter(|word| !word.is_empty()).collect();
    words.join("-")
}

#[cfg(test)]
mod tests;
