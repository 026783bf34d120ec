//! Requests that break a rule are refused before anything happens.

use super::{Kept, Solo, refused, refused_for_now};
use quorate::{
    Client, Compare, ErrorKind, KeyRange, LeaseId, Op, Reason, Result, Revision, limits,
};
use std::fmt::Debug;
use std::time::Duration;

/// The shortest time to live with the heartbeat of these tests: one and a half of the longest election timeout.
const TTL_FLOOR: Duration = Duration::from_millis(750);

/// Sends the key in every request that takes one, and expects the same refusal from all.
async fn key_is_refused(client: &Client, key: &[u8], reason: Reason, text: &str) {
    #[track_caller]
    fn check<T: Debug>(result: Result<T>, reason: &Reason, text: &str) {
        assert_eq!(refused(result, ErrorKind::InvalidInput, text).reason(), reason);
    }
    let one = Revision::from(1);
    let range = || KeyRange::key(key);
    let bystander = format!("bystander/{}", key.len());
    check(client.get(key).await, &reason, text);
    check(client.put(key, "v").await, &reason, text);
    check(client.put(key, "v").prev().await, &reason, text);
    check(client.put_if_absent(key, "v").await, &reason, text);
    check(client.update_if(key, one, "v").await, &reason, text);
    check(client.delete(range()).await, &reason, text);
    check(client.delete_if(key, one).await, &reason, text);
    check(client.range(range()).await, &reason, text);
    check(client.watch(range()).await, &reason, text);
    check(client.watch(range()).from(one).await, &reason, text);
    check(client.watch(range()).with_existing().await, &reason, text);
    // In a transaction: among good operations, in a condition, in the branch that is not taken, and deeper.
    let good = || client.txn().then(Op::put(bystander.clone(), "v"));
    check(good().then(Op::put(key, "v")).await, &reason, text);
    check(good().then(Op::get(key)).await, &reason, text);
    check(good().then(Op::delete(range())).await, &reason, text);
    check(good().when(Compare::exists(key)).await, &reason, text);
    check(good().otherwise(Op::put(key, "v")).await, &reason, text);
    check(good().then(Op::txn([], [Op::put(key, "v")], [])).await, &reason, text);
    let bystander = client.get(bystander).await.unwrap();
    assert_eq!(bystander, None, "a transaction that was refused has done half of it");
}

#[tokio::test]
async fn an_empty_key_is_refused_by_every_request() {
    let solo = Solo::shared().await;
    let kept = Kept::write(&solo.client(), "empty-key").await;
    let text = "a key has at least one byte";
    key_is_refused(&solo.client(), b"", Reason::EmptyKey, text).await;
    kept.check(&solo.client()).await;
}

#[tokio::test]
async fn an_oversized_key_is_refused_by_every_request_and_the_longest_is_kept() {
    let solo = Solo::shared().await;
    let client = solo.client();
    let kept = Kept::write(&client, "long-key").await;
    let limit = limits::KEY_BYTES_MAX as u64;
    let reason = Reason::KeyTooLong { actual: limit + 1, limit };
    let text = "the key has 1025 bytes, more than the 1024 allowed";
    key_is_refused(&client, &[b'k'; limits::KEY_BYTES_MAX + 1], reason, text).await;
    let reason = Reason::KeyTooLong { actual: 1 << 20, limit };
    let text = "the key has 1048576 bytes, more than the 1024 allowed";
    key_is_refused(&client, &[b'k'; 1 << 20], reason, text).await;

    // History stores each zero byte as two, which bounds keys with many of them.
    let mut zeros = [0; limits::KEY_BYTES_MAX];
    zeros[0] = b'k';
    let reason = Reason::KeyTooLong { actual: 2047, limit: limits::ESCAPED_KEY_BYTES_MAX as u64 };
    key_is_refused(&client, &zeros, reason, "more than the 1900 allowed").await;

    let longest = [b'k'; limits::KEY_BYTES_MAX];
    client.put(longest, "v").await.unwrap();
    assert_eq!(client.get(longest).await.unwrap().unwrap().key, longest[..]);
    kept.check(&client).await;
}

#[tokio::test]
async fn a_reserved_key_is_refused_by_every_request() {
    let solo = Solo::shared().await;
    let kept = Kept::write(&solo.client(), "reserved-key").await;
    let text = "keys that begin with a zero byte are reserved for the group itself";
    for key in [&b"\0"[..], b"\0settings", &[0; 4096]] {
        key_is_refused(&solo.client(), key, Reason::ReservedKey, text).await;
    }
    kept.check(&solo.client()).await;
}

#[tokio::test]
async fn a_range_that_can_hold_no_key_is_refused() {
    let solo = Solo::shared().await;
    let client = solo.client();
    let kept = Kept::write(&client, "empty-range").await;
    let text = "the range is empty: its end is not above its start";
    for range in [KeyRange::from("b".."a"), KeyRange::from("a".."a")] {
        let error = refused(client.range(range.clone()).await, ErrorKind::InvalidInput, text);
        assert_eq!(*error.reason(), Reason::EmptyRange);
        refused(client.delete(range.clone()).await, ErrorKind::InvalidInput, text);
        refused(client.watch(range).await, ErrorKind::InvalidInput, text);
    }
    let long = KeyRange::from(vec![b'a'; 1026]..vec![b'b'; 1026]);
    let text = "the key has 1026 bytes";
    refused(client.range(long.clone()).await, ErrorKind::InvalidInput, text);
    refused(client.watch(long).await, ErrorKind::InvalidInput, text);
    kept.check(&client).await;
}

#[tokio::test]
async fn an_oversized_value_is_refused_and_the_largest_is_kept() {
    let solo = Solo::shared().await;
    let client = solo.client();
    let kept = Kept::write(&client, "large-value").await;
    let limit = limits::VALUE_BYTES_MAX as u64;
    let large = vec![7; limits::VALUE_BYTES_MAX + 1];
    let reason = Reason::ValueTooLarge { actual: limit + 1, limit };
    let text = "the value has 1048577 bytes, more than the 1048576 allowed";
    let kind = ErrorKind::InvalidInput;
    let error = refused(client.put("large", large.clone()).await, kind, text);
    assert_eq!(*error.reason(), reason);
    let error = refused(client.put_if_absent("large", large.clone()).await, kind, text);
    assert_eq!(*error.reason(), reason);
    let op = Op::put("large", large);
    let error = refused(client.txn().then(op).await, kind, text);
    assert_eq!(*error.reason(), reason);
    let error = refused(client.put("large", vec![7; 64 << 20]).await, kind, "67108864 bytes");
    assert!(matches!(error.reason(), Reason::ValueTooLarge { actual: 67_108_864, .. }));
    assert_eq!(client.get("large").await.unwrap(), None);

    let largest = vec![7; limits::VALUE_BYTES_MAX];
    client.put("large", largest.clone()).await.unwrap();
    assert!(client.get("large").await.unwrap().unwrap().value == largest);
    kept.check(&client).await;
}

#[tokio::test]
async fn an_oversized_transaction_is_refused_whole() {
    let solo = Solo::shared().await;
    let client = solo.client();
    let kept = Kept::write(&client, "large-txn").await;
    let kind = ErrorKind::InvalidInput;
    let put = |number: usize| Op::put(format!("many/{number}"), "v");

    let many = (0..129).fold(client.txn(), |txn, number| txn.then(put(number)));
    let error = refused(many.await, kind, "the transaction has 129 operations, more than the 128");
    assert_eq!(*error.reason(), Reason::TooManyOperations { actual: 129, limit: 128 });
    let exists = |number: usize| Compare::exists(format!("many/{number}"));
    let many = (0..129).fold(client.txn().then(put(0)), |txn, number| txn.when(exists(number)));
    refused(many.await, kind, "129 operations");

    let half = vec![7; limits::VALUE_BYTES_MAX];
    let large = client.txn().then(Op::put("many/a", half.clone())).then(Op::put("many/b", half));
    let error = refused(large.await, kind, "more than the 1572864 allowed");
    assert_eq!(*error.reason(), Reason::RequestTooLarge { actual: 2_097_164, limit: 1_572_864 });

    let deep = (0..9).fold(put(0), |op, _| Op::txn([], [op], []));
    let error = refused(client.txn().then(deep).await, kind, "the transaction has 9 operations");
    assert!(matches!(error.reason(), Reason::TooManyOperations { .. }));

    let twice = client.txn().then(put(1)).then(put(1));
    let error = refused(twice.await, kind, "would change the same key");
    assert_eq!(*error.reason(), Reason::DuplicateKey);

    let none = client.range(KeyRange::prefix("many/")).await.unwrap();
    assert_eq!(none.count, 0, "a transaction that was refused has done part of it");
    let many = (0..128).fold(client.txn(), |txn, number| txn.then(put(number)));
    assert_eq!(many.await.unwrap().results.len(), 128);
    kept.check(&client).await;
}

#[tokio::test]
async fn a_put_that_contradicts_itself_is_refused() {
    let solo = Solo::shared().await;
    let client = solo.client();
    let kept = Kept::write(&client, "contradiction").await;
    let lease = client.lease_grant(Duration::from_secs(60)).await.unwrap().id;
    let kind = ErrorKind::InvalidInput;
    let error = refused(
        client.put(&kept.key, "v").ignore_value().await,
        kind,
        "a put that keeps the old value was given a value",
    );
    assert_eq!(*error.reason(), Reason::ValueProvided);
    let error = refused(
        client.put(&kept.key, "v").lease(lease).ignore_lease().await,
        kind,
        "a put that keeps the old lease was given a lease",
    );
    assert_eq!(*error.reason(), Reason::LeaseProvided);
    let missing = client.put("no such key", "").ignore_value().await;
    let error = refused(missing, ErrorKind::NotFound, "is to be kept, does not exist");
    assert_eq!(*error.reason(), Reason::KeyNotFound);
    client.lease_revoke(lease).await.unwrap();
    kept.check(&client).await;
}

/// Every request that names a lease which is not there is refused, and says so.
async fn lease_is_refused(client: &Client, lease: LeaseId) {
    let text = format!("lease {lease} is unknown or has expired");
    let reason = Reason::LeaseNotFound { lease };
    let kind = ErrorKind::NotFound;
    let error = refused(client.put("leased", "v").lease(lease).await, kind, &text);
    assert_eq!(*error.reason(), reason);
    let error = refused(client.put_if_absent("leased", "v").lease(lease).await, kind, &text);
    assert_eq!(*error.reason(), reason);
    let error = refused(client.lease_keep_alive(lease).await, kind, &text);
    assert_eq!(*error.reason(), reason);
    let error = refused(client.lease_revoke(lease).await, kind, &text);
    assert_eq!(*error.reason(), reason);
    assert_eq!(client.lease_time_to_live(lease).await.unwrap(), None);
    assert_eq!(client.get("leased").await.unwrap(), None);
}

#[tokio::test]
async fn an_unknown_lease_is_refused() {
    let solo = Solo::shared().await;
    let client = solo.client();
    let kept = Kept::write(&client, "unknown-lease").await;
    for lease in [1 << 62, u64::MAX] {
        lease_is_refused(&client, LeaseId::from(lease)).await;
    }
    kept.check(&client).await;
}

#[tokio::test]
async fn a_lease_that_exists_is_not_granted_again() {
    let solo = Solo::shared().await;
    let client = solo.client();
    let ttl = Duration::from_secs(60);
    let lease = client.lease_grant(ttl).await.unwrap().id;
    let again = client.lease_grant(ttl).id(lease).await;
    let text = format!("lease {lease} exists already");
    let error = refused(again, ErrorKind::Conflict, &text);
    assert_eq!(*error.reason(), Reason::LeaseExists { lease });
    assert!(client.lease_time_to_live(lease).await.unwrap().is_some(), "the first is as it was");
    client.lease_revoke(lease).await.unwrap();
}

/// Keys store "no lease" as number zero, so a lease of that number would never let go of them.
#[tokio::test]
async fn a_lease_is_never_number_zero() {
    let solo = Solo::shared().await;
    let client = solo.client();
    let zero = LeaseId::from(0);
    let granted = client.lease_grant(Duration::from_secs(60)).id(zero).await;
    assert!(granted.as_ref().map_or(true, |granted| granted.id != zero), "{granted:?}");
    lease_is_refused(&client, zero).await;
}

#[tokio::test]
async fn an_expired_lease_is_refused_and_only_its_keys_are_gone() {
    let solo = Solo::shared().await;
    let client = solo.client();
    let kept = Kept::write(&client, "expired-lease").await;
    let lease = client.lease_grant(TTL_FLOOR).await.unwrap().id;
    let mut gone = client.watch("expiring").deletes_only().await.unwrap();
    client.put("expiring", "v").lease(lease).await.unwrap();
    gone.recv().await.unwrap();
    lease_is_refused(&client, lease).await;
    kept.check(&client).await;
}

#[tokio::test]
async fn a_time_to_live_of_zero_or_of_absurd_length_is_refused() {
    let solo = Solo::shared().await;
    let client = solo.client();
    let kept = Kept::write(&client, "ttl").await;
    let kind = ErrorKind::InvalidInput;
    for ttl in [Duration::ZERO, Duration::from_nanos(1), TTL_FLOOR - Duration::from_millis(1)] {
        let text = "the time to live is too short: a change of leader needs 750ms";
        let error = refused(client.lease_grant(ttl).await, kind, text);
        assert_eq!(*error.reason(), Reason::TtlTooSmall { floor: TTL_FLOOR });
        let error = refused(client.session(ttl).await, kind, text);
        assert_eq!(*error.reason(), Reason::TtlTooSmall { floor: TTL_FLOOR });
    }
    for ttl in [limits::TTL_MAX + Duration::from_secs(1), Duration::MAX] {
        let text = "the time to live is longer than 100 years";
        let error = refused(client.lease_grant(ttl).await, kind, text);
        assert_eq!(*error.reason(), Reason::TtlTooLarge);
        let error = refused(client.session(ttl).await, kind, text);
        assert_eq!(*error.reason(), Reason::TtlTooLarge);
    }
    let longest = client.lease_grant(limits::TTL_MAX).await.unwrap();
    assert_eq!(longest.ttl, limits::TTL_MAX);
    client.lease_revoke(longest.id).await.unwrap();
    kept.check(&client).await;
}

#[tokio::test]
async fn a_compacted_revision_is_refused_with_where_history_begins() {
    let solo = Solo::shared().await;
    let client = solo.client();
    let kept = Kept::write(&client, "compacted").await;
    let first = client.put("history", "1").await.unwrap();
    let at = client.put("history", "2").await.unwrap();
    client.compact(at).await.unwrap();

    let text = format!("the revision was compacted away: history begins at {at}");
    let kind = ErrorKind::Compacted;
    let reason = Reason::Compacted { at };
    let error = refused(client.range("history").at(first).await, kind, &text);
    assert_eq!(*error.reason(), reason);
    let mut watch = client.watch("history").from(first).await.unwrap();
    let error = refused(watch.recv().await, kind, &text);
    assert_eq!(*error.reason(), reason);
    let error = refused(watch.recv().await, kind, &text);
    assert_eq!(*error.reason(), reason, "and it stays so");
    for again in [Revision::from(0), first, at] {
        assert_eq!(*refused(client.compact(again).await, kind, &text).reason(), reason);
    }

    // What the error advises works.
    let page = client.range("history").at(at).await.unwrap();
    assert_eq!(page.entries[0].value, "2");
    let mut watch = client.watch("history").from(at).await.unwrap();
    assert_eq!(watch.recv().await.unwrap().revision, at);
    kept.check(&client).await;
}

#[tokio::test]
async fn a_future_revision_is_refused_with_the_newest_there_is() {
    let solo = Solo::shared().await;
    let client = solo.client();
    let kept = Kept::write(&client, "future").await;
    let kind = ErrorKind::Compacted;
    let text = "the revision has not happened yet: the group is at ";
    for future in [Revision::from(1 << 40), Revision::from(u64::MAX)] {
        for error in [
            refused(client.range("history").at(future).await, kind, text),
            refused(client.compact(future).await, kind, text),
        ] {
            let Reason::FutureRevision { current } = error.reason() else { panic!("{error:?}") };
            assert!((kept.revision..future).contains(current));
        }
        // To wait for a revision is no mistake, but nobody waits for ever.
        let wait = Duration::from_millis(20);
        let read = client.get(&kept.key).min_revision(future).timeout(wait).await;
        let error = refused_for_now(read, ErrorKind::Timeout, "no answer within");
        assert!(matches!(error.reason(), Reason::DeadlinePassed { .. }));
        // A watch may begin in the future too.
        drop(client.watch("history").from(future).await.unwrap());
    }
    kept.check(&client).await;
}

#[tokio::test]
async fn a_timeout_of_zero_or_of_absurd_length_is_just_a_timeout() {
    let solo = Solo::shared().await;
    let client = solo.client();
    let kept = Kept::write(&client, "timeout").await;
    let read = client.get(&kept.key).timeout(Duration::MAX).await.unwrap();
    assert_eq!(read.unwrap().mod_revision, kept.revision);
    client.put("in time", "v").timeout(Duration::MAX).await.unwrap();
    // A write whose deadline has passed says that nobody knows.
    if let Err(error) = client.put("in no time", "v").timeout(Duration::ZERO).await {
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(error.is_retryable() && error.may_have_applied());
        assert!(error.to_string().ends_with("; the write may have been applied"), "{error}");
    }
    kept.check(&client).await;
}
