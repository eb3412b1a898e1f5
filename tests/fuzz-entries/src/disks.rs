// SPDX-License-Identifier: MIT OR Apache-2.0
//! What disks and the kernel say.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use mt_blockdev::mounts::{mount_of, parse_mountinfo, parse_swaps};
use mt_blockdev::scsi::{fuzz_vpd83, parse_inquiry, parse_vpd00, parse_vpd80};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Answers to INQUIRY: the standard data, and the pages 0x00, 0x80 and 0x83.
pub fn scsi_answers(bytes: &[u8]) {
    fuzz_vpd83(bytes);
    let _ = parse_vpd00(bytes);
    let shown = |text: &str| {
        assert!(
            text.bytes().all(|byte| (0x20..0x7f).contains(&byte)),
            "{text:?} is shown"
        )
    };
    if let Ok(Some(serial)) = parse_vpd80(bytes) {
        shown(&serial);
    }
    if let Ok(inquiry) = parse_inquiry(bytes) {
        shown(&format!("{inquiry:?}"));
    }
}

/// Size of the disk whose content is made up, bytes.
const SIZE: u64 = 4 << 20;

/// What lies on a disk: partition tables, file systems, volume labels. The input is a list of pieces: position in sectors of
/// 512 bytes (u16), length (u16), content; behind the last the disk is zeros.
pub fn content(bytes: &[u8]) {
    let Ok(memory) = memfd_create("disk", MFdFlags::MFD_CLOEXEC) else {
        return;
    };
    let disk = File::from(memory);
    if disk.set_len(SIZE).is_err() {
        return;
    }
    let mut rest = bytes;
    let mut written = false;
    while let [a, b, c, d, behind @ ..] = rest {
        let at = u64::from(u16::from_le_bytes([*a, *b])) * 512;
        let len = usize::from(u16::from_le_bytes([*c, *d])).min(behind.len());
        let (piece, behind) = behind.split_at(len);
        let inside = usize::try_from(SIZE.saturating_sub(at)).unwrap_or(0).min(len);
        let piece = piece.get(..inside).unwrap_or_default();
        written |= piece.iter().any(|byte| *byte != 0);
        if disk.write_all_at(piece, at).is_err() {
            return;
        }
        rest = behind;
    }
    if let Ok(found) = mt_blockdev::blkid::probe(&disk, SIZE) {
        assert!(
            written || found.is_empty(),
            "zeros are taken for {}",
            found.summary()
        );
        assert!(!found.summary().is_empty());
    }
}

/// `/proc/PID/mountinfo` and `/proc/swaps`: whoever may mount chooses names in them.
pub fn mount_tables(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mounts = parse_mountinfo(&text, true);
    assert!(mounts.len() <= text.lines().count());
    let _ = mount_of(&mounts, Path::new("/var/lib/somewhere"));
    assert!(parse_swaps(&text).len() <= text.lines().count());
}
