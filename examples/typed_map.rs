//! Feature flags and counters as values of a type, which many programs change at once.
//!
//! `cargo run --example typed_map` starts a group of one in a temporary folder. It ends when all counts are complete.
//!
//! The claim: an edit of a value is made on what is there, and so none is lost, however many edit; each application sees
//! its own keys only; and what a program stores for itself takes few bytes.

#![allow(clippy::print_stdout)] // an example shows what it does

use futures::future::try_join_all;
use quorate::{Client, Codec, Map, Node, Result};
use serde::{Deserialize, Serialize};

/// What operators edit by hand: JSON, and a field can be added later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Flag {
    on: bool,
    #[serde(default)]
    percent: u8,
}

/// What programs keep for themselves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Visits {
    count: u64,
    last_page: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let node = Node::builder(folder.path()).solo().await?;
    // An application gets a corner of its own, and needs not know of it.
    let (shop, blog) = (node.client().namespace("shop/"), node.client().namespace("blog/"));

    flags(&shop).await?;
    visits(&shop).await?;
    assert!(blog.range(..).await?.entries.is_empty(), "what the shop does is not its business");
    let all = node.client().range(..).await?.entries;
    assert!(all.iter().all(|kv| kv.key.starts_with(b"shop/")));
    node.shutdown().await
}

async fn flags(client: &Client) -> Result<()> {
    let flags: Map<Flag> = client.map("flags/");
    flags.put("dark-mode", &Flag { on: false, percent: 0 }).await?;
    // An operator's hand, and an older version's: there is no `percent`.
    client.put("flags/new-cart", r#"{"on":true}"#).await?;

    let turned = flags.update("dark-mode", |flag| flag.map(|flag| Flag { on: true, ..flag }));
    println!("dark mode is now {:?}", turned.await?);
    assert_eq!(flags.get("new-cart").await?, Some(Flag { on: true, percent: 0 }));
    assert_eq!(flags.update("unknown", |flag| flag).await?, None, "nothing comes of nothing");
    let names: Vec<String> = flags.entries().await?.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["dark-mode", "new-cart"]);
    Ok(())
}

async fn visits(client: &Client) -> Result<()> {
    let visits: Map<Visits> = client.map("visits/").codec(Codec::Bincode);
    let visitors = (0..16).map(|visitor| {
        let visits = visits.clone();
        async move {
            for page in 0..20 {
                let visit = |seen: Option<Visits>| {
                    let Visits { count, .. } = seen.unwrap_or_default();
                    Some(Visits { count: count + 1, last_page: format!("{visitor}/{page}") })
                };
                visits.update("front", visit).await?;
            }
            Ok::<_, quorate::Error>(())
        }
    });
    try_join_all(visitors).await?;
    let front = visits.get("front").await?.expect("it was visited");
    assert_eq!(front.count, 16 * 20, "no visit is lost");
    let stored = client.get("visits/front").await?.expect("it is there").value.len();
    let json = serde_json::to_vec(&front).expect("it is plain").len();
    assert!(stored * 2 < json);
    println!("{} visits by 16 at once, in {stored} bytes, where JSON takes {json}", front.count);
    Ok(())
}
