//! Watches: all of them on one stream, told apart by the id that etcd gives each.
//!
//! ```text
//!           created                 events, by id
//! pending ──────────▶ watching ──────────────────────▶ a watch's channel
//!    │                   │ ended by etcd, or dropped (then it is cancelled)
//!    └───────────────────┴──▶ nothing is left
//! ```
//!
//! Invariants
//! - etcd answers what would begin a watch in the order of the requests, so the first that is pending is meant;
//! - the id is entered before a later answer is read, so no event comes too early;
//! - whoever stops waiting for its watch drops it, and so cancels it.

use super::rpc::{
    self, Event, WatchCancelRequest, WatchCreateRequest, WatchRequest, WatchResponse,
};
use super::shared::{Open, Shared, Waiting};
use crate::store::Change;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

type Begun = Result<Following, Status>;
type Events = Result<Vec<Event>, Status>;

#[derive(Debug, Default)]
pub(crate) struct Watches {
    pending: VecDeque<oneshot::Sender<Begun>>,
    // Unbounded, as in Go's client: if one watch could make the stream wait, it would hold up all others. The
    // workload bounds it, by writing for a few seconds only.
    watching: HashMap<i64, mpsc::UnboundedSender<Events>>,
}

/// A watch that etcd has begun.
#[derive(Debug)]
pub(crate) struct Following {
    id: i64,
    open: Arc<Open<Watches>>,
    events: mpsc::UnboundedReceiver<Events>,
}

impl Shared<Watches> {
    pub(crate) async fn follow(&self, prefix: &Bytes) -> Begun {
        let (word, begun) = oneshot::channel();
        let create = WatchCreateRequest { key: prefix.clone(), range_end: rpc::end_of(prefix) };
        let request = WatchRequest { create: Some(create), cancel: None };
        self.ask(request, |watches| watches.pending.push_back(word));
        begun.await.unwrap_or_else(|_| Err(Status::unavailable("the connection is gone")))
    }
}

impl Following {
    pub(crate) async fn next(&mut self) -> Result<Vec<Change>, Status> {
        loop {
            let events = self.events.recv().await;
            let events = events.unwrap_or_else(|| Err(Status::cancelled("the watch has ended")))?;
            // etcd may also send an answer without events, to say how far it is.
            if !events.is_empty() {
                return Ok(events.into_iter().filter_map(change).collect());
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let was_watching = self.open.with(|watches| watches.watching.remove(&self.id));
        if let Some(Some(_)) = was_watching {
            let cancel = WatchCancelRequest { watch_id: self.id };
            self.open.send(WatchRequest { create: None, cancel: Some(cancel) });
        }
    }
}

impl Waiting for Watches {
    type Request = WatchRequest;

    fn answer(open: &Arc<Open<Self>>, answer: WatchResponse) {
        let untaken = open.with(|watches| watches.note(open, answer));
        // A watch that nobody waits for any more takes the lock when it is dropped, so not before it is free.
        drop(untaken);
    }

    fn end(self, status: &Status) {
        for word in self.pending {
            let _ = word.send(Err(status.clone()));
        }
        for events in self.watching.into_values() {
            let _ = events.send(Err(status.clone()));
        }
    }
}

impl Watches {
    /// Returns a watch if it has just begun and its caller has gone away.
    fn note(&mut self, open: &Arc<Open<Self>>, answer: WatchResponse) -> Option<Begun> {
        let id = answer.watch_id;
        if answer.created {
            let word = self.pending.pop_front()?;
            if answer.canceled {
                return word.send(Err(Status::aborted(answer.cancel_reason))).err();
            }
            let (sender, events) = mpsc::unbounded_channel();
            self.watching.insert(id, sender);
            return word.send(Ok(Following { id, open: Arc::clone(open), events })).err();
        }
        // One that was dropped is not here, though a last event may still come for it.
        if answer.canceled {
            let events = self.watching.remove(&id)?;
            let _ = events.send(Err(Status::aborted(answer.cancel_reason)));
        } else {
            let _ = self.watching.get(&id)?.send(Ok(answer.events));
        }
        None
    }
}

fn change(event: Event) -> Option<Change> {
    let is_delete = event.kind == Event::DELETE;
    let pair = event.kv?;
    Some(Change { key: pair.key, value: (!is_delete).then_some(pair.value) })
}
