//! Decides whether a disk may be opened for a pair: the one way to a writable disk.
//!
//! Pure: facts in, an admission or a refusal out. Every rule refuses on doubt; none has a switch to turn it
//! off. The rules, in the order they are asked, so that the refusal names the first thing to mend:
//!
//! 1. exactly one attached disk shows the paired SCSI ID, and all witnesses of that ID agree;
//! 2. it is a SCSI disk (or a lab disk), with its device node, and running;
//! 3. size and logical block size are the paired ones; for writing it is not read-only;
//! 4. it is not the appliance's own;
//! 5. it is not in use: mounts in any visible namespace, swap, anything stacked on it, a loop device;
//! 6. for writing, it is empty, or the operator has named its ID for overwriting.
//!
//! What cannot be seen from facts comes after, in [`super::open`]: the exclusive open of the whole disk, and
//! the same identity asked again through the open descriptor.

use std::fmt;

use mt_blockdev::scsi::ScsiId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{ExitCode, Explain};

use super::facts::{Content, DiskFacts, DiskKind, Doubt, Identity, Inventory, Objection, UseKind};

/// What a pair knows of its target disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairedDisk {
    /// Its name.
    pub scsi_id: ScsiId,
    /// Its size when it was paired, bytes.
    pub size: u64,
    /// Its logical block size when it was paired, bytes.
    pub logical_block_size: u32,
    /// What is on it may be overwritten: the pair has written it before, or the operator named its ID.
    pub may_overwrite: bool,
}

/// What the disk is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Writing.
    Write,
    /// Reading and comparing only.
    Verify,
}

/// Why a disk is refused. One kind per cause; two causes never share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// No attached disk shows the ID.
    NotAttached,
    /// Several do.
    AttachedTwice,
    /// The disk has no ID.
    NoScsiId,
    /// Witnesses name different IDs for it.
    IdentityConflict,
    /// It could not be asked for its ID.
    IdentityUnconfirmed,
    /// It is no SCSI disk.
    NotADisk,
    /// It has no device node, or one of another device.
    NoNode,
    /// The kernel does not hold it running.
    NotRunning,
    /// A lab disk that cannot be used as one.
    LabDisk,
    /// Its size is not the paired one.
    Size,
    /// Its logical block size is not the paired one.
    BlockSize,
    /// It cannot be written.
    ReadOnly,
    /// The appliance lives on it.
    Appliance,
    /// It is mounted.
    Mounted,
    /// It is swapped on.
    Swap,
    /// Something is stacked on it.
    Held,
    /// A loop device is attached to it.
    LoopAttached,
    /// Another program holds it, which only the exclusive open shows.
    Busy,
    /// It holds something, and nobody has named it for overwriting.
    NotEmpty,
    /// What is on it could not be read, and nobody has named it for overwriting.
    Unreadable,
    /// The open disk is not (any more) the one that was admitted.
    Changed,
}

impl RefusalKind {
    /// Exit code of a command that ends with it: 4 when the disk is missing or in doubt, 5 when it is there
    /// and must not be touched.
    #[must_use]
    pub fn exit_code(self) -> ExitCode {
        match self {
            Self::NotAttached
            | Self::AttachedTwice
            | Self::NoScsiId
            | Self::IdentityConflict
            | Self::IdentityUnconfirmed
            | Self::NoNode
            | Self::NotRunning
            | Self::Size
            | Self::BlockSize
            | Self::Changed => ExitCode::DiskMissing,
            Self::NotADisk
            | Self::LabDisk
            | Self::ReadOnly
            | Self::Appliance
            | Self::Mounted
            | Self::Swap
            | Self::Held
            | Self::LoopAttached
            | Self::Busy
            | Self::NotEmpty
            | Self::Unreadable => ExitCode::Refused,
        }
    }
}

/// A refusal: what was found, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    kind: RefusalKind,
    what: String,
    hint: String,
    /// Whether the disk had been opened, and so perhaps written, before.
    after_open: bool,
}

impl Refusal {
    pub(super) fn new(kind: RefusalKind, what: String, hint: impl Into<String>) -> Self {
        Self {
            kind,
            what,
            hint: hint.into(),
            after_open: false,
        }
    }

    /// The same refusal of a disk that was open already.
    pub(super) fn after_open(self) -> Self {
        Self {
            after_open: true,
            ..self
        }
    }

    /// Which rule refused.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        self.kind
    }

    /// What was found, without what follows from it.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// A refusal that was another process's.
    #[must_use]
    pub fn told(kind: RefusalKind, what: String, hint: String) -> Self {
        Self::new(kind, what, hint)
    }

    fn into_objection(self) -> Objection {
        Objection {
            kind: self.kind,
            message: self.what,
            hint: self.hint,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        f.write_str(if self.after_open {
            "; nothing more is written"
        } else {
            "; nothing was written"
        })
    }
}

impl std::error::Error for Refusal {}

impl Explain for Refusal {
    fn hint(&self) -> Option<String> {
        Some(self.hint.clone())
    }

    fn exit_code(&self) -> ExitCode {
        self.kind.exit_code()
    }
}

const HINT_ENABLE_UUID: &str = "set disk.EnableUUID=TRUE for this virtual machine and power-cycle it";
const HINT_LIST: &str = "run \"mt-agent disks list\"";

/// Admits the one disk a pair may use, or refuses.
///
/// # Errors
/// The first rule that speaks against it.
pub fn admit<'a>(
    paired: &PairedDisk,
    inventory: &'a Inventory,
    purpose: Purpose,
) -> Result<&'a DiskFacts, Refusal> {
    let mut shown = inventory.with_id(paired.scsi_id);
    let disk = match (shown.next(), shown.next()) {
        (None, _) => return Err(not_attached(paired.scsi_id, inventory)),
        (Some(_), Some(_)) => return Err(attached_twice(paired.scsi_id, inventory)),
        (Some(disk), None) => disk,
    };
    let refusals = against_disk(disk)
        .into_iter()
        .chain(against_pair(disk, paired, purpose))
        .chain(against_use(disk))
        .chain(against_content(disk, paired, purpose));
    match refusals.into_iter().next() {
        Some(refusal) => Err(refusal),
        None => Ok(disk),
    }
}

/// Fills in, for every disk, whether it may be a target and everything that speaks against it.
pub fn assess(inventory: &mut Inventory) {
    let objections: Vec<Vec<Objection>> = inventory
        .disks
        .iter()
        .map(|disk| {
            let mut refusals = Vec::new();
            if let Some(id) = disk.identity.scsi_id()
                && inventory.with_id(id).count() > 1
            {
                refusals.push(attached_twice(id, inventory));
            }
            refusals.extend(against_disk(disk));
            refusals.extend(read_only(disk));
            refusals.extend(against_use(disk));
            refusals.into_iter().map(Refusal::into_objection).collect()
        })
        .collect();
    for (disk, objections) in inventory.disks.iter_mut().zip(objections) {
        disk.may_be_target = objections.is_empty();
        disk.objections = objections;
    }
}

/// How a disk is named in messages: the stable ID first, today's kernel name in brackets.
fn name(disk: &DiskFacts) -> String {
    match disk.identity.scsi_id() {
        Some(id) => format!("target disk {id} ({})", disk.kernel_name),
        None => format!("disk {}", disk.kernel_name),
    }
}

fn not_attached(id: ScsiId, inventory: &Inventory) -> Refusal {
    let nameless = inventory.disks.iter().filter(|disk| {
        disk.kind == DiskKind::Scsi
            && matches!(
                disk.identity,
                Identity::Missing { .. } | Identity::Unconfirmed { .. }
            )
    });
    let nameless: Vec<&str> = nameless.map(|disk| disk.kernel_name.as_str()).collect();
    if nameless.is_empty() {
        let hint = format!("attach the disk to this virtual machine, then {HINT_LIST}");
        return Refusal::new(
            RefusalKind::NotAttached,
            format!("SCSI ID {id} is not attached"),
            hint,
        );
    }
    // The disk may well be one of these: say so, or the operator looks for a disk that is there.
    let what = format!(
        "SCSI ID {id} is not attached, and these disks show no SCSI ID: {}",
        nameless.join(", ")
    );
    Refusal::new(RefusalKind::NotAttached, what, HINT_ENABLE_UUID)
}

fn attached_twice(id: ScsiId, inventory: &Inventory) -> Refusal {
    let names: Vec<&str> = inventory
        .with_id(id)
        .map(|disk| disk.kernel_name.as_str())
        .collect();
    let times = match names.len() {
        2 => "twice".to_owned(),
        count => format!("{count} times"),
    };
    let what = format!("SCSI ID {id} is attached {times} ({})", names.join(", "));
    Refusal::new(
        RefusalKind::AttachedTwice,
        what,
        format!("detach all but one of them, then {HINT_LIST}"),
    )
}

/// What speaks against the disk itself, whatever it is wanted for.
fn against_disk(disk: &DiskFacts) -> Vec<Refusal> {
    let mut found = Vec::new();
    let kernel_name = &disk.kernel_name;
    match disk.kind {
        DiskKind::Scsi | DiskKind::Lab => match &disk.identity {
            Identity::Known { .. } => {}
            Identity::Missing { why } => found.push(Refusal::new(
                RefusalKind::NoScsiId,
                format!("disk {kernel_name} has no SCSI ID: {why}"),
                HINT_ENABLE_UUID,
            )),
            Identity::Conflict { witnesses, .. } => found.push(Refusal::new(
                RefusalKind::IdentityConflict,
                format!(
                    "disk {kernel_name} shows different SCSI IDs: {}",
                    witnesses.join(", ")
                ),
                format!("detach and attach the disk again, then {HINT_LIST}"),
            )),
            Identity::Unconfirmed { why, .. } => found.push(Refusal::new(
                RefusalKind::IdentityUnconfirmed,
                format!("disk {kernel_name} could not be asked for its SCSI ID: {why}"),
                "run as root, and see that the disk answers",
            )),
        },
        kind => found.push(Refusal::new(
            RefusalKind::NotADisk,
            format!(
                "{} is {}, and only SCSI disks are targets",
                name(disk),
                kind.describe()
            ),
            "attach the disk to a SCSI controller of this virtual machine",
        )),
    }
    for doubt in &disk.doubts {
        found.push(match doubt {
            Doubt::NoNode { why } => Refusal::new(
                RefusalKind::NoNode,
                format!("{} has no usable device node: {why}", name(disk)),
                "wait for udev, or run \"udevadm settle\" and try again",
            ),
            Doubt::NotRunning { state } => Refusal::new(
                RefusalKind::NotRunning,
                format!("{} is not running: the kernel holds it {state}", name(disk)),
                "see the kernel log for its errors, then detach and attach the disk again",
            ),
            Doubt::Lab { why } => Refusal::new(
                RefusalKind::LabDisk,
                format!("lab disk {} ({kernel_name}) {why}", id_or_dash(disk)),
                "correct [[lab.disks]] in the configuration",
            ),
        });
    }
    found
}

fn id_or_dash(disk: &DiskFacts) -> String {
    disk.identity
        .scsi_id()
        .map_or_else(|| "-".to_owned(), |id| id.to_string())
}

fn read_only(disk: &DiskFacts) -> Option<Refusal> {
    disk.read_only.then(|| {
        Refusal::new(
            RefusalKind::ReadOnly,
            format!("{} is read-only", name(disk)),
            "attach the disk in a mode that can be written (independent persistent or dependent)",
        )
    })
}

/// What speaks against the disk as the target of this pair.
fn against_pair(disk: &DiskFacts, paired: &PairedDisk, purpose: Purpose) -> Vec<Refusal> {
    let mut found = Vec::new();
    if disk.size != paired.size {
        let what = format!(
            "{} is {} bytes, it was paired with {} bytes",
            name(disk),
            disk.size,
            paired.size
        );
        let hint = "pair the disk again if it was resized on purpose";
        found.push(Refusal::new(RefusalKind::Size, what, hint));
    }
    if disk.logical_block_size != paired.logical_block_size {
        let what = format!(
            "{} has logical blocks of {} bytes, it was paired with {} bytes",
            name(disk),
            disk.logical_block_size,
            paired.logical_block_size
        );
        found.push(Refusal::new(
            RefusalKind::BlockSize,
            what,
            "attach the disk that was paired, or pair again",
        ));
    }
    if purpose == Purpose::Write {
        found.extend(read_only(disk));
    }
    found
}

fn against_use(disk: &DiskFacts) -> Vec<Refusal> {
    disk.uses
        .iter()
        .map(|used| {
            let what = format!("{} is in use: {}", name(disk), used.what);
            match used.kind {
                UseKind::Appliance => Refusal::new(
                    RefusalKind::Appliance,
                    format!("{} is the appliance's own: {}", name(disk), used.what),
                    format!("choose another disk: {HINT_LIST}"),
                ),
                UseKind::Mount => Refusal::new(RefusalKind::Mounted, what, "unmount it, or choose another disk"),
                UseKind::Swap => {
                    Refusal::new(RefusalKind::Swap, what, "run \"swapoff\" on it, or choose another disk")
                }
                UseKind::Holder => Refusal::new(
                    RefusalKind::Held,
                    what,
                    "deactivate it (vgchange --activate n, mdadm --stop, dmsetup remove), or choose another disk",
                ),
                UseKind::Loop => {
                    Refusal::new(RefusalKind::LoopAttached, what, "run \"losetup --detach\" on it, or choose another disk")
                }
            }
        })
        .collect()
}

fn against_content(disk: &DiskFacts, paired: &PairedDisk, purpose: Purpose) -> Option<Refusal> {
    if purpose == Purpose::Verify || paired.may_overwrite {
        return None;
    }
    let hint = format!(
        "if it may be overwritten, pair it with \"--overwrite {}\"",
        paired.scsi_id
    );
    match &disk.content {
        Content::Probed { content } if content.is_empty() => None,
        Content::Probed { content } => {
            let what = format!("{} is not empty: it holds {}", name(disk), content.summary());
            Some(Refusal::new(RefusalKind::NotEmpty, what, hint))
        }
        Content::Unreadable { why } => {
            let what = format!(
                "{} may hold something: it could not be probed ({why})",
                name(disk)
            );
            Some(Refusal::new(RefusalKind::Unreadable, what, hint))
        }
    }
}

#[cfg(test)]
mod tests;
