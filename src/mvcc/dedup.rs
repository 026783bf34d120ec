//! Exactly once: what was answered to whom, so that a write that is sent again changes nothing again, and is answered the
//! same.
//!
//! A client that may send a write twice *registers*, and numbers its writes. With each it says below which number it has
//! all its answers; that is its *floor*, and what was kept below it is forgotten.
//!
//! ```text
//! client 7    floor 41                      sent again: ┌─ below the floor: refused, nobody waits for it
//!             │ 41: revision 900  ◀─────────────────────┼─ answered: that answer, and nothing happens
//!             ▼ 43: lease not found                     └─ else: carried out, and the answer kept by the same entry
//!    … 39 40 [41 42 43] 44 …
//! ```
//!
//! All of it is in memory with the one who applies, since nobody else asks for it, and what has changed goes to the tables
//! with each flush. Answers are short-lived: of a thousand writes a second a flush finds those few that are still under way.
//!
//! Invariants
//! - an answer and what it tells of are of one entry, in memory, on the disk, in snapshots and in the hash;
//! - an id is given once: whoever was forgotten hears so, and nothing of it is carried out. Nobody is forgotten who has
//!   written within [`limits::CLIENT_IDLE`], by the clock of a leader, whose word is in the log;
//! - what is kept is bounded for each client and for all together; an answer that is too large is kept as the revision that
//!   it is of.

use super::hash;
use super::keys;
use super::records::{COUNT_MAX, Head, Record, Table};
use super::tables::Tables;
use super::{Outcome, Stop};
use crate::api::{CLIENT_AGES, Origin};
use crate::codec::layout::{Layout, layout};
use crate::error::{Fault, Reason};
use crate::fault::{Bug, bug};
use crate::types::limits;
use bytes::Bytes;
use heed::RoTxn;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// What an answer takes beside its bytes, about.
const ANSWER_BYTES: usize = 64;
/// The largest answer that is kept.
const ANSWER_BYTES_MAX: usize = 16 << 10;
/// An answer of so many bytes is small: most are a revision.
const SMALL_BYTES: usize = 128;
/// The most bytes of answers that are kept for one client, but for small ones. A row has to hold them.
const CLIENT_BYTES_MAX: usize = 1 << 20;
/// The most bytes of answers that are kept for all clients, about: who has none kept gets one in any case.
const ALL_BYTES_MAX: usize = 64 << 20;

/// What is known of a client, as a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClientRow {
    pub(super) floor: u64,
    /// The slice of time in which it has written last.
    pub(super) seen: u64,
    pub(super) answers: Vec<(u64, Bytes)>,
}
layout!(struct ClientRow { floor, seen, answers });

impl Record for ClientRow {
    const TABLE: Table = Table::Dedup;
}

impl ClientRow {
    /// Whether it can be one that [`Clients`] has written.
    pub(super) fn is_possible(&self) -> bool {
        let Self { floor, seen, answers } = self;
        let is_order = answers.is_sorted_by(|(one, _), (next, _)| one < next);
        let are_above = answers.first().is_none_or(|(first, _)| first >= floor);
        let last = answers.last().map_or(*floor, |(last, _)| *last);
        let can_count = [*floor, *seen, last].into_iter().all(|number| number <= COUNT_MAX);
        is_order && are_above && can_count && answers.len() <= limits::OUTSTANDING_MAX
    }

    /// About what it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.answers.iter().map(|(_, answer)| cost(answer)).sum::<usize>() + ANSWER_BYTES
    }

    /// What it adds to the hash of the state.
    pub(super) fn hash(&self, client: u64) -> u128 {
        let answers = self.answers.iter().map(|(number, it)| hash::of_answer(client, *number, it));
        let own = hash::of_client(client, self.floor, self.seen);
        answers.fold(own, u128::wrapping_add)
    }
}

/// A client, for the one who applies.
#[derive(Debug)]
struct Client {
    floor: u64,
    seen: u64,
    answers: BTreeMap<u64, Bytes>,
    bytes: usize,
}

impl Client {
    fn of(row: &ClientRow) -> Self {
        // In memory of its own: one must not keep all that came with it.
        let copied = |(number, answer): &(u64, Bytes)| (*number, Bytes::copy_from_slice(answer));
        let answers: BTreeMap<_, _> = row.answers.iter().map(copied).collect();
        let bytes = answers.values().map(|it| cost(it)).sum();
        Self { floor: row.floor, seen: row.seen, answers, bytes }
    }

    fn row(&self) -> ClientRow {
        let answers = self.answers.iter().map(|(number, it)| (*number, it.clone())).collect();
        ClientRow { floor: self.floor, seen: self.seen, answers }
    }
}

fn cost(answer: &[u8]) -> usize {
    ANSWER_BYTES + answer.len()
}

/// What has changed of clients since it was asked last: their rows, or nothing of those that were forgotten.
pub(super) type Changed = Vec<(u64, Option<ClientRow>)>;

/// All clients that have registered and were not forgotten.
#[derive(Debug, Default)]
pub(super) struct Clients {
    all: BTreeMap<u64, Client>,
    bytes: usize,
    changed: BTreeSet<u64>,
}

impl Clients {
    /// Those that the tables know, which are as many as the head says.
    pub(super) fn read(txn: &RoTxn<'_>, tables: Tables, head: &Head) -> Result<Self, Fault> {
        let mut clients = Self::default();
        for row in tables.range(txn, Table::Dedup, Bound::Unbounded, Bound::Unbounded)? {
            let (key, row) = row?;
            let id = keys::parse_client(key).ok_or_else(|| Table::Dedup.corrupt(key))?;
            let row = ClientRow::open(key, row)?;
            if !row.is_possible() {
                return Err(Table::Dedup.corrupt(key));
            }
            let client = Client::of(&row);
            clients.bytes += client.bytes;
            clients.all.insert(id, client);
        }
        if clients.all.len() as u64 == head.clients {
            Ok(clients)
        } else {
            Err(Fault::damaged("table dedup: a client is missing, or one too many is there"))
        }
    }

    /// Takes in somebody new, and says under which id.
    pub(super) fn register(&mut self, head: &mut Head) -> Result<u64, Reason> {
        if self.all.len() >= limits::CLIENTS_MAX {
            return Err(Reason::TooManyClients { limit: limits::CLIENTS_MAX as u64 });
        }
        head.client_chosen += 1;
        head.clients += 1;
        let (id, floor, seen) = (head.client_chosen, 1, head.client_age);
        head.add(hash::of_client(id, floor, seen));
        self.all.insert(id, Client { floor, seen, answers: BTreeMap::new(), bytes: 0 });
        self.changed.insert(id);
        Ok(id)
    }

    /// The answer to a write that was carried out before; none if it is to be carried out now.
    pub(super) fn ask(
        &mut self,
        head: &mut Head,
        origin: &Origin,
    ) -> Result<Option<Outcome>, Stop> {
        let Origin { client: id, sequence, lowest_outstanding, .. } = *origin;
        let client = self.all.get_mut(&id).ok_or(Reason::ClientForgotten)?;
        if !origin.is_possible() {
            return Err(Reason::Malformed { what: "number of a write".to_owned() }.into());
        }
        if sequence < client.floor && !bug(Bug::DuplicateCarriedOut) {
            return Err(Reason::AlreadyAnswered.into());
        }
        let floor = client.floor.max(lowest_outstanding);
        if floor > client.floor || client.seen != head.client_age {
            head.subtract(hash::of_client(id, client.floor, client.seen));
            (client.floor, client.seen) = (floor, head.client_age);
            head.add(hash::of_client(id, client.floor, client.seen));
            self.changed.insert(id);
        }
        while let Some(first) = client.answers.first_entry().filter(|it| *it.key() < floor) {
            let (number, answer) = first.remove_entry();
            head.subtract(hash::of_answer(id, number, &answer));
            client.bytes -= cost(&answer);
            self.bytes -= cost(&answer);
        }
        if let Some(answer) =
            client.answers.get(&sequence).filter(|_| !bug(Bug::DuplicateCarriedOut))
        {
            let kept = Outcome::from_bytes(answer.clone());
            // It was written by this program, as it is read.
            return Ok(Some(kept.map_err(|_| Table::Dedup.corrupt(&keys::client(id)))?));
        }
        // By the number and not by how many there are: the lowest, for which the others wait, always has a place.
        let is_far = sequence.saturating_sub(client.floor) >= limits::OUTSTANDING_MAX as u64;
        let is_full =
            self.bytes > ALL_BYTES_MAX && !client.answers.is_empty() && sequence != client.floor;
        if is_far || is_full {
            let limit = limits::OUTSTANDING_MAX as u64;
            return Err(Reason::TooManyOutstanding { limit }.into());
        }
        Ok(None)
    }

    /// Keeps the answer to a write that was asked for.
    pub(super) fn keep(&mut self, head: &mut Head, origin: &Origin, outcome: &Outcome) {
        let Origin { client: id, sequence, .. } = *origin;
        let Some(client) = self.all.get_mut(&id) else { return };
        let mut answer = bytes_of(outcome);
        // Small ones have a room of their own, that large ones cannot take.
        let is_small = answer.len() <= SMALL_BYTES;
        let is_room = client.bytes + cost(&answer) <= CLIENT_BYTES_MAX
            && self.bytes + cost(&answer) <= ALL_BYTES_MAX / 2;
        if let Ok(applied) = outcome
            && (answer.len() > ANSWER_BYTES_MAX || !is_small && !is_room)
        {
            let revision = applied.revision();
            answer = bytes_of(&Outcome::Err(Reason::AnswerNotKept { revision }));
        }
        head.add(hash::of_answer(id, sequence, &answer));
        client.bytes += cost(&answer);
        self.bytes += cost(&answer);
        if let Some(before) = client.answers.insert(sequence, answer) {
            // Only a bug carries a write out twice.
            head.subtract(hash::of_answer(id, sequence, &before));
            client.bytes -= cost(&before);
            self.bytes -= cost(&before);
        }
        self.changed.insert(id);
    }

    /// A slice of time has passed: forgets those who have not written for so many.
    pub(super) fn pass(&mut self, head: &mut Head) {
        head.client_age += 1;
        let is_idle = |client: &Client| client.seen + CLIENT_AGES < head.client_age;
        let idle: Vec<u64> =
            self.all.iter().filter(|(_, client)| is_idle(client)).map(|(id, _)| *id).collect();
        for id in idle {
            let Some(client) = self.all.remove(&id) else { continue };
            self.bytes -= client.bytes;
            head.clients -= 1;
            head.subtract(client.row().hash(id));
            self.changed.insert(id);
        }
    }

    /// What has changed since the last time, in the order of ids.
    pub(super) fn take_changed(&mut self) -> Changed {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed.map(|id| (id, self.all.get(&id).map(Client::row))).collect()
    }
}

/// An answer as it is kept, and hashed: a refusal without its words.
fn bytes_of(outcome: &Outcome) -> Bytes {
    match outcome {
        Ok(_) => outcome.to_bytes(),
        Err(reason) => {
            let mut bytes = Vec::new();
            false.write(&mut bytes);
            reason.write_number(&mut bytes);
            bytes.into()
        }
    }
}
