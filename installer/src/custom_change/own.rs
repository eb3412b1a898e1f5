// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which disks the running system needs itself. A system on LVM, md or multipath cannot be a master target: closing those
//! would close it too.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// SCSI IDs of the disks that the running system has mounted or swaps to, but for the one of `/`.
///
/// # Errors
/// The system stands on something that is about to be closed, or on a disk that cannot be known again.
pub fn further_disks() -> Result<Vec<String>> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    examine(
        Path::new("/sys"),
        &read("/proc/self/mountinfo"),
        &read("/proc/swaps"),
    )
}

/// SCSI peripheral device type of drives for CD and DVD (SPC-4, table 58; the kernel has ATAPI drives as SCSI's).
const SCSI_TYPE_OPTICAL: &str = "5";

/// The same, of what the kernel says of mounts and swap.
fn examine(sys: &Path, mountinfo: &str, swaps: &str) -> Result<Vec<String>> {
    let mut root_disks = BTreeSet::new();
    let mut others = BTreeSet::new();
    for line in mountinfo.lines() {
        let mut fields = line.split(' ');
        let (Some(number), Some(point)) = (fields.nth(2), fields.nth(1)) else {
            continue;
        };
        let device = sys.join("dev/block").join(number);
        let disks = if point == "/" {
            root_disks.clear();
            &mut root_disks
        } else {
            &mut others
        };
        below(&device, point, disks)?;
    }
    for line in swaps.lines().skip(1) {
        let name = line.split_whitespace().next().unwrap_or_default();
        if let Some(name) = name.strip_prefix("/dev/") {
            below(&sys.join("class/block").join(name), "swap", &mut others)?;
        }
    }
    let mut ids = Vec::new();
    for disk in others.difference(&root_disks) {
        // A medium in a drive is no disk of the system's, such as the CD that the tarball came on.
        let kind = fs::read_to_string(disk.join("device/type")).unwrap_or_default();
        if kind.trim() == SCSI_TYPE_OPTICAL {
            continue;
        }
        let wwid = fs::read_to_string(disk.join("device/wwid")).unwrap_or_default();
        let name = disk
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if wwid.trim().is_empty() {
            return Err(Error::new(
                Kind::Refused,
                format!(
                    "the system uses {name}, which shows no ID by which it could be known after a restart; nothing was changed"
                ),
            )
            .hint("move what is on it to the disk of the root file system, or set disk.EnableUUID=TRUE for this virtual machine"));
        }
        ids.push(wwid.trim().to_owned());
    }
    Ok(ids)
}

/// Adds the whole disks below a device; refuses LVM, md and multipath on the way.
fn below(device: &Path, used_for: &str, disks: &mut BTreeSet<PathBuf>) -> Result<()> {
    let Ok(mut device) = device.canonicalize() else {
        return Ok(());
    };
    if device.join("partition").exists() {
        device.pop();
    }
    let name = device
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let uuid = fs::read_to_string(device.join("dm/uuid")).unwrap_or_default();
    let closed = if device.join("md").is_dir() {
        Some("an md array")
    } else if uuid.starts_with("LVM-") {
        Some("a logical volume")
    } else if uuid.starts_with("mpath-") {
        Some("a multipath device")
    } else {
        None
    };
    if let Some(closed) = closed {
        return Err(Error::new(
            Kind::Refused,
            format!("{used_for} is on {name}, {closed}, which a master target never activates; nothing was changed"),
        )
        .hint("install the system on a plain disk, or use the ISO or the OVA of the master target"));
    }
    let slaves: Vec<PathBuf> = fs::read_dir(device.join("slaves"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    for slave in &slaves {
        below(slave, used_for, disks)?;
    }
    // Loop devices and memory have no device below them.
    if slaves.is_empty() && device.join("device").exists() {
        disks.insert(device);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A sysfs with sda (root on sda1), sdb with and sdc without an ID, dm-0 on sda2, md0 on sdb.
    fn sysfs() -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let make = |path: &str| fs::create_dir_all(sys.path().join(path)).unwrap();
        for (disk, number) in [("sda", "8:0"), ("sdb", "8:16"), ("sdc", "8:32")] {
            make(&format!("devices/{disk}/device"));
            make("dev/block");
            make("class/block");
            let target = sys.path().join("devices").join(disk);
            symlink(&target, sys.path().join("dev/block").join(number)).unwrap();
            symlink(&target, sys.path().join("class/block").join(disk)).unwrap();
        }
        for (part, number) in [("sda/sda1", "8:1"), ("sda/sda2", "8:2"), ("sdb/sdb1", "8:17")] {
            make(&format!("devices/{part}"));
            fs::write(sys.path().join("devices").join(part).join("partition"), "1").unwrap();
            let target = sys.path().join("devices").join(part);
            symlink(target, sys.path().join("dev/block").join(number)).unwrap();
        }
        fs::write(
            sys.path().join("devices/sdb/device/wwid"),
            "naa.6000c29000000001\n",
        )
        .unwrap();
        make("devices/dm-0/dm");
        make("devices/dm-0/slaves");
        symlink(
            sys.path().join("devices/sda/sda2"),
            sys.path().join("devices/dm-0/slaves/sda2"),
        )
        .unwrap();
        symlink(
            sys.path().join("devices/dm-0"),
            sys.path().join("dev/block/253:0"),
        )
        .unwrap();
        make("devices/md0/md");
        symlink(sys.path().join("devices/md0"), sys.path().join("dev/block/9:0")).unwrap();
        sys
    }

    fn mounts(list: &[(&str, &str)]) -> String {
        list.iter()
            .map(|(number, point)| format!("20 1 {number} / {point} rw - ext4 /dev/x rw\n"))
            .collect()
    }

    const NO_SWAP: &str = "Filename Type Size Used Priority\n";

    #[test]
    fn further_disks_are_known_by_their_id() {
        let sys = sysfs();
        let table = mounts(&[
            ("0:21", "/proc"),
            ("8:1", "/"),
            ("8:2", "/home"),
            ("8:17", "/srv"),
        ]);
        assert_eq!(
            examine(sys.path(), &table, NO_SWAP).unwrap(),
            ["naa.6000c29000000001"]
        );
        let swap = format!("{NO_SWAP}/dev/sdb partition 1 0 -2\n");
        let found = examine(sys.path(), &mounts(&[("8:1", "/")]), &swap).unwrap();
        assert_eq!(found, ["naa.6000c29000000001"]);
        assert!(
            examine(sys.path(), &mounts(&[("8:1", "/")]), NO_SWAP)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_disk_that_cannot_be_known_again_is_refused() {
        let sys = sysfs();
        let refused = examine(sys.path(), &mounts(&[("8:1", "/"), ("8:32", "/srv")]), NO_SWAP).unwrap_err();
        assert_eq!(refused.kind, Kind::Refused);
        assert!(
            refused.to_string().contains("uses sdc, which shows no ID"),
            "{refused}"
        );
    }

    /// The medium that the tarball came on was once taken for a disk of the system's, and the step refused.
    #[test]
    fn a_medium_in_a_drive_is_no_disk() {
        let sys = sysfs();
        fs::write(sys.path().join("devices/sdc/device/type"), "5\n").unwrap();
        let table = mounts(&[("8:1", "/"), ("8:32", "/mnt")]);
        assert!(examine(sys.path(), &table, NO_SWAP).unwrap().is_empty());
        fs::write(sys.path().join("devices/sdc/device/type"), "0\n").unwrap();
        assert!(examine(sys.path(), &table, NO_SWAP).is_err());
    }

    #[test]
    fn a_system_on_what_is_closed_is_refused() {
        let sys = sysfs();
        for (uuid, words) in [
            ("LVM-abc", "dm-0, a logical volume"),
            ("mpath-36", "dm-0, a multipath device"),
        ] {
            fs::write(sys.path().join("devices/dm-0/dm/uuid"), uuid).unwrap();
            let refused = examine(sys.path(), &mounts(&[("253:0", "/")]), NO_SWAP).unwrap_err();
            assert!(refused.to_string().contains(words), "{refused}");
        }
        // Encryption is opened with a key and by name; nothing of it is closed.
        fs::write(sys.path().join("devices/dm-0/dm/uuid"), "CRYPT-LUKS2-x").unwrap();
        assert!(
            examine(sys.path(), &mounts(&[("253:0", "/")]), NO_SWAP)
                .unwrap()
                .is_empty()
        );
        let refused = examine(sys.path(), &mounts(&[("8:1", "/"), ("9:0", "/srv")]), NO_SWAP).unwrap_err();
        assert!(
            refused.to_string().contains("/srv is on md0, an md array"),
            "{refused}"
        );
    }
}
