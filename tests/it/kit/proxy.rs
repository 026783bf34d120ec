//! What lies between a client and a member: a balancer, a slow line, a host that hangs.

use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What becomes of bytes on their way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Line {
    /// They arrive.
    Good,
    /// They arrive so much later.
    Slow(Duration),
    /// They do not, and nobody is told.
    Dead,
}

/// Takes connections to a member.
pub(crate) struct Proxy {
    pub(crate) address: String,
    line: watch::Sender<Line>,
    cuts: watch::Sender<u64>,
    forgotten: watch::Sender<u64>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn to(member: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (line, cuts) = (watch::Sender::new(Line::Good), watch::Sender::new(0));
        let forgotten = watch::Sender::new(0);
        let way = (line.subscribe(), forgotten.subscribe());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, member.to_owned(), way, cuts.subscribe()));
        Self { address, line, cuts, forgotten, _tasks: tasks }
    }

    pub(crate) fn set(&self, line: Line) {
        self.line.send_replace(line);
    }

    /// Closes the connections that are open.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Passes nothing on of the connections that are open, and tells nobody. New ones are as good as before.
    pub(crate) fn forget(&self) {
        self.forgotten.send_modify(|forgotten| *forgotten += 1);
    }
}

async fn accept(
    listener: TcpListener,
    member: String,
    way: (watch::Receiver<Line>, watch::Receiver<u64>),
    cuts: watch::Receiver<u64>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (near, _) = listener.accept().await.unwrap();
        let (member, mut way, mut cuts) = (member.clone(), way.clone(), cuts.clone());
        cuts.mark_unchanged();
        way.1.mark_unchanged();
        connections.spawn(async move {
            let Ok(far) = TcpStream::connect(member).await else { return };
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            let there = Box::pin(pump(near_in, far_out, way.clone()));
            let back = Box::pin(pump(far_in, near_out, way));
            let ended = futures::future::select(there, back);
            futures::future::select(ended, Box::pin(cuts.changed())).await;
        });
    }
}

/// Passes bytes on until either side has closed.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (mut line, forgotten): (watch::Receiver<Line>, watch::Receiver<u64>),
) {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        let now = *line.borrow_and_update();
        match now {
            Line::Good => {}
            Line::Slow(late) => tokio::time::sleep(late).await,
            Line::Dead => drop(line.wait_for(|line| *line != Line::Dead).await),
        }
        if forgotten.has_changed().unwrap_or(true) {
            std::future::pending::<()>().await;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
