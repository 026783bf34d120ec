//! Configuration: there is always a value, and a bad one never takes effect.

use crate::client::fake::Fake;
use crate::error::{ErrorKind, Reason};
use crate::types::Revision;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::timeout;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Limits {
    rate: u32,
    #[serde(default)]
    burst: u32,
}

const DEFAULT: Limits = Limits { rate: 100, burst: 20 };

#[tokio::test(start_paused = true)]
async fn the_default_is_written_once_and_changes_reach_everybody() {
    let fake = Fake::new();
    let one = fake.client().config("limits", DEFAULT).await.unwrap();
    assert_eq!(*one.get(), DEFAULT);
    let other = Limits { rate: 1, burst: 1 };
    let mut other = fake.client().config("limits", other).await.unwrap();
    assert_eq!((&*other.get(), other.revision()), (&DEFAULT, Revision::from(2)));
    let written = one.set(&Limits { rate: 5, burst: 0 }).await.unwrap();
    assert_eq!(other.changed().await.unwrap().rate, 5);
    assert_eq!(other.revision(), written);
    // By hand, and from a version that knew no burst.
    fake.put("limits", r#"{ "rate": 7 }"#);
    assert_eq!(*other.changed().await.unwrap(), Limits { rate: 7, burst: 0 });
}

#[tokio::test(start_paused = true)]
async fn a_bad_value_keeps_the_last_good_one_and_is_reported() {
    let fake = Fake::new();
    let mut config = fake.client().config("limits", DEFAULT).await.unwrap();
    let good = config.revision();
    fake.put("limits", r#"{ "rate": "fast" }"#);
    assert!(timeout(Duration::from_secs(60), config.changed()).await.is_err());
    assert_eq!((&*config.get(), config.revision()), (&DEFAULT, good));
    let error = config.last_error().unwrap();
    assert_eq!(error.kind(), ErrorKind::Codec);
    assert!(error.to_string().contains("limits"), "{error}");
    fake.put("limits", r#"{ "rate": 8 }"#);
    assert_eq!(config.changed().await.unwrap().rate, 8);
    assert!(config.last_error().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_bad_value_at_the_start_is_left_alone() {
    let fake = Fake::new();
    fake.put("limits", "nonsense");
    let config = fake.client().config("limits", DEFAULT).await.unwrap();
    assert_eq!((&*config.get(), config.revision().get()), (&DEFAULT, 0));
    assert!(config.last_error().is_some());
    assert_eq!(fake.world().revision, 2, "nothing was written");
}

#[tokio::test(start_paused = true)]
async fn without_the_key_the_default_counts() {
    let fake = Fake::new();
    let mut config = fake.client().config("limits", DEFAULT).await.unwrap();
    fake.put("limits", r#"{ "rate": 8 }"#);
    assert_eq!(config.changed().await.unwrap().rate, 8);
    fake.delete("limits");
    assert_eq!(*config.changed().await.unwrap(), DEFAULT);
    assert!(config.set_if(&Limits { rate: 9, burst: 0 }, config.revision()).await.unwrap());
    assert_eq!(config.changed().await.unwrap().rate, 9);
}

#[tokio::test(start_paused = true)]
async fn a_conditional_write_loses_to_a_faster_one() {
    let fake = Fake::new();
    let config = fake.client().config("limits", DEFAULT).await.unwrap();
    let seen = config.revision();
    fake.put("limits", r#"{ "rate": 8 }"#);
    assert!(!config.set_if(&DEFAULT, seen).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_outage_or_the_end_of_the_node_keeps_the_value() {
    let fake = Fake::new();
    let mut config = fake.client().config("limits", DEFAULT).await.unwrap();
    fake.down();
    assert!(timeout(Duration::from_secs(600), config.changed()).await.is_err());
    fake.outage(Some(Reason::Closed));
    assert_eq!(config.changed().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(*config.get(), DEFAULT);
}
