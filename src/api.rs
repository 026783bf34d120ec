//! The whole contract between a client and a node: one request, one response, and the rules a request must keep.
//!
//! The node in this process and the stub of a remote one are both a `tower::Service<Call>`, so there is one `Client`
//! type, and every recipe exists once. In process nothing is serialised; between processes a request travels as its
//! hand-made layout ([`layout`]), under its [`Request::method`] number.
//!
//! ```text
//! client ── Call { request, timeout } ──▶ node's gateway ──▶ check() ──▶ log, or local state ──▶ Response
//! ```
//!
//! Invariants
//! - what enters the log is a [`Proposal`], and applying it depends on nothing but it and the state before it;
//! - [`check`] refuses whatever could not be applied, so that no member can choke on an entry that others accept;
//! - one call carries many writes, many cursors or many leases: a caller's load is never one frame each.

mod command;
mod layout;
mod members;

pub(crate) use command::{AGES, Applied, CLIENT_AGES, Command, Origin, Proposal};
pub(crate) use members::{Change, Join, check_address};

use crate::error::{Error, Reason};
use crate::types::{
    Changes, Consistency, GetOp, KeyRange, LeaseId, LeaseStatus, Member, NodeId, Op, OpKind, PutOp,
    RangeOp, Revision, Status, TxnOp, TxnOutcome, limits,
};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

/// The most reads that go together.
pub(crate) const QUERIES_MAX: usize = 128;
/// The most bytes of ranges that one stream of watches may have. Its caller counts himself, and stays below half of it: whoever was
/// refused could only begin anew, with all of them.
pub(crate) const RANGE_BYTES_MAX: usize = if cfg!(test) { 1 << 20 } else { 128 << 20 };
/// A write of more bytes goes alone: its call costs little beside it.
const SMALL: usize = 16 * 1024;

/// A request and how long its caller waits.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) timeout: Duration,
}

/// What a client asks of a node, and one node of another.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Request {
    /// Replicate commands and apply them everywhere. A gateway forwards many at once, and marks them, so that they
    /// travel one hop at most.
    Propose { proposals: Vec<Proposal>, forwarded: bool },
    /// Read without a log entry.
    Query(Query),
    /// The same for several at once, of one key each, and as fresh as the most demanding of them. One outcome for each, in
    /// order; what does not fit into the answer any more is `ResultTooLarge`, and can be asked for alone.
    Queries(Vec<Query>),
    /// One step of all watches of a caller: wait until one of its cursors has events, then return them.
    Follow(Follow),
    /// Push the deadlines of leases back. Answered by the leader from memory, after a quorum round.
    KeepAlive { leases: Vec<LeaseId>, forwarded: bool },
    /// What the leader knows about leases; `None` asks for all.
    Leases { only: Option<Vec<LeaseId>>, keys: bool, forwarded: bool },
    /// The log index that a linearizable read on another member has to wait for. Only the leader answers.
    ReadIndex,
    /// Who this node is, and whom it follows.
    Status,
    /// What founders say to each other before there is a group; only they read it.
    Founding(Bytes),
    /// Take me in. Answered by the leader, when the group has agreed.
    Join { join: Join, forwarded: bool },
    /// Who the members are. Answered by the leader, after a quorum round.
    Members { forwarded: bool },
    /// Change who votes. Answered by the leader, when the group has agreed.
    Change { change: Change, forwarded: bool },
}

/// The answer to the [`Request`] of the same name.
#[derive(Clone, Debug)]
pub(crate) enum Response {
    /// One outcome for each proposal, in order.
    Propose(Vec<Result<Applied, Error>>),
    Query(TxnOutcome),
    Queries(Vec<Result<TxnOutcome, Error>>),
    Follow(Followed),
    /// The time to live of each lease, in order, or why it has none any more.
    KeepAlive(Vec<Result<Duration, Reason>>),
    /// One for each asked lease, in order, as they were at a revision; `None` is unknown or expired.
    Leases {
        leases: Vec<Option<LeaseStatus>>,
        revision: Revision,
    },
    ReadIndex(u64),
    Status(Box<Status>),
    Founding(Bytes),
    /// The id that it has from now on, and the record of the group's founding.
    Join {
        node: NodeId,
        founding: Bytes,
    },
    Members(Vec<Member>),
    Change,
}

/// A transaction without writes, and how fresh its answer must be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Query {
    pub(crate) txn: TxnOp,
    pub(crate) consistency: Consistency,
    /// Wait until this revision is there, whatever the consistency: a caller never sees time go back.
    pub(crate) revision_min: Option<Revision>,
}

/// Names one watch of a caller. A caller never uses a number twice on one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CursorId(pub(crate) u64);

/// One step of a stream of watches.
///
/// The node remembers the cursors of a stream while its connection lives, so that a step carries only what changed.
/// `after` numbers the answers: it is the last that the caller has received, and 0 begins the stream anew. A node that
/// is asked again after the same number takes the lost answer back; one that does not know the stream says so, and the
/// caller begins anew with all its cursors. `call` numbers the questions, from 1: one that was given up and gets its turn
/// after a later one is void. Else it would take that one's answer back and give another under the same number, which
/// the caller would seem to have received. So no lost, late or repeated message can lose an event.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Follow {
    pub(crate) stream: u64,
    pub(crate) call: u64,
    pub(crate) after: u64,
    pub(crate) added: Vec<(CursorId, Cursor)>,
    pub(crate) removed: Vec<CursorId>,
    pub(crate) wait: Duration,
    pub(crate) bytes_max: u32,
}

/// A watch: a range, and where to go on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cursor {
    pub(crate) range: KeyRange,
    pub(crate) next: Position,
    pub(crate) puts: bool,
    pub(crate) deletes: bool,
    pub(crate) prev: bool,
}

/// A point in history down to the change within a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) revision: Revision,
    pub(crate) sub: u32,
}

/// The answer to a [`Follow`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Followed {
    /// `news` for the cursors that have some. Every other cursor has seen everything up to `progress`.
    Step { number: u64, progress: Revision, news: Vec<(CursorId, News)> },
    /// The stream is not known here: begin anew.
    Unknown,
}

/// What happened to one cursor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum News {
    /// Events, oldest first, and where the cursor stands now. If `fragment`, the last of the changes is not complete,
    /// and goes on in the next answer.
    Changes { changes: Vec<Changes>, next: Position, fragment: bool },
    /// The cursor is at its end: compacted. It is forgotten.
    Ended(Reason),
}

impl Position {
    /// The beginning of a revision.
    pub(crate) const fn start_of(revision: Revision) -> Self {
        Self { revision, sub: 0 }
    }
}

impl Request {
    /// Whether it may change the state, so that its failure leaves the outcome unknown.
    pub(crate) fn is_write(&self) -> bool {
        matches!(self, Self::Propose { .. } | Self::Change { .. })
    }

    /// Whether it costs little beside the call that carries it, in both directions, and so may share one: a read of one key,
    /// or a write whose answer is a revision.
    pub(crate) fn is_small(&self) -> bool {
        match self {
            Self::Query(query) => query.txn.as_get().is_some(),
            Self::Propose { proposals, forwarded: false } => match &proposals[..] {
                // What a leader may refuse by a rule of its own, a lease that is too short, travels alone.
                [Proposal { command: Command::Txn(txn), .. }] => {
                    let is_small = proposals[0].command.is_small();
                    is_small && command::bytes(txn) <= SMALL
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// What a [small](Self::is_small) one takes, about.
    pub(crate) fn small_bytes(&self) -> usize {
        match self {
            Self::Query(query) => query.txn.as_get().map_or(0, |get| get.key.len()),
            Self::Propose { proposals, .. } => {
                let bytes = |it: &Proposal| match &it.command {
                    Command::Txn(txn) => command::bytes(txn),
                    _ => 0,
                };
                proposals.iter().map(bytes).sum()
            }
            _ => 0,
        }
    }

    /// What it is called in traces.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Propose { .. } => "propose",
            Self::Query(_) => "query",
            Self::Queries(_) => "queries",
            Self::Follow(_) => "follow",
            Self::KeepAlive { .. } => "keep alive",
            Self::Leases { .. } => "leases",
            Self::ReadIndex => "read index",
            Self::Status => "status",
            Self::Founding(_) => "founding",
            Self::Join { .. } => "join",
            Self::Members { .. } => "members",
            Self::Change { .. } => "change",
        }
    }

    /// Whether only a node that is a member, or is about to be one, asks this.
    pub(crate) fn is_of_members(&self) -> bool {
        matches!(self, Self::Founding(_) | Self::Join { .. } | Self::ReadIndex)
    }
}

impl TxnOp {
    /// A transaction that carries out one operation.
    pub(crate) fn single(op: OpKind) -> Self {
        Self { when: Vec::new(), then: vec![Op(op)], otherwise: Vec::new() }
    }

    /// The only thing it does, if that is to read one key.
    pub(crate) fn as_get(&self) -> Option<&GetOp> {
        match (&self.when[..], &self.then[..], &self.otherwise[..]) {
            ([], [Op(OpKind::Get(get))], []) => Some(get),
            _ => None,
        }
    }

    /// Whether no branch can change a key.
    pub(crate) fn is_read_only(&self) -> bool {
        self.operations().all(|op| match &op.0 {
            OpKind::Put(_) | OpKind::Delete(_) => false,
            OpKind::Get(_) | OpKind::Range(_) => true,
            OpKind::Txn(txn) => txn.is_read_only(),
        })
    }

    /// The operations of both branches, without those nested deeper.
    pub(crate) fn operations(&self) -> impl Iterator<Item = &Op> {
        self.then.iter().chain(&self.otherwise)
    }
}

/// Refuses what could not be applied, for a reason that is the same on every member.
///
/// `ttl_floor` is the shortest time to live that this group grants.
pub(crate) fn check(request: &Request, ttl_floor: Duration) -> Result<(), Reason> {
    match request {
        Request::Propose { proposals, .. } => {
            check_batch(proposals.len())?;
            proposals.iter().try_for_each(|proposal| check_proposal(proposal, ttl_floor))
        }
        Request::Query(query) if !query.txn.is_read_only() => {
            Err(Reason::BadOption { detail: "a query does not write".to_owned() })
        }
        Request::Query(query) => check_txn(&query.txn),
        Request::Queries(queries) => {
            within(queries.len(), QUERIES_MAX, |actual, limit| Reason::TooManyOperations {
                actual,
                limit,
            })?;
            queries.iter().try_for_each(|query| match query.txn.as_get() {
                Some(get) => check_key(&get.key),
                None => {
                    let detail = "queries that go together read one key each".to_owned();
                    Err(Reason::BadOption { detail })
                }
            })
        }
        Request::Follow(follow) => {
            check_batch(follow.added.len())?;
            check_batch(follow.removed.len())?;
            follow.added.iter().try_for_each(|(_, cursor)| check_range(&cursor.range))
        }
        Request::KeepAlive { leases, .. } => check_batch(leases.len()),
        Request::Leases { only, .. } => check_batch(only.as_ref().map_or(0, Vec::len)),
        Request::Join { join, .. } => members::check_join(join),
        Request::ReadIndex
        | Request::Status
        | Request::Founding(_)
        | Request::Members { .. }
        | Request::Change { .. } => Ok(()),
    }
}

fn check_batch(length: usize) -> Result<(), Reason> {
    within(length, limits::BATCH_MAX, |actual, limit| Reason::TooManyOperations { actual, limit })
}

fn check_proposal(proposal: &Proposal, ttl_floor: Duration) -> Result<(), Reason> {
    if proposal.origin.is_some_and(|origin| !origin.is_possible()) {
        return Err(Reason::Malformed { what: "number of a write".to_owned() });
    }
    check_command(&proposal.command, ttl_floor)
}

pub(crate) fn check_command(command: &Command, ttl_floor: Duration) -> Result<(), Reason> {
    match command {
        Command::Txn(txn) => check_txn(txn),
        Command::Grant { ttl, .. } if *ttl < ttl_floor => {
            Err(Reason::TtlTooSmall { floor: ttl_floor })
        }
        Command::Grant { ttl, .. } if *ttl > limits::TTL_MAX => Err(Reason::TtlTooLarge),
        Command::Expire { leases, .. } => {
            within(leases.len(), limits::EXPIRE_LEASES_MAX, |actual, limit| {
                Reason::TooManyOperations { actual, limit }
            })
        }
        Command::Grant { .. }
        | Command::Revoke(_)
        | Command::Compact(_)
        | Command::Register
        | Command::Age { .. }
        | Command::AgeClients { .. }
        | Command::Room { .. } => Ok(()),
    }
}

/// The rules of a transaction: its keys and ranges, its size, its number of operations, and that no key can change
/// twice.
pub(crate) fn check_txn(txn: &TxnOp) -> Result<(), Reason> {
    let mut all = 0;
    let bytes = check_level(txn, limits::TXN_OPERATIONS_MAX, limits::TXN_DEPTH_MAX, &mut all)?;
    within(all, limits::TXN_OPERATIONS_ALL_MAX, |actual, limit| Reason::TooManyOperations {
        actual,
        limit,
    })?;
    within(bytes, limits::REQUEST_BYTES_MAX, |actual, limit| Reason::RequestTooLarge {
        actual,
        limit,
    })?;
    let branches = [&txn.then, &txn.otherwise];
    branches.into_iter().filter(|ops| may_meet(ops)).try_for_each(|ops| footprint(ops).map(drop))
}

/// Whether operations could change a key twice at all. Most transactions are one put, which cannot.
fn may_meet(ops: &[Op]) -> bool {
    ops.len() > 1 || ops.iter().any(|op| matches!(op.0, OpKind::Txn(_)))
}

/// Checks one level of a transaction, with what the levels above leave it, and returns its size in bytes. Counts `all`
/// comparisons and operations.
fn check_level(txn: &TxnOp, budget: usize, depth: usize, all: &mut usize) -> Result<usize, Reason> {
    *all += txn.when.len() + txn.then.len() + txn.otherwise.len();
    let used = txn.when.len().max(txn.then.len()).max(txn.otherwise.len());
    within(used, budget, |actual, limit| Reason::TooManyOperations { actual, limit })?;
    let mut bytes = 0;
    for compare in &txn.when {
        check_range(&compare.range)?;
        bytes += range_bytes(&compare.range);
        if let crate::types::Operand::Value(value) = &compare.operand {
            bytes += value.len();
        }
    }
    for op in txn.operations() {
        bytes += match &op.0 {
            OpKind::Put(put) => check_put(put)?,
            OpKind::Get(get) => {
                check_key(&get.key)?;
                get.key.len()
            }
            OpKind::Delete(delete) => {
                check_range(&delete.range)?;
                range_bytes(&delete.range)
            }
            OpKind::Range(RangeOp { range, .. }) => {
                check_range(range)?;
                range_bytes(range)
            }
            OpKind::Txn(_) if depth == 0 => {
                let limit = limits::TXN_DEPTH_MAX as u64;
                return Err(Reason::TooManyOperations { actual: limit + 1, limit });
            }
            OpKind::Txn(nested) => check_level(nested, budget - used, depth - 1, all)?,
        };
    }
    Ok(bytes)
}

fn check_put(put: &PutOp) -> Result<usize, Reason> {
    check_key(&put.key)?;
    if put.ignore_value && !put.value.is_empty() {
        return Err(Reason::ValueProvided);
    }
    if put.ignore_lease && put.lease.is_some() {
        return Err(Reason::LeaseProvided);
    }
    within(put.value.len(), limits::VALUE_BYTES_MAX, |actual, limit| Reason::ValueTooLarge {
        actual,
        limit,
    })?;
    Ok(put.key.len() + put.value.len())
}

/// The rules of one key.
pub(crate) fn check_key(key: &[u8]) -> Result<(), Reason> {
    let too_long = |actual, limit| Reason::KeyTooLong { actual, limit };
    match key.first() {
        None => Err(Reason::EmptyKey),
        Some(&limits::RESERVED_FIRST_BYTE) => Err(Reason::ReservedKey),
        Some(_) => {
            within(key.len(), limits::KEY_BYTES_MAX, too_long)?;
            let zeros = key.iter().filter(|byte| **byte == 0).count();
            within(key.len() + zeros, limits::ESCAPED_KEY_BYTES_MAX, too_long)
        }
    }
}

/// The rules of a range. It may span keys that are not allowed; it only cannot hold any.
pub(crate) fn check_range(range: &KeyRange) -> Result<(), Reason> {
    if let Some(key) = range.as_key() {
        return check_key(key);
    }
    if range.is_empty() {
        return Err(Reason::EmptyRange);
    }
    let longest = range.start.len().max(range.end.as_ref().map_or(0, Bytes::len));
    // The end of a range may be one byte longer than a key: the first key after the longest.
    within(longest, limits::KEY_BYTES_MAX + 1, |actual, limit| Reason::KeyTooLong { actual, limit })
}

fn range_bytes(range: &KeyRange) -> usize {
    range.start.len() + range.end.as_ref().map_or(0, Bytes::len)
}

fn within(
    actual: usize,
    limit: usize,
    reason: impl FnOnce(u64, u64) -> Reason,
) -> Result<(), Reason> {
    if actual <= limit { Ok(()) } else { Err(reason(actual as u64, limit as u64)) }
}

/// The keys that a list of operations can change.
#[derive(Default)]
struct Footprint<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Spans<'a>,
}

/// Ranges of keys by where they begin, joined where they meet. Each key is looked up once, however many ranges there are:
/// a stranger may send hundreds of thousands of both.
#[derive(Default)]
struct Spans<'a>(BTreeMap<&'a [u8], Option<&'a [u8]>>);

impl<'a> Spans<'a> {
    fn contains(&self, key: &[u8]) -> bool {
        let last = self.0.range(..=key).next_back();
        last.is_some_and(|(_, end)| end.is_none_or(|end| key < end))
    }

    /// Whether a key lies in any of them.
    fn contains_any(&self, keys: &BTreeSet<&[u8]>) -> bool {
        if keys.len() <= self.0.len() {
            return keys.iter().any(|key| self.contains(key));
        }
        self.0.iter().any(|(start, end)| {
            let end = end.map_or(Bound::Unbounded, Bound::Excluded);
            keys.range::<[u8], _>((Bound::Included(*start), end)).next().is_some()
        })
    }

    fn add(&mut self, mut start: &'a [u8], mut end: Option<&'a [u8]>) {
        let later = |a: Option<&'a [u8]>, b: Option<&'a [u8]>| Some(a?.max(b?));
        if let Some((before, its_end)) = self.0.range(..=start).next_back()
            && its_end.is_none_or(|its_end| its_end >= start)
        {
            (start, end) = (before, later(end, *its_end));
        }
        while let Some((next, its_end)) = self.0.range(start..).next()
            && end.is_none_or(|end| *next <= end)
        {
            let (next, its_end) = (*next, *its_end);
            end = later(end, its_end);
            self.0.remove(next);
        }
        self.0.insert(start, end);
    }
}

/// Refuses operations that run together and could change a key twice: two puts of it, or a put and a delete in either
/// order. The two branches of a nested transaction never run together, and deletes may overlap, for the second finds
/// nothing.
fn footprint(ops: &[Op]) -> Result<Footprint<'_>, Reason> {
    let mut all = Footprint::default();
    for op in ops {
        match &op.0 {
            OpKind::Put(put) => {
                all.disjoint(&Footprint::put(&put.key))?.add(Footprint::put(&put.key))
            }
            OpKind::Delete(delete) => {
                let delete = Footprint::delete(&delete.range);
                all.disjoint(&delete)?.add(delete);
            }
            OpKind::Get(_) | OpKind::Range(_) => {}
            OpKind::Txn(nested) => {
                let (then, otherwise) = (footprint(&nested.then)?, footprint(&nested.otherwise)?);
                all.disjoint(&then)?.disjoint(&otherwise)?.add(then);
                all.add(otherwise);
            }
        }
    }
    Ok(all)
}

impl<'a> Footprint<'a> {
    fn put(key: &'a Bytes) -> Self {
        Self { puts: BTreeSet::from([&key[..]]), deletes: Spans::default() }
    }

    fn delete(range: &'a KeyRange) -> Self {
        let span = (&range.start[..], range.end.as_deref());
        Self { puts: BTreeSet::new(), deletes: Spans(BTreeMap::from([span])) }
    }

    fn disjoint(&mut self, other: &Self) -> Result<&mut Self, Reason> {
        let twice = other.puts.iter().any(|key| self.puts.contains(key))
            || self.deletes.contains_any(&other.puts)
            || other.deletes.contains_any(&self.puts);
        if twice { Err(Reason::DuplicateKey) } else { Ok(self) }
    }

    fn add(&mut self, other: Self) {
        self.puts.extend(other.puts);
        other.deletes.0.into_iter().for_each(|(start, end)| self.deletes.add(start, end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn check_ops(ops: impl IntoIterator<Item = Op>) -> Result<(), Reason> {
        check_txn(&TxnOp { then: ops.into_iter().collect(), ..TxnOp::default() })
    }

    #[test]
    fn queries_that_go_together_read_a_key_each() {
        let query = |op: Op| Query {
            txn: TxnOp::single(op.0),
            consistency: Consistency::Serializable,
            revision_min: None,
        };
        let together = |queries| check(&Request::Queries(queries), Duration::ZERO);
        assert_eq!(together(vec![query(Op::get("a")), query(Op::get("b"))]), Ok(()));
        assert_eq!(together(vec![query(Op::get("a")), query(Op::get(""))]), Err(Reason::EmptyKey));
        for other in [Op::range("a"), Op::put("a", ""), Op::txn([], [Op::get("a")], [])] {
            let refused = together(vec![query(Op::get("a")), query(other)]);
            assert!(matches!(refused, Err(Reason::BadOption { .. })));
        }
        let many = vec![query(Op::get("a")); QUERIES_MAX + 1];
        assert!(matches!(together(many), Err(Reason::TooManyOperations { .. })));
    }

    #[test]
    fn keys_have_rules() {
        assert_eq!(check_key(b""), Err(Reason::EmptyKey));
        assert_eq!(check_key(b"\0settings"), Err(Reason::ReservedKey));
        assert_eq!(check_key(&[b'k'; 1024]), Ok(()));
        assert!(matches!(check_key(&[b'k'; 1025]), Err(Reason::KeyTooLong { actual: 1025, .. })));
        let mut zeros = [0; 1024];
        zeros[0] = b'k';
        assert!(matches!(check_key(&zeros), Err(Reason::KeyTooLong { .. })));
        assert_eq!(check_range(&KeyRange::key("")), Err(Reason::EmptyKey));
        assert_eq!(check_range(&KeyRange::from("b".."a")), Err(Reason::EmptyRange));
        assert_eq!(check_range(&KeyRange::all()), Ok(()));
    }

    #[test]
    fn a_key_changes_at_most_once_in_a_transaction() {
        let put = |key: &str| Op::put(key, "v");
        let twice = Err(Reason::DuplicateKey);
        assert_eq!(check_ops([put("k"), put("k")]), twice);
        assert_eq!(check_ops([put("k"), Op::delete(KeyRange::prefix("k"))]), twice);
        assert_eq!(check_ops([Op::delete("a"..), put("b")]), twice);
        assert_eq!(check_ops([put("k"), Op::txn([], [put("k")], [])]), twice);
        assert_eq!(check_ops([Op::txn([], [put("k")], []), Op::delete("k")]), twice);
        assert_eq!(check_ops([Op::txn([], [put("k")], [put("k")])]), Ok(()));
        assert_eq!(check_ops([Op::delete("a".."m"), Op::delete("k"..), put("a0/")]), twice);
        assert_eq!(check_ops([Op::delete("a".."m"), Op::delete("k".."z")]), Ok(()));
    }

    /// Pair by pair it would take minutes, on a thread that others wait for.
    #[test]
    fn many_nested_operations_are_checked_soon() {
        let nested = |ops: Vec<Op>| -> Vec<Op> {
            ops.chunks(13).map(|some| Op::txn([], some.to_vec(), [])).collect()
        };
        let half = limits::TXN_OPERATIONS_ALL_MAX as u32 * 4 / 10;
        let many = |op: &dyn Fn(u32) -> Op| nested(nested((0..half).map(op).collect()));
        let deletes = many(&|number| Op::delete([&b"a"[..], &number.to_be_bytes()].concat()));
        let puts = many(&|number| Op::put([&b"b"[..], &number.to_be_bytes()].concat(), ""));
        let all = |puts: Vec<Op>| [deletes.clone(), puts].concat();
        assert_eq!(check_ops(all(puts.clone())), Ok(()));
        let twice = Op::put([&b"a"[..], &9u32.to_be_bytes()].concat(), "");
        assert_eq!(
            check_ops(all(puts[1..].iter().cloned().chain([twice]).collect())),
            Err(Reason::DuplicateKey)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn joined_ranges_hold_the_keys_of_each(
            ranges in vec((vec(0..3u8, 0..4), proptest::option::of(vec(0..3u8, 1..4))), 0..8),
            keys in vec(vec(0..3u8, 1..4), 0..12),
        ) {
            let range = |(start, end): (Vec<u8>, Option<Vec<u8>>)| KeyRange {
                start: start.into(),
                end: end.map(Bytes::from),
            };
            let ranges: Vec<_> =
                ranges.into_iter().map(range).filter(|range| !range.is_empty()).collect();
            let mut spans = Spans::default();
            ranges.iter().for_each(|range| spans.add(&range.start, range.end.as_deref()));
            let is_in_any = |key: &[u8]| ranges.iter().any(|range| range.contains(key));
            for key in &keys {
                prop_assert_eq!(spans.contains(key), is_in_any(key));
            }
            for some in [&keys[..], &keys[..keys.len().min(1)]] {
                let any = some.iter().any(|key| is_in_any(key));
                prop_assert_eq!(spans.contains_any(&some.iter().map(|key| &key[..]).collect()), any);
            }
        }
    }

    #[test]
    fn size_number_and_depth_are_bounded() {
        let put = |index: usize| Op::put(format!("k{index}"), "v");
        assert_eq!(check_ops((0..128).map(put)), Ok(()));
        assert!(matches!(
            check_ops((0..129).map(put)),
            Err(Reason::TooManyOperations { actual: 129, limit: 128 })
        ));
        let value = vec![0; limits::VALUE_BYTES_MAX];
        let large = |key: &str| Op::put(key, value.clone());
        assert_eq!(check_ops([large("a")]), Ok(()));
        assert!(matches!(check_ops([large("a"), large("b")]), Err(Reason::RequestTooLarge { .. })));
        let mut deep = put(0);
        for _ in 0..=limits::TXN_DEPTH_MAX {
            deep = Op::txn([], [deep], []);
        }
        assert!(matches!(check_ops([deep]), Err(Reason::TooManyOperations { .. })));
        // Side by side, in both branches, with what they compare.
        let limit = limits::TXN_OPERATIONS_ALL_MAX as u64;
        let reads = |count: usize| (0..count).map(|_| Op::get("k"));
        let nested = |_| Op::txn([crate::types::Compare::exists("k")], reads(31), reads(31));
        let all = || (0..limit / 64).map(nested);
        assert_eq!(check_ops(all()), Ok(()));
        assert_eq!(
            check_ops(all().chain([Op::get("k")])),
            Err(Reason::TooManyOperations { actual: limit + 1, limit })
        );
    }

    #[test]
    fn a_time_to_live_has_a_floor_and_a_ceiling() {
        let floor = Duration::from_secs(3);
        let grant = |ttl| check_command(&Command::Grant { id: None, ttl }, floor);
        assert_eq!(grant(Duration::ZERO), Err(Reason::TtlTooSmall { floor }));
        assert_eq!(grant(floor), Ok(()));
        assert_eq!(grant(Duration::MAX), Err(Reason::TtlTooLarge));
    }
}
