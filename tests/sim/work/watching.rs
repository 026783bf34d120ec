//! Somebody who watches, from some revision on, and writes down what it is told; and somebody who forgets the past.

use super::{AtEnd, PREFIX, Worker};
use crate::book::Watched;
use quorate::{Client, Error, ErrorKind, KeyRange, Revision, Watch};
use std::time::Duration;
use tokio::time::timeout;

impl Worker {
    /// Watches until it has had enough, or cannot any more.
    pub(super) async fn watch(&mut self, client: &Client) -> Result<(), Error> {
        let prefix = match self.dice.percent(50) {
            true => PREFIX.to_owned(),
            false => self.key(),
        };
        let (puts, deletes) =
            *self.dice.pick(&[(true, true), (true, true), (true, false), (false, true)]);
        let mut builder = client.watch(KeyRange::prefix(&prefix)).prev();
        if !deletes {
            builder = builder.puts_only();
        }
        if !puts {
            builder = builder.deletes_only();
        }
        if self.dice.percent(70) {
            let back = self.dice.roll(60);
            builder = builder.from(Revision::from(self.highest.saturating_sub(back).max(1)));
        }
        let mut watch = builder.await?;
        let from = watch.position().get();
        let (client_id, name) = (self.client, self.name.clone());
        let number = self.book.watch(Watched {
            client: client_id,
            name,
            prefix,
            puts,
            deletes,
            from,
            told: Vec::new(),
            told_at: Vec::new(),
            positions: Vec::new(),
            compacted: None,
            is_alive: true,
            endpoint: self.endpoint.clone(),
        });
        self.book.say(|| format!("{} watches, number {number}, from {from}", self.name));
        // Whether it had enough, or its member ended: nobody listens any more.
        let book = self.book.clone();
        let _ends = AtEnd(move || book.watched(number, |watched| watched.is_alive = false));
        self.listen(client, &mut watch, number).await
    }

    async fn listen(
        &mut self,
        client: &Client,
        watch: &mut Watch,
        number: usize,
    ) -> Result<(), Error> {
        let batches = self.dice.within(1, 400);
        for _ in 0..batches {
            let told =
                timeout(Duration::from_millis(self.dice.within(100, 5000)), watch.recv()).await;
            if self.book.has_fallen(self.host) {
                return Ok(());
            }
            let position = watch.position().get();
            match told {
                Ok(Ok(changes)) => {
                    self.book.told(number, changes, position);
                    // What it was told of it does not read older.
                    if self.dice.percent(20) {
                        self.glance(client).await;
                    }
                }
                Ok(Err(error)) if error.kind() == ErrorKind::Compacted => {
                    self.book.watched(number, |watched| watched.compacted = Some(position));
                    return Ok(());
                }
                Ok(Err(error)) => return Err(error),
                // A pause, in which a position is worth noting too.
                Err(_) => self.book.watched(number, |watched| {
                    watched.positions.push((watched.told.len(), position));
                }),
            }
        }
        Ok(())
    }

    /// Forgets history, but for what nobody has looked at yet.
    pub(super) async fn compact(&mut self, client: &Client) -> Result<(), Error> {
        let observed = self.book.pages().observed;
        let keep = self.dice.roll(40);
        if observed <= keep + 2 {
            return Ok(());
        }
        let at = observed - keep;
        self.book.pages().compactions.push(at);
        match client.compact(Revision::from(at)).await {
            Err(error) if error.kind() == ErrorKind::Compacted => Ok(()),
            compacted => compacted.map(drop),
        }
    }
}
