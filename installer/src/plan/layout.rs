// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the disk is divided.
//!
//! | partition | why | size |
//! |---|---|---|
//! | biosboot | GRUB for BIOS; no file system | 1 MiB |
//! | `/boot/efi` | shim and GRUB for UEFI, signed | 64 MiB |
//! | `/` | the appliance | 3 GiB and what is left |
//! | `/var/crash` | one compressed dump of the memory | the memory, between 1 GiB and a third of the disk |
//! | `/home` | operators' files | 512 MiB |
//! | swap | room when memory is short | 512 MiB, 1 GiB from 16 GiB on |
//!
//! Partitions begin at whole MiB. The first and the last MiB of the disk belong to the partition table.

use serde::Serialize;

use crate::answers::{FileSystem, Part, Role};
use crate::error::{Error, Kind, Result};

use super::size_text;

/// Bytes of a MiB, to which everything is aligned.
pub const MIB: u64 = 1 << 20;
/// GRUB under BIOS and the firmware's own limits: what is needed to start must lie below this.
const BOOT_END_MAX: u64 = 2 << 40;
const ESP_MIB: u64 = 64;
const CRASH_MIB_MIN: u64 = 1_024;

/// A partition as it will be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedPartition {
    /// Number in the table.
    pub number: u32,
    /// What it is for.
    pub role: Role,
    /// Its file system.
    pub fs: FileSystem,
    /// First byte.
    pub start: u64,
    /// Size in bytes.
    pub size: u64,
    /// Mount options.
    pub options: Option<String>,
}

/// The usual partitions for a disk of so many MiB and a machine with so much memory.
fn usual(disk_mib: u64, memory: u64) -> Vec<Part> {
    let part = |role: Role, fs, size_mib, grow| Part {
        role,
        fs,
        size_mib: Some(size_mib),
        grow,
        max_mib: None,
        options: None,
    };
    let mount = |path: &str| Role::Mount(path.to_owned());
    let crash = memory.div_ceil(MIB).min(disk_mib / 3).max(CRASH_MIB_MIN);
    vec![
        part(Role::BiosBoot, FileSystem::None, 1, false),
        part(Role::Esp, FileSystem::Vfat, ESP_MIB, false),
        part(mount("/"), FileSystem::Ext4, 3_072, true),
        part(mount("/var/crash"), FileSystem::Ext4, crash, false),
        part(mount("/home"), FileSystem::Ext4, 512, false),
        part(Role::Swap, FileSystem::Swap, swap_mib(disk_mib), false),
    ]
}

fn swap_mib(disk_mib: u64) -> u64 {
    if disk_mib >= 16_384 { 1_024 } else { 512 }
}

/// Divides a disk.
///
/// # Errors
/// It is too small.
pub fn layout(
    asked: &[Part],
    size: u64,
    memory: u64,
    notes: &mut Vec<String>,
) -> Result<Vec<PlannedPartition>> {
    let disk_mib = size / MIB;
    let mut parts = if asked.is_empty() {
        usual(disk_mib, memory)
    } else {
        complete(asked, disk_mib)
    };
    // What starts the machine comes first on the disk.
    parts.sort_by_key(|part| match &part.role {
        Role::BiosBoot => 0,
        Role::Esp => 1,
        Role::Mount(path) if path == "/" => 2,
        _ => 3,
    });
    let mut sizes: Vec<u64> = parts
        .iter()
        .map(|part| part.size_mib.unwrap_or_else(|| recommended(&part.role, disk_mib)))
        .collect();
    for (part, mib) in parts.iter().zip(&sizes) {
        let least = part.role.least_mib();
        if *mib < least && !part.grow {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "{} is asked for with {mib} MiB and needs {least}; nothing was written",
                    part.role.name()
                ),
            )
            .hint("raise --size of that part"));
        }
    }
    // The table's own MiB at each end.
    let room = disk_mib.saturating_sub(2);
    let wanted: u64 = sizes.iter().fold(0, |sum, mib| sum.saturating_add(*mib));
    if wanted > room {
        return Err(Error::new(
            Kind::Disk,
            format!(
                "the disk is too small: it has {}, the partitions need {}; nothing was written",
                size_text(size),
                size_text(wanted.saturating_add(2).saturating_mul(MIB))
            ),
        )
        .hint("give it a larger disk, or smaller partitions with part in the answers"));
    }
    grow(&parts, &mut sizes, room - wanted);
    let mut at = MIB;
    let mut planned = Vec::new();
    for ((number, part), mib) in (1u32..).zip(parts).zip(sizes) {
        planned.push(PlannedPartition {
            number,
            role: part.role,
            fs: part.fs,
            start: at,
            size: mib * MIB,
            options: part.options,
        });
        at += mib * MIB;
    }
    for partition in planned.iter().take(3) {
        if partition.start + partition.size > BOOT_END_MAX && partition.role != Role::Swap {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "{} would end behind 2 TiB, where not every firmware can read it; nothing was written",
                    partition.role.name()
                ),
            )
            .hint("bound it with --maxsize in the answers"));
        }
    }
    let crash = planned
        .iter()
        .find(|partition| partition.role == Role::Mount("/var/crash".to_owned()));
    match crash {
        Some(crash) if crash.size < memory => notes.push(format!(
            "/var/crash has {} and the memory {}: a dump fits as long as most of the memory is free or cache, which \
             dumps leave out",
            size_text(crash.size),
            size_text(memory)
        )),
        None => notes.push("there is no partition for /var/crash: a dump of the memory goes to /".to_owned()),
        _ => {}
    }
    Ok(planned)
}

/// Adds what starts the machine where the answers leave it out.
fn complete(asked: &[Part], disk_mib: u64) -> Vec<Part> {
    let mut parts = asked.to_vec();
    for usual in usual(disk_mib, 0) {
        let boots = matches!(usual.role, Role::BiosBoot | Role::Esp);
        if boots && !parts.iter().any(|part| part.role == usual.role) {
            parts.push(usual);
        }
    }
    parts
}

fn recommended(role: &Role, disk_mib: u64) -> u64 {
    match role {
        Role::BiosBoot => 1,
        Role::Esp => ESP_MIB,
        Role::Swap => swap_mib(disk_mib),
        Role::Mount(path) if path == "/" => 3_072,
        Role::Mount(_) => 512,
    }
}

/// Shares what is left among those that grow; what one may not take goes to the others.
fn grow(parts: &[Part], sizes: &mut [u64], mut left: u64) {
    loop {
        let open: Vec<usize> = (0..parts.len())
            .filter(|index| {
                let is_root = parts[*index].role == Role::Mount("/".to_owned());
                // Only the start of the disk is within every firmware's reach.
                let bound = if is_root { 1 << 20 } else { u64::MAX };
                parts[*index].grow && sizes[*index] < parts[*index].max_mib.unwrap_or(bound)
            })
            .collect();
        if open.is_empty() || left == 0 {
            return;
        }
        let share = (left / open.len() as u64).max(1);
        for index in open {
            let is_root = parts[index].role == Role::Mount("/".to_owned());
            let bound = if is_root { 1 << 20 } else { u64::MAX };
            let room = parts[index].max_mib.unwrap_or(bound) - sizes[index];
            let more = share.min(room).min(left);
            sizes[index] += more;
            left -= more;
        }
    }
}
