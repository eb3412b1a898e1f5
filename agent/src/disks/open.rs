//! Opens the target disk of a pair: the only place that hands out a disk that can be written.
//!
//! 1. The facts of all disks are gathered anew; an inventory of a minute ago proves nothing.
//! 2. The gate admits exactly one disk, or refuses.
//! 3. That disk is opened exclusively, as a whole: `O_EXCL` on a partition would not protect its neighbours.
//! 4. The *open* disk is asked again who it is: between 1 and 3 a hot-plug may have put another disk behind
//!    the same name. From here on the descriptor counts, not the name.
//!
//! A failure at any step has written nothing. The exclusive open is kept as long as the pairing lives.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use mt_blockdev::device::{Access, BlockDevice, DeviceError, OpenOptions};
use mt_blockdev::ioctl::{self, InquiryError};
use mt_blockdev::scsi::{self, Designator, ScsiId, VPD_DEVICE_ID};
use mt_blockdev::sysfs::{DeviceNumber, Sysfs};

use crate::broker::client::BrokerError;
use crate::error::{ExitCode, Explain};

use super::facts::{DiskFacts, DiskKind, Inventory};
use super::gate::{self, PairedDisk, Purpose, Refusal, RefusalKind};
use super::inventory::{self, DiskScope, InventoryError};

/// Why a target disk was not opened. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The machine could not be read.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The gate, the exclusive open or the second look refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The device could not be opened for another reason.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The broker, which opens disks for this process, did not.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl Explain for OpenError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Inventory(err) => err.hint(),
            Self::Refused(refusal) => refusal.hint(),
            Self::Device(_) => Some("see the kernel log for errors of this disk".to_owned()),
            Self::Broker(error) => error.hint(),
        }
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Inventory(err) => err.exit_code(),
            Self::Refused(refusal) => refusal.exit_code(),
            Self::Device(_) => ExitCode::DiskMissing,
            Self::Broker(error) => error.exit_code(),
        }
    }
}

/// An open target disk that passed the gate. Holding it keeps others out.
#[derive(Debug)]
pub struct OpenDisk {
    /// The open device.
    pub device: Arc<BlockDevice>,
    /// What was known of it when it was admitted.
    pub facts: DiskFacts,
    /// What the pair knows of it.
    pub paired: PairedDisk,
}

/// Opens the disk of a pair, or refuses.
///
/// # Errors
/// [`OpenError`]; nothing was written.
pub fn open_paired(paired: &PairedDisk, scope: &DiskScope, purpose: Purpose) -> Result<OpenDisk, OpenError> {
    let inventory = inventory::gather(scope)?;
    let facts = gate::admit(paired, &inventory, purpose)?.clone();
    let access = match purpose {
        Purpose::Write => Access::ReadWrite,
        Purpose::Verify => Access::ReadOnly,
    };
    let device = match BlockDevice::open(
        &facts.devnode,
        OpenOptions {
            access,
            exclusive: true,
        },
    ) {
        Ok(device) => device,
        Err(err) if err.is_busy() => {
            return Err(Refusal::new(
                RefusalKind::Busy,
                format!(
                    "target disk {} ({}) is held by another program",
                    paired.scsi_id, facts.kernel_name
                ),
                "end that program (another agent, a mount, multipath), then try again",
            )
            .into());
        }
        Err(err) => return Err(err.into()),
    };
    let disk = OpenDisk {
        device: Arc::new(device),
        facts,
        paired: *paired,
    };
    disk.check_identity()?;
    Ok(disk)
}

/// Looks whether a disk may become a pair's: the gate would admit it for writing now, and it can be opened exclusively now. It
/// is opened for reading only and closed again, so that nothing of it changes.
///
/// # Errors
/// [`OpenError`] with what speaks against it.
pub fn may_be_paired(
    scsi_id: ScsiId,
    may_overwrite: bool,
    inventory: &Inventory,
    scope: &DiskScope,
) -> Result<PairedDisk, OpenError> {
    let facts = inventory.with_id(scsi_id).next();
    let paired = PairedDisk {
        scsi_id,
        size: facts.map_or(0, |disk| disk.size),
        logical_block_size: facts.map_or(0, |disk| disk.logical_block_size),
        may_overwrite,
    };
    gate::admit(&paired, inventory, Purpose::Write)?;
    open_paired(&paired, scope, Purpose::Verify)?;
    Ok(paired)
}

impl OpenDisk {
    /// Takes a disk that the broker opened, and asks it who it is.
    ///
    /// # Errors
    /// [`Refusal`] when the descriptor does not lead to the paired disk.
    pub fn received(device: BlockDevice, facts: DiskFacts, paired: PairedDisk) -> Result<Self, Refusal> {
        let disk = Self {
            device: Arc::new(device),
            facts,
            paired,
        };
        disk.check_identity()?;
        Ok(disk)
    }

    /// Asks the open disk again who it is; to be called on every hot-plug event.
    ///
    /// # Errors
    /// [`Refusal`] when the descriptor does not lead to the paired disk any more: nothing more may be written.
    pub fn recheck(&self) -> Result<(), Refusal> {
        self.check_identity().map_err(Refusal::after_open)
    }

    fn check_identity(&self) -> Result<(), Refusal> {
        if !self.device.is_block_device() {
            return self.check_image();
        }
        let sysfs = Sysfs::default();
        let number = DeviceNumber::from_dev(self.device.rdev().unwrap_or(0));
        if self.facts.number != Some(number) {
            let found = format!(
                "the open device is {number}, admitted was {}",
                shown(self.facts.number)
            );
            return Err(self.changed(&found));
        }
        match sysfs.name_of(number) {
            None => return Err(self.changed("it has been taken away")),
            Some((_, Some(whole))) => {
                return Err(self.changed(&format!("the open device is a partition of {whole}")));
            }
            Some((name, None)) if name != self.facts.kernel_name => {
                return Err(self.changed(&format!("device {number} is {name} now")));
            }
            Some(_) => {}
        }
        let size = ioctl::size_bytes(&*self.device)
            .map_err(|errno| self.changed(&format!("its size cannot be read: {errno}")))?;
        let in_sysfs = sysfs.disk(&self.facts.kernel_name).map(|disk| disk.size);
        if size != self.paired.size || in_sysfs != Some(size) {
            return Err(self.changed(&format!("it has {size} bytes, paired with {}", self.paired.size)));
        }
        if self.facts.kind == DiskKind::Lab {
            // A loop device has no name of its own: number, name and size are all there is.
            return Ok(());
        }
        let page = ioctl::inquiry(&*self.device, Some(VPD_DEVICE_ID)).map_err(|err: InquiryError| {
            self.changed(&format!("it cannot be asked for its SCSI ID: {err}"))
        })?;
        let designators = scsi::parse_vpd83(&page)
            .map_err(|err| self.changed(&format!("its VPD page 0x83 is damaged: {err}")))?;
        match scsi::identity(&designators) {
            Some(id) if id == self.paired.scsi_id => Ok(()),
            // The disk was admitted by the ID it prefers, so it has to prefer it still.
            Some(id) => Err(self.changed(&format!("it shows SCSI ID {id} now"))),
            None => {
                let count = designators.iter().filter_map(Designator::unit_id).count();
                Err(self.changed(&format!("it shows no SCSI ID any more ({count} names)")))
            }
        }
    }

    fn check_image(&self) -> Result<(), Refusal> {
        let path = self.device.path();
        let open = file_identity(&self.device)
            .map_err(|err| self.changed(&format!("it cannot be looked at: {err}")))?;
        let now =
            std::fs::metadata(path).map_err(|err| self.changed(&format!("{}: {err}", path.display())))?;
        if (now.dev(), now.ino()) != (open.0, open.1) {
            return Err(self.changed(&format!("{} is another file now", path.display())));
        }
        if now.len() != self.paired.size {
            return Err(self.changed(&format!(
                "it has {} bytes, paired with {}",
                now.len(),
                self.paired.size
            )));
        }
        Ok(())
    }

    fn changed(&self, found: &str) -> Refusal {
        Refusal::new(
            RefusalKind::Changed,
            format!(
                "target disk {} ({}) is in doubt: {found}",
                self.paired.scsi_id, self.facts.kernel_name
            ),
            "run \"mt-agent disks list\" and see where the disk is now",
        )
    }
}

/// Device number of the file system, and inode, of the open file.
fn file_identity(device: &BlockDevice) -> nix::Result<(u64, u64)> {
    let stat = nix::sys::stat::fstat(device)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn shown(number: Option<DeviceNumber>) -> String {
    number.map_or_else(|| "none".to_owned(), |number| number.to_string())
}
