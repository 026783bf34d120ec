//! Leader election: one of many does the work, and everybody can see who.
//!
//! An election is a line whose head leads. What stands at a place is the name of the candidate.
//!
//! ```text
//! quorate/election/scheduler/…a7-0   created 41  "node-1"  ◀ leads, token 41
//! quorate/election/scheduler/…b2-0   created 44  "node-2"    waits
//! ```
//!
//! Invariants
//! - at most one candidate leads by the group's word; a leader that is cut off stops by its own clock first;
//! - [`Election::observe`] goes by the smallest create revision, not by the last event: a new candidate is no leader;
//! - [`Election::lead`] has dropped the work of one reign before it campaigns for the next: it never overlaps itself.
//!
//! This is not the leadership of the Raft group, which has no token, and moves for reasons that are not yours.

use super::line::{Line, Place};
use super::mirror::{Source, Update};
use crate::client::Session;
use crate::client::backoff::Backoff;
use crate::error::{Error, Reason, Result};
use crate::types::{Compare, Event, FencingToken, KeyValue, OpResult, Revision};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::{Either, select};
use futures::stream::{self, BoxStream};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

const KIND: &str = "election";

/// An election, as a candidate or observer sees it. Made by [`Session::election`].
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// # let session = client.session(std::time::Duration::from_secs(10)).await?;
/// let election = session.election("scheduler");
/// let leadership = election.campaign("node-1").await?; // waits its turn
/// leadership.run(schedule_jobs()).await?; // stopped if the lead is lost
/// leadership.resign().await?;
/// # async fn schedule_jobs() {}
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Election {
    session: Session,
    name: String,
    line: Line,
}

/// Who leads.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// # let session = client.session(std::time::Duration::from_secs(10)).await?;
/// let election = session.election("scheduler");
/// assert_eq!(election.leader().await?, None);
/// let leadership = election.campaign("node-1").await?;
/// let leader = election.leader().await?.expect("somebody leads");
/// assert_eq!((leader.name.as_str(), leader.token), ("node-1", leadership.token()));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leader {
    /// What it campaigned as, or proclaimed since.
    pub name: String,
    /// Its token. The same leader has another one in its next reign.
    pub token: FencingToken,
}

impl Session {
    /// The election of that name. This session's candidates stand and fall with it.
    pub fn election(&self, name: impl AsRef<str>) -> Election {
        let name = name.as_ref().to_owned();
        Election { session: self.clone(), line: Line::new(KIND, &name), name }
    }
}

impl Election {
    /// Waits until this candidate leads: in line, first come, first served.
    ///
    /// # Errors
    ///
    /// [`SessionLost`](crate::Reason::SessionLost) if the session was lost while it waited.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future withdraws the candidate.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// # let session = client.session(std::time::Duration::from_secs(10)).await?;
    /// let election = session.election("scheduler");
    /// let first = election.campaign("node-1").await?;
    /// let earlier = first.token();
    /// first.resign().await?;
    /// let second = election.campaign("node-2").await?;
    /// assert!(second.token() > earlier);
    /// # Ok(()) }
    /// ```
    pub async fn campaign(&self, name: impl Into<String>) -> Result<Leadership> {
        let name = Bytes::from(name.into());
        Ok(Leadership { place: self.line.turn(&self.session, name).await? })
    }

    /// Campaigns for ever, and runs `work` each time this candidate leads. It is stopped, by dropping it, as soon as
    /// the lead is lost, and only then is there another campaign: under a new session, of the same time to live, if
    /// this one is lost.
    ///
    /// Ends when `work` does, whether well or with an error, after resigning; and, by dropping `work`, as soon as the
    /// session of this election is closed.
    ///
    /// # Errors
    ///
    /// That of `work`; [`SessionLost`](crate::Reason::SessionLost) if the session was closed; or a refusal that no
    /// waiting mends. While the group has no room it waits.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops `work`, and withdraws the candidate.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// # let session = client.session(std::time::Duration::from_secs(10)).await?;
    /// session
    ///     .election("scheduler")
    ///     .lead("node-1", async |leadership| {
    ///         println!("leading with token {}", leadership.token());
    ///         Ok(()) // the work is over: resign, and return
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub async fn lead<F, Fut>(&self, name: impl Into<String>, work: F) -> Result<()>
    where
        F: FnMut(Arc<Leadership>) -> Fut,
        Fut: Future<Output = Result<()>>,
    {
        // The session that the caller has, whatever session it leads under by then.
        let closed = pin!(self.session.closed());
        match select(closed, pin!(self.lead_on(name.into(), work))).await {
            Either::Left(_) => Err(Reason::SessionLost.into()),
            Either::Right((result, _)) => result,
        }
    }

    async fn lead_on<F, Fut>(&self, name: String, mut work: F) -> Result<()>
    where
        F: FnMut(Arc<Leadership>) -> Fut,
        Fut: Future<Output = Result<()>>,
    {
        let mut election = self.clone();
        let mut backoff = Backoff::outage();
        loop {
            let leadership = match election.campaign(&*name).await {
                Ok(leadership) => Arc::new(leadership),
                Err(error) if matches!(error.reason(), Reason::SessionLost) => {
                    self.session.client().link().sleep(backoff.next()).await;
                    election = election.revived().await?;
                    continue;
                }
                Err(error) if is_passing(&error) => {
                    self.session.client().link().sleep(backoff.next()).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            backoff.reset();
            if let Ok(result) = leadership.run(work(leadership.clone())).await {
                // The work is over, and its result matters more than that of resigning, which is repeated if need be.
                let _ = leadership.place.leave().await;
                return result;
            }
        }
    }

    /// Who leads now, by the word of a quorum.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn leader(&self) -> Result<Option<Leader>> {
        let outcome = self.session.client().txn().then(self.line.head()).await?;
        Ok(match outcome.results.first() {
            Some(OpResult::Range(page)) => page.entries.first().map(Leader::of),
            _ => None,
        })
    }

    /// Who leads, now and after each change; `None` while nobody does.
    ///
    /// An outage is no news: the last leader stays until another is known. The stream ends after an error, which is
    /// [`Closed`](crate::ErrorKind::Closed) or a refusal that no waiting mends. It does not need the session to live.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing. No change is lost by dropping a wait for the next item.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// # let session = client.session(std::time::Duration::from_secs(10)).await?;
    /// use futures::TryStreamExt;
    ///
    /// let election = session.election("scheduler");
    /// let mut leaders = election.observe().await?;
    /// assert_eq!(leaders.try_next().await?, Some(None)); // nobody yet
    /// let leadership = election.campaign("node-1").await?;
    /// let leader = leaders.try_next().await?.flatten().expect("somebody leads");
    /// assert_eq!(leader.token, leadership.token());
    /// # Ok(()) }
    /// ```
    pub async fn observe(&self) -> Result<BoxStream<'static, Result<Option<Leader>>>> {
        let (source, entries, _) = Source::open(self.session.client(), self.line.places()).await?;
        let observer = Observer { source, candidates: Candidates::of(&entries), shown: None };
        Ok(stream::unfold(Some(observer), async |observer| {
            let mut observer = observer?;
            match observer.next().await {
                Ok(leader) => Some((Ok(leader), Some(observer))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed())
    }

    /// The same election under a session that lives.
    async fn revived(&self) -> Result<Self> {
        if self.session.is_alive() {
            return Ok(self.clone());
        }
        let mut backoff = Backoff::outage();
        loop {
            match self.session.client().session(self.session.ttl()).await {
                Ok(session) => return Ok(session.election(&self.name)),
                Err(error) if error.is_retryable() || is_passing(&error) => {
                    self.session.client().link().sleep(backoff.next()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A group without room has some again without anybody else's doing.
fn is_passing(error: &Error) -> bool {
    *error.reason() == Reason::NoSpace
}

/// Proof of a reign. Never `Clone`: dropping it resigns.
///
/// Made by [`Election::campaign`] and [`Election::lead`].
///
/// Without a token check at the resource mutual exclusion does not hold: a leader can be paused after it looked, for
/// longer than any deadline. Hand [`token`](Self::token) to what it writes to, or [`held`](Self::held) to the
/// transaction.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// # let session = client.session(std::time::Duration::from_secs(10)).await?;
/// use quorate::Op;
///
/// let leadership = session.election("scheduler").campaign("node-1").await?;
/// let slot = Op::put("jobs/next-run", "04:00");
/// let outcome = client.txn().when(leadership.held()).then(slot).await?;
/// assert!(outcome.succeeded, "somebody else leads");
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "leadership is resigned when this is dropped"]
pub struct Leadership {
    place: Place,
}

impl Leadership {
    /// Larger than that of every leader before. Let the resource refuse smaller ones.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.place.token()
    }

    /// A condition for your own transactions: true only while this reign lasts.
    pub fn held(&self) -> Compare {
        self.place.held()
    }

    /// Changes the name that observers see.
    ///
    /// # Errors
    ///
    /// [`SessionLost`](crate::Reason::SessionLost) if the reign is over.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the name may still change.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// # let session = client.session(std::time::Duration::from_secs(10)).await?;
    /// let election = session.election("scheduler");
    /// let leadership = election.campaign("node-1").await?;
    /// leadership.proclaim("node-1, warmed up").await?;
    /// assert_eq!(election.leader().await?.expect("it leads").name, "node-1, warmed up");
    /// # Ok(()) }
    /// ```
    pub async fn proclaim(&self, name: impl Into<String>) -> Result<()> {
        self.place.rewrite(Bytes::from(name.into())).await
    }

    /// Completes when the lead is lost because its session is.
    ///
    /// It does not notice an operator who deletes the key of the leader; [`held`](Self::held) does.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn lost(&self) {
        self.place.session().lost().await;
    }

    /// Runs `work` until it ends or the lead is lost, whichever comes first. The reign goes on afterwards.
    ///
    /// # Errors
    ///
    /// [`SessionLost`](crate::Reason::SessionLost). `work` is then dropped where it stood.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops `work`.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output> {
        self.place.session().run(work).await
    }

    /// Gives the lead to the next candidate, and waits for the answer. Dropping this does the same in the background.
    ///
    /// # Errors
    ///
    /// [`SessionLost`](crate::Reason::SessionLost) if the reign was over before. After any other error the resignation
    /// goes on in the background.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the resignation goes on in the background.
    pub async fn resign(self) -> Result<()> {
        self.place.leave().await
    }
}

impl Leader {
    fn of(kv: &KeyValue) -> Self {
        let name = String::from_utf8_lossy(&kv.value).into_owned();
        Self { name, token: FencingToken::from(kv.create_revision.get()) }
    }
}

/// All that stand in line, oldest first.
#[derive(Default)]
struct Candidates {
    by_age: BTreeMap<Revision, (Bytes, Leader)>,
    ages: BTreeMap<Bytes, Revision>,
}

impl Candidates {
    fn of(entries: &[KeyValue]) -> Self {
        let mut candidates = Self::default();
        entries.iter().for_each(|kv| candidates.put(kv));
        candidates
    }

    fn put(&mut self, kv: &KeyValue) {
        self.remove(&kv.key);
        self.ages.insert(kv.key.clone(), kv.create_revision);
        self.by_age.insert(kv.create_revision, (kv.key.clone(), Leader::of(kv)));
    }

    fn remove(&mut self, key: &Bytes) {
        if let Some(age) = self.ages.remove(key) {
            self.by_age.remove(&age);
        }
    }

    fn head(&self) -> Option<Leader> {
        self.by_age.first_key_value().map(|(_, (_, leader))| leader.clone())
    }
}

/// Turns changes of the line into changes of the leader.
struct Observer {
    source: Source,
    candidates: Candidates,
    /// What was yielded last; `None` before the first.
    shown: Option<Option<Leader>>,
}

impl Observer {
    /// Cancel safe: it is the source's wait that is dropped, and that loses nothing.
    async fn next(&mut self) -> Result<Option<Leader>> {
        loop {
            let head = self.candidates.head();
            if self.shown.as_ref() != Some(&head) {
                self.shown = Some(head.clone());
                return Ok(head);
            }
            match self.source.next().await? {
                Update::All(entries, _) => self.candidates = Candidates::of(&entries),
                Update::Changes(changes) => {
                    for event in changes.events {
                        match event {
                            Event::Put { kv, .. } => self.candidates.put(&kv),
                            Event::Delete { key, .. } => self.candidates.remove(&key),
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
