//! Small calls that share one: everybody gets his own answer, and nobody is held up by another's.

use super::*;
use crate::api::{Applied, Command, Proposal, Query};
use crate::types::{Consistency, KeyValue, Op, OpKind, OpResult, Revision, TxnOp, TxnOutcome};
use futures::future::join_all;

/// Writes of smaller numbers than this wait at the gate.
const HELD: u64 = 100;

/// Answers reads with their own key, and writes with the revision that is their number; counts the calls.
#[derive(Default)]
struct Echo {
    calls: AtomicU64,
    writes: AtomicU64,
    is_shut: tokio::sync::watch::Sender<bool>,
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

    async fn propose(&self, proposals: &[Proposal]) -> Result<Response, Error> {
        let numbers: Vec<u64> = proposals.iter().map(number).collect();
        self.writes.fetch_add(numbers.len() as u64, Ordering::SeqCst);
        if numbers.contains(&REFUSED) {
            return Err(Reason::DuplicateKey.into());
        }
        if numbers.iter().any(|number| *number < HELD) {
            let _ = self.is_shut.subscribe().wait_for(|is_shut| !is_shut).await;
        }
        let applied = |number: u64| {
            let (revision, results) = (number.into(), vec![OpResult::Put { prev: None }]);
            Ok(Applied::Txn(TxnOutcome { succeeded: true, revision, results }))
        };
        Ok(Response::Propose(numbers.into_iter().map(applied).collect()))
    }

    async fn handle(&self, call: Call) -> Result<Response, Error> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Ok(match call.request {
            Request::Query(query) => Response::Query(self.get(&query)?),
            Request::Queries(queries) => {
                let bytes = self.answers_bytes.load(Ordering::SeqCst);
                let mut room = 1 << 20;
                let answer = |query| {
                    if room < bytes {
                        return Err(Reason::ResultTooLarge { limit: 1 << 20 }.into());
                    }
                    room -= bytes;
                    self.get(query)
                };
                Response::Queries(queries.iter().map(answer).collect())
            }
            Request::Propose { proposals, .. } => self.propose(&proposals).await?,
            _ => Response::ReadIndex(7),
        })
    }
}

/// A write that is refused, and all that is in one call with it.
const REFUSED: u64 = 666;

fn number(proposal: &Proposal) -> u64 {
    match &proposal.command {
        Command::Txn(txn) => match &txn.then[..] {
            [Op(OpKind::Put(put))] => std::str::from_utf8(&put.key).unwrap().parse().unwrap(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
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

fn put(number: u64) -> Request {
    let command = Command::Txn(TxnOp::single(Op::put(number.to_string(), "v").0));
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

async fn write(client: &RpcClient, number: u64) -> Result<u64, Error> {
    match ask(client, put(number), LONG).await? {
        Response::Propose(outcomes) => match &outcomes[..] {
            [Ok(applied)] => Ok(applied.revision().get()),
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
            0 => assert_eq!(write(client, n).await.unwrap(), n),
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

/// While writes hang, reads do not, nor other writes for long.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_something_else_is_not_held_up() {
    let (echo, server, client) = kit().await;
    echo.is_shut.send_replace(true);
    let hang: Vec<_> = (0..20).map(|n| ask(&client, put(n), SHORT)).collect();
    for error in join_all(hang).await {
        let error = error.unwrap_err();
        let has_left = matches!(error.reason(), Reason::DeadlinePassed { .. });
        // The others waited for a place, and have certainly not happened.
        assert_eq!(error.may_have_applied(), has_left, "{error}");
    }
    let before = echo.writes.load(Ordering::SeqCst);
    let mut slow: Vec<_> = (0..20).map(|n| Box::pin(ask(&client, put(n), LONG))).collect();
    for one in &mut slow {
        assert!(futures::poll!(one).is_pending());
    }
    for consistency in [Consistency::Serializable, Consistency::Linearizable] {
        assert_eq!(read(&client, "k", consistency).await.unwrap(), "k");
    }
    // Whoever travels with them would hang as well.
    let all_have_left = async {
        while echo.writes.load(Ordering::SeqCst) < before + 20 {
            tokio::time::sleep(SHORT / 10).await;
        }
    };
    tokio::time::timeout(LONG, all_have_left).await.expect("all leave");
    // All places are taken by those that hang, and are left after a while.
    let (slow, other) = futures::future::join(join_all(slow), async {
        let other = write(&client, HELD).await.unwrap();
        echo.is_shut.send_replace(false);
        other
    })
    .await;
    assert!(slow.iter().all(Result::is_ok) && other == HELD);
    server.shutdown(LONG).await;
}

/// Whoever is refused is refused alone: the others in his call are asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_that_of_one() {
    let (_echo, server, client) = kit().await;
    for _ in 0..10 {
        let numbers = (200..240).chain([REFUSED]).chain(240..280);
        let writes = numbers.map(|n| {
            let client = client.clone();
            async move { (n, write(&client, n).await) }
        });
        for (number, written) in join_all(writes).await {
            match written {
                Ok(revision) => assert_eq!(revision, number),
                Err(error) => {
                    assert_eq!((number, error.reason()), (REFUSED, &Reason::DuplicateKey))
                }
            }
        }
    }
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
    echo.is_shut.send_replace(true);
    let mut first = Vec::new();
    // One alone, and then one in each place.
    for n in 0..3 {
        first.push(Box::pin(ask(&client, put(n), LONG)));
        while echo.calls.load(Ordering::SeqCst) <= n {
            assert!(futures::poll!(&mut first[n as usize]).is_pending());
            tokio::task::yield_now().await;
        }
    }
    let mut gone: Vec<_> = (0..50).map(|n| Box::pin(ask(&client, put(n), LONG))).collect();
    for one in &mut gone {
        assert!(futures::poll!(one).is_pending());
    }
    drop(gone);
    let stays = Box::pin(write(&client, HELD));
    echo.is_shut.send_replace(false);
    let (_, stays) = futures::future::join(join_all(first), stays).await;
    assert_eq!((stays.unwrap(), echo.calls.load(Ordering::SeqCst)), (HELD, 4));
    // One that has left, and whose caller goes then, is cancelled: it holds no place.
    echo.is_shut.send_replace(true);
    for _ in 0..20 {
        let calls = (0..3).map(|n| ask(&client, put(n), LONG));
        assert!(tokio::time::timeout(SHORT / 4, join_all(calls)).await.is_err());
    }
    assert_eq!(write(&client, HELD).await.unwrap(), HELD);
    server.shutdown(LONG).await;
    drop(client);
    tasks_left(0).await;
}

/// Nobody has left before there is a connection to leave on.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_the_connection_has_not_left() {
    // A port that takes connections, and never answers.
    let silent = socket::bind("127.0.0.1:0", &Security::Loopback).await.unwrap();
    let client = client_of(&silent.local_address().unwrap().to_string());
    let writes = (0..20).map(|n| ask(&client, put(n), SHORT * 5));
    for error in join_all(writes).await {
        let error = error.unwrap_err();
        assert!(!error.may_have_applied(), "{error}");
    }
}
