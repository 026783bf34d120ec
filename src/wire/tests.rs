//! What the wire promises, over real sockets on loopback.

use super::*;
use crate::api::{Call, Request, Response};
use crate::error::{Error, Reason};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tower::util::BoxCloneSyncService;

const GROUP: u128 = 77;
const SERVER: u64 = 2;
const CALLER: u64 = 1;
const LONG: Duration = Duration::from_secs(20);

struct Echo;

impl Handler for Echo {
    fn welcome(&self, preamble: &Preamble) -> Welcome {
        Welcome { status: preamble.check_group(GROUP), group: GROUP, node: SERVER }
    }

    fn service(&self) -> BoxCloneSyncService<Call, Response, Error> {
        BoxCloneSyncService::new(tower::service_fn(|call: Call| async move {
            match call.request {
                Request::Founding(body) => Ok(Response::Founding(body)),
                _ => Err(Reason::NoLeader.into()),
            }
        }))
    }

    fn hello(&self, _: PeerKind, hello: &Hello) -> Status {
        if hello.to == SERVER { Status::Ok } else { Status::WrongTarget }
    }

    fn peer_call(
        &self,
        _: PeerKind,
        _: u64,
        _: u16,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Error>> {
        async { Ok(body) }.boxed()
    }
}

fn hello() -> Hello {
    Hello {
        from: CALLER,
        to: SERVER,
        from_incarnation: 1,
        to_incarnation: 0,
        heartbeat_ms: 100,
        election_min_ms: 500,
        election_max_ms: 1000,
        lease_reads: false,
    }
}

#[tokio::test]
async fn a_call_and_a_peer_call_come_back() {
    let listener = bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_address().to_string();
    let server = serve(listener, Arc::new(Echo));
    let who = Endpoint { group: 0, node: 0 };
    let client = RpcClient::new(address.clone(), who, false, Handle::current());
    let request = Request::Founding(Bytes::from_static(b"hello"));
    let call = Call { request, timeout: LONG };
    let response = client.call(call).await.unwrap();
    assert!(matches!(response, Response::Founding(body) if body == "hello"));

    let introduce = || (Endpoint { group: GROUP, node: CALLER }, hello());
    let mut peer = PeerClient::new(PeerKind::Raft, address, false, Arc::new(introduce));
    for body in [Bytes::from_static(b"one"), Bytes::from_static(b"two")] {
        assert_eq!(peer.call(1, body.clone(), LONG).await.unwrap(), body);
    }
    server.shutdown(LONG).await;
}
