//! Transactions: conditions, and what is done if they hold, or if they do not.

use super::request;
use crate::client::Client;
use crate::client::link::Freshness;
use crate::error::Result;
use crate::types::{Compare, Consistency, Op, TxnOp, TxnOutcome};
use std::time::Duration;

impl Client {
    /// Begins a transaction: if all conditions hold then some operations, else others, and all of it at once.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// use quorate::{Compare, Op};
    ///
    /// client.put("from", "7").await?;
    /// let outcome = client
    ///     .txn()
    ///     .when(Compare::value("from").equals("7"))
    ///     .then(Op::put("from", "6"))
    ///     .then(Op::put("to", "1"))
    ///     .otherwise(Op::get("from"))
    ///     .await?;
    /// assert!(outcome.succeeded);
    /// # Ok(()) }
    /// ```
    pub fn txn(&self) -> Txn<'_> {
        Txn { client: self, op: TxnOp::default(), fresh: Freshness::default(), timeout: None }
    }
}

/// A transaction. Made by [`Client::txn`].
///
/// Without conditions the first branch is carried out. A transaction whose branches only read is answered as a read,
/// without an entry in the log. All changes of one transaction are one revision, and arrive at watches together.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let node = quorate::Node::builder(folder.path()).solo().await?;
/// # let client = node.client();
/// use quorate::Op;
///
/// client.put("a", "1").await?;
/// let both = client.txn().then(Op::get("a")).then(Op::get("b")).await?; // at the same revision
/// assert_eq!(both.results.len(), 2);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a request does nothing until it is awaited"]
pub struct Txn<'a> {
    client: &'a Client,
    op: TxnOp,
    fresh: Freshness,
    timeout: Option<Duration>,
}
request!(Txn -> TxnOutcome);

impl Txn<'_> {
    /// Adds a condition. All of them must hold.
    pub fn when(mut self, condition: impl Into<Compare>) -> Self {
        self.op.when.push(condition.into());
        self
    }

    /// Adds an operation to carry out if the conditions hold.
    pub fn then(mut self, op: Op) -> Self {
        self.op.then.push(op);
        self
    }

    /// Adds an operation to carry out if they do not.
    pub fn otherwise(mut self, op: Op) -> Self {
        self.op.otherwise.push(op);
        self
    }

    /// Of a transaction that only reads: how fresh its answer must be. A write sees the newest state in any case.
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.fresh.consistency = consistency;
        self
    }

    async fn send(self) -> Result<TxnOutcome> {
        self.client.link().txn(self.op, self.fresh, self.timeout).await
    }
}
