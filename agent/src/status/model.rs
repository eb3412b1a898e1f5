//! The documents of the local socket, as they are sent.
//!
//! Every document has [`SCHEMA`]; it is raised when a field changes its meaning or goes away, not when one is added.
//! Sizes are bytes, times RFC 3339 in UTC. The disks of `/v1/disks` are [`crate::disks::facts::DiskFacts`],
//! jobs are [`crate::model::Job`], which is also stored so; everything else has a shape of its own here, so that what the
//! program thinks with can change without notice.

use jiff::Timestamp;
use mt_blockdev::scsi::ScsiId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::hub::{HubEvent, Severity};
use crate::model::Job;

/// Version of all documents.
pub const SCHEMA: u32 = 1;

/// What is happening and what is wrong, in one document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatusDoc {
    /// Version of this document.
    pub schema: u32,
    /// When this was true.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// Who answers.
    pub agent: AgentDoc,
    /// Whether stand-ins for SCSI disks are allowed: never so on an appliance that holds real machines.
    pub lab: bool,
    /// Whether the data port speaks without TLS and takes whoever connects; only ever in a laboratory, on loopback.
    #[serde(default)]
    pub plain: bool,
    /// The stand-ins.
    pub lab_disks: Vec<LabDiskDoc>,
    /// What is wrong, worst first.
    pub alarms: Vec<AlarmDoc>,
    /// All pairs, by name.
    pub pairs: Vec<PairDoc>,
    /// Jobs that run now.
    pub jobs_running: Vec<Job>,
    /// The last jobs that ended, newest first.
    pub jobs_ended: Vec<Job>,
    /// The disks in numbers.
    pub disks: DisksSummary,
    /// Totals since the agent was started.
    pub totals: TotalsDoc,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AgentDoc {
    /// Version of the agent.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Name of this machine.
    pub host: String,
    /// Since when it runs.
    #[schema(value_type = String, format = DateTime)]
    pub started: Timestamp,
    /// Where sources connect.
    pub listen: String,
    /// Folder of its state.
    pub state_dir: String,
}

/// A stand-in for a SCSI disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LabDiskDoc {
    /// The ID it plays under.
    pub scsi_id: ScsiId,
    /// Loop device or image file.
    pub path: String,
}

/// Something that is wrong until it is cleared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AlarmDoc {
    /// What kind: one alarm of a kind for each subject.
    pub id: String,
    /// What it is about: a pair, a disk, the agent.
    pub subject: String,
    /// How bad it is.
    pub severity: SeverityDoc,
    /// What is wrong.
    pub text: String,
    /// What to do.
    pub hint: String,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

/// How bad an alarm is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SeverityDoc {
    /// Worth knowing.
    Notice,
    /// Needs somebody soon.
    Warning,
    /// Something asked for does not happen.
    Critical,
}

impl From<Severity> for SeverityDoc {
    fn from(severity: Severity) -> Self {
        match severity {
            Severity::Notice => Self::Notice,
            Severity::Warning => Self::Warning,
            Severity::Critical => Self::Critical,
        }
    }
}

/// Where a pair is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PairPhase {
    /// Nothing has been written yet: no source has opened it.
    Waiting,
    /// A source is seeding it.
    Seeding,
    /// A source is comparing it.
    Verifying,
    /// A seeding was begun and has not come to its end; no source is connected.
    Interrupted,
    /// The last seeding came to its end.
    Seeded,
    /// Its disk failed, or its copy is in doubt: it has to be compared again.
    ResyncNeeded,
}

/// A protected disk and the target disk it is written to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PairDoc {
    /// `MACHINE/DISK`.
    pub pair: String,
    /// Name of the protected machine.
    pub machine: String,
    /// Name of the protected disk.
    pub disk: String,
    /// The target disk.
    pub scsi_id: ScsiId,
    /// Its kernel name today; absent when it is not attached. For people only: it changes.
    pub kernel_name: Option<String>,
    /// Why the target disk would be refused now; absent when it would be opened.
    pub disk_problem: Option<ProblemDoc>,
    /// Size of the target disk at pairing, bytes.
    pub size: u64,
    /// Size of the protected disk, bytes; absent until a source has opened the pair.
    pub protected_size: Option<u64>,
    /// Logical block size of both disks, bytes.
    pub logical_block_size: u32,
    /// Fencing number.
    pub generation: u64,
    /// Whether the agent has begun to write the target disk.
    pub adopted: bool,
    /// Whether the operator named the disk's ID to have its content overwritten.
    pub overwrite: bool,
    /// When the pair was made.
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    /// Where it is.
    pub phase: PairPhase,
    /// The newest seeding; absent when there was none.
    pub seeding: Option<SeedingDoc>,
    /// The session that is open now.
    pub session: Option<SessionDoc>,
}

/// What was found, and what to do about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProblemDoc {
    /// What was found.
    pub error: String,
    /// What to do next.
    pub hint: Option<String>,
}

/// How far the newest seeding of a pair is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SeedingDoc {
    /// Its name, shared with the source: 32 hexadecimal digits.
    pub seeding_id: String,
    /// Everything before this offset is on stable storage and acknowledged, bytes.
    pub durable: u64,
    /// Size of the protected disk, bytes.
    pub size: u64,
    /// Whether it came to its end.
    pub complete: bool,
}

/// A session that is open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SessionDoc {
    /// Address of the source.
    pub peer: String,
    /// The job that this session is.
    pub job: i64,
    /// Size of what it goes over, bytes.
    pub total: u64,
    /// Everything before this offset is settled: compared, and for a seeding written to the target disk, bytes.
    pub applied: u64,
    /// Everything before this offset is on stable storage and acknowledged, bytes. For a verification it stays 0.
    pub durable: u64,
    /// Settled and not yet durable, bytes: what a power cut now would make it compare again.
    pub lag: u64,
    /// Bytes a second over the last seconds, of disk gone over.
    pub rate: u64,
    /// Seconds that are left at this rate; absent while there is no rate.
    pub seconds_left: Option<u64>,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

/// The disks in numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DisksSummary {
    /// Whether disks have been looked at yet.
    pub known: bool,
    /// All disks.
    pub count: usize,
    /// Those that a pair has.
    pub paired: usize,
    /// Those that could be paired.
    pub free: usize,
    /// Those that may not be a target: the appliance's own, in use, without SCSI ID.
    pub not_usable: usize,
    /// What limits what could be seen.
    pub warnings: Vec<String>,
}

/// Totals since the agent was started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TotalsDoc {
    /// Content written to target disks, bytes.
    pub bytes_written: u64,
    /// Made zero on target disks, bytes.
    pub bytes_zeroed: u64,
    /// On the wire in both directions, bytes.
    pub bytes_on_wire: u64,
    /// Jobs that came to their end.
    pub jobs_done: u64,
    /// Jobs that failed or were cut off.
    pub jobs_failed: u64,
}

/// All pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PairsDoc {
    /// Version of this document.
    pub schema: u32,
    /// Whether stand-ins for SCSI disks are allowed.
    pub lab: bool,
    /// By name.
    pub pairs: Vec<PairDoc>,
}

/// Asks for a pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PairRequest {
    /// Name of the protected machine: 1 to 128 visible ASCII characters without "/".
    pub machine: String,
    /// Name of the protected disk: the same.
    pub disk: String,
    /// The target disk, in any usual notation.
    pub scsi_id: String,
    /// The target disk's own SCSI ID once more, when what it holds may be overwritten.
    #[serde(default)]
    pub overwrite: Option<String>,
}

/// What became of a pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PairAddedDoc {
    /// Version of this document.
    pub schema: u32,
    /// Whether it was added; false when it was there already.
    pub added: bool,
    /// The pair.
    pub pair: PairDoc,
}

/// What became of a pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PairRemovedDoc {
    /// Version of this document.
    pub schema: u32,
    /// Whether it was removed; false when there was none.
    pub removed: bool,
    /// `MACHINE/DISK`.
    pub pair: String,
}

/// Jobs, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobsDoc {
    /// Version of this document.
    pub schema: u32,
    /// The jobs; those that run as they are now.
    pub jobs: Vec<Job>,
}

/// One job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobDoc {
    /// Version of this document.
    pub schema: u32,
    /// The job.
    pub job: Job,
}

/// One event, the `data` of a server-sent event.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct EventDoc {
    /// Version of this document.
    pub schema: u32,
    /// The event.
    #[serde(flatten)]
    pub event: HubEvent,
}

/// Sent in place of events that a reader was too slow for, under the event name `missed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MissedDoc {
    /// Version of this document.
    pub schema: u32,
    /// Always `missed`.
    pub event: String,
    /// How many events are lost to this reader.
    pub missed: u64,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorDoc {
    /// Version of this document.
    pub schema: u32,
    /// What was attempted, on what, what was found.
    pub error: String,
    /// What to do next.
    pub hint: Option<String>,
    /// One word for programs.
    pub code: String,
    /// How a command that fails with it exits.
    pub exit_code: u8,
}
