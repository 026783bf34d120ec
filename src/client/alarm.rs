//! Timers that outlive their runtime.
//!
//! A tokio timer that is polled after its runtime has ended panics. The runtime of a client in the process of a node is
//! the node's own, which ends with the node, while the program may still wait for an answer or for `lost()`. So waits
//! of the program never hold a tokio timer. They leave their waker here, and one task on the client's runtime wakes
//! them.
//!
//! ```text
//! Alarm ── (deadline, waker) ──▶ BTreeMap ◀── task on the client's runtime: sleeps until the earliest
//! Alarm ── (deadline, waker) ──▶    │
//!                                   └ the task ends, for whatever reason ─▶ everybody is woken: gone
//! ```
//!
//! Invariants
//! - an alarm may be polled on any executor, and before, while or after the runtime ends, without a panic;
//! - when the runtime is gone, every alarm goes off at once: a wait that nobody watches is never endless;
//! - an alarm that is dropped leaves nothing behind.

use futures::future::select;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// All alarms of a client.
#[derive(Debug)]
pub(crate) struct Alarms {
    runtime: Handle,
    board: Arc<Board>,
    /// Owns the task, which is started by the first alarm.
    task: OnceLock<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct Board {
    pending: Mutex<Pending>,
    /// There is an alarm before all others.
    earlier: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    wakers: BTreeMap<(Instant, u64), Waker>,
    ids: u64,
    /// What the task sleeps until.
    armed: Option<Instant>,
    /// The runtime has ended, or the client.
    gone: bool,
}

/// Whether an alarm went off in its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rang {
    Due,
    /// There is no runtime any more to keep the time.
    Gone,
}

/// A wait for a point in time.
#[derive(Debug)]
pub(crate) struct Alarm {
    board: Arc<Board>,
    deadline: Instant,
    id: Option<u64>,
}

impl Alarms {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self { runtime, board: Arc::default(), task: OnceLock::new() }
    }

    pub(crate) fn at(&self, deadline: Instant) -> Alarm {
        self.task.get_or_init(|| {
            let mut task = JoinSet::new();
            // Made here, so that it says that it is gone although the runtime drops it unrun.
            let ringer = Ringer { board: self.board.clone() };
            task.spawn_on(ringer.run(), &self.runtime);
            task
        });
        Alarm { board: self.board.clone(), deadline, id: None }
    }

    /// Whether the runtime is known to have ended.
    pub(crate) fn is_gone(&self) -> bool {
        self.board.pending().gone
    }
}

impl Board {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        // Nothing that runs under the lock can panic halfway through a change.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Future for Alarm {
    type Output = Rang;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Rang> {
        let alarm = &mut *self;
        let mut pending = alarm.board.pending();
        if pending.gone {
            return Poll::Ready(Rang::Gone);
        }
        if Instant::now() >= alarm.deadline {
            return Poll::Ready(Rang::Due);
        }
        let id = *alarm.id.get_or_insert_with(|| {
            pending.ids += 1;
            pending.ids
        });
        let waker = context.waker().clone();
        let old = pending.wakers.insert((alarm.deadline, id), waker);
        // Mostly it is not: calls wait for the same time, so the earliest is an old one.
        let earliest = pending.armed.is_none_or(|armed| alarm.deadline < armed);
        if earliest {
            pending.armed = Some(alarm.deadline);
        }
        drop(pending);
        // Not under the lock: a waker may own a task, and the task an alarm.
        drop(old);
        if earliest {
            alarm.board.earlier.notify_one();
        }
        Poll::Pending
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let waker = self.board.pending().wakers.remove(&(self.deadline, id));
            drop(waker);
        }
    }
}

/// The task behind [`Alarms`].
struct Ringer {
    board: Arc<Board>,
}

impl Ringer {
    async fn run(self) {
        loop {
            let next = self.ring();
            let earlier = pin!(self.board.earlier.notified());
            match next {
                Some(next) => {
                    select(pin!(tokio::time::sleep_until(next)), earlier).await;
                }
                None => earlier.await,
            }
        }
    }

    /// Wakes whose time has come, and says when the next is.
    fn ring(&self) -> Option<Instant> {
        let mut due = Vec::new();
        let mut pending = self.board.pending();
        let now = Instant::now();
        while let Some(first) = pending.wakers.first_entry().filter(|first| first.key().0 <= now) {
            due.push(first.remove());
        }
        let next = pending.wakers.first_key_value().map(|((at, _), _)| *at);
        pending.armed = next;
        drop(pending);
        due.into_iter().for_each(Waker::wake);
        next
    }
}

impl Drop for Ringer {
    fn drop(&mut self) {
        let mut pending = self.board.pending();
        pending.gone = true;
        let wakers = std::mem::take(&mut pending.wakers);
        drop(pending);
        wakers.into_values().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::join_all;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn alarms_go_off_in_time_whatever_their_order() {
        let alarms = Alarms::new(Handle::current());
        let began = Instant::now();
        let waits = [50, 10, 30, 10, 0, 70].map(|ms| {
            let alarm = alarms.at(began + Duration::from_millis(ms));
            async move {
                assert_eq!(alarm.await, Rang::Due);
                assert_eq!(began.elapsed(), Duration::from_millis(ms));
            }
        });
        join_all(waits).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_alarm_leaves_nothing_behind() {
        let alarms = Alarms::new(Handle::current());
        let mut long = Box::pin(alarms.at(Instant::now() + Duration::from_secs(60)));
        assert!(futures::poll!(long.as_mut()).is_pending());
        drop(long);
        assert!(alarms.board.pending().wakers.is_empty());
        let began = Instant::now();
        alarms.at(began + Duration::from_secs(1)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(1));
    }

    #[test]
    fn an_alarm_outlives_its_runtime() {
        let build = || tokio::runtime::Builder::new_multi_thread().enable_time().build().unwrap();
        let (one, other) = (build(), build());
        let alarms = Alarms::new(one.handle().clone());
        let hour = Instant::now() + Duration::from_secs(3600);
        let (before, after) = (alarms.at(hour), alarms.at(hour));
        let waiting = other.spawn(before);
        while alarms.board.pending().wakers.is_empty() {
            std::thread::yield_now();
        }
        drop(one);
        assert_eq!(other.block_on(waiting).unwrap(), Rang::Gone);
        assert_eq!(other.block_on(after), Rang::Gone);
        assert_eq!(futures::executor::block_on(alarms.at(hour)), Rang::Gone, "and without tokio");
        assert!(alarms.is_gone());
    }
}
