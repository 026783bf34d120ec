//! The keeper: one task that keeps the leases of all sessions of a client alive, and clears up after them.
//!
//! A session is a lease that must be renewed, again and again, before the group lets it expire. What the client knows of
//! it is its [`Life`]; this is what prolongs it.
//!
//! ```text
//! Session ×1,000 ── keep ──────▶ due: by time ──▶ KeepAlive of all that are due about now ─┐
//!    guard, dropped ── delete ─▶ chores: by time ▶ Propose of up to 256, one call at a time ─┴▶ answers: prolong, repeat,
//!    last clone ────── revoke ─┘                                                              or lose
//! ```
//!
//! Invariants
//! - each lease is renewed about every third of its ttl, together with all that are due about then;
//! - a failed renewal is repeated quickly, and holds up no other;
//! - chores (revocations and deletions asked for by a `Drop`) are repeated until they are done or have become needless,
//!   because the lease is gone and its keys with it. Their number is bounded.

use super::backoff::Backoff;
use super::life::Life;
use super::link::{Link, is_of_state};
use crate::api::{Applied, Command, Proposal, Request, Response};
use crate::error::{Error, ErrorKind, Reason, Result};
use crate::types::{Compare, KeyRange, LeaseId, Op, Revision, TxnOp, limits};
use bytes::Bytes;
use futures::future::{BoxFuture, poll_fn};
use futures::stream::{FuturesUnordered, StreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A lease is renewed when this part of its ttl has passed.
const RENEW_PART: u32 = 3;
/// A renewal is given up, and repeated, after this part of the ttl.
const ATTEMPT_PART: u32 = 5;
/// Not shorter than this, however short the ttl.
const ATTEMPT_MIN: Duration = Duration::from_millis(100);
/// A lease that is due within this part of its ttl goes along with those that are due now.
const SLACK_PART: u32 = 12;
const SLACK_MAX: Duration = Duration::from_secs(1);
/// The most chores of a client. A session that leaves more behind is ended instead, which clears up everything.
const CHORES_MAX: usize = 65_536;
/// The most chores in one call.
const CHORES_PER_CALL: usize = 256;
/// Chores may be done twice, so a call that carries them is given up early, and repeated.
const CHORES_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a key is looked for, if the call that would write it was not answered: longer than any call can take.
const SEEK: Duration = Duration::from_secs(limits::CALL_TIMEOUT_MAX.as_secs() + 30);

/// Something to be done after its asker has gone.
#[derive(Debug)]
struct Chore {
    what: What,
    life: Arc<Life>,
    /// To be done again although nothing was found, up to then.
    seek: Option<Instant>,
    /// How long to wait before it is done again.
    backoff: Backoff,
    _counted: Counted,
}

#[derive(Clone, Debug)]
enum What {
    /// End the lease, which nobody renews any more, so that the group has ended it by `until`.
    Revoke { until: Instant },
    /// Delete a key if it is still of the life that began at `created`, or, without that, at all. Needed for as long as
    /// the session lives: the key holds others up, and only with the lease it would go by itself.
    Delete { key: Bytes, created: Option<Revision> },
}

/// One of the chores that are under way.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn one_more(count: &Arc<AtomicUsize>) -> (Self, usize) {
        let before = count.fetch_add(1, Ordering::Relaxed);
        (Self(count.clone()), before)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the keeper is told.
#[derive(Debug)]
enum Word {
    /// With when the lease was asked for.
    Keep(Arc<Life>, Instant),
    Forget(LeaseId),
    Do(Chore),
}

/// The way to the keeper.
#[derive(Debug)]
pub(super) struct Keeper {
    // Not bounded by a number: two words for each session, and the chores, which are counted. `Drop` has to be able to
    // send without waiting.
    words: mpsc::UnboundedSender<Word>,
    chores: Arc<AtomicUsize>,
    task: JoinSet<()>,
}

impl Keeper {
    pub(super) fn start(link: Link) -> Self {
        let (words, heard) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        let runtime = link.runtime().clone();
        task.spawn_on(Task::new(link, heard).run(), &runtime);
        Self { words, chores: Arc::default(), task }
    }

    /// Renews a lease that was asked for at `sent` until it is lost or forgotten.
    pub(super) fn keep(&self, life: Arc<Life>, sent: Instant) -> Result<()> {
        self.words.send(Word::Keep(life, sent)).map_err(|_| Error::new(Reason::Closed))
    }

    pub(super) fn forget(&self, lease: LeaseId) {
        let _ = self.words.send(Word::Forget(lease));
    }

    /// Ends a lease, some time soon.
    pub(super) fn revoke(&self, life: Arc<Life>) {
        // At most one for each session, so it is not refused.
        let (counted, _) = Counted::one_more(&self.chores);
        let until = Instant::now() + life.ttl().min(limits::TTL_MAX);
        life.lose();
        self.say(Chore::new(What::Revoke { until }, life, None, counted));
    }

    /// Deletes a key of a session, some time soon. Without `created`, the key may be about to be written, and is
    /// looked for.
    pub(super) fn delete(&self, life: &Arc<Life>, key: Bytes, created: Option<Revision>) {
        let (counted, before) = Counted::one_more(&self.chores);
        if before >= CHORES_MAX {
            tracing::warn!(lease = %life.lease(), "a session left too much behind, and is ended");
            life.lose();
            return;
        }
        let seek = created.is_none().then(|| Instant::now() + SEEK);
        self.say(Chore::new(What::Delete { key, created }, life.clone(), seek, counted));
    }

    fn say(&self, chore: Chore) {
        // If the task is gone then so is the runtime, and nothing can be done any more.
        let _ = self.words.send(Word::Do(chore));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // The last session may just have asked for its revocation. The task ends by itself as soon as that is done,
        // or needless, and at once if the service is closed.
        self.task.detach_all();
    }
}

/// The task behind the [`Keeper`].
struct Task {
    link: Link,
    words: mpsc::UnboundedReceiver<Word>,
    /// No session and no client is left.
    alone: bool,
    kept: BTreeMap<LeaseId, Kept>,
    /// When to renew which lease. Those that are being renewed are not in it.
    due: BTreeSet<(Instant, LeaseId)>,
    /// What is to be done, by when, oldest first.
    chores: BTreeMap<(Instant, u64), Chore>,
    chore_ids: u64,
    chores_under_way: bool,
    calls: FuturesUnordered<BoxFuture<'static, Answer>>,
}

/// A session, as the keeper knows it.
struct Kept {
    life: Arc<Life>,
    /// `None` while it is being renewed.
    due: Option<Instant>,
    backoff: Backoff,
}

enum Answer {
    Renewal { sent: Instant, leases: Vec<LeaseId>, answer: Result<Response> },
    Chores { chores: Vec<Chore>, answer: Result<Vec<Result<Applied>>> },
}

enum Happened {
    Heard(Option<Word>),
    Answered(Answer),
    Due,
}

impl Task {
    fn new(link: Link, words: mpsc::UnboundedReceiver<Word>) -> Self {
        Self {
            link,
            words,
            alone: false,
            kept: BTreeMap::new(),
            due: BTreeSet::new(),
            chores: BTreeMap::new(),
            chore_ids: 0,
            chores_under_way: false,
            calls: FuturesUnordered::new(),
        }
    }

    async fn run(mut self) {
        while !(self.alone && self.chores.is_empty() && !self.chores_under_way) {
            match self.happening().await {
                Happened::Heard(Some(word)) => self.hear(word),
                Happened::Heard(None) => self.alone = true,
                Happened::Answered(Answer::Renewal { sent, leases, answer }) => {
                    self.renewed(sent, &leases, answer);
                }
                Happened::Answered(Answer::Chores { chores, answer }) => self.done(chores, answer),
                Happened::Due => {}
            }
            // All the words that are there, so that one call can do what they ask for.
            while let Ok(word) = self.words.try_recv() {
                self.hear(word);
            }
            let now = Instant::now();
            self.renew_what_is_due(now);
            self.do_chores(now);
        }
    }

    /// Waits for a word, an answer, or the time for something.
    async fn happening(&mut self) -> Happened {
        let renewal = self.due.first().map(|(at, _)| *at);
        let chore = self.chores.first_key_value().map(|((at, _), _)| *at);
        let chore = chore.filter(|_| !self.chores_under_way);
        let at = renewal.into_iter().chain(chore).min();
        let mut alarm = pin!(at.map(tokio::time::sleep_until));
        poll_fn(|context| {
            if !self.alone
                && let Poll::Ready(word) = self.words.poll_recv(context)
            {
                return Poll::Ready(Happened::Heard(word));
            }
            if let Poll::Ready(Some(answer)) = self.calls.poll_next_unpin(context) {
                return Poll::Ready(Happened::Answered(answer));
            }
            match alarm.as_mut().as_pin_mut() {
                Some(alarm) => alarm.poll(context).map(|()| Happened::Due),
                None => Poll::Pending,
            }
        })
        .await
    }

    fn hear(&mut self, word: Word) {
        match word {
            Word::Keep(life, sent) => {
                let at = sent + life.ttl().min(limits::TTL_MAX) / RENEW_PART;
                let ceiling = (life.ttl() / 20).min(Duration::from_millis(500));
                let backoff = Backoff::new(ceiling / 8, ceiling);
                self.due.insert((at, life.lease()));
                self.kept.insert(life.lease(), Kept { life, due: Some(at), backoff });
            }
            Word::Forget(lease) => self.forget(lease),
            Word::Do(chore) => {
                if matches!(chore.what, What::Revoke { .. }) {
                    self.forget(chore.life.lease());
                }
                self.later(Instant::now(), chore);
            }
        }
    }

    fn forget(&mut self, lease: LeaseId) {
        if let Some(at) = self.kept.remove(&lease).and_then(|kept| kept.due) {
            self.due.remove(&(at, lease));
        }
    }

    /// Renews all leases that are due, and those that soon would be, in as few calls as carry them.
    fn renew_what_is_due(&mut self, now: Instant) {
        if self.due.first().is_none_or(|(at, _)| *at > now) {
            return;
        }
        let soon = self.due.iter().take_while(|(at, _)| *at <= now + SLACK_MAX);
        let is_due = |(at, lease): &&(Instant, LeaseId)| {
            let ttl = self.kept.get(lease).map_or(Duration::ZERO, |kept| kept.life.ttl());
            *at <= now + ttl / SLACK_PART
        };
        let due: Vec<_> = soon.filter(is_due).copied().collect();
        let mut leases = Vec::with_capacity(due.len());
        for (at, lease) in due {
            self.due.remove(&(at, lease));
            match self.kept.get_mut(&lease) {
                Some(kept) if kept.life.is_alive() => {
                    kept.due = None;
                    leases.push(lease);
                }
                _ => drop(self.kept.remove(&lease)),
            }
        }
        for leases in leases.chunks(limits::BATCH_MAX) {
            self.renew(leases.to_vec());
        }
    }

    fn renew(&mut self, leases: Vec<LeaseId>) {
        let shortest = leases.iter().filter_map(|lease| self.kept.get(lease)).map(|k| k.life.ttl());
        let attempt = shortest.min().map(|ttl| ttl / ATTEMPT_PART);
        let timeout = attempt.map(|attempt| attempt.min(self.link.timeout()).max(ATTEMPT_MIN));
        let request = Request::KeepAlive { leases: leases.clone(), forwarded: false };
        let link = self.link.clone();
        // Before sending: the group's own count can only begin later.
        let sent = Instant::now();
        self.calls.push(Box::pin(async move {
            let answer = link.call(request, timeout).await;
            Answer::Renewal { sent, leases, answer }
        }));
    }

    fn renewed(&mut self, sent: Instant, leases: &[LeaseId], answer: Result<Response>) {
        match answer {
            Ok(Response::KeepAlive(answers)) if answers.len() == leases.len() => {
                for (lease, answer) in leases.iter().zip(answers) {
                    self.renewed_one(*lease, sent, &answer);
                }
            }
            Err(error) if error.kind() == ErrorKind::Closed => {
                // Nothing renews them any more. To know it now is better than at the deadline.
                leases.iter().for_each(|lease| self.lose(*lease));
            }
            _ => leases.iter().for_each(|lease| self.again(*lease)),
        }
    }

    fn renewed_one(&mut self, lease: LeaseId, sent: Instant, answer: &Result<Duration, Reason>) {
        match answer {
            &Ok(ttl) => {
                let Some(kept) = self.kept.get_mut(&lease) else { return };
                if !kept.life.renew(sent, ttl) {
                    return self.lose(lease);
                }
                kept.backoff.reset();
                let at = sent + ttl.min(limits::TTL_MAX) / RENEW_PART;
                kept.due = Some(at);
                self.due.insert((at, lease));
            }
            Err(Reason::LeaseNotFound { .. }) => self.lose(lease),
            Err(_) => self.again(lease),
        }
    }

    /// The renewal failed, and is tried again before long.
    fn again(&mut self, lease: LeaseId) {
        let Some(kept) = self.kept.get_mut(&lease) else { return };
        if !kept.life.is_alive() {
            return self.lose(lease);
        }
        let at = Instant::now() + kept.backoff.next();
        kept.due = Some(at);
        self.due.insert((at, lease));
    }

    fn lose(&mut self, lease: LeaseId) {
        if let Some(kept) = self.kept.remove(&lease) {
            kept.life.lose();
        }
    }

    fn later(&mut self, at: Instant, chore: Chore) {
        self.chore_ids += 1;
        self.chores.insert((at, self.chore_ids), chore);
    }

    /// Sends the chores that are due, many in one call, one call at a time.
    fn do_chores(&mut self, now: Instant) {
        if self.chores_under_way {
            return;
        }
        let mut chores = Vec::new();
        while chores.len() < CHORES_PER_CALL
            && let Some(first) = self.chores.first_entry().filter(|first| first.key().0 <= now)
        {
            chores.extend(Some(first.remove()).filter(|chore| chore.is_needed(now)));
        }
        if chores.is_empty() {
            return;
        }
        let proposals = chores.iter().map(Chore::proposal).collect();
        let link = self.link.clone();
        self.chores_under_way = true;
        self.calls.push(Box::pin(async move {
            let answer = link.propose_all(proposals, Some(CHORES_TIMEOUT)).await;
            Answer::Chores { chores, answer }
        }));
    }

    fn done(&mut self, chores: Vec<Chore>, answer: Result<Vec<Result<Applied>>>) {
        self.chores_under_way = false;
        let now = Instant::now();
        let outcomes = match answer {
            Ok(outcomes) => outcomes,
            Err(error) if error.kind() == ErrorKind::Closed => return self.chores.clear(),
            Err(error) => chores.iter().map(|_| Err(error.clone())).collect(),
        };
        for (mut chore, outcome) in chores.into_iter().zip(&outcomes) {
            if !chore.is_done(outcome, now) {
                self.later(now + chore.backoff.next(), chore);
            }
        }
    }
}

impl Drop for Task {
    /// Nothing renews its leases any more.
    fn drop(&mut self) {
        self.words.close();
        while let Ok(word) = self.words.try_recv() {
            self.hear(word);
        }
        self.kept.values().for_each(|kept| kept.life.lose());
    }
}

impl Chore {
    fn new(what: What, life: Arc<Life>, seek: Option<Instant>, counted: Counted) -> Self {
        Self { what, life, seek, backoff: Backoff::outage(), _counted: counted }
    }

    fn is_needed(&self, now: Instant) -> bool {
        match self.what {
            What::Revoke { until } => now < until,
            // The keys of a lost lease go with it.
            What::Delete { .. } => self.life.is_alive(),
        }
    }

    fn proposal(&self) -> Proposal {
        Proposal::from(match &self.what {
            What::Revoke { .. } => Command::Revoke(self.life.lease()),
            What::Delete { key, created } => Command::Txn(TxnOp {
                when: created
                    .map(|it| Compare::create_revision(key).equals(it))
                    .into_iter()
                    .collect(),
                then: vec![Op::delete(KeyRange::key(key))],
                otherwise: Vec::new(),
            }),
        })
    }

    /// Whether there is nothing left to do, by what came of it.
    fn is_done(&self, outcome: &Result<Applied>, now: Instant) -> bool {
        match outcome {
            // What is looked for may be written once more after it was found: by a try that was not answered, and comes behind
            // the one that was.
            Ok(Applied::Txn(_)) => self.seek.is_none_or(|until| now >= until),
            Ok(_) => true,
            // What the state says will be the same next time: it is revoked or expired already. And after the end nothing can
            // be done. What is said on the way to the state is about something else.
            Err(error) => is_of_state(error) || error.kind() == ErrorKind::Closed,
        }
    }
}
