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
    /// Says which attachment of which disk this is: of a block device the boot, its number and the kernel's sequence
    /// number (`diskseq`, since 5.15), of a regular file its file system and inode. A disk that was taken away and
    /// came back is another one, even with the same content: nobody knows what happened to it in between.
    ///
    /// # Errors
    /// When the file or sysfs cannot be read.
    pub fn instance(&self) -> Result<String, DeviceError> {
        let fail = |source| DeviceError::new(DeviceOp::Inspect, &self.path, source);
        let Some(rdev) = self.rdev else {
            let meta = self.file.metadata().map_err(fail)?;
            return Ok(format!("file {} {}", meta.dev(), meta.ino()));
        };
        let boot = read_to_string("/proc/sys/kernel/random/boot_id").map_err(fail)?;
        let sysfs = sysfs_folder(rdev);
        // Partitions have no number of their own; their disk's is one folder up.
        let sequence = read_to_string(format!("{sysfs}/diskseq"))
            .or_else(|_| read_to_string(format!("{sysfs}/../diskseq")))
            .unwrap_or_default();
        Ok(format!("boot {} disk {rdev} {}", boot.trim(), sequence.trim()))
    }

    /// Takes the stamp: of a regular file its inode, length and times of last change; of a block device its
    /// [instance](Self::instance) and the sectors written to it and discarded so far (fields 7 and 14 of `stat`,
    /// Documentation/block/stat.rst).
    ///
    /// # Errors
    /// When the file or sysfs cannot be read.
    pub fn stamp(&self) -> Result<Stamp, DeviceError> {
        let fail = |source| DeviceError::new(DeviceOp::Inspect, &self.path, source);
        let instance = self.instance()?;
        if let Some(rdev) = self.rdev {
            let stat = read_to_string(format!("{}/stat", sysfs_folder(rdev))).map_err(fail)?;
            let fields: Vec<&str> = stat.split_ascii_whitespace().collect();
            let (Some(written), Some(discarded)) = (fields.get(6), fields.get(13)) else {
                return Err(fail(io::Error::other(
                    "the kernel's statistics have an unknown form",
                )));
            };
            let text = format!("{instance} written {written} {discarded}");
            return Ok(Stamp {
                size: self.size,
                text,
            });
        }
        let meta = self.file.metadata().map_err(fail)?;
        let text = format!(
            "{instance} size {} changed {}.{:09} {}.{:09}",
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

fn sysfs_folder(rdev: u64) -> String {
    format!("/sys/dev/block/{}:{}", major(rdev), minor(rdev))
}
