// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is installed onto: a whole disk, held exclusively from the first write to the last, or an image file.
//!
//! File systems of a disk are reached through loop devices on ranges of it, never through the kernel's partition nodes:
//! those would have to follow a partition table that is written last.

use std::path::{Path, PathBuf};

use mt_blockdev::device::{Access, BlockDevice, OpenOptions};

use crate::command::Program;
use crate::error::{Error, Kind, Result};
use crate::plan::MIB;

/// A disk or an image file, open for writing.
#[derive(Debug)]
pub struct Target {
    device: BlockDevice,
    path: PathBuf,
}

impl Target {
    /// Opens it; nobody else can mount it or open it exclusively as long as it is held.
    ///
    /// # Errors
    /// It is in use, or cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let options = OpenOptions {
            access: Access::ReadWrite,
            exclusive: true,
        };
        let device = BlockDevice::open(path, options).map_err(|error| {
            let cause = std::error::Error::source(&error)
                .map(|source| format!(": {source}"))
                .unwrap_or_default();
            Error::new(Kind::Refused, format!("{error}{cause}; nothing was written"))
                .hint("is the disk in use? unmount it, and stop what is stacked on it")
        })?;
        Ok(Self {
            device,
            path: path.to_owned(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.device.size()
    }

    /// Whether it is an image file.
    #[must_use]
    pub fn is_image(&self) -> bool {
        !self.device.is_block_device()
    }

    /// Writes at an offset; in an image zeros stay holes.
    ///
    /// # Errors
    /// The disk failed.
    pub fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let failed = |error: mt_blockdev::device::DeviceError| self.failed(&error);
        let piece = usize::try_from(MIB).unwrap_or(usize::MAX);
        let mut at = offset;
        for part in bytes.chunks(piece) {
            if !self.is_image() || part.iter().any(|byte| *byte != 0) {
                self.device.write_all_at(part, at).map_err(failed)?;
            }
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// The disk failed.
    pub fn zero(&self, offset: u64, len: u64) -> Result<()> {
        self.device
            .zero_range(offset, len)
            .map(drop)
            .map_err(|error| self.failed(&error))
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// The disk failed.
    pub fn flush(&self) -> Result<()> {
        self.device.flush().map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &mt_blockdev::device::DeviceError) -> Error {
        let cause = std::error::Error::source(error)
            .map(|source| format!(": {source}"))
            .unwrap_or_default();
        Error::new(Kind::Partly, format!("{error}{cause}")).hint(
            "the installation is not finished and the disk does not boot: mend or replace the disk, then start again",
        )
    }
}

/// A loop device on a range of a disk; detached when it goes.
#[derive(Debug)]
pub struct Loop {
    path: PathBuf,
}

impl Loop {
    /// Attaches one.
    ///
    /// # Errors
    /// There is none to be had.
    pub fn attach(disk: &Path, offset: u64, size: u64) -> Result<Self> {
        let said = Program::new("losetup")
            .args(["--find", "--show", "--direct-io=on"])
            .args([
                "--offset",
                &offset.to_string(),
                "--sizelimit",
                &size.to_string(),
                "--",
            ])
            .arg(disk)
            .run()?;
        let path = PathBuf::from(String::from_utf8_lossy(&said).trim());
        Ok(Self { path })
    }

    /// Its device node.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Detaches it, and says when that fails.
    ///
    /// # Errors
    /// See there.
    pub fn detach(self) -> Result<()> {
        let path = self.path.clone();
        std::mem::forget(self);
        Program::new("losetup").arg("--detach").arg(path).run().map(drop)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // On the way out of an error already: that one is told.
        let _ = Program::new("losetup").arg("--detach").arg(&self.path).run();
    }
}

/// Detaches loop devices that a run which was killed has left on a disk.
///
/// # Errors
/// They are in use.
pub fn detach_left_over(disk: &Path) -> Result<usize> {
    let said = Program::new("losetup")
        .args(["--noheadings", "--output", "NAME", "--associated"])
        .arg(disk)
        .run()?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let mut count = 0;
    for name in said.lines().map(str::trim).filter(|name| !name.is_empty()) {
        Program::new("losetup").args(["--detach", name]).run()?;
        count += 1;
    }
    Ok(count)
}
