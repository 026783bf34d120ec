//! The life of a session, as far as its client can know: alive until a deadline, or lost, and lost for good.
//!
//! ```text
//! sent                       renew at ttl/3           deadline        the group may expire it
//!  ├──────────────────────────┼────────────────────────┼───────────────┼──────────▶ time
//!  └ taken before sending: the group counts from later, so it always ends later than we do
//!                                                      └── margin ─────┘
//! ```
//!
//! Invariants
//! - the deadline is the time of *sending* + ttl − margin, where the margin is a tenth of the ttl, and 100 ms at least.
//!   So a session ends for its holder before it can end for the group, whatever the network does to the answer;
//! - the deadline is looked at by whoever asks, not only by the keeper: a starved task prolongs nothing;
//! - what was lost stays lost, though an answer says otherwise later.
//!
//! The clock is tokio's, which on most platforms stands still while the machine is suspended. After a suspend a session
//! may believe in itself until its first renewal fails. That is what fencing tokens are for.

use super::link::Link;
use crate::error::{Error, Reason, Result};
use crate::types::{LeaseId, limits};
use futures::future::{poll_fn, select};
use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The margin is this part of the ttl, and [`MARGIN_MIN`] at least.
const MARGIN_PART: u32 = 10;
const MARGIN_MIN: Duration = Duration::from_millis(100);

/// Whether a session lives, as far as its client can know.
#[derive(Debug)]
pub(crate) struct Life {
    lease: LeaseId,
    ttl: Duration,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Alive { until: Instant },
    Lost,
}

impl Life {
    /// A lease of `ttl` that was asked for at `sent`.
    pub(super) fn new(lease: LeaseId, ttl: Duration, sent: Instant) -> Self {
        let state = State::Alive { until: deadline(sent, ttl) };
        Self { lease, ttl, state: watch::Sender::new(state) }
    }

    pub(super) fn lease(&self) -> LeaseId {
        self.lease
    }

    pub(super) fn ttl(&self) -> Duration {
        self.ttl
    }

    pub(super) fn is_alive(&self) -> bool {
        self.until().is_some()
    }

    /// The deadline; `None` if it has passed, or the lease was lost before.
    fn until(&self) -> Option<Instant> {
        let state = *self.state.borrow();
        match state {
            State::Alive { until } if Instant::now() < until => Some(until),
            State::Alive { .. } => {
                // For good: nobody may see it alive again, whatever the group says.
                self.lose();
                None
            }
            State::Lost => None,
        }
    }

    /// Completes when the session is lost.
    pub(super) async fn lost(&self, link: &Link) {
        let mut changes = self.state.subscribe();
        loop {
            changes.mark_unchanged();
            let Some(until) = self.until() else { return };
            if link.has_ended() {
                // The keeper has ended as well: nothing renews it any more. To know it now is better than at the deadline.
                return self.lose();
            }
            let _ = select(pin!(changes.changed()), pin!(link.sleep_until(until))).await;
        }
    }

    pub(super) fn lose(&self) {
        self.state.send_if_modified(|state| std::mem::replace(state, State::Lost) != State::Lost);
    }

    /// The group renewed the lease, asked at `sent`. Whether it still counts.
    pub(super) fn renew(&self, sent: Instant, ttl: Duration) -> bool {
        let now = Instant::now();
        self.state.send_if_modified(|state| match *state {
            State::Alive { until } if now < until => {
                *state = State::Alive { until: until.max(deadline(sent, ttl)) };
                true
            }
            State::Alive { .. } => {
                *state = State::Lost;
                true
            }
            State::Lost => false,
        });
        self.is_alive()
    }
}

/// When a session gives itself up that was last known to live at `sent`.
fn deadline(sent: Instant, ttl: Duration) -> Instant {
    let margin = (ttl / MARGIN_PART).max(MARGIN_MIN);
    sent + ttl.min(limits::TTL_MAX).saturating_sub(margin)
}

/// Runs `work` unless the session is lost first.
pub(super) async fn unless_lost<F: Future>(life: &Life, link: &Link, work: F) -> Result<F::Output> {
    let (mut lost, mut work) = (pin!(life.lost(link)), pin!(work));
    poll_fn(|context| {
        // In this order, so that work does not go on for one more turn after the deadline. The clock is asked each time: after
        // a pause of the process, whatever woke the work may have been faster than the timer.
        let is_lost = !life.is_alive() || lost.as_mut().poll(context).is_ready();
        match is_lost {
            true => Poll::Ready(Err(Error::new(Reason::SessionLost))),
            false => work.as_mut().poll(context).map(Ok),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that was stopped goes on with whatever is woken first, which need not be a timer.
    #[tokio::test(start_paused = true)]
    async fn work_does_not_go_on_after_the_deadline_though_no_timer_has_said_so() {
        let fake = crate::client::fake::Fake::new();
        let client = fake.client();
        let life = Life::new(LeaseId::from(1), Duration::from_secs(10), Instant::now());
        let mut turns = 0;
        let work = poll_fn(|_| {
            turns += 1;
            Poll::<()>::Pending
        });
        {
            let mut run = pin!(unless_lost(&life, client.link(), work));
            assert!(futures::poll!(run.as_mut()).is_pending());
            // As after a stop: the time has passed, and the timers have not been looked at.
            life.state.send_replace(State::Alive { until: Instant::now() });
            life.state.subscribe().mark_unchanged();
            let ended = futures::poll!(run.as_mut());
            assert!(matches!(ended, Poll::Ready(Err(_))), "{ended:?}");
        }
        assert_eq!(turns, 1);
    }

    /// Nobody looked between the deadline and an answer that would prolong it: it is lost all the same.
    #[tokio::test(start_paused = true)]
    async fn a_late_answer_brings_nothing_back() {
        let ttl = Duration::from_secs(10);
        let sent = Instant::now();
        let life = Life::new(LeaseId::from(1), ttl, sent);
        tokio::time::advance(Duration::from_millis(8_999)).await;
        assert!(life.renew(sent, ttl), "the margin is a tenth");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!life.renew(Instant::now(), ttl));
        assert!(!life.is_alive());
        let short = Life::new(LeaseId::from(2), Duration::from_millis(500), Instant::now());
        tokio::time::advance(Duration::from_millis(399)).await;
        assert!(short.is_alive());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!short.is_alive(), "the margin is 100 ms at least");
    }
}
