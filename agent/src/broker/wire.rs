//! What target, command line and broker say to each other.
//!
//! One request and one answer a connection, each a JSON document in a frame ([`super::passing`]). Both ends are of one
//! build: the documents carry no version, and what is not understood is refused.

use mt_blockdev::scsi::ScsiId;
use serde::{Deserialize, Serialize};

use crate::disks::facts::{DiskFacts, Inventory};
use crate::disks::gate::{PairedDisk, Purpose, RefusalKind};

/// Largest request, bytes: two names and two SCSI IDs.
pub const REQUEST_BYTES_MAX: usize = 4096;
/// Largest answer, bytes: the facts of some hundred disks with all of their partitions.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verb", deny_unknown_fields)]
pub enum Request {
    /// The facts of all disks.
    Disks,
    /// What is recorded of a pair.
    Pair {
        /// Its name, `MACHINE/DISK`.
        pair: String,
    },
    /// The open disk of a pair.
    Open {
        /// Its name.
        pair: String,
        /// What it is wanted for.
        purpose: Purpose,
    },
    /// Drop the kernel's device of a pair's disk.
    Release {
        /// Its name.
        pair: String,
    },
    /// Root's word that a disk is the target of a pair.
    Record {
        /// Its name.
        pair: String,
        /// The disk.
        scsi_id: ScsiId,
        /// Whether what it holds may be lost.
        overwrite: bool,
    },
    /// Root's word that a pair is none any more.
    Forget {
        /// Its name.
        pair: String,
    },
}

/// A pair as the broker has recorded it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// Name, `MACHINE/DISK`.
    pub pair: String,
    /// The disk.
    pub scsi_id: ScsiId,
    /// Its size when it was recorded, bytes.
    pub size: u64,
    /// Its logical block size when it was recorded, bytes.
    pub logical_block_size: u32,
    /// Root has named the disk to have its content overwritten.
    pub overwrite: bool,
    /// It was handed out for writing before, so that what it holds is ours.
    pub adopted: bool,
}

impl Recorded {
    /// What the gate is asked with.
    #[must_use]
    pub fn paired(&self) -> PairedDisk {
        PairedDisk {
            scsi_id: self.scsi_id,
            size: self.size,
            logical_block_size: self.logical_block_size,
            may_overwrite: self.overwrite || self.adopted,
        }
    }
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum Answer {
    /// The facts of all disks.
    Disks {
        /// The facts.
        inventory: Inventory,
    },
    /// The record of a pair.
    Pair {
        /// The record.
        recorded: Recorded,
        /// Whether the request made or changed it.
        changed: bool,
    },
    /// The disk is open; its descriptor travels with this answer.
    Opened {
        /// What is known of it.
        disk: Box<DiskFacts>,
        /// What it was opened as.
        paired: PairedDisk,
    },
    /// It is done.
    Done {
        /// Whether there was something to do.
        changed: bool,
    },
    /// The gate refuses the disk.
    Refused {
        /// Which rule.
        kind: RefusalKind,
        /// What was found.
        what: String,
        /// What to do next.
        hint: String,
    },
    /// It cannot be done.
    Failed {
        /// What was attempted and what was found.
        message: String,
        /// What to do next.
        hint: Option<String>,
        /// How a command that fails with it exits.
        exit_code: u8,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disks::facts::testing::{disk, id};

    #[test]
    fn what_is_said_arrives_as_it_was() {
        let mut facts = disk("sdb", 1);
        facts.objections = Vec::new();
        let answers = [
            Answer::Disks {
                inventory: Inventory {
                    disks: vec![facts.clone(), disk("sdc", 2)],
                    warnings: vec!["a warning".to_owned()],
                },
            },
            Answer::Opened {
                paired: PairedDisk {
                    scsi_id: id(1),
                    size: 20 << 30,
                    logical_block_size: 512,
                    may_overwrite: true,
                },
                disk: Box::new(facts),
            },
            Answer::Refused {
                kind: RefusalKind::NotEmpty,
                what: "it holds xfs".to_owned(),
                hint: "name it".to_owned(),
            },
        ];
        for answer in answers {
            let text = serde_json::to_vec(&answer).unwrap();
            assert_eq!(serde_json::from_slice::<Answer>(&text).unwrap(), answer);
        }
    }

    #[test]
    fn requests_with_more_or_less_than_they_may_have_are_refused() {
        for text in [
            r#"{"verb":"disks"}"#,
            r#"{"verb":"open","pair":"a/b","purpose":"write"}"#,
        ] {
            assert!(serde_json::from_str::<Request>(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "{}",
            r#"{"verb":"erase"}"#,
            r#"{"verb":"open","pair":"a/b"}"#,
            r#"{"verb":"open","pair":"a/b","purpose":"write","path":"/dev/sda"}"#,
            r#"{"verb":"record","pair":"a/b","scsi_id":"sdb","overwrite":true}"#,
        ] {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }
}
