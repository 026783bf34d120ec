//! Who may read along on a connection, and how it is known who is at its other end.
//!
//! | | plain text | certificates |
//! |---|---|---|
//! | [`Security::Loopback`] | between addresses of this machine | none |
//! | [`Security::Plaintext`] | wherever to | none |
//! | `Security::Tls` | never | of members, and of clients unless said otherwise |
//!
//! Without certificates everybody is taken for whom he says he is.

use super::socket::{Socket, Stream};
#[cfg(feature = "tls")]
use super::tls::Tls;
use crate::error::Error;
#[cfg(feature = "tls")]
use crate::error::Reason;

/// How connections are secured, on both of their ends.
#[derive(Clone, Debug, Default)]
pub(crate) enum Security {
    #[default]
    Loopback,
    Plaintext,
    #[cfg(feature = "tls")]
    Tls(Tls),
    /// Certificates and plain text were both asked for, which is a mistake: whoever says one of them does not want the other.
    #[cfg(feature = "tls")]
    Both(Tls),
}

/// What is known of whoever has called, before he says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// He has shown that he is a member, or nobody has to.
    Member,
    /// He has not.
    #[cfg_attr(not(feature = "tls"), expect(dead_code))]
    Other,
}

impl Security {
    /// Whether plain text may go to an address that others could listen to; `None` if there is none.
    pub(super) fn plaintext(&self) -> Option<bool> {
        match self {
            Self::Loopback => Some(false),
            Self::Plaintext => Some(true),
            #[cfg(feature = "tls")]
            Self::Tls(_) | Self::Both(_) => None,
        }
    }

    /// Looks at what is needed for it, before the first connection.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self {
            Self::Loopback | Self::Plaintext => Ok(()),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.check(),
            #[cfg(feature = "tls")]
            Self::Both(_) => {
                let detail = "`tls` and `plaintext` exclude each other: say one of them";
                Err(Reason::BadOption { detail: detail.to_owned() }.into())
            }
        }
    }

    /// The same, when something is said of it as well.
    pub(crate) fn and(self, said: Self) -> Self {
        match (self, said) {
            #[cfg(feature = "tls")]
            (Self::Plaintext, Self::Tls(tls))
            | (Self::Tls(tls) | Self::Both(tls), Self::Plaintext) => Self::Both(tls),
            #[cfg(feature = "tls")]
            (both @ Self::Both(_), _) => both,
            (_, said) => said,
        }
    }

    /// By certificates, for a member.
    #[cfg(all(feature = "node", feature = "tls"))]
    pub(crate) fn of_member(tls: Tls) -> Self {
        Self::Tls(tls.of_member())
    }

    /// Makes sure that a member answers at the other end of a connection to `address`.
    #[cfg_attr(not(feature = "tls"), expect(clippy::unused_async))]
    pub(super) async fn meet(&self, stream: Stream, address: &str) -> Result<Socket, Error> {
        let _ = address;
        match self {
            Self::Loopback | Self::Plaintext => Ok(Socket::Plain(stream)),
            #[cfg(feature = "tls")]
            Self::Tls(tls) | Self::Both(tls) => tls.meet(stream, address).await,
        }
    }

    /// Looks at who has called.
    #[cfg_attr(not(feature = "tls"), expect(clippy::unused_async))]
    pub(super) async fn greet(&self, stream: Stream) -> std::io::Result<(Socket, Trust)> {
        match self {
            Self::Loopback | Self::Plaintext => Ok((Socket::Plain(stream), Trust::Member)),
            #[cfg(feature = "tls")]
            Self::Tls(tls) | Self::Both(tls) => tls.greet(stream).await,
        }
    }
}
