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
//! - the numbers that are waited for lie within [`limits::OUTSTANDING_MAX`] of each other, which is what the group keeps: the
//!   next waits for a moment, and then goes on under another id. One whose time is up is not waited for, whether or not its future is polled, and is never sent again;
//! - nobody waits for another caller of this program to do something: the id is asked for by a task.

use super::backoff::Backoff;
use super::link::{ATTEMPT_MIN, ATTEMPT_PART, Link, is_passing, malformed};
use crate::api::{Applied, Command, Origin};
use crate::error::{Error, Reason, Result};
use crate::types::limits;
use futures::future::select;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// After what time a group that remembered too many clients is asked again.
const REFUSED: Duration = Duration::from_secs(600);
/// How long one that is late may hold up all others before they go on under another id.
const FULL: Duration = Duration::from_secs(2);

/// Who gives names. All clients of a node share it, and all clones of a client.
#[derive(Debug, Default)]
pub(crate) struct Names {
    numbers: Arc<Mutex<Numbers>>,
    id: Arc<watch::Sender<Id>>,
    /// Asks for the id. Not a caller: its application might not poll it any more, and all others would wait.
    asking: Mutex<JoinSet<()>>,
    /// A number is not waited for any more.
    freed: Arc<Notify>,
    /// Why there is no id yet.
    trouble: Arc<Mutex<Option<Error>>>,
}

/// What is known of the id of this client.
#[derive(Clone, Debug, Default)]
enum Id {
    /// Nobody has asked, or it was forgotten.
    #[default]
    Unknown,
    Asked,
    Known(u64),
    /// The group remembered too many others then.
    Refused(Instant),
    Failed(Error),
}

/// The numbers of an id.
#[derive(Debug, Default)]
struct Numbers {
    client: u64,
    given: u64,
    /// Those that somebody waits for, and until when.
    waiting: BTreeMap<u64, Instant>,
}

impl Numbers {
    /// Whether the next number would be too far from the lowest that is waited for, and until when that is so.
    fn is_full(&mut self) -> Option<Instant> {
        let now = Instant::now();
        while let Some(lowest) = self.waiting.first_entry() {
            let span = self.given + 1 - lowest.key();
            if span < limits::OUTSTANDING_MAX as u64 {
                break;
            }
            if *lowest.get() > now {
                return Some(*lowest.get());
            }
            // Whoever waits for it is late, or is not polled any more, and will not send it again.
            lowest.remove();
        }
        None
    }
}

/// The name of a write, for as long as somebody waits for its answer.
#[derive(Debug)]
pub(super) struct Name {
    numbers: Arc<Mutex<Numbers>>,
    id: Arc<watch::Sender<Id>>,
    freed: Arc<Notify>,
    client: u64,
    sequence: u64,
    /// The lowest number that was waited for when it was given.
    lowest: u64,
}

/// Why there is no name yet.
enum NotYet {
    /// Too many are waited for, until then.
    Full(Instant),
    /// There is a newer id.
    Old,
}

impl Names {
    /// A name for a write that is waited for until `deadline`; none if the group gives this client no id, so that it must
    /// not be sent twice.
    ///
    /// # Errors
    /// Nothing was sent that could change anything.
    ///
    /// # Cancel safety
    /// A dropped wait has taken no number.
    pub(super) async fn next(&self, link: &Link, deadline: Instant) -> Result<Option<Name>> {
        if let Id::Known(client) = *self.id.borrow()
            && let Ok(name) = self.name(client, deadline)
        {
            return Ok(Some(name));
        }
        let (mut changes, mut full_since) = (None, None);
        let (mut has_asked, mut backoff) = (false, Backoff::retry());
        loop {
            if link.has_ended() {
                return Err(Error::new(Reason::Closed));
            }
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            let id = self.id.borrow().clone();
            match id {
                Id::Known(client) => match self.name(client, deadline) {
                    Ok(name) => return Ok(Some(name)),
                    Err(NotYet::Full(until)) => {
                        let now = Instant::now();
                        let patience = *full_since.get_or_insert(now) + FULL;
                        if now >= patience {
                            // Whoever holds the others up keeps its number, and they go on under another id.
                            give_up(&self.id, client, Id::Unknown);
                        } else {
                            select(freed, pin!(link.sleep_until(until.min(patience)))).await;
                        }
                    }
                    // Ids of a group only grow.
                    Err(NotYet::Old) => {
                        let odd = malformed("id of a client: one that was given before");
                        give_up(&self.id, client, Id::Failed(odd));
                    }
                },
                Id::Refused(at) if at.elapsed() < REFUSED => return Ok(None),
                Id::Failed(error) if has_asked && !is_passing(&error) => return Err(error),
                Id::Failed(_) if has_asked => {
                    link.sleep(backoff.next()).await;
                    self.ask(link);
                }
                Id::Unknown | Id::Failed(_) | Id::Refused(_) => {
                    has_asked = true;
                    self.ask(link);
                }
                Id::Asked => {
                    has_asked = true;
                    // From before the next look on.
                    let changes = changes.get_or_insert_with(|| self.id.subscribe());
                    if matches!(*changes.borrow_and_update(), Id::Asked) {
                        changes.changed().await.map_err(|_| Error::new(Reason::Closed))?;
                    }
                }
            }
        }
    }

    /// Why there is no id yet, if that is known.
    pub(super) fn trouble(&self) -> Option<Error> {
        lock(&self.trouble).clone()
    }

    fn name(&self, client: u64, deadline: Instant) -> Result<Name, NotYet> {
        let mut numbers = lock(&self.numbers);
        // Ids only grow, and numbers of an older one could be given twice.
        if client < numbers.client {
            return Err(NotYet::Old);
        }
        if client > numbers.client {
            *numbers = Numbers { client, ..Numbers::default() };
        }
        if let Some(until) = numbers.is_full() {
            return Err(NotYet::Full(until));
        }
        numbers.given += 1;
        let sequence = numbers.given;
        numbers.waiting.insert(sequence, deadline);
        let lowest = numbers.waiting.keys().next().copied().unwrap_or(sequence);
        drop(numbers);
        let (numbers, id) = (Arc::clone(&self.numbers), Arc::clone(&self.id));
        Ok(Name { numbers, id, freed: Arc::clone(&self.freed), client, sequence, lowest })
    }

    /// Asks the group for an id, unless somebody else just did.
    fn ask(&self, link: &Link) {
        let mine = self.id.send_if_modified(|id| {
            let is_open = match id {
                Id::Unknown | Id::Failed(_) => true,
                Id::Refused(at) => at.elapsed() >= REFUSED,
                Id::Asked | Id::Known(_) => false,
            };
            if is_open {
                *id = Id::Asked;
            }
            is_open
        });
        if !mine {
            return;
        }
        let (answered, trouble) = (Answered(Some(Arc::clone(&self.id))), Arc::clone(&self.trouble));
        // One that has names of its own: it must not keep these.
        let link = link.without_names();
        let runtime = link.runtime().clone();
        let ask = async move {
            // Asked for twice, the group gives two, and forgets the one that is never used.
            let id = link.propose_again(Command::Register.into(), ATTEMPT_MIN * ATTEMPT_PART).await;
            *lock(&trouble) = id.as_ref().err().map(|error| Error::new(error.reason().clone()));
            answered.with(match id {
                Ok((Applied::Registered { client, .. }, _)) => Id::Known(client),
                Ok(_) => Id::Failed(malformed("outcome of a registration")),
                Err(error) if matches!(error.reason(), Reason::TooManyClients { .. }) => {
                    tracing::warn!(%error, "writes of this client are not sent again when their answers are lost");
                    Id::Refused(Instant::now())
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
struct Answered(Option<Arc<watch::Sender<Id>>>);

impl Answered {
    /// Once: by the time that this is dropped somebody else may be asking.
    fn with(mut self, id: Id) {
        if let Some(known) = self.0.take() {
            known.send_replace(id);
        }
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        if let Some(known) = &self.0 {
            known.send_replace(Id::Failed(Error::new(Reason::Closed)));
        }
    }
}

impl Name {
    /// What goes with the write, for the first time or again.
    pub(super) fn origin(&self, again: bool) -> Origin {
        let numbers = lock(&self.numbers);
        let is_current = numbers.client == self.client;
        let lowest = numbers.waiting.keys().next().filter(|_| is_current).copied();
        let lowest_outstanding = lowest.map_or(self.lowest, |lowest| lowest.min(self.sequence));
        Origin { client: self.client, sequence: self.sequence, lowest_outstanding, again }
    }

    /// The group does not know the client any more: the next write asks for another id.
    pub(super) fn forget_client(&self) {
        give_up(&self.id, self.client, Id::Unknown);
    }
}

/// Uses an id no more.
fn give_up(id: &watch::Sender<Id>, client: u64, then: Id) {
    id.send_if_modified(|id| {
        let is_it = matches!(id, Id::Known(known) if *known == client);
        if is_it {
            *id = then;
        }
        is_it
    });
}

impl Drop for Name {
    fn drop(&mut self) {
        let mut numbers = lock(&self.numbers);
        let is_current = numbers.client == self.client;
        let was_lowest = numbers.waiting.keys().next() == Some(&self.sequence);
        if is_current {
            numbers.waiting.remove(&self.sequence);
        }
        drop(numbers);
        if is_current && was_lowest {
            self.freed.notify_waiters();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
