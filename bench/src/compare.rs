//! `compare`: every row on every side, round after round, and the ratios between them.
//!
//! ```text
//! round 1   keys:  quorate, etcd     waits: quorate, etcd     life: quorate, etcd
//! round 2   keys:  etcd, quorate     waits: etcd, quorate     life: etcd, quorate
//! …
//! ```
//!
//! Each station is a fresh group, and the sides take turns at beginning, so that a drift of the machine falls on both. A
//! ratio is taken within a round; its spread says how much the rounds differed.

use crate::group::{Column, Group, Settings, Side};
use crate::job::Sample;
use crate::measure::{Outcome, measure, p50_ms, prepare};
use crate::meter::histogram;
use crate::plan::{Plan, Scale, Station, plans};
use crate::report::{Column as Cell, Figure, Latency, Ratio, Ratios, Row};
use crate::store::Result;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::time::Duration;

/// What starting, filling and ending a group takes, in milliseconds.
fn station_ms(side: Side) -> u64 {
    match side {
        Side::Quorate | Side::Etcd => 2_500,
        Side::Hiqlite | Side::HiqliteSql => 10_000,
    }
}

/// What a run measures.
pub(crate) struct Run {
    pub(crate) scale: Scale,
    pub(crate) settings: Settings,
    pub(crate) sides: Vec<Side>,
    pub(crate) plans: Vec<Plan>,
}

/// The outcomes of one row in one column, by round.
type Outcomes = BTreeMap<(usize, Column), Vec<Option<Outcome>>>;

impl Run {
    /// All rows, or those whose names begin with one of `only`.
    pub(crate) fn new(scale: Scale, settings: Settings, sides: Vec<Side>, only: &[String]) -> Self {
        let wanted = |plan: &Plan| {
            only.is_empty() || only.iter().any(|name| plan.name.starts_with(name.as_str()))
        };
        let plans = plans(&scale).into_iter().filter(wanted).collect();
        Self { scale, settings, sides, plans }
    }

    fn stations(&self) -> impl Iterator<Item = Station> {
        Station::ALL.into_iter().filter(|it| self.plans.iter().any(|plan| plan.station == *it))
    }

    /// What a station has to do for a side, in order.
    fn steps(&self, station: Station, side: Side) -> impl Iterator<Item = (usize, Column)> {
        let plans = self.plans.iter().enumerate().filter(move |(_, it)| it.station == station);
        plans.flat_map(move |(index, plan)| {
            let columns = plan.columns.iter().filter(move |column| column.side() == side);
            columns.map(move |column| (index, *column))
        })
    }

    fn estimate_ms(&self, station: Station, side: Side) -> u64 {
        let steps = self.steps(station, side);
        let steps = steps.map(|(index, _)| self.plans[index].task.estimate_ms(&self.scale, side));
        steps.reduce(|sum, step| sum + step).map_or(0, |steps| station_ms(side) + steps)
    }

    /// How long all of it takes, as far as one can know.
    pub(crate) fn estimate(&self) -> Duration {
        let stations = self.stations().flat_map(|station| {
            self.sides.iter().map(move |side| self.estimate_ms(station, *side))
        });
        Duration::from_millis(stations.sum::<u64>() * u64::from(self.scale.rounds))
    }

    pub(crate) async fn carry_out(&self) -> Result<Vec<Row>> {
        let bar = ProgressBar::new(self.estimate().as_millis() as u64);
        let style = "{elapsed_precise} [{bar:40}] {percent:>3}%  {msg}";
        bar.set_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
        bar.enable_steady_tick(Duration::from_millis(500));
        let mut outcomes = Outcomes::new();
        for round in 0..self.scale.rounds {
            for station in self.stations() {
                let mut sides = self.sides.clone();
                if round % 2 == 1 {
                    sides.reverse();
                }
                for side in sides {
                    self.visit(station, side, round as usize, &mut outcomes, &bar).await?;
                }
            }
        }
        bar.finish_and_clear();
        Ok(self.rows(&outcomes))
    }

    /// A fresh group goes through a station, if there is anything for it to do.
    async fn visit(
        &self,
        station: Station,
        side: Side,
        round: usize,
        outcomes: &mut Outcomes,
        bar: &ProgressBar,
    ) -> Result {
        if self.steps(station, side).next().is_none() {
            return Ok(());
        }
        let mut group = Group::start(side, &self.settings).await?;
        prepare(&mut group, station).await?;
        bar.inc(station_ms(side));
        for (index, column) in self.steps(station, side) {
            let plan = &self.plans[index];
            bar.set_message(format!("round {}: {}, {}", round + 1, plan.name, column.name()));
            let outcome = measure(&mut group, column, plan, &self.scale).await;
            if let Err(error) = &outcome {
                bar.suspend(|| eprintln!("{}, {}: {error}", plan.name, column.name()));
            }
            let rounds = outcomes.entry((index, column)).or_default();
            rounds.resize(round, None);
            rounds.push(outcome.ok());
            bar.inc(plan.task.estimate_ms(&self.scale, side));
        }
        group.end().await
    }

    fn rows(&self, outcomes: &Outcomes) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        for (index, plan) in self.plans.iter().enumerate() {
            let found = rows.iter().position(|row| row.name == plan.name);
            let at = found.unwrap_or_else(|| {
                rows.push(Row {
                    name: plan.name.clone(),
                    title: plan.title.clone(),
                    figure: plan.figure,
                    parameters: plan.parameters(&self.scale),
                    columns: BTreeMap::new(),
                    ratios: BTreeMap::new(),
                });
                rows.len() - 1
            });
            for column in &plan.columns {
                if let Some(rounds) = outcomes.get(&(index, *column)) {
                    let cell = cell(rounds, self.scale.rounds as usize);
                    rows[at].columns.insert(column.name().to_owned(), cell);
                }
            }
        }
        rows.iter_mut().for_each(compare_columns);
        rows
    }
}

/// Puts the rounds of a column together.
fn cell(rounds: &[Option<Outcome>], count: usize) -> Cell {
    let mut cell = Cell::default();
    let mut times = histogram();
    for round in 0..count {
        let outcome = rounds.get(round).and_then(Option::as_ref);
        let figure = outcome.map(|it| it.figure).filter(|figure| figure.is_finite());
        cell.rounds.push(figure);
        cell.p50_rounds.push(outcome.and_then(|it| p50_ms(&it.sample.times)));
        let Some(Outcome { sample, .. }) = outcome else { continue };
        cell.operations += sample.operations;
        cell.errors += sample.errors;
        cell.first_error = cell.first_error.take().or_else(|| sample.first_error.clone());
        for (time, count) in &sample.times {
            times.saturating_record_n(*time, *count);
        }
    }
    cell.value = median(&cell.rounds);
    cell.extra = extra(rounds);
    cell.latency = (!times.is_empty()).then(|| latency(&times));
    cell
}

/// Further figures, by the median of the rounds.
fn extra(rounds: &[Option<Outcome>]) -> BTreeMap<String, f64> {
    let samples: Vec<&Sample> = rounds.iter().flatten().map(|outcome| &outcome.sample).collect();
    let names = samples.iter().flat_map(|sample| sample.extra.keys());
    let of = |name: &String| {
        let values: Vec<_> = samples.iter().map(|sample| sample.extra.get(name).copied()).collect();
        (name.clone(), median(&values))
    };
    names.map(of).collect()
}

fn latency(times: &hdrhistogram::Histogram<u64>) -> Latency {
    let at = |quantile: f64| times.value_at_quantile(quantile) as f64 / 1e6;
    // Ten operations above a percentile are few enough to know it badly, and fewer say nothing.
    let known = |quantile: f64| {
        let above = times.len() as f64 * (1.0 - quantile);
        (above >= 10.0).then(|| at(quantile))
    };
    let steps = (0..100).map(|step| f64::from(step) / 100.0);
    let nines = [0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999];
    let curve = steps.chain(nines).filter_map(|quantile| Some((quantile, known(quantile)?)));
    Latency {
        p50: Some(at(0.5)),
        p90: known(0.9),
        p99: known(0.99),
        p999: known(0.999),
        max: times.max() as f64 / 1e6,
        curve: curve.collect(),
    }
}

/// Divides the columns of quorate by those of etcd.
pub(crate) fn compare_columns(row: &mut Row) {
    for column in [Column::Embedded, Column::EmbeddedLeader, Column::Remote] {
        let Some(own) = row.columns.get(column.name()) else { continue };
        // Where etcd has no column of callers at the leader, there is one caller, who is there anyway.
        let beside = [column.beside(), Some(Column::Etcd)];
        let found = beside
            .into_iter()
            .flatten()
            .find_map(|beside| Some((beside.name(), row.columns.get(beside.name())?)));
        let Some((name, beside)) = found else { continue };
        let Some(figure) = ratio(&own.rounds, &beside.rounds) else { continue };
        let p50 = (row.figure != Figure::Milliseconds)
            .then(|| ratio(&own.p50_rounds, &beside.p50_rounds))
            .flatten();
        let ratios = Ratios { beside: name.to_owned(), figure, p50 };
        row.ratios.insert(column.name().to_owned(), ratios);
    }
}

/// Student's t for 99 %, two-sided, by degrees of freedom from one. A report has some seventy ratios, and two reports are
/// asked whether they agree in every one: with 95 % a few would not, by chance.
const T_99: [f64; 10] = [63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169];

/// The ratio of two columns over the rounds in which both have a figure; at least two.
pub(crate) fn ratio(own: &[Option<f64>], other: &[Option<f64>]) -> Option<Ratio> {
    let logs: Vec<f64> = own
        .iter()
        .zip(other)
        .filter_map(|(own, other)| Some(((*own)? / (*other)?).ln()))
        .filter(|log| log.is_finite())
        .collect();
    if logs.len() < 2 {
        return None;
    }
    let count = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / count;
    let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let t = T_99.get(logs.len() - 2).copied().unwrap_or(2.9);
    let half = t * (variance / count).sqrt();
    Some(Ratio { mean: mean.exp(), low: (mean - half).exp(), high: (mean + half).exp() })
}

fn median(values: &[Option<f64>]) -> f64 {
    let mut values: Vec<f64> = values.iter().flatten().copied().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[odd / 2],
        even => f64::midpoint(values[even / 2 - 1], values[even / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_mean_of_the_rounds_and_its_spread_their_difference() {
        let own = [Some(20.0), Some(40.0), None, Some(20.0)];
        let other = [Some(10.0), Some(10.0), Some(10.0), Some(10.0)];
        let ratio = ratio(&own, &other).unwrap();
        assert!((ratio.mean - 16.0_f64.powf(1.0 / 3.0)).abs() < 1e-9);
        assert!(ratio.low < 1.0 && ratio.high > 6.0, "three rounds say little: {ratio:?}");
    }

    #[test]
    fn equal_rounds_have_no_spread_and_one_round_no_ratio() {
        let ten = [Some(10.0), Some(10.0), Some(10.0)];
        let ratio_of = ratio(&ten, &ten).unwrap();
        assert_eq!((ratio_of.mean, ratio_of.low, ratio_of.high), (1.0, 1.0, 1.0));
        assert!(ratio(&ten[..1], &ten).is_none());
        assert!(ratio(&[Some(1.0), Some(2.0)], &[Some(0.0), Some(1.0)]).is_none());
    }
}
