// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent's tarball `master-target-agent-VERSION.tar.gz`, for people who bring their own Debian or EL machine:
//! unpack, `chmod 755 ApplyCustomChanges.sh`, run it once, restart.
//!
//! Members are sorted by name, belong to root and bear the time they are given, so the same inputs give the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::error::{Error, Kind, Result, shown};
use crate::input::{self, Accept, PROGRAM_MAX};
use crate::publish::{Existing, Unpublished};

/// What the tarball is made of.
#[derive(Debug, Clone)]
pub struct Request {
    /// The agent's program.
    pub agent: PathBuf,
    /// The installer's program.
    pub installer: PathBuf,
    /// Folder for the tarball.
    pub out: PathBuf,
    /// Version in its name.
    pub version: String,
    /// Time of every member, seconds since 1970.
    pub source_date: u64,
    /// What if the file exists.
    pub existing: Existing,
}

/// A member.
struct Member {
    mode: u32,
    bytes: Vec<u8>,
}

macro_rules! files {
    ($($name:literal, $mode:literal, $from:literal;)*) => {
        &[$(($name, $mode, include_bytes!($from))),*]
    };
}

/// Files of every tarball: name, mode, content. Below `system/` is what the installer's custom-change step puts in
/// place, for reading; a test holds the two against each other.
const FILES: &[(&str, u32, &[u8])] = files! {
    "ApplyCustomChanges.sh", 0o755, "../tarball/ApplyCustomChanges.sh";
    "README", 0o644, "../tarball/README";
    "custom.d/README", 0o644, "../tarball/custom.d/README";
    "system/etc/lvm/devices/master-target.devices", 0o644, "../overlay/etc/lvm/devices/master-target.devices";
    "system/etc/lvm/lvmlocal.conf", 0o644, "../overlay/etc/lvm/lvmlocal.conf";
    "system/etc/master-target/agent.toml", 0o644, "../../agent/config/agent.toml";
    "system/etc/master-target/nftables.conf", 0o644, "../../installer/system/etc/master-target/nftables.conf";
    "system/etc/master-target/own-disks", 0o644, "../../installer/system/etc/master-target/own-disks";
    "system/etc/mdadm/mdadm.conf", 0o644, "../overlay/etc/mdadm/mdadm.conf";
    "system/etc/multipath/conf.d/master-target.conf", 0o644, "../overlay/etc/multipath.conf";
    "system/etc/sysctl.d/90-master-target.conf", 0o644, "../../installer/system/etc/sysctl.d/90-master-target.conf";
    "system/etc/udev/rules.d/10-master-target-foreign.rules", 0o644,
        "../../installer/system/etc/udev/rules.d/10-master-target-foreign.rules";
    "system/etc/udev/rules.d/60-multipath.rules", 0o644, "../overlay/etc/udev/rules.d/60-multipath.rules";
    "system/etc/udev/rules.d/63-md-raid-arrays.rules", 0o644, "../overlay/etc/udev/rules.d/63-md-raid-arrays.rules";
    "system/etc/udev/rules.d/64-btrfs.rules", 0o644, "../overlay/etc/udev/rules.d/64-btrfs.rules";
    "system/etc/udev/rules.d/64-md-raid-assembly.rules", 0o644, "../overlay/etc/udev/rules.d/64-md-raid-assembly.rules";
    "system/etc/udev/rules.d/69-lvm.rules", 0o644, "../overlay/etc/udev/rules.d/69-lvm.rules";
    "system/etc/udev/rules.d/69-md-clustered-confirm-device.rules", 0o644,
        "../overlay/etc/udev/rules.d/69-md-clustered-confirm-device.rules";
    "system/etc/udev/rules.d/98-master-target-disks.rules", 0o644,
        "../../installer/system/etc/udev/rules.d/98-master-target-disks.rules";
    "system/usr/lib/master-target/own-disk", 0o755, "../../installer/system/usr/lib/master-target/own-disk";
    "system/usr/lib/systemd/system/master-target-broker.service", 0o644,
        "../../agent/systemd/master-target-broker.service";
    "system/usr/lib/systemd/system/master-target-firewall.service", 0o644,
        "../../agent/systemd/master-target-firewall.service";
    "system/usr/lib/systemd/system/master-target-first-boot.service", 0o644,
        "../../agent/systemd/master-target-first-boot.service";
    "system/usr/lib/systemd/system/master-target-console@.service", 0o644,
        "../../agent/systemd/master-target-console@.service";
    "system/usr/lib/systemd/system/master-target-login@.service", 0o644,
        "../../agent/systemd/master-target-login@.service";
    "system/usr/lib/systemd/system/master-target-scsi-ids.service", 0o644,
        "../../agent/systemd/master-target-scsi-ids.service";
    "system/usr/lib/systemd/system/master-target.service", 0o644, "../../agent/systemd/master-target.service";
    "system/usr/lib/sysusers.d/master-target.conf", 0o644, "../../agent/systemd/sysusers.conf";
};

/// Name of the tarball of a version.
#[must_use]
pub fn file_name(version: &str) -> String {
    format!("master-target-agent-{version}.tar.gz")
}

/// Makes the tarball; returns its path.
///
/// # Errors
/// A program cannot be read or is none, the file exists and is to be kept, or writing failed.
pub fn build(request: &Request) -> Result<PathBuf> {
    let name = format!("master-target-agent-{}", request.version);
    let target = request.out.join(file_name(&request.version));
    let members = members(request)?;
    fs::create_dir_all(&request.out).map_err(|error| Error::io("create", &request.out, error))?;
    let new = Unpublished::create(&target, request.existing)?;
    write(new.file(), &name, &members, request.source_date)
        .map_err(|error| Error::io("write", &target, error))?;
    new.publish()?;
    Ok(target)
}

fn members(request: &Request) -> Result<BTreeMap<String, Member>> {
    let mut members: BTreeMap<String, Member> = FILES
        .iter()
        .map(|(name, mode, bytes)| {
            let member = Member {
                mode: *mode,
                bytes: bytes.to_vec(),
            };
            ((*name).to_owned(), member)
        })
        .collect();
    for (name, path) in [("mt-agent", &request.agent), ("mt-installer", &request.installer)] {
        let member = Member {
            mode: 0o755,
            bytes: program(path)?,
        };
        members.insert(name.to_owned(), member);
    }
    let mut sums = String::new();
    for (name, member) in &members {
        let digest = Sha256::digest(&member.bytes);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        sums.push_str(&format!("{hex}  {name}\n"));
    }
    let sums = Member {
        mode: 0o644,
        bytes: sums.into_bytes(),
    };
    members.insert("SHA256SUMS".to_owned(), sums);
    Ok(members)
}

fn program(path: &Path) -> Result<Vec<u8>> {
    let bytes = input::read("program", path, PROGRAM_MAX, Accept::File)?;
    if bytes.starts_with(b"\x7fELF") {
        return Ok(bytes);
    }
    Err(
        Error::new(Kind::Usage, format!("{} is no Linux program", shown(path)))
            .hint("build it: cargo build --release -p mt-agent -p mt-installer"),
    )
}

fn write(file: &fs::File, name: &str, members: &BTreeMap<String, Member>, time: u64) -> std::io::Result<()> {
    // Neither a time nor a name in gzip's own header.
    let packed = GzBuilder::new().write(std::io::BufWriter::new(file), Compression::best());
    let mut tar = tar::Builder::new(packed);
    for (inner, member) in members {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(member.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(time);
        header.set_size(member.bytes.len() as u64);
        tar.append_data(&mut header, format!("{name}/{inner}"), member.bytes.as_slice())?;
    }
    tar.into_inner()?.finish()?.flush()
}
