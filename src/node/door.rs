//! Who answers at the node's port, before and after there is a group.

use crate::api::{Call, Request, Response};
use crate::error::{Error, Reason};
use crate::raft::founding::Desk;
use crate::raft::gateway::Gateway;
use crate::raft::member::Shared;
use crate::raft::server::PeerServer;
use crate::wire::{Handler, Hello, Kind, PeerKind, Preamble, Status, Welcome};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::task::{Context, Poll};
use tower::Service;
use tower::util::BoxCloneSyncService;

/// The node's port.
#[derive(Debug)]
pub(super) struct Door {
    phase: RwLock<Phase>,
}

#[derive(Clone, Debug)]
enum Phase {
    /// This node is not in the group yet: nobody gets an answer.
    Joining,
    /// There is no group yet: only other founders get an answer.
    Founding(Desk),
    Serving {
        shared: Arc<Shared>,
        peers: Arc<PeerServer>,
    },
    Closed,
}

impl Door {
    pub(super) fn new() -> Self {
        Self { phase: RwLock::new(Phase::Joining) }
    }

    /// From now on the other founders get answers.
    pub(super) fn found(&self, desk: Desk) {
        self.set(Phase::Founding(desk));
    }

    /// From now on the group is served.
    pub(super) fn open(&self, shared: Arc<Shared>) {
        let peers = Arc::new(PeerServer::new(Arc::clone(&shared)));
        self.set(Phase::Serving { shared, peers });
    }

    /// From now on nobody is.
    pub(super) fn close(&self) {
        self.set(Phase::Closed);
    }

    fn set(&self, phase: Phase) {
        *self.phase.write().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    fn phase(&self) -> Phase {
        self.phase.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The door as the wire knows it.
#[derive(Clone, Debug)]
pub(super) struct Doorkeeper(pub(super) Arc<Door>);

impl Handler for Doorkeeper {
    fn welcome(&self, preamble: &Preamble) -> Welcome {
        let (status, group, node) = match self.0.phase() {
            // Whoever knows the group already is no founder that asks for it.
            Phase::Founding(_) if preamble.kind == Kind::Rpc && preamble.caller.group == 0 => {
                (Status::Ok, 0, 0)
            }
            Phase::Founding(_) | Phase::Joining => (Status::Starting, 0, 0),
            Phase::Serving { shared, .. } => {
                let (own, caller) = (shared.identity, preamble.caller.node);
                let status = match preamble.check_group(own.group) {
                    Status::Ok if caller != 0 && shared.is_removed(caller) => Status::CallerRemoved,
                    status => status,
                };
                (status, own.group, own.node)
            }
            Phase::Closed => (Status::ShuttingDown, 0, 0),
        };
        Welcome { status, group, node }
    }

    fn service(&self, is_member: bool) -> BoxCloneSyncService<Call, Response, Error> {
        let gateway = Arc::new(OnceLock::new());
        BoxCloneSyncService::new(Calls { door: Arc::clone(&self.0), is_member, gateway })
    }

    fn hello(&self, _: PeerKind, hello: &Hello) -> Status {
        match self.0.phase() {
            Phase::Founding(_) | Phase::Joining => Status::Starting,
            Phase::Serving { peers, .. } => peers.hello(hello),
            Phase::Closed => Status::ShuttingDown,
        }
    }

    fn peer_call(
        &self,
        kind: PeerKind,
        from: u64,
        method: u16,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Error>> {
        match self.0.phase() {
            Phase::Serving { peers, .. } => peers.call(kind, from, method, body).boxed(),
            Phase::Founding(_) | Phase::Joining => ready(Err(Reason::Starting.into())).boxed(),
            Phase::Closed => ready(Err(Reason::Closed.into())).boxed(),
        }
    }
}

/// The calls of one connection. It may be older than the group, so each call looks at what there is.
#[derive(Clone)]
struct Calls {
    door: Arc<Door>,
    /// Whether the caller has shown that he is one, or is about to be: some questions are theirs alone.
    is_member: bool,
    /// Made with the first call that finds a group; it holds the watches of this connection.
    gateway: Arc<OnceLock<Gateway>>,
}

impl Service<Call> for Calls {
    type Response = Response;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Response, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        if !self.is_member && call.request.is_of_members() {
            let detail =
                "a group is founded and joined with the certificate of a member".to_owned();
            return ready(Err(Reason::Untrusted { detail }.into())).boxed();
        }
        match (self.door.phase(), &call.request) {
            (Phase::Founding(desk), Request::Founding(question)) => {
                ready(desk.answer(question).map(Response::Founding)).boxed()
            }
            (Phase::Founding(_) | Phase::Joining, _) => ready(Err(Reason::Starting.into())).boxed(),
            (Phase::Serving { shared, .. }, _) => {
                self.gateway.get_or_init(|| Gateway::remote(shared)).clone().call(call)
            }
            (Phase::Closed, _) => ready(Err(Reason::Closed.into())).boxed(),
        }
    }
}
