//! Keys as a program knows them, below a prefix that it does not know.
//!
//! ```text
//! client.namespace("shop/").put("cart/7", …)     the program     cart/7
//!                                                the group       shop/cart/7
//! ```
//!
//! Every key and range of a request gets the prefix on its way to the group, and every key of an answer loses it on its way
//! back. What is asked for without an end ends with the prefix.
//!
//! Invariants
//! - no request reaches a key outside of the prefix, and no answer names one;
//! - rules are those of the keys that the program sees, so that a key is refused or not wherever it is put.

use crate::api;
use crate::error::{Reason, Result};
use crate::types::{
    Changes, Compare, Event, KeyRange, KeyValue, LeaseStatus, Op, OpKind, OpResult, TxnOp,
    TxnOutcome,
};
use bytes::Bytes;

/// A prefix of all keys; the empty one changes nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Namespace(Bytes);

impl Namespace {
    /// The one with this prefix inside of this one.
    pub(super) fn within(&self, prefix: &[u8]) -> Self {
        Self(self.join(prefix))
    }

    /// Whether it changes nothing.
    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The key as the group knows it.
    pub(super) fn key(&self, key: Bytes) -> Bytes {
        if self.is_root() { key } else { self.join(&key) }
    }

    /// The range as the group knows it.
    pub(super) fn range(&self, range: KeyRange) -> KeyRange {
        if self.is_root() {
            return range;
        }
        let end = match &range.end {
            Some(end) => Some(self.join(end)),
            None => KeyRange::prefix(&self.0).end,
        };
        KeyRange { start: self.join(&range.start), end }
    }

    /// The transaction as the group knows it.
    ///
    /// # Errors
    /// If it breaks a rule. In the root it is looked at later.
    pub(super) fn txn(&self, mut txn: TxnOp) -> Result<TxnOp, Reason> {
        if !self.is_root() {
            api::check_txn(&txn)?;
            self.enter(&mut txn);
        }
        Ok(txn)
    }

    fn enter(&self, txn: &mut TxnOp) {
        for Compare { range, .. } in &mut txn.when {
            *range = self.range(range.clone());
        }
        for Op(op) in txn.then.iter_mut().chain(&mut txn.otherwise) {
            match op {
                OpKind::Put(put) => put.key = self.join(&put.key),
                OpKind::Get(get) => get.key = self.join(&get.key),
                OpKind::Delete(delete) => delete.range = self.range(delete.range.clone()),
                OpKind::Range(read) => read.range = self.range(read.range.clone()),
                OpKind::Txn(txn) => self.enter(txn),
            }
        }
    }

    /// The outcome as the program knows it.
    pub(super) fn outcome(&self, mut outcome: TxnOutcome) -> TxnOutcome {
        if !self.is_root() {
            self.leave(&mut outcome);
        }
        outcome
    }

    fn leave(&self, outcome: &mut TxnOutcome) {
        for result in &mut outcome.results {
            match result {
                OpResult::Put { prev } | OpResult::Get(prev) => {
                    prev.iter_mut().for_each(|kv| self.strip(kv));
                }
                OpResult::Deleted { prev, .. } => prev.iter_mut().for_each(|kv| self.strip(kv)),
                OpResult::Range(page) => page.entries.iter_mut().for_each(|kv| self.strip(kv)),
                OpResult::Txn(outcome) => self.leave(outcome),
            }
        }
    }

    /// The changes as the program knows them.
    pub(super) fn changes(&self, mut changes: Changes) -> Changes {
        if !self.is_root() {
            for event in &mut changes.events {
                match event {
                    Event::Put { kv, prev } => {
                        self.strip(kv);
                        prev.iter_mut().for_each(|kv| self.strip(kv));
                    }
                    Event::Delete { key, prev, .. } => {
                        *key = self.short(key);
                        prev.iter_mut().for_each(|kv| self.strip(kv));
                    }
                }
            }
        }
        changes
    }

    /// A lease may hold keys elsewhere: those are not named.
    pub(super) fn lease(&self, mut status: LeaseStatus) -> LeaseStatus {
        if !self.is_root() {
            status.keys.retain(|key| key.starts_with(&self.0));
            status.keys.iter_mut().for_each(|key| *key = self.short(key));
        }
        status
    }

    fn strip(&self, kv: &mut KeyValue) {
        kv.key = self.short(&kv.key);
    }

    fn short(&self, key: &Bytes) -> Bytes {
        if key.starts_with(&self.0) { key.slice(self.0.len()..) } else { key.clone() }
    }

    fn join(&self, key: &[u8]) -> Bytes {
        Bytes::from([&self.0, key].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::fake::Fake;
    use futures::TryStreamExt;
    use std::time::Duration;

    fn shop() -> Namespace {
        Namespace::default().within(b"shop/")
    }

    #[test]
    fn ranges_stay_within() {
        let stays = |range: KeyRange| {
            let range = shop().range(range);
            range.start.starts_with(b"shop/")
                && !range.contains(b"shop0")
                && !range.contains(b"shop")
        };
        assert!(stays(KeyRange::all()));
        assert!(stays(KeyRange::key("k")));
        assert!(stays(KeyRange::prefix([0xff])));
        assert!(stays(KeyRange::from("a".."\u{fff}")));
        assert!(stays(KeyRange::from("a"..)));
        assert_eq!(shop().range(KeyRange::key("k")), KeyRange::key("shop/k"));
        assert_eq!(shop().range(KeyRange::prefix("k")), KeyRange::prefix("shop/k"));
        assert_eq!(shop().range(KeyRange::all()), KeyRange::prefix("shop/"));
        let last = Namespace::default().within(&[0xff, 0xff]);
        assert_eq!(last.range(KeyRange::all()).end, None, "nothing comes after it");
        let both = shop().within(b"eu/");
        assert_eq!(both.key("k".into()), "shop/eu/k");
        assert_eq!(Namespace::default().key("k".into()), "k");
    }

    #[test]
    fn a_transaction_enters_whole_and_its_rules_are_those_of_the_inside() {
        let inner = TxnOp {
            when: vec![Compare::exists("c")],
            then: vec![Op::range(KeyRange::all()), Op::delete("d")],
            otherwise: vec![Op::get("g")],
        };
        let txn = TxnOp {
            when: vec![Compare::absent("a")],
            then: vec![Op::put("p", "v"), Op(OpKind::Txn(inner))],
            otherwise: Vec::new(),
        };
        let entered = shop().txn(txn).unwrap();
        let expected = TxnOp {
            when: vec![Compare::absent("shop/a")],
            then: vec![
                Op::put("shop/p", "v"),
                Op::txn(
                    [Compare::exists("shop/c")],
                    [Op::range(KeyRange::prefix("shop/")), Op::delete("shop/d")],
                    [Op::get("shop/g")],
                ),
            ],
            otherwise: Vec::new(),
        };
        assert_eq!(entered, expected);
        for (key, reason) in [("", Reason::EmptyKey), ("\0k", Reason::ReservedKey)] {
            let txn = TxnOp { then: vec![Op::put(key, "")], ..TxnOp::default() };
            assert_eq!(shop().txn(txn), Err(reason));
        }
    }

    /// Whatever a program does, and with a key that begins as the namespace does.
    #[tokio::test(start_paused = true)]
    async fn all_that_a_client_does_stays_within() {
        let fake = Fake::new();
        fake.put("other", "x");
        fake.put("shop/shop/old", "1");
        let client = fake.client().namespace("sh").namespace("op/");
        let mut watch = client.watch(KeyRange::all()).with_existing().prev().await.unwrap();
        let key = |changes: &Changes| changes.events[0].key().clone();
        assert_eq!(key(&watch.recv().await.unwrap()), "shop/old");
        let session = client.session(Duration::from_secs(10)).await.unwrap();
        client.put("k", "1").lease(session.lease_id()).await.unwrap();
        assert_eq!(key(&watch.recv().await.unwrap()), "k");
        assert_eq!(client.get("k").await.unwrap().unwrap().key, "k");
        let (_, prev) = client.put("k", "2").ignore_lease().prev().await.unwrap();
        assert_eq!(prev.unwrap().key, "k");
        let changes = watch.recv().await.unwrap();
        let Event::Put { prev: Some(prev), .. } = &changes.events[0] else { panic!("{changes:?}") };
        assert_eq!((&prev.key[..], &prev.value[..]), (&b"k"[..], &b"1"[..]));
        let lease = client.lease_time_to_live(session.lease_id()).await.unwrap().unwrap();
        assert_eq!(lease.keys, ["k"]);
        let elsewhere = fake.client().namespace("elsewhere/");
        let lease = elsewhere.lease_time_to_live(session.lease_id()).await.unwrap().unwrap();
        assert!(lease.keys.is_empty());
        assert_eq!(elsewhere.range(..).await.unwrap().count, 0);

        let guard = session.lock("nightly").await.unwrap();
        watch.recv().await.unwrap();
        assert!(fake.keys().iter().any(|key| key.starts_with("shop/quorate/lock/nightly/")));
        let fenced = client.txn().when(guard.held()).then(Op::put("fenced", "v")).await.unwrap();
        assert!(fenced.succeeded);
        watch.recv().await.unwrap();
        drop(guard);
        assert!(key(&watch.recv().await.unwrap()).starts_with(b"quorate/lock/"), "it is deleted");

        let stream: Vec<_> = client.range(..).stream().try_collect().await.unwrap();
        assert_eq!(stream.len(), 3);
        assert!(client.update_if("k", stream[1].mod_revision, "3").await.unwrap().is_some());
        let flags = client.map::<u8>("flags/");
        flags.update("a", |_| Some(7)).await.unwrap();
        assert_eq!(flags.entries().await.unwrap(), [("a".to_owned(), 7)]);
        assert_eq!(client.delete(KeyRange::all()).prev().await.unwrap().len(), 4);
        assert_eq!(fake.keys(), ["other"]);
        assert_eq!(*client.put("", "").await.unwrap_err().reason(), Reason::EmptyKey);
        assert_eq!(*client.get("").await.unwrap_err().reason(), Reason::EmptyKey);
    }
}
