//! Connecting to a group from outside.
//!
//! The endpoints are asked in order who they are, and the first that answers is kept. Which of them leads does not
//! matter: any node passes a write on.
//!
//! It does not change over to another endpoint later.

use super::home::Home;
use super::link::Service;
use super::{Client, TIMEOUT_DEFAULT};
use crate::error::{Error, Reason, Result};
use crate::wire::{Endpoint, RpcClient};
use std::time::Duration;
use tokio::runtime::Handle;

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
    timeout: Duration,
    plaintext: bool,
}

impl ClientBuilder {
    pub(super) fn new() -> Self {
        Self { endpoints: Vec::new(), timeout: TIMEOUT_DEFAULT, plaintext: false }
    }

    /// Adds members of the group to connect to, each of the form `host:port`.
    pub fn endpoints<A: Into<String>>(mut self, endpoints: impl IntoIterator<Item = A>) -> Self {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// How long a request waits for its answer if it does not say so itself. Ten seconds if not said; a minute is the
    /// most.
    pub fn timeout(mut self, per_call: Duration) -> Self {
        self.timeout = per_call;
        self
    }

    /// Allows an unencrypted connection to an address that is not loopback.
    pub fn plaintext(mut self) -> Self {
        self.plaintext = true;
        self
    }

    /// Connects to the first endpoint that answers.
    ///
    /// # Errors
    ///
    /// What the last endpoint failed with. An answer that another endpoint would not mend is returned at once.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes what was opened.
    pub async fn connect(self) -> Result<Client> {
        let runtime = Handle::try_current().map_err(|error| {
            let detail = "a client needs a tokio runtime to connect".to_owned();
            Error::new(Reason::BadOption { detail }).because(error)
        })?;
        let detail = "no endpoint was given".to_owned();
        let mut failure = Error::new(Reason::BadOption { detail });
        for endpoint in self.endpoints {
            let stub =
                RpcClient::new(endpoint, Endpoint::client(), self.plaintext, runtime.clone());
            let service = Service::new(stub);
            let client = Client::over(service, Home::new(runtime.clone()), self.timeout);
            match client.status().await {
                Ok(_) => return Ok(client),
                Err(error) if error.is_retryable() => failure = error,
                Err(error) => return Err(error),
            }
        }
        Err(failure)
    }
}
