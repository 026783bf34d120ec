//! A server whose limits an operator changes while it runs.
//!
//! ```text
//! cargo run --example config_reload             goes on until it is stopped
//! cargo run --example config_reload -- --once   three changes
//! ```
//!
//! The claim: every change reaches the server without a restart, reading a setting costs no wait, and what an operator
//! mistypes changes nothing.

#![allow(clippy::print_stdout)]

use quorate::recipes::Config;
use quorate::{Client, Node, Result};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Limits {
    requests_per_second: u32,
    /// Added in a later version: what was stored before that is still good.
    #[serde(default)]
    burst: u32,
}

#[tokio::main]
async fn main() -> Result<()> {
    let once = std::env::args().any(|argument| argument == "--once");
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let node = Node::builder(folder.path()).listen("127.0.0.1:0").solo().await?;

    let fallback = Limits { requests_per_second: 100, burst: 20 };
    let mut limits = node.client().config("api/limits", fallback).await?;
    assert_eq!(limits.get().requests_per_second, 100);
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(limits.clone()));

    // The operator is somewhere else, and knows nothing but the key.
    let address = node.local_address().expect("it listens").to_string();
    let operator = Client::connect([address]).await?;
    let mut change = 0;
    while !once || change < 3 {
        change += 1;
        let wanted = 100 + change;
        let written = operator.put("api/limits", json(wanted)).await?;
        let now = limits.changed().await?;
        assert_eq!((now.requests_per_second, limits.revision()), (wanted, written));
        println!("limits are now {now:?}");

        operator.put("api/limits", r#"{"requests_per_second":"many"}"#).await?;
        while limits.last_error().is_none() {
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(limits.get(), now, "a mistake changes nothing");
        println!("refused: {}", limits.last_error().expect("it was reported"));
        if !once {
            sleep(Duration::from_secs(1)).await;
        }
    }
    drop(tasks);
    node.shutdown().await
}

fn json(requests_per_second: u32) -> String {
    format!(r#"{{"requests_per_second":{requests_per_second}}}"#)
}

/// Handles requests. Each looks at the limits of its moment: an `Arc`, no wait, no lock held.
async fn serve(limits: Config<Limits>) {
    loop {
        let pause = Duration::from_secs(1) / limits.get().requests_per_second;
        sleep(pause).await;
    }
}
