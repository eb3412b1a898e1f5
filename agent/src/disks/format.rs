//! Makes a disk the appliance's retention disk: the one place of the agent that formats anything.
//!
//! 1. The gate judges the disk as it would a target disk: exactly one shows the ID, it is not the appliance's, not in use, and
//!    empty unless its ID is named for overwriting; then it is opened exclusively and asked again who it is.
//! 2. The open descriptor is kept without the exclusive claim, since `mkfs.xfs` wants that for itself. As long as it is open
//!    the kernel gives the device's name and number to no other disk.
//! 3. `mkfs.xfs` makes the file system, with a UUID chosen here.
//! 4. The descriptor is asked once more who it is, and the file system is found on it by that UUID.
//!
//! A crash in 3 leaves a disk that holds something, which is refused until it is named for overwriting.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::sync::Arc;

use mt_blockdev::blkid;
use mt_blockdev::device::{Access, BlockDevice, OpenOptions};
use mt_blockdev::scsi::ScsiId;

use super::facts::DiskKind;
use super::gate::{PairedDisk, Purpose};
use super::inventory::{DiskScope, gather};
use super::open::{OpenDisk, OpenError, open_paired};
use crate::error::{ExitCode, Explain};

/// Name of the file system.
const LABEL: &str = "mt-retention";
/// Smallest disk: XFS needs 300 MiB, and a store of points room to live, bytes.
pub const SIZE_MIN: u64 = 1 << 30;

/// Why the disk was not formatted.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The disk is refused, or cannot be opened; nothing was written.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It is too small.
    #[error("disk {id} has {size} bytes, a retention disk needs {SIZE_MIN}; nothing was written")]
    TooSmall {
        /// The disk.
        id: ScsiId,
        /// Its size, bytes.
        size: u64,
    },
    /// An image file is no device.
    #[error("lab disk {0} is an image file, and only a device can be mounted; nothing was written")]
    NoDevice(ScsiId),
    /// The program that formats cannot be run, or failed.
    #[error("cannot format disk {id} ({name}): {found}")]
    Program {
        /// The disk.
        id: ScsiId,
        /// Its kernel name.
        name: String,
        /// What it said.
        found: String,
    },
    /// It was formatted, and does not show it.
    #[error("disk {id} ({name}) was formatted, and what is on it is not that: {found}")]
    NotThere {
        /// The disk.
        id: ScsiId,
        /// Its kernel name.
        name: String,
        /// What is on it.
        found: String,
    },
}

impl Explain for FormatError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Open(error) => error
                .hint()
                .map(|hint| hint.replace("pair add", "retention init --disk")),
            Self::TooSmall { .. } => Some("attach a larger disk".to_owned()),
            Self::NoDevice(_) => Some("attach it to a loop device, and name that".to_owned()),
            Self::Program { .. } => {
                Some("install xfsprogs, and see the kernel log for errors of this disk".to_owned())
            }
            Self::NotThere { .. } => Some("see the kernel log for errors of this disk".to_owned()),
        }
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Open(error) => error.exit_code(),
            Self::TooSmall { .. } | Self::NoDevice(_) => ExitCode::Refused,
            Self::Program { .. } => ExitCode::Unexpected,
            Self::NotThere { .. } => ExitCode::DiskMissing,
        }
    }
}

/// A disk with a new file system.
#[derive(Debug)]
pub struct Formatted {
    /// Its kernel name.
    pub kernel_name: String,
    /// Its device node today.
    pub devnode: std::path::PathBuf,
    /// Whether it is a stand-in of a laboratory.
    pub lab: bool,
    /// Size, bytes.
    pub size: u64,
    /// UUID of the file system.
    pub uuid: String,
    /// Keeps the name of the disk from another one.
    _pin: Arc<BlockDevice>,
}

/// Puts an XFS on a disk. What it holds goes only where `may_overwrite` says that its ID was named for that.
///
/// # Errors
/// See [`FormatError`].
pub fn format(id: ScsiId, may_overwrite: bool, scope: &DiskScope) -> Result<Formatted, FormatError> {
    let inventory = gather(scope).map_err(OpenError::from)?;
    // Without such a disk the gate says so, whatever size is asked for.
    let (size, logical_block_size) = inventory
        .with_id(id)
        .next()
        .map_or((0, 0), |facts| (facts.size, facts.logical_block_size));
    let paired = PairedDisk {
        scsi_id: id,
        size,
        logical_block_size,
        may_overwrite,
    };
    let open = open_paired(&paired, scope, Purpose::Write)?;
    if paired.size < SIZE_MIN {
        return Err(FormatError::TooSmall {
            id,
            size: paired.size,
        });
    }
    if !open.device.is_block_device() {
        return Err(FormatError::NoDevice(id));
    }
    let name = open.facts.kernel_name.clone();
    let pin = BlockDevice::open(
        &open.facts.devnode,
        OpenOptions {
            access: Access::ReadOnly,
            exclusive: false,
        },
    )
    .map_err(OpenError::from)?;
    let OpenDisk { facts, device, .. } = open;
    // Both descriptors lead to the same device while both are open; from here on the second one keeps its name.
    if pin.rdev() != device.rdev() {
        return Err(FormatError::NotThere {
            id,
            name,
            found: "another device took its name".to_owned(),
        });
    }
    drop(device);
    let uuid = new_uuid().map_err(|error| FormatError::Program {
        id,
        name: name.clone(),
        found: error.to_string(),
    })?;
    let made = Command::new("mkfs.xfs")
        .args(["-q", "-f", "-L", LABEL, "-m"])
        .arg(format!("uuid={uuid}"))
        .arg(&facts.devnode)
        .output();
    let found = match made {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "mkfs.xfs ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("mkfs.xfs cannot be run: {error}")),
    };
    if let Some(found) = found {
        return Err(FormatError::Program { id, name, found });
    }
    let device = Arc::new(pin);
    let again = OpenDisk {
        device: Arc::clone(&device),
        facts,
        paired,
    };
    again.recheck().map_err(OpenError::from)?;
    let OpenDisk { facts, .. } = again;
    // libblkid reads as it likes, which a descriptor for direct I/O does not take.
    let content = File::open(&facts.devnode)
        .map_err(|error| error.to_string())
        .and_then(|file| match file.metadata() {
            Ok(found) if Some(found.rdev()) == device.rdev() => Ok(file),
            Ok(_) => Err("another device took its name".to_owned()),
            Err(error) => Err(error.to_string()),
        })
        .and_then(|file| blkid::probe(&file, paired.size).map_err(|error| error.to_string()));
    let found = match content {
        Ok(content)
            if content
                .signature
                .as_ref()
                .is_some_and(|s| s.uuid.as_ref() == Some(&uuid)) =>
        {
            None
        }
        Ok(content) => Some(content.summary()),
        Err(found) => Some(found),
    };
    if let Some(found) = found {
        return Err(FormatError::NotThere { id, name, found });
    }
    Ok(Formatted {
        kernel_name: name,
        devnode: facts.devnode,
        lab: facts.kind == DiskKind::Lab,
        size: paired.size,
        uuid,
        _pin: device,
    })
}

/// A random UUID, RFC 9562 version 4.
fn new_uuid() -> std::io::Result<String> {
    let mut bytes: [u8; 16] = crate::random::id()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}
