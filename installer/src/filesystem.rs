// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes file systems and swap, and why with these options.
//!
//! ext4 without `orphan_file`, which the GRUB that has to read it does not know, and with `metadata_csum_seed`, so that a
//! mounted one can get another UUID ([`crate::renew`]).
//!
//! In an image file ext4 is filled by mke2fs itself, without the kernel. mke2fs takes over the time of a file's last
//! change of status, which is when it was unpacked, and debugfs leaves the time it ran: both are set to the build's own
//! time afterwards, so that the same inputs give the same bytes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use uuid::Uuid;

use crate::command::Program;
use crate::error::{Error, Kind, Result};
use crate::identity::Names;
use crate::plan::PlannedPartition;

/// Superblock's place in an ext4 file system, and its size.
const SUPERBLOCK: (u64, usize) = (1024, 1024);
/// Offset of `s_wtime` (time of the last write) in it.
const WRITE_TIME: usize = 0x30;
/// Offset of `s_checksum`: CRC-32C over everything before it, without the final inversion.
const CHECKSUM: usize = 0x3fc;

/// Label of a partition's file system, and its name in the partition table.
#[must_use]
pub fn label(partition: &PlannedPartition) -> String {
    use crate::answers::Role;
    let name = match &partition.role {
        Role::BiosBoot => "biosboot".to_owned(),
        Role::Esp => "esp".to_owned(),
        Role::Swap => "swap".to_owned(),
        Role::Mount(path) if path == "/" => "root".to_owned(),
        Role::Mount(path) => path.trim_start_matches('/').replace('/', "-"),
    };
    // ext4 has room for 16 bytes.
    let mut label = format!("mt-{name}");
    label.truncate(16);
    label
}

/// Where an ext4 file system is made.
#[derive(Debug, Clone, Copy)]
pub enum Ext4Place<'a> {
    /// On a device of its own.
    Device(&'a Path),
    /// At an offset in an image file, with the build's time, filled with a tree where there is one.
    Image {
        /// The file.
        path: &'a Path,
        /// Seconds since 1970.
        time: u64,
        /// What goes in.
        tree: Option<&'a Path>,
    },
}

/// Makes ext4.
///
/// # Errors
/// mke2fs failed, for instance because the tree does not fit.
pub fn make_ext4(partition: &PlannedPartition, names: &Names, place: Ext4Place<'_>) -> Result<()> {
    let label = label(partition);
    let [uuid, hash_seed]: [Uuid; 2] =
        ["file-system", "hash-seed"].map(|what| names.of(&format!("{label} {what}")));
    let mut extended =
        format!("hash_seed={hash_seed},nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0");
    let mut program = Program::new("mke2fs")
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-m",
            "1",
            "-O",
            "metadata_csum_seed,^orphan_file",
        ])
        .args(["-L", &label, "-U", &uuid.to_string()]);
    let blocks = format!("{}k", partition.size / 1024);
    match place {
        Ext4Place::Device(device) => program.args(["-E", &extended]).arg(device).run().map(drop),
        Ext4Place::Image { path, time, tree } => {
            extended += &format!(",offset={}", partition.start);
            program = program
                .args(["-E", &extended])
                .env("E2FSPROGS_FAKE_TIME", time.to_string());
            if let Some(tree) = tree {
                clamp_times(tree, time)?;
                program = program.arg("-d").arg(tree);
            }
            program.arg(path).arg(&blocks).run()?;
            settle_times(path, partition.start, time)
        }
    }
}

/// Gives everything in a tree that is younger than `time` that time.
///
/// # Errors
/// A folder cannot be read, or a time not be set.
pub fn clamp_times(tree: &Path, time: u64) -> Result<()> {
    let bound = i64::try_from(time).unwrap_or(i64::MAX);
    let stamp = TimeSpec::new(bound, 0);
    let mut open = vec![tree.to_owned()];
    while let Some(path) = open.pop() {
        let metadata = path
            .symlink_metadata()
            .map_err(|error| Error::io("examine", &path, error))?;
        if metadata.is_dir() {
            for entry in std::fs::read_dir(&path).map_err(|error| Error::io("list", &path, error))? {
                open.push(entry.map_err(|error| Error::io("list", &path, error))?.path());
            }
        }
        if (metadata.mtime(), metadata.mtime_nsec()) > (bound, 0) {
            utimensat(AT_FDCWD, &path, &stamp, &stamp, UtimensatFlags::NoFollowSymlink)
                .map_err(|error| Error::io("set the time of", &path, error.into()))?;
        }
    }
    Ok(())
}

/// Sets all times of a fresh file system.
fn settle_times(path: &Path, offset: u64, time: u64) -> Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| Error::io("open", path, error))?;
    let block = superblock(&file, path, offset)?;
    let number = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    // Inodes are given out from the first on, so as many as are used are the first ones.
    let used = number(0).saturating_sub(number(0x10));
    let mut script = String::new();
    for inode in std::iter::once(2).chain(11..=used) {
        for field in ["atime", "ctime"] {
            script += &format!("set_inode_field <{inode}> {field} @{time}\n");
        }
    }
    let mut scripts = tempfile::NamedTempFile::new()
        .map_err(|error| Error::io("create a file in", &std::env::temp_dir(), error))?;
    std::io::Write::write_all(&mut scripts, script.as_bytes())
        .map_err(|error| Error::io("write", scripts.path(), error))?;
    let mut place = path.as_os_str().to_owned();
    place.push(format!("?offset={offset}"));
    Program::new("debugfs")
        .args(["-w", "-f"])
        .arg(scripts.path())
        .arg(place)
        .run()?;
    let mut block = superblock(&file, path, offset)?;
    let seconds = u32::try_from(time).unwrap_or(u32::MAX);
    block[WRITE_TIME..WRITE_TIME + 4].copy_from_slice(&seconds.to_le_bytes());
    let checksum = !crc32c::crc32c(&block[..CHECKSUM]);
    block[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
    file.write_all_at(&block, offset + SUPERBLOCK.0)
        .and_then(|()| file.sync_all())
        .map_err(|error| Error::io("write", path, error))
}

fn superblock(file: &File, path: &Path, offset: u64) -> Result<Vec<u8>> {
    let mut block = vec![0u8; SUPERBLOCK.1];
    file.read_exact_at(&mut block, offset + SUPERBLOCK.0)
        .map_err(|error| Error::io("read", path, error))?;
    if block[0x38..0x3a] != [0x53, 0xef] {
        return Err(Error::new(
            Kind::Unexpected,
            format!("there is no ext4 at offset {offset:#x} of {}", path.display()),
        ));
    }
    Ok(block)
}

/// Makes the first page of a swap partition, which is all there is to it.
///
/// # Errors
/// mkswap failed.
pub fn swap_header(partition: &PlannedPartition, names: &Names, scratch: &Path) -> Result<Vec<u8>> {
    let file = scratch.join("swap");
    let made = File::create(&file).map_err(|error| Error::io("create", &file, error))?;
    made.set_len(partition.size)
        .map_err(|error| Error::io("create", &file, error))?;
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .map_err(|error| Error::io("set the mode of", &file, error))?;
    let label = label(partition);
    Program::new("mkswap")
        .args([
            "--pagesize",
            "4096",
            "--label",
            &label,
            "--uuid",
            &names.of(&label).to_string(),
        ])
        .arg(&file)
        .run()?;
    let made = File::open(&file).map_err(|error| Error::io("open", &file, error))?;
    let mut page = vec![0u8; 4096];
    made.read_exact_at(&mut page, 0)
        .map_err(|error| Error::io("read", &file, error))?;
    std::fs::remove_file(&file).map_err(|error| Error::io("remove", &file, error))?;
    Ok(page)
}
