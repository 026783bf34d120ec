//! How a node gets into a group that is there already.
//!
//! ```text
//! an empty folder                     any member                     the leader
//!   draws its incarnation
//!   join { address, incarnation } ──▶  passes it on ──────────────▶  gives the incarnation an id, and has the group
//!                                                                    agree on it as a learner: one entry
//!   keeps { id, the founding record } ◀───────────────────────────  answers
//!   starts, empty, and is fed from the log or by a snapshot
//! ```
//!
//! Invariants
//! - nothing of Raft is started before the id is on the disk: whoever has voted or acknowledged anything under an id knows
//!   it for ever;
//! - whoever did not get the answer, or lost the power before it was written, asks again with the same incarnation and gets
//!   the same id;
//! - whoever has an id does not ask: its folder says who it is.

use super::identity::{FOUNDERS_MAX, Founding, Joined};
use crate::api::{Call, Join, Request, Response};
use crate::codec;
use crate::error::{Error, ErrorKind, Reason};
use crate::wire::{Endpoint, RpcClient, Security};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// How long a node waits before it goes through its seeds again.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long it waits for one answer. The leader has the group agree meanwhile.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks one seed after the other to be let in, until one says as whom, or `patience` ends.
pub(crate) async fn ask(
    seeds: &[String],
    join: &Join,
    security: &Security,
    patience: Duration,
) -> Result<Joined, Error> {
    let client = |seed: &String| {
        RpcClient::new(seed.clone(), Endpoint::client(), security.clone(), Handle::current())
    };
    let clients: Vec<RpcClient> = seeds.iter().map(client).collect();
    let started = Instant::now();
    loop {
        let mut silent = Vec::new();
        for (seed, client) in seeds.iter().zip(&clients) {
            let request = Request::Join { join: join.clone(), forwarded: false };
            let answer = client.call(Call { request, timeout: ASK_TIMEOUT }).await;
            match answer.and_then(|answer| read(answer, join)) {
                Ok(joined) => return Ok(joined),
                Err(error) if is_refusal(&error) => return Err(error),
                Err(error) => silent.push(match error.reason() {
                    Reason::Unreachable { detail } => detail.clone(),
                    _ => format!("{seed}: {error}"),
                }),
            }
        }
        if started.elapsed() > patience {
            let detail = format!("no seed has let this node in: {}", silent.join("; "));
            return Err(Reason::Unreachable { detail }.into());
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Whether the group wants nothing of this node, which does not go away by asking again. A seed whose disk fails, or that was
/// removed itself, says so too, and another may let it in.
fn is_refusal(error: &Error) -> bool {
    let is_own = matches!(error.reason(), Reason::MemberRemoved { .. });
    matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::WrongGroup) && !is_own
}

/// The answer, if it is one that a leader gives to this question.
fn read(answer: Response, join: &Join) -> Result<Joined, Error> {
    let malformed =
        || Error::from(Reason::Malformed { what: "answer to a node that joins".into() });
    let Response::Join { node, founding } = answer else { return Err(malformed()) };
    let founding: Founding = codec::decode(&founding).map_err(|_| malformed())?;
    let is_named = join.name.is_empty() || join.name == founding.name;
    if node.get() <= FOUNDERS_MAX as u64 || founding.group == 0 || !is_named {
        return Err(malformed());
    }
    Ok(Joined { node: node.get(), address: join.address.clone(), founding })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::identity::Founder;

    #[test]
    fn a_seed_that_is_unwell_is_not_the_group() {
        let is_refusal = |reason: Reason| is_refusal(&reason.into());
        assert!(is_refusal(Reason::TimingDiffers));
        assert!(is_refusal(Reason::FoundersDiffer { detail: String::new() }));
        assert!(is_refusal(Reason::BadMembers { detail: String::new() }));
        assert!(!is_refusal(Reason::DiskFailed { detail: String::new() }));
        assert!(!is_refusal(Reason::MemberRemoved { node: 3.into() }));
        assert!(!is_refusal(Reason::Closed));
        assert!(!is_refusal(Reason::NoLeader));
    }

    #[test]
    fn only_an_answer_of_a_group_is_believed() {
        let join = Join {
            address: "d:1".into(),
            incarnation: 7,
            name: "jobs".into(),
            heartbeat: Duration::from_millis(200),
        };
        let founding = |name: &str| {
            let founders = vec![Founder { address: "a:1".into(), incarnation: 1 }];
            Founding::new(name, founders, None)
        };
        let answer = |node: u64, founding: &Founding| Response::Join {
            node: node.into(),
            founding: codec::encode(founding).into(),
        };
        let right = founding("jobs");
        let joined = read(answer(1030, &right), &join).unwrap();
        assert_eq!((joined.node, joined.address.as_str()), (1030, "d:1"));
        assert_eq!(joined.founding, right);
        assert!(read(answer(3, &right), &join).is_err(), "the id of a founder");
        assert!(read(answer(1030, &founding("other")), &join).is_err(), "another group");
        let garbage = Response::Join { node: 1030.into(), founding: vec![255; 9].into() };
        assert!(read(garbage, &join).is_err());
        assert!(read(Response::Change, &join).is_err());
    }
}
