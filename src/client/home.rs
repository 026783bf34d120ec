//! The runtime that a client's timers and background tasks live in, and that may end before the client does.
//!
//! An application awaits a request on whatever executor it has, while the timers in that request belong to the runtime
//! of the node. Two things would then panic in the application: to make a timer outside of any runtime, and to poll one
//! whose runtime has ended. So whatever has timers in it is polled through [`Home::inside`].
//!
//! ```text
//! the application's executor ── poll ──▶ inside ─┬─ open ──▶ enter the runtime, poll
//! the node's end ── end ──▶ waits for polls ─────┴─ ended ─▶ None, at once
//! ```
//!
//! Invariants
//! - when [`Home::end`] has returned, nothing is polled inside any more. Whoever ends the runtime calls it before;
//! - who waits is woken by the end of the runtime itself, which fires all its timers.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::Poll;
use tokio::runtime::Handle;

/// A handle of the runtime. Clones know of the same end.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    runtime: Handle,
    ended: Arc<RwLock<bool>>,
}

impl Home {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self { runtime, ended: Arc::default() }
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Ends all polling inside. Waits for the polls under way, of which none waits for anything.
    pub(crate) fn end(&self) {
        *self.ended.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    pub(crate) fn has_ended(&self) -> bool {
        *self.ended.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `future` gives, polled inside of the runtime; `None` when that has ended. Not to be nested.
    pub(crate) async fn inside<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|context| {
            let ended = self.ended.read().unwrap_or_else(PoisonError::into_inner);
            if *ended {
                return Poll::Ready(None);
            }
            let _inside = self.runtime.enter();
            future.as_mut().poll(context).map(Some)
        })
        .await
    }
}
