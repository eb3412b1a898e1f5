//! Who looks at the disks and opens them: this process, or the broker for it.
//!
//! Alone, the target does both and has to be root. With a broker ([`crate::broker`]) it may do neither, and is given open
//! disks of recorded pairs.

use std::io;
use std::path::Path;

use super::facts::Inventory;
use super::gate::{PairedDisk, Purpose};
use super::inventory::{self, DiskScope, InventoryError};
use super::open::{OpenDisk, OpenError, open_paired};
use crate::broker::client::{BrokerError, Client};
use crate::broker::wire::Recorded;
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

    /// What the broker has recorded of a pair; `None` where there is no broker.
    ///
    /// # Errors
    /// When the broker does not tell, or has not recorded it.
    pub fn recorded(&self, name: &PairName) -> Result<Option<Recorded>, BrokerError> {
        match self {
            Self::Own(_) => Ok(None),
            Self::Broker(client) => client.recorded(name).map(Some),
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
