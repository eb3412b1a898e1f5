// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is true of this machine's disks and memory. Reads only.

use std::fs;
use std::path::{Path, PathBuf};

use mt_blockdev::blkid::{self, Usage};
use mt_blockdev::mounts::Proc;
use mt_blockdev::sysfs::{DeviceNumber, Sysfs, devnode};
use serde::Serialize;

use crate::error::{Error, Kind, Result};
use crate::plan::size_text;
use crate::scsi_ids::{self, Report};

/// Device names that are stacked on others, in memory, or no disks.
const NOT_A_DISK: [&str; 10] = [
    "loop", "ram", "zram", "dm-", "md", "bcache", "nbd", "drbd", "fd", "sr",
];
/// Where udev keeps the names of disks.
const LINKS: [&str; 2] = ["disk/by-id", "disk/by-path"];

/// What is true of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MachineFacts {
    /// Bytes of memory.
    pub memory: u64,
    /// Disks, in the order of their controllers and targets where that is known.
    pub disks: Vec<DiskFacts>,
    /// Whether every SCSI disk but the installation medium shows an ID of its own.
    pub scsi_ids: Report,
}

/// What is true of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DiskFacts {
    /// Device node.
    pub devnode: PathBuf,
    /// Kernel name.
    pub kernel_name: String,
    /// SCSI ID, as the kernel read it from VPD page 0x83.
    pub scsi_id: Option<String>,
    /// Host, channel, target and unit.
    pub address: Option<String>,
    /// Links that udev made.
    pub links: Vec<String>,
    /// Vendor and model.
    pub model: String,
    /// Size in bytes.
    pub size: u64,
    /// Smallest unit of a write.
    pub logical_block_size: u32,
    /// The kernel holds it read-only.
    pub read_only: bool,
    /// It carries the installation medium.
    pub is_medium: bool,
    /// Who uses it.
    pub used_by: Vec<String>,
    /// Nothing was found on it.
    pub is_empty: bool,
    /// What is on it holds nothing but an earlier master target.
    pub is_ours: bool,
    /// What is on it, in a few words.
    pub content: String,
    /// Its partitions, a line each.
    pub partitions: Vec<String>,
    /// Why it could not be looked at.
    pub unreadable: Option<String>,
}

impl DiskFacts {
    /// The name that is best to give it by.
    #[must_use]
    pub fn best_name(&self) -> &str {
        self.scsi_id.as_deref().unwrap_or(&self.kernel_name)
    }

    /// For messages: stable ID first, kernel name in brackets.
    #[must_use]
    pub fn shown(&self) -> String {
        match &self.scsi_id {
            Some(id) => format!("{id} ({})", self.kernel_name),
            None => format!("{} (no SCSI ID)", self.kernel_name),
        }
    }

    /// One line about it.
    #[must_use]
    pub fn line(&self) -> String {
        let at = self
            .address
            .as_ref()
            .map(|address| format!(" at {address}"))
            .unwrap_or_default();
        format!(
            "{}{at}, {}, {}, holds {}",
            self.shown(),
            self.model,
            size_text(self.size),
            self.content
        )
    }

    /// Whether a name means this disk: its SCSI ID with or without the `naa.`, kernel name, device node or a link.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        let id = self.scsi_id.as_deref().is_some_and(|id| {
            let bare = id.split_once('.').map_or(id, |(_, digits)| digits);
            let given = name.trim_start_matches("0x");
            given.eq_ignore_ascii_case(id) || given.eq_ignore_ascii_case(bare)
        });
        let path = name.strip_prefix("/dev/").unwrap_or(name);
        id || path == self.kernel_name || self.links.iter().any(|link| link == path)
    }

    /// Whether it holds what is not ours: a guest's disk, or recovery points.
    #[must_use]
    pub fn holds_foreign(&self) -> bool {
        !self.is_empty && !self.is_ours
    }
}

/// Gathers the facts.
///
/// # Errors
/// `/sys` or `/proc` cannot be read.
pub fn gather() -> Result<MachineFacts> {
    let cannot = |what: &str, error: std::io::Error| {
        Error::new(
            Kind::Unexpected,
            format!("cannot read {what} of this machine: {error}"),
        )
        .hint("run as root, with /sys and /proc mounted")
    };
    let sysfs = Sysfs::new("/sys");
    let proc = Proc::new("/proc");
    let names = sysfs
        .whole_devices()
        .map_err(|error| cannot("the disks", error))?;
    let nodes = sysfs.nodes().map_err(|error| cannot("the disks", error))?;
    let mounts = proc.mounts().map_err(|error| cannot("the mounts", error))?.mounts;
    let swaps = proc.swaps().map_err(|error| cannot("the swap", error))?;
    let medium = fs::read_to_string("/run/mt/device").unwrap_or_default();
    let links = links();
    let mut disks = Vec::new();
    for name in names {
        if NOT_A_DISK.iter().any(|start| name.starts_with(start)) {
            continue;
        }
        let Some(disk) = sysfs.disk(&name).filter(|disk| disk.size > 0) else {
            continue;
        };
        if disk.scsi.as_ref().is_some_and(|scsi| scsi.device_type != 0) {
            continue;
        }
        let own: Vec<_> = nodes
            .iter()
            .filter(|node| node.name == name || node.disk.as_deref() == Some(&name))
            .collect();
        let mut used_by = Vec::new();
        for node in &own {
            for mount in mounts.iter().filter(|mount| mount.number == node.number) {
                used_by.push(format!(
                    "{} is mounted on {}",
                    node.name,
                    mount.mount_point.display()
                ));
            }
            for holder in &node.holders {
                used_by.push(format!("{} is part of {holder}", node.name));
            }
            for swap in swaps.iter().filter(|swap| swap.path == devnode(&node.name)) {
                used_by.push(format!("{} is swap", swap.path.display()));
            }
        }
        used_by.sort();
        used_by.dedup();
        let mut facts = DiskFacts {
            devnode: devnode(&name),
            scsi_id: disk.scsi.as_ref().and_then(|scsi| stable(scsi.wwid.as_deref()?)),
            address: disk.scsi.as_ref().map(|scsi| scsi.hctl.clone()),
            links: links
                .iter()
                .filter(|(_, to)| *to == name)
                .map(|(link, _)| link.clone())
                .collect(),
            model: disk.scsi.as_ref().map_or_else(
                || "disk".to_owned(),
                |scsi| format!("{} {}", scsi.vendor, scsi.model),
            ),
            size: disk.size,
            logical_block_size: disk.logical_block_size,
            read_only: disk.read_only,
            is_medium: own
                .iter()
                .any(|node| devnode(&node.name) == Path::new(medium.trim())),
            used_by,
            kernel_name: name,
            ..DiskFacts::default()
        };
        look(&mut facts);
        disks.push(facts);
    }
    disks.sort_by_key(|disk| address_key(disk.address.as_deref()));
    let mut scsi_ids = scsi_ids::gather(Path::new("/"))?;
    scsi_ids.disks.retain(|asked| {
        !disks
            .iter()
            .any(|disk| disk.is_medium && disk.kernel_name == asked.kernel_name)
    });
    Ok(MachineFacts {
        memory: memory(),
        disks,
        scsi_ids,
    })
}

/// The facts of one block device that the operator names, of whatever kind: a disk, or a loop device that stands in for
/// one.
///
/// # Errors
/// It is no block device, or `/sys` cannot be read.
pub fn of_device(path: &Path) -> Result<DiskFacts> {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let metadata = fs::metadata(path).map_err(|error| Error::io("find the disk", path, error))?;
    if !metadata.file_type().is_block_device() {
        return Err(Error::new(
            Kind::Disk,
            format!("{} is no block device", path.display()),
        ));
    }
    let sysfs = Sysfs::new("/sys");
    let number = DeviceNumber::from_dev(metadata.rdev());
    let whole = sysfs.name_of(number);
    let (name, disk) = match whole {
        Some((name, None)) => {
            let disk = sysfs.disk(&name);
            (name, disk)
        }
        _ => {
            return Err(
                Error::new(Kind::Disk, format!("{} is no whole disk", path.display()))
                    .hint("name the disk, not a partition"),
            );
        }
    };
    let Some(disk) = disk else {
        return Err(Error::new(Kind::Disk, format!("{} is gone", path.display())));
    };
    let mut facts = DiskFacts {
        devnode: path.to_owned(),
        kernel_name: name,
        model: "block device".to_owned(),
        size: disk.size,
        logical_block_size: disk.logical_block_size,
        read_only: disk.read_only,
        ..DiskFacts::default()
    };
    let mounts = Proc::new("/proc")
        .mounts()
        .map_err(|error| Error::io("read the mounts in", Path::new("/proc"), error))?;
    for mount in mounts.mounts.iter().filter(|mount| mount.number == number) {
        facts
            .used_by
            .push(format!("it is mounted on {}", mount.mount_point.display()));
    }
    look(&mut facts);
    Ok(facts)
}

/// What is on a disk. Whole disks are opened for reading, nothing is assembled or mounted.
fn look(facts: &mut DiskFacts) {
    let found = fs::File::open(&facts.devnode)
        .map_err(|error| error.to_string())
        .and_then(|file| blkid::probe(&file, facts.size).map_err(|error| error.to_string()));
    match found {
        Ok(content) => {
            facts.is_empty = content.is_empty();
            facts.content = content.summary();
            let named = |name: &Option<String>| name.as_deref().is_some_and(|name| name.starts_with("mt-"));
            facts.is_ours = !content.partitions.is_empty()
                && content.partitions.iter().all(|partition| named(&partition.name));
            for partition in &content.partitions {
                let what = partition.signature.as_ref().map_or_else(
                    || "nothing known".to_owned(),
                    |signature| {
                        let label = signature.label.as_deref().unwrap_or_default();
                        let kind = match signature.usage {
                            Usage::Filesystem => "file system ",
                            _ => "",
                        };
                        format!("{kind}{} {label}", signature.kind)
                    },
                );
                facts.partitions.push(format!(
                    "partition {}, {}: {}",
                    partition.number,
                    size_text(partition.size),
                    what.trim_end()
                ));
            }
        }
        Err(why) => {
            facts.content = "what cannot be read".to_owned();
            facts.unreadable = Some(why);
        }
    }
}

/// The kernel's `wwid` where it is a registered name, which no other disk has.
fn stable(wwid: &str) -> Option<String> {
    let wwid = wwid.trim();
    let good = (wwid.starts_with("naa.") || wwid.starts_with("eui."))
        && wwid.bytes().all(|byte| byte.is_ascii_graphic());
    good.then(|| wwid.to_owned())
}

/// udev's names of disks: `disk/by-id/...` and what kernel name each leads to.
fn links() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in LINKS {
        let Ok(entries) = fs::read_dir(Path::new("/dev").join(folder)) else {
            continue;
        };
        for entry in entries.flatten() {
            if let Ok(to) = fs::canonicalize(entry.path())
                && let Some(name) = to.file_name()
            {
                let link = format!("{folder}/{}", entry.file_name().to_string_lossy());
                found.push((link, name.to_string_lossy().into_owned()));
            }
        }
    }
    found.sort();
    found
}

/// `2:0:10:0` sorts behind `2:0:9:0`.
fn address_key(address: Option<&str>) -> Vec<u32> {
    match address {
        Some(address) => address
            .split(':')
            .map(|part| part.parse().unwrap_or(u32::MAX))
            .collect(),
        None => vec![u32::MAX],
    }
}

/// Bytes of memory; 0 when the kernel does not tell.
fn memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: u64 = total
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0);
    kib * 1024
}
