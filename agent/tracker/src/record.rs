//! The durable set of changed chunks of one disk: a file that outlives the agent, and where that can be proved the boot.
//!
//! One file for each disk, replaced as a whole: written beside, flushed, renamed, and the folder flushed. So a reader sees
//! the old file or the new one. All numbers are little-endian.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `MTDIRTY` and a zero byte |
//! | 8 | 2 | version | 1 |
//! | 10 | 2 | state | 0 open, 1 paused, 2 sealed: see [`State`] |
//! | 12 | 4 | header checksum | CRC-32C of the first 256 bytes, with this field zero |
//! | 16 | 8 | generation | number of the state of the replica to which the set belongs |
//! | 24 | 16 | boot id | the boot in which it was written |
//! | 40 | 8 | disk size | bytes |
//! | 48 | 8 | disk sequence | `diskseq` of the kernel, which no two attached disks of one boot share; 0 when it has none |
//! | 56 | 8 | written | sectors that the kernel had counted as written when the set was taken |
//! | 64 | 8 | discarded | the same of discarded sectors |
//! | 72 | 4 | chunk size | bytes, a power of two |
//! | 76 | 4 | set checksum | CRC-32C of all bytes from 256 on |
//! | 80 | 8 | words | number of words of the set |
//! | 88 | 2 | identity length | bytes of the identity, at most 128 |
//! | 90 | 6 | zero | |
//! | 96 | 128 | identity | SCSI ID or serial number of the disk, UTF-8, zeros behind it |
//! | 224 | 32 | zero | |
//! | 256 | 8 each | set | bit `n` of word `w` is chunk `64 w + n`; bits behind the last chunk are zero |
//!
//! Version history: 1, the first.
//!
//! A reader takes nothing from a file of which any byte has changed: the disk is compared then, and that costs time only.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use crate::chunks::{ChunkSet, ChunkSize};
use crate::continuity::Counted;

const MAGIC: [u8; 8] = *b"MTDIRTY\0";
const VERSION: u16 = 1;
/// Size of what stands before the set, bytes.
const HEADER_SIZE: usize = 256;
const IDENTITY_BYTES_MAX: usize = 128;
/// 2^30 chunks: 64 TiB in chunks of 64 KiB, the largest disk of VMware. More is not read into memory.
const WORDS_MAX: u64 = 1 << 24;

/// How far the set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The tracking goes on: changes since are in the memory of the kernel only. Found at a start, it means that the
    /// agent or the machine died, and the set is not used.
    Open,
    /// The tracking ended in order, and others may have written since: it holds as long as the kernel has counted nothing
    /// more, in the same boot.
    Paused,
    /// The tracking ended when nobody could write any more: no file system was mounted for writing, and nobody held the
    /// disk. It holds in the next boot too, when nothing was written before the tracking began there.
    Sealed,
}

/// Which disk it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskIdentity {
    /// SCSI ID or serial number. At most 128 bytes; empty when the disk has none, and then no boot but this is continued.
    pub name: String,
    /// The kernel's number of this attachment, 0 where it gives none (before 5.15).
    pub sequence: u64,
}

/// A durable set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// How far it holds.
    pub state: State,
    /// State of the replica to which it belongs.
    pub generation: u64,
    /// Boot in which it was written.
    pub boot_id: [u8; 16],
    /// The disk.
    pub disk: DiskIdentity,
    /// What the kernel had counted when the set was taken.
    pub counted: Counted,
    /// What differs from the replica.
    pub changed: ChunkSet,
}

/// Why a file is not a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read or written.
    #[error("cannot {what} the record of changes: {source}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Not one of ours.
    #[error("it does not begin as a record of changes does")]
    Magic,
    /// Of another version of the agent.
    #[error("it has version {0}, this agent reads version {VERSION}")]
    Version(u16),
    /// Too short, too long, or lengths that contradict each other.
    #[error("it has {found} bytes, which is not what its header says")]
    Length {
        /// Size of the file, bytes.
        found: usize,
    },
    /// Damaged.
    #[error("the {0} does not match its checksum: it is damaged")]
    Checksum(&'static str),
    /// A value that is never written, under a good checksum.
    #[error("the value of its {0} makes no sense")]
    Value(&'static str),
}

impl Record {
    /// The bytes of the file.
    ///
    /// # Errors
    /// [`RecordError::Value`] when the identity or the set is longer than the format allows.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let name = self.disk.name.as_bytes();
        let name_len = u16::try_from(name.len()).map_err(|_| RecordError::Value("identity"))?;
        if name.len() > IDENTITY_BYTES_MAX {
            return Err(RecordError::Value("identity"));
        }
        let words = u64::try_from(self.changed.words().len()).unwrap_or(u64::MAX);
        if words > WORDS_MAX {
            return Err(RecordError::Value("size"));
        }
        let set: Vec<u8> = self
            .changed
            .words()
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let state: u16 = match self.state {
            State::Open => 0,
            State::Paused => 1,
            State::Sealed => 2,
        };
        let size = self.changed.size();
        let mut bytes = Vec::with_capacity(HEADER_SIZE + set.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&state.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&self.boot_id);
        bytes.extend_from_slice(&size.disk_bytes().to_le_bytes());
        bytes.extend_from_slice(&self.disk.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.counted.write.to_le_bytes());
        bytes.extend_from_slice(&self.counted.discard.to_le_bytes());
        bytes.extend_from_slice(&size.chunk_bytes().to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&set).to_le_bytes());
        bytes.extend_from_slice(&words.to_le_bytes());
        bytes.extend_from_slice(&name_len.to_le_bytes());
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(name);
        bytes.resize(HEADER_SIZE, 0);
        let checksum = crc32c::crc32c(&bytes);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(&set);
        Ok(bytes)
    }

    /// Reads the bytes of a file. In this order: magic, version, lengths, checksums, values.
    ///
    /// # Errors
    /// [`RecordError`] says what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let length = RecordError::Length { found: bytes.len() };
        if bytes.get(..8) != Some(&MAGIC) {
            return Err(RecordError::Magic);
        }
        let version = u16::from_le_bytes(field(bytes, 8)?);
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let Some((header, set)) = bytes.split_at_checked(HEADER_SIZE) else {
            return Err(length);
        };
        let words = u64::from_le_bytes(field(header, 80)?);
        if words > WORDS_MAX || u64::try_from(set.len()).ok() != words.checked_mul(8) {
            return Err(length);
        }
        let mut unsigned = header.to_vec();
        unsigned[12..16].fill(0);
        if crc32c::crc32c(&unsigned) != u32::from_le_bytes(field(header, 12)?) {
            return Err(RecordError::Checksum("header"));
        }
        if crc32c::crc32c(set) != u32::from_le_bytes(field(header, 76)?) {
            return Err(RecordError::Checksum("set"));
        }
        let state = match u16::from_le_bytes(field(header, 10)?) {
            0 => State::Open,
            1 => State::Paused,
            2 => State::Sealed,
            _ => return Err(RecordError::Value("state")),
        };
        let disk_bytes = u64::from_le_bytes(field(header, 40)?);
        let chunk_bytes = u32::from_le_bytes(field(header, 72)?);
        let size = ChunkSize::new(disk_bytes, chunk_bytes).ok_or(RecordError::Value("size"))?;
        if size.count().div_ceil(64) != words {
            return Err(RecordError::Value("size"));
        }
        let name_len = usize::from(u16::from_le_bytes(field(header, 88)?));
        let name = header
            .get(96..224)
            .and_then(|room| room.get(..name_len))
            .ok_or(RecordError::Value("identity"))?;
        let name = std::str::from_utf8(name).map_err(|_| RecordError::Value("identity"))?;
        let set = set
            .chunks_exact(8)
            .filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)));
        Ok(Self {
            state,
            generation: u64::from_le_bytes(field(header, 16)?),
            boot_id: field(header, 24)?,
            disk: DiskIdentity {
                name: name.to_owned(),
                sequence: u64::from_le_bytes(field(header, 48)?),
            },
            counted: Counted {
                write: u64::from_le_bytes(field(header, 56)?),
                discard: u64::from_le_bytes(field(header, 64)?),
            },
            changed: ChunkSet::from_words(size, set),
        })
    }

    /// Replaces the file by this record, durably.
    ///
    /// # Errors
    /// When it cannot be written; then the old file stands as it was.
    pub fn store(&self, path: &Path) -> Result<(), RecordError> {
        let io = |what| move |source| RecordError::Io { what, source };
        let bytes = self.encode()?;
        let beside = path.with_extension("new");
        let mut file = File::create(&beside).map_err(io("create"))?;
        file.write_all(&bytes)
            .and_then(|()| file.sync_all())
            .map_err(io("write"))?;
        fs::rename(&beside, path).map_err(io("rename"))?;
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(io("flush the folder of"))
    }

    /// Reads the file; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is not a record.
    pub fn load(path: &Path) -> Result<Option<Self>, RecordError> {
        let io = |source| RecordError::Io { what: "read", source };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(io(err)),
        };
        let mut bytes = Vec::new();
        file.take(8 * WORDS_MAX + 256 + 1)
            .read_to_end(&mut bytes)
            .map_err(io)?;
        Self::decode(&bytes).map(Some)
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], RecordError> {
    let found = RecordError::Length { found: bytes.len() };
    bytes
        .get(at..at + N)
        .and_then(|part| part.try_into().ok())
        .ok_or(found)
}

#[cfg(test)]
mod tests;
