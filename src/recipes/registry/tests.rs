//! Instances come, change and go, and leave nothing behind.

use super::Registration;
use crate::client::fake::{Fake, Fault, Kind};
use crate::client::{Client, Session};
use crate::error::{ErrorKind, Reason};
use crate::recipes::Mirror;
use std::time::Duration;

const TTL: Duration = Duration::from_secs(10);

async fn session(client: &Client) -> Session {
    client.session(TTL).await.unwrap()
}

fn shown(mirror: &Mirror<String>) -> Vec<String> {
    mirror.snapshot().values().map(|it| (**it).clone()).collect()
}

async fn register(session: &Session, address: &str) -> Registration {
    session.register("billing", &address.to_owned()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn instances_are_found_change_and_leave() {
    let fake = Fake::new();
    let client = fake.client();
    let (first, second) = (session(&client).await, session(&client).await);
    let mut found = client.discover::<String>("billing").await.unwrap();
    let one = register(&first, "a").await;
    found.changed().await.unwrap();
    let two = register(&second, "b").await;
    found.changed().await.unwrap();
    assert_eq!(shown(&found), ["a", "b"]);
    assert_eq!(found.get(two.id()).as_deref().map(String::as_str), Some("b"));
    assert!(client.discover::<String>("bill").await.unwrap().snapshot().is_empty());
    one.update(&"c".to_owned()).await.unwrap();
    found.changed().await.unwrap();
    assert_eq!(shown(&found), ["c", "b"]);
    one.leave().await.unwrap();
    assert_eq!(fake.keys().len(), 1, "when it returns the key is gone");
    found.changed().await.unwrap();
    drop(two);
    found.changed().await.unwrap();
    assert!(shown(&found).is_empty());
    // Whoever is cut off vanishes with its session, and a late word of it brings nothing back.
    let three = register(&first, "d").await;
    found.changed().await.unwrap();
    fake.expire(first.lease_id());
    found.changed().await.unwrap();
    let late = three.update(&"e".to_owned()).await.unwrap_err();
    assert_eq!(*late.reason(), Reason::SessionLost);
    let dead = first.register("billing", &"f".to_owned()).await.unwrap_err();
    assert_eq!(dead.kind(), ErrorKind::NotFound);
    assert!(fake.keys().is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_that_is_dropped_while_it_registers_leaves_nothing() {
    let fake = Fake::new();
    let client = fake.client();
    let session = session(&client).await;
    fake.next(Kind::Propose, Fault::DelayAnswer(Duration::from_secs(1)));
    let instance = "a".to_owned();
    let registering = session.register("billing", &instance);
    assert!(tokio::time::timeout(Duration::from_millis(500), registering).await.is_err());
    tokio::time::sleep(Duration::from_secs(30)).await;
    fake.settle().await;
    assert!(fake.keys().is_empty(), "{:?}", fake.keys());
}
