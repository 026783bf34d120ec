//! The requests: reads, writes and transactions as values that are sent when awaited.
//!
//! ```text
//! client.put(key, value)   .lease(id) .timeout(d)    .await ─▶ Revision
//!        └ the request      └ its options             └ sends it, once
//! ```
//!
//! Invariants
//! - a request does nothing until it is awaited, and is sent once;
//! - a transaction whose branches only read never enters the log;
//! - the shape of an answer follows from the type of the request, so an option that changes it (`prev`) changes the
//!   type.

use super::link::malformed;
use crate::error::Result;
use crate::types::{OpResult, Revision, TxnOutcome};

mod reads;
mod txn;
mod writes;

pub use reads::{Get, RangeRead, StatusRead};
pub use txn::Txn;
pub use writes::{Compact, Delete, DeleteIf, DeletePrev, Put, PutIf, PutPrev};

/// What every request can do: wait for a limited time, and be awaited.
macro_rules! request {
    ($name:ident -> $output:ty) => {
        impl $name<'_> {
            /// Waits at most so long for the answer, instead of as long as is usual for the client. A minute is the
            /// most.
            pub fn timeout(mut self, wait: std::time::Duration) -> Self {
                self.timeout = Some(wait);
                self
            }
        }

        impl<'a> std::future::IntoFuture for $name<'a> {
            type Output = $crate::error::Result<$output>;
            type IntoFuture = futures::future::BoxFuture<'a, Self::Output>;

            fn into_future(self) -> Self::IntoFuture {
                Box::pin(self.send())
            }
        }
    };
}
pub(super) use request;

/// The revision, and the result of the only operation.
fn only(mut outcome: TxnOutcome) -> Result<(Revision, OpResult)> {
    match (outcome.results.pop(), outcome.results.is_empty()) {
        (Some(result), true) => Ok((outcome.revision, result)),
        _ => Err(malformed("number of results")),
    }
}

#[cfg(test)]
mod tests;
