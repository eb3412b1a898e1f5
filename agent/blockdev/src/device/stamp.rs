//! A value that stays the same as long as nobody wrote to what is open.
//!
//! It lets a cold source say two things: that its image did not change while it was read, and, after a restart, that
//! it is still the image whose first part was sent. A stamp that cannot be taken is an error, never "unchanged".

use std::fs::read_to_string;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::libc::{major, minor};

use super::{BlockDevice, DeviceError, DeviceOp};

/// What is compared. Two stamps of one open device are equal when nothing was written between them; stamps that were
/// taken across a reboot are never equal for a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Size now, bytes; that of the open device may be older.
    pub size: u64,
    text: String,
}

impl Stamp {
    /// One line that stands for the stamp, to be stored and compared.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl BlockDevice {
    /// Takes the stamp: of a regular file its inode, length and time of last change; of a block device the
    /// boot, the kernel's sequence number of the disk (`diskseq`) and the sectors written to it so far (field 7 and 14
    /// of `stat`, Documentation/block/stat.rst).
    ///
    /// # Errors
    /// When the file or sysfs cannot be read.
    pub fn stamp(&self) -> Result<Stamp, DeviceError> {
        let fail = |source| DeviceError::new(DeviceOp::Inspect, &self.path, source);
        let meta = self.file.metadata().map_err(fail)?;
        if let Some(rdev) = self.rdev {
            let sysfs = format!("/sys/dev/block/{}:{}", major(rdev), minor(rdev));
            let boot = read_to_string("/proc/sys/kernel/random/boot_id").map_err(fail)?;
            let stat = read_to_string(format!("{sysfs}/stat")).map_err(fail)?;
            let fields: Vec<&str> = stat.split_ascii_whitespace().collect();
            let (Some(written), Some(discarded)) = (fields.get(6), fields.get(13)) else {
                return Err(fail(io::Error::other(
                    "the kernel's statistics have an unknown form",
                )));
            };
            // Partitions have no number of their own; their disk's is one folder up. Kernels before 5.15 have none.
            let sequence = read_to_string(format!("{sysfs}/diskseq"))
                .or_else(|_| read_to_string(format!("{sysfs}/../diskseq")))
                .unwrap_or_default();
            let text = format!(
                "boot {} disk {rdev} {} written {written} {discarded}",
                boot.trim(),
                sequence.trim()
            );
            return Ok(Stamp {
                size: self.size,
                text,
            });
        }
        let text = format!(
            "file {} {} size {} changed {}.{:09} {}.{:09}",
            meta.dev(),
            meta.ino(),
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec()
        );
        Ok(Stamp {
            size: meta.len(),
            text,
        })
    }
}
