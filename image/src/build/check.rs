// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be known of a build before any work: whether everything it is to be made of is there and is what it should
//! be, and whether its results may be put where they are to go.
//!
//! `plan` tells the same faults that `build` stops at. What depends on this machine and this hour (root, programs of the
//! build host, mirrors, space) is not looked at here.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::image::{DiskFrom, Request};
use super::stage::Inputs;
use crate::error::{Error, Kind, Result, shown};
use crate::input::{self, Accept, LIST_MAX, METADATA_MAX, kind_name};
use crate::publish::{refuse_existing, refuse_no_folder_for};
use crate::sbom::Lock;
use crate::sbom::cyclonedx::{self, Crate, crates_of};
use crate::vmdk::writer;

/// Everything that would stop a build, in the order in which it would.
#[must_use]
pub fn faults(request: &Request) -> Vec<Error> {
    let mut found: Vec<Error> = request
        .artefacts()
        .all()
        .iter()
        .filter_map(|path| refuse_existing(path, request.existing).err())
        .collect();
    found.extend(refuse_no_folder("--out", &request.out).err());
    found.extend(refuse_no_folder("--work", &request.work).err());
    found.extend(inputs(&request.inputs));
    if let Some(pinned) = &request.pinned {
        found.extend(read_lock(&pinned.path).err());
    }
    if let Some(DiskFrom::File(path)) = &request.ova {
        found.extend(disk(path).err());
    }
    if let Some(path) = &request.crates {
        found.extend(read_crates(path).err());
    }
    found
}

/// Everything that would stop the lock file of a build from being made.
#[must_use]
pub fn faults_of_lock(request: &Request, target: &Path) -> Vec<Error> {
    let mut found: Vec<Error> = refuse_no_folder_for(target).err().into_iter().collect();
    found.extend(refuse_no_folder("--work", &request.work).err());
    found.extend(inputs(&request.inputs));
    found
}

/// What is wrong with overlay and programs.
fn inputs(inputs: &Inputs) -> Vec<Error> {
    let overlay = overlay(&inputs.spec_path, &inputs.spec.rootfs.overlay).err();
    let programs = [("agent", &inputs.agent), ("installer", &inputs.installer)];
    let programs = programs
        .into_iter()
        .filter_map(|(name, path)| program(name, path).err());
    overlay.into_iter().chain(programs).collect()
}

/// The overlay of a spec, with all that is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// The folder.
    pub folder: PathBuf,
    /// Files and links in it, sorted.
    pub files: Vec<PathBuf>,
}

/// Finds the overlay that a spec names, beside the spec.
///
/// # Errors
/// It is not there, is no folder, holds nothing, or holds what is neither file, folder nor link.
pub fn overlay(spec: &Path, named: &str) -> Result<Overlay> {
    let folder = spec.parent().unwrap_or(Path::new(".")).join(named);
    let refuse = |found: String| {
        let text = format!("rootfs.overlay of the spec names {}: {found}", shown(&folder));
        Error::new(Kind::Config, text).hint("the folder is looked for beside the spec")
    };
    let folder = folder.canonicalize().map_err(|error| refuse(error.to_string()))?;
    if !folder.is_dir() {
        return Err(refuse("it is no folder".to_owned()));
    }
    let mut files = Vec::new();
    collect(&folder, &mut files)?;
    if files.is_empty() {
        return Err(refuse(
            "it holds no file, and an image needs its own files".to_owned(),
        ));
    }
    Ok(Overlay { folder, files })
}

/// Adds the files and links below a folder, sorted; links are not followed, since they mean places in the image.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).map_err(|error| Error::input("list", folder, error))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(|error| Error::io("list", folder, error))?.path());
    }
    paths.sort();
    for path in paths {
        let kind = path
            .symlink_metadata()
            .map_err(|error| Error::io("examine", &path, error))?
            .file_type();
        if kind.is_dir() {
            collect(&path, files)?;
        } else if kind.is_file() || kind.is_symlink() {
            files.push(path);
        } else {
            let text = format!("{} in rootfs.overlay is {}", shown(&path), kind_name(kind));
            return Err(Error::new(Kind::Config, text)
                .hint("an overlay is made of files, folders and links; take it away"));
        }
    }
    Ok(())
}

/// Refuses what is no program.
fn program(name: &str, path: &Path) -> Result<()> {
    let refuse = |found: &str| {
        let text = format!("the {name}'s program {} is {found}", shown(path));
        let hint = format!("build it first (cargo build --release), or name it with --{name}");
        Err(Error::new(Kind::Usage, text).hint(hint))
    };
    if !path.is_file() {
        return refuse("no file");
    }
    let mut begin = [0u8; 4];
    let read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut begin));
    match read {
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
            Err(Error::input("read the program", path, error))
        }
        _ if begin != *b"\x7fELF" => refuse("no Linux program"),
        _ => Ok(()),
    }
}

/// Refuses a raw disk that no VMDK can be made of.
fn disk(path: &Path) -> Result<()> {
    let (_, size) = crate::cli::open_input(path)?;
    writer::check_size(size).map_err(|text| {
        Error::new(
            Kind::Usage,
            format!("cannot take the disk {}: {text}", shown(path)),
        )
        .hint("give a raw disk, as --disk expects it")
    })
}

/// Refuses, before any work, a folder that cannot be made because something above it or in its place is none.
fn refuse_no_folder(option: &str, path: &Path) -> Result<()> {
    let there = path.ancestors().find_map(|part| {
        let part = if part.as_os_str().is_empty() {
            Path::new(".")
        } else {
            part
        };
        part.metadata().ok().map(|metadata| (part, metadata.is_dir()))
    });
    match there {
        Some((part, false)) => {
            let text = format!("{option} {}: {} is no folder", shown(path), shown(part));
            Err(Error::new(Kind::Usage, text).hint("name a folder that is there or can be made"))
        }
        _ => Ok(()),
    }
}

/// Reads a lock file.
///
/// # Errors
/// It cannot be read, or is none.
pub fn read_lock(path: &Path) -> Result<Lock> {
    let text = input::read_text("lock file", path, LIST_MAX, Accept::File)
        .map_err(|error| error.hint("make it with mt-image lock, or name another one with --lock"))?;
    let wrong = |found: &str| {
        let text = format!("lock file {}: {found}", shown(path));
        Error::new(Kind::Config, text).hint("renew it with mt-image lock")
    };
    let lock: Lock = toml::from_str(&text).map_err(|error| wrong(error.message()))?;
    if lock.schema != 1 {
        return Err(wrong(&format!("schema is {}, this program reads 1", lock.schema)));
    }
    Ok(lock)
}

/// Reads what cargo says of the workspace; its `Cargo.lock` lies in the workspace's folder.
///
/// # Errors
/// One of the two cannot be read, or is none.
pub fn read_crates(path: &Path) -> Result<Vec<Crate>> {
    #[derive(serde::Deserialize)]
    struct Root {
        workspace_root: PathBuf,
    }
    let wrong = |text: String| {
        let hint = "make it with cargo metadata --format-version 1 --locked --filter-platform TRIPLE";
        Error::new(Kind::Config, format!("{}: {text}", shown(path))).hint(hint)
    };
    let metadata = input::read_text("output of cargo metadata", path, METADATA_MAX, Accept::File)?;
    let root: Root = serde_json::from_str(&metadata).map_err(|error| wrong(error.to_string()))?;
    let lock = root.workspace_root.join("Cargo.lock");
    let lock = input::read_text("Cargo.lock", &lock, LIST_MAX, Accept::File)?;
    crates_of(&metadata, &lock, cyclonedx::PROGRAMS).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_is_a_folder_with_files() {
        let lab = tempfile::tempdir().unwrap();
        let spec = lab.path().join("spec.toml");
        let refused = |says: &str| {
            let error = overlay(&spec, "own").unwrap_err();
            assert_eq!(error.kind, Kind::Config, "{error}");
            assert!(error.to_string().contains(says), "{says}: {error}");
        };
        refused("rootfs.overlay of the spec names");
        let own = lab.path().join("own");
        fs::write(&own, "x").unwrap();
        refused("it is no folder");
        fs::remove_file(&own).unwrap();
        fs::create_dir_all(own.join("etc")).unwrap();
        refused("it holds no file");
        let pipe = own.join("etc/pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused("etc/pipe in rootfs.overlay is a pipe");
        fs::remove_file(&pipe).unwrap();
        // Links mean places in the image: neither what they name here nor whether it is there plays a part.
        std::os::unix::fs::symlink("/", own.join("etc/root")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", own.join("etc/none")).unwrap();
        let found = overlay(&spec, "own").unwrap();
        assert_eq!(found.files.len(), 2, "{found:?}");
    }

    #[test]
    fn lock_files_and_programs_are_looked_at() {
        let lab = tempfile::tempdir().unwrap();
        let at = |name: &str| lab.path().join(name);
        assert_eq!(read_lock(&at("none")).unwrap_err().kind, Kind::Usage);
        for (text, says) in [
            ("schema = 2\npackages = []\n", "schema is 2"),
            ("x = 1\n", "unknown field"),
            ("packages", "lock file"),
        ] {
            fs::write(at("lock"), text).unwrap();
            let error = read_lock(&at("lock")).unwrap_err();
            assert_eq!(error.kind, Kind::Config);
            assert!(error.to_string().contains(says), "{says}: {error}");
        }
        fs::write(at("script"), "#!/bin/sh\n").unwrap();
        fs::write(at("x"), "x").unwrap();
        for (name, says) in [
            ("none", "no file"),
            ("script", "no Linux program"),
            ("x", "no Linux program"),
        ] {
            let error = program("agent", &at(name)).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert!(error.next_step().unwrap().contains("--agent"));
        }
        assert!(program("agent", Path::new("/proc/self/exe")).is_ok());
    }

    #[test]
    fn disks_that_no_machine_has_are_refused() {
        let lab = tempfile::tempdir().unwrap();
        let path = lab.path().join("raw");
        for (size, good) in [
            (0, false),
            (511, false),
            (512, true),
            (65_537, false),
            (1 << 20, true),
        ] {
            fs::File::create(&path).unwrap().set_len(size).unwrap();
            assert_eq!(disk(&path).is_ok(), good, "{size}");
        }
        assert_eq!(disk(&lab.path().join("none")).unwrap_err().kind, Kind::Usage);
    }
}
