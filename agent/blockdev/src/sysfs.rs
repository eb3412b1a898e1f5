//! What the kernel says of block devices in sysfs.
//!
//! Reads only; the root is given, so that tests use a tree of their own. Sysfs counts in sectors of 512
//! bytes whatever the device's blocks are (`Documentation/ABI/stable/sysfs-block`): the conversion to bytes
//! happens here and nowhere else.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The kernel's sector, bytes. Not a block size of any device.
pub const KERNEL_SECTOR: u64 = 512;
/// More of one attribute than this is not read; the longest used, a VPD page, has at most 4096 + 4.
const ATTRIBUTE_BYTES_MAX: u64 = 65_536;

/// Number of a block device, major and minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// Which driver.
    pub major: u64,
    /// Which of its devices.
    pub minor: u64,
}

impl DeviceNumber {
    /// Takes apart a `dev_t` as `stat` gives it.
    #[must_use]
    pub fn from_dev(dev: u64) -> Self {
        Self {
            major: nix::sys::stat::major(dev),
            minor: nix::sys::stat::minor(dev),
        }
    }

    /// Whether it belongs to a real device; file systems without one have major 0.
    #[must_use]
    pub fn is_device(self) -> bool {
        self.major != 0
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Without a colon the minor is empty, which is no number: one error for both.
        let (major, minor) = text.split_once(':').unwrap_or((text, ""));
        Ok(Self {
            major: major.parse()?,
            minor: minor.parse()?,
        })
    }
}

impl Serialize for DeviceNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DeviceNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|_| de::Error::custom(format!("{text:?} is no device number")))
    }
}

/// One block device: a whole disk, a partition, or something stacked on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockNode {
    /// Kernel name, as in sysfs: `sdb`, `sdb1`, `dm-0`, `cciss!c0d0`.
    pub name: String,
    /// Its number.
    pub number: DeviceNumber,
    /// For a partition, the name of its disk.
    pub disk: Option<String>,
    /// Names of the devices stacked on it: dm, md, bcache.
    pub holders: Vec<String>,
    /// Names of the devices it is stacked on.
    pub slaves: Vec<String>,
    /// For an attached loop device, the path of its backing file as the kernel shows it.
    pub backing_file: Option<PathBuf>,
    /// For a device-mapper device, its name.
    pub dm_name: Option<String>,
    /// For a device-mapper device, its UUID, whose first part says who made it: `LVM-`, `mpath-`, `CRYPT-`.
    pub dm_uuid: Option<String>,
}

/// What sysfs knows of one whole disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SysfsDisk {
    /// Kernel name.
    pub name: String,
    /// Its number.
    pub number: DeviceNumber,
    /// Size, bytes.
    pub size: u64,
    /// The kernel holds it read-only.
    pub read_only: bool,
    /// The medium can be taken out.
    pub removable: bool,
    /// Logical block size, bytes; 0 when the kernel does not tell.
    pub logical_block_size: u32,
    /// Physical block size, bytes; 0 when the kernel does not tell.
    pub physical_block_size: u32,
    /// Its partitions as the kernel sees them, in order of number.
    pub partitions: Vec<SysfsPartition>,
    /// Its SCSI side; `None` when it is no SCSI device.
    pub scsi: Option<ScsiNode>,
}

/// A partition as the kernel sees it. Not what the table says: [`crate::blkid`] reads that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SysfsPartition {
    /// Kernel name.
    pub name: String,
    /// Number in the table.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Size, bytes.
    pub size: u64,
}

/// The SCSI device under a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScsiNode {
    /// Host, channel, target, unit: `2:0:1:0`.
    pub hctl: String,
    /// Vendor, trimmed.
    pub vendor: String,
    /// Model, trimmed.
    pub model: String,
    /// Peripheral device type; 0 is a disk.
    pub device_type: u8,
    /// `running`, or what is wrong with it: `offline`, `blocked`, `transport-offline`, `deleted`.
    pub state: String,
    /// Attribute `wwid`: the identity as the kernel picked it.
    pub wwid: Option<String>,
    /// VPD page 0x80 as the kernel read it when the disk appeared.
    pub vpd80: Option<Vec<u8>>,
    /// VPD page 0x83 as the kernel read it when the disk appeared.
    pub vpd83: Option<Vec<u8>>,
}

/// A sysfs tree.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::new("/sys")
    }
}

impl Sysfs {
    /// The tree at `root`; `/sys` but for tests.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Kernel names of all whole block devices, in natural order (`sdb` before `sdaa`).
    ///
    /// # Errors
    /// When `/sys/block` cannot be read.
    pub fn whole_devices(&self) -> io::Result<Vec<String>> {
        self.names("block")
    }

    /// Every block device with what is stacked on it, in natural order. A device that disappears while it is
    /// read is left out.
    ///
    /// # Errors
    /// When `/sys/class/block` cannot be read.
    pub fn nodes(&self) -> io::Result<Vec<BlockNode>> {
        Ok(self
            .names("class/block")?
            .into_iter()
            .filter_map(|name| self.node(&name))
            .collect())
    }

    fn names(&self, folder: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.root.join(folder))? {
            // Kernel names are ASCII; another name cannot be a block device.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_by_key(|name| natural_key(name));
        Ok(names)
    }

    fn node(&self, name: &str) -> Option<BlockNode> {
        let dir = self.root.join("class/block").join(name);
        let number = text(&dir.join("dev"))?.parse().ok()?;
        let disk = dir
            .join("partition")
            .exists()
            .then(|| parent_name(&dir))
            .flatten();
        Some(BlockNode {
            name: name.to_owned(),
            number,
            disk,
            holders: listing(&dir.join("holders")),
            slaves: listing(&dir.join("slaves")),
            backing_file: text(&dir.join("loop/backing_file")).map(PathBuf::from),
            dm_name: text(&dir.join("dm/name")),
            dm_uuid: text(&dir.join("dm/uuid")),
        })
    }

    /// What sysfs knows of a whole disk; `None` when there is none of this name (any more).
    #[must_use]
    pub fn disk(&self, name: &str) -> Option<SysfsDisk> {
        if name.contains('/') || name.starts_with('.') {
            return None;
        }
        let dir = self.root.join("block").join(name);
        let number = text(&dir.join("dev"))?.parse().ok()?;
        let sectors: u64 = text(&dir.join("size"))?.parse().ok()?;
        let attribute = |name: &str| {
            text(&dir.join(name))
                .and_then(|value| value.parse::<u32>().ok())
                .unwrap_or(0)
        };
        Some(SysfsDisk {
            name: name.to_owned(),
            number,
            size: sectors.checked_mul(KERNEL_SECTOR)?,
            read_only: attribute("ro") != 0,
            removable: attribute("removable") != 0,
            logical_block_size: attribute("queue/logical_block_size"),
            physical_block_size: attribute("queue/physical_block_size"),
            partitions: partitions(&dir),
            scsi: scsi(&dir.join("device")),
        })
    }

    /// Kernel name behind a device number, and the disk's name when it is a partition.
    #[must_use]
    pub fn name_of(&self, number: DeviceNumber) -> Option<(String, Option<String>)> {
        let dir = self.root.join("dev/block").join(number.to_string());
        let real = fs::canonicalize(&dir).ok()?;
        let name = real.file_name()?.to_str()?.to_owned();
        let disk = real
            .join("partition")
            .exists()
            .then(|| parent_name(&dir))
            .flatten();
        Some((name, disk))
    }
}

/// Where a kernel name is found under `/dev`: sysfs writes `!` for a slash in it.
#[must_use]
pub fn devnode(name: &str) -> PathBuf {
    Path::new("/dev").join(name.replace('!', "/"))
}

/// Sort key by which `sdb` comes before `sdaa`, and `sdb2` before `sdb10`.
#[must_use]
pub fn natural_key(name: &str) -> (String, usize, String, u64) {
    let stem_end = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (stem, digits) = name.split_at(stem_end);
    // Of disks named by letters the driver's prefix stays first: sd, vd, hd, xvd.
    let prefix = ["xvd", "sd", "vd", "hd"]
        .into_iter()
        .find(|prefix| stem.starts_with(prefix))
        .unwrap_or("");
    let letters = &stem[prefix.len()..];
    (
        prefix.to_owned(),
        letters.len(),
        letters.to_owned(),
        digits.parse().unwrap_or(0),
    )
}

/// An attribute as text, without the newline at its end; `None` when it is missing, empty or not text.
fn text(path: &Path) -> Option<String> {
    let value = String::from_utf8(bytes(path)?).ok()?;
    let value = value.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

/// An attribute as bytes; `None` when it is missing, empty or longer than any attribute.
fn bytes(path: &Path) -> Option<Vec<u8>> {
    use io::Read as _;
    let mut value = Vec::new();
    fs::File::open(path)
        .ok()?
        .take(ATTRIBUTE_BYTES_MAX)
        .read_to_end(&mut value)
        .ok()?;
    (!value.is_empty()).then_some(value)
}

fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort_by_key(|name| natural_key(name));
    names
}

/// Name of the folder above the real place of `dir`: a partition lies in the folder of its disk.
fn parent_name(dir: &Path) -> Option<String> {
    Some(
        fs::canonicalize(dir)
            .ok()?
            .parent()?
            .file_name()?
            .to_str()?
            .to_owned(),
    )
}

fn partitions(dir: &Path) -> Vec<SysfsPartition> {
    let mut found: Vec<SysfsPartition> = listing(dir)
        .into_iter()
        .filter_map(|name| {
            let part = dir.join(&name);
            let bytes_of = |file: &str| {
                text(&part.join(file))?
                    .parse::<u64>()
                    .ok()?
                    .checked_mul(KERNEL_SECTOR)
            };
            Some(SysfsPartition {
                number: text(&part.join("partition"))?.parse().ok()?,
                start: bytes_of("start")?,
                size: bytes_of("size")?,
                name,
            })
        })
        .collect();
    found.sort_by_key(|part| part.number);
    found
}

fn scsi(device: &Path) -> Option<ScsiNode> {
    // Of all buses only SCSI has a numeric device `type` together with this subsystem.
    let subsystem = fs::canonicalize(device.join("subsystem")).ok()?;
    if subsystem.file_name()? != "scsi" {
        return None;
    }
    Some(ScsiNode {
        hctl: fs::canonicalize(device).ok()?.file_name()?.to_str()?.to_owned(),
        vendor: text(&device.join("vendor")).unwrap_or_default(),
        model: text(&device.join("model")).unwrap_or_default(),
        device_type: text(&device.join("type"))?.parse().ok()?,
        state: text(&device.join("state")).unwrap_or_default(),
        wwid: text(&device.join("wwid")),
        vpd80: bytes(&device.join("vpd_pg80")),
        vpd83: bytes(&device.join("vpd_pg83")),
    })
}

#[cfg(test)]
mod tests;
