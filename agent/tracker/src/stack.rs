//! Which disks have to be tracked for a device, and which cannot be. Pure.
//!
//! Requests are seen at the bottom only: of a logical volume, a RAID or an encrypted device it is the whole disks below
//! that are tracked, and everything that reaches them is seen there. A disk that takes no requests is compared instead.

use std::collections::BTreeSet;

use mt_blockdev::sysfs::BlockNode;

use crate::kernel::QueueFacts;

/// Why a disk cannot be tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// zram, pmem, the head of NVMe multipath, and other drivers without a request queue.
    #[error("its driver takes no requests (bio-based), so writes to it are not seen")]
    BioBased,
    /// Host-managed or host-aware zones.
    #[error("it is zoned, and where an append goes is not known when it is issued")]
    Zoned,
    /// Memory that is written by plain stores.
    #[error("it can be written through memory, past the block layer (DAX)")]
    Dax,
    /// `queue/iostats` is 0.
    #[error("the kernel does not count its I/O, so nothing could be proved; write 1 to its queue/iostats")]
    IostatsOff,
}

/// Why a disk cannot be tracked; `None` when it can be.
#[must_use]
pub fn unfit(facts: &QueueFacts) -> Option<Unfit> {
    [
        (!facts.request_based, Unfit::BioBased),
        (facts.zoned, Unfit::Zoned),
        (facts.dax, Unfit::Dax),
        (!facts.iostats, Unfit::IostatsOff),
    ]
    .into_iter()
    .find_map(|(is, reason)| is.then_some(reason))
}

/// How the changes of a device are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capture {
    /// By tracking these whole disks, by kernel name.
    Tracked(BTreeSet<String>),
    /// By comparing digests.
    Digest {
        /// The device below that is the reason.
        device: String,
        /// Why.
        reason: DigestReason,
    },
}

/// Why a device is compared and not tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DigestReason {
    /// A disk below cannot be tracked.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Several paths to one disk: the disks below are the same one.
    #[error("it is one of several paths to one disk (multipath)")]
    Multipath,
    /// There is no such device, or it disappeared.
    #[error("there is no such device")]
    Missing,
    /// More levels than any real stack has: it refers to itself, or changed while it was read.
    #[error("the devices below it do not end")]
    Endless,
}

/// Levels below a device: file system on LVM on LUKS on md on multipath are four.
const LEVELS_MAX: usize = 16;

/// Finds the whole disks below a device: a disk, a partition, or what is stacked on them.
///
/// `facts` tells those of a whole disk, `None` when it is gone.
pub fn capture(nodes: &[BlockNode], device: &str, facts: &impl Fn(&str) -> Option<QueueFacts>) -> Capture {
    let mut disks = BTreeSet::new();
    match descend(nodes, device, facts, &mut disks, 0) {
        Ok(()) => Capture::Tracked(disks),
        Err((device, reason)) => Capture::Digest { device, reason },
    }
}

fn descend(
    nodes: &[BlockNode],
    device: &str,
    facts: &impl Fn(&str) -> Option<QueueFacts>,
    disks: &mut BTreeSet<String>,
    level: usize,
) -> Result<(), (String, DigestReason)> {
    let refuse = |reason: DigestReason| Err((device.to_owned(), reason));
    if level > LEVELS_MAX {
        return refuse(DigestReason::Endless);
    }
    let Some(node) = nodes.iter().find(|node| node.name == device) else {
        return refuse(DigestReason::Missing);
    };
    if let Some(disk) = &node.disk {
        return descend(nodes, disk, facts, disks, level + 1);
    }
    if node
        .dm_uuid
        .as_deref()
        .is_some_and(|uuid| uuid.starts_with("mpath-"))
    {
        return refuse(DigestReason::Multipath);
    }
    if !node.slaves.is_empty() {
        return node
            .slaves
            .iter()
            .try_for_each(|below| descend(nodes, below, facts, disks, level + 1));
    }
    let Some(facts) = facts(device) else {
        return refuse(DigestReason::Missing);
    };
    match unfit(&facts) {
        Some(reason) => refuse(reason.into()),
        None => {
            disks.insert(device.to_owned());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use mt_blockdev::sysfs::DeviceNumber;

    use super::*;

    fn node(name: &str, disk: Option<&str>, slaves: &[&str], dm_uuid: Option<&str>) -> BlockNode {
        BlockNode {
            name: name.to_owned(),
            number: DeviceNumber { major: 8, minor: 0 },
            disk: disk.map(str::to_owned),
            holders: Vec::new(),
            slaves: slaves.iter().map(|name| (*name).to_owned()).collect(),
            backing_file: None,
            dm_name: None,
            dm_uuid: dm_uuid.map(str::to_owned),
        }
    }

    fn machine() -> Vec<BlockNode> {
        vec![
            node("sda", None, &[], None),
            node("sda2", Some("sda"), &[], None),
            node("sdb", None, &[], None),
            node("sdc", None, &[], None),
            node("zram0", None, &[], None),
            node("md0", None, &["sda2", "sdb"], None),
            node("dm-0", None, &["md0"], Some("CRYPT-LUKS2-1")),
            node("dm-1", None, &["dm-0", "sdb"], Some("LVM-1")),
            node("dm-2", None, &["sdb", "sdc"], Some("mpath-36000")),
            node("dm-3", None, &["dm-2"], Some("LVM-2")),
            node("dm-4", None, &["sdc", "zram0"], Some("LVM-3")),
            node("dm-5", None, &["dm-5"], Some("LVM-4")),
            node("dm-6", None, &["sdz"], Some("LVM-5")),
        ]
    }

    fn fit() -> QueueFacts {
        QueueFacts {
            request_based: true,
            zoned: false,
            dax: false,
            iostats: true,
            requests_max: 64,
            size: 1 << 30,
        }
    }

    fn of(device: &str) -> Capture {
        capture(&machine(), device, &|name| {
            Some(QueueFacts {
                request_based: !name.starts_with("zram"),
                ..fit()
            })
        })
    }

    #[test]
    fn whole_disks_are_found_at_the_bottom() {
        let tracked =
            |names: &[&str]| Capture::Tracked(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(of("sda"), tracked(&["sda"]));
        assert_eq!(of("sda2"), tracked(&["sda"]));
        assert_eq!(of("md0"), tracked(&["sda", "sdb"]));
        assert_eq!(of("dm-1"), tracked(&["sda", "sdb"]));
    }

    #[test]
    fn what_cannot_be_tracked_is_compared_and_says_why() {
        let digest = |device: &str, reason: DigestReason| Capture::Digest {
            device: device.to_owned(),
            reason,
        };
        assert_eq!(of("zram0"), digest("zram0", Unfit::BioBased.into()));
        assert_eq!(of("dm-4"), digest("zram0", Unfit::BioBased.into()));
        assert_eq!(of("dm-2"), digest("dm-2", DigestReason::Multipath));
        assert_eq!(of("dm-3"), digest("dm-2", DigestReason::Multipath));
        assert_eq!(of("dm-5"), digest("dm-5", DigestReason::Endless));
        assert_eq!(of("dm-6"), digest("sdz", DigestReason::Missing));
        assert_eq!(of("sdy"), digest("sdy", DigestReason::Missing));
        let gone = capture(&machine(), "sda", &|_| None);
        assert_eq!(gone, digest("sda", DigestReason::Missing));
    }

    #[test]
    fn every_fact_that_makes_a_disk_unfit_is_told() {
        assert_eq!(unfit(&fit()), None);
        assert_eq!(
            unfit(&QueueFacts {
                request_based: false,
                ..fit()
            }),
            Some(Unfit::BioBased)
        );
        assert_eq!(unfit(&QueueFacts { zoned: true, ..fit() }), Some(Unfit::Zoned));
        assert_eq!(unfit(&QueueFacts { dax: true, ..fit() }), Some(Unfit::Dax));
        assert_eq!(
            unfit(&QueueFacts {
                iostats: false,
                ..fit()
            }),
            Some(Unfit::IostatsOff)
        );
    }
}
