//! Gathers the facts of all disks: the edge of [`super::facts`].
//!
//! Reads only, and only ever opens whole disks for reading: no partition, no assembly, no mount. What cannot
//! be read becomes a doubt about that disk and never a guess; only when the machine itself cannot be read
//! (`/sys`, `/proc`) is there no inventory.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mt_blockdev::mounts::{Mount, Proc, mount_of};
use mt_blockdev::scsi::{self, VPD_DEVICE_ID, VPD_UNIT_SERIAL};
use mt_blockdev::sysfs::{DeviceNumber, ScsiNode, Sysfs, SysfsDisk, devnode};
use mt_blockdev::udev::UdevDisk;
use mt_blockdev::{blkid, ioctl, udev};

use crate::broker::client::BrokerError;
use crate::error::{ExitCode, Explain};

use super::facts::{Content, DiskFacts, DiskKind, Doubt, Identity, Inventory, LabDisk};
use super::gate;
use super::identity::{self, InquiryFailure, Witnesses};
use super::uses::{MountUse, Snapshot, Storage};

/// Where the appliance keeps its own things; the disks under these are never targets.
const OWN_PLACES: [&str; 5] = ["/", "/boot", "/boot/efi", "/efi", "/var/lib/master-target"];
/// Device names that are stacked on others or in memory: never disks of their own. Optical and floppy drives
/// (`sr`, `fd`) are handled apart.
const NOT_A_DISK: [&str; 10] = [
    "loop", "ram", "zram", "dm-", "md", "bcache", "nbd", "mtdblock", "drbd", "fd",
];
/// Major number of loop devices (`Documentation/admin-guide/devices.txt`).
const LOOP_MAJOR: u64 = 7;

/// Why there is no inventory.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// Sysfs or proc could not be read.
    #[error("cannot read {what} of this machine")]
    Unreadable {
        /// What of it.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The broker, which looks at the disks for this process, did not tell.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl InventoryError {
    fn of(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Unreadable { what, source }
    }
}

impl Explain for InventoryError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Unreadable { .. } => Some("run as root, with /sys and /proc mounted".to_owned()),
            Self::Broker(error) => error.hint(),
        }
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Unreadable { .. } => ExitCode::DiskMissing,
            Self::Broker(error) => error.exit_code(),
        }
    }
}

/// What the configuration adds to what can be seen of a machine's disks.
#[derive(Debug, Clone, Default)]
pub struct DiskScope {
    /// Stand-ins for SCSI disks.
    pub lab: Arc<[LabDisk]>,
    /// Places of the appliance's own beside the usual ones: the configured state folder.
    pub own_places: Arc<[PathBuf]>,
}

impl DiskScope {
    /// The scope of a configuration.
    #[must_use]
    pub fn new(lab: &[LabDisk], own_places: &[PathBuf]) -> Self {
        Self {
            lab: lab.into(),
            own_places: own_places.into(),
        }
    }
}

/// Gathers the facts of all disks of this machine, and of the lab disks of the scope.
///
/// # Errors
/// [`InventoryError`] when `/sys` or `/proc` cannot be read.
pub fn gather(scope: &DiskScope) -> Result<Inventory, InventoryError> {
    let mut gatherer = Gatherer::default();
    gatherer.own_places.extend_from_slice(&scope.own_places);
    gatherer.gather(&scope.lab)
}

/// Where the facts come from; the defaults are this machine.
#[derive(Debug, Clone)]
pub struct Gatherer {
    /// Sysfs.
    pub sysfs: Sysfs,
    /// Proc.
    pub proc: Proc,
    /// Places of the appliance's own.
    pub own_places: Vec<PathBuf>,
}

impl Default for Gatherer {
    fn default() -> Self {
        Self {
            sysfs: Sysfs::default(),
            proc: Proc::default(),
            own_places: OWN_PLACES.iter().map(PathBuf::from).collect(),
        }
    }
}

impl Gatherer {
    /// Gathers the facts, and asks the gate what speaks against each disk.
    ///
    /// # Errors
    /// [`InventoryError`] when sysfs or proc cannot be read.
    pub fn gather(&self, lab: &[LabDisk]) -> Result<Inventory, InventoryError> {
        let (snapshot, mut warnings) = self.snapshot()?;
        let mut from_udev: BTreeMap<String, UdevDisk> = match udev::disks() {
            Ok(disks) => disks.into_iter().map(|disk| (disk.name.clone(), disk)).collect(),
            Err(err) => {
                warnings.push(format!(
                    "udev could not be asked: {err}; its copies of SCSI IDs are not compared"
                ));
                BTreeMap::new()
            }
        };
        let names = self
            .sysfs
            .whole_devices()
            .map_err(InventoryError::of("the list of disks (/sys/block)"))?;
        let mut disks: Vec<DiskFacts> = names
            .into_iter()
            .filter(|name| !NOT_A_DISK.iter().any(|prefix| name.starts_with(prefix)))
            .filter_map(|name| self.sysfs.disk(&name))
            // A drive without a medium's name is furniture; one that shows a disk's name must be seen.
            .filter(|disk| !disk.name.starts_with("sr") || disk.scsi.as_ref().is_some_and(has_name))
            .map(|disk| {
                let udev = from_udev.remove(&disk.name).unwrap_or_default();
                attached(disk, &udev, &snapshot)
            })
            .collect();
        disks.extend(self.lab_disks(lab, &snapshot));
        let mut inventory = Inventory { disks, warnings };
        gate::assess(&mut inventory);
        Ok(inventory)
    }

    fn snapshot(&self) -> Result<(Snapshot, Vec<String>), InventoryError> {
        let mut warnings = Vec::new();
        let nodes = self
            .sysfs
            .nodes()
            .map_err(InventoryError::of("the block devices (/sys/class/block)"))?;
        let table = self
            .proc
            .mounts()
            .map_err(InventoryError::of("the mounts (/proc/self/mountinfo)"))?;
        if table.hidden_processes > 0 {
            warnings.push(format!(
                "the mounts of {} processes cannot be seen; a disk used only there is not shown as used, and only its exclusive open fails",
                table.hidden_processes
            ));
        }
        let swaps = self
            .proc
            .swaps()
            .map_err(InventoryError::of("the swap areas (/proc/swaps)"))?;
        let mounts: Vec<MountUse> = table.mounts.iter().map(mount_use).collect();
        let own = self
            .own_places
            .iter()
            .filter_map(|place| {
                let real = std::fs::canonicalize(place).ok()?;
                let mount = mount_of(&table.mounts, &real)?;
                Some((place.display().to_string(), mount_use(mount).numbers))
            })
            .collect();
        let loops = nodes
            .iter()
            .filter(|node| node.number.major == LOOP_MAJOR && node.disk.is_none())
            .filter_map(|node| {
                Some((
                    node.name.clone(),
                    loop_storage(&node.name, node.backing_file.as_deref()?)?,
                ))
            })
            .collect();
        let swaps = swaps
            .into_iter()
            .filter_map(|swap| Some((storage_of(&swap.path)?, swap.path)))
            .collect();
        Ok((
            Snapshot {
                nodes,
                loops,
                mounts,
                swaps,
                own,
            },
            warnings,
        ))
    }

    fn lab_disks(&self, lab: &[LabDisk], snapshot: &Snapshot) -> Vec<DiskFacts> {
        let storages: Vec<Option<Storage>> = lab.iter().map(|disk| lab_storage(&disk.path)).collect();
        lab.iter()
            .enumerate()
            .map(|(index, disk)| {
                let mut facts = self.lab_disk(disk, snapshot);
                let twin = storages.iter().enumerate().find(|(other, storage)| {
                    *other != index && storage.is_some() && **storage == storages[index]
                });
                if let Some((other, _)) = twin {
                    let why = format!("is the same storage as {}", lab[other].path.display());
                    facts.doubts.push(Doubt::Lab { why });
                }
                facts
            })
            .collect()
    }

    fn lab_disk(&self, lab: &LabDisk, snapshot: &Snapshot) -> DiskFacts {
        let mut facts = DiskFacts {
            kernel_name: lab.path.display().to_string(),
            devnode: lab.path.clone(),
            number: None,
            kind: DiskKind::Lab,
            identity: Identity::Known { scsi_id: lab.scsi_id },
            serial: None,
            vendor: None,
            model: None,
            hctl: None,
            size: 0,
            logical_block_size: lab.block_size.unwrap_or(512),
            physical_block_size: lab.block_size.unwrap_or(512),
            read_only: false,
            removable: false,
            content: Content::Unreadable {
                why: "it was not looked at".to_owned(),
            },
            uses: Vec::new(),
            doubts: Vec::new(),
            may_be_target: false,
            objections: Vec::new(),
        };
        let doubt = |why: String| Doubt::Lab { why };
        let meta = match std::fs::metadata(&lab.path) {
            Ok(meta) => meta,
            Err(err) => {
                facts.doubts.push(doubt(format!("cannot be looked at: {err}")));
                return facts;
            }
        };
        if meta.is_file() {
            facts.model = Some("image file".to_owned());
            facts.size = meta.len();
            facts.uses = snapshot.uses_of_storage(Storage::File(meta.dev(), meta.ino()), None);
        } else if meta.file_type().is_block_device() {
            let number = DeviceNumber::from_dev(meta.rdev());
            facts.number = Some(number);
            let (name, whole) = self
                .sysfs
                .name_of(number)
                .unwrap_or_else(|| (number.to_string(), None));
            if number.major != LOOP_MAJOR || whole.is_some() {
                let what = if whole.is_some() {
                    "a partition"
                } else {
                    "no loop device"
                };
                facts.doubts.push(doubt(format!(
                    "is {what}: lab disks are loop devices and image files only"
                )));
            }
            facts.model = Some("loop device".to_owned());
            facts.uses = snapshot.uses_of_disk(&name);
            if let Some((_, backing)) = snapshot.loops.iter().find(|(other, _)| *other == name) {
                facts.uses.extend(snapshot.uses_of_storage(*backing, Some(&name)));
            }
            if let Some(disk) = self.sysfs.disk(&name) {
                facts.size = disk.size;
                facts.read_only = disk.read_only;
                facts.logical_block_size = disk.logical_block_size;
                facts.physical_block_size = disk.physical_block_size;
            }
            facts.kernel_name = name;
            if let Some(wanted) = lab.block_size
                && wanted != facts.logical_block_size
            {
                let found = facts.logical_block_size;
                facts.doubts.push(doubt(format!(
                    "has logical blocks of {found} bytes, block_size says {wanted}"
                )));
            }
        } else {
            facts
                .doubts
                .push(doubt("is neither a loop device nor an image file".to_owned()));
            return facts;
        }
        let block = u64::from(facts.logical_block_size.max(1));
        if facts.size == 0 {
            facts.doubts.push(doubt("has no size".to_owned()));
        } else if !facts.size.is_multiple_of(block) {
            facts.doubts.push(doubt(format!(
                "has {} bytes, no multiple of its blocks of {block}",
                facts.size
            )));
        }
        facts.content = content(&lab.path, facts.size);
        facts
    }
}

/// Whether the kernel's copy names this device as disks are named.
fn has_name(scsi: &ScsiNode) -> bool {
    scsi.wwid
        .as_deref()
        .is_some_and(|wwid| scsi::ScsiId::parse(wwid).is_ok())
}

/// The facts of one attached disk.
fn attached(disk: SysfsDisk, udev: &UdevDisk, snapshot: &Snapshot) -> DiskFacts {
    let node = devnode(&disk.name);
    let kind = match &disk.scsi {
        Some(scsi) if scsi.device_type == 0 => DiskKind::Scsi,
        Some(_) => DiskKind::ScsiOther,
        None if disk.name.starts_with("nvme") => DiskKind::Nvme,
        None if disk.name.starts_with("vd") => DiskKind::Virtio,
        None => DiskKind::Other,
    };
    let mut doubts = Vec::new();
    let opened = open_node(&node, disk.number);
    if let Err(NodeError::Missing(why)) = &opened {
        doubts.push(Doubt::NoNode { why: why.clone() });
    }
    let state = disk.scsi.as_ref().map_or("", |scsi| scsi.state.as_str());
    if !state.is_empty() && state != "running" {
        doubts.push(Doubt::NotRunning {
            state: state.to_owned(),
        });
    }
    let (identity, serial) = match &disk.scsi {
        None => (
            Identity::Missing {
                why: format!("{} takes no SCSI commands", kind.describe()),
            },
            None,
        ),
        Some(scsi) => (
            identity::decide(&Witnesses {
                inquiry: Some(ask(&opened, VPD_DEVICE_ID)),
                sysfs_vpd83: scsi.vpd83.clone(),
                sysfs_wwid: scsi.wwid.clone(),
                udev_wwn_with_extension: udev.wwn_with_extension.clone(),
                udev_wwn: udev.wwn.clone(),
            }),
            serial(&opened, scsi),
        ),
    };
    let content = match &opened {
        Ok(file) => probed(blkid::probe(file, disk.size)),
        Err(err) => Content::Unreadable {
            why: err.text().to_owned(),
        },
    };
    let uses = snapshot.uses_of_disk(&disk.name);
    let text = |value: fn(&ScsiNode) -> &String| {
        disk.scsi
            .as_ref()
            .map(value)
            .filter(|value| !value.is_empty())
            .cloned()
    };
    DiskFacts {
        devnode: node,
        number: Some(disk.number),
        kind,
        identity,
        serial,
        vendor: text(|scsi| &scsi.vendor),
        model: text(|scsi| &scsi.model),
        hctl: text(|scsi| &scsi.hctl),
        size: disk.size,
        logical_block_size: disk.logical_block_size,
        physical_block_size: disk.physical_block_size,
        read_only: disk.read_only,
        removable: disk.removable,
        content,
        uses,
        doubts,
        may_be_target: false,
        objections: Vec::new(),
        kernel_name: disk.name,
    }
}

/// Why a device node could not be opened.
enum NodeError {
    /// It is not there, or belongs to another device.
    Missing(String),
    /// It is there and does not open: no permission, no medium, an error.
    Closed(String),
}

impl NodeError {
    fn text(&self) -> &str {
        match self {
            Self::Missing(text) | Self::Closed(text) => text,
        }
    }
}

/// Opens the node of a disk for reading, when it is the node of that disk.
fn open_node(node: &Path, number: DeviceNumber) -> Result<File, NodeError> {
    // Looks before opening, since opening some files acts on them; and again after, since the node may have
    // been replaced between the two.
    let check = |meta: Metadata| {
        let found = DeviceNumber::from_dev(meta.rdev());
        if meta.file_type().is_block_device() && found == number {
            return Ok(());
        }
        Err(NodeError::Missing(format!(
            "{} is not block device {number}",
            node.display()
        )))
    };
    let missing = |err: io::Error| NodeError::Missing(format!("{}: {err}", node.display()));
    check(std::fs::metadata(node).map_err(missing)?)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
        .open(node)
        .map_err(|err| NodeError::Closed(format!("cannot open {}: {err}", node.display())))?;
    check(file.metadata().map_err(missing)?)?;
    Ok(file)
}

/// Asks a disk for one VPD page.
fn ask(opened: &Result<File, NodeError>, page: u8) -> Result<Vec<u8>, InquiryFailure> {
    match opened {
        Ok(file) => ioctl::inquiry(file, Some(page)).map_err(InquiryFailure::from),
        Err(err) => Err(InquiryFailure::NotAsked(err.text().to_owned())),
    }
}

/// The unit serial number: asked, else as the kernel keeps it. Shown only, so a copy is good enough.
fn serial(opened: &Result<File, NodeError>, scsi: &ScsiNode) -> Option<String> {
    let asked = ask(opened, VPD_UNIT_SERIAL)
        .ok()
        .and_then(|page| scsi::parse_vpd80(&page).ok());
    asked
        .or_else(|| scsi::parse_vpd80(scsi.vpd80.as_deref()?).ok())
        .flatten()
}

fn content(path: &Path, size: u64) -> Content {
    match File::open(path) {
        Ok(file) => probed(blkid::probe(&file, size)),
        Err(err) => Content::Unreadable {
            why: format!("cannot open {}: {err}", path.display()),
        },
    }
}

fn probed(result: Result<blkid::DiskContent, blkid::ProbeError>) -> Content {
    use std::error::Error as _;
    match result {
        Ok(content) => Content::Probed { content },
        Err(err) => {
            let cause = err.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            Content::Unreadable {
                why: format!("{err}{cause}"),
            }
        }
    }
}

fn mount_use(mount: &Mount) -> MountUse {
    let mut numbers = Vec::new();
    if mount.number.is_device() {
        numbers.push(mount.number);
    }
    // btrfs shows a number of its own making; its source is the device.
    if mount.source.is_absolute()
        && let Some(Storage::Device(number)) = storage_of(&mount.source)
        && !numbers.contains(&number)
    {
        numbers.push(number);
    }
    MountUse {
        numbers,
        at: mount.mount_point.clone(),
        own_namespace: mount.own_namespace,
    }
}

/// What a path names, when it is a block device or a regular file.
fn storage_of(path: &Path) -> Option<Storage> {
    let meta = std::fs::metadata(path).ok()?;
    if meta.file_type().is_block_device() {
        return Some(Storage::Device(DeviceNumber::from_dev(meta.rdev())));
    }
    meta.is_file().then(|| Storage::File(meta.dev(), meta.ino()))
}

/// Where the bytes of a lab disk are: of a loop device what it is attached to.
fn lab_storage(path: &Path) -> Option<Storage> {
    match storage_of(path)? {
        Storage::Device(number) if number.major == LOOP_MAJOR => {
            Some(backing_of(path).unwrap_or(Storage::Device(number)))
        }
        other => Some(other),
    }
}

fn loop_storage(name: &str, backing_file: &Path) -> Option<Storage> {
    // The path is the second choice: it may be of another namespace, or name another file by now.
    backing_of(&devnode(name)).or_else(|| storage_of(backing_file))
}

fn backing_of(node: &Path) -> Option<Storage> {
    let file = File::open(node).ok()?;
    let backing = ioctl::loop_backing(&file).ok()??;
    Some(match backing.rdev {
        0 => Storage::File(backing.dev, backing.inode),
        rdev => Storage::Device(DeviceNumber::from_dev(rdev)),
    })
}

#[cfg(test)]
mod tests;
