//! What udev knows of disks, and the events of disks coming and going.
//!
//! udev is a witness here, not the source: identity is read from the disk itself, and udev's properties are
//! held against it. Everything works where no udevd runs (an initramfs, a minimal container): then there
//! are no properties, and events come straight from the kernel.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

/// Property: the whole identifier, `0x6000c29...`.
pub const ID_WWN_WITH_EXTENSION: &str = "ID_WWN_WITH_EXTENSION";
/// Property: the first 16 digits of the identifier.
pub const ID_WWN: &str = "ID_WWN";
/// Property: udev's serial, built from many sources; for SCSI the designator with its type digit in front.
pub const ID_SERIAL: &str = "ID_SERIAL";
/// Property: the unit serial number of page 0x80.
pub const ID_SCSI_SERIAL: &str = "ID_SCSI_SERIAL";
/// Property: `1` when multipath has claimed the disk.
pub const DM_MULTIPATH_DEVICE_PATH: &str = "DM_MULTIPATH_DEVICE_PATH";

const SUBSYSTEM: &str = "block";
const DISK: &str = "disk";
/// udevd's control socket: it is there while udevd runs.
const UDEVD_SOCKET: &str = "/run/udev/control";

/// A whole disk as udev enumerates it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UdevDisk {
    /// Kernel name.
    pub name: String,
    /// Whether udevd has worked on it; without that there are no properties.
    pub initialized: bool,
    /// [`ID_WWN_WITH_EXTENSION`].
    pub wwn_with_extension: Option<String>,
    /// [`ID_WWN`].
    pub wwn: Option<String>,
    /// [`ID_SERIAL`].
    pub serial: Option<String>,
    /// [`ID_SCSI_SERIAL`].
    pub scsi_serial: Option<String>,
    /// Whether multipath has claimed the disk.
    pub multipath_member: bool,
}

/// Enumerates all whole disks with the properties used.
///
/// # Errors
/// When libudev fails to list `/sys`.
pub fn disks() -> io::Result<Vec<UdevDisk>> {
    let mut enumerator = udev::Enumerator::new()?;
    enumerator.match_subsystem(SUBSYSTEM)?;
    enumerator.match_property("DEVTYPE", DISK)?;
    let devices = enumerator.scan_devices()?;
    Ok(devices
        .filter_map(|device| {
            let property = |name: &str| {
                device
                    .property_value(name)
                    .and_then(|value| value.to_str())
                    .map(str::to_owned)
            };
            Some(UdevDisk {
                name: device.sysname().to_str()?.to_owned(),
                initialized: device.is_initialized(),
                wwn_with_extension: property(ID_WWN_WITH_EXTENSION),
                wwn: property(ID_WWN),
                serial: property(ID_SERIAL),
                scsi_serial: property(ID_SCSI_SERIAL),
                multipath_member: property(DM_MULTIPATH_DEVICE_PATH).as_deref() == Some("1"),
            })
        })
        .collect())
}

/// Where events come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventSource {
    /// udevd, after it has worked on the event: device nodes and properties are there.
    Udev,
    /// The kernel, where no udevd runs.
    Kernel,
}

impl EventSource {
    /// The source that delivers on this machine now.
    #[must_use]
    pub fn detect() -> Self {
        if Path::new(UDEVD_SOCKET).exists() {
            Self::Udev
        } else {
            Self::Kernel
        }
    }
}

/// What happened to a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `add`, `change`, `remove`, or another word of the kernel.
    pub action: String,
    /// Kernel name.
    pub name: String,
}

/// A subscription to events of whole disks. Its descriptor becomes readable when one is there.
pub struct Monitor {
    socket: udev::MonitorSocket,
    source: EventSource,
}

impl Monitor {
    /// Subscribes.
    ///
    /// # Errors
    /// When the netlink socket cannot be opened.
    pub fn open(source: EventSource) -> io::Result<Self> {
        let builder = match source {
            EventSource::Udev => udev::MonitorBuilder::new()?,
            EventSource::Kernel => udev::MonitorBuilder::new_kernel()?,
        };
        let socket = builder.match_subsystem_devtype(SUBSYSTEM, DISK)?.listen()?;
        Ok(Self { socket, source })
    }

    /// Where its events come from.
    #[must_use]
    pub fn source(&self) -> EventSource {
        self.source
    }

    /// The next event that is there, without waiting; `None` when there is none (any more). An event may
    /// have been lost when the kernel's buffer was full: an event is a reason to look again, not a fact.
    pub fn next_event(&mut self) -> Option<Event> {
        let event = self.socket.iter().next()?;
        Some(Event {
            action: event
                .action()
                .map(|action| action.to_string_lossy().into_owned())
                .unwrap_or_default(),
            name: event.sysname().to_string_lossy().into_owned(),
        })
    }
}

#[cfg(feature = "tokio")]
impl Monitor {
    /// Hands the monitor to the tokio runtime this is called in, which can then wait for its events.
    ///
    /// # Errors
    /// When the runtime cannot register the descriptor.
    pub fn into_async(self) -> io::Result<tokio::io::unix::AsyncFd<Self>> {
        // SAFETY: `as_raw_fd` gives the netlink socket of the udev monitor, which libudev opens in `listen`,
        // never replaces, and closes when the last reference goes: `socket` is owned here until drop.
        let registered = unsafe { tokio::io::unix::AsyncFd::register(self) };
        registered.map_err(io::Error::from)
    }
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disks_of_this_machine_are_those_of_sysfs() {
        let mut from_udev: Vec<String> = disks().unwrap().into_iter().map(|disk| disk.name).collect();
        let mut from_sysfs = crate::sysfs::Sysfs::default().whole_devices().unwrap();
        from_udev.sort();
        from_sysfs.sort();
        // A loop device of another test may come or go between the two looks.
        let is_loop = |name: &String| !name.starts_with("loop");
        from_udev.retain(is_loop);
        from_sysfs.retain(is_loop);
        assert_eq!(from_udev, from_sysfs);
    }

    #[test]
    fn both_sources_can_be_subscribed_to() {
        for source in [EventSource::Kernel, EventSource::Udev] {
            let mut monitor = Monitor::open(source).unwrap();
            assert_eq!(monitor.source(), source);
            assert!(monitor.as_raw_fd() >= 0);
            // Nothing to wait for: returns at once.
            let _ = monitor.next_event();
        }
    }
}
