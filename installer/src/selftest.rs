// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves that this system can handle the file systems of the machines that come home: makes one of each kind in a
//! scratch file, mounts it, writes, unmounts, checks, mounts it again and compares.
//!
//! A guest's file system is never touched. The scratch file lies in a folder of its own that is gone afterwards, and
//! the loop device is one that was just attached to it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::custom_change::journal::hex;
use crate::error::{Error, Kind, Result};

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// Name, as `mount` and the kernel have it.
    pub name: &'static str,
    /// Size of the scratch file: a little above what its maker asks for at least.
    size_mib: u64,
    make: &'static [&'static str],
    check: &'static [&'static str],
    /// Kernel module, where another one than the name.
    module: &'static str,
    /// Debian's and EL's package of the programs.
    packages: [&'static str; 2],
}

/// All kinds.
pub const FILE_SYSTEMS: &[FileSystem] = &[
    FileSystem {
        name: "xfs",
        size_mib: 320,
        make: &["mkfs.xfs", "-q", "-f"],
        check: &["xfs_repair", "-n"],
        module: "xfs",
        packages: ["xfsprogs", "xfsprogs"],
    },
    FileSystem {
        name: "reiserfs",
        size_mib: 64,
        make: &["mkfs.reiserfs", "-q", "-f", "-f"],
        check: &["reiserfsck", "--check", "--yes", "--quiet"],
        module: "reiserfs",
        packages: ["reiserfsprogs", "reiserfs-utils"],
    },
    FileSystem {
        name: "ext2",
        size_mib: 16,
        make: &["mke2fs", "-q", "-F", "-t", "ext2"],
        check: &["e2fsck", "-f", "-n"],
        module: "ext4",
        packages: ["e2fsprogs", "e2fsprogs"],
    },
    FileSystem {
        name: "ext3",
        size_mib: 32,
        make: &["mke2fs", "-q", "-F", "-t", "ext3"],
        check: &["e2fsck", "-f", "-n"],
        module: "ext4",
        packages: ["e2fsprogs", "e2fsprogs"],
    },
    FileSystem {
        name: "ext4",
        size_mib: 32,
        make: &["mke2fs", "-q", "-F", "-t", "ext4"],
        check: &["e2fsck", "-f", "-n"],
        module: "ext4",
        packages: ["e2fsprogs", "e2fsprogs"],
    },
    FileSystem {
        name: "btrfs",
        size_mib: 128,
        make: &["mkfs.btrfs", "-q", "-f"],
        check: &["btrfs", "check"],
        module: "btrfs",
        packages: ["btrfs-progs", "btrfs-progs"],
    },
];

/// How it went with one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The file system.
    pub name: &'static str,
    /// Whether everything was as it should be.
    pub good: bool,
    /// What was done, in order; the last one failed when it is not good.
    pub steps: Vec<&'static str>,
    /// What was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Tries every kind, in a new folder below `parent`; `say` hears what is being tried.
///
/// # Errors
/// There is no folder to work in, or no root. That a file system does not work is no error, but an outcome.
pub fn run(parent: &Path, say: &mut dyn FnMut(&str)) -> Result<Vec<Outcome>> {
    if !nix::unistd::geteuid().is_root() {
        return Err(
            Error::new(Kind::Refused, "the self-test mounts file systems and needs root")
                .hint("run it with sudo"),
        );
    }
    // What is mounted is this program's alone and goes with it, however it ends.
    unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| {
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        })
        .map_err(|errno| {
            let text = format!("cannot have a table of mounts of its own: {errno}");
            Error::new(Kind::Unexpected, text).hint("run it outside of a container")
        })?;
    let folder = tempfile::Builder::new()
        .prefix("mt-selftest-")
        .tempdir_in(parent)
        .map_err(|error| Error::io("create a folder in", parent, error))?;
    let mut outcomes = Vec::new();
    for kind in FILE_SYSTEMS {
        say(&format!(
            "{}: making, mounting, writing, checking, comparing",
            kind.name
        ));
        outcomes.push(one(kind, folder.path()));
    }
    Ok(outcomes)
}

/// What went wrong at a step, and what to do.
struct Fault {
    text: String,
    hint: Option<String>,
}

fn one(kind: &FileSystem, folder: &Path) -> Outcome {
    let mut steps = Vec::new();
    let done = try_one(kind, folder, &mut steps);
    let (fault, hint) = match done {
        Ok(()) => (None, None),
        Err(fault) => (Some(fault.text), fault.hint),
    };
    Outcome {
        name: kind.name,
        good: fault.is_none(),
        steps,
        fault,
        hint,
    }
}

fn try_one(
    kind: &FileSystem,
    folder: &Path,
    steps: &mut Vec<&'static str>,
) -> std::result::Result<(), Fault> {
    let install = || {
        Some(format!(
            "install it: apt-get install {}, or dnf install {}",
            kind.packages[0], kind.packages[1]
        ))
    };
    let image = folder.join(kind.name);
    let point = folder.join("mnt");
    let io = |what: &str, path: &Path, error: std::io::Error| Fault {
        text: format!("cannot {what} {}: {error}", path.display()),
        hint: None,
    };
    steps.push("tools");
    for command in [kind.make, kind.check] {
        if !installed(command[0]) {
            return Err(Fault {
                text: format!("program {} is missing", command[0]),
                hint: install(),
            });
        }
    }
    fs::create_dir_all(&point).map_err(|error| io("create", &point, error))?;
    File::create(&image)
        .and_then(|file| file.set_len(kind.size_mib << 20))
        .map_err(|error| io("create", &image, error))?;
    let _gone = Remove(image.clone());
    steps.push("make");
    program(kind.make, &[&image], None)?;
    let mut digests = Vec::new();
    for step in ["mount", "mount again"] {
        steps.push(step);
        let mounted = Mounted::new(kind, &image, &point)?;
        if step == "mount" {
            steps.push("write");
            write(&point).map_err(|error| io("write to a file on", &point, error))?;
        } else {
            steps.push("compare");
        }
        digests.push(read(&point).map_err(|error| io("read a file on", &point, error))?);
        steps.push("unmount");
        mounted.end()?;
        steps.push("check");
        program(kind.check, &[&image], None)?;
    }
    if digests.first() != digests.last() {
        return Err(Fault {
            text: "what is read after mounting again is not what was written".to_owned(),
            hint: Some("do not use this system for machines with this file system".to_owned()),
        });
    }
    Ok(())
}

/// A file removed when it is not needed any more, so that the next kind has the space.
struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        // The whole folder goes a little later anyway.
        let _ = fs::remove_file(&self.0);
    }
}

/// A mounted scratch file, unmounted when dropped.
struct Mounted<'a> {
    point: &'a Path,
    ended: bool,
}

impl<'a> Mounted<'a> {
    fn new(kind: &FileSystem, image: &Path, point: &'a Path) -> std::result::Result<Self, Fault> {
        let missing = format!(
            "the kernel's module {} is needed: install the kernel's package that has it (modprobe {})",
            kind.module, kind.module
        );
        let options = ["mount", "-o", "loop,nodev,nosuid,noexec", "-t", kind.name];
        program(&options, &[image, point], Some(missing))?;
        Ok(Self { point, ended: false })
    }

    fn end(mut self) -> std::result::Result<(), Fault> {
        self.ended = true;
        program(&["umount"], &[self.point], None)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let _ = program(&["umount"], &[self.point], None);
        }
    }
}

/// Content that no file system could have by accident.
fn content() -> impl Iterator<Item = u8> {
    (0_u32..1 << 20).map(|index| index.wrapping_mul(2_654_435_761).to_le_bytes()[3])
}

fn write(point: &Path) -> std::io::Result<()> {
    fs::create_dir_all(point.join("folder"))?;
    let mut file = File::create(point.join("folder/file"))?;
    file.write_all(&content().collect::<Vec<u8>>())?;
    file.sync_all()
}

fn read(point: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    File::open(point.join("folder/file"))?.read_to_end(&mut bytes)?;
    if !bytes.iter().copied().eq(content()) {
        return Ok("other content".to_owned());
    }
    Ok(hex(&Sha256::digest(&bytes)))
}

const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

fn installed(program: &str) -> bool {
    FOLDERS
        .iter()
        .any(|folder| Path::new(folder).join(program).exists())
}

/// Runs a program; what it said last goes into the fault.
fn program(words: &[&str], paths: &[&Path], hint: Option<String>) -> std::result::Result<(), Fault> {
    let output = Command::new(words[0])
        .args(&words[1..])
        .args(paths)
        .env("PATH", FOLDERS.join(":"))
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Fault {
            text: format!("cannot start {}: {error}", words[0]),
            hint: hint.clone(),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let first = said
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    Err(Fault {
        text: format!("{} failed ({}): {}", words[0], output.status, first.trim()),
        hint,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let folder = tempfile::tempdir().unwrap();
        let kind = FileSystem {
            make: &["mkfs.not-there"],
            ..FILE_SYSTEMS[1]
        };
        let outcome = one(&kind, folder.path());
        assert!(!outcome.good);
        assert_eq!(outcome.fault.unwrap(), "program mkfs.not-there is missing");
        assert_eq!(
            outcome.hint.unwrap(),
            "install it: apt-get install reiserfsprogs, or dnf install reiserfs-utils"
        );
        assert_eq!(outcome.steps, ["tools"]);
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let fault = program(&["ls", "-d"], &[Path::new("/not/there")], None)
            .err()
            .unwrap();
        assert!(
            fault.text.starts_with("ls failed (exit status: 2)"),
            "{}",
            fault.text
        );
        assert!(
            fault.text.ends_with("No such file or directory"),
            "{}",
            fault.text
        );
    }

    #[test]
    fn the_six_kinds_of_the_machines_that_come_home_are_tried() {
        let names: Vec<&str> = FILE_SYSTEMS.iter().map(|kind| kind.name).collect();
        assert_eq!(names, ["xfs", "reiserfs", "ext2", "ext3", "ext4", "btrfs"]);
    }
}
