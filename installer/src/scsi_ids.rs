// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether every SCSI disk shows an ID (VPD page 0x83): on VMware it does only with `disk.EnableUUID`.
//!
//! Without IDs nobody can tell one disk from another, and the wrong one would be written. So on VMware this is a
//! condition; elsewhere, where disks have other buses and other names, it is a warning. [`gather`] asks the disks,
//! [`Report`] judges and says what to set, where and how.

use std::fs::{self, File};
use std::path::Path;

use mt_blockdev::scsi::{self, ScsiId};
use mt_blockdev::sysfs::{Sysfs, devnode};
use mt_blockdev::{ioctl, scsi::Designator};
use serde::Serialize;

use crate::error::{Error, Kind, Result, printable};

/// Peripheral device type of a disk.
const TYPE_DISK: u8 = 0;

/// One SCSI disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Today's kernel name.
    pub kernel_name: String,
    /// Host, channel, target, unit.
    pub address: String,
    /// Size in bytes.
    pub size: u64,
    /// Its ID.
    pub scsi_id: Option<ScsiId>,
    /// Why it has none.
    pub why: Option<String>,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Who made the machine, as SMBIOS says.
    pub vendor: String,
    /// Its SCSI disks.
    pub disks: Vec<Disk>,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every SCSI disk has an ID of its own.
    Good,
    /// Disks are in doubt, on a machine where that has another cause than a setting.
    Warning,
    /// Disks are in doubt, and a setting mends it.
    Refused,
}

/// Asks all SCSI disks below `root`, which is `/` but for tests.
///
/// # Errors
/// The kernel's list of disks cannot be read.
pub fn gather(root: &Path) -> Result<Report> {
    let vendor = fs::read_to_string(root.join("sys/class/dmi/id/sys_vendor")).unwrap_or_default();
    let tree = root.join("sys");
    let sysfs = Sysfs::new(&tree);
    let names = sysfs
        .whole_devices()
        .map_err(|error| Error::io("list the disks in", &tree, error))?;
    let mut disks = Vec::new();
    for name in names {
        let Some(disk) = sysfs.disk(&name) else {
            continue;
        };
        let Some(node) = disk.scsi.filter(|node| node.device_type == TYPE_DISK) else {
            continue;
        };
        let asked = File::open(devnode(&name))
            .map_err(|error| format!("{} cannot be opened: {error}", devnode(&name).display()))
            .and_then(|file| {
                ioctl::inquiry(&file, Some(scsi::VPD_DEVICE_ID))
                    .map_err(|error| format!("INQUIRY failed: {error}"))
            });
        let (scsi_id, why) = match asked {
            Ok(page) => identity(&page),
            Err(why) => (None, Some(why)),
        };
        // The kernel's translation of ATA says so (libata-scsi.c). No setting gives such a disk a name.
        let why = match why {
            Some(_) if node.vendor == "ATA" => Some(ON_SATA.to_owned()),
            why => why,
        };
        disks.push(Disk {
            kernel_name: name,
            address: node.hctl,
            size: disk.size,
            scsi_id,
            why,
        });
    }
    Ok(Report {
        vendor: vendor.trim().to_owned(),
        disks,
    })
}

/// The ID in page 0x83, or why there is none.
fn identity(page: &[u8]) -> (Option<ScsiId>, Option<String>) {
    let designators: Vec<Designator> = match scsi::parse_vpd83(page) {
        Ok(designators) => designators,
        Err(error) => return (None, Some(format!("VPD page 0x83 is damaged: {error}"))),
    };
    match scsi::identity(&designators) {
        Some(id) => (Some(id), None),
        None if designators.is_empty() => (None, Some("VPD page 0x83 is empty".to_owned())),
        None => (None, Some("VPD page 0x83 holds no NAA or EUI-64 name".to_owned())),
    }
}

impl Report {
    /// Whether this is a virtual machine of VMware's.
    #[must_use]
    pub fn is_vmware(&self) -> bool {
        self.vendor.starts_with("VMware")
    }

    /// Disks without an ID.
    pub fn without_id(&self) -> impl Iterator<Item = &Disk> {
        self.disks.iter().filter(|disk| disk.scsi_id.is_none())
    }

    /// IDs that several disks show, with those disks.
    #[must_use]
    pub fn shared(&self) -> Vec<(ScsiId, Vec<&Disk>)> {
        let mut ids: Vec<ScsiId> = self.disks.iter().filter_map(|disk| disk.scsi_id).collect();
        ids.sort();
        ids.dedup();
        ids.into_iter()
            .map(|id| {
                let disks = self
                    .disks
                    .iter()
                    .filter(|disk| disk.scsi_id == Some(id))
                    .collect();
                (id, disks)
            })
            .filter(|(_, disks): &(ScsiId, Vec<&Disk>)| disks.len() > 1)
            .collect()
    }

    /// What follows.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.without_id().next().is_none() && self.shared().is_empty() {
            Verdict::Good
        } else if self.is_vmware() {
            Verdict::Refused
        } else {
            Verdict::Warning
        }
    }

    /// Refuses, with the whole screen, where a setting is missing.
    ///
    /// # Errors
    /// The verdict is [`Verdict::Refused`].
    pub fn require(&self) -> Result<()> {
        if self.verdict() != Verdict::Refused {
            return Ok(());
        }
        Err(Error::new(
            Kind::Disk,
            format!(
                "disks of this virtual machine cannot be told apart; nothing was written\n\n{}",
                self.screen().trim_end()
            ),
        )
        .hint("power it off and set disk.EnableUUID=TRUE, then start the installation again"))
    }

    /// One line for a status screen.
    #[must_use]
    pub fn summary(&self) -> String {
        let (count, without, shared) = (self.disks.len(), self.without_id().count(), self.shared().len());
        match (without, shared) {
            (0, 0) => format!("good: {}", count_of(count, "SCSI disk", "each with its own ID")),
            (0, _) => format!("IN DOUBT: {shared} SCSI IDs are shown by several disks"),
            _ if self.is_vmware() => {
                format!("IN DOUBT: {without} of {count} SCSI disks show no ID; set disk.EnableUUID=TRUE")
            }
            _ => format!("warning: {without} of {count} SCSI disks show no ID"),
        }
    }

    /// The screen for a console of 80 columns: which disks, what to set, where and how.
    #[must_use]
    pub fn screen(&self) -> String {
        let mut text = format!("SCSI IDs - {}\n", self.summary());
        if self.verdict() == Verdict::Good {
            return text;
        }
        text.push('\n');
        for disk in self.without_id() {
            let why = disk.why.as_deref().unwrap_or_default();
            text.push_str(&format!(
                "  {:6} at {:10} {:>10}  {}\n",
                printable(&disk.kernel_name),
                printable(&disk.address),
                size(disk.size),
                printable(why)
            ));
        }
        for (id, disks) in self.shared() {
            let names: Vec<&str> = disks.iter().map(|disk| disk.kernel_name.as_str()).collect();
            text.push_str(&format!("  {id} is shown by {}\n", printable(&names.join(", "))));
        }
        text.push_str(if self.is_vmware() { ON_VMWARE } else { ELSEWHERE });
        text
    }
}

/// What to do where disks have no ID on VMware.
const ON_VMWARE: &str = "
Without IDs nobody can tell these disks apart, and the wrong one could be
written: they are never used as targets. Nothing was written.

What to set:  disk.EnableUUID = TRUE   in the parameters of this virtual machine
When:         while it is off (power off, not restart)

How, one of these:
- vSphere client: Edit settings, VM options, Advanced, Configuration
  parameters, Add: disk.EnableUUID, value TRUE
- the API:        govc vm.change -vm NAME -e disk.EnableUUID=TRUE
- the .vmx file:  mt-image vmx enable-uuid NAME.vmx

IDs shown by several disks come from clones: attach only one of them.
Then start it and look again: mt-installer scsi-ids
";

/// Why a disk on a SATA controller has no ID, and what to do.
const ON_SATA: &str = "SATA disk: move it to a SCSI controller";

/// What to do elsewhere.
const ELSEWHERE: &str = "
This is no virtual machine of VMware's, so no setting of VMware's is missing.
Disks without an ID are never used as targets; give them one where the
hypervisor can (QEMU: wwn= of the disk), and attach only one of those that
show the same.
";

fn count_of(count: usize, what: &str, rest: &str) -> String {
    match count {
        0 => format!("no {what} is attached"),
        1 => format!("1 {what}, {rest}"),
        _ => format!("{count} {what}s, {rest}"),
    }
}

/// A size for people, in units of 1024.
fn size(bytes: u64) -> String {
    let mut unit = "B";
    let mut value = bytes;
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024 {
            break;
        }
        (value, unit) = (value / 1024, next);
    }
    format!("{value} {unit}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    fn disk(name: &str, id: Option<&str>) -> Disk {
        Disk {
            kernel_name: name.to_owned(),
            address: "2:0:1:0".to_owned(),
            size: 16 << 30,
            scsi_id: id.map(|id| ScsiId::parse(id).unwrap()),
            why: id.is_none().then(|| "VPD page 0x83 is empty".to_owned()),
        }
    }

    fn report(vendor: &str, disks: Vec<Disk>) -> Report {
        Report {
            vendor: vendor.to_owned(),
            disks,
        }
    }

    const ONE: &str = "naa.6000c29a71e02b4c9d118e55037faa01";
    const TWO: &str = "naa.6000c29a71e02b4c9d118e55037faa02";

    #[test]
    fn every_combination_has_its_verdict() {
        let none = || disk("sdb", None);
        let table = [
            ("VMware, Inc.", vec![], Verdict::Good),
            (
                "VMware, Inc.",
                vec![disk("sda", Some(ONE)), disk("sdb", Some(TWO))],
                Verdict::Good,
            ),
            (
                "VMware, Inc.",
                vec![disk("sda", Some(ONE)), none()],
                Verdict::Refused,
            ),
            (
                "VMware, Inc.",
                vec![disk("sda", Some(ONE)), disk("sdb", Some(ONE))],
                Verdict::Refused,
            ),
            ("QEMU", vec![none()], Verdict::Warning),
            (
                "",
                vec![disk("sda", Some(ONE)), disk("sdb", Some(ONE))],
                Verdict::Warning,
            ),
        ];
        for (vendor, disks, verdict) in table {
            let report = report(vendor, disks);
            assert_eq!(report.verdict(), verdict, "{}", report.screen());
            for line in report.screen().lines() {
                assert!(line.len() <= 80, "{line}");
            }
        }
    }

    #[test]
    fn the_screen_names_disks_setting_place_and_ways() {
        let screen = report("VMware, Inc.", vec![disk("sda", Some(ONE)), disk("sdb", None)]).screen();
        for text in [
            "IN DOUBT: 1 of 2 SCSI disks show no ID",
            "  sdb    at 2:0:1:0        16 GiB  VPD page 0x83 is empty",
            "disk.EnableUUID = TRUE",
            "power off, not restart",
            "vSphere client: Edit settings",
            "govc vm.change -vm NAME -e disk.EnableUUID=TRUE",
            "mt-image vmx enable-uuid NAME.vmx",
        ] {
            assert!(screen.contains(text), "{text:?} is not in\n{screen}");
        }
        let shared = report(
            "VMware, Inc.",
            vec![disk("sda", Some(ONE)), disk("sdb", Some(ONE))],
        )
        .screen();
        assert!(
            shared.contains(&format!("{ONE} is shown by sda, sdb")),
            "{shared}"
        );
        let elsewhere = report("QEMU", vec![disk("sdb", None)]).screen();
        assert!(!elsewhere.contains("EnableUUID"), "{elsewhere}");
    }

    #[test]
    fn page_83_is_read_for_its_name_only() {
        let named = [0, 0x83, 0, 0x14, 1, 3, 0, 0x10].into_iter();
        let id = [
            0x60, 0, 0xc2, 0x9a, 0x71, 0xe0, 0x2b, 0x4c, 0x9d, 0x11, 0x8e, 0x55, 3, 0x7f, 0xaa, 1,
        ];
        let page: Vec<u8> = named.chain(id).collect();
        assert_eq!(identity(&page).0.unwrap().to_string(), ONE);
        assert_eq!(identity(&[0, 0x83, 0, 0]).1.unwrap(), "VPD page 0x83 is empty");
        assert!(identity(&page[..10]).1.unwrap().contains("damaged"));
    }
}
