//! What members do all day, each as a client of itself, so that what they are told can be held against what happened.
//!
//! ```text
//! writers   a key after the other, each once        w/ID = ID        @ack ID …    @failed ID …
//! counter   read, and one more if nobody was faster counter = N:ID   the same, or @missed ID
//! reader    the counter, and the head               —                @read …
//! locker    a lock; acts while it has it            fence = TOKEN    @act …       @lost
//! ```
//!
//! An id is of one write only, and says which life of which worker it is of: `LIFE.WORKER.NUMBER`.

use super::member::say;
use super::{COUNTER, FENCE, TTL};
use crate::kit::os::clock;
use quorate::{Client, Compare, Error, KeyRange, Op, Result, Session};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How long a write may take before its outcome is unknown.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long whoever has been refused waits before it asks again.
const REST: Duration = Duration::from_millis(10);
/// How often something is done under the lock before it is passed on.
const ACTS: usize = 40;

/// All who work in a member.
pub(super) struct Load {
    client: Client,
    life: String,
    paused: watch::Sender<bool>,
    workers: JoinSet<()>,
    /// How often work was begun: others work then, beside those who work already.
    begun: u64,
}

impl Load {
    pub(super) fn new(client: Client, life: String) -> Self {
        let (paused, workers) = (watch::Sender::new(false), JoinSet::new());
        Self { client, life, paused, workers, begun: 0 }
    }

    /// Begins so many writers.
    pub(super) fn write(&mut self, writers: usize) {
        for writer in 0..writers {
            self.workers.spawn(self.worker(&format!("w{writer}")).write());
        }
        self.begun += 1;
    }

    /// Begins so many writers, and one of each of the others.
    pub(super) fn work(&mut self, writers: usize) {
        self.workers.spawn(self.worker("c").count());
        self.workers.spawn(self.worker("r").read());
        self.workers.spawn(self.worker("l").take_turns());
        self.write(writers);
    }

    /// Has all of them end what they do, and waits for that.
    pub(super) async fn pause(&mut self) {
        self.paused.send_replace(true);
        while let Some(ended) = self.workers.join_next().await {
            ended.unwrap();
        }
        self.paused.send_replace(false);
    }

    fn worker(&self, name: &str) -> Worker {
        Worker {
            client: self.client.clone(),
            life: self.life.clone(),
            name: format!("{}.{name}-{}", self.life, self.begun),
            number: 0,
            paused: self.paused.subscribe(),
        }
    }
}

struct Worker {
    client: Client,
    life: String,
    name: String,
    number: u64,
    paused: watch::Receiver<bool>,
}

impl Worker {
    fn goes_on(&self) -> bool {
        !*self.paused.borrow()
    }

    fn next_id(&mut self) -> String {
        self.number += 1;
        format!("{}.{}", self.name, self.number)
    }

    async fn write(mut self) {
        while self.goes_on() {
            let id = self.next_id();
            match self.client.put(format!("w/{id}"), id.clone()).timeout(PATIENCE).await {
                Ok(revision) => say(&format!("ack {id} {revision} {}", clock())),
                Err(error) => self.has_failed(&id, &error).await,
            }
        }
    }

    async fn has_failed(&self, id: &str, error: &Error) {
        say(&format!("failed {id} {} {error}", error.may_have_applied()));
        sleep(REST).await;
    }

    async fn count(mut self) {
        while self.goes_on() {
            sleep(REST).await;
            let Ok(before) = self.client.get(COUNTER).timeout(PATIENCE).await else { continue };
            let id = self.next_id();
            let (unchanged, count) = match &before {
                Some(before) => {
                    let text = String::from_utf8_lossy(&before.value);
                    let count: u64 = text.split_once(':').unwrap().0.parse().unwrap();
                    (Compare::value(COUNTER).equals(before.value.clone()), count)
                }
                None => (Compare::absent(COUNTER), 0),
            };
            let more = Op::put(COUNTER, format!("{}:{id}", count + 1));
            match self.client.txn().when(unchanged).then(more).timeout(PATIENCE).await {
                Ok(done) if done.succeeded => {
                    say(&format!("ack {id} {} {}", done.revision, clock()));
                }
                Ok(_) => say(&format!("missed {id}")),
                Err(error) => self.has_failed(&id, &error).await,
            }
        }
    }

    async fn read(self) {
        while self.goes_on() {
            sleep(REST).await;
            let begun = clock();
            if let Ok(Some(it)) = self.client.get(COUNTER).timeout(PATIENCE).await {
                let value = String::from_utf8_lossy(&it.value);
                say(&format!("read {begun} {} {value}", it.mod_revision));
            }
            let begun = clock();
            let range = self.client.range(KeyRange::all()).limit(1).timeout(PATIENCE);
            if let Ok(page) = range.await {
                say(&format!("read {begun} {} -", page.revision));
            }
        }
    }

    async fn take_turns(self) {
        while self.goes_on() {
            if let Ok(session) = self.client.session(TTL).await {
                // Whatever has gone wrong, the next session may have more luck.
                let _ = self.take_turns_in(&session).await;
                let _ = session.close().await;
            }
            sleep(REST).await;
        }
    }

    async fn take_turns_in(&self, session: &Session) -> Result<()> {
        let mut paused = self.paused.clone();
        while self.goes_on() {
            let lock = tokio::select! {
                lock = session.lock("job") => lock?,
                _ = paused.wait_for(|paused| *paused) => return Ok(()),
            };
            let token = lock.token();
            for act in 0..ACTS {
                // The time comes first: whoever is stopped between this line and the next has not acted at that time
                // without the lock, for a session that lives now has lived then.
                let at = clock();
                if !session.is_alive() {
                    say(&format!("lost {token}"));
                    return Ok(());
                }
                say(&format!("act {at} {token} {}", self.life));
                if act % 4 == 0 {
                    let mark = Op::put(FENCE, token.to_string());
                    let _ = self.client.txn().when(lock.held()).then(mark).await;
                }
                sleep(REST / 3).await;
            }
            lock.release().await?;
        }
        Ok(())
    }
}
