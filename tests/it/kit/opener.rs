//! Opens a folder in a process of its own, so that what kills that one kills nobody else.
//!
//! ```text
//! test ── spawns ──▶ this binary, to run [`opener_process`] only: open, read everything, write, shut down
//!      ◀── @ lines ──  what it met, one line each, and the status with which it ended
//! ```

use super::HEARTBEAT;
use futures::TryStreamExt;
use quorate::{Client, Error, KeyRange, Node};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Somebody without rights.
const NOBODY: u32 = 65534;

/// What became of a folder that was opened in a process of its own.
#[derive(Debug)]
pub(crate) struct Opened {
    /// What it said, without the mark.
    pub(crate) lines: Vec<String>,
    /// How it ended, if not in good order.
    pub(crate) crash: Option<String>,
}

impl Opened {
    /// What follows the first line that begins with `word`.
    pub(crate) fn said(&self, word: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| line.strip_prefix(word)).map(str::trim)
    }
}

/// Opens `folder` as a group of one in a process of its own, which reads all keys under `k/`, and expects
/// [`value_of`] each of them.
pub(crate) fn open_elsewhere(folder: &Path) -> Opened {
    open_as(folder, None)
}

/// The same, as a user who may not write anywhere. Only root can become one; anybody else has to be content with
/// being who they are.
pub(crate) fn open_without_rights(folder: &Path) -> Opened {
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    open_as(folder, is_root.then_some(NOBODY))
}

fn open_as(folder: &Path, user: Option<u32>) -> Opened {
    // By this name whoever the child becomes can start it, also where the path to the binary is not open to them.
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["--exact", "kit::opener::opener_process", "--nocapture", "--quiet"])
        .env("QUORATE_TEST_OPEN", folder)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<String> =
        text.lines().filter_map(|line| line.strip_prefix('@')).map(str::to_owned).collect();
    let crash = (!output.status.success()).then(|| {
        let noise = String::from_utf8_lossy(&output.stderr);
        let noise = noise.lines().chain(text.lines()).find(|line| {
            line.contains("ssert") || line.contains("panicked") || line.contains("error")
        });
        format!("{}: {}", output.status, noise.unwrap_or("no word"))
    });
    Opened { lines, crash }
}

/// The value that a key of a test folder has, so that any reader can tell a wrong one.
pub(crate) fn value_of(key: &[u8]) -> Vec<u8> {
    let mut value = b"value of ".to_vec();
    value.extend_from_slice(key);
    // Now and then one that does not fit beside its key.
    if key.ends_with(b"7") {
        value.extend(std::iter::repeat_n(b'.', 3000));
    }
    value
}

/// The keys of a test folder.
pub(crate) fn keys() -> impl Iterator<Item = String> {
    (0..40).map(|number| format!("k/{number:02}"))
}

/// Not a test: what the process runs. Without its environment it does nothing.
#[test]
fn opener_process() {
    let Ok(folder) = std::env::var("QUORATE_TEST_OPEN") else { return };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(open_and_read(PathBuf::from(folder)));
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("@{line}\n").as_bytes()).and_then(|()| out.flush()).unwrap();
}

fn tell(what: &str, error: &Error) {
    say(&format!("{what} {:?} {error}", error.kind()));
}

async fn open_and_read(folder: PathBuf) {
    let builder = Node::builder(folder).heartbeat(HEARTBEAT);
    let started = tokio::time::timeout(Duration::from_secs(5), builder.solo()).await;
    let node = match started {
        Ok(Ok(node)) => node,
        Ok(Err(error)) => return tell("refused", &error),
        Err(_) => return say("stuck at the start"),
    };
    say("started");
    let failed = match read_and_write(&node.client()).await {
        Ok(()) => None,
        Err(error) => {
            tell("answered", &error);
            Some(tokio::time::timeout(Duration::from_secs(5), node.failed()).await)
        }
    };
    match failed {
        Some(Ok(cause)) => tell("failed", &cause),
        Some(Err(_)) => say("alive all the same"),
        None => say("served"),
    }
    match node.shutdown().await {
        Ok(()) => say("down"),
        Err(error) => tell("down", &error),
    }
}

async fn read_and_write(client: &Client) -> quorate::Result<()> {
    let wait = Duration::from_secs(5);
    let mut wrong = Vec::new();
    for key in keys() {
        let found = client.get(&key).timeout(wait).await?;
        if found.is_none_or(|found| found.value != value_of(key.as_bytes())) {
            wrong.push(key);
        }
    }
    let all = client.range(KeyRange::prefix("k/")).timeout(wait).stream();
    let all: Vec<_> = all.try_collect().await?;
    if all.len() != keys().count() || all.iter().any(|kv| kv.value != value_of(&kv.key)) {
        wrong.push("the range".to_owned());
    }
    if !wrong.is_empty() {
        say(&format!("wrong {wrong:?}"));
    }
    client.put("later", "written").timeout(wait).await?;
    Ok(())
}
