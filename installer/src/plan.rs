// SPDX-License-Identifier: MIT OR Apache-2.0
//! Decides what an installation does: answers and facts in, a plan or a refusal out. Pure.
//!
//! Rules, in their order:
//! 1. The answers must not contradict each other, and on VMware every SCSI disk must show an ID of its own.
//! 2. The disk is the one that is named, or else the only one there is. A disk that looks like a guest's or holds
//!    recovery points is taken only when it is named.
//! 3. It must be a writable disk with blocks of 512 bytes that nobody uses.
//! 4. What is on it may be lost only when the answers or the operator say so.
//! 5. Everything must fit.

use serde::Serialize;

use crate::answers::{Answers, FileSystem, Role};
use crate::error::{Error, Kind, Result};
use crate::facts::{DiskFacts, MachineFacts};
use crate::scsi_ids::Verdict;

mod layout;
#[cfg(test)]
mod tests;

pub use layout::{MIB, PlannedPartition, layout};

/// Where the appliance is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On a disk of this machine.
    Disk,
    /// Into a new image file of so many bytes.
    Image(u64),
}

/// What an installation will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The disk; `None`: an image file.
    pub disk: Option<DiskFacts>,
    /// Its size in bytes.
    pub size: u64,
    /// Its partitions.
    pub partitions: Vec<PlannedPartition>,
    /// What is lost, a line each.
    pub losses: Vec<String>,
    /// What is worth knowing, a line each.
    pub notes: Vec<String>,
    /// The steps in their order.
    pub steps: Vec<Step>,
}

/// One act of the installer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The payload is held against its digest.
    CheckPayload,
    /// Scripts of the answers that come before everything.
    ScriptsBefore,
    /// The disk is made unbootable, and old signatures at its ends are overwritten.
    Wipe,
    /// File systems and swap are made.
    MakeFileSystems,
    /// The payload is unpacked.
    Unpack,
    /// Host name, network, accounts and the rest are written.
    Configure,
    /// The agent's files and its custom changes.
    CustomChange,
    /// Scripts of the answers that come after everything.
    ScriptsAfter,
    /// Boot loader's files within the file systems.
    BootFiles,
    /// File systems are written out and closed.
    CloseFileSystems,
    /// The loaders' partitions are filled.
    BootPartitions,
    /// The backup of the partition table, at the end of the disk.
    BackupTable,
    /// The partition table, but for its first sector.
    PrimaryTable,
    /// The first sector, which makes the disk bootable.
    FirstSector,
}

impl Step {
    /// What it does, in a few words.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::CheckPayload => "check the payload against its SHA-256",
            Self::ScriptsBefore => "run %pre scripts",
            Self::Wipe => "make the disk unbootable and wipe old signatures at its ends",
            Self::MakeFileSystems => "make file systems and swap",
            Self::Unpack => "unpack the system",
            Self::Configure => "write host name, network, accounts and mounts",
            Self::CustomChange => "unpack the agent and apply the custom changes",
            Self::ScriptsAfter => "run %post scripts",
            Self::BootFiles => "make the boot loader's files",
            Self::CloseFileSystems => "write out the file systems",
            Self::BootPartitions => "fill the boot partitions",
            Self::BackupTable => "write the backup partition table",
            Self::PrimaryTable => "write the partition table",
            Self::FirstSector => "write the first sector: from here on the disk boots",
        }
    }

    /// Name in the state file and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CheckPayload => "check_payload",
            Self::ScriptsBefore => "scripts_before",
            Self::Wipe => "wipe",
            Self::MakeFileSystems => "make_file_systems",
            Self::Unpack => "unpack",
            Self::Configure => "configure",
            Self::CustomChange => "custom_change",
            Self::ScriptsAfter => "scripts_after",
            Self::BootFiles => "boot_files",
            Self::CloseFileSystems => "close_file_systems",
            Self::BootPartitions => "boot_partitions",
            Self::BackupTable => "backup_table",
            Self::PrimaryTable => "primary_table",
            Self::FirstSector => "first_sector",
        }
    }
}

/// What the operator allows beyond the answers.
#[derive(Debug, Clone, Default)]
pub struct Consent {
    /// Name of the disk whose content may be lost.
    pub wipe: Option<String>,
    /// Whether there is an agent to install.
    pub agent: bool,
}

/// Makes the plan.
///
/// # Errors
/// The refusal, with its reason and what to do.
pub fn plan(answers: &Answers, facts: &MachineFacts, place: Place, consent: &Consent) -> Result<Plan> {
    let contradictions = answers.contradictions();
    if !contradictions.is_empty() {
        return Err(Error::new(
            Kind::Config,
            format!("the answers contradict each other: {}", contradictions.join("; ")),
        )
        .hint("correct the answers; nothing was written"));
    }
    let mut notes = Vec::new();
    let (disk, size) = match place {
        Place::Disk => {
            facts.scsi_ids.require()?;
            if facts.scsi_ids.verdict() == Verdict::Warning {
                notes.push(facts.scsi_ids.screen().trim_end().to_owned());
            }
            let disk = choose(answers, facts)?;
            fit_for_use(disk)?;
            may_be_lost(disk, answers, consent)?;
            (Some(disk), disk.size)
        }
        Place::Image(size) => (None, size),
    };
    let partitions = layout(&answers.storage.parts, size, facts.memory, &mut notes)?;
    let losses = disk.map(losses).unwrap_or_default();
    if let Some(disk) = disk
        && disk.scsi_id.is_none()
    {
        notes.push(format!(
            "{} has no SCSI ID: after a start with a copy of it attached the system cannot tell them apart and stops",
            disk.shown()
        ));
    }
    Ok(Plan {
        disk: disk.cloned(),
        size,
        partitions,
        losses,
        notes,
        steps: steps(answers, place, consent),
    })
}

fn steps(answers: &Answers, place: Place, consent: &Consent) -> Vec<Step> {
    use crate::answers::When;
    let scripts = |before: bool| {
        answers
            .scripts
            .iter()
            .any(|script| (script.when == When::Pre) == before)
    };
    let all = [
        Step::CheckPayload,
        Step::ScriptsBefore,
        Step::Wipe,
        Step::MakeFileSystems,
        Step::Unpack,
        Step::Configure,
        Step::CustomChange,
        Step::ScriptsAfter,
        Step::BootFiles,
        Step::CloseFileSystems,
        Step::BootPartitions,
        Step::BackupTable,
        Step::PrimaryTable,
        Step::FirstSector,
    ];
    all.into_iter()
        .filter(|step| match step {
            Step::ScriptsBefore => scripts(true),
            Step::ScriptsAfter => scripts(false),
            Step::CustomChange => consent.agent,
            Step::Wipe => place == Place::Disk,
            _ => true,
        })
        .collect()
}

fn list(disks: &[&DiskFacts]) -> String {
    disks.iter().map(|disk| format!("\n  {}", disk.line())).collect()
}

/// Rule 2.
fn choose<'a>(answers: &Answers, facts: &'a MachineFacts) -> Result<&'a DiskFacts> {
    let all: Vec<&DiskFacts> = facts.disks.iter().filter(|disk| !disk.is_medium).collect();
    if all.is_empty() {
        return Err(Error::new(
            Kind::Disk,
            "this machine has no disk to install on; nothing was written",
        )
        .hint("add a virtual disk of at least 16 GiB on a SCSI controller, then start again"));
    }
    if let Some(name) = &answers.storage.disk {
        let named: Vec<&DiskFacts> = all.iter().copied().filter(|disk| disk.is_called(name)).collect();
        return match named.as_slice() {
            [disk] => Ok(disk),
            [] => Err(Error::new(
                Kind::Disk,
                format!(
                    "no disk is called {name}; nothing was written. There are:{}",
                    list(&all)
                ),
            )
            .hint("name one of these by its SCSI ID")),
            several => Err(Error::new(
                Kind::Disk,
                format!(
                    "{} disks are called {name}; nothing was written:{}",
                    several.len(),
                    list(several)
                ),
            )
            .hint("detach all but one of them, or name the disk by what only it has")),
        };
    }
    match all.as_slice() {
        [disk] if disk.holds_foreign() => Err(Error::new(
            Kind::Refused,
            format!(
                "the only disk, {}, holds {}, which may be a machine's or recovery points; nothing was written",
                disk.shown(),
                disk.content
            ),
        )
        .hint(format!(
            "if it may be lost, name it: ignoredisk --only-use={} and clearpart --all",
            disk.best_name()
        ))),
        [disk] => Ok(disk),
        several => Err(Error::new(
            Kind::Disk,
            format!(
                "there are {} disks, and it is not said which one to install on; nothing was written:{}",
                several.len(),
                list(several)
            ),
        )
        .hint("name one: ignoredisk --only-use=SCSI-ID in the answers, or --disk SCSI-ID")),
    }
}

/// Rule 3.
fn fit_for_use(disk: &DiskFacts) -> Result<()> {
    let refuse = |what: String, hint: &str| {
        Err(Error::new(
            Kind::Refused,
            format!(
                "will not install on {}: {what}; nothing was written",
                disk.shown()
            ),
        )
        .hint(hint))
    };
    if !disk.used_by.is_empty() {
        return refuse(
            format!("it is in use: {}", disk.used_by.join(", ")),
            "unmount it, or choose another disk",
        );
    }
    if disk.read_only {
        return refuse(
            "it is read-only".to_owned(),
            "attach it writable, or choose another disk",
        );
    }
    if disk.logical_block_size != 512 {
        return refuse(
            format!(
                "its logical blocks have {} bytes, and a BIOS starts only disks with 512",
                disk.logical_block_size
            ),
            "use a disk with blocks of 512 bytes, as every VMDK has",
        );
    }
    if let Some(why) = &disk.unreadable {
        return refuse(
            format!("what is on it cannot be read: {why}"),
            "run it as root; where root cannot read it either the disk is damaged: choose another one",
        );
    }
    Ok(())
}

/// Rule 4.
fn may_be_lost(disk: &DiskFacts, answers: &Answers, consent: &Consent) -> Result<()> {
    if let Some(name) = &consent.wipe
        && !disk.is_called(name)
    {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "--wipe names {name}, but the disk to install on is {}; nothing was written",
                disk.shown()
            ),
        )
        .hint("name the same disk in both places"));
    }
    if disk.is_empty || answers.storage.clear || consent.wipe.is_some() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Refused,
        format!(
            "will not install on {}: it holds {}; nothing was written",
            disk.shown(),
            disk.content
        ),
    )
    .hint(format!(
        "if that may be lost, say so: clearpart --all in the answers, or --wipe {}",
        disk.best_name()
    )))
}

fn losses(disk: &DiskFacts) -> Vec<String> {
    if disk.is_empty {
        return Vec::new();
    }
    let whole = format!("{}: {}", disk.shown(), disk.content);
    std::iter::once(whole)
        .chain(disk.partitions.iter().map(|partition| format!("  {partition}")))
        .collect()
}

impl Plan {
    /// The partition mounted at a path.
    #[must_use]
    pub fn mounted_at(&self, path: &str) -> Option<&PlannedPartition> {
        self.partitions
            .iter()
            .find(|partition| matches!(&partition.role, Role::Mount(at) if at == path))
    }

    /// The partition with a role.
    #[must_use]
    pub fn with_role(&self, role: &Role) -> Option<&PlannedPartition> {
        self.partitions.iter().find(|partition| partition.role == *role)
    }

    /// The plan for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = match &self.disk {
            Some(disk) => format!("install on {}\n", disk.line()),
            None => format!("install into an image of {}\n", size_text(self.size)),
        };
        text += "\npartitions\n";
        for partition in &self.partitions {
            let fs = match partition.fs {
                FileSystem::None => "-",
                FileSystem::Vfat => "vfat",
                FileSystem::Ext4 => "ext4",
                FileSystem::Swap => "swap",
            };
            text += &format!(
                "  {:>2}  {:>10}  {:<5} {}\n",
                partition.number,
                size_text(partition.size),
                fs,
                partition.role.name()
            );
        }
        text += "\nlost\n";
        if self.losses.is_empty() {
            text += "  nothing: the disk is empty\n";
        }
        for line in &self.losses {
            text += &format!("  {line}\n");
        }
        text += "\nsteps\n";
        for (index, step) in self.steps.iter().enumerate() {
            text += &format!("  {:>2}. {}\n", index + 1, step.title());
        }
        for note in &self.notes {
            text += &format!("\nnote: {note}\n");
        }
        text
    }
}

/// Bytes for people, binary units.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    let units = [
        (1u64 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    for (unit, name) in units {
        if bytes >= unit {
            return format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit);
        }
    }
    format!("{bytes} bytes")
}
