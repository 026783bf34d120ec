//! Lease renewals: all of them on one stream, the next sent before the one before it is answered.
//!
//! Go's client shares one stream per connection in the same way, but sends on a timer; here a caller sends when it likes
//! and hears of its own renewal. etcd serves a stream strictly in turn. That costs little on the leader, which only looks
//! into its memory; but a follower asks the leader each time, and reads the next request when it has been answered. A
//! workload that renews at followers needs several connections to see what etcd can do.

use super::rpc::{LeaseKeepAliveRequest, LeaseKeepAliveResponse};
use super::shared::{Open, Shared, Waiting};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::oneshot;
use tonic::Status;

/// Callers in the order of their requests.
#[derive(Debug, Default)]
pub(crate) struct Renewals(VecDeque<(i64, oneshot::Sender<Result<(), Status>>)>);

impl Shared<Renewals> {
    pub(crate) async fn renew(&self, lease: i64) -> Result<(), Status> {
        let (word, renewed) = oneshot::channel();
        let request = LeaseKeepAliveRequest { id: lease };
        self.ask(request, |Renewals(callers)| callers.push_back((lease, word)));
        renewed.await.unwrap_or_else(|_| Err(Status::unavailable("the connection is gone")))
    }
}

impl Waiting for Renewals {
    type Request = LeaseKeepAliveRequest;

    fn answer(open: &Arc<Open<Self>>, answer: LeaseKeepAliveResponse) {
        // The first one is the one, unless a later etcd takes to answering out of turn.
        let caller = open.with(|Self(callers)| {
            let place = callers.iter().position(|(lease, _)| *lease == answer.id)?;
            callers.remove(place)
        });
        if let Some(Some((_, word))) = caller {
            let is_alive = answer.ttl_seconds > 0;
            // A caller that has gone away needs no word.
            let _ = word.send(is_alive.then_some(()).ok_or_else(gone));
        }
    }

    fn end(self, status: &Status) {
        for (_, word) in self.0 {
            let _ = word.send(Err(status.clone()));
        }
    }
}

fn gone() -> Status {
    Status::not_found("there is no such lease, or no longer")
}
