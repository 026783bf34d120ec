//! Money that is moved between accounts by many at once, and none of it is lost or made.
//!
//! `cargo run --example transactions` starts a group of one in a temporary folder, and eight tellers who move random
//! amounts, one of them over TCP. It ends after 200 transfers each.
//!
//! The claim: a transfer happens whole or not at all, whoever else moves money at the same time, and a report that is read
//! in between always adds up.

#![allow(clippy::print_stdout)] // an example shows what it does

use futures::future::try_join_all;
use quorate::{Client, Compare, KeyRange, Node, Op, OpResult, Result, Revision};

const ACCOUNTS: u64 = 5;
const DEPOSIT: u64 = 1000;
const TRANSFERS: u64 = 200;

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let node = Node::builder(folder.path()).listen("127.0.0.1:0").solo().await?;
    open_accounts(&node.client()).await?;

    let address = node.local_address().expect("it listens").to_string();
    let remote = Client::connect([address]).await?;
    let clients = (0..8).map(|n| if n == 0 { remote.clone() } else { node.client() });
    let tellers = clients.enumerate().map(|(seed, client)| work(client, seed as u64 + 1));
    let (tries, ()) =
        futures::future::try_join(try_join_all(tellers), audit(&node.client())).await?;

    let tries: u64 = tries.iter().sum();
    println!(
        "{} transfers took {tries} tries: the rest was too late, and looked again",
        8 * TRANSFERS
    );
    assert_eq!(total(&node.client()).await?, ACCOUNTS * DEPOSIT);
    node.shutdown().await
}

/// All at once, or, if they are there already, not at all.
async fn open_accounts(client: &Client) -> Result<()> {
    let mut opening = client.txn().when(Compare::absent(KeyRange::prefix("account/")));
    for account in 0..ACCOUNTS {
        opening = opening.then(Op::put(key(account), DEPOSIT.to_string()));
    }
    assert!(opening.await?.succeeded);
    let again = client.txn().when(Compare::absent(key(0))).then(Op::put(key(0), "1000000"));
    assert!(!again.await?.succeeded, "nobody gets rich by opening an account twice");
    Ok(())
}

/// A teller: moves random amounts until the day is over. Yields how often he had to try.
async fn work(client: Client, seed: u64) -> Result<u64> {
    let mut dice = seed;
    let mut roll = |sides: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (dice >> 33) % sides
    };
    let mut tries = 0;
    for _ in 0..TRANSFERS {
        let (from, amount) = (roll(ACCOUNTS), roll(100));
        let to = (from + 1 + roll(ACCOUNTS - 1)) % ACCOUNTS;
        tries += transfer(&client, from, to, amount).await?;
    }
    Ok(tries)
}

/// Reads both balances, and writes both if nobody has touched either of them since.
async fn transfer(client: &Client, from: u64, to: u64, amount: u64) -> Result<u64> {
    let mut tries = 1;
    loop {
        let balances = client.txn().then(Op::get(key(from))).then(Op::get(key(to))).await?;
        let [source, target] = &balances.results[..] else { panic!("two were asked for") };
        let ((source, seen_source), (target, seen_target)) = (balance(source), balance(target));
        let Some(rest) = source.checked_sub(amount) else { return Ok(tries) };
        let outcome = client
            .txn()
            .when(Compare::mod_revision(key(from)).equals(seen_source))
            .when(Compare::mod_revision(key(to)).equals(seen_target))
            .then(Op::put(key(from), rest.to_string()))
            .then(Op::put(key(to), (target + amount).to_string()))
            .await?;
        if outcome.succeeded {
            return Ok(tries);
        }
        tries += 1;
    }
}

/// Adds all accounts up, again and again, while money is moved.
async fn audit(client: &Client) -> Result<()> {
    for _ in 0..50 {
        assert_eq!(total(client).await?, ACCOUNTS * DEPOSIT);
        tokio::task::yield_now().await;
    }
    println!("fifty reports in between added up");
    Ok(())
}

async fn total(client: &Client) -> Result<u64> {
    let accounts = client.range(KeyRange::prefix("account/")).await?.entries;
    Ok(accounts.iter().map(|kv| number(&kv.value)).sum())
}

fn balance(result: &OpResult) -> (u64, Revision) {
    match result {
        OpResult::Get(Some(kv)) => (number(&kv.value), kv.mod_revision),
        other => panic!("an account is always there: {other:?}"),
    }
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).expect("digits").parse().expect("digits")
}

fn key(account: u64) -> String {
    format!("account/{account}")
}
