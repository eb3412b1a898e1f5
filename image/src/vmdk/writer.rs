// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes a streamOptimized VMDK from a raw disk, compressing on all cores and writing in order.
//!
//! Layout: header, descriptor, directory, all tables, grains in ascending order, end-of-stream marker as the last
//! sector. It is the layout with the directory in front; the one with a footer saves nothing here, because the
//! content ID in the descriptor is only known at the end, so the output has to be seekable anyway.
//!
//! Memory is bounded whatever the size of the disk: [`WINDOW_JOBS_PER_THREAD`] jobs of [`JOB_GRAINS`] grains per
//! thread are under way, one table is held, and untouched tables are holes in the output.
//!
//! How to hold it: give a fresh, empty output file; on an error throw it away. Nothing here renames or syncs.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::descriptor::{DESCRIPTOR_SECTORS, NewDescriptor};
use super::grain::{ContentHasher, ContentId, GrainCompressor, grain_digest, is_zero};
use super::header::{FLAG_COMPRESSED, FLAG_MARKERS, FLAG_NEWLINE_TEST, SparseHeader};
use super::marker::{END_OF_STREAM, grain_marker};
use super::{
    CAPACITY_SECTORS_MAX, GRAIN_SECTORS, GRAIN_SIZE, GRAIN_SIZE_U64, SECTOR_SIZE, SECTOR_SIZE_U64,
    TABLE_ENTRIES, TABLE_SECTORS, directory_sectors, table_count,
};

/// Grains that one thread reads and compresses at a time: 1 MiB, large enough that handing over costs nothing.
pub const JOB_GRAINS: u64 = 16;
/// Jobs that may be under way for each thread; bounds memory and evens out slow grains.
pub const WINDOW_JOBS_PER_THREAD: usize = 4;

/// How to write.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Deflate level, 1 to 9.
    pub level: u32,
    /// Compressing threads, at least 1.
    pub threads: usize,
    /// Name of the extent in the descriptor: the file's own name.
    pub extent_name: String,
    /// See [`NewDescriptor::tools_version`].
    pub tools_version: u32,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteSummary {
    /// Size of the virtual disk in sectors: the raw disk's, rounded up to whole grains.
    pub capacity_sectors: u64,
    /// Grains that hold data.
    pub grains: u64,
    /// Bytes of zeros behind the raw disk's end, since a VMDK has whole grains only.
    pub padding_bytes: u64,
    /// Size of the file in bytes.
    pub file_size: u64,
    /// Bytes of the raw disk that were never read, because the file system knows them as a hole.
    pub skipped_bytes: u64,
    /// Identity of the disk's content.
    pub content_id: ContentId,
}

/// Which side failed: the remedy differs.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Reading the raw disk.
    #[error("reading the raw disk at offset {offset:#x} failed: {source}")]
    Read {
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// Writing the VMDK.
    #[error("writing the VMDK failed: {0}")]
    Write(#[source] io::Error),
    /// The disk cannot be a streamOptimized VMDK.
    #[error("{0}")]
    Unsuitable(String),
}

/// One stretch of the raw disk for a worker.
struct Job {
    first_grain: u64,
    grain_count: u64,
    reply: SyncSender<Result<Vec<PackedGrain>, WriteError>>,
}

struct PackedGrain {
    grain: u64,
    digest: [u8; 32],
    /// Marker, zlib stream, zero padding to a sector.
    record: Vec<u8>,
}

/// Judges the size of a raw disk.
///
/// # Errors
/// In words: why no VMDK can be made of it.
pub fn check_size(raw_size: u64) -> Result<(), String> {
    if raw_size == 0 || raw_size.div_ceil(SECTOR_SIZE_U64) > CAPACITY_SECTORS_MAX {
        return Err(format!(
            "a disk of {raw_size} bytes cannot be a VMDK: allowed are 512 bytes to 62 TB"
        ));
    }
    if !raw_size.is_multiple_of(SECTOR_SIZE_U64) {
        // Most often a file that was cut, or that is no disk at all.
        return Err(format!(
            "{raw_size} bytes are no disk: the size of a disk is a multiple of {SECTOR_SIZE_U64}"
        ));
    }
    Ok(())
}

/// Writes `raw` (regular file or block device of `raw_size` bytes) to `output` as a streamOptimized VMDK.
///
/// `progress` is told how many bytes of the raw disk are done, about every MiB.
///
/// # Errors
/// [`WriteError`]; the output is then worthless.
pub fn write(
    raw: &File,
    raw_size: u64,
    output: &File,
    options: &WriteOptions,
    progress: &mut dyn FnMut(u64),
) -> Result<WriteSummary, WriteError> {
    check_size(raw_size).map_err(WriteError::Unsuitable)?;
    let capacity_sectors = raw_size.div_ceil(GRAIN_SIZE_U64) * GRAIN_SECTORS;
    let directory = 1 + DESCRIPTOR_SECTORS;
    let first_table = directory + directory_sectors(capacity_sectors);
    let overhead = first_table + table_count(capacity_sectors) * TABLE_SECTORS;
    let header = SparseHeader {
        flags: FLAG_NEWLINE_TEST | FLAG_COMPRESSED | FLAG_MARKERS,
        capacity_sectors,
        descriptor_sectors: DESCRIPTOR_SECTORS,
        redundant_directory: 0,
        directory,
        overhead,
    };
    output
        .write_all_at(&header.encode(), 0)
        .map_err(WriteError::Write)?;
    write_directory(output, directory, first_table, table_count(capacity_sectors))?;

    let mut sink = GrainSink::new(output, first_table, overhead, capacity_sectors)?;
    let skipped_bytes = compress_all(raw, raw_size, options, &mut sink, progress)?;
    let (grains, file_size, content_id) = sink.finish()?;

    let descriptor = NewDescriptor {
        capacity_sectors,
        content_id,
        extent_name: &options.extent_name,
        tools_version: options.tools_version,
    }
    .encode()
    .map_err(|fault| WriteError::Unsuitable(fault.to_string()))?;
    output
        .write_all_at(&descriptor, SECTOR_SIZE_U64)
        .map_err(WriteError::Write)?;
    Ok(WriteSummary {
        capacity_sectors,
        grains,
        padding_bytes: capacity_sectors * SECTOR_SIZE_U64 - raw_size,
        file_size,
        skipped_bytes,
        content_id,
    })
}

/// Writes the directory, which is known before the first grain because every table has its place.
fn write_directory(output: &File, directory: u64, first_table: u64, tables: u64) -> Result<(), WriteError> {
    let mut sector = Vec::with_capacity(SECTOR_SIZE);
    let mut at = directory * SECTOR_SIZE_U64;
    for table in 0..tables {
        sector.extend_from_slice(&sector_number(first_table + table * TABLE_SECTORS)?.to_le_bytes());
        if sector.len() == SECTOR_SIZE || table + 1 == tables {
            sector.resize(SECTOR_SIZE, 0);
            output.write_all_at(&sector, at).map_err(WriteError::Write)?;
            at += SECTOR_SIZE_U64;
            sector.clear();
        }
    }
    Ok(())
}

fn sector_number(sector: u64) -> Result<u32, WriteError> {
    u32::try_from(sector).map_err(|_| {
        WriteError::Unsuitable("the compressed disk is larger than the 2 TiB a VMDK can address".to_owned())
    })
}

/// Takes grains in order and puts them, and the tables that name them, where they belong.
struct GrainSink<'a> {
    output: &'a File,
    stream: BufWriter<&'a File>,
    first_table: u64,
    next_sector: u64,
    table_index: u64,
    table: Box<[u32; TABLE_ENTRIES]>,
    table_used: bool,
    grains: u64,
    hasher: ContentHasher,
}

impl<'a> GrainSink<'a> {
    fn new(output: &'a File, first_table: u64, overhead: u64, capacity: u64) -> Result<Self, WriteError> {
        let mut file = output;
        file.seek(SeekFrom::Start(overhead * SECTOR_SIZE_U64))
            .map_err(WriteError::Write)?;
        Ok(Self {
            output,
            stream: BufWriter::with_capacity(1 << 20, output),
            first_table,
            next_sector: overhead,
            table_index: 0,
            table: Box::new([0; TABLE_ENTRIES]),
            table_used: false,
            grains: 0,
            hasher: ContentHasher::new(capacity),
        })
    }

    fn put(&mut self, packed: &PackedGrain) -> Result<(), WriteError> {
        let table_index = packed.grain / 512;
        if table_index != self.table_index {
            self.flush_table()?;
            self.table_index = table_index;
        }
        let entry = usize::try_from(packed.grain % 512).expect("below 512");
        self.table[entry] = sector_number(self.next_sector)?;
        self.table_used = true;
        self.stream.write_all(&packed.record).map_err(WriteError::Write)?;
        self.next_sector += packed.record.len() as u64 / SECTOR_SIZE_U64;
        self.hasher.add(packed.grain * GRAIN_SECTORS, &packed.digest);
        self.grains += 1;
        Ok(())
    }

    fn flush_table(&mut self) -> Result<(), WriteError> {
        if self.table_used {
            let bytes: Vec<u8> = self.table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
            let at = (self.first_table + self.table_index * TABLE_SECTORS) * SECTOR_SIZE_U64;
            self.output.write_all_at(&bytes, at).map_err(WriteError::Write)?;
            self.table.fill(0);
            self.table_used = false;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(u64, u64, ContentId), WriteError> {
        self.flush_table()?;
        self.stream.write_all(&END_OF_STREAM).map_err(WriteError::Write)?;
        self.stream.flush().map_err(WriteError::Write)?;
        Ok((
            self.grains,
            (self.next_sector + 1) * SECTOR_SIZE_U64,
            self.hasher.finish(),
        ))
    }
}

/// Runs the workers; returns the number of bytes skipped as holes.
fn compress_all(
    raw: &File,
    raw_size: u64,
    options: &WriteOptions,
    sink: &mut GrainSink<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, WriteError> {
    let threads = options.threads.max(1);
    let window = threads * WINDOW_JOBS_PER_THREAD;
    let (jobs_in, jobs_out) = sync_channel::<Job>(window);
    let jobs_out = Mutex::new(jobs_out);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(raw, raw_size, options.level, &jobs_out));
        }
        // Dropped at the end of this closure on every path, which is what ends the workers.
        let jobs_in = jobs_in;
        let mut replies: VecDeque<(u64, Receiver<_>)> = VecDeque::with_capacity(window);
        let mut stretches = Stretches::new(raw, raw_size);
        loop {
            while replies.len() < window {
                let Some((first_grain, grain_count)) = stretches.next()? else {
                    break;
                };
                let (reply, answer) = sync_channel(1);
                let job = Job {
                    first_grain,
                    grain_count,
                    reply,
                };
                if jobs_in.send(job).is_err() {
                    return Err(WriteError::Unsuitable(
                        "all compressing threads have ended".to_owned(),
                    ));
                }
                replies.push_back((first_grain + grain_count, answer));
            }
            let Some((end_grain, answer)) = replies.pop_front() else {
                break;
            };
            let packed = answer.recv().map_err(|_| {
                WriteError::Unsuitable("a compressing thread ended unexpectedly".to_owned())
            })??;
            for grain in &packed {
                sink.put(grain)?;
            }
            progress((end_grain * GRAIN_SIZE_U64).min(raw_size));
        }
        Ok(stretches.skipped)
    })
}

/// A worker: takes jobs until there are no more.
fn work(raw: &File, raw_size: u64, level: u32, jobs: &Mutex<Receiver<Job>>) {
    let mut compressor = GrainCompressor::new(level);
    let mut buffer = vec![0u8; GRAIN_SIZE * 16];
    loop {
        // A poisoned lock only says that a sibling panicked while waiting; the receiver itself is sound.
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let packed = pack(raw, raw_size, &job, &mut compressor, &mut buffer);
        // The other end is gone when the write was given up; then there is nothing left to do for this job.
        let _ = job.reply.send(packed);
    }
}

fn pack(
    raw: &File,
    raw_size: u64,
    job: &Job,
    compressor: &mut GrainCompressor,
    buffer: &mut [u8],
) -> Result<Vec<PackedGrain>, WriteError> {
    let start = job.first_grain * GRAIN_SIZE_U64;
    let end = start + job.grain_count * GRAIN_SIZE_U64;
    let present = usize::try_from(raw_size.min(end) - start).expect("at most a job");
    let whole = usize::try_from(end - start).expect("at most a job");
    raw.read_exact_at(&mut buffer[..present], start)
        .map_err(|source| WriteError::Read {
            offset: start,
            source,
        })?;
    buffer[present..whole].fill(0);
    let mut packed = Vec::new();
    for (index, grain) in (job.first_grain..).zip(buffer[..whole].chunks_exact(GRAIN_SIZE)) {
        if is_zero(grain) {
            continue;
        }
        let data = compressor
            .compress(grain)
            .map_err(|fault| WriteError::Unsuitable(fault.to_string()))?;
        let size = u32::try_from(data.len()).expect("bounded by COMPRESSED_SIZE_MAX");
        let marker = grain_marker(index * GRAIN_SECTORS, size);
        let len = (marker.len() + data.len()).next_multiple_of(SECTOR_SIZE);
        let mut record = Vec::with_capacity(len);
        record.extend_from_slice(&marker);
        record.extend_from_slice(data);
        record.resize(len, 0);
        packed.push(PackedGrain {
            grain: index,
            digest: grain_digest(grain),
            record,
        });
    }
    Ok(packed)
}

/// Walks over the stretches of the raw disk that may hold data, in jobs of at most [`JOB_GRAINS`] grains.
struct Stretches<'a> {
    raw: &'a File,
    raw_size: u64,
    next_grain: u64,
    /// End of the data known at `next_grain`, in bytes.
    data_end: u64,
    skipped: u64,
}

impl<'a> Stretches<'a> {
    fn new(raw: &'a File, raw_size: u64) -> Self {
        Self {
            raw,
            raw_size,
            next_grain: 0,
            data_end: 0,
            skipped: 0,
        }
    }

    fn next(&mut self) -> Result<Option<(u64, u64)>, WriteError> {
        let mut start = self.next_grain * GRAIN_SIZE_U64;
        if start >= self.raw_size {
            return Ok(None);
        }
        if start >= self.data_end {
            match self.seek(start, Whence::SeekData)? {
                None => {
                    self.skipped += self.raw_size - start;
                    self.next_grain = u64::MAX / GRAIN_SIZE_U64;
                    return Ok(None);
                }
                Some(data) => {
                    let data_grain = data / GRAIN_SIZE_U64;
                    self.skipped += data_grain * GRAIN_SIZE_U64 - start;
                    self.next_grain = data_grain;
                    start = data_grain * GRAIN_SIZE_U64;
                    self.data_end = self.seek(data, Whence::SeekHole)?.unwrap_or(self.raw_size);
                }
            }
        }
        let grains = (self.data_end - start)
            .div_ceil(GRAIN_SIZE_U64)
            .clamp(1, JOB_GRAINS);
        let first = self.next_grain;
        self.next_grain += grains;
        Ok(Some((first, grains)))
    }

    /// Next data or hole at or behind `from`; `None` when there is none. Block devices and file systems that know
    /// no holes count as data throughout.
    fn seek(&self, from: u64, whence: Whence) -> Result<Option<u64>, WriteError> {
        let offset = i64::try_from(from).map_err(|_| {
            WriteError::Unsuitable(format!("offset {from:#x} is beyond what the system can address"))
        })?;
        match lseek(self.raw, offset, whence) {
            Ok(found) => Ok(u64::try_from(found)
                .ok()
                .filter(|found| *found < self.raw_size || *found == from)),
            Err(Errno::ENXIO) => Ok(None),
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) if from < self.raw_size => {
                Ok(matches!(whence, Whence::SeekData).then_some(from))
            }
            Err(errno) => Err(WriteError::Read {
                offset: from,
                source: errno.into(),
            }),
        }
    }
}
