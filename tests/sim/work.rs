//! What clients do all day, inside of members and far from them.
//!
//! Every value is written once, so that a value says who wrote it.

mod leasing;
mod locking;
mod watching;

pub use leasing::LEASED;
pub use locking::FENCED;

use crate::book::{Book, RangeRead};
use crate::dice::Dice;
use crate::history::{Compare, Did, Do, Key, Mode, Outcome, Txn};
use crate::net::{CLIENT_HOSTS, HostId};
use quorate::{Client, Consistency, Error, NodeId, Op, OpResult, Reason, Revision, TxnOutcome};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How much longer values are where there is no room for many.
const LARGE: usize = 20_000;
/// How many keys there are.
const KEYS: u64 = 10;
pub const PREFIX: &str = "k/";

/// One of those who work.
pub struct Worker {
    book: Book,
    dice: Dice,
    /// Who it is, in the history. Whoever does not know what became of an operation is somebody else from then on.
    client: u32,
    name: String,
    host: HostId,
    /// Where it works, if that is far away.
    endpoint: String,
    heartbeat: Duration,
    count: u64,
    highest: u64,
}

impl Worker {
    pub fn new(book: &Book, seed: u64, name: String, host: HostId, heartbeat: Duration) -> Self {
        let dice = Dice::new(seed).fork(&name);
        Self {
            book: book.clone(),
            dice,
            client: 0,
            name,
            host,
            endpoint: String::new(),
            heartbeat,
            count: 0,
            highest: 0,
        }
    }

    fn key(&mut self) -> Key {
        format!("{PREFIX}{}", self.dice.roll(KEYS))
    }

    fn value(&mut self) -> String {
        self.count += 1;
        let padding = if self.book.is_tight() { LARGE } else { 0 };
        format!("{}.{}{}", self.name, self.count, ".".repeat(padding))
    }

    async fn rest(&mut self) {
        let busy = self.dice.percent(70);
        let pause = if busy { self.dice.roll(40) } else { self.dice.roll(1000) };
        sleep(Duration::from_millis(pause)).await;
    }
}

/// Does something when it is dropped, by whomever.
struct AtEnd<F: FnMut()>(F);

impl<F: FnMut()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Works with a client of a member, as tasks of that member.
pub fn embedded(worker: Worker, client: Client) {
    tokio::spawn(work(worker, client));
}

/// Writes once, at once.
pub fn greet(mut worker: Worker, client: Client) {
    tokio::spawn(async move {
        worker.client = worker.book.client();
        let put = Txn::single(Do::Put(worker.key(), worker.value()));
        worker.carry_out(&client, put, Mode::Linearizable).await;
    });
}

/// Has a member that has joined take the place of whoever was at its address before, until it has: it may be killed at each
/// step, and the answers may be lost.
pub async fn replace(
    client: Client,
    id: NodeId,
    own: String,
    heartbeat: Duration,
    done: Arc<AtomicBool>,
) {
    loop {
        let members = client.members().timeout(heartbeat * 40).await.unwrap_or_default();
        let mut before = members.iter().filter(|it| it.address == own && it.id != id);
        let is_voter = members.iter().any(|it| it.id == id && it.is_voter);
        // Whatever becomes of it shows when one looks again.
        let _ = match before.next() {
            Some(old) if old.is_voter => {
                client.replace_member(old.id).with(id).timeout(heartbeat * 100).await
            }
            Some(old) => client.remove_member(old.id).await,
            None if is_voter => {
                done.store(true, Ordering::Relaxed);
                return;
            }
            None => client.promote_member(id).await,
        };
        sleep(heartbeat).await;
    }
}

/// Reads again and again, for a while.
pub fn stare(mut worker: Worker, client: Client) {
    tokio::spawn(async move {
        worker.client = worker.book.client();
        for _ in 0..100 {
            worker.read_key(&client).await;
            sleep(Duration::from_millis(worker.dice.within(1, 10))).await;
        }
    });
}

/// Writes until one of them is answered.
pub fn probe(mut worker: Worker, client: Client) {
    tokio::spawn(async move {
        loop {
            worker.client = worker.book.client();
            let put = Txn::single(Do::Put(worker.key(), worker.value()));
            if worker.carry_out(&client, put, Mode::Linearizable).await {
                worker.book.pages().probed += 1;
                return;
            }
            worker.rest().await;
        }
    });
}

/// Works from far away, on whatever member answers.
pub fn remote(mut worker: Worker, addresses: Vec<String>) {
    tokio::spawn(async move {
        while !worker.book.is_closing() {
            let address = worker.dice.pick(&addresses).clone();
            let patience = Duration::from_millis(worker.dice.within(500, 3000));
            let client = Client::builder().endpoints([address.clone()]).timeout(patience).connect();
            match timeout(patience, client).await {
                Ok(Ok(client)) => {
                    worker.endpoint.clone_from(&address);
                    worker.book.say(|| format!("{} works at {address}", worker.name));
                    worker = work_for_a_while(worker, client).await;
                }
                _ => worker.rest().await,
            }
        }
    });
}

async fn work(mut worker: Worker, client: Client) {
    while !worker.book.is_closing() {
        worker = work_for_a_while(worker, client.clone()).await;
    }
}

/// Works until something goes wrong.
async fn work_for_a_while(mut worker: Worker, client: Client) -> Worker {
    worker.client = worker.book.client();
    // Connections break for those far away only, so that most watches are theirs.
    let watchers = if worker.host >= CLIENT_HOSTS { 40 } else { 10 };
    let role = if worker.dice.percent(watchers) { 0 } else { worker.dice.within(10, 99) };
    for _ in 0..worker.dice.within(10, 200) {
        if worker.book.is_closing() {
            break;
        }
        worker.rest().await;
        let is_well = match role {
            0..10 => worker.watch(&client).await.is_ok(),
            10..25 => worker.lease(&client).await.is_ok(),
            25..35 => worker.lock(&client).await.is_ok(),
            35..40 => worker.lead(&client).await.is_ok(),
            // Whoever waits for a write that is stuck does not see what reads would show.
            40..55 => worker.read_key(&client).await,
            _ => worker.work_on_keys(&client).await,
        };
        if !is_well {
            break;
        }
    }
    worker
}

impl Worker {
    async fn work_on_keys(&mut self, client: &Client) -> bool {
        match self.dice.roll(200) {
            0..20 => self.read_range(client).await,
            20..26 => self.read_past(client).await,
            26 => self.compact(client).await.is_ok(),
            27..47 => self.glance(client).await,
            _ => self.transact(client).await,
        }
    }

    /// Reads whatever the nearest member has.
    async fn glance(&mut self, client: &Client) -> bool {
        let read = Txn::single(Do::Get(self.key()));
        self.carry_out(client, read, Mode::Serializable).await
    }

    async fn read_key(&mut self, client: &Client) -> bool {
        let read = Txn::single(Do::Get(self.key()));
        self.carry_out(client, read, Mode::Linearizable).await
    }

    /// A transaction of any kind; returns whether its outcome is known.
    async fn transact(&mut self, client: &Client) -> bool {
        let txn = self.txn();
        let may_be_stale = !txn.may_write() && self.dice.percent(30);
        let mode = if may_be_stale { Mode::Serializable } else { Mode::Linearizable };
        self.carry_out(client, txn, mode).await
    }

    async fn carry_out(&mut self, client: &Client, txn: Txn, mode: Mode) -> bool {
        let patience = self.patience();
        let operation = self.book.begin(self.client, mode, txn.clone());
        let asked = ask(client, &txn, mode, patience).await;
        if self.book.has_fallen(self.host) {
            return false;
        }
        self.book.end(operation, |end| match &asked {
            Ok(outcome) => done(end, outcome),
            Err(error) if error.may_have_applied() => Outcome::Unknown,
            Err(_) => Outcome::Refused,
        });
        if asked.as_ref().is_err_and(|error| *error.reason() == Reason::NoSpace) {
            self.book.pages().no_room += 1;
        }
        self.book.say(|| match &asked {
            Ok(outcome) => {
                format!("{}: {:?} at {}: {:?}", self.name, mode, outcome.revision.get(), txn)
            }
            Err(error) => format!("{}: {error}: {txn:?}", self.name),
        });
        if let Ok(outcome) = &asked {
            self.highest = self.highest.max(outcome.revision.get());
        }
        asked.is_ok()
    }

    /// Some are in a hurry: they give up while a leader that is cut off, or whose disk is slow, may still get there.
    fn patience(&mut self) -> Option<Duration> {
        self.dice.percent(20).then(|| self.heartbeat * self.dice.within(1, 40) as u32)
    }

    fn txn(&mut self) -> Txn {
        let key = self.key();
        match self.dice.roll(100) {
            0..30 => Txn::single(Do::Get(key)),
            30..55 => Txn::single(Do::Put(key, self.value())),
            55..62 => Txn::single(Do::Delete(key)),
            62..75 => Txn {
                when: vec![Compare::Missing(key.clone())],
                then: vec![Do::Put(key.clone(), self.value())],
                otherwise: vec![Do::Get(key)],
            },
            75..85 => {
                let seen = self.value();
                let (then, otherwise) = (self.value(), vec![Do::Get(key.clone())]);
                let when = vec![Compare::ValueIs(key.clone(), seen)];
                Txn { when, then: vec![Do::Put(key, then)], otherwise }
            }
            _ => {
                // Neighbours only, so that not all keys depend on each other.
                let pair = self.dice.roll(KEYS / 2) * 2;
                let (one, other) = (format!("{PREFIX}{pair}"), format!("{PREFIX}{}", pair + 1));
                let value = self.value();
                Txn {
                    when: vec![Compare::Exists(one.clone())],
                    then: vec![
                        Do::Get(other.clone()),
                        Do::Put(one.clone(), value.clone()),
                        Do::Put(other.clone(), value.clone()),
                        Do::Get(other.clone()),
                    ],
                    otherwise: vec![Do::Put(one, value), Do::Delete(other)],
                }
            }
        }
    }

    async fn read_range(&mut self, client: &Client) -> bool {
        let stale = self.dice.percent(30);
        let (mode, consistency) = match stale {
            true => (Mode::Serializable, Consistency::Serializable),
            false => (Mode::Linearizable, Consistency::Linearizable),
        };
        self.read(
            mode,
            None,
            client.range(quorate::KeyRange::prefix(PREFIX)).consistency(consistency),
        )
        .await
    }

    async fn read_past(&mut self, client: &Client) -> bool {
        if self.highest == 0 {
            return true;
        }
        let at = self.dice.within(self.highest.saturating_sub(50).max(1), self.highest);
        let range = client.range(quorate::KeyRange::prefix(PREFIX)).at(Revision::from(at));
        self.read(Mode::Linearizable, Some(at), range).await
    }

    async fn read(
        &mut self,
        mode: Mode,
        at: Option<u64>,
        read: quorate::client::RangeRead<'_>,
    ) -> bool {
        let start = self.book.stamp();
        match read.await {
            Ok(_) if self.book.has_fallen(self.host) => false,
            Ok(page) => {
                let end = self.book.stamp();
                let revision = page.revision.get();
                let entries = page.entries;
                let client = self.client;
                let read = RangeRead { client, mode, start, end, at, revision, entries };
                self.book.pages().reads.push(read);
                true
            }
            Err(error) => at.is_some() && error.kind() == quorate::ErrorKind::Compacted,
        }
    }
}

/// Asks for a transaction, in the shortest way that there is for it.
async fn ask(
    client: &Client,
    txn: &Txn,
    mode: Mode,
    patience: Option<Duration>,
) -> Result<TxnOutcome, Error> {
    let consistency = match mode {
        Mode::Linearizable => Consistency::Linearizable,
        Mode::Serializable => Consistency::Serializable,
    };
    let mut asked = client.txn().consistency(consistency);
    for compare in &txn.when {
        asked = asked.when(match compare {
            Compare::Exists(key) => quorate::Compare::exists(key.as_str()),
            Compare::Missing(key) => quorate::Compare::absent(key.as_str()),
            Compare::ValueIs(key, value) => {
                quorate::Compare::value(key.as_str()).equals(value.clone())
            }
        });
    }
    let op = |op: &Do| match op {
        Do::Get(key) => Op::get(key),
        Do::Put(key, value) => Op::put(key, value.clone()),
        Do::Delete(key) => Op::delete(key.as_str()),
    };
    asked = txn.then.iter().fold(asked, |asked, it| asked.then(op(it)));
    asked = txn.otherwise.iter().fold(asked, |asked, it| asked.otherwise(op(it)));
    if let Some(patience) = patience {
        asked = asked.timeout(patience);
    }
    asked.await
}

fn done(end: Duration, outcome: &TxnOutcome) -> Outcome {
    let did = |result: &OpResult| match result {
        OpResult::Get(kv) => {
            Did::Got(kv.as_ref().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()))
        }
        OpResult::Put { .. } => Did::Put,
        OpResult::Deleted { count, .. } => Did::Deleted(*count > 0),
        other => panic!("nobody asked for {other:?}"),
    };
    Outcome::Done {
        end,
        revision: outcome.revision.get(),
        succeeded: outcome.succeeded,
        results: outcome.results.iter().map(did).collect(),
    }
}
