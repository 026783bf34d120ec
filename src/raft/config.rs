//! The timing of a group, and openraft's settings that follow from it.
//!
//! Timing is a setting of the *group*: all members must run the same, and compare it when they connect.

use crate::error::{Error, Reason};
use crate::fault::{Bug, bug};
use openraft::{Config, SnapshotPolicy, StepDownPolicy};
use std::time::Duration;

/// How fast the group notices that its leader is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) heartbeat: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        // A heartbeat is answered after the follower has flushed what it accepted, so it has to leave a slow disk time.
        Self { heartbeat: Duration::from_millis(200) }
    }
}

impl Timing {
    /// The shortest and the longest heartbeat that make sense.
    const HEARTBEAT_MIN: Duration = Duration::from_millis(20);
    const HEARTBEAT_MAX: Duration = Duration::from_secs(10);

    pub(crate) fn check(self) -> Result<Self, Error> {
        if (Self::HEARTBEAT_MIN..=Self::HEARTBEAT_MAX).contains(&self.heartbeat) {
            return Ok(self);
        }
        let detail = format!(
            "a heartbeat every {:?} is outside of {:?} to {:?}",
            self.heartbeat,
            Self::HEARTBEAT_MIN,
            Self::HEARTBEAT_MAX
        );
        Err(Reason::BadOption { detail }.into())
    }

    /// A follower campaigns when it has heard nothing for [`Self::election_max`], for so long it holds to its leader, and
    /// then for a time between this and that.
    pub(crate) fn election_min(self) -> Duration {
        self.heartbeat * 5
    }

    /// See [`Self::election_min`].
    pub(crate) fn election_max(self) -> Duration {
        self.heartbeat * 10
    }

    /// The shortest time to live of a lease: it has to outlast a change of leader.
    pub(crate) fn ttl_floor(self) -> Duration {
        self.election_max() * 3 / 2
    }
}

/// How long the past can be read and watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum History {
    /// For so long at least, and a tenth longer at most while the leader stays the same.
    For(Duration),
    /// So many revisions at least, and a tenth more at most.
    Revisions(u64),
    /// Until somebody compacts it.
    All,
}

impl Default for History {
    fn default() -> Self {
        Self::For(Duration::from_secs(3600))
    }
}

impl History {
    const TIME_MIN: Duration = Duration::from_secs(1);

    pub(crate) fn check(self) -> Result<Self, Error> {
        let detail = match self {
            Self::For(time) if time < Self::TIME_MIN => "history is kept for one second at least",
            Self::Revisions(0) => "history has one revision at least",
            Self::For(_) | Self::Revisions(_) | Self::All => return Ok(self),
        };
        Err(Reason::BadOption { detail: detail.to_owned() }.into())
    }
}

/// How much room the tables may take, in bytes in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota(pub(crate) u64);

impl Default for Quota {
    fn default() -> Self {
        Self(8 << 30)
    }
}

impl Quota {
    const MIN: u64 = 1 << 20;

    /// Left to what is under way, and to what always goes through.
    const SPARE: u64 = 256 << 20;

    /// The quota of a state that can take `map_bytes`: three quarters of that, and half of a small one.
    pub(crate) fn within(self, map_bytes: u64) -> Result<Self, Error> {
        if self.0 < Self::MIN {
            let detail = format!("a quota has {} bytes at least", Self::MIN);
            return Err(Reason::BadOption { detail }.into());
        }
        let spare = (map_bytes / 4).max(Self::SPARE).min(map_bytes / 2);
        Ok(Self(self.0.min(map_bytes - spare)))
    }

    /// Whether the alarm has to be on. Between two marks it stays as it is, so that it does not come and go.
    pub(crate) fn is_short(self, used: u64, is_short: bool) -> bool {
        if is_short { used >= self.0 / 10 * 9 } else { used >= self.0 }
    }
}

/// How much log is kept, and how often it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retention {
    /// Entries after which the log is cut behind a snapshot of the state.
    pub(crate) snapshot_every: u64,
    /// Entries that stay behind the cut, so that a short outage is made good from the log.
    pub(crate) kept: u64,
    /// Bytes on the disk after which the log is cut whatever the number of its entries.
    pub(crate) bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        // All of it is read when a member starts.
        Self { snapshot_every: 20_000, kept: 10_000, bytes: 1 << 30 }
    }
}

impl Retention {
    /// How large a file of the log gets: about as much as lies between two cuts, for only whole files are given back.
    pub(crate) fn segment_bytes(self) -> u64 {
        self.snapshot_every.saturating_mul(1024).min(16 << 20)
    }
}

/// openraft's settings.
pub(crate) fn config(timing: Timing, retention: Retention) -> Config {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: "quorate".to_owned(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election_min()),
        election_timeout_max: millis(timing.election_max()),
        // Without a real pre-vote a member that was cut off comes back with a higher term and unseats a good leader.
        enable_pre_vote: Some(true),
        // Must stay off. A restarted leader would resume its term and issue the ids of entries that had not reached
        // its disk again, for other entries: followers compare ids only, so the group would silently disagree.
        enable_leader_restore: Some(bug(Bug::LeaderRestore)),
        // A leader that reaches no quorum, but one member that does, would block elections for ever.
        quorum_loss_probe_interval: Some(2 * millis(timing.election_max())),
        // Bytes are bounded where entries are read for replication.
        max_payload_entries: 2048,
        max_append_entries: Some(4096),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(retention.snapshot_every),
        max_in_snapshot_log_to_keep: retention.kept,
        purge_batch_size: 1024.min(retention.kept.max(1)),
        replication_lag_threshold: retention.snapshot_every.saturating_add(retention.kept),
        install_snapshot_timeout: 30_000,
        api_channel_size: Some(8192),
        // What a member that was away lacks is offered to it again after two heartbeats at the latest.
        backoff: format!("50ms 100ms ...{}ms", millis(timing.heartbeat * 2).max(200)),
        removed_leader_step_down: StepDownPolicy::After(500),
        // A member whose log went backwards has lost data, and must not be believed.
        allow_log_reversion: None,
        ..Config::default()
    };
    config.validate().expect("checked timing and constants make a valid configuration")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_timing_turns_leader_restore_on() {
        for millis in [20, 50, 200, 10_000] {
            let timing = Timing { heartbeat: Duration::from_millis(millis) }.check().unwrap();
            let config = config(timing, Retention::default());
            assert_eq!(config.enable_leader_restore, Some(false));
            assert_eq!(config.enable_pre_vote, Some(true));
            assert!(config.quorum_loss_probe_interval >= Some(2 * config.election_timeout_max));
        }
    }

    #[test]
    fn the_alarm_of_a_quota_goes_when_a_tenth_is_free() {
        let quota = Quota(100 << 20).within(1 << 30).unwrap();
        let mut is_short = false;
        for (used, expected) in
            [(99, false), (100, true), (95, true), (90, true), (89, false), (95, false)]
        {
            is_short = quota.is_short(used << 20, is_short);
            assert_eq!(is_short, expected, "{used}");
        }
        assert_eq!(Quota::default().within(4 << 30).unwrap(), Quota(3 << 30));
        assert_eq!(Quota::default().within(512 << 20).unwrap(), Quota(256 << 20));
        assert_eq!(Quota::default().within(16 << 20).unwrap(), Quota(8 << 20));
        assert!(Quota(4096).within(1 << 30).is_err());
    }

    #[test]
    fn a_heartbeat_that_makes_no_sense_is_refused() {
        for heartbeat in [Duration::ZERO, Duration::from_millis(1), Duration::from_secs(3600)] {
            assert!(Timing { heartbeat }.check().is_err());
        }
    }
}
