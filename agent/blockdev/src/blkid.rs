//! What is on a disk: the safe face of libblkid.
//!
//! Probing reads and never writes, and only ever through the descriptor it is given, so it needs no device
//! nodes of partitions, no partition scan of the kernel, no udev and no cache file: the partition table is
//! parsed by libblkid itself and each partition is probed by its offset on the whole disk.
//!
//! Everything found is text or numbers of whoever wrote the disk, a guest we do not trust: it is bounded,
//! made printable, and shown, never used as a path or a command.

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};
use std::sync::Once;

use nix::sys::uio::pread;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::sysfs::KERNEL_SECTOR;

/// More partitions than this are counted, not probed: a table may claim any number.
const PARTITIONS_MAX: usize = 256;
/// Longest text kept of a name or label, characters; GPT allows 36, file systems up to 255.
const TEXT_CHARS_MAX: usize = 256;
/// What is read at both ends to tell an unreadable disk from an empty one, bytes.
const READABLE_BYTES: usize = 4096;

/// What a signature is used for, as libblkid groups them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Usage {
    /// A file system.
    Filesystem,
    /// Member of something larger: LVM2_member, linux_raid_member.
    Raid,
    /// Encrypted: crypto_LUKS.
    Crypto,
    /// Swap and everything else.
    Other,
}

/// One recognised content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Signature {
    /// libblkid's name: `xfs`, `ext4`, `LVM2_member`, `linux_raid_member`, `swap`, `crypto_LUKS`.
    pub kind: String,
    /// What it is used for.
    pub usage: Usage,
    /// UUID, as its kind writes it.
    pub uuid: Option<String>,
    /// Label.
    pub label: Option<String>,
}

/// One partition of the table on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Partition {
    /// Number in the table.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Size, bytes.
    pub size: u64,
    /// Type: a GUID for GPT, a hexadecimal code for MBR.
    pub partition_type: Option<String>,
    /// Name, GPT only.
    pub name: Option<String>,
    /// What is on it.
    pub signature: Option<Signature>,
    /// Several contents contradict each other on it, or it could not be probed.
    pub ambiguous: bool,
}

/// Pieces of a disk that are looked at when nothing is recognised on it.
const SAMPLES: u64 = 32;
/// Size of such a piece, bytes.
const SAMPLE_BYTES: usize = 4096;

/// What is on a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskContent {
    /// Kind of partition table: `gpt`, `dos`, ...
    pub table: Option<String>,
    /// The partitions it names, in its order.
    pub partitions: Vec<Partition>,
    /// What is on the whole disk.
    pub signature: Option<Signature>,
    /// Several contents contradict each other on the whole disk.
    pub ambiguous: bool,
    /// Nothing was recognised, and yet not everything that was looked at is zero: the volume of a database, encryption
    /// without a header, a lost partition table.
    pub unrecognised: bool,
}

impl DiskContent {
    /// Whether nothing was found: no content that libblkid knows, and zeros at both ends and in samples between them. Not
    /// that all of the disk is zero, which only reading all of it could tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.is_unknown() && !self.unrecognised
    }

    fn is_unknown(&self) -> bool {
        self.table.is_none() && self.partitions.is_empty() && self.signature.is_none() && !self.ambiguous
    }

    /// One line for people: `gpt, 3 partitions (vfat, xfs, LVM2_member)`; `empty` when nothing was found.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut parts = Vec::new();
        if let Some(signature) = &self.signature {
            parts.push(signature.kind.clone());
        }
        if self.ambiguous {
            parts.push("contradictory signatures".to_owned());
        }
        if let Some(table) = &self.table {
            let kinds: Vec<&str> = self
                .partitions
                .iter()
                .filter_map(|p| p.signature.as_ref().map(|s| s.kind.as_str()))
                .collect();
            let count = match self.partitions.len() {
                1 => "1 partition".to_owned(),
                count => format!("{count} partitions"),
            };
            let kinds = if kinds.is_empty() {
                String::new()
            } else {
                format!(" ({})", kinds.join(", "))
            };
            parts.push(format!("{table}, {count}{kinds}"));
        }
        if self.unrecognised {
            parts.push("data of an unknown kind".to_owned());
        }
        if parts.is_empty() {
            "empty".to_owned()
        } else {
            parts.join("; ")
        }
    }
}

/// Why a disk could not be probed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The disk cannot be read at one of its ends, so that nothing can be said of what is on it.
    #[error("cannot read {len} bytes at {offset:#x}")]
    Read {
        /// Where, bytes.
        offset: u64,
        /// How much, bytes.
        len: usize,
        /// Why.
        source: io::Error,
    },
    /// libblkid failed.
    #[error("libblkid failed to {what}")]
    Library {
        /// What it was asked to do.
        what: &'static str,
    },
}

/// Recognises what is on the whole disk and on each partition of its table.
///
/// `size` is the size of the disk in bytes. Only reads.
///
/// # Errors
/// [`ProbeError`] when the disk cannot be read or libblkid fails: nothing is known then, which is not the
/// same as an empty disk.
pub fn probe(device: impl AsFd, size: u64) -> Result<DiskContent, ProbeError> {
    let readable = READABLE_BYTES.min(usize::try_from(size).unwrap_or(READABLE_BYTES));
    let last = size - u64::try_from(readable).expect("at most READABLE_BYTES");
    let mut all_zero = true;
    for offset in [0, last] {
        let at = i64::try_from(offset).unwrap_or(i64::MAX);
        // libblkid takes what it cannot read for "nothing there".
        let mut buffer = crate::buffer::AlignedBuf::zeroed(readable);
        let count = pread(&device, &mut buffer, at).map_err(|errno| ProbeError::Read {
            offset,
            len: readable,
            source: errno.into(),
        })?;
        if count < readable {
            let source = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(ProbeError::Read {
                offset,
                len: readable,
                source,
            });
        }
        all_zero &= buffer.iter().all(|byte| *byte == 0);
    }
    if size == 0 {
        return Ok(DiskContent::default());
    }
    let (signature, ambiguous) = match signature(&device, 0, size)? {
        Finding::Nothing => (None, false),
        Finding::One(signature) => (Some(signature), false),
        Finding::Several => (None, true),
    };
    let (table, mut partitions) = partitions(&device, size)?;
    for partition in &mut partitions {
        if is_container(partition) || partition.size == 0 {
            continue;
        }
        match self::signature(&device, partition.start, partition.size) {
            Ok(Finding::Nothing) => {}
            Ok(Finding::One(signature)) => partition.signature = Some(signature),
            // A partition that cannot be probed, for one because it lies behind the end, is not the disk's
            // failure: the table alone says that the disk holds something.
            Ok(Finding::Several) | Err(_) => partition.ambiguous = true,
        }
    }
    let mut content = DiskContent {
        table,
        partitions,
        signature,
        ambiguous,
        unrecognised: false,
    };
    content.unrecognised = content.is_unknown() && !(all_zero && samples_are_zero(&device, size));
    Ok(content)
}

/// Whether [`SAMPLES`] pieces spread evenly over the device are zero. A piece that cannot be read says nothing.
fn samples_are_zero(device: &impl AsFd, size: u64) -> bool {
    let mut buffer = crate::buffer::AlignedBuf::zeroed(SAMPLE_BYTES);
    (1..SAMPLES).all(|index| {
        let offset = size / SAMPLES * index;
        let aligned = i64::try_from(offset - offset % SAMPLE_BYTES as u64).unwrap_or(i64::MAX);
        match pread(device, &mut buffer, aligned) {
            Ok(count) => buffer[..count].iter().all(|byte| *byte == 0),
            Err(_) => true,
        }
    })
}

/// An extended MBR partition only holds others; what is at its start is the next table.
fn is_container(partition: &Partition) -> bool {
    matches!(partition.partition_type.as_deref(), Some("0x5" | "0xf" | "0x85"))
}

enum Finding {
    Nothing,
    One(Signature),
    Several,
}

/// Owns a `blkid_probe`, which borrows the descriptor it was given.
struct Probe(NonNull<blkid_sys::blkid_struct_probe>);

impl Drop for Probe {
    fn drop(&mut self) {
        // SAFETY: the probe came from `blkid_new_probe` and is freed only here.
        unsafe { blkid_sys::blkid_free_probe(self.0.as_ptr()) };
    }
}

impl Probe {
    /// A probe of `len` bytes at `offset`. The caller keeps `device` open as long as it uses the probe.
    fn new(device: &impl AsFd, offset: u64, len: u64) -> Result<Self, ProbeError> {
        static INIT: Once = Once::new();
        // SAFETY: sets the library's debug mask, once, before any thread uses the library: `blkid_new_probe`
        // would otherwise do it on several threads at a time. 0 takes the mask from LIBBLKID_DEBUG.
        INIT.call_once(|| unsafe { blkid_sys::blkid_init_debug(0) });
        let failed = |what| ProbeError::Library { what };
        let start = i64::try_from(offset).map_err(|_| failed("take the offset"))?;
        let count = i64::try_from(len).map_err(|_| failed("take the size"))?;
        // SAFETY: no arguments; returns a new probe or null.
        let probe =
            Self(NonNull::new(unsafe { blkid_sys::blkid_new_probe() }).ok_or(failed("make a probe"))?);
        // SAFETY: the probe is valid; the descriptor is open, and libblkid neither closes nor writes it.
        let done = unsafe {
            blkid_sys::blkid_probe_set_device(probe.0.as_ptr(), device.as_fd().as_raw_fd(), start, count)
        };
        check(done, "take the device")?;
        Ok(probe)
    }

    /// A named value of the last result, as printable text; `None` when there is none.
    fn value(&self, name: &CStr) -> Option<String> {
        let mut data: *const c_char = ptr::null();
        // SAFETY: the probe is valid, `name` ends with NUL, `data` takes the address of a string that belongs to
        // the probe; a null length pointer is allowed.
        let result = unsafe {
            blkid_sys::blkid_probe_lookup_value(
                self.0.as_ptr(),
                name.as_ptr(),
                &raw mut data,
                ptr::null_mut(),
            )
        };
        // SAFETY: on success `data` is a string ended by NUL that lives until the probe is used again; it is
        // copied here.
        if result == 0 { unsafe { text(data) } } else { None }
    }
}

fn check(result: c_int, what: &'static str) -> Result<(), ProbeError> {
    if result == 0 {
        Ok(())
    } else {
        Err(ProbeError::Library { what })
    }
}

/// Copies a string of the library, made printable and bounded; `None` when it is null or blank.
///
/// # Safety
/// `data` is null or points to a string ended by NUL that stays valid during the call.
unsafe fn text(data: *const c_char) -> Option<String> {
    if data.is_null() {
        return None;
    }
    // SAFETY: not null, and the caller promises the rest.
    let raw = unsafe { CStr::from_ptr(data) }.to_string_lossy();
    let clean: String = raw
        .trim()
        .chars()
        .take(TEXT_CHARS_MAX)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    (!clean.is_empty()).then_some(clean)
}

fn signature(device: &impl AsFd, offset: u64, len: u64) -> Result<Finding, ProbeError> {
    let probe = Probe::new(device, offset, len)?;
    let flags = blkid_sys::BLKID_SUBLKS_TYPE
        | blkid_sys::BLKID_SUBLKS_USAGE
        | blkid_sys::BLKID_SUBLKS_UUID
        | blkid_sys::BLKID_SUBLKS_LABEL
        // A damaged superblock is still somebody's data.
        | blkid_sys::BLKID_SUBLKS_BADCSUM;
    let flags = c_int::try_from(flags).map_err(|_| ProbeError::Library {
        what: "take the flags",
    })?;
    // SAFETY: the probe is valid, the others are plain numbers.
    let done = unsafe { blkid_sys::blkid_probe_enable_superblocks(probe.0.as_ptr(), 1) };
    check(done, "look for superblocks")?;
    // SAFETY: as above.
    let done = unsafe { blkid_sys::blkid_probe_set_superblocks_flags(probe.0.as_ptr(), flags) };
    check(done, "take the flags")?;
    // SAFETY: as above.
    let done = unsafe { blkid_sys::blkid_probe_enable_partitions(probe.0.as_ptr(), 0) };
    check(done, "leave partitions out")?;
    // SAFETY: the probe is valid and has a device.
    match unsafe { blkid_sys::blkid_do_safeprobe(probe.0.as_ptr()) } {
        1 => Ok(Finding::Nothing),
        -2 => Ok(Finding::Several),
        0 => {
            let usage = match probe.value(c"USAGE").as_deref() {
                Some("filesystem") => Usage::Filesystem,
                Some("raid") => Usage::Raid,
                Some("crypto") => Usage::Crypto,
                _ => Usage::Other,
            };
            Ok(Finding::One(Signature {
                kind: probe.value(c"TYPE").unwrap_or_else(|| "unknown".to_owned()),
                usage,
                uuid: probe.value(c"UUID"),
                label: probe.value(c"LABEL"),
            }))
        }
        _ => Err(ProbeError::Library {
            what: "look for superblocks",
        }),
    }
}

fn partitions(device: &impl AsFd, size: u64) -> Result<(Option<String>, Vec<Partition>), ProbeError> {
    let probe = Probe::new(device, 0, size)?;
    // A GPT is a GPT even when its protective MBR is gone: the disk holds something.
    let flags = c_int::try_from(blkid_sys::BLKID_PARTS_FORCE_GPT).map_err(|_| ProbeError::Library {
        what: "take the flags",
    })?;
    // SAFETY: the probe is valid, the others are plain numbers.
    let done = unsafe { blkid_sys::blkid_probe_enable_superblocks(probe.0.as_ptr(), 0) };
    check(done, "leave superblocks out")?;
    // SAFETY: as above.
    let done = unsafe { blkid_sys::blkid_probe_enable_partitions(probe.0.as_ptr(), 1) };
    check(done, "look for partitions")?;
    // SAFETY: as above.
    let done = unsafe { blkid_sys::blkid_probe_set_partitions_flags(probe.0.as_ptr(), flags) };
    check(done, "take the flags")?;
    // SAFETY: the probe is valid and has a device; the list belongs to the probe, which outlives its use below.
    let list = unsafe { blkid_sys::blkid_probe_get_partitions(probe.0.as_ptr()) };
    if list.is_null() {
        // The library answers so when there is no table, too.
        return Ok((None, Vec::new()));
    }
    // SAFETY: `list` is a valid list; a null table means that there is none.
    let table = unsafe { blkid_sys::blkid_partlist_get_table(list) };
    if table.is_null() {
        return Ok((None, Vec::new()));
    }
    // SAFETY: `table` is valid as long as the probe; its type is a static string of the library.
    let kind = unsafe { text(blkid_sys::blkid_parttable_get_type(table)) };
    // SAFETY: `list` is valid.
    let count = unsafe { blkid_sys::blkid_partlist_numof_partitions(list) };
    let mut found = Vec::new();
    for index in 0..count {
        if found.len() == PARTITIONS_MAX {
            break;
        }
        // SAFETY: `list` is valid and `index` is below the count; null is checked.
        let partition = unsafe { blkid_sys::blkid_partlist_get_partition(list, index) };
        if partition.is_null() {
            continue;
        }
        // SAFETY: `partition` is valid as long as the probe, and so are the strings it gives (or null), which
        // `text` copies.
        let (number, start, sectors, code, type_text, name) = unsafe {
            (
                blkid_sys::blkid_partition_get_partno(partition),
                blkid_sys::blkid_partition_get_start(partition),
                blkid_sys::blkid_partition_get_size(partition),
                blkid_sys::blkid_partition_get_type(partition),
                text(blkid_sys::blkid_partition_get_type_string(partition)),
                text(blkid_sys::blkid_partition_get_name(partition)),
            )
        };
        let bytes = |sectors: i64| {
            u64::try_from(sectors)
                .ok()
                .and_then(|count| count.checked_mul(KERNEL_SECTOR))
        };
        let (Ok(number), Some(start), Some(size)) = (u32::try_from(number), bytes(start), bytes(sectors))
        else {
            continue;
        };
        let partition_type = type_text.or_else(|| (code != 0).then(|| format!("{code:#x}")));
        found.push(Partition {
            number,
            start,
            size,
            partition_type,
            name,
            signature: None,
            ambiguous: false,
        });
    }
    Ok((kind.or_else(|| Some("unknown".to_owned())), found))
}

#[cfg(test)]
mod tests;
