//! A range, read page by page as it was at one revision.
//!
//! The first page says which revision it is; the others ask for that one. A page of a past revision is the same on
//! every member, so only the first one has to be linearizable.
//!
//! ```text
//! page 1: [start, end)              at now ─▶ entries a..f, more, revision 70
//! page 2: [after f, end)            at 70  ─▶ entries g..m, more
//! page 3: [after m, end)            at 70  ─▶ entries n..z
//! ```
//!
//! Pages go on after the last key, so they come in key order, or against it. Any other order is made here, from all
//! entries, once they are all there.

use super::link::{Freshness, Link, late, malformed};
use crate::error::{Error, ErrorKind, Result};
use crate::types::{
    Consistency, KeyValue, OpKind, OpResult, Page, RangeOp, Revision, Shows, SortBy, TxnOp,
};
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use std::time::Duration;
use tokio::time::Instant;

/// The most entries that are asked for at once.
const PAGE_ENTRIES_MAX: u32 = 1000;

/// How often all of a range is begun anew, if history has gone past what was read of it.
const BEGUN_ANEW_MAX: usize = 4;

/// What is left to read of a range.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    link: Link,
    op: RangeOp,
    fresh: Freshness,
    timeout: Option<Duration>,
    /// The revision of the group when the first page was read.
    revision: Option<Revision>,
    /// How many entries may still come.
    left: Option<u32>,
    done: bool,
    order: Order,
}

/// How the entries are to be arranged once they are all there, if pages in key order will not do.
#[derive(Clone, Copy, Debug)]
struct Order {
    by: SortBy,
    descending: bool,
    limit: u32,
    strip_values: bool,
}

impl Pages {
    pub(super) fn new(
        link: Link,
        mut op: RangeOp,
        fresh: Freshness,
        timeout: Option<Duration>,
    ) -> Self {
        let RangeOp { sort: by, descending, limit, keys_only, .. } = op;
        let strip_values = by == SortBy::Value && keys_only;
        let done = op.shows == Shows::Count;
        op.shows = Shows::Entries;
        let order = Order { by, descending, limit, strip_values };
        if by != SortBy::Key {
            op.sort = SortBy::Key;
            op.descending = false;
            op.limit = 0;
            op.keys_only &= !strip_values;
        }
        let left = (op.limit > 0).then_some(op.limit);
        Self { link, op, fresh, timeout, revision: None, left, done, order }
    }

    /// The entries, in the order that was asked for.
    pub(super) fn entries(self) -> BoxStream<'static, Result<KeyValue>> {
        if self.order.by == SortBy::Key {
            let pages = stream::try_unfold(self, async |mut pages: Self| {
                let page = pages.next().await?;
                Ok::<_, Error>(page.map(|page| (page, pages)))
            });
            return pages
                .map_ok(|page| stream::iter(page.into_iter().map(Ok)))
                .try_flatten()
                .boxed();
        }
        let all = async move { self.read_all().await.map(|(entries, _)| entries) };
        let all = stream::once(all).map_ok(|all| stream::iter(all.into_iter().map(Ok)));
        all.try_flatten().boxed()
    }

    /// All of them at once, and the revision of the group at which they were read. A timeout that was said is for all. If history
    /// goes past that revision meanwhile, it is read at another.
    pub(super) async fn read_all(self) -> Result<(Vec<KeyValue>, Revision)> {
        let total = self.timeout;
        // One that never comes is as good as none.
        let deadline = total.and_then(|total| Instant::now().checked_add(total));
        let mut anew = 0;
        loop {
            match self.clone().read_once(deadline).await {
                Err(error) if error.kind() == ErrorKind::Compacted && self.op.at.is_none() => {
                    anew += 1;
                    if anew > BEGUN_ANEW_MAX {
                        return Err(error);
                    }
                }
                Err(error) => return Err(total.map_or(error.clone(), |total| late(error, total))),
                read => return read,
            }
        }
    }

    async fn read_once(mut self, deadline: Option<Instant>) -> Result<(Vec<KeyValue>, Revision)> {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        let mut all = Vec::new();
        loop {
            self.timeout = deadline.map(left).or(self.timeout);
            let Some(page) = self.next().await? else { break };
            all.extend(page);
        }
        let revision = self.revision.ok_or_else(|| malformed("range read: no revision"))?;
        if self.order.by != SortBy::Key {
            self.order.arrange(&mut all);
        }
        Ok((all, revision))
    }

    /// The next page; `None` after the last.
    async fn next(&mut self) -> Result<Option<Vec<KeyValue>>> {
        if self.done {
            return Ok(None);
        }
        let mut op = self.op.clone();
        op.limit = self.left.unwrap_or(PAGE_ENTRIES_MAX).min(PAGE_ENTRIES_MAX);
        let txn = TxnOp::single(OpKind::Range(op));
        let mut outcome = self.link.query(txn, self.fresh, self.timeout).await?;
        let Some(OpResult::Range(page)) = outcome.results.pop() else {
            return Err(malformed("outcome of a range read"));
        };
        self.go_on_after(&page)?;
        Ok(Some(page.entries))
    }

    fn go_on_after(&mut self, page: &Page) -> Result<()> {
        if self.revision.is_none() {
            self.revision = Some(page.revision);
            let pinned = *self.op.at.get_or_insert(page.revision);
            let consistency = Consistency::Serializable;
            self.fresh = Freshness { consistency, revision_min: Some(pinned) };
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(u32::try_from(page.entries.len()).unwrap_or(u32::MAX));
        }
        self.done = !page.more || self.left == Some(0);
        match page.entries.last() {
            _ if self.done => {}
            Some(last) if self.op.descending => self.op.range.end = Some(last.key.clone()),
            Some(last) => self.op.range.start = first_after(&last.key),
            None => return Err(malformed("page: empty, and not the last")),
        }
        // A key that is the last possible one of the range leaves nothing behind it.
        self.done |= self.op.range.is_empty();
        Ok(())
    }
}

impl Order {
    /// Equal entries are in the order of their keys, and in the opposite if all is, as in a page.
    fn arrange(&self, entries: &mut Vec<KeyValue>) {
        match self.by {
            SortBy::Key => {}
            SortBy::Value => self.sort(entries, |kv| kv.value.clone()),
            SortBy::CreateRevision => self.sort(entries, |kv| kv.create_revision),
            SortBy::ModRevision => self.sort(entries, |kv| kv.mod_revision),
            SortBy::Version => self.sort(entries, |kv| kv.version),
        }
        if self.limit > 0 {
            entries.truncate(self.limit as usize);
        }
        if self.strip_values {
            entries.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
    }

    fn sort<K: Ord>(&self, entries: &mut [KeyValue], key: impl Fn(&KeyValue) -> K) {
        entries.sort_by_key(key);
        if self.descending {
            entries.reverse();
        }
    }
}

/// The smallest key above `key`.
fn first_after(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    Bytes::from(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::KeyRange;

    #[test]
    fn nothing_lies_between_a_key_and_the_first_after_it() {
        let rest = KeyRange::from(first_after(b"k")..);
        assert!(!rest.contains(b"k") && rest.contains(b"k\0"));
    }
}
