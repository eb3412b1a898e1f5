// SPDX-License-Identifier: MIT OR Apache-2.0
//! The stage: root file system, kernel and boot files, made once from a spec and used for ISO and OVA.
//!
//! A finished stage is kept under a name made of everything that went into it, so that a build that failed later takes
//! up there. It becomes visible by a rename, so a stage that is there is whole.

use std::fs;
use std::path::{Path, PathBuf};

use super::check::{self, Overlay};
use crate::agent_tarball;
use crate::command::{Program, in_root};
use crate::error::{Error, Kind, Result, shown};
use crate::iso::sha256_of;
use crate::publish::Existing;
use crate::rootfs::mirror::HostApt;
use crate::rootfs::{Package, debian, el, tidy};
use crate::spec::{Base, ImageSpec};
use crate::work::WorkFolder;

/// Programs of the build host that are needed.
pub const PROGRAMS: &[&str] = &["mksquashfs"];
/// Modules of the GRUB that starts the medium under BIOS.
const ELTORITO_MODULES: &[&str] = &[
    "biosdisk",
    "iso9660",
    "part_gpt",
    "part_msdos",
    "normal",
    "configfile",
    "search",
    "linux",
    "test",
    "echo",
    "serial",
    "terminal",
    "all_video",
];

/// What goes into a stage.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The spec.
    pub spec: ImageSpec,
    /// Its file, for the overlay and the key.
    pub spec_path: PathBuf,
    /// The agent's program.
    pub agent: PathBuf,
    /// The installer's program.
    pub installer: PathBuf,
}

/// A finished stage.
#[derive(Debug)]
pub struct Stage {
    /// Folder with `vmlinuz`, `initrd.img`, `payload.squashfs` and `boot/`.
    pub path: PathBuf,
    /// The agent's tarball in that folder.
    pub agent_tarball: PathBuf,
    /// The packages in it.
    pub packages: Vec<Package>,
    /// Whether an earlier build made it.
    pub resumed: bool,
}

impl Inputs {
    /// The image's own files.
    ///
    /// # Errors
    /// As [`check::overlay`].
    pub fn overlay(&self) -> Result<Overlay> {
        check::overlay(&self.spec_path, &self.spec.rootfs.overlay)
    }

    /// Name of everything that goes in: spec, overlay, programs, and the version of this program.
    fn key(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(env!("CARGO_PKG_VERSION").as_bytes());
        let mut files = vec![self.spec_path.clone()];
        files.extend([self.agent.clone(), self.installer.clone()]);
        files.extend(self.overlay()?.files);
        for path in files {
            // Links are copied as such, so what they say is what counts.
            let bytes = if path.is_symlink()
                && path != self.agent
                && path != self.installer
                && path != self.spec_path
            {
                let target = fs::read_link(&path).map_err(|error| Error::io("read", &path, error))?;
                target.into_os_string().into_encoded_bytes()
            } else {
                fs::read(&path).map_err(|error| Error::io("read", &path, error))?
            };
            hasher.update(path.as_os_str().as_encoded_bytes());
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(&bytes);
        }
        hasher.update(self.spec.version.as_bytes());
        Ok(hasher.finalize().to_hex()[..16].to_owned())
    }
}

/// Finds or makes the stage.
///
/// # Errors
/// A mirror, a package, a program or the space is missing. What was begun is removed.
pub fn prepare(inputs: &Inputs, work: &Path, say: &dyn Fn(&str)) -> Result<Stage> {
    fs::create_dir_all(work).map_err(|error| Error::io("create", work, error))?;
    // First, since it finds missing files before anything is fetched.
    let own_key = inputs.key()?;
    let scratch = WorkFolder::create(work)?;
    let (key, packages) = match inputs.spec.rootfs.base {
        Base::Debian => {
            let base = debian_base(inputs, work, scratch.path(), say)?;
            (base.key, Packages::Debian(base.path))
        }
        Base::El => {
            let root = scratch.path().join(ROOT);
            let chosen = el::choose(&inputs.spec, scratch.path(), &root, say)?;
            (chosen.key.clone(), Packages::El(Box::new(chosen)))
        }
    };
    let path = work.join(format!("stage-{own_key}-{key}"));
    let resumed = path.is_dir();
    if resumed {
        say(&format!("root file system: taken from {}", shown(&path)));
    } else {
        let made = make(inputs, &packages, scratch.path(), say)?;
        fs::rename(&made, &path).map_err(|error| Error::io("keep the stage as", &path, error))?;
    }
    let list = path.join("packages.json");
    let text = fs::read(&list).map_err(|error| Error::io("read", &list, error))?;
    let packages = serde_json::from_slice(&text)
        .map_err(|error| Error::new(Kind::Unexpected, format!("{} is damaged: {error}", shown(&list))))?;
    Ok(Stage {
        agent_tarball: path.join(agent_tarball::file_name(&inputs.spec.version)),
        path,
        packages,
        resumed,
    })
}

/// The root file system's folder in the scratch folder.
const ROOT: &str = "root";

/// Packages of a root file system that is to be made.
enum Packages {
    /// Installed into a tar file.
    Debian(PathBuf),
    /// Chosen only.
    El(Box<el::Chosen>),
}

/// Packages, installed into a tar file.
struct BaseTar {
    key: String,
    path: PathBuf,
}

/// Finds or makes the tar file of packages. It becomes visible by a rename, so one that is there is whole.
fn debian_base(inputs: &Inputs, work: &Path, scratch: &Path, say: &dyn Fn(&str)) -> Result<BaseTar> {
    let host = HostApt::read()?;
    let key = debian::base_key(&inputs.spec, &host, scratch)?;
    let path = work.join(format!("base-{key}.tar"));
    if path.is_file() {
        say(&format!("packages: taken from {}", shown(&path)));
    } else {
        say("packages: fetching and installing");
        let made = scratch.join("base.tar");
        debian::install(&inputs.spec, &host, scratch, &made)?;
        fs::rename(&made, &path).map_err(|error| Error::io("keep the packages as", &path, error))?;
    }
    Ok(BaseTar { key, path })
}

/// Removes what builds keep in the work folder for the next try.
///
/// # Errors
/// Listing or removing failed.
pub fn forget(work: &Path) -> Result<()> {
    for entry in fs::read_dir(work).map_err(|error| Error::io("list", work, error))? {
        let path = entry.map_err(|error| Error::io("list", work, error))?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let removed = if name.starts_with("stage-") {
            fs::remove_dir_all(&path)
        } else if name.starts_with("base-") && name.ends_with(".tar") {
            fs::remove_file(&path)
        } else {
            continue;
        };
        removed.map_err(|error| Error::io("remove", &path, error))?;
    }
    // The folder itself too, unless it holds anything of somebody else, or a file system is mounted there.
    use std::io::ErrorKind as Found;
    match fs::remove_dir(work) {
        Err(error) if !matches!(error.kind(), Found::DirectoryNotEmpty | Found::ResourceBusy) => {
            Err(Error::io("remove", work, error))
        }
        _ => Ok(()),
    }
}

fn make(inputs: &Inputs, packages: &Packages, scratch: &Path, say: &dyn Fn(&str)) -> Result<PathBuf> {
    let (spec, root, stage) = (&inputs.spec, scratch.join(ROOT), scratch.join("stage"));
    // The agent is not among them: the custom-change step of the installation puts it there, from its tarball.
    let files: [(&Path, &str); 1] = [(&inputs.installer, "usr/sbin/mt-installer")];
    say("root file system: making it of the packages");
    let overlay = &inputs.overlay()?.folder;
    let (packages, version) = match packages {
        Packages::Debian(base) => {
            let parts = debian::Parts {
                spec,
                overlay,
                files: &files,
            };
            (debian::build(&parts, base, &root)?, tidy::kernel_version(&root)?)
        }
        Packages::El(chosen) => {
            let parts = el::Parts {
                spec,
                overlay,
                files: &files,
                bootable: true,
            };
            (el::build(&parts, chosen, &root, say)?, el::kernel_version(&root)?)
        }
    };
    // Made for this build host: another system's libraries may be older.
    in_root(&root, spec.source_date, "mt-installer", &["--version"]).map_err(|error| {
        let text = format!("the installer does not run in the root file system of the image: {error}");
        Error::new(Kind::Config, text)
            .hint("build the programs on a system that is no newer than the image's")
    })?;
    let boot = stage.join("boot");
    fs::create_dir_all(boot.join("i386-pc")).map_err(|error| Error::io("create", &boot, error))?;
    let list: &[(String, &str)] = &[
        (format!("boot/vmlinuz-{version}"), "vmlinuz"),
        (format!("boot/initrd.img-{version}"), "initrd.img"),
        (
            "usr/lib/shim/shimx64.efi.signed".to_owned(),
            "boot/shimx64.efi.signed",
        ),
        (
            "usr/lib/shim/mmx64.efi.signed".to_owned(),
            "boot/mmx64.efi.signed",
        ),
        (
            "usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed".to_owned(),
            "boot/gcdx64.efi.signed",
        ),
        (
            "usr/lib/grub/i386-pc/boot_hybrid.img".to_owned(),
            "boot/boot_hybrid.img",
        ),
    ];
    for (from, to) in list {
        let from = root.join(from);
        fs::copy(&from, stage.join(to)).map_err(|error| Error::io("copy", &from, error))?;
    }
    let modules = root.join("usr/lib/grub/i386-pc");
    for entry in fs::read_dir(&modules).map_err(|error| Error::io("list", &modules, error))? {
        let path = entry.map_err(|error| Error::io("list", &modules, error))?.path();
        if let Some(name) = path
            .file_name()
            .filter(|_| path.extension().is_some_and(|e| e == "mod" || e == "lst"))
        {
            fs::copy(&path, boot.join("i386-pc").join(name))
                .map_err(|error| Error::io("copy", &path, error))?;
        }
    }
    let image = "/tmp/eltorito.img";
    let make_image = ["-O", "i386-pc-eltorito", "-p", "/boot/grub", "-o", image];
    in_root(
        &root,
        spec.source_date,
        "grub-mkimage",
        &[&make_image[..], ELTORITO_MODULES].concat(),
    )?;
    let made = root.join(image.trim_start_matches('/'));
    fs::copy(&made, boot.join("eltorito.img")).map_err(|error| Error::io("copy", &made, error))?;
    fs::remove_file(&made).map_err(|error| Error::io("remove", &made, error))?;
    say("root file system: packing");
    // zstd: packs in about a third of the time that xz takes, and unpacks faster at each start.
    Program::new("mksquashfs")
        .folder(scratch)
        .args([
            ROOT,
            "stage/payload.squashfs",
            "-noappend",
            "-no-progress",
            "-quiet",
            "-reproducible",
            "-comp",
            "zstd",
            "-Xcompression-level",
            "15",
            "-b",
            "1M",
            "-exit-on-error",
        ])
        .env("SOURCE_DATE_EPOCH", spec.source_date.to_string())
        .contained()
        .run()?;
    let digest = stage.join("payload.sha256");
    let text = format!("{}\n", sha256_of(&stage.join("payload.squashfs"))?);
    fs::write(&digest, text).map_err(|error| Error::io("write", &digest, error))?;
    agent_tarball::build(&agent_tarball::Request {
        agent: inputs.agent.clone(),
        installer: inputs.installer.clone(),
        out: stage.clone(),
        version: spec.version.clone(),
        source_date: spec.source_date,
        existing: Existing::Keep,
    })?;
    let list = stage.join("packages.json");
    let text = serde_json::to_vec_pretty(&packages)
        .map_err(|error| Error::new(Kind::Unexpected, format!("cannot render JSON: {error}")))?;
    fs::write(&list, text).map_err(|error| Error::io("write", &list, error))?;
    Ok(stage)
}
