//! Connecting to a group from outside.
//!
//! All endpoints are asked at once who they are, again and again while none answers. The first that does is the nearest that
//! works, and is used until it fails ([`router`](super::router)).

use super::backoff::Backoff;
use super::home::Home;
use super::link::{Service, malformed, unexpected};
use super::router::{Router, said};
use super::{Client, TIMEOUT_DEFAULT};
use crate::api::{Call, Request, Response};
use crate::error::{Error, ErrorKind, Reason, Result};
use crate::types::{Status, limits};
use crate::wire::{Endpoint, RpcClient, Security};
use futures::stream::{FuturesUnordered, StreamExt};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// Options of a connection. Made by [`Client::builder`].
///
/// ```no_run
/// # use quorate::Client;
/// # use std::time::Duration;
/// # async fn f() -> quorate::Result<()> {
/// let client = Client::builder()
///     .endpoints(["10.0.0.1:7401", "10.0.0.2:7401", "10.0.0.3:7401"])
///     .plaintext()
///     .timeout(Duration::from_secs(3))
///     .connect()
///     .await?;
/// # let _ = client; Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is told to connect"]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    group: u128,
    timeout: Duration,
    security: Security,
}

impl ClientBuilder {
    pub(super) fn new() -> Self {
        let (timeout, security) = (TIMEOUT_DEFAULT, Security::default());
        Self { endpoints: Vec::new(), group: 0, timeout, security }
    }

    /// Adds members of the group to connect to, each of the form `host:port`.
    pub fn endpoints<A: Into<String>>(mut self, endpoints: impl IntoIterator<Item = A>) -> Self {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// Talks to this group only, which [`Status::group`] names. If not said, it is the group of the
    /// endpoint that answers first: of two groups, either.
    ///
    /// A member of another group is not used. If there is nobody else, [`connect`](Self::connect) fails with
    /// [`Reason::GroupMismatch`].
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let node = quorate::Node::builder(folder.path()).listen("127.0.0.1:0").solo().await?;
    /// # let address = node.local_address().expect("it listens").to_string();
    /// use quorate::{Client, Reason};
    ///
    /// let group = node.status().group;
    /// Client::builder().endpoints([&address]).group(group).connect().await?;
    ///
    /// let other = Client::builder().endpoints([&address]).group(group ^ 1).connect().await;
    /// assert_eq!(*other.unwrap_err().reason(), Reason::GroupMismatch);
    /// # node.shutdown().await?;
    /// # Ok(()) }
    /// ```
    pub fn group(mut self, id: u128) -> Self {
        self.group = id;
        self
    }

    /// How long a request waits for its answer if it does not say so itself. Ten seconds if not said; a minute is the
    /// most.
    pub fn timeout(mut self, per_call: Duration) -> Self {
        self.timeout = per_call;
        self
    }

    /// Allows an unencrypted connection to an address that is not loopback. Excludes `tls`.
    pub fn plaintext(mut self) -> Self {
        self.security = self.security.and(Security::Plaintext);
        self
    }

    /// Encrypts connections, talks to members of the group only, and shows them a certificate if there is one. Needs the
    /// feature `tls`.
    ///
    /// ```no_run
    /// # async fn f() -> quorate::Result<()> {
    /// use quorate::{Client, Tls};
    ///
    /// let tls = Tls::new("tls/ca.pem").identity("tls/client.pem", "tls/client.key");
    /// let client = Client::builder().endpoints(["a.example.com:7401"]).tls(tls).connect().await?;
    /// # let _ = client; Ok(()) }
    /// ```
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: crate::wire::Tls) -> Self {
        self.security = self.security.and(Security::Tls(tls));
        self
    }

    /// Connects to the endpoint that answers first, and learns the other members of the group from it. While none does, it
    /// goes on asking: a service may start before the group.
    ///
    /// From then on requests go through it. When it fails they go through another, of those that were named here or are
    /// members by then.
    ///
    /// # Errors
    ///
    /// If none answers in time: of kind [`Unavailable`](crate::ErrorKind::Unavailable), with what each of them failed with;
    /// or, if one gave an answer that time would not mend, that.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes what was opened.
    pub async fn connect(self) -> Result<Client> {
        let Self { endpoints, group, timeout, security } = self;
        security.check()?;
        let runtime = Handle::try_current().map_err(|error| {
            let detail = "a client needs a tokio runtime to connect".to_owned();
            Error::new(Reason::BadOption { detail }).because(error)
        })?;
        let mut asked: FuturesUnordered<_> = endpoints
            .iter()
            .map(|address| {
                let who = Endpoint { group, ..Endpoint::client() };
                let stub = RpcClient::new(address.clone(), who, security.clone(), runtime.clone());
                ask(address.clone(), stub, timeout.min(limits::CALL_TIMEOUT_MAX))
            })
            .collect();
        let (mut tried, mut is_final) = (Vec::new(), None);
        loop {
            // What time would not mend is not held back for long.
            let wait = if is_final.is_some() { OTHERS } else { limits::CALL_TIMEOUT_MAX * 2 };
            let next = tokio::time::timeout(wait, asked.next()).await;
            let Ok(Some((address, stub, answer))) = next else { break };
            match answer {
                Ok(status) => {
                    drop(asked);
                    let first = (address, stub);
                    let router = Router::new(&runtime, security.clone(), endpoints, first, &status);
                    let (service, home) = (Service::new(router), Home::new(runtime));
                    return Ok(Client::over_remote(service, home, timeout));
                }
                Err(error) if error.is_retryable() => tried.push(said(&address, &error)),
                Err(error) => is_final = Some(error),
            }
        }
        Err(match (is_final, tried.len()) {
            (Some(error), _) => error,
            (None, 0) => {
                Error::new(Reason::BadOption { detail: "no endpoint was given".to_owned() })
            }
            (None, _) => Error::new(Reason::Unreachable { detail: tried.join("; ") }),
        })
    }
}

/// How long the other endpoints have once one gave an answer that is final.
const OTHERS: Duration = Duration::from_secs(1);

/// Asks an endpoint who it is, until it says so or its time is up: whoever starts with the group may be faster than it.
async fn ask(
    address: String,
    stub: RpcClient,
    timeout: Duration,
) -> (String, RpcClient, Result<Box<Status>>) {
    let deadline = Instant::now() + timeout;
    let (mut backoff, mut before) = (Backoff::retry(), None);
    loop {
        let timeout = deadline.saturating_duration_since(Instant::now());
        let error = match stub.call(Call { request: Request::Status, timeout }).await {
            // Whoever has no group cannot be told from others.
            Ok(Response::Status(status)) if status.group != 0 => {
                return (address, stub, Ok(status));
            }
            Ok(Response::Status(_)) => malformed("status: no group"),
            Ok(other) => unexpected(&other),
            Err(error) => error,
        };
        let pause = backoff.next();
        if !error.is_retryable() || deadline.saturating_duration_since(Instant::now()) <= pause {
            // That the time of a last try was short says less than what the one before met.
            let is_late = error.kind() == ErrorKind::Timeout;
            let error = before.filter(|_| is_late).unwrap_or(error);
            return (address, stub, Err(error));
        }
        before = Some(error);
        tokio::time::sleep(pause).await;
    }
}
