//! A service whose limits an operator changes while it runs.
//!
//! `cargo run --example config_reload` starts a group of one in a temporary folder, with a service in the same process
//! and an operator who reaches it over TCP, as from another one. It ends after three changes and as many mistakes.
//!
//! The claim: every change reaches the service without a restart, reading a setting costs no wait, and what an operator
//! mistypes changes nothing.

#![allow(clippy::print_stdout)] // an example shows what it does

use quorate::recipes::Config;
use quorate::{Client, Node, Result};
use serde::{Deserialize, Serialize};

/// Kept as JSON, which an operator can read and write.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Limits {
    requests_per_second: u32,
    /// Added in a later version: what was stored before that is still good.
    #[serde(default)]
    burst: u32,
}

const KEY: &str = "api/limits";
/// What counts as long as the group has nothing better.
const FALLBACK: Limits = Limits { requests_per_second: 100, burst: 20 };

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let node = Node::builder(folder.path()).listen("127.0.0.1:0").solo().await?;
    let mut limits = node.client().config(KEY, FALLBACK).await?;
    assert_eq!(*limits.get(), FALLBACK);
    println!("the service begins with {:?}", limits.get());

    let address = node.local_address().expect("it listens").to_string();
    let operator = Client::connect([address]).await?;
    for wanted in [200, 300, 400] {
        assert!(!is_served(&limits, wanted));
        let good = format!(r#"{{"requests_per_second":{wanted}}}"#);
        let written = operator.put(KEY, good).await?;
        let changed = limits.changed().await?;
        assert_eq!((changed.requests_per_second, limits.revision()), (wanted, written));
        assert!(is_served(&limits, wanted));
        println!("a change reaches it:    {changed:?}");

        operator.put(KEY, r#"{"requests_per_second":"many"}"#).await?;
        // Who begins now has the fallback, and can say why. Who had a good value keeps it.
        let newcomer = node.client().config(KEY, FALLBACK).await?;
        assert_eq!(*newcomer.get(), FALLBACK);
        let mistake = newcomer.last_error().expect("it cannot be decoded");
        assert_eq!(limits.get(), changed);
        println!("a mistake does not:     {mistake}");
    }

    // A program writes it as what it is. `set_if` would, only if nobody else had been faster.
    let desk = operator.config(KEY, FALLBACK).await?;
    desk.set(&FALLBACK).await?;
    assert_eq!(*limits.changed().await?, FALLBACK);
    assert!(limits.last_error().is_none());
    println!("the service ends with   {:?}", limits.get());
    node.shutdown().await
}

/// What a request handler does: it looks, and neither waits nor locks.
fn is_served(limits: &Config<Limits>, requests: u32) -> bool {
    requests <= limits.get().requests_per_second
}
