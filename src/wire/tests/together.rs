//! Small calls that share one: everybody gets his own answer, and nobody is held up by another's.

use super::*;
use crate::api::{Applied, Command, Proposal, Query};
use crate::types::{Consistency, KeyValue, Op, OpResult, Revision, TxnOp, TxnOutcome};
use futures::future::join_all;

/// Answers reads with their own key, and writes with the revision that is their value; counts the calls.
#[derive(Default)]
struct Echo {
    calls: AtomicU64,
    /// Closed, no call is answered.
    gate: tokio::sync::watch::Sender<bool>,
    answers_bytes: AtomicU64,
}

struct Echoing(Arc<Echo>);

impl Echo {
    fn get(&self, query: &Query) -> Result<TxnOutcome, Error> {
        let get = query.txn.as_get().expect("only gets are asked for");
        if get.key.starts_with(b"bad") {
            return Err(Reason::Compacted { at: Revision::from(9) }.into());
        }
        let kv = KeyValue {
            key: get.key.clone(),
            value: vec![7; self.answers_bytes.load(Ordering::SeqCst) as usize].into(),
            create_revision: 1.into(),
            mod_revision: 1.into(),
            version: 1,
            lease: None,
        };
        let results = vec![OpResult::Get(Some(kv))];
        Ok(TxnOutcome { succeeded: true, revision: 5.into(), results })
    }

    async fn handle(&self, call: Call) -> Result<Response, Error> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let _ = self.gate.subscribe().wait_for(|is_closed| !is_closed).await;
        Ok(match call.request {
            Request::Query(query) => Response::Query(self.get(&query)?),
            Request::Queries(queries) => {
                let mut room = 1 << 20;
                let answer = |query| {
                    let outcome = self.get(query)?;
                    let limit = 1 << 20;
                    if room < self.answers_bytes.load(Ordering::SeqCst) {
                        return Err(Reason::ResultTooLarge { limit }.into());
                    }
                    room -= self.answers_bytes.load(Ordering::SeqCst);
                    Ok(outcome)
                };
                Response::Queries(queries.iter().map(answer).collect())
            }
            Request::Propose { proposals, .. } => {
                let applied = |Proposal { command, .. }: Proposal| match command {
                    Command::Compact(revision) => Ok(Applied::Compacted { revision }),
                    Command::Revoke(lease) => Ok(Applied::Revoked { revision: lease.get().into() }),
                    _ => Err(Reason::NoSpace.into()),
                };
                Response::Propose(proposals.into_iter().map(applied).collect())
            }
            _ => Response::ReadIndex(7),
        })
    }
}

impl Handler for Echoing {
    fn welcome(&self, _: &Preamble) -> Welcome {
        Welcome { status: Status::Ok, group: GROUP, node: SERVER }
    }

    fn service(&self, _: bool) -> BoxCloneSyncService<Call, Response, Error> {
        let echo = self.0.clone();
        BoxCloneSyncService::new(tower::service_fn(move |call: Call| {
            let echo = echo.clone();
            async move { echo.handle(call).await }
        }))
    }

    fn hello(&self, _: PeerKind, _: &Hello) -> Status {
        Status::Ok
    }

    fn peer_call(
        &self,
        _: PeerKind,
        _: u64,
        _: u16,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Error>> {
        async move { Ok(body) }.boxed()
    }
}

async fn kit() -> (Arc<Echo>, Server, RpcClient) {
    let echo = Arc::<Echo>::default();
    let listener = bind("127.0.0.1:0", Security::Loopback).await.unwrap();
    let server = serve_within(listener, Arc::new(Echoing(echo.clone())), Bounds::default());
    let client = client_of(&server.local_address().to_string());
    (echo, server, client)
}

fn get(key: &str, consistency: Consistency) -> Request {
    let txn = TxnOp::single(Op::get(key).0);
    Request::Query(Query { txn, consistency, revision_min: None })
}

fn revoke(number: u64) -> Request {
    let command = Command::Revoke(number.into());
    Request::Propose { proposals: vec![command.into()], forwarded: false }
}

async fn read(client: &RpcClient, key: &str, consistency: Consistency) -> Result<String, Error> {
    match ask(client, get(key, consistency), LONG).await? {
        Response::Query(outcome) => match &outcome.results[..] {
            [OpResult::Get(Some(kv))] => Ok(String::from_utf8_lossy(&kv.key).into_owned()),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

async fn write(client: &RpcClient, number: u64) -> u64 {
    match ask(client, revoke(number), LONG).await.unwrap() {
        Response::Propose(outcomes) => match &outcomes[..] {
            [Ok(Applied::Revoked { revision })] => revision.get(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// A thousand callers, of reads and writes, good and bad: far fewer calls, and each has his own answer.
#[tokio::test(flavor = "multi_thread")]
async fn each_gets_his_own_answer() {
    let (echo, server, client) = kit().await;
    let client = &client;
    let callers = (0..1000u64).map(|n| async move {
        match n % 4 {
            0 => assert_eq!(write(client, n).await, n),
            1 => {
                let key = format!("bad{n}");
                let error = read(client, &key, Consistency::Serializable).await.unwrap_err();
                assert_eq!(*error.reason(), Reason::Compacted { at: 9.into() });
                assert!(!error.may_have_applied());
            }
            2 => {
                let key = format!("k{n}");
                assert_eq!(read(client, &key, Consistency::Serializable).await.unwrap(), key);
            }
            _ => {
                let key = format!("k{n}");
                assert_eq!(read(client, &key, Consistency::Linearizable).await.unwrap(), key);
            }
        }
    });
    join_all(callers).await;
    let calls = echo.calls.load(Ordering::SeqCst);
    assert!(calls < 250, "{calls} calls");
    server.shutdown(LONG).await;
}

/// While writes hang, reads do not; and reads of what is there not while those hang that need a round.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_something_else_is_not_held_up() {
    let (echo, server, client) = kit().await;
    echo.gate.send_replace(true);
    let hang: Vec<_> = (0..20).map(|n| ask(&client, revoke(n), SHORT)).collect();
    for error in join_all(hang).await {
        let error = error.unwrap_err();
        let has_left = matches!(error.reason(), Reason::DeadlinePassed { .. });
        // The others waited for a place, and have certainly not happened.
        assert_eq!(error.may_have_applied(), has_left, "{error}");
    }
    let slow: Vec<_> = (0..20).map(|n| ask(&client, revoke(n), LONG)).collect();
    let slow = join_all(slow);
    let read = async {
        tokio::task::yield_now().await;
        let mut reads = std::pin::pin!(read(&client, "k", Consistency::Serializable));
        // It has left, although those before it are not answered.
        while echo.calls.load(Ordering::SeqCst) < 2 {
            assert!(futures::poll!(reads.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
        echo.gate.send_replace(false);
        reads.await.unwrap()
    };
    let (slow, read) = futures::future::join(slow, read).await;
    assert!(slow.iter().all(Result::is_ok) && read == "k");
    server.shutdown(LONG).await;
}

/// Answers of half a megabyte each: they do not fit together, and all come.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_together_is_asked_for_alone() {
    let (echo, server, client) = kit().await;
    echo.answers_bytes.store(500_000, Ordering::SeqCst);
    let keys: Vec<String> = (0..50).map(|n| format!("k{n}")).collect();
    let reads = keys.iter().map(|key| read(&client, key, Consistency::Serializable));
    let answers: Vec<String> = join_all(reads).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers, keys);
    server.shutdown(LONG).await;
}

/// One whose caller has gone before it left never leaves, and takes nobody's place.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_gone_does_not_leave() {
    let (echo, server, client) = kit().await;
    echo.gate.send_replace(true);
    let mut first = Vec::new();
    // One alone, and then one in each place.
    for n in 0..3 {
        first.push(Box::pin(ask(&client, revoke(n), LONG)));
        while echo.calls.load(Ordering::SeqCst) <= n {
            assert!(futures::poll!(&mut first[n as usize]).is_pending());
            tokio::task::yield_now().await;
        }
    }
    let mut gone: Vec<_> = (0..50).map(|n| Box::pin(ask(&client, revoke(n), LONG))).collect();
    for one in &mut gone {
        assert!(futures::poll!(one).is_pending());
    }
    drop(gone);
    let stays = Box::pin(write(&client, 99));
    echo.gate.send_replace(false);
    let (_, stays) = futures::future::join(join_all(first), stays).await;
    assert_eq!((stays, echo.calls.load(Ordering::SeqCst)), (99, 4));
    server.shutdown(LONG).await;
    drop(client);
    tasks_left(0).await;
}
