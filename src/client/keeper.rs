//! The keeper: one task that keeps the leases of all sessions of a client alive, and clears up after them.
//!
//! A session is a lease that must be renewed, again and again, before the group lets it expire. The client's view of
//! its life is the [`Life`]: alive until a deadline, or lost, and lost for good.
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
//! - the deadline is looked at by whoever asks, not only by this task: a starved task prolongs nothing;
//! - what was lost stays lost, though an answer says otherwise later;
//! - each lease is renewed about every third of its ttl, together with all that are due about then;
//! - a failed renewal is repeated quickly, and holds up no other;
//! - chores (revocations and deletions asked for by a `Drop`) are repeated until they are done or have become needless,
//!   because the lease is gone and its keys with it. Their number is bounded.
//!
//! The clock is tokio's, which on most platforms stands still while the machine is suspended. After a suspend a session
//! may believe in itself until its first renewal fails. That is what fencing tokens are for.

use super::backoff::Backoff;
use super::link::Link;
use crate::api::{Applied, Command, Proposal, Request, Response};
use crate::error::{Error, ErrorKind, Reason, Result};
use crate::types::{Compare, KeyRange, LeaseId, Op, OpResult, Revision, TxnOp, TxnOutcome, limits};
use bytes::Bytes;
use futures::future::{BoxFuture, Either, poll_fn, select};
use futures::stream::{FuturesUnordered, StreamExt};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The margin is this part of the ttl, and [`MARGIN_MIN`] at least.
const MARGIN_PART: u32 = 10;
const MARGIN_MIN: Duration = Duration::from_millis(100);
/// A lease is renewed when this part of its ttl has passed.
const RENEW_PART: u32 = 3;
/// A renewal is given up, and repeated, after this part of the ttl.
const ATTEMPT_PART: u32 = 5;
/// A lease that is due within this part of its ttl goes along with those that are due now.
const SLACK_PART: u32 = 12;
const SLACK_MAX: Duration = Duration::from_secs(1);
/// The most chores of a client. A session that leaves more behind is ended instead, which clears up everything.
const CHORES_MAX: usize = 65_536;
/// The most chores in one call.
const CHORES_PER_CALL: usize = 256;
/// How long a key is looked for, if the call that would write it was not answered: longer than any call can take.
const SEEK: Duration = Duration::from_secs(limits::CALL_TIMEOUT_MAX.as_secs() + 30);

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
                // Nothing renews it any more. To know it now is better than at the deadline.
                return self.lose();
            }
            let _ = select(pin!(changes.changed()), pin!(link.sleep_until(until))).await;
        }
    }

    pub(super) fn lose(&self) {
        self.state.send_if_modified(|state| std::mem::replace(state, State::Lost) != State::Lost);
    }

    /// The group renewed the lease, asked at `sent`. Whether it still counts.
    fn renew(&self, sent: Instant, ttl: Duration) -> bool {
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

/// Something to be done after its asker has gone.
#[derive(Debug)]
struct Chore {
    what: What,
    life: Arc<Life>,
    /// To be done again although nothing was found, up to then.
    seek: Option<Instant>,
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
        let until = Instant::now() + life.ttl.min(limits::TTL_MAX);
        life.lose();
        let chore = Chore { what: What::Revoke { until }, life, seek: None, _counted: counted };
        let _ = self.words.send(Word::Do(chore));
    }

    /// Deletes a key of a session, some time soon. Without `created`, the key may be about to be written, and is
    /// looked for.
    pub(super) fn delete(&self, life: &Arc<Life>, key: Bytes, created: Option<Revision>) {
        let (counted, before) = Counted::one_more(&self.chores);
        if before >= CHORES_MAX {
            tracing::warn!(lease = %life.lease, "a session left too much behind, and is ended");
            life.lose();
            return;
        }
        let seek = created.is_none().then(|| Instant::now() + SEEK);
        let what = What::Delete { key, created };
        let chore = Chore { what, life: life.clone(), seek, _counted: counted };
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
    chores: VecDeque<Chore>,
    /// When to begin with the chores.
    chores_at: Instant,
    chores_under_way: bool,
    chores_backoff: Backoff,
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
            chores: VecDeque::new(),
            chores_at: Instant::now(),
            chores_under_way: false,
            chores_backoff: Backoff::outage(),
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
        let chore = self.chores.front().filter(|_| !self.chores_under_way).map(|_| self.chores_at);
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
                let at = sent + life.ttl.min(limits::TTL_MAX) / RENEW_PART;
                let ceiling = (life.ttl / 20).min(Duration::from_millis(500));
                let backoff = Backoff::new(ceiling / 8, ceiling);
                self.due.insert((at, life.lease));
                self.kept.insert(life.lease, Kept { life, due: Some(at), backoff });
            }
            Word::Forget(lease) => self.forget(lease),
            Word::Do(chore) => {
                if matches!(chore.what, What::Revoke { .. }) {
                    self.forget(chore.life.lease);
                }
                self.chores.push_back(chore);
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
            let ttl = self.kept.get(lease).map_or(Duration::ZERO, |kept| kept.life.ttl);
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
        let shortest = leases.iter().filter_map(|lease| self.kept.get(lease)).map(|k| k.life.ttl);
        let attempt = shortest.min().map(|ttl| ttl / ATTEMPT_PART);
        let timeout = attempt.map(|attempt| attempt.min(self.link.timeout()).max(MARGIN_MIN));
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

    /// Sends the chores that wait, many in one call, one call at a time.
    fn do_chores(&mut self, now: Instant) {
        self.chores.retain(|chore| chore.is_needed(now));
        if self.chores_under_way || self.chores.is_empty() || now < self.chores_at {
            return;
        }
        let count = self.chores.len().min(CHORES_PER_CALL);
        let chores: Vec<_> = self.chores.drain(..count).collect();
        let proposals = chores.iter().map(Chore::proposal).collect();
        let link = self.link.clone();
        self.chores_under_way = true;
        self.calls.push(Box::pin(async move {
            let answer = link.propose_all(proposals, None).await;
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
        let again = chores.into_iter().zip(&outcomes);
        let again: Vec<_> = again.filter(|(chore, outcome)| !chore.is_done(outcome, now)).collect();
        if again.is_empty() {
            self.chores_backoff.reset();
        } else {
            self.chores_at = now + self.chores_backoff.next();
        }
        self.chores.extend(again.into_iter().map(|(chore, _)| chore));
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
    fn is_needed(&self, now: Instant) -> bool {
        match self.what {
            What::Revoke { until } => now < until,
            // The keys of a lost lease go with it.
            What::Delete { .. } => self.life.is_alive(),
        }
    }

    fn proposal(&self) -> Proposal {
        Proposal::from(match &self.what {
            What::Revoke { .. } => Command::Revoke(self.life.lease),
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
            Ok(Applied::Txn(TxnOutcome { results, .. })) => {
                let found = matches!(results.first(), Some(OpResult::Deleted { count: 1.., .. }));
                found || self.seek.is_none_or(|until| now >= until)
            }
            Ok(_) => true,
            // A refusal will be the same next time: it is revoked or expired already.
            Err(error) => !error.is_retryable(),
        }
    }
}

/// Runs `work` unless the session is lost first.
pub(super) async fn unless_lost<F: Future>(life: &Life, link: &Link, work: F) -> Result<F::Output> {
    // In this order, so that work does not go on for one more turn after the deadline.
    match select(pin!(life.lost(link)), pin!(work)).await {
        Either::Left(_) => Err(Error::new(Reason::SessionLost)),
        Either::Right((output, _)) => Ok(output),
    }
}
