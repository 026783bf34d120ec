//! Mirrors: always one revision, never empty because of an outage, and not stopped by what makes no sense.

use super::Mirror;
use crate::client::fake::{Fake, Fault, Kind};
use crate::error::{ErrorKind, Reason};
use crate::types::Op;
use std::time::Duration;
use tokio::time::{sleep, timeout};

fn shown(mirror: &Mirror<u64>) -> Vec<(String, u64)> {
    mirror.snapshot().iter().map(|(key, value)| (key.clone(), **value)).collect()
}

fn entries(entries: &[(&str, u64)]) -> Vec<(String, u64)> {
    entries.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_mirror_follows_every_change() {
    let fake = Fake::new();
    fake.put("n/a", "1");
    fake.put("other", "x");
    let mut mirror = fake.client().mirror::<u64>("n/").await.unwrap();
    assert_eq!(shown(&mirror), entries(&[("a", 1)]));
    let held = mirror.snapshot();
    fake.commit(vec![Op::put("n/a", "2"), Op::put("n/b", "3")]);
    mirror.changed().await.unwrap();
    assert_eq!(shown(&mirror), entries(&[("a", 2), ("b", 3)]));
    assert_eq!(mirror.get("b").as_deref(), Some(&3));
    assert_eq!(*held["a"], 1, "a snapshot stays as it is");
    let last = fake.delete("n/a");
    mirror.changed().await.unwrap();
    assert_eq!((shown(&mirror), mirror.revision()), (entries(&[("b", 3)]), last));
}

#[tokio::test(start_paused = true)]
async fn what_makes_no_sense_is_reported_and_keeps_its_last_good_value() {
    let fake = Fake::new();
    fake.put("n/a", "1");
    fake.put("n/bad", "one");
    let mut mirror = fake.client().mirror::<u64>("n/").await.unwrap();
    assert_eq!(shown(&mirror), entries(&[("a", 1)]));
    assert_eq!(mirror.last_error().unwrap().kind(), ErrorKind::Codec);
    fake.put("n/a", "two");
    fake.put("n/b", "2");
    mirror.changed().await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(shown(&mirror), entries(&[("a", 1), ("b", 2)]));
    assert!(mirror.last_error().unwrap().to_string().contains("n/a"));
}

#[tokio::test(start_paused = true)]
async fn an_outage_empties_nothing_and_a_compaction_is_made_up_for() {
    let fake = Fake::new();
    for (key, value) in [("n/a", "1"), ("n/b", "2"), ("n/c", "3")] {
        fake.put(key, value);
    }
    let mut mirror = fake.client().mirror::<u64>("n/").await.unwrap();
    fake.down();
    assert!(timeout(Duration::from_secs(600), mirror.changed()).await.is_err());
    assert_eq!(shown(&mirror).len(), 3);
    fake.delete("n/a");
    fake.put("n/b", "twenty");
    fake.put("n/d", "4");
    let now = fake.put("n/e", "5");
    fake.compact(now);
    fake.next(Kind::Query, Fault::Refuse(Reason::NoLeader));
    fake.next(Kind::Query, Fault::Hang);
    fake.outage(None);
    mirror.changed().await.unwrap();
    let expected = [("b", 2), ("c", 3), ("d", 4), ("e", 5)];
    assert_eq!((shown(&mirror), mirror.revision()), (entries(&expected), now));
    fake.put("n/b", "6");
    mirror.changed().await.unwrap();
    assert_eq!(mirror.get("b").as_deref(), Some(&6));
}

#[tokio::test(start_paused = true)]
async fn a_mirror_ends_with_its_node_and_its_task_with_the_last_clone() {
    let fake = Fake::new();
    fake.put("n/a", "1");
    let mirror = fake.client().mirror::<u64>("n/").await.unwrap();
    let mut clone = mirror.clone();
    drop(mirror);
    fake.put("n/a", "2");
    clone.changed().await.unwrap();
    fake.outage(Some(Reason::Closed));
    for _ in 0..2 {
        assert_eq!(clone.changed().await.unwrap_err().kind(), ErrorKind::Closed);
    }
    assert_eq!(shown(&clone), entries(&[("a", 2)]), "what it knew stays");
    drop(clone);
    fake.settle().await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
}
