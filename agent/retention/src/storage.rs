//! What the store needs of the world: a place for its objects, and the disks.
//!
//! [`Storage`] is small enough to be simulated to the last torn sector. Its rules of durability are those of POSIX at
//! their weakest: what was written is durable after [`Storage::sync`] of that object; that an object exists, or is gone,
//! is durable after [`Storage::sync_dir`]; until then a crash may keep any part of it in any order.

use std::fmt;
use std::io;

/// Name of an object of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectName {
    /// One of the two superblocks: slot 0 or 1.
    Super(u8),
    /// Space set aside for writing down what makes room, when the volume has none left.
    Spare,
    /// A segment of the log, by its sequence number.
    Segment(u64),
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Super(0) => f.write_str("SUPER.a"),
            Self::Super(_) => f.write_str("SUPER.b"),
            Self::Spare => f.write_str("SPARE"),
            Self::Segment(seq) => write!(f, "{seq:016x}.seg"),
        }
    }
}

impl ObjectName {
    /// The object of a name as [`fmt::Display`] writes it; `None` for any other.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "SUPER.a" => Some(Self::Super(0)),
            "SUPER.b" => Some(Self::Super(1)),
            "SPARE" => Some(Self::Spare),
            _ => {
                let seq = u64::from_str_radix(name.strip_suffix(".seg")?, 16).ok()?;
                let object = Self::Segment(seq);
                // One spelling only: two names must never mean one object.
                (object.to_string() == name).then_some(object)
            }
        }
    }
}

/// What was attempted when storage failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageOp {
    /// Listing the objects.
    List,
    /// Creating an object.
    Create,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Making the content of an object durable.
    Sync,
    /// Cutting an object.
    Cut,
    /// Removing an object.
    Remove,
    /// Making existence of objects durable.
    SyncDir,
}

impl fmt::Display for StorageOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::List => "listing",
            Self::Create => "creating",
            Self::Read => "reading",
            Self::Write => "writing",
            Self::Sync => "flushing",
            Self::Cut => "cutting",
            Self::Remove => "removing",
            Self::SyncDir => "flushing the folder of",
        })
    }
}

/// Storage failed: what, on which object, and why.
#[derive(Debug, thiserror::Error)]
#[error("retention store: {op} {object} at 0x{offset:x} failed")]
pub struct StorageError {
    /// What was attempted.
    pub op: StorageOp,
    /// On which object.
    pub object: ObjectName,
    /// Where in it, bytes.
    pub offset: u64,
    /// Why.
    pub source: io::Error,
}

impl StorageError {
    /// Whether there was no space left.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        )
    }
}

/// Where the objects of one store live. All offsets and lengths of writes are multiples of
/// [`BLOCK_SIZE`](crate::BLOCK_SIZE), so that an implementation may use direct I/O.
pub trait Storage {
    /// All objects with their length in bytes, in no particular order.
    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StorageError>;
    /// Makes an object of `len` bytes that reads as zeros; its space is taken, so that later writes do not run out of it.
    /// An object of that name is an error.
    fn create(&mut self, object: ObjectName, len: u64) -> Result<(), StorageError>;
    /// Fills `buf` from `offset`; an object that ends early is an error.
    fn read(&self, object: ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), StorageError>;
    /// Writes the parts, one after the other, at `offset`.
    fn write(&mut self, object: ObjectName, offset: u64, parts: &[&[u8]]) -> Result<(), StorageError>;
    /// Makes the object's content and length durable.
    fn sync(&mut self, object: ObjectName) -> Result<(), StorageError>;
    /// Shortens the object.
    fn cut(&mut self, object: ObjectName, len: u64) -> Result<(), StorageError>;
    /// Removes the object.
    fn remove(&mut self, object: ObjectName) -> Result<(), StorageError>;
    /// Makes creations and removals durable.
    fn sync_dir(&mut self) -> Result<(), StorageError>;
}

/// A target disk. Methods take `&self`: implementations are descriptors that several threads may use.
pub trait TargetDisk {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Fills `buf` from `offset`.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes a range read as zeros (and never discards it).
    fn zero(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes everything written so far durable.
    fn flush(&self) -> io::Result<()>;

    /// Writes several pieces that do not overlap, ascending; an implementation may have many in flight.
    fn write_many(&self, pieces: &[(u64, &[u8])]) -> io::Result<()> {
        pieces
            .iter()
            .try_for_each(|(offset, data)| self.write(*offset, data))
    }

    /// Reads several pieces; an implementation may have many in flight.
    fn read_many(&self, pieces: &mut [(u64, &mut [u8])]) -> io::Result<()> {
        pieces
            .iter_mut()
            .try_for_each(|(offset, buf)| self.read(*offset, buf))
    }
}
