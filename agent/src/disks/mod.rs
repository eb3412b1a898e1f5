//! The disks of this machine: what they are, which may be written, and the only way to an open one.
//!
//! | module | does | I/O |
//! |---|---|---|
//! | [`facts`] | plain data, and the difference of two inventories | no |
//! | [`identity`] | holds the witnesses of a disk's SCSI ID against each other | no |
//! | [`uses`] | who uses a disk: mounts, swap, everything stacked on it | no |
//! | [`gate`] | admits the one disk a pair may use, or refuses | no |
//! | [`inventory`] | gathers the facts | reads |
//! | [`open`] | gathers, asks the gate, opens exclusively, asks again | reads |
//! | [`access`] | does these two itself, or has the broker do them | reads |
//! | [`mod@format`] | makes a disk the retention disk, through gate and open | writes |
//! | [`watch`] | tells when disks come, go or change | reads |
//!
//! But for [`mod@format`] nothing here writes a byte to a disk. Whoever writes holds an [`open::OpenDisk`], and there is no other
//! way to get one than through the gate.

pub mod access;
pub mod facts;
pub mod format;
pub mod gate;
pub mod identity;
pub mod inventory;
pub mod open;
pub mod uses;
pub mod watch;
