//! Bad input gets a clear typed error, and nothing is lost by it.
//!
//! Each test hands in something that is wrong, holds the refusal against what it promises (its kind, its reason, what
//! it advises, and a text that names what was wrong), and then shows that what was there is there, and that the node
//! serves.
//!
//! | file | what is wrong |
//! |---|---|
//! | `requests` | keys, values, transactions, leases, revisions |
//! | `options` | settings of a node, addresses, ports |
//! | `folders` | a data folder of somebody else, open, or not writable |
//! | `damage` | a data folder that has changed while the node was down |
//! | `founders` | lists of members, and folders that were wiped |
//! | `peers` | whoever calls at the port |

mod damage;
mod folders;
mod founders;
mod options;
mod peers;
mod requests;

use crate::kit::HEARTBEAT;
use quorate::{Client, Error, ErrorKind, Node, NodeBuilder, Result, Revision};
use std::fmt::Debug;
use std::path::Path;
use std::sync::{Arc, Weak};
use tempfile::TempDir;
use tokio::sync::Mutex;

/// A refusal that is final: nothing has happened, and the same call will be refused again.
#[track_caller]
pub(crate) fn refused<T: Debug>(result: Result<T>, kind: ErrorKind, text: &str) -> Error {
    let error = checked(result, kind, text);
    assert!(!error.is_retryable(), "{error} will not go away");
    error
}

/// A refusal that may pass: nothing has happened, and the same call can succeed later.
#[track_caller]
fn refused_for_now<T: Debug>(result: Result<T>, kind: ErrorKind, text: &str) -> Error {
    let error = checked(result, kind, text);
    assert!(error.is_retryable(), "{error} may go away");
    error
}

#[track_caller]
fn checked<T: Debug>(result: Result<T>, kind: ErrorKind, text: &str) -> Error {
    let error = result.expect_err("it was to be refused");
    assert_eq!(error.kind(), kind, "{error}");
    assert!(!error.may_have_applied(), "nothing has happened: {error}");
    let said = error.to_string();
    assert!(said.contains(text), "{said:?} does not say {text:?}");
    error
}

/// A builder with the timing of tests.
pub(crate) fn builder(folder: &Path) -> NodeBuilder {
    Node::builder(folder).heartbeat(HEARTBEAT)
}

/// A group of one that tests share. The last of them ends it.
struct Solo {
    node: Node,
    _folder: TempDir,
}

impl Solo {
    async fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Solo>> = Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(solo) = shared.upgrade() {
            return solo;
        }
        let folder = tempfile::tempdir().unwrap();
        let node = builder(folder.path()).listen("127.0.0.1:0").solo().await.unwrap();
        let solo = Arc::new(Self { node, _folder: folder });
        *shared = Arc::downgrade(&solo);
        solo
    }

    fn client(&self) -> Client {
        self.node.client()
    }

    fn address(&self) -> String {
        self.node.local_address().unwrap().to_string()
    }
}

/// A write from before something went wrong.
struct Kept {
    key: String,
    revision: Revision,
}

impl Kept {
    /// Writes a key of this name.
    async fn write(client: &Client, name: &str) -> Self {
        let key = format!("kept/{name}");
        let revision = client.put(&key, "before").await.unwrap();
        Self { key, revision }
    }

    /// Shows that the write is still there, and that another succeeds.
    async fn check(&self, client: &Client) {
        self.is_there(client).await;
        let after = format!("{}/after", self.key);
        let revision = client.put(&after, "after").await.unwrap();
        assert!(revision > self.revision);
        let found = client.get(&after).await.unwrap().expect("it was written a moment ago");
        assert_eq!((&found.value[..], found.mod_revision), (&b"after"[..], revision));
    }

    async fn is_there(&self, client: &Client) {
        let found = client.get(&self.key).await.unwrap().expect("an acknowledged write is lost");
        assert_eq!((&found.value[..], found.mod_revision), (&b"before"[..], self.revision));
    }
}
