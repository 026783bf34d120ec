//! One stream of requests and answers, shared by all clones of an `Etcd`, as in etcd's own Go client.
//!
//! Whoever asks enters itself as waiting and sends its request, both under one lock, and then waits for a word on a
//! channel of its own. A task reads the answers and gives the words.
//!
//! ```text
//! callers ──▶ ask ─┬─ enter into `waiting`        ┌─▶ a caller's channel
//!                  └─ requests ──▶ etcd ──▶ read ─┴─▶ …
//! ```
//!
//! Invariants
//! - callers are entered in the order in which their requests are sent;
//! - a caller gets a word even if the stream fails, and the next one to ask begins a new stream;
//! - the task ends with the last clone.

use super::rpc::{self, Call};
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::Channel;

/// Those who wait for answers.
pub(crate) trait Waiting: Default + Send + 'static {
    type Request: Call;

    /// Gives an answer to whom it belongs. The lock is not held.
    fn answer(open: &Arc<Open<Self>>, answer: <Self::Request as Call>::Answer);

    /// Tells everybody that no more answers will come.
    fn end(self, status: &Status);
}

/// What the clones share.
#[derive(Debug)]
pub(crate) struct Shared<W: Waiting> {
    channel: Channel,
    current: Mutex<Option<Arc<Open<W>>>>,
    tasks: Mutex<JoinSet<()>>,
}

/// A stream that was begun.
#[derive(Debug)]
pub(crate) struct Open<W: Waiting> {
    // Unbounded: a caller has few requests under way, and the callers are counted.
    requests: UnboundedSender<W::Request>,
    /// `None` once it has ended.
    waiting: Mutex<Option<W>>,
}

impl<W: Waiting> Shared<W> {
    pub(crate) fn new(channel: Channel) -> Self {
        Self { channel, current: Mutex::default(), tasks: Mutex::default() }
    }

    /// Sends a request. `enter` notes who waits for its answer.
    pub(crate) fn ask(&self, request: W::Request, enter: impl FnOnce(&mut W)) {
        let mut current = lock(&self.current);
        if let Some(open) = &*current
            && let Some(waiting) = &mut *lock(&open.waiting)
        {
            enter(waiting);
            return open.send(request);
        }

        let (open, requests) = Open::new(enter);
        open.send(request);
        *current = Some(Arc::clone(&open));
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(read(self.channel.clone(), requests, open));
    }
}

impl<W: Waiting> Open<W> {
    fn new(enter: impl FnOnce(&mut W)) -> (Arc<Self>, UnboundedReceiver<W::Request>) {
        let mut waiting = W::default();
        enter(&mut waiting);
        let (requests, receiver) = unbounded();
        (Arc::new(Self { requests, waiting: Mutex::new(Some(waiting)) }), receiver)
    }

    /// Sends a request whose answer nobody waits for, or whose caller has been entered.
    pub(crate) fn send(&self, request: W::Request) {
        // If it fails the stream is about to end, of which everybody who waits will hear.
        let _ = self.requests.unbounded_send(request);
    }

    /// `None` if the stream has ended.
    pub(crate) fn with<T>(&self, deed: impl FnOnce(&mut W) -> T) -> Option<T> {
        lock(&self.waiting).as_mut().map(deed)
    }
}

async fn read<W: Waiting>(
    channel: Channel,
    requests: UnboundedReceiver<W::Request>,
    open: Arc<Open<W>>,
) {
    let status = match rpc::stream(&channel, requests).await {
        Err(status) => status,
        Ok(mut answers) => loop {
            match answers.message().await {
                Ok(Some(answer)) => W::answer(&open, answer),
                Ok(None) => break Status::unavailable("etcd has closed the stream"),
                Err(status) => break status,
            }
        },
    };
    let waiting = lock(&open.waiting).take();
    if let Some(waiting) = waiting {
        waiting.end(&status);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
