//! Physical compaction: history that was forgotten goes from the tables, a step at a time, with a rest after each.
//!
//! ```text
//! step ─ rest ───────── step ─ rest ───────── …       one transaction each; flushes come in between
//! ```
//!
//! A step is a flush of the disk, and all members forget the same at the same time. Without rests the slowest writes took three
//! times as long for half a minute while a million revisions went (`quorate-bench calm`). Nobody waits for the room before the
//! quota is used up, so there is time. But history must not come faster than it goes: whenever more is forgotten before the last
//! is gone, rests get shorter, down to none.
//!
//! Nothing has to be remembered over a restart: what is dead stands at the front of the tables, and is looked for at each start.
//!
//! Invariant: a step with a rest after it holds up the thread that flushes for a few milliseconds, whatever the rows are.

use super::{Job, State, answering};
use crate::error::Fault;
use crate::fault::{Point, point};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep};

/// How long a step is to take.
const STEP: Duration = Duration::from_millis(3);
/// Rows of history that a step removes.
const ROWS: RangeInclusive<usize> = 50..=2000;
/// How many times as long as a step the rest after it is.
const RESTS: u32 = 8;

/// Says that there may be something to remove.
#[derive(Debug)]
pub(super) struct Dead {
    /// How often that was said. A start has not looked yet.
    said: watch::Sender<u64>,
    /// How often it had been when the last of it was gone.
    gone: AtomicU64,
}

impl Default for Dead {
    fn default() -> Self {
        Self { said: watch::Sender::new(1), gone: AtomicU64::new(0) }
    }
}

impl Dead {
    /// History was forgotten, and the tables know it.
    pub(super) fn note(&self) {
        self.said.send_modify(|times| *times += 1);
    }

    /// Whether there may be something.
    fn is_any(&self) -> bool {
        *self.said.borrow() != self.gone.load(Ordering::Acquire)
    }
}

/// How much is done at once, and how long there is nothing done then.
#[derive(Debug)]
struct Pace {
    rows: usize,
    rests: u32,
}

impl Pace {
    fn new() -> Self {
        Self { rows: 200, rests: RESTS }
    }

    /// The rest after a step that took so long. The next step is as much larger or smaller as this one was too quick or slow;
    /// without rests it is larger, for then it is the number of steps that counts: each is a flush, however slow the disk is.
    fn after(&mut self, took: Duration, is_waited_for: bool) -> Duration {
        if is_waited_for {
            self.rests = 0;
        }
        let factor = match self.rests {
            0 => 2.0,
            _ => STEP.as_secs_f64() / took.as_secs_f64().max(1e-6),
        };
        let rows = (self.rows as f64 * factor.clamp(0.5, 2.0)) as usize;
        self.rows = rows.clamp(*ROWS.start(), *ROWS.end());
        took * self.rests
    }

    /// More was forgotten than has gone.
    fn hurry(&mut self) {
        self.rests /= 2;
    }
}

/// Removes what is dead, whenever there is something, until the state has ended.
pub(crate) async fn compact_in_time(state: Arc<State>) {
    let mut dead = state.dead.said.subscribe();
    loop {
        let mut said = *dead.borrow_and_update();
        let mut pace = Pace::new();
        loop {
            // What stands in its way is reported where it happens.
            let Ok((is_done, took)) = state.compact_step(pace.rows).await else { return };
            if is_done {
                break;
            }
            if dead.has_changed().unwrap_or(false) {
                said = *dead.borrow_and_update();
                pace.hurry();
            }
            let is_waited_for = state.moment().is_ok_and(|moment| moment.is_short_of_room());
            sleep(pace.after(took, is_waited_for)).await;
        }
        // With what was measured after the last step.
        state.dead.gone.store(said, Ordering::Release);
        if dead.changed().await.is_err() {
            return;
        }
    }
}

impl State {
    /// Whether history that was forgotten may still be in the tables.
    pub(crate) fn forgets(&self) -> bool {
        self.dead.is_any()
    }

    /// Removes some of the compacted history, on the thread that flushes. Says whether that was the last of it, and how long
    /// it took there.
    pub(super) async fn compact_step(
        self: &Arc<Self>,
        rows: usize,
    ) -> Result<(bool, Duration), Fault> {
        let (done, result) = oneshot::channel();
        let step = move |state: &Arc<Self>| {
            // Nothing is written after a write that failed.
            let store = state.check().and_then(|()| state.store())?;
            point(Point::CompactStep);
            let begun = Instant::now();
            let stepped =
                store.compact_step(rows).and_then(|is_done| state.measure().map(|()| is_done));
            let is_done = stepped.inspect_err(|fault| drop(state.fail(fault.clone())))?;
            if is_done {
                point(Point::CompactStepDone);
            }
            Ok((is_done, begun.elapsed()))
        };
        self.send_to_disk(Job::Run(Arc::clone(self), answering(done, step)))?;
        result.await.unwrap_or_else(|_| Err(self.cause()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_takes_its_time_and_rests_get_shorter_when_there_is_more() {
        let mut pace = Pace::new();
        // A row takes ten microseconds, until the disk has more to do.
        let ten_steps = |pace: &mut Pace, row: Duration| {
            for _ in 0..10 {
                let took = row * u32::try_from(pace.rows).unwrap();
                assert_eq!(pace.after(took, false), took * RESTS);
            }
        };
        ten_steps(&mut pace, Duration::from_micros(10));
        assert_eq!(pace.rows, 300);
        ten_steps(&mut pace, Duration::from_millis(1));
        assert_eq!(pace.rows, *ROWS.start(), "however slow it is, it goes on");
        ten_steps(&mut pace, Duration::ZERO);
        assert_eq!(pace.rows, *ROWS.end());
        (0..3).for_each(|_| pace.hurry());
        assert_eq!(pace.after(STEP, false), STEP);
        // On a slow disk the number of flushes is what there is little of.
        let slow = Duration::from_millis(50);
        let mut waited_for = Pace::new();
        ten_steps(&mut waited_for, Duration::from_millis(1));
        for (pace, is_waited_for) in [(&mut pace, false), (&mut waited_for, true)] {
            pace.hurry();
            (0..10).for_each(|_| assert_eq!(pace.after(slow, is_waited_for), Duration::ZERO));
            assert_eq!(pace.rows, *ROWS.end(), "all that the disk can do");
        }
    }
}
