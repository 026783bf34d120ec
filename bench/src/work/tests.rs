//! What can be promised of the work without a group: that it ends.

use super::*;
use crate::group::load;
use crate::store::Change;

/// A store that is nowhere, and fails at once.
#[derive(Clone)]
struct Nowhere;

fn nowhere<T>() -> Result<T> {
    Err("nothing is here".into())
}

impl Store for Nowhere {
    type Watch = Self;
    type Session = Self;

    async fn put(&self, _: &Bytes, _: &Bytes) -> Result {
        // Or a loop of failures would keep the only thread to itself.
        tokio::task::yield_now().await;
        nowhere()
    }

    async fn put_all(&self, _: Vec<(Bytes, Bytes)>) -> Result {
        nowhere()
    }

    async fn txn(&self, _: &Bytes, _: [&Bytes; 2], _: &Bytes) -> Result {
        nowhere()
    }

    async fn get(&self, _: &Bytes, _: Fresh) -> Result<usize> {
        nowhere()
    }

    async fn range(&self, _: &Bytes) -> Result<u64> {
        nowhere()
    }

    async fn count(&self, _: &Bytes) -> Result<u64> {
        nowhere()
    }

    async fn watch(&self, _: &Bytes) -> Result<Self> {
        nowhere()
    }

    async fn grant(&self, _: Duration) -> Result<u64> {
        nowhere()
    }

    async fn put_leased(&self, _: &Bytes, _: &Bytes, _: u64) -> Result {
        nowhere()
    }

    async fn keep_alive(&self, _: u64) -> Result {
        nowhere()
    }

    async fn revoke(&self, _: u64) -> Result {
        nowhere()
    }

    async fn session(&self, _: Duration) -> Result<Self> {
        nowhere()
    }
}

impl Watch for Nowhere {
    async fn next(&mut self) -> Result<Vec<Change>> {
        nowhere()
    }
}

impl Session for Nowhere {
    type Held = Self;

    async fn lock(&self, _: &str) -> Result<Self> {
        nowhere()
    }

    async fn campaign(&self, _: &str, _: &str) -> Result<Self> {
        nowhere()
    }

    async fn close(self) -> Result {
        nowhere()
    }
}

impl Held for Nowhere {
    async fn release(self) -> Result {
        nowhere()
    }
}

async fn carry_out(job: Job) -> Result<Sample> {
    let mut worker = Worker::new(vec![vec![Nowhere], vec![Nowhere, Nowhere]]);
    timeout(Duration::from_secs(10), worker.carry_out(job)).await.expect("it ends")
}

#[tokio::test]
async fn nothing_with_zero_callers_hangs() {
    let (run_ms, place) = (10, Place::Spread);
    for job in [
        Job::Load(Load { warm_ms: 0, run_ms, ..load(Act::Put, 0) }),
        Job::Fill { from: 3, to: 3, value_bytes: 1 },
        Job::Distinct { from: 0, to: 9, callers: 0, value_bytes: 1 },
        Job::OpenWatches { count: 0, apart: true },
        Job::FanOut { putters: 0, run_ms },
        Job::CloseWatches,
        Job::OpenLeases { count: 0, ttl_ms: 1, place },
        Job::Lock { first: 0, callers: 0, names: 0, run_ms },
    ] {
        let sample = carry_out(job.clone()).await.unwrap_or_else(|why| panic!("{job:?}: {why}"));
        assert_eq!((sample.operations, sample.errors), (0, 0), "{job:?}");
    }
    // Without leases there is nothing to renew, whoever calls.
    assert!(carry_out(Job::KeepAlive { callers: 0, run_ms, place }).await.is_err());
    assert!(carry_out(Job::KeepAlive { callers: 9, run_ms, place }).await.is_err());
}

#[tokio::test]
async fn failures_are_counted_and_said() {
    let job = Job::Load(Load { warm_ms: 0, run_ms: 20, ..load(Act::Put, 2) });
    let sample = carry_out(job).await.unwrap();
    assert_eq!((sample.operations, sample.times.len()), (0, 0));
    assert!(sample.errors > 0);
    assert_eq!(sample.first_error.as_deref(), Some("nothing is here"));
    assert!(carry_out(Job::Fill { from: 0, to: 1, value_bytes: 1 }).await.is_err());
    assert!(carry_out(Job::FirstWrite { limit_ms: 50 }).await.is_err());
}

#[test]
fn keys_are_eight_digits_below_their_prefix() {
    let keys = [0, 42, 99_999_999].map(key);
    assert_eq!(keys, ["k/00000000", "k/00000042", "k/99999999"]);
}
