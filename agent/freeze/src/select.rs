//! Which file systems have to be frozen so that some disks are quiet, and in which order. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use mt_blockdev::mounts::{Mount, mount_of};
use mt_blockdev::sysfs::{BlockNode, devnode};

use crate::agent::FileSystem;

/// Layers of devices and files below a mount that are followed; real ones have four or five.
const LAYERS_MAX: usize = 32;

/// A mounted file system on the disks that cannot be frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Where it is mounted, as seen in its own namespace.
    pub mount_point: PathBuf,
    /// Its type.
    pub fs_type: String,
    /// Why.
    pub reason: Reason,
}

/// Why a file system is not frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It is mounted in a mount namespace of others only, so it has no path here.
    #[error("it is mounted in another mount namespace only (a container)")]
    OtherNamespace,
    /// More layers than are followed, or a device that refers to itself.
    #[error("the devices and files below it do not end")]
    Endless,
}

/// What is to be frozen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// To be frozen together.
    pub file_systems: Vec<FileSystem>,
    /// On the disks too, and not to be frozen: a point made of this freeze is not consistent as to these.
    pub left_out: Vec<LeftOut>,
}

/// How deep a file system lies.
enum Below {
    /// Not on the disks.
    Elsewhere,
    /// On them, with so many files of other file systems in between.
    OnDisks(usize),
    Endless,
}

/// Finds what is mounted on these whole disks, given by kernel name: on partitions, on volumes stacked on them, and in
/// files on them by way of loop devices. Each file system once, however often it is mounted.
#[must_use]
pub fn select(mounts: &[Mount], nodes: &[BlockNode], disks: &BTreeSet<String>) -> Selection {
    let mut found: BTreeMap<&str, (&Mount, usize)> = BTreeMap::new();
    let mut selection = Selection::default();
    let mut elsewhere: BTreeMap<&str, LeftOut> = BTreeMap::new();
    for mount in mounts {
        let Some(node) = device_of(mount, nodes) else {
            continue;
        };
        let leave = |reason| LeftOut {
            mount_point: mount.mount_point.clone(),
            fs_type: mount.fs_type.clone(),
            reason,
        };
        match below(node, mounts, nodes, disks, 0) {
            Below::Elsewhere => {}
            Below::Endless => selection.left_out.push(leave(Reason::Endless)),
            Below::OnDisks(_) if !mount.own_namespace => {
                elsewhere
                    .entry(&node.name)
                    .or_insert_with(|| leave(Reason::OtherNamespace));
            }
            Below::OnDisks(files) => {
                found.entry(&node.name).or_insert((mount, files));
            }
        }
    }
    selection.left_out.extend(
        elsewhere
            .into_iter()
            .filter(|(name, _)| !found.contains_key(name))
            .map(|(_, left)| left),
    );
    let deepest = found.values().map(|(_, files)| *files).max().unwrap_or(0);
    let file_systems = found.into_values().map(|(mount, files)| FileSystem {
        mount_point: mount.mount_point.clone(),
        level: deepest - files,
    });
    selection.file_systems.extend(file_systems);
    selection
        .file_systems
        .sort_by(|one, other| (one.level, &one.mount_point).cmp(&(other.level, &other.mount_point)));
    selection
}

/// The device of a mount. One without a number of its own (btrfs) is found by what was mounted.
fn device_of<'a>(mount: &Mount, nodes: &'a [BlockNode]) -> Option<&'a BlockNode> {
    if mount.number.is_device() {
        return nodes.iter().find(|node| node.number == mount.number);
    }
    nodes.iter().find(|node| {
        devnode(&node.name) == mount.source
            || node
                .dm_name
                .as_ref()
                .is_some_and(|name| PathBuf::from("/dev/mapper").join(name) == mount.source)
    })
}

fn below(
    node: &BlockNode,
    mounts: &[Mount],
    nodes: &[BlockNode],
    disks: &BTreeSet<String>,
    layer: usize,
) -> Below {
    if layer > LAYERS_MAX {
        return Below::Endless;
    }
    if disks.contains(&node.name) {
        return Below::OnDisks(0);
    }
    let named = |name: &String| nodes.iter().find(|node| node.name == *name);
    if let Some(file) = &node.backing_file {
        let under = mount_of(mounts, file).and_then(|mount| device_of(mount, nodes));
        return match under.map(|under| below(under, mounts, nodes, disks, layer + 1)) {
            None => Below::Elsewhere,
            Some(Below::OnDisks(files)) => Below::OnDisks(files + 1),
            Some(other) => other,
        };
    }
    let mut result = Below::Elsewhere;
    for under in node.disk.iter().chain(&node.slaves).filter_map(named) {
        match (below(under, mounts, nodes, disks, layer + 1), &result) {
            (Below::Endless, _) => return Below::Endless,
            (Below::OnDisks(files), Below::OnDisks(most)) if files <= *most => {}
            (Below::OnDisks(files), _) => result = Below::OnDisks(files),
            (Below::Elsewhere, _) => {}
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use mt_blockdev::mounts::parse_mountinfo;
    use mt_blockdev::sysfs::DeviceNumber;

    use super::*;

    fn node(name: &str, number: (u64, u64), disk: Option<&str>, slaves: &[&str]) -> BlockNode {
        BlockNode {
            name: name.to_owned(),
            number: DeviceNumber {
                major: number.0,
                minor: number.1,
            },
            disk: disk.map(str::to_owned),
            holders: Vec::new(),
            slaves: slaves.iter().map(|name| (*name).to_owned()).collect(),
            backing_file: None,
            dm_name: None,
            dm_uuid: None,
        }
    }

    fn looped(name: &str, number: (u64, u64), file: &str) -> BlockNode {
        BlockNode {
            backing_file: Some(file.into()),
            ..node(name, number, None, &[])
        }
    }

    fn machine() -> Vec<BlockNode> {
        let mut volume = node("dm-0", (253, 0), None, &["sda3", "sdb"]);
        volume.dm_name = Some("vg-data".to_owned());
        vec![
            node("sda", (8, 0), None, &[]),
            node("sda1", (8, 1), Some("sda"), &[]),
            node("sda3", (8, 3), Some("sda"), &[]),
            node("sdb", (8, 16), None, &[]),
            node("sdc", (8, 32), None, &[]),
            volume,
            looped("loop0", (7, 0), "/srv/images/one.img"),
            looped("loop1", (7, 1), "/mnt/one/two.img"),
            looped("loop2", (7, 2), "/other/three.img"),
            looped("loop3", (7, 3), "/self/four.img"),
        ]
    }

    const MOUNTINFO: &str = "\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
23 22 0:21 / /proc rw - proc proc rw
30 22 253:0 / /srv rw - xfs /dev/mapper/vg-data rw
31 22 253:0 /sub /bound rw - xfs /dev/mapper/vg-data rw
32 22 8:32 / /other rw - ext4 /dev/sdc rw
33 22 7:0 / /mnt/one rw - ext4 /dev/loop0 rw
34 22 7:1 / /mnt/two rw - ext4 /dev/loop1 rw
35 22 7:2 / /mnt/three rw - ext4 /dev/loop2 rw
";

    fn of(text: &str, foreign: &str, disks: &[&str]) -> Selection {
        let mut mounts = parse_mountinfo(text, true);
        mounts.extend(parse_mountinfo(foreign, false));
        select(
            &mounts,
            &machine(),
            &disks.iter().map(|name| (*name).to_owned()).collect(),
        )
    }

    fn told(selection: &Selection) -> Vec<(String, usize)> {
        let one =
            |file_system: &FileSystem| (file_system.mount_point.display().to_string(), file_system.level);
        selection.file_systems.iter().map(one).collect()
    }

    #[test]
    fn each_file_system_is_frozen_once_and_before_the_one_that_holds_its_file() {
        let wanted = [("/mnt/two", 0), ("/mnt/one", 1), ("/", 2), ("/srv", 2)];
        let wanted = wanted.map(|(path, level)| (path.to_owned(), level));
        assert_eq!(told(&of(MOUNTINFO, "", &["sda", "sdb"])), wanted);
    }

    #[test]
    fn other_disks_are_left_alone() {
        let selection = of(MOUNTINFO, "", &["sdc"]);
        assert_eq!(
            told(&selection),
            [("/mnt/three".to_owned(), 0), ("/other".to_owned(), 1)]
        );
        assert_eq!(of(MOUNTINFO, "", &[]), Selection::default());
    }

    #[test]
    fn one_without_a_number_is_found_by_its_source() {
        let text =
            "22 1 0:40 /@ / rw - btrfs /dev/mapper/vg-data rw\n30 22 0:41 / /b rw - btrfs /dev/sdc rw\n";
        assert_eq!(told(&of(text, "", &["sda"])), [("/".to_owned(), 0)]);
        assert_eq!(told(&of(text, "", &["sdc"])), [("/b".to_owned(), 0)]);
    }

    #[test]
    fn what_others_have_mounted_is_told() {
        let foreign =
            "90 80 8:32 / /var/lib/c rw - xfs /dev/sdc rw\n91 80 8:1 / /host rw - ext4 /dev/sda1 rw\n";
        let selection = of("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", foreign, &["sda", "sdc"]);
        assert_eq!(told(&selection), [("/".to_owned(), 0)]);
        let left = LeftOut {
            mount_point: "/var/lib/c".into(),
            fs_type: "xfs".to_owned(),
            reason: Reason::OtherNamespace,
        };
        assert_eq!(selection.left_out, [left]);
    }

    #[test]
    fn a_file_in_itself_ends() {
        let selection = of("22 1 7:3 / /self rw - ext4 /dev/loop3 rw\n", "", &["sda"]);
        assert_eq!(selection.file_systems, []);
        assert_eq!(
            selection.left_out.first().map(|left| left.reason),
            Some(Reason::Endless)
        );
    }
}
