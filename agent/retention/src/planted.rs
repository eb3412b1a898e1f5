//! Bugs that are planted on purpose, to see whether the tests notice.
//!
//! With the feature `planted-bugs` a test chooses one for its thread; without it asking whether one is live is the constant `false` and
//! nothing of this is in the program.

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bug {
    /// An epoch is acknowledged before the log is flushed.
    AckBeforeSync,
    /// Before-images are written, and not flushed before their blocks are overwritten.
    BaseNotSynced,
    /// No before-images are taken at all.
    NoBase,
    /// A before-image is read after its block was overwritten.
    BaseAfterData,
    /// The folder is not flushed after a segment was created.
    NoDirSync,
    /// The digest of data is not checked when it is read.
    DigestNotRead,
    /// The extents of another disk are taken for those of the one asked about.
    OtherDisk,
    /// A segment is dropped though a point needs it.
    PruneNeeded,
    /// An epoch without its commit counts.
    HalfEpochCounts,
    /// The disks are not flushed before an epoch is noted as applied.
    AppliedBeforeFlush,
    /// A failed flush is tried again as if it could succeed.
    SyncRetried,
    /// A roll copies only what changed in the epoch right after its point.
    RollForgets,
    /// A segment is removed before the record that says so is durable.
    RemoveBeforeRecord,
    /// A newest version is dropped while an older one is still there to be found.
    NewestDropped,
    /// Of two writes to one block in an epoch the first counts.
    FirstWriteWins,
    /// A raised generation is written to the superblocks, and not flushed.
    GenerationNotSynced,
    /// That an epoch was given up is forgotten while its images are still in the log.
    GivenUpForgotten,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::AckBeforeSync,
        Self::BaseNotSynced,
        Self::NoBase,
        Self::BaseAfterData,
        Self::NoDirSync,
        Self::DigestNotRead,
        Self::OtherDisk,
        Self::PruneNeeded,
        Self::HalfEpochCounts,
        Self::AppliedBeforeFlush,
        Self::SyncRetried,
        Self::RollForgets,
        Self::RemoveBeforeRecord,
        Self::NewestDropped,
        Self::FirstWriteWins,
        Self::GenerationNotSynced,
        Self::GivenUpForgotten,
    ];

    /// Whether this bug is live on this thread.
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn live(self) -> bool {
        chosen::LIVE.get() == Some(self)
    }

    /// Whether this bug is live: never, in a build without planted bugs.
    #[cfg(not(feature = "planted-bugs"))]
    #[expect(clippy::unused_self, reason = "the same call in both builds")]
    pub(crate) const fn live(self) -> bool {
        false
    }

    /// Makes a bug live on this thread, or none.
    #[cfg(feature = "planted-bugs")]
    pub fn plant(bug: Option<Self>) {
        chosen::LIVE.set(bug);
    }
}

#[cfg(feature = "planted-bugs")]
mod chosen {
    use std::cell::Cell;

    thread_local! {
        pub(super) static LIVE: Cell<Option<super::Bug>> = const { Cell::new(None) };
    }
}
