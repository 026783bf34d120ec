//! The runtime that a client's timers and background tasks live in, and that may end before the client does.
//!
//! An application awaits a request on whatever executor it has, while the timers in that request belong to the runtime
//! of the node. Two things would then panic in the application: to make a timer outside of any runtime, and to poll one
//! whose runtime has ended. So whatever has timers in it is polled through [`Home::inside`].
//!
//! ```text
//! the application's executor ── poll ──▶ inside ─┬─ open ──▶ enter the runtime, poll
//! the node's end ── end ──▶ waits for polls ─────┴─ ended ─▶ None, at once
//! any other end: the runtime drops its tasks, and then fires its timers
//!                  └ Sentinel ── end ──▶
//! ```
//!
//! Invariants
//! - when [`Home::end`] has returned, nothing is polled inside any more. A node calls it before it ends its runtime; for the
//!   runtime of an application, which a remote client lives in, a task that is dropped does;
//! - who waits is woken by the end of the runtime itself, which fires all its timers.

use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::task::Poll;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// A handle of the runtime. Clones know of the same end.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    runtime: Handle,
    ended: Ended,
    /// Owns the task that notices an end that nobody announced.
    _sentinel: Arc<JoinSet<()>>,
}

#[derive(Clone, Debug, Default)]
struct Ended(Arc<RwLock<bool>>);

/// Says that the runtime has ended when that drops it.
struct Sentinel(Ended);

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.0.set();
    }
}

impl Ended {
    fn read(&self) -> RwLockReadGuard<'_, bool> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

impl Home {
    pub(crate) fn new(runtime: Handle) -> Self {
        let ended = Ended::default();
        // Made here, so that it says so although the runtime drops the task unrun.
        let sentinel = Sentinel(ended.clone());
        let mut task = JoinSet::new();
        let wait = async move {
            let _sentinel = sentinel;
            pending().await
        };
        task.spawn_on(wait, &runtime);
        Self { runtime, ended, _sentinel: Arc::new(task) }
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Ends all polling inside. Waits for the polls under way, of which none waits for anything.
    pub(crate) fn end(&self) {
        self.ended.set();
    }

    pub(crate) fn has_ended(&self) -> bool {
        *self.ended.read()
    }

    /// What `future` gives, polled inside of the runtime; `None` when that has ended. Not to be nested.
    pub(crate) async fn inside<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|context| {
            let ended = self.ended.read();
            if *ended {
                return Poll::Ready(None);
            }
            let _inside = self.runtime.enter();
            future.as_mut().poll(context).map(Some)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use std::time::Duration;

    /// Whoever ends the runtime, and whether or not it was said before: no panic, and no endless wait.
    #[test]
    fn a_wait_outlives_its_runtime() {
        let build = || tokio::runtime::Builder::new_multi_thread().enable_time().build().unwrap();
        for is_announced in [false, true] {
            let (one, other) = (build(), build());
            let home = Home::new(one.handle().clone());
            let hour = || async { tokio::time::sleep(Duration::from_secs(3600)).await };
            let mut before = Box::pin({
                let home = home.clone();
                async move { home.inside(hour()).await }
            });
            assert!(other.block_on(async { futures::poll!(before.as_mut()) }).is_pending());
            let waiting = other.spawn(before);
            if is_announced {
                home.end();
            }
            drop(one);
            assert_eq!(other.block_on(waiting).unwrap(), None);
            assert_eq!(block_on(home.inside(hour())), None, "and without tokio");
            assert!(home.has_ended());
        }
    }
}
