//! Counting operations and how long they took, from many tasks at once.

use crate::job::Sample;
use crate::store::Result;
use hdrhistogram::Histogram;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Times are kept to one part in a thousand, from a nanosecond to ten minutes.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("constant bounds are valid")
}

/// Nanoseconds of the system's monotonic clock, the same in all processes.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// What all callers of a job have counted.
pub(crate) struct Meter {
    from: Instant,
    until: Instant,
    counted: Mutex<Counted>,
}

struct Counted {
    times: Histogram<u64>,
    errors: u64,
    first_error: Option<String>,
}

/// One caller's share, kept apart so that callers do not wait for each other.
pub(crate) struct Caller {
    meter: Arc<Meter>,
    times: Vec<Duration>,
    errors: u64,
    first_error: Option<String>,
}

impl Meter {
    /// Counts what ends between `warm` from now and `run` later.
    pub(crate) fn new(warm: Duration, run: Duration) -> Arc<Self> {
        let from = Instant::now() + warm;
        let counted = Counted { times: histogram(), errors: 0, first_error: None };
        Arc::new(Self { from, until: from + run, counted: Mutex::new(counted) })
    }

    pub(crate) fn caller(self: &Arc<Self>) -> Caller {
        Caller { meter: Arc::clone(self), times: Vec::new(), errors: 0, first_error: None }
    }

    /// What was counted, when all callers have gone.
    pub(crate) fn sample(&self) -> Sample {
        let run = self.until - self.from;
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        Sample {
            seconds: run.as_secs_f64(),
            operations: counted.times.len(),
            errors: counted.errors,
            first_error: counted.first_error.clone(),
            times: counted
                .times
                .iter_recorded()
                .map(|it| (it.value_iterated_to(), it.count_at_value()))
                .collect(),
            ..Sample::default()
        }
    }
}

impl Caller {
    /// Counts an operation that began at `began` and has just ended, and says whether there is time for another.
    pub(crate) fn count<T>(&mut self, began: Instant, outcome: &Result<T>) -> bool {
        let now = Instant::now();
        if now >= self.meter.from && now < self.meter.until {
            match outcome {
                Ok(_) => self.times.push(now - began),
                Err(error) => {
                    self.errors += 1;
                    self.first_error.get_or_insert_with(|| error.to_string());
                }
            }
            if self.times.len() >= 256 {
                self.hand_in();
            }
        }
        now < self.meter.until
    }

    fn hand_in(&mut self) {
        let mut counted = self.meter.counted.lock().unwrap_or_else(PoisonError::into_inner);
        for time in self.times.drain(..) {
            counted.times.saturating_record(time.as_nanos().max(1) as u64);
        }
        counted.errors += std::mem::take(&mut self.errors);
        if counted.first_error.is_none() {
            counted.first_error = self.first_error.take();
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.hand_in();
    }
}
