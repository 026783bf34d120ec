//! Three processes form a group, the one that leads is killed, and nothing that was promised is lost.
//!
//! `cargo run --example quickstart` needs no set-up, takes some seconds, asserts whatever it claims, and leaves nothing
//! behind. The three processes are this program itself, started again:
//!
//! ```text
//! narrator ──"put greeting hello"──▶ stdin  ┌────────┐   an order and its answer are a line each, and begin with
//! (main)   ◀──────"put 3"─────────── stdout │ node-1 │   the same word; so does news, which comes unasked
//!                                           └────────┘
//!                                 consensus ▲        ▲
//!                               on loopback ▼        ▼
//!                                      node-2 ◀────▶ node-3
//! ```
//!
//! First comes the story, then the members, who do what an application of your own would do. How processes are started,
//! told things, heard and killed is in `stage`.

#![allow(clippy::print_stdout)] // a narrator prints

mod stage;

use quorate::recipes::{Config, Election, Leadership};
use quorate::{Client, Compare, Consistency, KeyRange, Node, NodeId, Op, Reason, Revision};
use stage::{Group, Leader, Result, chapter, name, narrate, orders, say, since, tell};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Short, for the story's sake: who leads Raft is replaced after five to ten of these without a sign of life.
const HEARTBEAT: Duration = Duration::from_millis(50);
/// Who was elected loses that after about so long without one.
const TTL: Duration = Duration::from_secs(2);

fn main() -> Result {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, name, stage, own, founders @ ..] = &arguments[..]
        && role == "member"
    {
        return member(name, Path::new(stage), own, founders);
    }
    let began = Instant::now();
    let mut group = three_processes_form_a_group()?;
    a_value_is_written_and_read(&mut group)?;
    let old = one_member_is_elected(&mut group)?;
    the_configuration_changes(&mut group)?;
    let new = the_leader_is_killed(&mut group, &old)?;
    a_late_write_is_refused(&mut group, &old, &new)?;
    let written = a_thousand_writes_are_made(&mut group, &old)?;
    the_dead_one_returns(&mut group, &old, written)?;
    group.disband()?;
    println!("\nThe end, after {}. No process and no file is left.", since(began));
    Ok(())
}

// ---------------------------------------------------------------------------------------------------- the story

fn three_processes_form_a_group() -> Result<Group> {
    chapter("Three processes form a group");
    let began = Instant::now();
    let group = Group::form()?;
    narrate(format!("No server, no set-up: the group stands after {}.", since(began)));
    Ok(group)
}

fn a_value_is_written_and_read(group: &mut Group) -> Result {
    chapter("A value is written, and read on every member");
    let began = Instant::now();
    group.ask(0, "put greeting hello")?;
    let took = since(began);
    for who in 0..3 {
        assert_eq!(group.ask(who, "get greeting")?, "hello");
    }
    narrate(format!("Acknowledged after {took}: by then it was on the disks of a majority."));
    Ok(())
}

fn one_member_is_elected(group: &mut Group) -> Result<Leader> {
    chapter("All three campaign, and one wins");
    // Whoever leads Raft is told first, and so mostly wins: then one SIGKILL costs the group both its leaders.
    let first = group.raft_leader(0)?;
    for turn in 0..3 {
        group.ask((first + turn) % 3, "campaign")?;
    }
    let leader = group.leader_after(0)?;
    for who in 0..3 {
        assert_eq!(group.ask(who, "leader")?, name(leader.who));
    }
    let [other, _] = leader.others();
    assert_eq!(group.ask(other, &leader.write("in-time"))?, "accepted");
    narrate("Whichever of them is asked, they agree on who leads.");
    Ok(leader)
}

fn the_configuration_changes(group: &mut Group) -> Result {
    chapter("The configuration changes while they run");
    group.ask(2, "set-limit 250")?;
    for who in 0..3 {
        assert_eq!(group.hear(Some(who), "limit")?.1, "250");
    }
    narrate("Nobody had asked for it: changes are pushed to whoever follows them.");
    Ok(())
}

fn the_leader_is_killed(group: &mut Group, old: &Leader) -> Result<Leader> {
    chapter("The leading process is killed");
    let led_raft = group.raft_leader(old.who)? == old.who;
    let began = Instant::now();
    group.kill(old.who)?;
    let led = if led_raft { "the election, and Raft as well" } else { "the election" };
    narrate(format!("SIGKILL, without a warning. {} led {led}.", name(old.who)));
    let new = group.leader_after(old.token)?;
    let took = since(began);
    assert!(new.who != old.who && new.token > old.token);
    narrate(format!("It took {took}: the lease of the dead had to run out first."));
    Ok(new)
}

fn a_late_write_is_refused(group: &mut Group, old: &Leader, new: &Leader) -> Result {
    chapter("A write that the dead one had sent arrives late");
    let [survivor, _] = old.others();
    assert_eq!(group.ask(survivor, &old.write("late"))?, "refused");
    assert_eq!(group.ask(survivor, "get schedule")?, format!("by-{}", name(new.who)));
    Ok(())
}

/// Yields the revision of the last one.
fn a_thousand_writes_are_made(group: &mut Group, old: &Leader) -> Result<u64> {
    chapter("A thousand writes, while one of three is dead");
    let began = Instant::now();
    let [one, other] = old.others();
    group.tell(one, "fill 0 500")?;
    group.tell(other, "fill 500 1000")?;
    let last: u64 = group.hear(Some(one), "fill")?.1.parse()?;
    let last = last.max(group.hear(Some(other), "fill")?.1.parse()?);
    narrate(format!("Each of them acknowledged, after {} in all.", since(began)));
    Ok(last)
}

fn the_dead_one_returns(group: &mut Group, old: &Leader, written: u64) -> Result {
    chapter("The dead one returns");
    let began = Instant::now();
    group.start_again(old.who)?;
    assert_eq!(group.ask(old.who, &format!("count {written}"))?, "1000");
    narrate(format!("Back, and caught up, after {}: not one is missing.", since(began)));
    assert_eq!(group.ask(old.who, &old.write("later"))?, "refused");
    narrate(format!("And all three are alike to the last bit, by hash {}.", group.common_hash()?));
    Ok(())
}

// -------------------------------------------------------------------------------------------------- the members

/// A member of the group, and what it can be told to do.
struct Member {
    name: String,
    node: Node,
    client: Client,
    election: Election,
    limit: Config<u32>,
    tasks: JoinSet<()>,
}

#[tokio::main(flavor = "current_thread")]
async fn member(name: &str, stage: &Path, own: &str, founders: &[String]) -> Result {
    let mut orders = orders(stage);
    let node = Node::builder(stage.join(name)).listen(own).heartbeat(HEARTBEAT);
    let node = match node.form(founders).await {
        Err(error) if matches!(error.reason(), Reason::BadAddress { .. }) => {
            tell("ready no"); // somebody else has taken the port since the narrator looked
            return Ok(());
        }
        node => node?,
    };
    node.ready().await?;
    assert_eq!(node.status().members.len(), 3);
    let client = node.client();
    // A session is a heartbeat: what hangs on it goes soon after this process has.
    let session = client.session(TTL).await?;
    let election = session.election("scheduler");
    let limit = client.config("requests-per-second", 100).await?;
    let (name, tasks) = (name.to_owned(), JoinSet::new());
    let mut member = Member { name, node, client, election, limit, tasks };
    member.tasks.spawn(announce(member.limit.clone()));
    say(format!("is process {}, on {own}", std::process::id()));
    tell("ready yes");
    while let Some(order) = orders.recv().await.filter(|order| order != "shutdown") {
        let words: Vec<&str> = order.split(' ').collect();
        tell(format!("{} {}", words[0], member.obey(&words).await?));
    }
    member.tasks.shutdown().await;
    Ok(member.node.shutdown().await?)
}

impl Member {
    async fn obey(&mut self, order: &[&str]) -> Result<String> {
        Ok(match *order {
            ["put", key, value] => {
                let revision = again(|| self.client.put(key, value.to_owned())).await?;
                say(format!("writes {key} = {value}, as revision {revision}"));
                revision.to_string()
            }
            ["get", key] => {
                let read = self.client.get(key).await?.ok_or("it is not there")?;
                let value = String::from_utf8(read.value.to_vec())?;
                say(format!("reads {key} = {value}"));
                value
            }
            ["campaign"] => {
                let (client, election) = (self.client.clone(), self.election.clone());
                self.tasks.spawn(campaign(client, election, self.name.clone()));
                String::new()
            }
            ["leader"] => self.election.leader().await?.ok_or("nobody leads")?.name,
            // The write of a leader, as one sends it who does not know whether he still is one.
            ["write", place, token, value] => {
                let held = Compare::create_revision(place).equals(token.parse::<u64>()?);
                let write = Op::put("schedule", value.to_owned());
                let txn = || self.client.txn().when(held.clone()).then(write.clone());
                let outcome = again(txn).await?;
                let verdict = if outcome.succeeded { "accepted" } else { "refused" };
                say(format!("passes on a write with token {token}: {verdict}"));
                verdict.to_owned()
            }
            // What `held()` compares: the key in the line of candidates that was created as revision `token`.
            ["place", token] => {
                let line = KeyRange::prefix("quorate/election/scheduler/");
                let line = self.client.range(line).await?.entries;
                let place = line.iter().find(|kv| kv.create_revision.to_string() == token);
                String::from_utf8(place.ok_or("it has gone")?.key.to_vec())?
            }
            ["set-limit", limit] => self.limit.set(&limit.parse()?).await?.to_string(),
            ["fill", from, to] => self.fill(from.parse()?..to.parse()?).await?.to_string(),
            ["count", revision] => self.count(revision.parse()?).await?.to_string(),
            ["raft-leader"] => self.node.status().leader.map_or(0, NodeId::get).to_string(),
            ["state"] => {
                self.node.ready().await?;
                let status = self.node.status();
                format!("{} {:032x}", status.applied_index.unwrap_or(0), status.state_hash)
            }
            _ => return Err(format!("{order:?} is no order").into()),
        })
    }

    /// Makes many writes at once, and yields the newest revision when all are acknowledged.
    async fn fill(&self, numbers: Range<u64>) -> Result<Revision> {
        let mut writes = JoinSet::new();
        for number in numbers.clone() {
            let client = self.client.clone();
            let (key, value) = (format!("ledger/{number:04}"), number.to_string());
            writes.spawn(async move { again(|| client.put(&key, value.clone())).await });
        }
        let mut newest = Revision::from(0);
        while let Some(revision) = writes.join_next().await {
            newest = newest.max(revision??);
        }
        say(format!("made {} writes, up to revision {newest}", numbers.count()));
        Ok(newest)
    }

    /// Reads the ledger as of `revision` or later from this member's own copy, and asks nobody else.
    async fn count(&self, revision: u64) -> Result<usize> {
        let ledger = self.client.range(KeyRange::prefix("ledger/")).min_revision(revision.into());
        let ledger = ledger.consistency(Consistency::Serializable).await?.entries;
        for (number, entry) in ledger.iter().enumerate() {
            assert_eq!(entry.key, format!("ledger/{number:04}"));
            assert_eq!(entry.value, number.to_string());
        }
        say(format!("has {} writes in its own copy", ledger.len()));
        Ok(ledger.len())
    }
}

/// Asks until there is an answer. Whatever is asked for in this story may well happen twice.
async fn again<T, R>(request: impl Fn() -> R) -> quorate::Result<T>
where
    R: IntoFuture<Output = quorate::Result<T>>,
{
    loop {
        match request().await {
            Err(error) if error.is_retryable() => say(format!("asks once more, for {error}")),
            answer => return answer,
        }
    }
}

/// Campaigns again and again, and works whenever it leads.
async fn campaign(client: Client, election: Election, name: String) {
    let work = async |leadership: Arc<Leadership>| {
        say(format!("leads, with fencing token {}", leadership.token()));
        let write = Op::put("schedule", format!("by-{name}"));
        // Whether it still leads, the group looks at the moment of the write: nobody else can know.
        let txn = || client.txn().when(leadership.held()).then(write.clone());
        let outcome = again(txn).await?;
        if outcome.succeeded {
            say("writes the schedule, which only a leader may do");
            tell(format!("leads {}", leadership.token()));
        }
        std::future::pending().await // dropped as soon as the lead is lost
    };
    election.lead(&*name, work).await.expect("nothing but a lost session ends the work");
}

async fn announce(mut limit: Config<u32>) {
    while let Ok(limit) = limit.changed().await {
        say(format!("has a new limit: {limit} requests per second"));
        tell(format!("limit {limit}"));
    }
}
