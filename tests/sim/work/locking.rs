//! Somebody who wants a lock, or to lead, and acts for as long as it believes that it may.
//!
//! While it holds it says so every few milliseconds, each time after it has looked at its own session only, and writes
//! now and then under its token.

use super::Worker;
use crate::book::Act;
use quorate::{Client, Compare, Error, Op, Session};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Where those write who hold a lock.
pub const FENCED: &str = "f/";

impl Worker {
    pub(super) async fn lock(&mut self, client: &Client) -> Result<(), Error> {
        let ttl = self.heartbeat * self.dice.within(20, 60) as u32;
        let session = client.session(ttl).await?;
        for _ in 0..self.dice.within(1, 4) {
            let name = format!("lock{}", self.dice.roll(2));
            let patience = Duration::from_millis(self.dice.within(50, 8000));
            // Whoever waits too long leaves the line.
            let Ok(guard) = timeout(patience, session.lock(&name)).await else { continue };
            let guard = guard?;
            self.act(client, &session, &name, guard.token().get(), guard.held()).await;
            match self.dice.roll(3) {
                0 => drop(guard),
                _ => drop(guard.release().await),
            }
            if self.book.is_closing() {
                break;
            }
        }
        if self.dice.percent(50) {
            let _ = session.close().await;
        }
        Ok(())
    }

    pub(super) async fn lead(&mut self, client: &Client) -> Result<(), Error> {
        let ttl = self.heartbeat * self.dice.within(20, 60) as u32;
        let session = client.session(ttl).await?;
        let name = "election";
        let election = session.election(name);
        let patience = Duration::from_millis(self.dice.within(50, 8000));
        let Ok(leadership) = timeout(patience, election.campaign(self.name.clone())).await else {
            return Ok(());
        };
        let leadership = leadership?;
        self.act(client, &session, name, leadership.token().get(), leadership.held()).await;
        if self.dice.percent(60) {
            let _ = leadership.resign().await;
        }
        Ok(())
    }

    /// Believes to hold something, for a while.
    async fn act(
        &mut self,
        client: &Client,
        session: &Session,
        what: &str,
        token: u64,
        held: Compare,
    ) {
        let acts = self.dice.within(1, 100);
        for _ in 0..acts {
            if !session.is_alive() || self.book.has_fallen(self.host) || self.book.is_closing() {
                return;
            }
            self.book.act(|at| Act { what: what.to_owned(), who: self.name.clone(), token, at });
            if self.dice.percent(10) {
                let write = Op::put(format!("{FENCED}{what}"), token.to_string());
                let _ = client.txn().when(held.clone()).then(write).await;
            }
            sleep(Duration::from_millis(self.dice.within(1, 30))).await;
        }
    }
}
