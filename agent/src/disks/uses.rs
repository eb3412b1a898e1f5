//! Who uses a disk: mounts in any visible namespace, swap, and everything stacked on it.
//!
//! Pure: a snapshot of the machine's block devices goes in. Stacks are followed upwards without limit (a
//! volume on LVM on md on two partitions), and each device once, so that a loop in damaged data ends.

use std::collections::BTreeSet;
use std::path::PathBuf;

use mt_blockdev::sysfs::{BlockNode, DeviceNumber};

use super::facts::{DiskUse, UseKind};

/// Where bytes are kept: which device or which file. Two paths with the same storage are the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Storage {
    /// A block device.
    Device(DeviceNumber),
    /// A regular file: device number of its file system, and inode.
    File(u64, u64),
}

/// One mount, reduced to the devices it uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountUse {
    /// The devices: the file system's own number, and that of its source where that is a device.
    pub numbers: Vec<DeviceNumber>,
    /// Where it is mounted.
    pub at: PathBuf,
    /// Whether it is in this process' mount namespace.
    pub own_namespace: bool,
}

/// Everything that can use a disk, at one instant.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// All block devices.
    pub nodes: Vec<BlockNode>,
    /// Loop devices by name, with what they are attached to.
    pub loops: Vec<(String, Storage)>,
    /// All mounts.
    pub mounts: Vec<MountUse>,
    /// Active swap areas: their storage, and the path they are shown by.
    pub swaps: Vec<(Storage, PathBuf)>,
    /// The appliance's own places (`/`, `/boot`, state folder) with the devices their file systems are on.
    pub own: Vec<(String, Vec<DeviceNumber>)>,
}

impl Snapshot {
    /// Every use of the whole disk `name`, the appliance's own first; each once.
    #[must_use]
    pub fn uses_of_disk(&self, name: &str) -> Vec<DiskUse> {
        let mut found = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for node in &self.nodes {
            if node.name == name || node.disk.as_deref() == Some(name) {
                self.collect(node, &node.name, &mut seen, &mut found);
            }
        }
        found.into_iter().collect()
    }

    /// Every use of an image file; `except` is the loop device it is legitimately known by, if any.
    #[must_use]
    pub fn uses_of_storage(&self, storage: Storage, except: Option<&str>) -> Vec<DiskUse> {
        let mut found = BTreeSet::new();
        for (name, backing) in &self.loops {
            if *backing == storage && Some(name.as_str()) != except {
                found.insert(DiskUse {
                    kind: UseKind::Loop,
                    what: format!("{name} is attached to it"),
                });
                // What is mounted from that loop device says more of why it is there.
                found.extend(self.uses_of_disk(name));
            }
        }
        for (area, path) in &self.swaps {
            if *area == storage {
                found.insert(DiskUse {
                    kind: UseKind::Swap,
                    what: format!("{} is swap", path.display()),
                });
            }
        }
        found.into_iter().collect()
    }

    /// Adds the uses of one device and of all that is stacked on it. `via` is how the device is shown: `sdb2`,
    /// or `sdb2 (through dm-0 "vg-root")`.
    fn collect<'a>(
        &'a self,
        node: &'a BlockNode,
        via: &str,
        seen: &mut BTreeSet<&'a str>,
        found: &mut BTreeSet<DiskUse>,
    ) {
        if !seen.insert(&node.name) {
            return;
        }
        for (place, numbers) in &self.own {
            if numbers.contains(&node.number) {
                found.insert(DiskUse {
                    kind: UseKind::Appliance,
                    what: format!("{via} holds {place}"),
                });
            }
        }
        for mount in self
            .mounts
            .iter()
            .filter(|mount| mount.numbers.contains(&node.number))
        {
            let elsewhere = if mount.own_namespace {
                ""
            } else {
                " in another mount namespace"
            };
            let what = format!("{via} is mounted on {}{elsewhere}", shown(&mount.at));
            found.insert(DiskUse {
                kind: UseKind::Mount,
                what,
            });
        }
        let storage = Storage::Device(node.number);
        if self.swaps.iter().any(|(area, _)| *area == storage) {
            found.insert(DiskUse {
                kind: UseKind::Swap,
                what: format!("{via} is swap"),
            });
        }
        for (name, backing) in &self.loops {
            if *backing == storage {
                found.insert(DiskUse {
                    kind: UseKind::Loop,
                    what: format!("{name} is attached to {via}"),
                });
                self.follow(name, via, seen, found);
            }
        }
        // Holders as the device tells them, and slaves as the devices above tell them: either side may be
        // missing in the moment a stack is built or taken down.
        let above = self
            .nodes
            .iter()
            .filter(|other| other.slaves.contains(&node.name))
            .map(|other| &other.name);
        for holder in node.holders.iter().chain(above).collect::<BTreeSet<_>>() {
            let described = self.describe(holder);
            found.insert(DiskUse {
                kind: UseKind::Holder,
                what: format!("{via} is held by {described}"),
            });
            self.follow(holder, via, seen, found);
        }
        // Partitions of a stacked device (a loop device, an md array) are uses of what is below, too.
        for part in self
            .nodes
            .iter()
            .filter(|other| other.disk.as_deref() == Some(node.name.as_str()))
        {
            let via = if via == node.name {
                part.name.clone()
            } else {
                format!("{via}, {}", part.name)
            };
            self.collect(part, &via, seen, found);
        }
    }

    fn follow<'a>(
        &'a self,
        name: &str,
        via: &str,
        seen: &mut BTreeSet<&'a str>,
        found: &mut BTreeSet<DiskUse>,
    ) {
        if let Some(node) = self.nodes.iter().find(|node| node.name == name) {
            let through = format!("{} on {}", self.describe(name), base(via));
            self.collect(node, &through, seen, found);
        }
    }

    /// A stacked device with the name people know it by.
    fn describe(&self, name: &str) -> String {
        let node = self.nodes.iter().find(|node| node.name == name);
        let Some(dm_name) = node.and_then(|node| node.dm_name.as_deref()) else {
            return name.to_owned();
        };
        let maker = match node
            .and_then(|node| node.dm_uuid.as_deref())
            .and_then(|uuid| uuid.split('-').next())
        {
            Some("LVM") => "LVM ",
            Some("mpath") => "multipath ",
            Some("CRYPT") => "crypt ",
            _ => "",
        };
        format!("{name} ({maker}{dm_name})")
    }
}

/// The device a description ends in: of `dm-1 (LVM a) on sdb2` it is `sdb2`.
fn base(via: &str) -> &str {
    via.rsplit(" on ").next().unwrap_or(via)
}

/// A path made safe for one line of a terminal.
fn shown(path: &std::path::Path) -> String {
    path.display()
        .to_string()
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(minor: u64) -> DeviceNumber {
        DeviceNumber { major: 8, minor }
    }

    fn node(name: &str, minor: u64) -> BlockNode {
        BlockNode {
            name: name.to_owned(),
            number: number(minor),
            disk: None,
            holders: Vec::new(),
            slaves: Vec::new(),
            backing_file: None,
            dm_name: None,
            dm_uuid: None,
        }
    }

    fn part(name: &str, disk: &str, minor: u64) -> BlockNode {
        BlockNode {
            disk: Some(disk.to_owned()),
            ..node(name, minor)
        }
    }

    fn mount(minor: u64, at: &str) -> MountUse {
        MountUse {
            numbers: vec![number(minor)],
            at: at.into(),
            own_namespace: true,
        }
    }

    fn texts(snapshot: &Snapshot, disk: &str) -> Vec<String> {
        snapshot
            .uses_of_disk(disk)
            .into_iter()
            .map(|used| format!("{:?}: {}", used.kind, used.what))
            .collect()
    }

    #[test]
    fn an_unused_disk_has_no_uses_whatever_its_neighbours_have() {
        let snapshot = Snapshot {
            nodes: vec![
                node("sda", 0),
                part("sda1", "sda", 1),
                node("sdb", 16),
                part("sdb1", "sdb", 17),
            ],
            mounts: vec![mount(1, "/")],
            ..Snapshot::default()
        };
        assert!(snapshot.uses_of_disk("sdb").is_empty());
        assert_eq!(texts(&snapshot, "sda"), ["Mount: sda1 is mounted on /"]);
    }

    #[test]
    fn mounts_swap_and_the_appliances_places_are_found_on_partitions() {
        let snapshot = Snapshot {
            nodes: vec![
                node("sda", 0),
                part("sda1", "sda", 1),
                part("sda2", "sda", 2),
                part("sda3", "sda", 3),
            ],
            mounts: vec![
                mount(2, "/"),
                MountUse {
                    own_namespace: false,
                    ..mount(1, "/run/x\n")
                },
            ],
            swaps: vec![(Storage::Device(number(3)), "/dev/sda3".into())],
            own: vec![("/".into(), vec![number(2)])],
            ..Snapshot::default()
        };
        assert_eq!(
            texts(&snapshot, "sda"),
            [
                "Appliance: sda2 holds /",
                "Mount: sda1 is mounted on /run/x? in another mount namespace",
                "Mount: sda2 is mounted on /",
                "Swap: sda3 is swap",
            ]
        );
    }

    #[test]
    fn a_stack_of_md_and_lvm_is_followed_to_the_mount_on_top() {
        let lvm = BlockNode {
            slaves: vec!["md0".into()],
            dm_name: Some("vg-data".into()),
            dm_uuid: Some("LVM-abc".into()),
            ..node("dm-0", 100)
        };
        let snapshot = Snapshot {
            nodes: vec![
                node("sdb", 16),
                BlockNode {
                    holders: vec!["md0".into()],
                    ..part("sdb1", "sdb", 17)
                },
                node("sdc", 32),
                // The kernel lists both sides; here one side is missing on each disk.
                part("sdc1", "sdc", 33),
                BlockNode {
                    slaves: vec!["sdb1".into(), "sdc1".into()],
                    holders: vec!["dm-0".into()],
                    ..node("md0", 90)
                },
                lvm,
            ],
            mounts: vec![mount(100, "/srv")],
            ..Snapshot::default()
        };
        for (disk, part) in [("sdb", "sdb1"), ("sdc", "sdc1")] {
            assert_eq!(
                texts(&snapshot, disk),
                [
                    format!("Mount: dm-0 (LVM vg-data) on {part} is mounted on /srv"),
                    format!("Holder: md0 on {part} is held by dm-0 (LVM vg-data)"),
                    format!("Holder: {part} is held by md0"),
                ]
            );
        }
    }

    #[test]
    fn a_loop_device_on_the_disk_is_a_use_and_so_is_its_partition() {
        let snapshot = Snapshot {
            nodes: vec![node("sdb", 16), node("loop3", 70), part("loop3p1", "loop3", 71)],
            loops: vec![("loop3".into(), Storage::Device(number(16)))],
            mounts: vec![mount(71, "/x")],
            ..Snapshot::default()
        };
        assert_eq!(
            texts(&snapshot, "sdb"),
            [
                "Mount: loop3 on sdb, loop3p1 is mounted on /x",
                "Loop: loop3 is attached to sdb"
            ]
        );
    }

    #[test]
    fn an_image_file_is_used_by_any_other_loop_device_and_by_swap() {
        let file = Storage::File(5, 77);
        let snapshot = Snapshot {
            nodes: vec![node("loop3", 70), node("loop4", 71)],
            loops: vec![("loop3".into(), file), ("loop4".into(), Storage::File(5, 78))],
            swaps: vec![(file, "/swapfile".into())],
            mounts: vec![mount(70, "/x")],
            ..Snapshot::default()
        };
        let texts = |except| -> Vec<String> {
            snapshot
                .uses_of_storage(file, except)
                .into_iter()
                .map(|used| used.what)
                .collect()
        };
        assert_eq!(
            texts(None),
            [
                "loop3 is mounted on /x",
                "/swapfile is swap",
                "loop3 is attached to it"
            ]
        );
        assert_eq!(texts(Some("loop3")), ["/swapfile is swap"]);
    }

    #[test]
    fn damaged_data_that_runs_in_a_circle_ends() {
        let snapshot = Snapshot {
            nodes: vec![
                BlockNode {
                    holders: vec!["dm-0".into()],
                    slaves: vec!["dm-0".into()],
                    ..node("sdb", 16)
                },
                BlockNode {
                    holders: vec!["sdb".into(), "gone".into()],
                    ..node("dm-0", 100)
                },
            ],
            ..Snapshot::default()
        };
        assert!(
            snapshot
                .uses_of_disk("sdb")
                .iter()
                .all(|used| used.kind == UseKind::Holder)
        );
    }

    #[test]
    fn a_file_system_that_hides_its_device_is_found_by_its_source() {
        // btrfs has a device number of its own making; the source tells the disk.
        let btrfs = MountUse {
            numbers: vec![DeviceNumber { major: 0, minor: 40 }, number(16)],
            at: "/data".into(),
            own_namespace: true,
        };
        let snapshot = Snapshot {
            nodes: vec![node("sdb", 16)],
            mounts: vec![btrfs],
            ..Snapshot::default()
        };
        assert_eq!(texts(&snapshot, "sdb"), ["Mount: sdb is mounted on /data"]);
    }
}
