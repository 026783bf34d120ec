//! Frames over a byte stream, with a watchdog on either direction.
//!
//! ```text
//!            ┌───────────────── Connection ─────────────────┐
//! socket ──▶ │ incoming bytes ──▶ Frame::decode ──▶ poll_next│ ──▶ tarpc, or a peer's loop
//!        ◀── │ outgoing bytes ◀── Frame::encode ◀── push     │ ◀──
//!            └──────────────────────────────────────────────┘
//! ```
//!
//! A peer that stops in the middle of a frame, or no longer reads what is written to it, is cut off after
//! [`Patience::stall`]; one that says nothing between two frames after [`Patience::idle`]. Any byte is progress.
//!
//! Invariants
//! - [`Connection::poll_next`] never gives a frame twice or a part of one; after an error or the end it is not called
//!   again;
//! - what was [pushed](Connection::push) leaves in its order, and only [`Connection::poll_flush`] says that it has left;
//! - the buffers shrink back after a large frame.

use super::frame::{Accept, Frame, FrameType, Nonsense};
use bytes::{Buf, BytesMut};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};

/// How much is read at once.
const READ_BYTES: usize = 16 * 1024;
/// With so many bytes waiting to be written, senders wait too.
const HIGH_WATER_BYTES: usize = 256 * 1024;
/// A buffer that grew beyond this is given back when it is empty.
const KEEP_BYTES: usize = 1024 * 1024;

/// How long a silence may last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// In the middle of a frame, or while the peer does not read.
    pub(super) stall: Duration,
    /// Between two frames.
    pub(super) idle: Duration,
}

/// Why a connection is of no use any more.
#[derive(Debug)]
pub(super) enum Broken {
    /// The peer closed it, between two frames.
    Closed,
    /// The peer closed it in the middle of a frame.
    Truncated,
    /// The peer was silent in the middle of a frame, or did not read.
    Stalled,
    /// Nobody said anything for long.
    Idle,
    /// What came is no frame.
    Nonsense(Nonsense),
    /// It is a frame, but has no place here.
    Unexpected(FrameType),
    Io(io::Error),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the peer closed the connection"),
            Self::Truncated => f.write_str("the peer closed the connection within a frame"),
            Self::Stalled => f.write_str("the peer stopped within a frame"),
            Self::Idle => f.write_str("the connection was idle for too long"),
            Self::Nonsense(what) => write!(f, "the peer sent {what}"),
            Self::Unexpected(frame_type) => write!(f, "the peer sent an odd {frame_type:?}"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Broken {}

/// Counts how often something has come, a frame or a part of one.
#[derive(Clone, Debug, Default)]
pub(super) struct Came(Arc<AtomicU64>);

impl Came {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Frames in both directions.
#[derive(Debug)]
pub(super) struct Connection<S> {
    stream: S,
    accept: Accept,
    patience: Patience,
    incoming: BytesMut,
    outgoing: BytesMut,
    came: Came,
    reading: Watchdog,
    writing: Watchdog,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Must be made within a tokio runtime, whose clock it takes.
    pub(super) fn new(stream: S, accept: Accept, patience: Patience) -> Self {
        Self {
            stream,
            accept,
            patience,
            incoming: BytesMut::new(),
            outgoing: BytesMut::new(),
            came: Came::default(),
            reading: Watchdog::new(),
            writing: Watchdog::new(),
        }
    }

    /// Tells whether anything comes.
    pub(super) fn came(&self) -> Came {
        self.came.clone()
    }

    /// What to accept from now on: a hello is short, what follows may be long.
    pub(super) fn accept(&mut self, accept: Accept, patience: Patience) {
        self.accept = accept;
        self.patience = patience;
        self.reading.feed();
    }

    /// The next frame, or why there will be none.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, Broken>> {
        loop {
            if let Some(frame) =
                Frame::decode(&mut self.incoming, self.accept).map_err(Broken::Nonsense)?
            {
                return Poll::Ready(Ok(frame));
            }
            match self.poll_read(cx)? {
                Poll::Ready(0) if self.incoming.is_empty() => {
                    return Poll::Ready(Err(Broken::Closed));
                }
                Poll::Ready(0) => return Poll::Ready(Err(Broken::Truncated)),
                Poll::Ready(_) => {
                    self.came.0.fetch_add(1, Ordering::Relaxed);
                    self.reading.feed();
                }
                Poll::Pending => {
                    let idle = self.incoming.is_empty();
                    let limit = if idle { self.patience.idle } else { self.patience.stall };
                    ready!(self.reading.poll_starved(cx, limit));
                    return Poll::Ready(Err(if idle { Broken::Idle } else { Broken::Stalled }));
                }
            }
        }
    }

    /// The next frame, or why there will be none. The silence before this call is not held against the peer.
    ///
    /// # Cancel safety
    /// A dropped wait loses nothing.
    pub(super) async fn next(&mut self) -> Result<Frame, Broken> {
        self.reading.feed();
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Queues a frame. Call only after [`Self::poll_ready`], or with nothing queued.
    pub(super) fn push(&mut self, frame: &Frame) {
        if self.outgoing.is_empty() {
            self.writing.feed();
        }
        self.reading.feed();
        frame.encode(&mut self.outgoing);
    }

    /// Waits until there is room for another frame.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while self.outgoing.len() >= HIGH_WATER_BYTES {
            ready!(self.poll_write(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes all that is queued.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while !self.outgoing.is_empty() {
            ready!(self.poll_write(cx))?;
        }
        // What is encrypted waits in the stream, where nobody sees how much of it has left.
        let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(cx) else {
            ready!(self.writing.poll_starved(cx, self.patience.stall));
            return Poll::Ready(Err(Broken::Stalled));
        };
        flushed.map_err(Broken::Io)?;
        Poll::Ready(Ok(()))
    }

    /// Queues a frame and waits until all has been written.
    ///
    /// # Cancel safety
    /// None: a dropped wait leaves an unknown part of the frame unsent.
    pub(super) async fn send(&mut self, frame: &Frame) -> Result<(), Broken> {
        self.push(frame);
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Says that nothing more will be sent.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx).map_err(Broken::Io)
    }

    /// How many bytes came.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Broken>> {
        if self.incoming.is_empty() && self.incoming.capacity() > KEEP_BYTES {
            self.incoming = BytesMut::new();
        }
        // A long frame doubles the buffer as its bytes come, whatever length it claims.
        self.incoming.reserve(READ_BYTES);
        let read = pin!(self.stream.read_buf(&mut self.incoming));
        match ready!(read.poll(cx)) {
            // Over TLS, an end without the word that there is one. Frames say by themselves whether they are whole.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(0)),
            read => Poll::Ready(read.map_err(Broken::Io)),
        }
    }

    /// Writes some of what is queued.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(cx, &self.outgoing) else {
            ready!(self.writing.poll_starved(cx, self.patience.stall));
            return Poll::Ready(Err(Broken::Stalled));
        };
        match written.map_err(Broken::Io)? {
            0 => return Poll::Ready(Err(Broken::Io(io::ErrorKind::WriteZero.into()))),
            written => self.outgoing.advance(written),
        }
        self.writing.feed();
        if self.outgoing.is_empty() && self.outgoing.capacity() > KEEP_BYTES {
            self.outgoing = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// Notices that nothing has happened for a time. Feeding it is cheap: the timer only looks at the clock when it rings.
#[derive(Debug)]
struct Watchdog {
    fed: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Watchdog {
    fn new() -> Self {
        let now = Instant::now();
        Self { fed: now, timer: Box::pin(sleep_until(now)) }
    }

    fn feed(&mut self) {
        self.fed = Instant::now();
    }

    /// Ready when nothing has happened for `limit`.
    fn poll_starved(&mut self, cx: &mut Context<'_>, limit: Duration) -> Poll<()> {
        let due = self.fed + limit;
        loop {
            if self.timer.deadline() > due || self.timer.is_elapsed() {
                self.timer.as_mut().reset(due);
            }
            ready!(self.timer.as_mut().poll(cx));
            if due <= Instant::now() {
                return Poll::Ready(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    const ACCEPT: Accept = Accept { payload_max: 1 << 20, crc_required: true };
    const PATIENCE: Patience =
        Patience { stall: Duration::from_secs(10), idle: Duration::from_secs(60) };

    fn pair(capacity: usize) -> (Connection<DuplexStream>, DuplexStream) {
        let (near, far) = duplex(capacity);
        (Connection::new(near, ACCEPT, PATIENCE), far)
    }

    fn frame(len: usize) -> Frame {
        let payload = Bytes::from(vec![7; len]);
        Frame { frame_type: FrameType::Request, method: 1, id: 2, payload }
    }

    fn encoded(len: usize) -> BytesMut {
        let mut out = BytesMut::new();
        frame(len).encode(&mut out);
        out
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_stops_within_a_frame_is_cut_off() {
        let (mut connection, mut far) = pair(1024);
        far.write_all(&encoded(100)[..50]).await.unwrap();
        let start = Instant::now();
        assert!(matches!(connection.next().await, Err(Broken::Stalled)));
        assert_eq!(start.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_peer_is_not_cut_off_while_bytes_come() {
        let (mut connection, mut far) = pair(1024);
        let slow = async {
            for byte in &encoded(20)[..] {
                tokio::time::sleep(Duration::from_secs(9)).await;
                far.write_u8(*byte).await.unwrap();
            }
        };
        let (received, ()) = futures::join!(connection.next(), slow);
        assert_eq!(received.unwrap(), frame(20));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_between_frames_ends_later() {
        let (mut connection, _far) = pair(1024);
        let start = Instant::now();
        assert!(matches!(connection.next().await, Err(Broken::Idle)));
        assert_eq!(start.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_cut_off() {
        let (mut connection, _far) = pair(1024);
        let start = Instant::now();
        assert!(matches!(connection.send(&frame(4096)).await, Err(Broken::Stalled)));
        assert_eq!(start.elapsed().as_secs(), 10);
    }

    #[tokio::test]
    async fn frames_of_any_size_pass_and_the_end_is_told_from_a_cut() {
        let (mut connection, far) = pair(1000);
        let mut other = Connection::new(far, ACCEPT, PATIENCE);
        for len in [0, 1, 70_000, 1 << 20, 3] {
            let sent = frame(len);
            let (sending, received) = futures::join!(connection.send(&sent), other.next());
            sending.unwrap();
            assert_eq!(received.unwrap(), frame(len));
        }
        drop(connection);
        assert!(matches!(other.next().await, Err(Broken::Closed)));

        let (mut connection, mut far) = pair(1000);
        far.write_all(&encoded(100)[..50]).await.unwrap();
        drop(far);
        assert!(matches!(connection.next().await, Err(Broken::Truncated)));
    }
}
