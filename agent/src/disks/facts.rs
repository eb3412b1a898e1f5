//! What is known of the disks of this machine at one instant: plain data, no I/O.
//!
//! [`super::inventory`] fills these in, [`super::gate`] judges by them, `disks list` and the status page show
//! them. Sizes and offsets are bytes. Nothing here is stored: a kernel name is today's alias, only the SCSI
//! ID survives a reboot.

use std::path::PathBuf;

use mt_blockdev::blkid::DiskContent;
use mt_blockdev::scsi::ScsiId;
use mt_blockdev::sysfs::DeviceNumber;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A disk of the `[lab]` section: a loop device or an image file that stands in for a SCSI disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabDisk {
    /// The ID it plays under.
    pub scsi_id: ScsiId,
    /// The loop device or image file.
    pub path: PathBuf,
    /// Logical block size it plays, bytes. An image file takes any; a loop device has its own, which this
    /// must equal.
    pub block_size: Option<u32>,
}

/// What kind of device a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskKind {
    /// A SCSI direct access device.
    Scsi,
    /// A SCSI device of another type: optical drive, tape, enclosure.
    ScsiOther,
    /// An NVMe namespace.
    Nvme,
    /// A virtio block device.
    Virtio,
    /// A loop device or image file of the `[lab]` section.
    Lab,
    /// Anything else.
    Other,
}

impl DiskKind {
    /// For messages, with its article.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Scsi => "a SCSI disk",
            Self::ScsiOther => "a SCSI device that is no disk",
            Self::Nvme => "an NVMe disk",
            Self::Virtio => "a virtio disk",
            Self::Lab => "a lab disk",
            Self::Other => "a device that is no SCSI disk",
        }
    }
}

/// What the disk says its name is, and whether all witnesses agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Identity {
    /// The disk itself named it, and no witness disagrees.
    Known {
        /// The name.
        scsi_id: ScsiId,
    },
    /// The disk has none.
    Missing {
        /// Why: page 0x83 empty, without an NAA or EUI-64 name, or no SCSI at all.
        why: String,
    },
    /// Witnesses name different disks.
    Conflict {
        /// The name the disk gave, if it gave one.
        scsi_id: Option<ScsiId>,
        /// What each witness says, ready to be shown.
        witnesses: Vec<String>,
    },
    /// The disk could not be asked. What the kernel read when it appeared is shown, and not relied on.
    Unconfirmed {
        /// The kernel's cached answer.
        scsi_id: Option<ScsiId>,
        /// Why it could not be asked.
        why: String,
    },
}

impl Identity {
    /// The name, however well it is established.
    #[must_use]
    pub fn scsi_id(&self) -> Option<ScsiId> {
        match self {
            Self::Known { scsi_id } => Some(*scsi_id),
            Self::Conflict { scsi_id, .. } | Self::Unconfirmed { scsi_id, .. } => *scsi_id,
            Self::Missing { .. } => None,
        }
    }
}

/// What is on a disk, as far as it could be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Content {
    /// It was probed.
    Probed {
        /// What was found; may be nothing.
        #[serde(flatten)]
        content: DiskContent,
    },
    /// It could not be read, which is not the same as empty.
    Unreadable {
        /// Why.
        why: String,
    },
}

impl Content {
    /// One line for people.
    #[must_use]
    pub fn summary(&self) -> String {
        match self {
            Self::Probed { content } => content.summary(),
            Self::Unreadable { why } => format!("unreadable: {why}"),
        }
    }
}

/// How a disk is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UseKind {
    /// The appliance itself lives on it.
    Appliance,
    /// A file system of it is mounted.
    Mount,
    /// Swap on it is active.
    Swap,
    /// Another block device is stacked on it: LVM, md, bcache, multipath.
    Holder,
    /// A loop device is attached to it.
    Loop,
}

/// One use of a disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct DiskUse {
    /// How.
    pub kind: UseKind,
    /// Ready to be shown: `sdb2 is mounted on /srv`.
    pub what: String,
}

/// A doubt about a disk that only its gathering could find.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Doubt {
    /// There is no device node, or it belongs to another device.
    NoNode {
        /// What was found.
        why: String,
    },
    /// The kernel does not hold the SCSI device running.
    NotRunning {
        /// Its state.
        state: String,
    },
    /// A lab disk that cannot be used as one.
    Lab {
        /// Why.
        why: String,
    },
}

/// Why a disk may not be a target, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Objection {
    /// Machine-readable kind, as in refusals.
    pub kind: super::gate::RefusalKind,
    /// What was found.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

/// Everything known of one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskFacts {
    /// Today's kernel name, `sdb`; for a lab image its path.
    pub kernel_name: String,
    /// Device node or image file.
    #[schema(value_type = String)]
    pub devnode: PathBuf,
    /// Device number; `None` for an image file.
    #[schema(value_type = Option<String>)]
    pub number: Option<DeviceNumber>,
    /// Kind of device.
    pub kind: DiskKind,
    /// Who it says it is.
    pub identity: Identity,
    /// Unit serial number, VPD page 0x80.
    pub serial: Option<String>,
    /// Vendor.
    pub vendor: Option<String>,
    /// Model.
    pub model: Option<String>,
    /// Host, channel, target, unit: `2:0:1:0`.
    pub hctl: Option<String>,
    /// Size, bytes.
    pub size: u64,
    /// Logical block size, bytes.
    pub logical_block_size: u32,
    /// Physical block size, bytes.
    pub physical_block_size: u32,
    /// The kernel holds it read-only.
    pub read_only: bool,
    /// Its medium can be taken out.
    pub removable: bool,
    /// What is on it.
    pub content: Content,
    /// Who uses it, the appliance first.
    pub uses: Vec<DiskUse>,
    /// What is doubtful about it.
    pub doubts: Vec<Doubt>,
    /// Whether it may be paired: nothing speaks against it.
    pub may_be_target: bool,
    /// What speaks against it. That it holds something does not: that needs the operator's word, at pairing.
    pub objections: Vec<Objection>,
}

/// The disks of this machine at one instant, in natural order of their kernel names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Inventory {
    /// The disks; lab disks last.
    pub disks: Vec<DiskFacts>,
    /// What limits the inventory as a whole.
    pub warnings: Vec<String>,
}

impl Inventory {
    /// The disks that show an ID, however well it is established.
    pub fn with_id(&self, id: ScsiId) -> impl Iterator<Item = &DiskFacts> {
        self.disks
            .iter()
            .filter(move |disk| disk.identity.scsi_id() == Some(id))
    }
}

/// What changed between two inventories, by SCSI ID where there is one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InventoryDiff {
    /// Disks that were not there before.
    pub added: Vec<DiskFacts>,
    /// Disks that are not there any more.
    pub removed: Vec<DiskFacts>,
    /// Disks of which something changed: before and after.
    pub changed: Vec<(DiskFacts, DiskFacts)>,
}

impl InventoryDiff {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }

    /// Compares two inventories.
    ///
    /// A disk is the same one when ID, kernel name and device number are: one that came back under another
    /// name, or another disk under the same name, is both removed and added, since every open descriptor of
    /// the old one is dead.
    #[must_use]
    pub fn between(before: &Inventory, after: &Inventory) -> Self {
        let same = |a: &DiskFacts, b: &DiskFacts| {
            a.kernel_name == b.kernel_name
                && a.number == b.number
                && a.identity.scsi_id() == b.identity.scsi_id()
        };
        let mut diff = Self::default();
        for disk in &after.disks {
            match before.disks.iter().find(|old| same(old, disk)) {
                None => diff.added.push(disk.clone()),
                Some(old) if old != disk => diff.changed.push((old.clone(), disk.clone())),
                Some(_) => {}
            }
        }
        diff.removed = before
            .disks
            .iter()
            .filter(|old| !after.disks.iter().any(|disk| same(old, disk)))
            .cloned()
            .collect();
        diff
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Facts for tests: a disk that nothing speaks against.

    use super::*;

    /// The ID of the disk of [`disk`] with this last byte.
    pub(crate) fn id(last: u8) -> ScsiId {
        ScsiId::parse(&format!("naa.6000c29a71e02b4c9d118e55037faa{last:02x}")).unwrap()
    }

    /// An empty 20 GiB VMware disk.
    pub(crate) fn disk(name: &str, last: u8) -> DiskFacts {
        DiskFacts {
            kernel_name: name.to_owned(),
            devnode: mt_blockdev::sysfs::devnode(name),
            number: Some(DeviceNumber {
                major: 8,
                minor: u64::from(last) * 16,
            }),
            kind: DiskKind::Scsi,
            identity: Identity::Known { scsi_id: id(last) },
            serial: Some(format!("{last:032x}")),
            vendor: Some("VMware".to_owned()),
            model: Some("Virtual disk".to_owned()),
            hctl: Some(format!("2:0:{last}:0")),
            size: 20 << 30,
            logical_block_size: 512,
            physical_block_size: 512,
            read_only: false,
            removable: false,
            content: Content::Probed {
                content: DiskContent::default(),
            },
            uses: Vec::new(),
            doubts: Vec::new(),
            may_be_target: true,
            objections: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{disk, id};
    use super::*;

    fn inventory(disks: &[DiskFacts]) -> Inventory {
        Inventory {
            disks: disks.to_vec(),
            warnings: Vec::new(),
        }
    }

    fn names(disks: &[DiskFacts]) -> Vec<&str> {
        disks.iter().map(|disk| disk.kernel_name.as_str()).collect()
    }

    #[test]
    fn nothing_changed_is_an_empty_diff() {
        let all = inventory(&[disk("sdb", 1), disk("sdc", 2)]);
        assert!(InventoryDiff::between(&all, &all).is_empty());
    }

    #[test]
    fn disks_come_go_and_change() {
        let before = inventory(&[disk("sdb", 1), disk("sdc", 2), disk("sdd", 3)]);
        let mut grown = disk("sdb", 1);
        grown.size += 1 << 30;
        let after = inventory(&[grown.clone(), disk("sdd", 3), disk("sde", 4)]);
        let diff = InventoryDiff::between(&before, &after);
        assert_eq!(
            (names(&diff.added), names(&diff.removed)),
            (vec!["sde"], vec!["sdc"])
        );
        assert_eq!(diff.changed, [(disk("sdb", 1), grown)]);
    }

    #[test]
    fn another_disk_under_an_old_name_is_a_removal_and_an_addition() {
        let diff = InventoryDiff::between(&inventory(&[disk("sdb", 1)]), &inventory(&[disk("sdb", 2)]));
        assert_eq!(diff.removed[0].identity.scsi_id(), Some(id(1)));
        assert_eq!(diff.added[0].identity.scsi_id(), Some(id(2)));
        assert!(diff.changed.is_empty());
    }

    #[test]
    fn two_disks_that_swap_names_are_both_new() {
        let before = inventory(&[disk("sdb", 1), disk("sdc", 2)]);
        let after = inventory(&[disk("sdb", 2), disk("sdc", 1)]);
        let diff = InventoryDiff::between(&before, &after);
        assert_eq!(
            (diff.added.len(), diff.removed.len(), diff.changed.len()),
            (2, 2, 0)
        );
    }
}
