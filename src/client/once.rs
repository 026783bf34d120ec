//! Names for writes, so that one that is sent again is not carried out again.
//!
//! A client has an id from the group, which it asks for with its first write, and numbers its writes from 1. As long as
//! somebody waits for the answer to one, the group keeps that answer.
//!
//! ```text
//! put ──▶ Name 7.41 ──▶ sent ── no answer ── sent again, elsewhere ──▶ answered ── dropped: 41 is waited for no more
//!         └─ waiting: 41 43 44 ─ the lowest goes with each write: what is below need not be kept
//! ```
//!
//! Invariants
//! - a number is given to one write, whatever becomes of it;
//! - the lowest number that goes with a write is that of one for which somebody waits, of the same id;
//! - no more than [`limits::OUTSTANDING_MAX`] are under way: the next waits for a place, as long as its caller does.

use super::link::{Link, malformed};
use crate::api::{Applied, Command, Origin};
use crate::error::{Error, Reason, Result};
use crate::types::limits;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

/// Who gives names. Clones of a client share it.
#[derive(Debug)]
pub(super) struct Names {
    numbers: Arc<Mutex<Numbers>>,
    id: Arc<watch::Sender<Id>>,
    /// Asks for the id. Not a caller: its application might not poll it any more, and all others would wait.
    asking: Mutex<JoinSet<()>>,
    places: Arc<Semaphore>,
}

/// What is known of the id of this client.
#[derive(Clone, Debug)]
enum Id {
    /// Nobody has asked, or it was forgotten.
    Unknown,
    Asked,
    Known(u64),
    /// The group remembers too many others.
    Refused,
    Failed(Error),
}

/// The numbers of an id.
#[derive(Debug, Default)]
struct Numbers {
    client: u64,
    given: u64,
    waiting: BTreeSet<u64>,
}

/// The name of a write, for as long as somebody waits for its answer.
#[derive(Debug)]
pub(super) struct Name {
    numbers: Arc<Mutex<Numbers>>,
    id: Arc<watch::Sender<Id>>,
    client: u64,
    sequence: u64,
    _place: OwnedSemaphorePermit,
}

impl Names {
    pub(super) fn new() -> Self {
        Self {
            numbers: Arc::default(),
            id: Arc::new(watch::Sender::new(Id::Unknown)),
            asking: Mutex::default(),
            places: Arc::new(Semaphore::new(limits::OUTSTANDING_MAX)),
        }
    }

    /// A name for a write; none if the group gives this client no id, so that it must not be sent twice.
    ///
    /// # Errors
    /// Nothing was sent that could change anything.
    ///
    /// # Cancel safety
    /// A dropped wait has taken no number.
    pub(super) async fn next(&self, link: &Link) -> Result<Option<Name>> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| Error::new(Reason::Closed))?;
        if let Id::Known(client) = *self.id.borrow() {
            return Ok(Some(self.name(client, place)));
        }
        let mut changes = self.id.subscribe();
        let mut has_waited = false;
        loop {
            let id = changes.borrow_and_update().clone();
            match id {
                Id::Known(client) => return Ok(Some(self.name(client, place))),
                Id::Refused => return Ok(None),
                Id::Failed(error) if has_waited => return Err(error),
                Id::Unknown | Id::Failed(_) => self.ask(link),
                Id::Asked => {
                    has_waited = true;
                    changes.changed().await.map_err(|_| Error::new(Reason::Closed))?;
                }
            }
        }
    }

    fn name(&self, client: u64, place: OwnedSemaphorePermit) -> Name {
        let mut numbers = lock(&self.numbers);
        if numbers.client != client {
            *numbers = Numbers { client, ..Numbers::default() };
        }
        numbers.given += 1;
        let sequence = numbers.given;
        numbers.waiting.insert(sequence);
        drop(numbers);
        let (numbers, id) = (Arc::clone(&self.numbers), Arc::clone(&self.id));
        Name { numbers, id, client, sequence, _place: place }
    }

    /// Asks the group for an id, unless somebody else just did.
    fn ask(&self, link: &Link) {
        let mine = self.id.send_if_modified(|id| {
            let is_open = matches!(id, Id::Unknown | Id::Failed(_));
            if is_open {
                *id = Id::Asked;
            }
            is_open
        });
        if !mine {
            return;
        }
        let answered = Answered(Arc::clone(&self.id));
        // One that has names of its own: it must not keep these.
        let link = link.without_names();
        let runtime = link.runtime().clone();
        let ask = async move {
            // Asked for twice, the group gives two, and forgets the one that is never used.
            let id = link.propose_again(Command::Register.into(), limits::CALL_TIMEOUT_MAX).await;
            answered.with(match id {
                Ok((Applied::Registered { client, .. }, _)) => Id::Known(client),
                Ok(_) => Id::Failed(malformed("outcome of a registration")),
                Err(error) if matches!(error.reason(), Reason::TooManyClients { .. }) => {
                    tracing::warn!(%error, "writes of this client are not sent again when their answers are lost");
                    Id::Refused
                }
                // Nobody minds an id that nobody uses.
                Err(error) => Id::Failed(Error::new(error.reason().clone())),
            });
        };
        let mut asking = lock(&self.asking);
        while asking.try_join_next().is_some() {}
        asking.spawn_on(ask, &runtime);
    }
}

/// Whoever asks for an id says what came of it, also if its runtime drops it.
struct Answered(Arc<watch::Sender<Id>>);

impl Answered {
    fn with(self, id: Id) {
        self.0.send_replace(id);
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.0.send_if_modified(|id| {
            let is_open = matches!(id, Id::Asked);
            if is_open {
                *id = Id::Failed(Error::new(Reason::Closed));
            }
            is_open
        });
    }
}

impl Name {
    /// What goes with the write, for the first time or again.
    pub(super) fn origin(&self, again: bool) -> Origin {
        let numbers = lock(&self.numbers);
        let is_current = numbers.client == self.client;
        let lowest = numbers.waiting.first().filter(|_| is_current).copied();
        let lowest_outstanding = lowest.map_or(1, |lowest| lowest.min(self.sequence));
        Origin { client: self.client, sequence: self.sequence, lowest_outstanding, again }
    }

    /// The group does not know the client any more: the next write asks for another id.
    pub(super) fn forget_client(&self) {
        self.id.send_if_modified(|id| {
            let is_it = matches!(id, Id::Known(client) if *client == self.client);
            if is_it {
                *id = Id::Unknown;
            }
            is_it
        });
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let mut numbers = lock(&self.numbers);
        if numbers.client == self.client {
            numbers.waiting.remove(&self.sequence);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
