//! The way to a group from outside: through one of its members, and through another when that one fails.
//!
//! ```text
//! Call ──▶ the endpoint in use ──┬─ answers ─────────────▶ the answer
//!                                └─ cannot, or does not ─▶ an error, after which its caller sends it again:
//!                                                          the next call goes through another endpoint
//! members of the group, asked for now and then ──▶ endpoints
//! ```
//!
//! Which member leads does not matter, for each passes a write on. So all calls go through one endpoint, the first that
//! answered when it was connected to, and so the nearest, until it fails; and then through any other.
//!
//! A member may answer and be of no use: cut off from the others, it hears of no change and carries out no write. So now and
//! then it is asked for the word of a quorum, and left for another that has it. If none has, the group is away, and nothing
//! would be gained.
//!
//! Invariants
//! - a call goes through one endpoint, once: whether it may be sent again is for its sender to know;
//! - one that hangs or is cut off is left, also if no caller waits long enough to see it;
//! - what waits for news goes elsewhere after calls do, and only to who is known to work: that may be a hundred thousand
//!   watches, to be made known there;
//! - all endpoints are of one group: that of the first that answered. Another one is not asked again;
//! - who was named by the application is never forgotten, though the group may not know it: a name may lead to any member.

use super::backoff::{jitter, random};
use crate::api::{Call, Query, Request, Response};
use crate::error::{Error, Reason};
use crate::types::{Consistency, Status, TxnOp};
use crate::wire::{Endpoint as Caller, RpcClient, Security};
use futures::FutureExt;
use futures::future::{BoxFuture, Either, ready, select, select_ok};
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// How long an endpoint may take to say who the members are.
const LEARN_TIMEOUT: Duration = Duration::from_secs(2);
/// An endpoint that had less time than this has not failed if it did not answer.
const FAIR: Duration = Duration::from_millis(500);
/// The most members that are taken for endpoints, whatever an endpoint says.
const MEMBERS_MAX: usize = 64;
/// How long an endpoint that failed is not asked while there is another.
const AVOID: Duration = Duration::from_secs(5);
/// How long an endpoint that failed is named among what was tried.
const NAMED: Duration = Duration::from_secs(60);
/// How often the group is asked who its members are, about. Also when an endpoint fails.
const LEARN_EVERY: Duration = Duration::from_secs(10);
/// How long it is waited before the next time if no member has a majority behind it.
const OUTAGE_PAUSE: Duration = Duration::from_secs(5);
/// How long it is waited at least between two times, about.
const LEARN_PAUSE: Duration = Duration::from_secs(1);

/// A service that is one of several, whichever works. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Router(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    runtime: Handle,
    security: Security,
    group: u128,
    named: Vec<String>,
    endpoints: Mutex<Endpoints>,
    /// The endpoint that is known to work best. Who waits for news elsewhere leaves for it.
    settled: watch::Sender<String>,
    failed: Arc<Notify>,
    /// Learns who the members are.
    task: Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Endpoints {
    all: Vec<Endpoint>,
    used: usize,
}

struct Endpoint {
    address: String,
    stub: RpcClient,
    failed: Option<(Instant, String)>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed = self.failed.as_ref().map(|(_, why)| why);
        f.debug_struct("Endpoint").field("address", &self.address).field("failed", &failed).finish()
    }
}

impl Router {
    /// Goes through `stub`, which is connected to `address`, and has said that.
    pub(super) fn new(
        runtime: &Handle,
        security: Security,
        named: Vec<String>,
        (address, stub): (String, RpcClient),
        status: &Status,
    ) -> Self {
        let settled = watch::Sender::new(address.clone());
        let all = vec![Endpoint { address, stub, failed: None }];
        let router = Self(Arc::new(Inner {
            runtime: runtime.clone(),
            security,
            group: status.group,
            named,
            endpoints: Mutex::new(Endpoints { all, used: 0 }),
            settled,
            failed: Arc::default(),
            task: Mutex::default(),
        }));
        router.0.take_in(status);
        let learn = learn(Arc::downgrade(&router.0), Arc::clone(&router.0.failed));
        lock(&router.0.task).spawn_on(learn, runtime);
        router
    }

    async fn send(self, call: Call) -> Result<Response, Error> {
        // What keeps sessions alive has little time by its nature, and none to lose.
        let is_long = call.timeout >= FAIR || matches!(call.request, Request::KeepAlive { .. });
        let is_wait_for_news = matches!(call.request, Request::Follow(_));
        let (address, answer) = match call.request {
            Request::Follow(_) => match self.wait_for_news(call).await {
                Some(answer) => answer,
                None => return Err(Reason::ConnectionLost.into()),
            },
            _ => {
                let (address, stub) = self.0.used();
                let mut unanswered = Unanswered(Some(Arc::clone(&self.0.failed)));
                let answer = stub.call(call).await;
                unanswered.0 = None;
                (address, answer)
            }
        };
        match answer {
            Err(error) if is_of_endpoint(&error) => {
                if is_long || !is_of_time(error.reason()) {
                    self.0.pass_over(&address, &error);
                } else {
                    // It is looked after: it may hang, and all who call may be as impatient.
                    self.0.failed.notify_one();
                }
                if is_wait_for_news {
                    self.0.unsettle(&address);
                }
                Err(self.0.elsewhere(error))
            }
            // A member that has failed answers, and says so of each write.
            Ok(Response::Propose(outcomes)) => {
                let of_each = outcomes.into_iter().map(|outcome| match outcome {
                    Err(error) if is_of_endpoint(&error) => {
                        self.0.pass_over(&address, &error);
                        Err(self.0.elsewhere(error))
                    }
                    outcome => outcome,
                });
                Ok(Response::Propose(of_each.collect()))
            }
            answer => answer,
        }
    }

    /// Of a member that hangs or is cut off no news come, and no failure: the wait ends, without an answer, when it is known.
    async fn wait_for_news(&self, call: Call) -> Option<(String, Result<Response, Error>)> {
        let mut settled = self.0.settled.subscribe();
        let at = settled.borrow_and_update().clone();
        let (address, stub) = self.0.known(&at).unwrap_or_else(|| self.0.used());
        let elsewhere = async {
            while settled.changed().await.is_ok() && *settled.borrow_and_update() == address {}
        };
        match select(pin!(stub.call(call)), pin!(elsewhere)).await {
            Either::Left((answer, _)) => Some((address.clone(), answer)),
            Either::Right(_) => {
                stub.follow_no_more();
                None
            }
        }
    }
}

/// Notices that a caller has gone before it was answered: the endpoint may hang.
struct Unanswered(Option<Arc<Notify>>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.iter().for_each(|failed| failed.notify_one());
    }
}

impl tower::Service<Call> for Router {
    type Response = Response;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Response, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        self.clone().send(call).boxed()
    }
}

impl Inner {
    fn endpoints(&self) -> MutexGuard<'_, Endpoints> {
        lock(&self.endpoints)
    }

    fn used(&self) -> (String, RpcClient) {
        let endpoints = self.endpoints();
        let used = &endpoints.all[endpoints.used];
        (used.address.clone(), used.stub.clone())
    }

    /// An endpoint has failed: calls go through another one from now on.
    fn pass_over(&self, address: &str, error: &Error) {
        let now = Instant::now();
        let mut endpoints = self.endpoints();
        let Endpoints { all, used } = &mut *endpoints;
        let Some(at) = all.iter().position(|it| it.address == address) else { return };
        all[at].failed = Some((now, said(address, error)));
        // Many calls fail at once, and only the first of them changes something.
        if at == *used && all.len() > 1 {
            let is_avoided = |it: &Endpoint| {
                it.failed.as_ref().is_some_and(|(failed, _)| now.duration_since(*failed) < AVOID)
            };
            // Any of the others: if all clients took the same one, a group that was restarted member by member would have all
            // of them at one in the end.
            let first = at + 1 + random() as usize % (all.len() - 1);
            let others = (first..first + all.len()).map(|other| other % all.len());
            let others = others.filter(|other| *other != at);
            let fresh = others.clone().find(|other| !is_avoided(&all[*other]));
            let oldest = || {
                let failed = |at: &usize| all[*at].failed.as_ref().map(|(failed, _)| *failed);
                others.min_by_key(failed)
            };
            *used = fresh.or_else(oldest).unwrap_or(at);
            tracing::debug!(%error, from = address, to = all[*used].address, "another endpoint is used");
        }
        drop(endpoints);
        self.failed.notify_one();
    }

    /// All endpoints but one. Their connections are for one question: who has many clients has no room for idle ones.
    fn others(&self, address: &str) -> Vec<Endpoint> {
        let endpoints = self.endpoints();
        let others = endpoints.all.iter().filter(|it| it.address != address);
        others.map(|it| self.endpoint(&it.address)).collect()
    }

    /// Calls go through another endpoint, of which it is known that it works.
    fn change(&self, from: &str, to: &str, error: &Error) {
        let mut endpoints = self.endpoints();
        let Endpoints { all, used } = &mut *endpoints;
        let at = |address: &str| all.iter().position(|it| it.address == address);
        // Somebody may have been faster.
        let (Some(old), Some(new)) = (at(from), at(to)) else { return };
        if old == *used {
            tracing::debug!(%error, from, to, "another endpoint is used");
            all[old].failed = Some((Instant::now(), said(from, error)));
            *used = new;
        }
        drop(endpoints);
        self.settle(to);
    }

    /// The endpoint in use works, and has a majority behind it.
    fn settle(&self, address: &str) {
        if self.used().0 == address {
            self.settled.send_if_modified(|settled| {
                let is_new = settled != address;
                if is_new {
                    address.clone_into(settled);
                }
                is_new
            });
        }
    }

    /// No news are to be had of it: whoever waits for them next does so where calls go.
    fn unsettle(&self, address: &str) {
        let (used, _) = self.used();
        self.settled.send_if_modified(|settled| {
            let is_left = settled == address && used != address;
            if is_left {
                *settled = used;
            }
            is_left
        });
    }

    fn known(&self, address: &str) -> Option<(String, RpcClient)> {
        let endpoints = self.endpoints();
        let endpoint = endpoints.all.iter().find(|it| it.address == address)?;
        Some((endpoint.address.clone(), endpoint.stub.clone()))
    }

    fn works(&self, address: &str) {
        let mut endpoints = self.endpoints();
        let endpoint = endpoints.all.iter_mut().find(|it| it.address == address);
        endpoint.into_iter().for_each(|it| it.failed = None);
    }

    /// The failure of an endpoint, as that of one of several: it passes. With what all have said that have failed.
    fn elsewhere(&self, error: Error) -> Error {
        let is_final = is_final_there(error.reason());
        let is_named = matches!(error.reason(), Reason::Unreachable { .. } | Reason::Closed);
        let endpoints = self.endpoints();
        let failed = endpoints.all.iter().filter_map(|it| it.failed.as_ref());
        let tried = failed.filter(|(when, _)| when.elapsed() < NAMED).map(|(_, why)| &**why);
        let tried: Vec<&str> = tried.collect();
        if tried.is_empty() || endpoints.all.len() == 1 {
            return error;
        }
        let other = Error::new(Reason::Unreachable { detail: tried.join("; ") });
        match is_final || is_named {
            true if error.may_have_applied() => other.unknown_outcome(),
            true => other,
            false => error.because(other),
        }
    }

    /// Takes the members of the group for endpoints, and whoever was named.
    fn take_in(&self, status: &Status) {
        // One that is not listened for has none.
        let members = status.members.iter().map(|(_, address)| address).filter(|it| !it.is_empty());
        let members = members.take(MEMBERS_MAX);
        let mut endpoints = self.endpoints();
        let Endpoints { all, used } = &mut *endpoints;
        let in_use = all[*used].address.clone();
        let mut wanted: Vec<&String> = Vec::new();
        for address in members.chain(&self.named).chain([&in_use]) {
            if !wanted.contains(&address) {
                wanted.push(address);
            }
        }
        let mut known = std::mem::take(all);
        for address in wanted {
            let place = known.iter().position(|it| it.address == *address);
            all.push(place.map_or_else(|| self.endpoint(address), |at| known.swap_remove(at)));
        }
        *used = all.iter().position(|it| it.address == in_use).unwrap_or(0);
    }

    fn endpoint(&self, address: &str) -> Endpoint {
        let who = Caller { group: self.group, ..Caller::client() };
        let runtime = self.runtime.clone();
        let stub = RpcClient::new(address.to_owned(), who, self.security.clone(), runtime);
        Endpoint { address: address.to_owned(), stub, failed: None }
    }
}

/// Asks the group for its members, and whether the endpoint in use is one of those that get anywhere, as long as somebody
/// uses the router.
async fn learn(router: Weak<Inner>, failed: Arc<Notify>) {
    loop {
        tokio::time::sleep(jitter(LEARN_PAUSE)).await;
        let _ = timeout(jitter(LEARN_EVERY), failed.notified()).await;
        let Some(inner) = router.upgrade() else { return };
        let (address, stub) = inner.used();
        // It does not keep the router while it waits.
        drop(inner);
        let status = stub.call(Call { request: Request::Status, timeout: LEARN_TIMEOUT }).await;
        let Some(inner) = router.upgrade() else { return };
        match status {
            Ok(Response::Status(status)) => {
                inner.take_in(&status);
                inner.works(&address);
            }
            // Callers may be less patient, and never hear of it.
            Err(error) if is_of_endpoint(&error) => {
                inner.pass_over(&address, &error);
                continue;
            }
            _ => {}
        }
        drop(inner);
        let word = word_of_quorum(&stub).await;
        let Some(inner) = router.upgrade() else { return };
        let error = match word {
            Ok(()) => {
                let settled = inner.settled.borrow().clone();
                let before = inner.known(&settled).filter(|_| settled != address);
                drop(inner);
                // A call has failed there, which may have been the group's fault.
                if let Some((_, stub)) = before
                    && is_well(&word_of_quorum(&stub).await)
                {
                    continue;
                }
                let Some(inner) = router.upgrade() else { return };
                inner.settle(&address);
                continue;
            }
            word if is_well(&word) => continue,
            Err(error) => error,
        };
        let others = inner.others(&address);
        drop(inner);
        let Some(other) = first_that_works(others).await else {
            tokio::time::sleep(jitter(OUTAGE_PAUSE)).await;
            continue;
        };
        // It may have been all of the group, and be over.
        if !is_well(&word_of_quorum(&stub).await)
            && let Some(inner) = router.upgrade()
        {
            inner.change(&address, &other, &error);
        }
    }
}

/// A member that is busy is not cut off.
fn is_well(word: &Result<(), Error>) -> bool {
    word.as_ref().err().is_none_or(|error| *error.reason() == Reason::TooManyRequests)
}

async fn first_that_works(endpoints: Vec<Endpoint>) -> Option<String> {
    let asked = endpoints
        .into_iter()
        .map(|it| async move { word_of_quorum(&it.stub).await.map(|()| it.address) }.boxed());
    // Of an empty list there is no first.
    let or_none = asked.chain([ready(Err(Reason::NoLeader.into())).boxed()]);
    select_ok(or_none).await.ok().map(|(address, _)| address)
}

/// Whether a member has a majority behind it.
async fn word_of_quorum(stub: &RpcClient) -> Result<(), Error> {
    let (txn, consistency) = (TxnOp::default(), Consistency::Linearizable);
    let request = Request::Query(Query { txn, consistency, revision_min: None });
    stub.call(Call { request, timeout: LEARN_TIMEOUT }).await.map(drop)
}

/// Whether another endpoint could do better.
fn is_of_endpoint(error: &Error) -> bool {
    match error.reason() {
        Reason::NoLeader
        | Reason::NotLeader { .. }
        | Reason::Unreachable { .. }
        | Reason::Starting
        | Reason::DeadlinePassed { .. }
        | Reason::ConnectionLost
        | Reason::TooManyRequests
        | Reason::Closed => true,
        reason => is_final_there(reason),
    }
}

/// Whether more time could have made another answer of it.
fn is_of_time(reason: &Reason) -> bool {
    // Also a connection that was not made in time, and a leader that was waited for. One that is busy may be so for a moment.
    matches!(
        reason,
        Reason::DeadlinePassed { .. }
            | Reason::Unreachable { .. }
            | Reason::NoLeader
            | Reason::NotLeader { .. }
            | Reason::TooManyRequests
    )
}

/// Whether that member will not do better for long, though another one may.
fn is_final_there(reason: &Reason) -> bool {
    matches!(
        reason,
        Reason::GroupMismatch
            | Reason::NodeMismatch { .. }
            | Reason::IncarnationRefused { .. }
            | Reason::MemberRemoved { .. }
            | Reason::TimingDiffers
            | Reason::NoCommonVersion
            | Reason::Malformed { .. }
            | Reason::Unrecognized { .. }
            | Reason::PlaintextRefused { .. }
            | Reason::Untrusted { .. }
            | Reason::DiskFailed { .. }
            | Reason::Corrupt { .. }
            | Reason::StateDiffers { .. }
            | Reason::AssertionFailed { .. }
    )
}

/// What to say of an endpoint that failed.
pub(super) fn said(address: &str, error: &Error) -> String {
    match error.reason() {
        Reason::Unreachable { detail } => detail.clone(),
        _ => format!("{address}: {error}"),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group whose members are restarted in turn would have all its clients at one of them in the end.
    #[tokio::test]
    async fn who_leaves_an_endpoint_goes_to_any_of_the_others() {
        let named: Vec<String> = (1..=4).map(|port| format!("127.0.0.1:{port}")).collect();
        let mut used = std::collections::BTreeMap::<String, usize>::new();
        for _ in 0..100 {
            let (runtime, security) = (Handle::current(), Security::Loopback);
            let who = Caller { group: 1, ..Caller::client() };
            let first = named[1].clone();
            let stub = RpcClient::new(first.clone(), who, security.clone(), runtime.clone());
            let status = crate::client::fake::Fake::status_of(1);
            let router = Router::new(&runtime, security, named.clone(), (first, stub), &status);
            let error = Error::new(Reason::ConnectionLost);
            router.0.pass_over(&named[1], &error);
            *used.entry(router.0.used().0).or_default() += 1;
            // Nobody goes back to one that has just failed, as long as there is another.
            let second = router.0.used().0;
            router.0.pass_over(&second, &error);
            let third = router.0.used().0;
            assert!(third != second && third != named[1], "{third}");
        }
        assert!(used.len() == 3 && used.values().all(|count| *count > 10), "{used:?}");
    }
}
