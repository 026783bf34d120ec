//! What the controller tells an agent to do, and what an agent answers: a line of JSON each.

use crate::store::Fresh;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One piece of work. An agent carries them out one after the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Job {
    /// Callers that act again as soon as they are answered, for a time.
    Load(Load),
    /// Puts the keys of a range in transactions of up to a hundred, to prepare other work.
    Fill {
        from: u64,
        to: u64,
        value_bytes: usize,
    },
    /// Puts each key of a range once, alone, in random order.
    Distinct {
        from: u64,
        to: u64,
        callers: usize,
        value_bytes: usize,
    },
    /// One put after the other, each timed until a watch in this process has seen it.
    WatchLatency {
        run_ms: u64,
    },
    /// Opens watches of one prefix, or of a prefix each that nobody writes to.
    OpenWatches {
        count: usize,
        apart: bool,
    },
    /// Puts under the prefix that is watched, and counts the events that all watches of this agent have seen meanwhile.
    FanOut {
        putters: usize,
        run_ms: u64,
    },
    CloseWatches,
    /// Grants leases for `KeepAlive`.
    OpenLeases {
        count: usize,
        ttl_ms: u64,
        place: Place,
    },
    KeepAlive {
        callers: usize,
        run_ms: u64,
        place: Place,
    },
    /// Grants leases with a key each, and times how long after its deadline each key is seen to go.
    Expiry {
        leases: usize,
        ttl_ms: u64,
    },
    /// Locks and unlocks: the callers are numbered from `first`, and caller i takes the name i modulo `names`.
    Lock {
        first: usize,
        callers: usize,
        names: usize,
        run_ms: u64,
    },
    /// Two candidates in turn: the leading one resigns when the other has waited for a while.
    HandOver {
        turns: usize,
        waited_ms: u64,
    },
    /// Puts, a new attempt every 20 ms, until one is acknowledged; `at_ns` says when that was.
    FirstWrite {
        limit_ms: u64,
    },
    /// Likewise for a linearizable read of a key that exists.
    FirstRead {
        limit_ms: u64,
    },
    /// Puts, a new attempt every 5 ms; `extra.gap_ms` is the longest time without an acknowledgement.
    Gap {
        run_ms: u64,
    },
    /// Whether the member in this process leads its group.
    Leads,
    /// Ends the member in good order, and then the agent.
    ShutDown,
}

/// Callers in a closed loop.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) act: Act,
    pub(crate) callers: usize,
    /// Where they call, if the agent reaches several members.
    pub(crate) place: Place,
    /// They act on random keys of so many.
    pub(crate) keys: u64,
    pub(crate) value_bytes: usize,
    /// Work at the beginning that is not measured.
    pub(crate) warm_ms: u64,
    pub(crate) run_ms: u64,
}

/// What a caller does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Act {
    Put,
    /// One comparison, two puts.
    Txn,
    Get(Fresh),
    /// Of all keys.
    Range,
    /// Of all keys.
    Count,
    /// A lease of a minute.
    Grant,
}

/// Which members an agent's callers call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Place {
    /// All, in turn.
    Spread,
    /// The one that led when the agent was started.
    Leader,
}

/// What an agent says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// It can be told to do things.
    Ready,
    Done(Sample),
    /// The answer to `Leads`.
    Leads(bool),
    /// A line for people.
    Failed(String),
}

/// What came of a job.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// How long it was measured.
    pub(crate) seconds: f64,
    pub(crate) operations: u64,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    /// Nanoseconds, and how many operations took so long.
    pub(crate) times: Vec<(u64, u64)>,
    /// When it happened, by the system's monotonic clock, which all processes share.
    pub(crate) at_ns: Option<u64>,
    pub(crate) extra: BTreeMap<String, f64>,
}

impl Job {
    /// The same, with all callers at one place. Jobs that have no choice stay as they are.
    pub(crate) fn at(mut self, at: Place) -> Self {
        match &mut self {
            Self::Load(Load { place, .. })
            | Self::OpenLeases { place, .. }
            | Self::KeepAlive { place, .. } => *place = at,
            _ => {}
        }
        self
    }

    /// The share of each of `parts` agents that carry it out together. Those with nothing to do are left out; what
    /// cannot be shared is the first one's.
    pub(crate) fn split(&self, parts: usize) -> Vec<Self> {
        let share = |count: usize, part: usize| count / parts + usize::from(part < count % parts);
        let all = 0..parts;
        match self.clone() {
            Self::Load(load) => {
                let loads = all.map(|part| Load { callers: share(load.callers, part), ..load });
                loads.filter(|load| load.callers > 0).map(Self::Load).collect()
            }
            Self::Distinct { from, to, callers, value_bytes } => {
                // A part of the range without a caller would never be put.
                let parts = parts.min(callers);
                let at = |part: usize| from + (to - from) * part as u64 / parts as u64;
                let job = |part: usize| Self::Distinct {
                    from: at(part),
                    to: at(part + 1),
                    callers: callers / parts + usize::from(part < callers % parts),
                    value_bytes,
                };
                (0..parts).map(job).collect()
            }
            Self::OpenWatches { count, apart } => {
                all.map(|part| Self::OpenWatches { count: share(count, part), apart }).collect()
            }
            Self::FanOut { putters, run_ms } => {
                all.map(|part| Self::FanOut { putters: share(putters, part), run_ms }).collect()
            }
            Self::OpenLeases { count, ttl_ms, place } => all
                .map(|part| Self::OpenLeases { count: share(count, part), ttl_ms, place })
                .collect(),
            Self::KeepAlive { callers, run_ms, place } => {
                let shares = all.map(|part| share(callers, part)).filter(|share| *share > 0);
                shares.map(|callers| Self::KeepAlive { callers, run_ms, place }).collect()
            }
            Self::Lock { first, callers, names, run_ms } => {
                let mut first = first;
                let mut jobs = Vec::new();
                for callers in all.map(|part| share(callers, part)).filter(|share| *share > 0) {
                    jobs.push(Self::Lock { first, callers, names, run_ms });
                    first += callers;
                }
                jobs
            }
            Self::CloseWatches => vec![Self::CloseWatches; parts],
            job => vec![job],
        }
    }
}

impl Sample {
    pub(crate) fn per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.operations as f64 / self.seconds } else { 0.0 }
    }

    /// Adds what another agent did at the same time.
    pub(crate) fn beside(mut self, other: Self) -> Self {
        // Each counts over its own window; the windows are equally long but for the scheduler's whims.
        let (rate, other_rate) = (self.per_second(), other.per_second());
        self.seconds = self.seconds.max(other.seconds);
        self.operations = ((rate + other_rate) * self.seconds).round() as u64;
        self.errors += other.errors;
        self.first_error = self.first_error.or(other.first_error);
        self.times.extend(other.times);
        self.at_ns = self.at_ns.or(other.at_ns);
        for (name, value) in other.extra {
            *self.extra.entry(name).or_default() += value;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTS: [usize; 12] = [0, 1, 2, 3, 4, 5, 7, 16, 64, 255, 1000, 1024];

    fn splits() -> impl Iterator<Item = (usize, usize)> {
        COUNTS.into_iter().flat_map(|count| (1..=9).map(move |parts| (count, parts)))
    }

    fn of_load(callers: usize) -> Job {
        Job::Load(crate::group::load(Act::Put, callers))
    }

    /// How many callers, watches or leases a job has.
    fn count(job: &Job) -> usize {
        match job {
            Job::Load(load) => load.callers,
            Job::Distinct { callers, .. }
            | Job::KeepAlive { callers, .. }
            | Job::Lock { callers, .. } => *callers,
            Job::OpenWatches { count, .. } | Job::OpenLeases { count, .. } => *count,
            Job::FanOut { putters, .. } => *putters,
            other => panic!("{other:?} has no count"),
        }
    }

    #[test]
    fn the_shares_of_a_job_add_up() {
        let place = Place::Spread;
        for (all, parts) in splits() {
            for job in [
                of_load(all),
                Job::Distinct { from: 5, to: 1000, callers: all, value_bytes: 1 },
                Job::OpenWatches { count: all, apart: true },
                Job::FanOut { putters: all, run_ms: 1 },
                Job::OpenLeases { count: all, ttl_ms: 1, place },
                Job::KeepAlive { callers: all, run_ms: 1, place },
                Job::Lock { first: 0, callers: all, names: all, run_ms: 1 },
            ] {
                let shares = job.split(parts);
                assert!(shares.len() <= parts);
                let counts: Vec<usize> = shares.iter().map(count).collect();
                assert_eq!(counts.iter().sum::<usize>(), all, "{job:?} in {parts}");
                let (most, least) = (counts.iter().max(), counts.iter().min());
                assert!(most <= least.map(|least| least + 1).as_ref(), "{counts:?}");
            }
        }
    }

    #[test]
    fn callers_in_a_loop_are_never_none() {
        let place = Place::Spread;
        for (callers, parts) in splits() {
            for job in [
                of_load(callers),
                Job::Distinct { from: 0, to: 9, callers, value_bytes: 1 },
                Job::KeepAlive { callers, run_ms: 1, place },
                Job::Lock { first: 0, callers, names: 1, run_ms: 1 },
            ] {
                assert!(job.split(parts).iter().all(|share| count(share) > 0), "{job:?}");
            }
        }
    }

    #[test]
    fn each_key_of_a_range_is_somebodys() {
        for (callers, parts) in splits().filter(|(callers, _)| *callers > 0) {
            let job = Job::Distinct { from: 7, to: 1000, callers, value_bytes: 1 };
            let mut next = 7;
            for share in job.split(parts) {
                let Job::Distinct { from, to, .. } = share else { panic!("{share:?}") };
                assert_eq!(from, next);
                next = to;
            }
            assert_eq!(next, 1000);
        }
    }

    #[test]
    fn callers_on_as_many_names_do_not_meet() {
        for (callers, parts) in splits() {
            let job = Job::Lock { first: 0, callers, names: callers, run_ms: 1 };
            let numbers = job.split(parts).into_iter().flat_map(|share| {
                let Job::Lock { first, callers, .. } = share else { panic!("{share:?}") };
                first..first + callers
            });
            assert!(numbers.eq(0..callers));
        }
    }

    #[test]
    fn what_is_asked_of_all_is_asked_of_each_and_what_cannot_be_shared_of_one() {
        assert_eq!(Job::CloseWatches.split(3).len(), 3);
        assert_eq!(Job::WatchLatency { run_ms: 1 }.split(3).len(), 1);
    }

    #[test]
    fn a_place_is_set_where_there_is_one() {
        let Job::Load(load) = of_load(1).at(Place::Leader) else { panic!("another job") };
        assert_eq!(load.place, Place::Leader);
        let leases = Job::OpenLeases { count: 1, ttl_ms: 1, place: Place::Spread };
        let Job::OpenLeases { place, .. } = leases.at(Place::Leader) else { panic!("another job") };
        assert_eq!(place, Place::Leader);
        assert!(matches!(Job::Leads.at(Place::Leader), Job::Leads));
    }

    #[test]
    fn samples_beside_each_other_add_their_rates() {
        let sample = |seconds, operations, errors: u64, first_error: Option<&str>| Sample {
            seconds,
            operations,
            errors,
            first_error: first_error.map(str::to_owned),
            times: vec![(1000, operations)],
            at_ns: None,
            extra: [("gap_ms".to_owned(), 2.0)].into(),
        };
        let both = sample(2.0, 200, 0, None).beside(sample(1.0, 50, 3, Some("why")));
        // A hundred per second and fifty.
        assert_eq!((both.seconds, both.operations, both.errors), (2.0, 300, 3));
        assert_eq!(both.first_error.as_deref(), Some("why"));
        assert_eq!(both.times, [(1000, 200), (1000, 50)]);
        assert_eq!(both.extra["gap_ms"], 4.0);

        let nothing = Sample::default().beside(Sample::default());
        assert_eq!((nothing.operations, nothing.per_second()), (0, 0.0));
    }
}
