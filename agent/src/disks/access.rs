//! Who looks at the disks and opens them: this process, or the broker for it.
//!
//! Alone, the target does both and has to be root. With a broker ([`crate::broker`]) it may do neither, and is given open
//! disks of recorded pairs.

use std::io;
use std::path::Path;

use mt_blockdev::scsi::ScsiId;

use super::facts::Inventory;
use super::gate::{PairedDisk, Purpose};
use super::inventory::{self, DiskScope, InventoryError};
use super::open::{self, OpenDisk, OpenError, open_paired};
use crate::broker::client::Client;
use crate::model::PairName;

/// The way to the disks.
#[derive(Debug, Clone)]
pub enum DiskAccess {
    /// This process has it.
    Own(DiskScope),
    /// The broker has it.
    Broker(Client),
}

impl DiskAccess {
    /// The facts of all disks now.
    ///
    /// # Errors
    /// When the machine cannot be read, or the broker does not tell.
    pub fn gather(&self) -> Result<Inventory, InventoryError> {
        match self {
            Self::Own(scope) => inventory::gather(scope),
            Self::Broker(client) => Ok(client.disks()?),
        }
    }

    /// Opens the disk of a pair, or refuses. Of the broker it is asked for by the name of the pair alone: what it hands out
    /// is what it has recorded itself, and held against what this process knows.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was written.
    pub fn open_pair(
        &self,
        name: &PairName,
        paired: &PairedDisk,
        purpose: Purpose,
    ) -> Result<OpenDisk, OpenError> {
        match self {
            Self::Own(scope) => open_paired(paired, scope, purpose),
            Self::Broker(client) => client.open(name, paired, purpose),
        }
    }

    /// Looks whether a disk may become a pair's. A broker has done so when root had the pair recorded, and what it recorded
    /// counts.
    ///
    /// # Errors
    /// [`OpenError`] with what speaks against it; nothing was written.
    pub fn may_be_paired(
        &self,
        name: &PairName,
        scsi_id: ScsiId,
        may_overwrite: bool,
        inventory: &Inventory,
    ) -> Result<PairedDisk, OpenError> {
        match self {
            Self::Own(scope) => open::may_be_paired(scsi_id, may_overwrite, inventory, scope),
            Self::Broker(client) => client.may_be_paired(name, scsi_id),
        }
    }

    /// Drops the kernel's device of a pair's disk, so that its VMDK can be detached. Whether there was one to drop.
    ///
    /// # Errors
    /// When the kernel or the broker refuses.
    pub fn release(&self, name: &PairName, kernel_name: &str) -> io::Result<bool> {
        match self {
            Self::Own(_) => drop_device(kernel_name),
            Self::Broker(client) => client.release(name).map_err(io::Error::other),
        }
    }
}

/// Drops the kernel's device of a SCSI disk (`Documentation/scsi/scsi_mid_low_api.rst`, "Hotplug"). A stand-in of a
/// laboratory has none to drop.
///
/// # Errors
/// When the kernel refuses.
pub fn drop_device(kernel_name: &str) -> io::Result<bool> {
    let path = Path::new("/sys/block").join(kernel_name).join("device/delete");
    // The name of a lab image is its path, which takes the place of the folder.
    if !path.starts_with("/sys/block") || !path.exists() {
        return Ok(false);
    }
    std::fs::write(path, "1").map(|()| true)
}
