//! The program's own words: pairs, seedings and jobs.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use mt_blockdev::scsi::ScsiId;
use mt_wire::limits::NAME_BYTES_MAX;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Number of a pair in the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, ToSchema)]
pub struct PairId(pub i64);

/// Number of a job in the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct JobId(pub i64);

/// Name of a pair: a protected machine and one of its disks, written `MACHINE/DISK`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, ToSchema)]
pub struct PairName {
    /// Name of the protected machine.
    pub machine: String,
    /// Name of the protected disk.
    pub disk: String,
}

/// Why something cannot be the name of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No slash.
    #[error("it has no \"/\" between machine and disk")]
    NoSlash,
    /// A part is empty.
    #[error("the {0} name is empty")]
    Empty(&'static str),
    /// A part is too long.
    #[error("the {0} name is longer than {NAME_BYTES_MAX} bytes")]
    TooLong(&'static str),
    /// A part has a character that could be mistaken for something else in a log, a path or a table.
    #[error("the {0} name may only hold visible ASCII characters other than \"/\"")]
    Character(&'static str),
}

impl PairName {
    /// A name from its parts.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn new(machine: &str, disk: &str) -> Result<Self, NameError> {
        for (part, text) in [("machine", machine), ("disk", disk)] {
            if text.is_empty() {
                return Err(NameError::Empty(part));
            }
            if text.len() > NAME_BYTES_MAX {
                return Err(NameError::TooLong(part));
            }
            if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/') {
                return Err(NameError::Character(part));
            }
        }
        Ok(Self {
            machine: machine.to_owned(),
            disk: disk.to_owned(),
        })
    }
}

impl FromStr for PairName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (machine, disk) = text.split_once('/').ok_or(NameError::NoSlash)?;
        Self::new(machine, disk)
    }
}

impl fmt::Display for PairName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.machine, self.disk)
    }
}

/// A protected disk and the target disk it is written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Pair {
    /// Number in the state.
    pub id: PairId,
    /// Name.
    pub name: PairName,
    /// The target disk.
    #[schema(value_type = String)]
    pub scsi_id: ScsiId,
    /// Size of the target disk at pairing, bytes.
    pub size: u64,
    /// Size of the protected disk, bytes; fixed when a source first opens the pair.
    pub protected_size: Option<u64>,
    /// Logical block size of both disks, bytes.
    pub logical_block_size: u32,
    /// Fencing number: raised before a failover, so that late writes are refused.
    pub generation: u64,
    /// Whether we have begun to write the target disk, so that its content is ours.
    pub adopted: bool,
    /// Whether the operator named the disk's ID to have its content overwritten.
    pub overwrite: bool,
    /// When the pair was made.
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
}

/// A pair that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPair {
    /// Name.
    pub name: PairName,
    /// The target disk.
    pub scsi_id: ScsiId,
    /// Size of the target disk, bytes.
    pub size: u64,
    /// Logical block size of the target disk, bytes.
    pub logical_block_size: u32,
    /// Whether its content may be overwritten.
    pub overwrite: bool,
}

/// How far a seeding is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedingMark {
    /// Name of the seeding, shared with the source.
    pub seeding_id: [u8; 16],
    /// Everything before this offset is durable, bytes.
    pub durable: u64,
    /// Size of the protected disk, bytes.
    pub size: u64,
    /// Whether the source was told that everything is durable.
    pub complete: bool,
    /// The attachment of the disk that it was written to (`BlockDevice::instance`). On another one nothing that was
    /// durable can be relied on.
    pub instance: String,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Making a target disk equal to a protected disk.
    Seeding,
    /// Comparing the two.
    Verify,
    /// Bringing a machine to a new consistent instant.
    Epoch,
    /// Bringing a machine's disks to a recovery point.
    Roll,
    /// Making a machine's disks ready to be taken over at home.
    Failover,
    /// Going back from a failover to replication.
    Cancel,
    /// Putting disks back as they were before a failover that was committed.
    Undo,
    /// Beginning anew after a failover: a new generation, without the points of before.
    Reprotect,
}

impl JobKind {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Seeding => "seeding",
            Self::Verify => "verification",
            Self::Epoch => "epoch",
            Self::Roll => "roll",
            Self::Failover => "failover",
            Self::Cancel => "cancel",
            Self::Undo => "undo",
            Self::Reprotect => "reprotect",
        }
    }
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Under way.
    Running,
    /// Came to its end.
    Done,
    /// A verification that came to its end and found differences.
    Differs,
    /// Ended by an error.
    Failed,
    /// Cut off: the source went away or the agent was stopped. It can go on.
    Interrupted,
}

/// Something that takes time, and how it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Number in the state.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// The pair, `MACHINE/DISK`; the machine, where the job is about all of its disks.
    pub pair: String,
    /// Address of the source; "local" for a job of the target's own.
    pub peer: String,
    /// Where it is.
    pub state: JobState,
    /// Size of what it goes over, bytes.
    pub bytes_total: u64,
    /// How much of that is settled, bytes.
    pub bytes_done: u64,
    /// How much of that is durable on the target disk, bytes.
    pub bytes_durable: u64,
    /// Content written because it differed, bytes.
    pub bytes_written: u64,
    /// Made zero, bytes.
    pub bytes_zeroed: u64,
    /// What a verification found to differ, bytes.
    #[serde(default)]
    pub bytes_different: u64,
    /// On the wire in both directions, bytes.
    pub bytes_on_wire: u64,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended: Option<Timestamp>,
    /// Why it failed.
    pub error: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// How a command that waits for it exits, when it failed.
    #[serde(default)]
    pub exit_code: Option<u8>,
}

impl Job {
    /// A job of the target's own that begins now; its number is given when it is stored.
    pub fn new(kind: JobKind, subject: &str, now: Timestamp) -> Self {
        Self {
            id: JobId(0),
            kind,
            pair: subject.to_owned(),
            peer: "local".to_owned(),
            state: JobState::Running,
            bytes_total: 0,
            bytes_done: 0,
            bytes_durable: 0,
            bytes_written: 0,
            bytes_zeroed: 0,
            bytes_different: 0,
            bytes_on_wire: 0,
            started: now,
            ended: None,
            error: None,
            hint: None,
            exit_code: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_pairs() {
        assert_eq!(
            "db01/scsi0:1".parse::<PairName>().unwrap().to_string(),
            "db01/scsi0:1"
        );
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        let rows = [
            ("db01", NameError::NoSlash),
            ("/disk", NameError::Empty("machine")),
            ("db01/", NameError::Empty("disk")),
            ("db01/a/b", NameError::Character("disk")),
            ("db 01/a", NameError::Character("machine")),
            ("db01/a\n", NameError::Character("disk")),
            ("db01/\u{e4}", NameError::Character("disk")),
            (&format!("{long}/a"), NameError::TooLong("machine")),
        ];
        for (text, error) in rows {
            assert_eq!(text.parse::<PairName>(), Err(error), "{text:?}");
        }
    }
}
