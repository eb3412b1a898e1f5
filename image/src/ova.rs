// SPDX-License-Identifier: MIT OR Apache-2.0
//! The OVA: a tar of descriptor, manifest, signature and disk. [`write()`] makes one, [`read`] judges one of any maker.
//!
//! The tar has the `.ovf` first, then manifest and signature, then the disk. Members are plain `ustar` entries below
//! 8 GiB and GNU entries from there on; never PAX, which vSphere does not read and which would put another member
//! first. Owner, mode and time are fixed, so that the same parts give the same bytes.

pub mod read;

use std::fs::File;
use std::io::{self, Read, Write};

use tar::{EntryType, Header};

/// Size from which a `ustar` header cannot hold the size any more.
pub const USTAR_SIZE_LIMIT: u64 = 8 << 30;
/// Tar's unit in bytes.
pub const BLOCK: u64 = 512;

/// A member that is in memory.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// Name in the tar.
    pub name: &'a str,
    /// Content.
    pub bytes: &'a [u8],
}

/// Builds the header of a member.
///
/// # Errors
/// The name does not fit the header's 100 bytes.
pub fn member_header(name: &str, size: u64, time: u64) -> io::Result<Header> {
    let mut header = if size < USTAR_SIZE_LIMIT {
        Header::new_ustar()
    } else {
        Header::new_gnu()
    };
    if name.len() >= 100 || name.contains(['/', '\0']) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} cannot be a member of an OVA"),
        ));
    }
    header.set_path(name)?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(time);
    header.set_cksum();
    Ok(header)
}

/// Writes an OVA: `parts` in their order, then the disk.
///
/// # Errors
/// Reading the disk or writing the OVA failed.
pub fn write(
    output: &File,
    parts: &[Part<'_>],
    disk_name: &str,
    disk: &File,
    disk_size: u64,
    time: u64,
) -> io::Result<()> {
    let mut output = io::BufWriter::with_capacity(1 << 20, output);
    for part in parts {
        output.write_all(member_header(part.name, part.bytes.len() as u64, time)?.as_bytes())?;
        output.write_all(part.bytes)?;
        pad(&mut output, part.bytes.len() as u64)?;
    }
    output.write_all(member_header(disk_name, disk_size, time)?.as_bytes())?;
    let mut disk = disk;
    io::Seek::rewind(&mut disk)?;
    let copied = io::copy(&mut disk.take(disk_size), &mut output)?;
    if copied != disk_size {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the disk became shorter while it was copied",
        ));
    }
    pad(&mut output, disk_size)?;
    output.write_all(&[0; 1024])?;
    output.flush()
}

fn pad(output: &mut impl Write, size: u64) -> io::Result<()> {
    let rest = usize::try_from(size.next_multiple_of(BLOCK) - size).expect("below a block");
    output.write_all(&[0; 512][..rest])
}

#[cfg(test)]
mod tests;
