//! An axis: where on it a value lies, and which values are written beside it.
//!
//! Nearly all axes here are logarithmic, because sides that differ tenfold at one end and by a tenth at the other have
//! to be legible in one picture. The other kind counts nines: a share of 0.9, 0.99 and 0.999 is one, two and three
//! steps from 0, so that the slowest thousandth gets as much room as the fastest nine tenths.
//!
//! Invariants, whatever the data:
//!
//! - `low` and `high` are finite, and `low < high`. A single value gets room on both sides.
//! - Values without a place, such as zero on a logarithmic axis, have been left out before; see [`is_log`] and
//!   [`is_share`].

use std::ops::RangeInclusive;

/// No two labels of an axis with exact labels are closer than this share of it.
const LABELS_APART: f64 = 0.05;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Log,
    Nines,
}

#[derive(Clone, Debug)]
pub(super) struct Axis {
    /// What it shows and in which unit.
    pub(super) label: String,
    /// Values that have a line in the grid and a text.
    pub(super) ticks: Vec<(f64, String)>,
    kind: Kind,
    /// The ends, as steps.
    low: f64,
    high: f64,
}

impl Axis {
    /// A logarithmic axis that reaches past all values to the next round ones. `None` if there are no values.
    pub(super) fn log(label: &str, values: impl Iterator<Item = f64>) -> Option<Self> {
        let (least, most) = reach(values)?;
        let ends = if most / least < 1.01 {
            round_below(least / 1.5)..=round_above(most * 1.5)
        } else {
            round_below(least)..=round_above(most)
        };
        let ticks = round_values(&ends).into_iter().map(|value| (value, short(value))).collect();
        Some(Self::between(label, Kind::Log, ends, ticks))
    }

    /// A logarithmic axis for values that were chosen, such as a number of callers: it ends close to the outermost and
    /// names each, where there is room.
    pub(super) fn chosen(label: &str, values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.filter(|value| is_log(*value)).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        let (least, most) = reach(values.iter().copied())?;
        let margin = (most / least).powf(0.04).max(1.05);
        let ends = least / margin..=most * margin;
        let mut axis = Self::between(label, Kind::Log, ends, Vec::new());
        axis.ticks = values.into_iter().map(|value| (value, exact(value, most))).collect();
        let is_crowded = |pair: &[(f64, String)]| {
            axis.place(pair[1].0) - axis.place(pair[0].0) < LABELS_APART
                || pair.iter().any(|(_, text)| text.len() > 6)
        };
        if axis.ticks.windows(2).any(is_crowded) {
            return Self::log(label, [least, most].into_iter());
        }
        Some(axis)
    }

    /// An axis of shares from 0 to the largest one, and at least to 0.99. 1 has no place on it.
    pub(super) fn nines(label: &str, shares: impl Iterator<Item = f64>) -> Self {
        let most = shares.filter(|share| is_share(*share)).fold(0.99, f64::max);
        let nines = [0.9, 0.99, 0.999, 0.9999, 0.99999].map(|share| (share, percent(share)));
        let ticks = [(0.0, "0 %".into()), (0.5, "50 %".into())].into_iter().chain(nines);
        let ticks = ticks.filter(|(share, _)| *share <= most).collect();
        Self::between(label, Kind::Nines, 0.0..=most, ticks)
    }

    fn between(
        label: &str,
        kind: Kind,
        ends: RangeInclusive<f64>,
        ticks: Vec<(f64, String)>,
    ) -> Self {
        let (low, high) = (kind.steps(*ends.start()), kind.steps(*ends.end()));
        assert!(low.is_finite() && high.is_finite() && low < high, "an axis has a length");
        Self { label: label.into(), ticks, kind, low, high }
    }

    /// Whether a value has a place on axes of this kind.
    pub(super) fn has(&self, value: f64) -> bool {
        match self.kind {
            Kind::Log => is_log(value),
            Kind::Nines => is_share(value),
        }
    }

    /// Where a value lies: 0 is the low end and 1 the high one. What lies outside is put onto the end.
    pub(super) fn place(&self, value: f64) -> f64 {
        ((self.kind.steps(value) - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Whether a value lies between the ends.
    pub(super) fn is_within(&self, value: f64) -> bool {
        self.has(value) && (self.low..=self.high).contains(&self.kind.steps(value))
    }
}

impl Kind {
    fn steps(self, value: f64) -> f64 {
        match self {
            Self::Log => value.log10(),
            Self::Nines => -(1.0 - value).log10(),
        }
    }
}

/// Whether a logarithmic axis can show a value. The bounds keep the arithmetic of the ends finite.
pub(super) fn is_log(value: f64) -> bool {
    (1e-12..=1e15).contains(&value)
}

/// Whether an axis of nines can show a share.
pub(super) fn is_share(share: f64) -> bool {
    (0.0..1.0).contains(&share)
}

/// The least and the most of the values that a logarithmic axis can show.
fn reach(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|value| is_log(*value)).fold(None, |reach, value| match reach {
        None => Some((value, value)),
        Some((least, most)) => Some((value.min(least), value.max(most))),
    })
}

/// 1, 2 and 5 of each power of ten; only 1 if that would be too many; more if it would be too few.
fn round_values(ends: &RangeInclusive<f64>) -> Vec<f64> {
    let decades = (ends.end() / ends.start()).log10();
    let factors: &[f64] = match decades {
        ..0.75 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
        ..3.05 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    let first = ends.start().log10().floor() as i32;
    let last = ends.end().log10().ceil() as i32;
    let powers = (first..=last).map(|power| 10_f64.powi(power));
    let all = powers.flat_map(|power| factors.iter().map(move |factor| factor * power));
    // An end is one of these values, but perhaps not to the last bit.
    let (low, high) = (ends.start() * 0.999, ends.end() * 1.001);
    all.filter(|value| (low..=high).contains(value)).collect()
}

fn round_below(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    [5.0, 2.0].map(|factor| factor * power).into_iter().find(|at| *at <= value).unwrap_or(power)
}

fn round_above(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let all = [1.0, 2.0, 5.0].map(|factor| factor * power);
    all.into_iter().find(|at| *at >= value).unwrap_or(10.0 * power)
}

/// `1500` as `1.5k`, with three digits that count.
pub(super) fn short(value: f64) -> String {
    let (scaled, unit, digits) = scaled(value);
    let text = format!("{scaled:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0') } else { &text };
    format!("{}{unit}", text.trim_end_matches('.'))
}

/// A chosen value: as it was chosen if it is a whole number that `short` would not name exactly, or if all are small.
fn exact(value: f64, most: f64) -> String {
    let (scaled, _, digits) = scaled(value);
    let is_short_exact = (scaled * 10_f64.powi(digits as i32)).fract() == 0.0;
    if value.fract() == 0.0 && (most < 10_000.0 || !is_short_exact) {
        return format!("{value:.0}");
    }
    short(value)
}

/// A value in its unit, the unit, and how many digits behind the point count.
fn scaled(value: f64) -> (f64, &'static str, usize) {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    // A thousand is one even if its last bit is missing.
    let unit = units.into_iter().find(|(size, _)| value >= size * (1.0 - 1e-9));
    let (size, unit) = unit.unwrap_or((1.0, ""));
    let scaled = value / size;
    let digits = (2 - scaled.log10().floor() as i32).clamp(0, 15) as usize;
    (scaled, unit, digits)
}

/// `0.999` as `99.9 %`.
fn percent(share: f64) -> String {
    let digits = (-(1.0 - share).log10()).round() as usize - 1;
    format!("{:.*} %", digits.saturating_sub(1), share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn an_axis_reaches_past_its_values_to_round_ones() {
        let axis = Axis::log("x", [230.0, 41_000.0].into_iter()).unwrap();
        assert_eq!(texts(&axis), ["200", "500", "1k", "2k", "5k", "10k", "20k", "50k"]);
        assert!(axis.place(230.0) > 0.0 && axis.place(41_000.0) < 1.0);
        let wide = Axis::log("x", [0.0021, 900.0].into_iter()).unwrap();
        assert_eq!(texts(&wide), ["0.01", "0.1", "1", "10", "100", "1k"]);
    }

    #[test]
    fn chosen_values_are_named_unless_they_are_crowded() {
        let axis = Axis::chosen("x", [1.0, 16.0, 64.0, 1024.0].into_iter()).unwrap();
        assert_eq!(texts(&axis), ["1", "16", "64", "1024"]);
        let axis = Axis::chosen("x", (1..=60).map(f64::from)).unwrap();
        assert!(axis.ticks.len() < 10, "{axis:?}");
        let axis = Axis::chosen("x", [1000.0, 16_384.0, 100_000.0].into_iter()).unwrap();
        assert_eq!(texts(&axis), ["1k", "16384", "100k"]);
    }

    #[test]
    fn nines_are_steps_of_the_same_length() {
        let axis = Axis::nines("x", [0.0, 0.5, 0.9995, 1.0, f64::NAN].into_iter());
        assert_eq!(texts(&axis), ["0 %", "50 %", "90 %", "99 %", "99.9 %"]);
        let step = |low, high| axis.place(high) - axis.place(low);
        assert!((step(0.0, 0.9) - step(0.99, 0.999)).abs() < 1e-9);
    }

    #[test]
    fn whatever_the_values_an_axis_has_a_length() {
        let odd = [0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE];
        assert!(Axis::log("x", odd.into_iter()).is_none());
        assert!(Axis::chosen("x", odd.into_iter()).is_none());
        for value in [1e-12, 0.3, 1.0, 7.0, 1e15] {
            let axis = Axis::log("x", odd.into_iter().chain([value])).unwrap();
            let place = axis.place(value);
            assert!(place > 0.0 && place < 1.0, "{axis:?}");
            assert!(axis.ticks.len() >= 2, "{axis:?}");
            assert!(Axis::chosen("x", [value].into_iter()).unwrap().is_within(value));
        }
    }

    #[test]
    fn numbers_are_short() {
        let all = [0.05, 0.2, 1.0, 1.5, 20.0, 999.0, 1000.0, 1500.0, 250e3, 2e6, 3e9];
        let texts = all.map(short);
        let expected = ["0.05", "0.2", "1", "1.5", "20", "999", "1k", "1.5k", "250k", "2M", "3G"];
        assert_eq!(texts, expected);
    }
}
