//! The retention store: a versioned block log from which the disks of one machine can be brought to any kept instant.
//!
//! Pure: no task, no thread, no clock, no path. What it needs of the world are two small traits, [`Storage`] and
//! [`TargetDisk`]; the only edge in this crate is [`files`], a folder as storage.
//!
//! # How to hold it
//!
//! One [`Store`] is the log of one machine; all of its disks are in it, in one order. One owner calls it; every call is
//! bounded by what the caller hands it, so that a lock around it is never held for long.
//!
//! ```
//! use mt_retention::testing::{SimDisk, SimStorage};
//! use mt_retention::{
//!     Consistency, CreateOptions, Disk, DiskIndex, Offered, OpenOptions, PointSpec, Store, TargetDisk, digest,
//! };
//!
//! # fn main() -> Result<(), mt_retention::StoreError> {
//! let spec = |time| PointSpec {
//!     consistency: Consistency::FileSystem,
//!     source_time_ms: time,
//!     received_time_ms: time,
//!     name: String::new(),
//!     tags: Vec::new(),
//! };
//! let disk = SimDisk::new(1 << 20);
//! let disks: [&dyn TargetDisk; 1] = [&disk];
//! let table = vec![Disk { id: "naa.600".to_owned(), size: 1 << 20 }];
//! let storage = SimStorage::new();
//! let mut store = Store::create(
//!     storage.clone(),
//!     CreateOptions {
//!         uuid: [1; 16],
//!         generation: 1,
//!         disks: table.clone(),
//!         segment_size: 1 << 20,
//!         capacity: 0,
//!         initial_point: Some(spec(0)),
//!     },
//! )?;
//!
//! // An epoch comes in: begin, extents of any disk, end. When `commit_epoch` returns it may be acknowledged.
//! let epoch = store.begin_epoch()?;
//! let block = [7; 4096];
//! store.write(DiskIndex(0), 8192, &block, digest(&block))?;
//! store.zero(DiskIndex(0), 65536, 8192)?;
//! let acknowledged = store.commit_epoch(spec(1_000), Offered::AsPoint)?;
//! assert_eq!(acknowledged.epoch, epoch);
//!
//! // Behind it, in steps: to the disks.
//! while !store.apply_step(&disks, 8 << 20)?.up_to_date {}
//!
//! // After a crash: open, and apply what may not be on the disks.
//! drop(store);
//! let (mut store, _recovered) = Store::open(storage, OpenOptions { disks: Some(table), capacity: 0 })?;
//! store.apply_all(&disks, 8 << 20)?;
//!
//! // Look at any point without touching the disks.
//! let before = store.points().next().expect("the initial point").epoch;
//! let mut buf = [1; 4096];
//! store.read_at(before, DiskIndex(0), 8192, &mut buf, &disks)?;
//! assert_eq!(buf, [0; 4096]);
//!
//! // Go there, in steps.
//! let mut roll = store.begin_roll(before, spec(2_000))?;
//! while !store.roll_step(&mut roll, 8 << 20)?.complete {}
//! store.finish_roll(&roll, spec(2_001))?;
//! store.apply_all(&disks, 8 << 20)?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! * An epoch that [`Store::commit_epoch`] returned survives power loss, whole; one that it did not return for may
//!   survive whole, and otherwise leaves no trace.
//! * No block is overwritten in place before its before-image is durable, while a point that needs it is on offer.
//! * A point on offer reads as the disks were, bit for bit, or is an error that says what is damaged.
//! * After a failed write or flush nothing is acknowledged any more ([`Store::latched`]).
//!
//! # The modules
//!
//! | module | is about |
//! |---|---|
//! | `superblock`, `segment`, `record`, `meta` | the format, byte by byte |
//! | `log`, `scan` | appending, sealing, reading back; a segment as it lies in storage |
//! | `store`, `ingest`, `apply`, `resolve`, `roll` | what is done with it |
//! | `pack` | content made smaller, where that pays |
//! | `recent`, `unapplied` | content that is kept in memory until it is in place; what the disks will hold then |
//! | `recover`, `summary` | opening after a crash; what spares reading footers |
//! | `walk`, `check`, `overlay` | reading every byte; looking at a store without touching it |
//! | [`policy`] | which points are kept; what happens when space is short |
//! | `room`, `reclaim` | what is held back; getting space back |
//! | [`inspect`] | what lies in a store, for an engineer |
//! | [`files`], `writer` | a folder as storage; its large writes, several under way at once |

#![forbid(unsafe_code)]

mod apply;
mod check;
mod codec;
mod error;
pub mod files;
#[doc(hidden)]
pub mod fuzz;
mod ingest;
pub mod inspect;
mod log;
mod meta;
mod overlay;
mod pack;
pub mod planted;
pub mod policy;
mod ranges;
mod recent;
mod reclaim;
mod record;
mod recover;
mod resolve;
mod roll;
mod room;
mod scan;
mod segment;
mod storage;
mod store;
mod summary;
mod superblock;
#[cfg(feature = "testing")]
pub mod testing;
mod types;
mod unapplied;
mod walk;
mod writer;

pub use apply::{ApplyProgress, StoreAccess, apply_step_of};
pub use check::{Checked, check_superblocks};
pub use error::StoreError;
pub use ingest::{Acknowledged, Offered};
pub use overlay::Overlay;
pub use reclaim::Reclaimed;
pub use recover::restore_superblocks;
pub use roll::{Roll, RollProgress};
pub use storage::{ObjectName, Storage, StorageError, StorageOp, TargetDisk};
pub use store::{
    Agreement, CreateOptions, OpenOptions, Recovered, SEGMENT_SIZE_DEFAULT, SEGMENT_SIZE_MAX,
    SEGMENT_SIZE_MIN, Status, Store,
};
pub use summary::{Catalogue, NoCatalogue};
pub use types::{
    BLOCK_SIZE, Consistency, DISK_ID_BYTES_MAX, DISKS_MAX, Digest, Disk, DiskIndex, EXTENT_BYTES_MAX,
    EpochNumber, Origin, POINT_NAME_BYTES_MAX, POINT_TAGS_MAX, Point, PointSpec, StoreUuid, digest,
};
pub use unapplied::Newer;
pub use walk::Finding;
