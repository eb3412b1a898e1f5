//! Safe faces of the kernel interfaces the appliance needs for disks.
//!
//! The one crate of the workspace that holds `unsafe`: an `ioctl`, the libraries blkid and udev, aligned
//! memory, settings of the heap. It knows the kernel and nothing of pairs, points or who may write what; that is decided by its
//! callers from what it reports. Reading changes nothing on any disk; only [`device::BlockDevice`] writes.
//!
//! | module | is the face of |
//! |---|---|
//! | [`buffer`] | memory that direct I/O accepts |
//! | [`heap`] | what the C library keeps of freed memory |
//! | [`device`] | one open disk or image file: bytes in and out, zeros, flush |
//! | [`ioctl`] | block device ioctls and SG_IO INQUIRY |
//! | [`scsi`] | the bytes of INQUIRY and VPD pages, and the SCSI ID in them |
//! | [`sysfs`] | sizes, numbers, partitions and holders as the kernel has them |
//! | [`blkid`] | what is on a disk: partition table, file systems, LVM, md |
//! | [`mounts`] | mounts of every namespace, and swap |
//! | [`shared`] | memory that programs in the kernel write too |
//! | [`udev`] | udev's properties, and events of disks that come and go |

pub mod blkid;
pub mod buffer;
pub mod device;
pub mod heap;
pub mod ioctl;
pub mod mounts;
pub mod scsi;
pub mod shared;
pub mod sysfs;
pub mod udev;
