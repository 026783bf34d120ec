//! All ratios of a report on one sheet, as dots on a logarithmic axis.
//!
//! Some rows count what should be large and some what should be small, and a reader who has to remember which is which
//! for thirty rows reads nothing. So the ratios of the latter are turned round: on this sheet right is always better
//! for quorate, and the rows that were turned say so.
//!
//! The figures are on one sheet and the median times on another: of the same operations, so on one sheet most dots
//! would be there twice.
//!
//! The bar is the spread of a dot. After few rounds it can be absurdly long, and then it must not decide how long the
//! axis is: the axis follows the dots, and a bar that goes on past its end has no stop there.

use super::axis::{Axis, is_log};
use super::sheet::{self, Look, Sheet, Words};
use super::{Drawn, footer, look, save};
use crate::report::{Figure, Ratio, Ratios, Report, Row};
use crate::store::Result;
use plotters::style::text_anchor::HPos;

/// The height of one dot, and what lies between the dots of two rows.
const LANE: i32 = 11;
const GAP: i32 = 7;
/// Short rows are as high as their text.
const ROW_MIN: i32 = 20;
const NAMES_MAX: i32 = 320;
/// How far beyond the outermost dots the axis may follow their bars.
const BEYOND: f64 = 1.6;

/// One dot and its bar, as they are drawn: more is better.
struct Dot<'a> {
    column: &'a str,
    ratio: Ratio,
}

/// A row that has dots.
struct Dots<'a> {
    row: &'a Row,
    name: String,
    dots: Vec<Dot<'a>>,
}

impl Dots<'_> {
    fn height(&self) -> i32 {
        (self.dots.len() as i32 * LANE + GAP).max(ROW_MIN)
    }
}

/// Draws the overviews for which there are ratios.
pub(super) fn draw(report: &Report, drawn: &mut Drawn<'_>) -> Result {
    let figures = report.rows.iter().filter_map(figures).collect();
    let caption = "* Less is better in this row, so the ratio is turned round: etcd / quorate.";
    draw_sheet(report, ("overview", "the figure of each row", caption), figures, drawn)?;
    let medians = report.rows.iter().filter_map(medians).collect();
    let caption = "Less is better in all rows, so the ratios are turned round: etcd / quorate.";
    draw_sheet(report, ("overview-median", "median times", caption), medians, drawn)
}

/// Draws one sheet, with a name for the file, what its title says, and what was turned round.
fn draw_sheet(
    report: &Report,
    (file, what, turned): (&str, &str, &str),
    rows: Vec<Dots<'_>>,
    drawn: &mut Drawn<'_>,
) -> Result {
    let label = "times better than etcd (×, log scale)";
    let Some(mut axis) = Axis::log(label, ends(&rows).into_iter()) else { return Ok(()) };
    axis.ticks.iter_mut().for_each(|(_, text)| text.push('×'));
    let words = Words {
        title: format!("quorate beside etcd: {what}"),
        caption: vec![
            "Right of 1× quorate does better than etcd with callers in the same places. Bars: 99 % confidence."
                .into(),
            turned.into(),
        ],
        footer: footer(report, rows.iter().map(|row| row.row)),
    };
    let mut legend = look::legend(rows.iter().flat_map(|row| &row.dots).map(|dot| dot.column));
    legend.iter_mut().for_each(|(_, look)| look.dashed = false);
    let rows_height: i32 = rows.iter().map(Dots::height).sum();
    let height = rows_height + sheet::height_around(&words, &legend);
    let names = rows.iter().map(|row| sheet::width(&row.name, sheet::TEXT)).max().unwrap_or(0);

    let mut svg = String::new();
    let left = names.min(NAMES_MAX) + 28;
    let sheet = Sheet::new(&mut svg, height as u32, left, &words, &legend)?;
    bands(&sheet, &rows)?;
    sheet.x_axis(&axis)?;
    sheet.frame()?;
    sheet.upright(sheet.x(axis.place(1.0)))?;
    let mut top = sheet.top();
    for row in &rows {
        draw_row(&sheet, &axis, row, top)?;
        top += row.height();
    }
    sheet.finish()?;
    save(drawn, file, &svg)
}

/// The dots of a row for its figure.
fn figures(row: &Row) -> Option<Dots<'_>> {
    if row.figure == Figure::PerSecond {
        return dots(row, row.title.clone(), |ratios| Some(ratios.figure));
    }
    dots(row, format!("{} *", row.title), |ratios| Some(turned(ratios.figure)))
}

/// The dots of a row for the median times.
fn medians(row: &Row) -> Option<Dots<'_>> {
    dots(row, row.title.clone(), |ratios| ratios.p50.map(turned))
}

fn dots(row: &Row, name: String, ratio: impl Fn(&Ratios) -> Option<Ratio>) -> Option<Dots<'_>> {
    let dots: Vec<Dot<'_>> = look::in_order(row.ratios.keys().map(String::as_str))
        .into_iter()
        .filter_map(|column| Some(Dot { column, ratio: ratio(&row.ratios[column])? }))
        .filter(|dot| is_log(dot.ratio.mean))
        .collect();
    (!dots.is_empty()).then_some(Dots { row, name, dots })
}

fn turned(ratio: Ratio) -> Ratio {
    Ratio { mean: 1.0 / ratio.mean, low: 1.0 / ratio.high, high: 1.0 / ratio.low }
}

/// Values that the axis has to reach: all dots and 1, and their bars unless they are much longer.
fn ends(rows: &[Dots<'_>]) -> Vec<f64> {
    let ratios = || rows.iter().flat_map(|row| &row.dots).map(|dot| dot.ratio);
    let Some(least) = ratios().map(|ratio| ratio.mean).reduce(f64::min) else { return Vec::new() };
    let most = ratios().map(|ratio| ratio.mean).fold(least, f64::max);
    let (low, high) = (least.min(1.0) / BEYOND, most.max(1.0) * BEYOND);
    let bars = ratios().flat_map(|ratio| [ratio.low, ratio.high]);
    bars.filter(|end| (low..=high).contains(end))
        .chain([least / 1.05, most * 1.05, 1.0 / 1.05, 1.05])
        .collect()
}

/// Colours every other row.
fn bands(sheet: &Sheet<'_>, rows: &[Dots<'_>]) -> Result {
    let mut top = sheet.top();
    for (number, row) in rows.iter().enumerate() {
        if number % 2 == 0 {
            sheet.band(top, top + row.height())?;
        }
        top += row.height();
    }
    Ok(())
}

fn draw_row(sheet: &Sheet<'_>, axis: &Axis, row: &Dots<'_>, top: i32) -> Result {
    let middle = top + row.height() / 2;
    let name = sheet::fit(&row.name, NAMES_MAX, sheet::TEXT);
    sheet.text(&name, (sheet.x(0.0) - 8, middle), HPos::Right)?;
    let first = middle - (row.dots.len() as i32 - 1) * LANE / 2;
    for (number, dot) in row.dots.iter().enumerate() {
        let y = first + number as i32 * LANE;
        let look = look::of(dot.column).1;
        draw_bar(sheet, axis, dot.ratio, look, y)?;
        sheet.mark((sheet.x(axis.place(dot.ratio.mean)), y), look)?;
    }
    Ok(())
}

/// Draws the spread of a dot, with a stop at each end that is on the sheet.
fn draw_bar(sheet: &Sheet<'_>, axis: &Axis, ratio: Ratio, look: Look, y: i32) -> Result {
    let Ratio { low, mean, high } = ratio;
    if !(low <= mean && mean <= high) {
        return Ok(());
    }
    let at = |value| sheet.x(axis.place(value));
    // No bound is as good as a far one: both go on past the end.
    let (from, to) = (at(low.max(1e-12)), at(high.min(1e15)));
    sheet.stroke(&[(from, y), (to, y)], look.colour, 2)?;
    for end in [low, high].into_iter().filter(|end| axis.is_within(*end)) {
        sheet.stroke(&[(at(end), y - 3), (at(end), y + 3)], look.colour, 2)?;
    }
    Ok(())
}
