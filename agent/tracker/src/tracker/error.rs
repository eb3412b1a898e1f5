//! What can go wrong with a tracker.

use std::io;
use std::path::PathBuf;

use mt_blockdev::sysfs::DeviceNumber;

use crate::layout::DISKS_MAX;
use crate::preflight::{DIGEST_MODE, Refusal};

/// Why no tracker could be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The machine does not allow one.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The kernel refused the programs.
    #[error("the kernel (release {release}{lockdown}) refused {what} of the tracker: {source}")]
    Kernel {
        /// Which part.
        what: &'static str,
        /// What uname says.
        release: String,
        /// Empty, or that the kernel is locked down.
        lockdown: &'static str,
        /// What the kernel said.
        source: libbpf_rs::Error,
    },
    /// What is kept there has an agent.
    #[error("the tracker that is kept in {} is used by another agent", .0.display())]
    InUse(PathBuf),
    /// The folder for what outlives the agent holds something, or cannot hold it.
    #[error("cannot keep the tracker in {}: {source}", folder.display())]
    Keep {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        source: libbpf_rs::Error,
    },
    /// This machine's sysfs or procfs is not as expected.
    #[error("cannot read {what}: {source}")]
    Io {
        /// What was read.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl StartError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Refused(refusal) => refusal.hint(),
            Self::Kernel { lockdown, .. } if !lockdown.is_empty() => {
                format!(
                    "a kernel locked down to confidentiality may forbid it; boot with lockdown=integrity; {DIGEST_MODE}"
                )
            }
            Self::Kernel { .. } => format!(
                "look into the kernel's log and the limits of the container, if it is one; {DIGEST_MODE}"
            ),
            Self::InUse(_) => {
                "stop the other agent first: two would each take a part of the changes".to_owned()
            }
            Self::Keep { folder, .. } => format!(
                "keep it in a BPF file system (mount -t bpf bpf /sys/fs/bpf), and adopt or discard what {} holds",
                folder.display()
            ),
            Self::Io { .. } => format!("mount /proc and /sys; {DIGEST_MODE}"),
        }
    }
}

/// What went wrong with a tracker that runs.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// The disk cannot be tracked.
    #[error("disk {disk} cannot be tracked: {reason}; it is compared by digests instead")]
    Unfit {
        /// Kernel name.
        disk: String,
        /// Why not.
        reason: crate::stack::Unfit,
    },
    /// The disk is not tracked.
    #[error("disk {0} is not tracked")]
    Unknown(DeviceNumber),
    /// All places are taken.
    #[error("disk {0} cannot be tracked: {DISKS_MAX} disks are tracked already")]
    Full(DeviceNumber),
    /// The size of its chunks makes no sense, or it is empty.
    #[error(
        "disk {0} cannot be tracked in chunks of {1} bytes: a chunk is a power of two from 4096 bytes to 64 MiB"
    )]
    Chunk(DeviceNumber, u32),
    /// The kernel refused an operation on the maps.
    #[error("cannot {what}: {source}")]
    Map {
        /// What was attempted.
        what: &'static str,
        /// What the kernel said.
        source: libbpf_rs::Error,
    },
    /// Sysfs or procfs could not be read, or memory not be mapped.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The kernel did not list the notes of writes under way.
    #[error("cannot list the writes under way: the kernel gave no list")]
    Unlisted,
}

impl TrackError {
    pub(super) fn map(what: &'static str) -> impl FnOnce(libbpf_rs::Error) -> Self {
        move |source| Self::Map { what, source }
    }

    pub(super) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
