//! Named places in the code at which a test may have something happen, and known bugs that a test may put back.
//!
//! Both are nothing at all without the feature `sim`: the functions are empty, and the compiler removes them. With it
//! they ask whoever has installed a hook (`src/sim.rs`).
//!
//! - a [`Point`] is passed; the hook may crash the member there, or have it stand still, and counts. Nothing about the
//!   code depends on it: a point is never passed with a lock held that somebody else waits for;
//! - a [`Bug`] is one that we have had, or have seen in others. Each proves that the checks of the harness would find it:
//!   what no check finds is a hole in the harness.

/// An enumeration that knows all its names.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($variant:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(not(feature = "sim"), allow(unreachable_pub))]
        #[cfg_attr(feature = "sim", expect(missing_docs, reason = "the names say where, or what"))]
        pub enum $name { $($variant,)* }

        #[cfg(feature = "sim")]
        impl $name {
            /// Every one of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The one that is called so.
            #[must_use]
            pub fn named(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|it| format!("{it:?}") == name)
            }
        }
    };
}

named! {
    /// A place in the code, by its area.
    Point {
        // The log: what is handed in, and its thread.
        LogAppend, LogAppended, LogVote, LogVoteSaved, LogTruncate, LogTruncated, LogPurge, LogPurged,
        LogCommitted, LogRead, LogBatch, LogWritesVote, LogWritesEntries, LogWritesTruncation,
        LogWritesPurge, LogWritesCommitted, LogWritesRecord, LogBeforeSync, LogSynced, LogSettled, LogAnswered,
        SegmentDrafted, SegmentRenamed, SegmentRecycled,
        // Applying: openraft's side, and the state's thread.
        ApplyCalled, ApplyHandedIn, StateBegins, StateApplied, StateMoment, StateShown, StateAnswered,
        CoreEntry, CoreMembership, CoreChange, CoreLease, CoreExpire,
        // Flushing what was applied.
        FlushFrozen, FlushBegun, FlushWritten, FlushCommitted, FlushShown,
        // Snapshots, and small files.
        SnapshotAsked, SnapshotBuild, SnapshotSynced, SnapshotSend, SnapshotSendsChunk, SnapshotSent,
        SnapshotBegin, SnapshotChunk, SnapshotEnd, SnapshotResumes, SnapshotResumed, SnapshotValid, SnapshotInstall,
        SnapshotLogFlushed, SnapshotPublished, SnapshotSwapped, SnapshotInstalled,
        SeedBegin, SeedChunk, SeedFits, SeedTrusted, FileDrafted, FileSynced, FileRenamed,
        EnvDrafted, EnvRenamed, FolderSynced,
        // A smaller copy of the tables takes their place.
        ShrinkBegins, ShrinkCopies, ShrinkCopied, ShrinkCatchesUp, ShrinkAsks, ShrinkSwitches, ShrinkSynced,
        ShrinkAnnounced, ShrinkPublished, ShrinkShown, ShrinkRemoved,
        // Compaction.
        CompactApplied, CompactStep, CompactStepWritten, CompactStepDone,
        // Leases.
        LeaseDue, LeaseExpired, LeaseRenew, LeaseConfirmed, LeaseRenewed, ReignBegins, ReignBegun,
        // Watches.
        WatchWake, WatchWoken, WatchFollow, WatchHistory, WatchAnswer,
        // Reads.
        ReadRound, ReadConfirmed, ReadApplied, ReadAnswer, ViewBegins,
        // The network, and what is passed on.
        PeerCall, PeerAnswered, PeerAsked, PeerAnswers, ForwardCall, ForwardAnswered, ConvoyLeaves, Proposed,
        ProposalApplied,
        // The start.
        StartLocked, StartLogOpen, StartStateOpen, StartFounded, StartServes,
    }
}

named! {
    /// A bug that a test may put back.
    Bug {
        // Consensus and durability.
        LeaderRestore, AcknowledgeBeforeSync, StateAheadOfLog, PurgePastDurableState, VoteNotSynced,
        WipedFounderVotes, TailNotRewritten, FoundNamesNotSynced,
        // What is applied and not flushed.
        OverlayDroppedEarly, ViewAfterTransaction, ShownBeforeVisible, RecentShowsOlder,
        // A smaller copy of it.
        ShrinkWithoutTail, ShrinkNotSynced,
        // Reads.
        ReadWithoutIndex, LeaseReadWithoutConditions,
        // Leases, and what hangs on them.
        ExpireOutlivesTerm, NoGraceForNewReign, LockWithoutRecheck,
        // History and watches.
        WatchSkipsWhenItResumes, LateFollowIsAnswered, CompactionOneTooFar,
        // Snapshots.
        SnapshotWithOtherMeta,
        // A state that is not trusted.
        ReportsAnotherHash, UntrustedIsOpened, TrustedTooEarly,
        // Answers.
        RefusedMayHaveHappened, DuplicateCarriedOut, SeenIsForgotten,
    }
}

/// Passes a point.
#[cfg(feature = "sim")]
pub(crate) fn point(point: Point) {
    if let Some(hook) = crate::sim::hook() {
        hook.point(point);
    }
}

/// Passes a point: nothing.
#[cfg(not(feature = "sim"))]
#[inline(always)]
pub(crate) fn point(_: Point) {}

/// Whether a bug was put back.
#[cfg(feature = "sim")]
pub(crate) fn bug(bug: Bug) -> bool {
    crate::sim::hook().is_some_and(|hook| hook.bug(bug))
}

/// Whether a bug was put back: never.
#[cfg(not(feature = "sim"))]
#[inline(always)]
pub(crate) fn bug(_: Bug) -> bool {
    false
}
