// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads a streamOptimized VMDK once, from front to end, as strictly as ESXi and more so.
//!
//! Takes anything that implements [`Read`], so that a disk can be judged inside an OVA without unpacking it. Both
//! layouts are known: tables in front (open-vmdk, qemu-img, this crate) and tables in the stream with a footer (VMware's
//! text, exports of vSphere). The reader goes on past a fault where it can, so that one pass names them all.
//!
//! Every byte is held against something: header fields against positions, tables against the grains found, padding
//! against zero, compressed data against its Adler-32. What can change unnoticed does not change the disk: advice in
//! the descriptor (adapter type, geometry, comments), and bits of a deflate stream that decode to the same bytes, such
//! as the distance of a match within zeros. A manifest's digest covers those.
//!
//! Memory: tables in front are held while the stream is read, 4 bytes per 64 KiB of disk; an untrusted header cannot
//! make it larger than the file itself is.

use std::io::{self, Read};

use super::descriptor::Descriptor;
use super::grain::{ContentHasher, GrainInflater, is_zero};
use super::header::{DIRECTORY_AT_END, FLAG_REDUNDANT_TABLES, SparseHeader, u32_at};
use super::marker::{GRAIN_MARKER_SIZE, Marker};
use super::{
    GRAIN_SECTORS, GRAIN_SIZE, GRAIN_SIZE_U64, SECTOR_SIZE, SECTOR_SIZE_U64, TABLE_ENTRIES, TABLE_SECTORS,
    directory_sectors, grain_count, table_count,
};
use crate::error::Fault;

/// Faults reported for one file before the reader stops: enough to see the pattern.
const FAULTS_MAX: usize = 20;
/// Largest compressed grain taken; deflate of any maker stays far below twice the grain.
const COMPRESSED_MAX: u32 = 131_072;

/// Where the tables stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Directory and tables before the grains.
    Front,
    /// Tables among the grains, directory and footer at the end.
    Footer,
}

/// What a file turned out to be.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct VmdkReport {
    /// Size of the disk in bytes, 0 when the header could not be read.
    pub capacity: u64,
    /// Where the tables stand.
    pub layout: Option<Layout>,
    /// Grains with data.
    pub grains: u64,
    /// Bytes of the file, as far as it was read.
    pub file_size: u64,
    /// Compressed bytes of all grains, without padding.
    pub compressed_bytes: u64,
    /// The descriptor's text.
    pub descriptor: Option<String>,
    /// Whether `ddb.longContentID` is what this crate derives from the content; other programs draw it by lot.
    pub content_id_matches: bool,
    /// What is wrong. Empty: the file is good.
    pub faults: Vec<Fault>,
}

/// Takes the grains of a disk as they are read: in ascending order, or the report has a fault that says otherwise.
pub trait GrainTaker {
    /// Takes one grain of the disk.
    ///
    /// # Errors
    /// Whatever keeps it from being stored; the reader stops then.
    fn take(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;
}

/// Looks at grains without keeping them.
#[derive(Debug, Default)]
pub struct Discard;

impl GrainTaker for Discard {
    fn take(&mut self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// Why reading had to stop without a judgement.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error("reading failed at offset {offset:#x}: {source}")]
    Read {
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// A grain could not be stored.
    #[error("storing the grain at disk offset {offset:#x} failed: {source}")]
    Take {
        /// Where on the disk.
        offset: u64,
        /// Why.
        source: io::Error,
    },
}

/// Reads `input` to its end and judges it; hands grains to `taker`.
///
/// # Errors
/// Only for failing I/O. What is wrong with the file is in the report.
pub fn read(input: impl Read, taker: &mut dyn GrainTaker) -> Result<VmdkReport, ReadError> {
    let mut reader = Reader {
        input,
        offset: 0,
        report: VmdkReport::default(),
        inflater: GrainInflater::default(),
        found: Vec::new(),
        tables: Vec::new(),
        directory: None,
        footer: None,
        hasher: ContentHasher::new(0),
    };
    match reader.run(taker) {
        Ok(()) | Err(Stop::Fault) => {}
        Err(Stop::Error(error)) => return Err(error),
    }
    reader.drain()?;
    reader.report.file_size = reader.offset;
    Ok(reader.report)
}

enum Stop {
    /// Nothing behind this point can be understood; the fault is in the report.
    Fault,
    Error(ReadError),
}

impl From<ReadError> for Stop {
    fn from(error: ReadError) -> Self {
        Self::Error(error)
    }
}

/// A grain and the sector it stands at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placed {
    grain: u64,
    sector: u64,
}

/// A table found in the stream: where, and its entries that are not zero.
struct StreamTable {
    sector: u64,
    entries: Vec<(usize, u32)>,
}

struct Reader<R> {
    input: R,
    offset: u64,
    report: VmdkReport,
    inflater: GrainInflater,
    found: Vec<Placed>,
    tables: Vec<StreamTable>,
    directory: Option<(u64, Vec<u8>)>,
    footer: Option<[u8; SECTOR_SIZE]>,
    hasher: ContentHasher,
}

impl<R: Read> Reader<R> {
    fn run(&mut self, taker: &mut dyn GrainTaker) -> Result<(), Stop> {
        let first = self.sector("header")?;
        let header = match SparseHeader::decode(&first) {
            Ok(header) => header,
            Err(fault) => return Err(self.stop("header", Some(0), fault.0)),
        };
        self.report.capacity = header.capacity_sectors * SECTOR_SIZE_U64;
        self.hasher = ContentHasher::new(header.capacity_sectors);
        let descriptor = self.descriptor(&header)?;
        let front = if header.directory == DIRECTORY_AT_END {
            self.report.layout = Some(Layout::Footer);
            self.gap_before_stream(&header)?;
            None
        } else {
            self.report.layout = Some(Layout::Front);
            Some(self.front_tables(&header)?)
        };
        self.stream(&header, taker)?;
        match front {
            Some(listed) => self.compare(&listed),
            None => self.judge_footer(&header, &first),
        }
        if let Some(descriptor) = descriptor {
            let id = self.hasher.finish().to_string();
            self.report.content_id_matches = descriptor.long_content_id.as_deref() == Some(id.as_str());
        }
        Ok(())
    }

    fn descriptor(&mut self, header: &SparseHeader) -> Result<Option<Descriptor>, Stop> {
        let area = self.sectors(header.descriptor_sectors, "descriptor")?;
        match Descriptor::decode(&area) {
            Ok(descriptor) => {
                if descriptor.capacity_sectors != header.capacity_sectors {
                    self.fault(
                        "descriptor",
                        Some(SECTOR_SIZE_U64),
                        format!(
                            "the descriptor gives the disk {} sectors, the header {}",
                            descriptor.capacity_sectors, header.capacity_sectors
                        ),
                    );
                }
                self.report.descriptor = Some(descriptor.text.clone());
                Ok(Some(descriptor))
            }
            Err(fault) => {
                self.fault("descriptor", Some(SECTOR_SIZE_U64), fault.0);
                Ok(None)
            }
        }
    }

    /// Footer layout: nothing but zeros between descriptor and stream.
    fn gap_before_stream(&mut self, header: &SparseHeader) -> Result<(), Stop> {
        let here = self.offset / SECTOR_SIZE_U64;
        // Writers pad to a grain; more than 1 MiB is no padding but a damaged field.
        if header.overhead < here || header.overhead - here > 2048 {
            return Err(self.overhead_fault(header, here));
        }
        let at = self.offset;
        let gap = self.sectors(header.overhead - here, "gap before the grains")?;
        if !is_zero(&gap) {
            self.fault(
                "gap",
                Some(at),
                "the gap between descriptor and grains is not zero".to_owned(),
            );
        }
        Ok(())
    }

    fn overhead_fault(&mut self, header: &SparseHeader, here: u64) -> Stop {
        let text = format!(
            "the header puts the first grain at sector {}, which does not fit to metadata from sector {here} on",
            header.overhead
        );
        self.stop("header", Some(64), text)
    }

    /// Front layout: reads directory and tables, returns the grains they list.
    fn front_tables(&mut self, header: &SparseHeader) -> Result<Vec<Placed>, Stop> {
        let here = self.offset / SECTOR_SIZE_U64;
        let tables = table_count(header.capacity_sectors);
        let one_set = directory_sectors(header.capacity_sectors) + tables * TABLE_SECTORS;
        let redundant = header.flags & FLAG_REDUNDANT_TABLES != 0;
        let needed = if redundant { 2 * one_set } else { one_set };
        let first = if redundant {
            header.directory.min(header.redundant_directory)
        } else {
            header.directory
        };
        if first != here {
            let text = format!(
                "the first grain directory is at sector {first}, the descriptor ends at sector {here}"
            );
            return Err(self.stop("header", Some(36), text));
        }
        let area_sectors = header.overhead.saturating_sub(here);
        // qemu-img aligns the area to a grain; anything beyond that is a damaged field.
        if area_sectors < needed || area_sectors > needed + 2 * GRAIN_SECTORS {
            return Err(self.overhead_fault(header, here));
        }
        let area = self.sectors(area_sectors, "grain tables")?;
        let mut covered = Coverage::new(&area, here);
        let listed = match covered.read_set(header.directory, header.capacity_sectors) {
            Ok(listed) => listed,
            Err(text) => return Err(self.stop("tables", Some(here * SECTOR_SIZE_U64), text)),
        };
        if redundant {
            match covered.read_set(header.redundant_directory, header.capacity_sectors) {
                Ok(second) if second == listed => {}
                Ok(_) => self.fault(
                    "tables",
                    Some(header.redundant_directory.saturating_mul(SECTOR_SIZE_U64)),
                    "the redundant tables differ from the tables".to_owned(),
                ),
                Err(text) => self.fault("tables", None, format!("redundant tables: {text}")),
            }
        }
        if let Some(at) = covered.first_stray_byte() {
            self.fault(
                "tables",
                Some(at),
                "a byte outside of all tables is not zero".to_owned(),
            );
        }
        Ok(listed)
    }

    /// Reads records until the end of the stream.
    fn stream(&mut self, header: &SparseHeader, taker: &mut dyn GrainTaker) -> Result<(), Stop> {
        let mut last_grain = None;
        loop {
            let at = self.offset;
            if self.report.faults.len() >= FAULTS_MAX {
                return Err(self.stop(
                    "many",
                    Some(at),
                    "too many faults, the rest was not examined".to_owned(),
                ));
            }
            let sector = self.sector("next marker (the file ends without an end-of-stream marker)")?;
            match Marker::decode(&sector) {
                Marker::Grain { lba, compressed_size } => {
                    self.grain(header, &sector, lba, compressed_size, &mut last_grain, taker)?;
                    continue;
                }
                Marker::EndOfStream => {
                    if !is_zero(&sector) {
                        self.fault(
                            "marker",
                            Some(at),
                            "the end-of-stream marker is not all zero".to_owned(),
                        );
                    }
                    return Ok(());
                }
                Marker::Unknown { kind } => {
                    return Err(self.stop(
                        "marker",
                        Some(at),
                        format!("a marker has the unknown type {kind}"),
                    ));
                }
                Marker::Progress { sectors } => {
                    if sectors > 2048 {
                        let text = format!("a progress marker announces {sectors} sectors");
                        return Err(self.stop("marker", Some(at), text));
                    }
                    self.sectors(sectors, "progress record")?;
                }
                Marker::Table { sectors } => self.stream_table(at, sectors)?,
                Marker::Directory { sectors } => {
                    if self.directory.is_some() || sectors != directory_sectors(header.capacity_sectors) {
                        let text = format!("a grain directory of {sectors} sectors is not expected here");
                        return Err(self.stop("marker", Some(at), text));
                    }
                    let position = self.offset / SECTOR_SIZE_U64;
                    let bytes = self.sectors(sectors, "grain directory")?;
                    self.directory = Some((position, bytes));
                }
                Marker::Footer { sectors } => {
                    if self.footer.is_some() || sectors != 1 {
                        let text = format!("a footer of {sectors} sectors is not expected here");
                        return Err(self.stop("marker", Some(at), text));
                    }
                    self.footer = Some(self.sector("footer")?);
                }
            }
            if !is_zero(&sector[16..]) {
                self.fault("marker", Some(at), "a marker is not padded with zeros".to_owned());
            }
            if self.report.layout == Some(Layout::Front)
                && !matches!(Marker::decode(&sector), Marker::Progress { .. })
            {
                self.fault(
                    "marker",
                    Some(at),
                    "metadata in the stream, although the tables stand in front".to_owned(),
                );
            }
        }
    }

    fn stream_table(&mut self, at: u64, sectors: u64) -> Result<(), Stop> {
        if sectors != TABLE_SECTORS {
            let text = format!("a grain table of {sectors} sectors, expected {TABLE_SECTORS}");
            return Err(self.stop("marker", Some(at), text));
        }
        let sector = self.offset / SECTOR_SIZE_U64;
        let bytes = self.sectors(sectors, "grain table")?;
        let entries = (0..TABLE_ENTRIES).map(|index| (index, u32_at(&bytes, index * 4)));
        self.tables.push(StreamTable {
            sector,
            entries: entries.filter(|(_, entry)| *entry != 0).collect(),
        });
        Ok(())
    }

    fn grain(
        &mut self,
        header: &SparseHeader,
        sector: &[u8; SECTOR_SIZE],
        lba: u64,
        compressed_size: u32,
        last_grain: &mut Option<u64>,
        taker: &mut dyn GrainTaker,
    ) -> Result<(), Stop> {
        let at = self.offset - SECTOR_SIZE_U64;
        if compressed_size > COMPRESSED_MAX {
            let text =
                format!("a grain claims {compressed_size} compressed bytes, more than {COMPRESSED_MAX}");
            return Err(self.stop("grain", Some(at), text));
        }
        let size = usize::try_from(compressed_size).expect("below COMPRESSED_MAX");
        let record = (GRAIN_MARKER_SIZE + size).next_multiple_of(SECTOR_SIZE);
        let mut bytes = sector.to_vec();
        let rest = (record - SECTOR_SIZE) / SECTOR_SIZE;
        bytes.extend(self.sectors(rest as u64, "compressed grain")?);
        let (data, padding) = bytes[GRAIN_MARKER_SIZE..].split_at(size);
        if !is_zero(padding) {
            self.fault(
                "grain",
                Some(at),
                "the padding behind a grain is not zero".to_owned(),
            );
        }
        if !lba.is_multiple_of(GRAIN_SECTORS) || lba >= header.capacity_sectors {
            let text = format!(
                "a grain claims sector {lba} of a disk of {} sectors",
                header.capacity_sectors
            );
            self.fault("grain", Some(at), text);
            return Ok(());
        }
        let grain = lba / GRAIN_SECTORS;
        if last_grain.is_some_and(|last| last >= grain) {
            let text = format!(
                "grain {grain} follows grain {}: ESXi reads grains in ascending order",
                last_grain.unwrap_or(0)
            );
            self.fault("order", Some(at), text);
        }
        *last_grain = Some(grain);
        self.found.push(Placed {
            grain,
            sector: at / SECTOR_SIZE_U64,
        });
        self.report.grains += 1;
        self.report.compressed_bytes += u64::from(compressed_size);
        // The last grain of a disk that is no multiple of 64 KiB may be whole or cut.
        let present = GRAIN_SIZE_U64.min(header.capacity_sectors * SECTOR_SIZE_U64 - grain * GRAIN_SIZE_U64);
        let present = usize::try_from(present).expect("at most a grain");
        match self.inflater.inflate(data, [GRAIN_SIZE, present]) {
            Ok(data) => {
                let offset = grain * GRAIN_SIZE_U64;
                self.hasher.add(lba, &super::grain::grain_digest(data));
                taker
                    .take(offset, &data[..present])
                    .map_err(|source| Stop::Error(ReadError::Take { offset, source }))
            }
            Err(fault) => {
                self.fault("grain", Some(at), format!("grain {grain}: {fault}"));
                Ok(())
            }
        }
    }

    /// Footer layout: directory, footer and tables against what the stream held.
    fn judge_footer(&mut self, header: &SparseHeader, first: &[u8; SECTOR_SIZE]) {
        let (Some(footer), Some((directory_at, directory))) = (self.footer, self.directory.take()) else {
            self.fault(
                "footer",
                None,
                "the header points to a footer, but footer or directory is missing".to_owned(),
            );
            return;
        };
        let mut expected = *first;
        expected[56..64].copy_from_slice(&directory_at.to_le_bytes());
        if footer != expected {
            let text = format!("the footer is not the header with the directory at sector {directory_at}");
            self.fault("footer", None, text);
        }
        let mut listed = Vec::new();
        let mut used = 0;
        let tables = table_count(header.capacity_sectors);
        // In stream order, so in ascending order of sectors.
        let in_stream = std::mem::take(&mut self.tables);
        for index in 0..directory.len() / 4 {
            let sector = u64::from(u32_at(&directory, index * 4));
            if sector == 0 {
                continue;
            }
            let number = index as u64;
            match in_stream
                .binary_search_by_key(&sector, |table| table.sector)
                .map(|found| &in_stream[found])
            {
                Ok(table) if number < tables => {
                    used += 1;
                    listed.extend(table.entries.iter().map(|&(entry, sector)| Placed {
                        grain: number * 512 + entry as u64,
                        sector: u64::from(sector),
                    }));
                }
                _ => self.fault(
                    "tables",
                    None,
                    format!("directory entry {index} points to sector {sector}, where no table is"),
                ),
            }
        }
        if used != in_stream.len() {
            self.fault(
                "tables",
                None,
                format!(
                    "{} tables in the stream, {used} in the directory",
                    in_stream.len()
                ),
            );
        }
        self.compare(&listed);
    }

    /// Tables against grains: both must name the same grains at the same sectors.
    fn compare(&mut self, listed: &[Placed]) {
        let mut found = self.found.clone();
        found.sort_by_key(|placed| placed.grain);
        if found == listed {
            return;
        }
        let same = found
            .iter()
            .zip(listed)
            .take_while(|(found, listed)| found == listed)
            .count();
        let text = match (found.get(same), listed.get(same)) {
            (Some(found), Some(listed)) => format!(
                "the tables put grain {} at sector {}, the stream has grain {} at sector {}",
                listed.grain, listed.sector, found.grain, found.sector
            ),
            (Some(found), None) => format!("grain {} at sector {} is in no table", found.grain, found.sector),
            (None, Some(listed)) => format!(
                "a table puts grain {} at sector {}, where the stream has no such grain",
                listed.grain, listed.sector
            ),
            (None, None) => "the tables list grains out of order".to_owned(),
        };
        self.fault("tables", None, text);
    }

    /// Whatever stands behind the end of the stream.
    fn drain(&mut self) -> Result<(), ReadError> {
        let from = self.offset;
        let mut buffer = vec![0u8; 1 << 16];
        loop {
            match self.input.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => self.offset += count as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(ReadError::Read {
                        offset: self.offset,
                        source,
                    });
                }
            }
        }
        let extra = self.offset - from;
        if extra > 0 && self.report.faults.is_empty() {
            self.fault(
                "after-end",
                Some(from),
                format!(
                    "{extra} bytes follow the end-of-stream marker: ESXi stops at the marker, its digest then \
                     differs from the manifest's and the import fails"
                ),
            );
        }
        Ok(())
    }

    fn fault(&mut self, code: &'static str, offset: Option<u64>, text: String) {
        self.report.faults.push(Fault { code, offset, text });
    }

    fn stop(&mut self, code: &'static str, offset: Option<u64>, text: String) -> Stop {
        self.fault(code, offset, text);
        Stop::Fault
    }

    fn sector(&mut self, what: &str) -> Result<[u8; SECTOR_SIZE], Stop> {
        let mut sector = [0u8; SECTOR_SIZE];
        let bytes = self.sectors(1, what)?;
        sector.copy_from_slice(&bytes);
        Ok(sector)
    }

    /// Reads whole sectors. Grows with what is really there, not with what a header claims.
    fn sectors(&mut self, count: u64, what: &str) -> Result<Vec<u8>, Stop> {
        let wanted = count * SECTOR_SIZE_U64;
        let mut bytes = Vec::with_capacity(usize::try_from(wanted.min(1 << 20)).expect("at most 1 MiB"));
        let read = (&mut self.input).take(wanted).read_to_end(&mut bytes);
        let at = self.offset;
        self.offset += bytes.len() as u64;
        match read {
            Err(source) => Err(ReadError::Read {
                offset: self.offset,
                source,
            }
            .into()),
            Ok(_) if bytes.len() as u64 == wanted => Ok(bytes),
            Ok(_) => {
                let missing = wanted - bytes.len() as u64;
                Err(self.stop(
                    "truncated",
                    Some(at),
                    format!("the file ends {missing} bytes too soon, in the {what}"),
                ))
            }
        }
    }
}

/// The metadata area in front of the grains, and which bytes of it belong to a table.
struct Coverage<'a> {
    area: &'a [u8],
    first_sector: u64,
    used: Vec<bool>,
}

impl<'a> Coverage<'a> {
    fn new(area: &'a [u8], first_sector: u64) -> Self {
        Self {
            area,
            first_sector,
            used: vec![false; area.len() / SECTOR_SIZE],
        }
    }

    /// Claims `count` sectors from `sector` on.
    fn claim(&mut self, sector: u64, count: u64, what: &str) -> Result<&'a [u8], String> {
        let outside = || format!("{what} at sector {sector} lies outside of the space for tables");
        let start = sector.checked_sub(self.first_sector).ok_or_else(outside)?;
        let end = start.checked_add(count).ok_or_else(outside)?;
        if end > self.used.len() as u64 {
            return Err(outside());
        }
        let (start, end) = (
            usize::try_from(start).expect("in area"),
            usize::try_from(end).expect("in area"),
        );
        if self.used[start..end].iter().any(|&used| used) {
            return Err(format!("{what} at sector {sector} overlaps another table"));
        }
        self.used[start..end].fill(true);
        Ok(&self.area[start * SECTOR_SIZE..end * SECTOR_SIZE])
    }

    /// Reads a directory and its tables.
    fn read_set(&mut self, directory_at: u64, capacity: u64) -> Result<Vec<Placed>, String> {
        let directory = self.claim(directory_at, directory_sectors(capacity), "the grain directory")?;
        let tables = usize::try_from(table_count(capacity)).map_err(|_| "too many tables".to_owned())?;
        if !is_zero(&directory[tables * 4..]) {
            return Err("the grain directory is not padded with zeros".to_owned());
        }
        let grains = grain_count(capacity);
        let mut listed = Vec::new();
        for index in 0..tables {
            let at = u64::from(u32_at(directory, index * 4));
            if at == 0 {
                // Allowed by the text, done by no writer: with tables in front all of them have their place.
                return Err(format!("entry {index} of the grain directory is zero"));
            }
            let table = self.claim(at, TABLE_SECTORS, &format!("grain table {index}"))?;
            for entry in 0..TABLE_ENTRIES {
                let sector = u64::from(u32_at(table, entry * 4));
                if sector == 0 {
                    continue;
                }
                let grain = index as u64 * 512 + entry as u64;
                if grain >= grains {
                    return Err(format!(
                        "table {index} lists grain {grain} of a disk of {grains} grains"
                    ));
                }
                listed.push(Placed { grain, sector });
            }
        }
        Ok(listed)
    }

    /// File offset of the first byte that is not zero and belongs to no table.
    fn first_stray_byte(&self) -> Option<u64> {
        let free = self
            .area
            .chunks_exact(SECTOR_SIZE)
            .zip(&self.used)
            .enumerate()
            .filter(|(_, (_, used))| !**used);
        for (index, (sector, _)) in free {
            if let Some(at) = sector.iter().position(|&byte| byte != 0) {
                return Some((self.first_sector + index as u64) * SECTOR_SIZE_U64 + at as u64);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
