//! What happens to this process at the points of the code: a member's share of a test of them.
//!
//! Each is armed by a word of the environment, `POINT:PASSES:HOW`, and happens once, after that many passes. Threads go on
//! as in production: only the one that passes stands still, for so many milliseconds, or is the last to move.
//!
//! A group may also have its members make their files smaller early, which otherwise takes a month of writes.
//!
//! `BUGS=ReadWithoutIndex` puts bugs back, as in the simulation, to see that the checks find them. Of those that need luck
//! with the timing, or a loss of power, only the simulation finds all.

use super::member::say;
use crate::kit::os::{Signal, signal};
use quorate::sim::{Bug, Hook, Point, install_hook};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How a member ends at a point. Everything else is how long it stands still.
pub(crate) const KILL: &str = "kill";

struct Armed {
    point: Point,
    passes: u32,
    how: String,
}

struct Points {
    armed: Mutex<Vec<Armed>>,
    bugs: Vec<Bug>,
    shrinks_early: bool,
}

/// Arms the points of this process.
pub(super) fn arm(words: &str, shrinks_early: bool) {
    let armed = words.split(',').filter(|word| !word.is_empty()).map(|word| {
        let parts: Vec<&str> = word.split(':').collect();
        let point = Point::named(parts[0]).expect("a point of that name");
        Armed { point, passes: parts[1].parse().unwrap(), how: parts[2].to_owned() }
    });
    let bugs = std::env::var("BUGS").unwrap_or_default();
    let bugs = bugs.split(',').filter(|name| !name.is_empty());
    let bugs = bugs.map(|name| Bug::named(name).expect("a bug of that name")).collect();
    install_hook(Points { armed: Mutex::new(armed.collect()), bugs, shrinks_early });
}

impl Points {
    /// What happens now.
    fn pass(&self, point: Point) -> Option<String> {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        let index = armed.iter().position(|armed| armed.point == point)?;
        if armed[index].passes > 0 {
            armed[index].passes -= 1;
            return None;
        }
        Some(armed.swap_remove(index).how)
    }
}

impl Hook for Points {
    fn point(&self, point: Point) {
        let Some(how) = self.pass(point) else { return };
        say(&format!("fired {point:?} {how}"));
        if how == KILL {
            signal(std::process::id(), Signal::Kill);
        }
        std::thread::sleep(Duration::from_millis(how.parse().unwrap()));
    }

    fn bug(&self, bug: Bug) -> bool {
        self.bugs.contains(&bug)
    }

    fn shrinks_early(&self) -> bool {
        self.shrinks_early
    }
}
