//! A place in line: the brick under locks and elections.
//!
//! Each contender puts a key below the line's prefix, tied to its session. The key with the lowest create revision is
//! at the head. Everybody else waits for the one right before it, so a departure wakes one contender, not all.
//!
//! ```text
//! quorate/lock/nightly/00000000000000a7-0   created 41   ◀ head: token 41
//! quorate/lock/nightly/00000000000000b2-0   created 44     waits for …a7-0
//! quorate/lock/nightly/00000000000000a7-1   created 52     waits for …b2-0
//!              └ name  └ lease         └ nonce: one session may stand in line more than once
//! ```
//!
//! Invariants
//! - to line up is idempotent: the key is new, and written only if it does not exist. So it can be repeated after a
//!   lost answer, and the place is the one that the first try got;
//! - after the one ahead has gone, a contender looks again, at itself too, before it believes to be at the head: it may
//!   have been expired while it waited, and the one ahead of the one ahead may still be there;
//! - a place that is dropped, in line or at the head, asks the session's keeper to delete its key. If a try to write
//!   the key is still in doubt then the keeper looks for it for a while, so that no ghost stays in line;
//! - the order is that of create revisions: first come, first served, as the group saw them come.
//!
//! It does not notice when somebody else deletes the key of a *holder*, nor, while the member that it asks lags behind, that
//! of a contender right before its turn. `held()` does.

use crate::client::Session;
use crate::client::backoff::Backoff;
use crate::error::{Error, ErrorKind, Reason, Result};
use crate::fault::{Bug, bug};
use crate::types::{
    Compare, Consistency, FencingToken, KeyRange, KeyValue, Op, OpKind, OpResult, RangeOp,
    Revision, SortBy, TxnOutcome,
};
use bytes::Bytes;
use std::fmt::Write;
use std::future::{Future, IntoFuture};
use std::sync::atomic::{AtomicBool, Ordering};

/// A line that contenders stand in.
#[derive(Clone, Debug)]
pub(super) struct Line {
    prefix: String,
}

impl Line {
    pub(super) fn new(kind: &str, name: &str) -> Self {
        Self { prefix: format!("quorate/{kind}/{}/", escape(name)) }
    }

    /// All places of the line.
    pub(super) fn places(&self) -> KeyRange {
        KeyRange::prefix(&self.prefix)
    }

    /// A read of the place at the head.
    pub(super) fn head(&self) -> Op {
        let sort = SortBy::CreateRevision;
        range(RangeOp { sort, limit: 1, ..RangeOp::new(self.places()) })
    }

    /// Waits for the head of the line.
    pub(super) async fn turn(&self, session: &Session, value: Bytes) -> Result<Place> {
        let mut place = Place::new(session, &self.prefix);
        let newest = self.newest(2, None);
        let mine = Op::put(&place.key, value).lease(session.lease_id());
        let outcome = place.line_up(Compare::absent(&place.key), vec![mine, newest]).await?;
        let mut ahead = if outcome.succeeded {
            place.created = Some(outcome.revision);
            // The newest is mine, so the second is right before it.
            let mut others = places_in(outcome.results.get(1));
            others.find(|kv| kv.key != place.key).map(|kv| (kv.key.clone(), outcome.revision))
        } else {
            place.created = Some(found(outcome.results.first())?.create_revision);
            self.look(&place).await?
        };
        while let Some((key, revision)) = ahead {
            place.until_gone(&key, revision).await?;
            ahead = match bug(Bug::LockWithoutRecheck) {
                false => self.look(&place).await?,
                true => None,
            };
        }
        place.if_alive()
    }

    /// Takes the head of the line if nobody is in it.
    pub(super) async fn turn_if_free(
        &self,
        session: &Session,
        value: Bytes,
    ) -> Result<Option<Place>> {
        let mut place = Place::new(session, &self.prefix);
        let mine = Op::put(&place.key, value).lease(session.lease_id());
        // Written only into an empty line, so there is nothing to clear away if there is somebody.
        let outcome = place.line_up(Compare::absent(self.places()), vec![mine]).await?;
        if outcome.succeeded {
            place.created = Some(outcome.revision);
            return place.if_alive().map(Some);
        }
        match outcome.results.first() {
            // A try before this one got through, and only its answer did not.
            Some(OpResult::Get(Some(kv))) => {
                place.created = Some(kv.create_revision);
                place.if_alive().map(Some)
            }
            _ => {
                place.gone.store(!place.doubt, Ordering::Relaxed);
                Ok(None)
            }
        }
    }

    /// Who is right before a place, and at which revision; `None` if it is at the head.
    ///
    /// The nearest member may answer, if it has what this client has seen: who stands before a place can only go, and whether
    /// the lease of the place has ended since is for the session's clock to say, after any answer.
    async fn look(&self, place: &Place) -> Result<Option<(Bytes, Revision)>> {
        let created = place.created();
        let before = self.newest(1, Some(Revision::from(created.get().saturating_sub(1))));
        let client = place.session.client();
        let outcome = place
            .persist(|| {
                let both = client.txn().then(Op::get(&place.key)).then(before.clone());
                both.consistency(Consistency::Serializable).into_future()
            })
            .await?;
        let mine = found(outcome.results.first())?;
        if mine.create_revision != created {
            return Err(Error::new(Reason::SessionLost));
        }
        let ahead = places_in(outcome.results.get(1)).next();
        Ok(ahead.map(|kv| (kv.key.clone(), outcome.revision)))
    }

    /// A read of the newest places, created at `max` or before.
    fn newest(&self, limit: u32, max: Option<Revision>) -> Op {
        range(RangeOp {
            limit,
            sort: SortBy::CreateRevision,
            descending: true,
            keys_only: true,
            create_revision_max: max,
            ..RangeOp::new(self.places())
        })
    }
}

/// A place in a line, at its head once [`Line::turn`] has returned it. Never `Clone`: dropping it gives it up.
#[derive(Debug)]
pub(super) struct Place {
    session: Session,
    key: Bytes,
    /// When the group saw it come; `None` until that is known.
    created: Option<Revision>,
    /// Whether a try to line up was not answered, and may still get through.
    doubt: bool,
    /// Whether the key is known to be deleted.
    gone: AtomicBool,
}

impl Place {
    fn new(session: &Session, prefix: &str) -> Self {
        let (lease, nonce) = (session.lease_id().get(), session.nonce());
        let key = Bytes::from(format!("{prefix}{lease:016x}-{nonce:x}"));
        // Until the first answer everything is in doubt, should the caller give up while it waits.
        let gone = AtomicBool::new(false);
        Self { session: session.clone(), key, created: None, doubt: true, gone }
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// The last word before it is handed out, by the session's clock: what was read may be as old as this process was stopped
    /// for.
    fn if_alive(self) -> Result<Self> {
        if self.session.is_alive() { Ok(self) } else { Err(Error::new(Reason::SessionLost)) }
    }

    pub(super) fn token(&self) -> FencingToken {
        FencingToken::from(self.created().get())
    }

    /// True only while this place exists.
    pub(super) fn held(&self) -> Compare {
        Compare::create_revision(&self.key).equals(self.created())
    }

    /// Changes what stands at the place.
    pub(super) async fn rewrite(&self, value: Bytes) -> Result<()> {
        let mine = Op::put(&self.key, value).lease(self.session.lease_id());
        let done = self.session.client().txn().when(self.held()).then(mine).await?;
        if done.succeeded { Ok(()) } else { Err(Error::new(Reason::SessionLost)) }
    }

    /// Gives the place up. An error if it was lost before.
    pub(super) async fn leave(&self) -> Result<()> {
        let delete = Op::delete(&self.key);
        let done = self.session.client().txn().when(self.held()).then(delete).await?;
        self.gone.store(!self.doubt, Ordering::Relaxed);
        if done.succeeded { Ok(()) } else { Err(Error::new(Reason::SessionLost)) }
    }

    fn created(&self) -> Revision {
        // A place is handed out with its create revision only. Zero would be "absent", and so never held by anybody.
        self.created.unwrap_or_else(|| Revision::from(u64::MAX))
    }

    /// Writes the key if `free` holds, until an answer comes; reads it if not.
    async fn line_up(&mut self, free: Compare, then: Vec<Op>) -> Result<TxnOutcome> {
        let client = self.session.client().clone();
        let mut backoff = Backoff::outage();
        let mut doubt = false;
        loop {
            let mut txn = client.txn().when(free.clone()).when(Compare::absent(&self.key));
            for op in &then {
                txn = txn.then(op.clone());
            }
            let outcome = self.session.run(txn.otherwise(Op::get(&self.key)).into_future()).await?;
            match outcome {
                Ok(outcome) => {
                    self.doubt = doubt;
                    return Ok(outcome);
                }
                Err(error) if matches!(error.reason(), Reason::LeaseNotFound { .. }) => {
                    self.session.lose();
                    return Err(Error::new(Reason::SessionLost));
                }
                Err(error) if error.is_retryable() => {
                    doubt |= error.may_have_applied();
                    self.session.run(client.link().sleep(backoff.next())).await?;
                }
                Err(error) => {
                    // A refusal: there is no key, unless of an earlier try.
                    self.doubt = doubt | error.may_have_applied();
                    self.gone.store(!self.doubt, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    }

    /// Waits until a key that existed at `revision` is deleted, or may have been.
    async fn until_gone(&self, key: &Bytes, revision: Revision) -> Result<()> {
        let client = self.session.client();
        let watch = client.watch(key).from(revision.next()).deletes_only();
        let deleted = async { watch.await?.recv().await };
        match self.session.run(deleted).await? {
            Ok(changes) => {
                client.link().saw(changes.revision);
                Ok(())
            }
            // So much has happened that it has to be read again.
            Err(error) if error.kind() == ErrorKind::Compacted => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads until an answer comes, or the session is lost.
    async fn persist<F>(&self, mut read: impl FnMut() -> F) -> Result<TxnOutcome>
    where
        F: Future<Output = Result<TxnOutcome>>,
    {
        let mut backoff = Backoff::outage();
        loop {
            match self.session.run(read()).await? {
                Err(error) if error.is_retryable() => {
                    let wait = self.session.client().link().sleep(backoff.next());
                    self.session.run(wait).await?;
                }
                answer => return answer,
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !*self.gone.get_mut() {
            // In doubt, any life of the key is a ghost: nobody else ever writes it.
            let created = self.created.filter(|_| !self.doubt);
            self.session.delete_later(self.key.clone(), created);
        }
    }
}

fn range(op: RangeOp) -> Op {
    Op(OpKind::Range(op))
}

/// The entry of a key that has to exist while its session lives.
fn found(result: Option<&OpResult>) -> Result<&KeyValue> {
    match result {
        Some(OpResult::Get(Some(kv))) => Ok(kv),
        _ => Err(Error::new(Reason::SessionLost)),
    }
}

fn places_in(result: Option<&OpResult>) -> impl Iterator<Item = &KeyValue> {
    let page = match result {
        Some(OpResult::Range(page)) => Some(page),
        _ => None,
    };
    page.into_iter().flat_map(|page| &page.entries)
}

/// A name as a part of a key: readable, without a slash, and different for different names.
pub(super) fn escape(name: &str) -> String {
    name.bytes().fold(String::with_capacity(name.len()), |mut escaped, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                escaped.push(char::from(byte));
            }
            // Writing to a string cannot fail.
            _ => drop(write!(escaped, "%{byte:02X}")),
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_stay_readable_and_cannot_nest() {
        assert_eq!(escape("billing/nightly run"), "billing%2Fnightly%20run");
        let (outer, inner) = (Line::new("lock", "a"), Line::new("lock", "a/b"));
        assert!(!outer.places().overlaps(&inner.places()));
        assert!(!Line::new("lock", "a").places().overlaps(&Line::new("lock", "a%2Fb").places()));
    }

    proptest! {
        #[test]
        fn different_names_never_share_a_line(a: String, b: String) {
            let (left, right) = (Line::new("lock", &a).places(), Line::new("lock", &b).places());
            prop_assert_eq!(left.overlaps(&right), a == b);
        }
    }
}
