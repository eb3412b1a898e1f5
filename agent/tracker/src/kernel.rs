//! What the kernel counts of a disk by itself, independently of the programs.
//!
//! Reads sysfs only. Sectors here are the kernel's, 512 bytes whatever the disk's blocks are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What the kernel has counted of a disk since it appeared: `/sys/block/*/stat`
/// (`Documentation/block/stat.rst`). Partitions are included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KernelCounts {
    /// Sectors written.
    pub write: u64,
    /// Sectors discarded.
    pub discard: u64,
    /// Requests under way, reads too.
    pub inflight: u64,
}

impl KernelCounts {
    /// Reads the text of a `stat` file; `None` when it has not the fields of a kernel from 5.10 on.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fields: Vec<u64> = text
            .split_whitespace()
            .map_while(|field| field.parse().ok())
            .collect();
        Some(Self {
            write: *fields.get(6)?,
            inflight: *fields.get(8)?,
            discard: *fields.get(13)?,
        })
    }
}

/// Facts of a disk's queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueFacts {
    /// Whether the disk takes requests. One that takes bios only (zram, most dm, md, pmem) is invisible to the programs.
    pub request_based: bool,
    /// Whether it is zoned: where an append has gone is not known when it is issued.
    pub zoned: bool,
    /// Whether memory can be mapped past the block layer.
    pub dax: bool,
    /// Whether the kernel counts its I/O.
    pub iostats: bool,
    /// Requests that can be under way at a time, over all hardware queues.
    pub requests_max: u64,
    /// Size, bytes.
    pub size: u64,
}

/// Folder of sysfs with a whole disk's attributes.
#[derive(Debug, Clone)]
pub struct DiskFolder(PathBuf);

impl DiskFolder {
    /// That of the disk with this kernel name, below the root of a sysfs.
    #[must_use]
    pub fn new(sysfs: &Path, kernel_name: &str) -> Self {
        Self(sysfs.join("block").join(kernel_name))
    }

    /// What the kernel has counted.
    ///
    /// # Errors
    /// When there is no such disk (any more), or the kernel writes something else there than expected.
    pub fn counts(&self) -> io::Result<KernelCounts> {
        let path = self.0.join("stat");
        let text = fs::read_to_string(&path)?;
        KernelCounts::parse(&text).ok_or_else(|| {
            let message = format!("{} holds {text:?}, not the counts of a disk", path.display());
            io::Error::new(io::ErrorKind::InvalidData, message)
        })
    }

    /// The kernel's number of this attachment, which no other attachment of this boot shares; 0 where it gives none (before
    /// 5.15). A device number comes again when another disk, or another file behind a loop device, takes its place.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        let text = fs::read_to_string(self.0.join("diskseq"));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// The facts of its queue.
    ///
    /// # Errors
    /// When there is no such disk (any more).
    pub fn queue(&self) -> io::Result<QueueFacts> {
        let text = |name: &str| fs::read_to_string(self.0.join(name)).map(|text| text.trim().to_owned());
        let size: u64 = text("size")?
            .parse()
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the size of the disk is no number"))?;
        let queues = fs::read_dir(self.0.join("mq")).map_or(0, Iterator::count);
        let each: u64 = text("queue/nr_requests")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        Ok(QueueFacts {
            // The kernel makes the folder for disks with a request queue only (block/blk-mq-sysfs.c).
            request_based: self.0.join("mq").is_dir(),
            zoned: text("queue/zoned").is_ok_and(|zoned| zoned != "none"),
            dax: text("queue/dax").is_ok_and(|dax| dax != "0"),
            iostats: text("queue/iostats").is_ok_and(|on| on != "0"),
            requests_max: each.saturating_mul(u64::try_from(queues).unwrap_or(1)),
            size: size.saturating_mul(512),
        })
    }
}

/// The identity of this boot, which the kernel draws at random.
///
/// # Errors
/// When `/proc` is not there.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    parse_boot_id(text.trim())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the boot id is no UUID"))
}

fn parse_boot_id(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let mut id = [0; 16];
    if digits.len() != 32 {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_the_kernels_fields() {
        // Fields of Linux 6.18; 5.10 has the same.
        let text = "  10 1 20 3 40 5 60 7 8 9 100 11 12 130 14 15 16\n";
        assert_eq!(
            KernelCounts::parse(text),
            Some(KernelCounts {
                write: 60,
                discard: 130,
                inflight: 8
            })
        );
        // Before 4.18 there were no discards.
        assert_eq!(KernelCounts::parse("1 2 3 4 5 6 7 8 9 10 11"), None);
        assert_eq!(KernelCounts::parse("1 2 3 4 5 6 x 8 9 10 11 12 13 14"), None);
    }

    #[test]
    fn queues_are_read_from_their_folder() {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("block/sdb");
        fs::create_dir_all(disk.join("queue")).unwrap();
        let set = |name: &str, text: &str| fs::write(disk.join(name), text).unwrap();
        set("size", "2048\n");
        set("queue/nr_requests", "64\n");
        set("queue/iostats", "1\n");
        set("queue/zoned", "none\n");
        let folder = DiskFolder::new(root.path(), "sdb");
        let bio_based = folder.queue().unwrap();
        assert!(!bio_based.request_based && !bio_based.zoned && !bio_based.dax && bio_based.iostats);
        assert_eq!(bio_based.size, 1 << 20);
        fs::create_dir_all(disk.join("mq/0")).unwrap();
        fs::create_dir_all(disk.join("mq/1")).unwrap();
        set("queue/zoned", "host-managed\n");
        set("queue/dax", "1\n");
        set("queue/iostats", "0\n");
        let odd = folder.queue().unwrap();
        assert!(odd.request_based && odd.zoned && odd.dax && !odd.iostats);
        assert_eq!(odd.requests_max, 128);
        assert!(DiskFolder::new(root.path(), "sdc").queue().is_err());
        assert!(DiskFolder::new(root.path(), "sdb").counts().is_err());
    }

    #[test]
    fn boot_ids_are_uuids() {
        assert!(parse_boot_id("63a1ac9b-1b1c-4e0e-9d0e-0123456789ab").is_some());
        assert_eq!(parse_boot_id("63a1ac9b-1b1c-4e0e-9d0e-0123456789a"), None);
        assert_eq!(parse_boot_id("63a1ac9b-1b1c-4e0e-9d0e-0123456789ag"), None);
        assert_ne!(boot_id().unwrap(), [0; 16]);
    }
}
