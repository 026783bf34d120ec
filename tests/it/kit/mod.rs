//! What the tests share: groups in this process, groups of processes, and waiting for a state.

pub(crate) mod damage;
pub(crate) mod group;
pub(crate) mod opener;
pub(crate) mod os;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod raw;
pub(crate) mod trio;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a test waits for a state before it gives up. Far beyond what is normal, for machines that are busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The heartbeat of groups in tests: failures are noticed fast, and the tests are short.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(50);

/// Loopback addresses that were free a moment ago.
///
/// On Linux they are of a host of their own: connections leave from 127.0.0.1, and while a member is down one of them
/// might be given its port.
pub(crate) fn addresses(count: usize) -> Vec<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let host = if cfg!(target_os = "linux") {
        let [_, _, process, _] = (std::process::id() << 8).to_be_bytes();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        format!("127.{}.{}.{}", process | 1, number >> 8 & 0xff, number & 0xff)
    } else {
        "127.0.0.1".to_owned()
    };
    let bind = |_| TcpListener::bind(format!("{host}:0")).unwrap();
    let ports: Vec<TcpListener> = (0..count).map(bind).collect();
    ports.iter().map(|port| port.local_addr().unwrap().to_string()).collect()
}

/// Asks again and again until there is an answer.
pub(crate) fn until<T>(what: &str, mut answer: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = answer() {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "still waiting: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Random choices that a seed decides.
pub(crate) struct Dice(u64);

impl Dice {
    /// Rolls from `QUORATE_SEED`, or from a seed of its own, and says which.
    pub(crate) fn new(test: &str) -> Self {
        let own = || u64::from(std::process::id()) << 20 | 0x9e37;
        let seed = std::env::var("QUORATE_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(own);
        println!("{test}: QUORATE_SEED={seed}");
        Self(seed | 1)
    }

    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).unwrap()
    }
}
