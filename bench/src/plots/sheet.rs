//! A sheet of paper: one SVG with a title, a legend, two axes and a footer, and the strokes that go on it.
//!
//! plotters draws lines, marks and texts here, but the layout is ours. Without a font library its own estimates a text's
//! width from the number of bytes, and it knows nothing of nines. What a text measures is not known before a browser
//! shows it, so the widths here are those of a broad typeface, and nothing stands close to where a text ends.
//!
//! ```text
//! title                                  bold
//! caption                                as many lines as there are
//! ── etcd   ── quorate embedded          as many rows as it takes
//! │
//! │ the plot
//! └──────────────
//!   label of the x axis
//! footer                                 what the figures depend on, the machine, the day
//! ```
//!
//! A side looks the same on all sheets: its colour is of the palette by Okabe and Ito, which people with any kind of
//! colour vision can tell apart, and its mark says the same again in black and white.

use super::axis::Axis;
use crate::store::Result;
use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub(super) const WIDTH: u32 = 760;
pub(super) const HEIGHT: u32 = 440;
const MARGIN: i32 = 12;
const TITLE: f64 = 16.0;
pub(super) const TEXT: f64 = 12.0;
const ROW: i32 = 18;
/// plotters divides sizes by this when it writes them.
const SIZE_FACTOR: f64 = 1.24;
/// The width of a character of a broad typeface, as a share of its size.
const BREADTH: f64 = 0.55;

const INK: RGBColor = RGBColor(34, 34, 34);
const FRAME: RGBColor = RGBColor(136, 136, 136);
const GRID: RGBColor = RGBColor(226, 226, 226);
const BAND: RGBColor = RGBColor(245, 245, 245);

/// How a line and its marks look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Look {
    pub(super) colour: RGBColor,
    pub(super) mark: Mark,
    pub(super) dashed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mark {
    Circle,
    Square,
    Triangle,
}

/// The texts of a sheet, but those of its axes.
#[derive(Clone, Debug, Default)]
pub(super) struct Words {
    pub(super) title: String,
    pub(super) caption: Vec<String>,
    pub(super) footer: String,
}

/// A sheet with its title, legend and footer, and a plot between them.
pub(super) struct Sheet<'a> {
    area: DrawingArea<SVGBackend<'a>, Shift>,
    /// The corners of the plot.
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
}

/// The height of all that is above and below the plot of a sheet with such a legend.
pub(super) fn height_around(words: &Words, legend: &[(String, Look)]) -> i32 {
    top(words, legend) + BELOW
}

/// What is below the plot: ticks, label, footer.
const BELOW: i32 = 3 * ROW + 14;

fn top(words: &Words, legend: &[(String, Look)]) -> i32 {
    let caption = words.caption.len() as i32 * ROW;
    let rows = legend_places(legend).last().map_or(0, |(_, row)| row + 1);
    MARGIN + 24 + caption + rows * ROW + 10
}

impl<'a> Sheet<'a> {
    /// A sheet with everything but axes. The plot begins `left` of the edge, where the texts of the y axis need it.
    pub(super) fn new(
        svg: &'a mut String,
        height: u32,
        left: i32,
        words: &Words,
        legend: &[(String, Look)],
    ) -> Result<Self> {
        let area = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        let (right, bottom) = (WIDTH as i32 - 2 * MARGIN, height as i32 - BELOW);
        let sheet = Self { area, left, right, top: top(words, legend), bottom };
        let title = font(TITLE).style(FontStyle::Bold).color(&INK);
        let at = (MARGIN, MARGIN);
        sheet.area.draw(&Text::new(fit(&words.title, WIDTH_OF_TEXTS, TITLE), at, title))?;
        let mut y = MARGIN + 24;
        for line in &words.caption {
            sheet.text(&fit(line, WIDTH_OF_TEXTS, TEXT), (MARGIN, y + 6), HPos::Left)?;
            y += ROW;
        }
        for ((name, look), (x, row)) in legend.iter().zip(legend_places(legend)) {
            let middle = y + row * ROW + ROW / 2;
            sheet.line(&[(x, middle), (x + 24, middle)], *look)?;
            sheet.mark((x + 12, middle), *look)?;
            sheet.text(name, (x + 30, middle), HPos::Left)?;
        }
        let at = (MARGIN, height as i32 - MARGIN);
        sheet.text(&fit(&words.footer, WIDTH_OF_TEXTS, TEXT), at, HPos::Left)?;
        Ok(sheet)
    }

    /// Draws the grid and the texts of both axes.
    pub(super) fn axes(&self, x: &Axis, y: &Axis) -> Result {
        self.x_axis(x)?;
        for (value, text) in &y.ticks {
            let at = self.y(y.place(*value));
            self.stroke(&[(self.left, at), (self.right, at)], GRID, 1)?;
            self.text(text, (self.left - 8, at), HPos::Right)?;
        }
        let style = font(TEXT).transform(FontTransform::Rotate270).color(&INK);
        let style = style.pos(Pos::new(HPos::Center, VPos::Center));
        let at = (MARGIN + 6, (self.top + self.bottom) / 2);
        self.area.draw(&Text::new(y.label.clone(), at, style))?;
        self.frame()
    }

    /// Draws the grid and the texts of the x axis.
    pub(super) fn x_axis(&self, x: &Axis) -> Result {
        for (value, text) in &x.ticks {
            let at = self.x(x.place(*value));
            self.stroke(&[(at, self.top), (at, self.bottom)], GRID, 1)?;
            self.text(text, (at, self.bottom + 12), HPos::Center)?;
        }
        let middle = (self.left + self.right) / 2;
        self.text(&x.label, (middle, self.bottom + 12 + ROW), HPos::Center)
    }

    /// Draws the two sides of the plot that are axes.
    pub(super) fn frame(&self) -> Result {
        let corners = [(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)];
        self.stroke(&corners, FRAME, 1)
    }

    /// Colours the background of the plot from one height to another.
    pub(super) fn band(&self, from: i32, to: i32) -> Result {
        let corners = [(MARGIN, from), (self.right, to)];
        self.area.draw(&Rectangle::new(corners, BAND.filled()))?;
        Ok(())
    }

    /// Draws a line that stands out of the grid, from the top of the plot to its bottom.
    pub(super) fn upright(&self, x: i32) -> Result {
        self.stroke(&[(x, self.top), (x, self.bottom)], INK, 2)
    }

    pub(super) fn line(&self, points: &[(i32, i32)], look: Look) -> Result {
        if look.dashed {
            let style = look.colour.stroke_width(2);
            self.area.draw(&DashedPathElement::new(points.to_vec(), 6, 4, style))?;
            return Ok(());
        }
        self.stroke(points, look.colour, 2)
    }

    pub(super) fn stroke(&self, points: &[(i32, i32)], colour: RGBColor, width: u32) -> Result {
        self.area.draw(&PathElement::new(points.to_vec(), colour.stroke_width(width)))?;
        Ok(())
    }

    pub(super) fn mark(&self, at: (i32, i32), look: Look) -> Result {
        let (x, y) = at;
        match look.mark {
            Mark::Circle => self.area.draw(&Circle::new(at, 4, look.colour.filled()))?,
            Mark::Triangle => {
                self.area.draw(&TriangleMarker::new(at, 6, look.colour.filled()))?;
            }
            Mark::Square => {
                let corners = [(x - 4, y - 4), (x + 4, y + 4)];
                self.area.draw(&Rectangle::new(corners, look.colour.filled()))?;
            }
        }
        Ok(())
    }

    /// Writes a text whose middle is at the given height.
    pub(super) fn text(&self, text: &str, at: (i32, i32), side: HPos) -> Result {
        let style = font(TEXT).color(&INK).pos(Pos::new(side, VPos::Center));
        self.area.draw(&Text::new(text.to_string(), at, style))?;
        Ok(())
    }

    /// From a place on the x axis to a pixel.
    pub(super) fn x(&self, place: f64) -> i32 {
        self.left + (place * f64::from(self.right - self.left)).round() as i32
    }

    /// From a place on the y axis to a pixel.
    pub(super) fn y(&self, place: f64) -> i32 {
        self.bottom - (place * f64::from(self.bottom - self.top)).round() as i32
    }

    pub(super) fn top(&self) -> i32 {
        self.top
    }

    /// Ends the sheet. Without this the SVG is not closed.
    pub(super) fn finish(self) -> Result {
        self.area.present()?;
        Ok(())
    }
}

const WIDTH_OF_TEXTS: i32 = WIDTH as i32 - 2 * MARGIN;

fn font(size: f64) -> FontDesc<'static> {
    FontDesc::new(FontFamily::SansSerif, size * SIZE_FACTOR, FontStyle::Normal)
}

/// How wide a text is at most.
pub(super) fn width(text: &str, size: f64) -> i32 {
    (text.chars().count() as f64 * size * BREADTH).ceil() as i32
}

/// A text that is cut where it would be too wide.
pub(super) fn fit(text: &str, width_max: i32, size: f64) -> String {
    cut(text, (f64::from(width_max) / size / BREADTH) as usize)
}

/// How many characters of the usual size fit onto a line.
pub(super) fn characters_max() -> usize {
    (f64::from(WIDTH_OF_TEXTS) / TEXT / BREADTH) as usize
}

/// The first characters of a text, with a sign that there were more.
pub(super) fn cut(text: &str, characters: usize) -> String {
    if text.chars().count() <= characters {
        return text.into();
    }
    let kept: String = text.chars().take(characters.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// Where each entry of a legend begins, and in which row.
fn legend_places(legend: &[(String, Look)]) -> Vec<(i32, i32)> {
    let (mut x, mut row) = (MARGIN, 0);
    let mut places = Vec::new();
    for (name, _) in legend {
        let wide = 30 + width(name, TEXT);
        if x > MARGIN && x + wide > WIDTH as i32 - MARGIN {
            (x, row) = (MARGIN, row + 1);
        }
        places.push((x, row));
        x += wide + 22;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Look = Look { colour: BLACK, mark: Mark::Circle, dashed: false };

    #[test]
    fn a_legend_stays_on_the_sheet() {
        let legend: Vec<_> =
            (0..12).map(|line| (format!("a line with a long name, {line}"), LOOK)).collect();
        let places = legend_places(&legend);
        assert!(places.iter().any(|(_, row)| *row > 0));
        for ((name, _), (x, _)) in legend.iter().zip(places) {
            assert!(x + 30 + width(name, TEXT) <= WIDTH as i32 - MARGIN);
        }
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        assert_eq!(cut("Mühle", 5), "Mühle");
        assert_eq!(cut("Mühlenbach", 5), "Mühl…");
        assert_eq!(cut("ab cd", 4), "ab…");
        assert_eq!(cut("ab", 0), "…");
    }
}
