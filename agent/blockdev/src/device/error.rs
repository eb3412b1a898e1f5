//! What can go wrong with an open device, and on which bytes.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::libc;

/// What was attempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceOp {
    /// Opening it.
    Open,
    /// Asking its type, size or block size.
    Inspect,
    /// Taking the lock of a regular file.
    Lock,
    /// Reading bytes.
    Read,
    /// Writing bytes.
    Write,
    /// Making a range zero.
    Zero,
    /// Finding data or holes.
    Seek,
    /// Making writes durable.
    Flush,
}

/// A failed operation on a device. The cause is in [`std::error::Error::source`] and not repeated in the text.
#[derive(Debug)]
pub struct DeviceError {
    op: DeviceOp,
    path: PathBuf,
    range: Option<(u64, u64)>,
    source: io::Error,
    latched: bool,
}

impl DeviceError {
    pub(crate) fn new(op: DeviceOp, path: &Path, source: io::Error) -> Self {
        Self {
            op,
            path: path.to_owned(),
            range: None,
            source,
            latched: false,
        }
    }

    pub(crate) fn ranged(op: DeviceOp, path: &Path, offset: u64, len: u64, source: io::Error) -> Self {
        Self {
            range: Some((offset, len)),
            ..Self::new(op, path, source)
        }
    }

    pub(crate) fn latched(op: DeviceOp, path: &Path, range: Option<(u64, u64)>, errno: i32) -> Self {
        Self {
            range,
            latched: true,
            ..Self::new(op, path, io::Error::from_raw_os_error(errno))
        }
    }

    /// What was attempted.
    #[must_use]
    pub fn op(&self) -> DeviceOp {
        self.op
    }

    /// The device, by the path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the range starts, bytes; `None` when the operation has no range.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.range.map(|(offset, _)| offset)
    }

    /// Length of the range, bytes; `None` when the operation has no range.
    #[must_use]
    pub fn len_bytes(&self) -> Option<u64> {
        self.range.map(|(_, len)| len)
    }

    /// The cause.
    #[must_use]
    pub fn io_error(&self) -> &io::Error {
        &self.source
    }

    /// Whether this is the consequence of an earlier flush that failed; the cause is that flush's.
    #[must_use]
    pub fn is_latched(&self) -> bool {
        self.latched
    }

    /// Whether there was no room: of a thin datastore under a disk, or of the file system under a file.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
    }

    /// Whether the device has been taken away.
    #[must_use]
    pub fn is_device_gone(&self) -> bool {
        matches!(
            self.source.raw_os_error(),
            Some(libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM)
        )
    }

    /// Whether another user holds the device or the lock.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.source.raw_os_error() == Some(libc::EBUSY) || self.source.kind() == io::ErrorKind::WouldBlock
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.op {
            DeviceOp::Open => "cannot open ",
            DeviceOp::Inspect => "cannot inspect ",
            DeviceOp::Lock => "cannot lock ",
            DeviceOp::Read => "cannot read ",
            DeviceOp::Write => "cannot write ",
            DeviceOp::Zero => "cannot zero ",
            DeviceOp::Seek => "cannot find data in ",
            DeviceOp::Flush => "cannot flush ",
        })?;
        if let Some((offset, len)) = self.range {
            write!(f, "{len} bytes at {offset:#x} of ")?;
        }
        write!(f, "{}", self.path.display())?;
        if self.latched {
            f.write_str(
                ": an earlier flush failed, nothing is written until the disk is opened again and resynced",
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for DeviceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
