//! Instances of a service, for what balances over them: a mirror as a [`tower::discover::Discover`].
//!
//! A balancer of tower fails for good when the stream of changes fails or ends. So this one does neither: when the group is
//! away, or the client was shut down, the last known set stays.

use super::mirror::Mirror;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use tower::discover::Change;

/// What has changed since the last time it was looked.
struct Changes<T> {
    mirror: Mirror<T>,
    known: Arc<BTreeMap<String, Arc<T>>>,
    changes: VecDeque<Change<String, Arc<T>>>,
    is_first: bool,
}

impl<T: Send + Sync + 'static> Mirror<T> {
    /// The entries as changes: all that are there as inserted, and then what comes, changes and goes. As such it is a
    /// `Discover`, and never fails or ends. An entry that changes is inserted again. Needs the feature `discover`.
    ///
    /// A slow consumer gets the newest state of each entry, and not all between. `examples/balance` of the repository has a
    /// gRPC channel that balances over it.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).solo().await?;
    /// # let client = node.client();
    /// use futures::StreamExt;
    /// use tower::discover::Change;
    ///
    /// let session = client.session(std::time::Duration::from_secs(10)).await?;
    /// let registration = session.register("billing", &"10.0.0.7:80".to_owned()).await?;
    /// let mut changes = client.discover::<String>("billing").await?.changes();
    ///
    /// let Some(Ok(Change::Insert(id, address))) = changes.next().await else { panic!() };
    /// assert_eq!((&*id, &**address), (registration.id(), "10.0.0.7:80"));
    /// # Ok(()) }
    /// ```
    #[must_use = "a stream does nothing until it is polled"]
    pub fn changes(self) -> BoxStream<'static, Result<Change<String, Arc<T>>, Infallible>> {
        let first = Changes {
            mirror: self,
            known: Arc::default(),
            changes: VecDeque::new(),
            is_first: true,
        };
        stream::unfold(first, async |mut changes| {
            let change = changes.next().await;
            Some((Ok(change), changes))
        })
        .boxed()
    }
}

impl<T> Changes<T> {
    async fn next(&mut self) -> Change<String, Arc<T>> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                return change;
            }
            let has_ended =
                !std::mem::take(&mut self.is_first) && self.mirror.changed().await.is_err();
            self.look();
            if has_ended && self.changes.is_empty() {
                // The set stays as it is.
                pending::<()>().await;
            }
        }
    }

    fn look(&mut self) {
        let now = self.mirror.snapshot();
        let gone = self.known.keys().filter(|key| !now.contains_key(*key));
        let new = now.iter().filter(|(key, value)| {
            !self.known.get(*key).is_some_and(|known| Arc::ptr_eq(known, value))
        });
        self.changes.extend(gone.cloned().map(Change::Remove));
        self.changes.extend(new.map(|(key, value)| Change::Insert(key.clone(), value.clone())));
        self.known = now;
    }
}

#[cfg(test)]
mod tests {
    use crate::client::fake::Fake;
    use crate::types::Op;
    use futures::StreamExt;
    use std::time::Duration;
    use tower::discover::{Change, Discover};

    /// `+key=value` or `-key`.
    async fn next(
        changes: &mut (
                 impl StreamExt<
            Item = Result<Change<String, std::sync::Arc<u64>>, std::convert::Infallible>,
        > + Unpin
             ),
    ) -> String {
        match changes.next().await {
            Some(Ok(Change::Insert(key, value))) => format!("+{key}={value}"),
            Some(Ok(Change::Remove(key))) => format!("-{key}"),
            None => panic!("it ends"),
        }
    }

    fn is_discover(_: &impl Discover<Key = String>) {}

    #[tokio::test(start_paused = true)]
    async fn changes_are_those_of_the_set_and_its_end_is_not_one() {
        let fake = Fake::new();
        fake.put("s/a", "1");
        let client = fake.client();
        let mut changes = client.mirror::<u64>("s/").await.unwrap().changes();
        is_discover(&changes);
        assert_eq!(next(&mut changes).await, "+a=1");
        fake.commit(vec![Op::put("s/a", "2"), Op::put("s/b", "3")]);
        assert_eq!(next(&mut changes).await, "+a=2");
        assert_eq!(next(&mut changes).await, "+b=3");
        fake.commit(vec![Op::delete("s/a"), Op::put("s/c", "4")]);
        assert_eq!(next(&mut changes).await, "-a");
        assert_eq!(next(&mut changes).await, "+c=4");
        fake.down();
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, changes.next()).await.is_err(), "it waits");
    }

    /// The mirror has ended for good, and the balancer goes on with what it knows.
    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_client_does_not_end_it() {
        let fake = Fake::new();
        let client = fake.client();
        fake.put("s/a", "1");
        let mut changes = client.mirror::<u64>("s/").await.unwrap().changes();
        assert_eq!(next(&mut changes).await, "+a=1");
        fake.outage(Some(crate::error::Reason::Closed));
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, changes.next()).await.is_err(), "it waits");
    }
}
