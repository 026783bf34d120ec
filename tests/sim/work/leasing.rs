//! Somebody who is given leases, hangs keys on them, renews them for a while, and lets them go.

use super::{AtEnd, Worker};
use crate::book::Lease;
use quorate::{Client, Error, Op, Reason};
use std::time::Duration;
use tokio::time::sleep;

/// Where the keys with leases are.
pub const LEASED: &str = "l/";

impl Worker {
    pub(super) async fn lease(&mut self, client: &Client) -> Result<(), Error> {
        let floor = self.heartbeat * 15;
        let ttl = floor + Duration::from_millis(self.dice.roll(2000));
        let asked = self.book.stamp();
        let granted = client.lease_grant(ttl).await?;
        if self.book.has_fallen(self.host) {
            return Ok(());
        }
        let id = granted.id;
        self.count += 1;
        let key = format!("{LEASED}{}.{}", self.name, self.count);
        let number = self.book.lease(Lease {
            ttl: granted.ttl,
            key: key.clone(),
            renewed: asked,
            is_revoked: false,
            is_held: true,
        });
        let book = self.book.clone();
        let _ends = AtEnd(move || book.leased(number, |lease| lease.is_held = false));
        // Two keys, that have to go together.
        let put = |key: &str| Op::put(key, "leased").lease(id);
        let hung = client.txn().then(put(&key)).then(put(&format!("{key}+"))).await;
        let renewals = if hung.is_ok() { self.dice.roll(12) } else { 0 };
        for _ in 0..renewals {
            sleep(ttl.mul_f64(0.2 + self.dice.roll(60) as f64 / 100.0)).await;
            if self.book.is_closing() {
                break;
            }
            let asked = self.book.stamp();
            let renewed = client.lease_keep_alive(id).timeout(ttl / 2).await;
            if self.book.has_fallen(self.host) {
                return Ok(());
            }
            match renewed.map_err(|error| matches!(error.reason(), Reason::LeaseNotFound { .. })) {
                Ok(_) => self.book.leased(number, |lease| lease.renewed = asked),
                // The next leader may still have it, and give it its full time.
                Err(false) => {}
                Err(true) => break,
            }
        }
        if self.dice.percent(30) {
            self.book.leased(number, |lease| lease.is_revoked = true);
            let _ = client.lease_revoke(id).await;
        }
        Ok(())
    }
}
