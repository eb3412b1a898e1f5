// SPDX-License-Identifier: MIT OR Apache-2.0
//! The CentOS family by dnf: repositories, packages, own files, module list, initramfs.
//!
//! Order matters: 1. the index of each repository is fetched, so that one that cannot be reached is named before anything
//! is installed; 2. names are translated and held against what is offered; 3. packages are installed, each verified with
//! its repository's key; 4. own files; 5. modules go, `depmod`; 6. dracut makes the initramfs of what is left; 7. kernel
//! and loaders get the names they are looked for under; 8. files and the traces of dnf go; 9. the absence of secrets is
//! proved.
//!
//! Nothing is left when the build is killed: programs run contained, and everything they write lies in `root` and
//! `scratch`, which the caller's work folder holds.

pub mod dnf;
pub mod layout;
pub mod names;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use self::dnf::Dnf;
use super::debian::{copy_tree, place, point, write_text};
use super::{Package, tidy};
use crate::command::in_root;
use crate::error::{Error, Kind, Result};
use crate::spec::ImageSpec;

/// Programs of the build host that are needed.
pub const PROGRAMS: &[&str] = &["dnf", "rpm", "setpriv", "unshare"];

/// Device nodes that scriptlets and dracut expect: name, major and minor number. They go at the end.
const NODES: [(&str, u64, u64); 5] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
];

/// What a root file system of the CentOS family is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The spec.
    pub spec: &'a ImageSpec,
    /// Folder with own files.
    pub overlay: &'a Path,
    /// Programs, each with its path in the image.
    pub files: &'a [(&'a Path, &'a str)],
    /// Whether kernel and loaders are wanted under the names that a medium and the installer look for.
    pub bootable: bool,
}

/// Packages that were chosen and held against the repositories; nothing is installed yet.
#[derive(Debug)]
pub struct Chosen {
    dnf: Dnf,
    usable: Vec<String>,
    offers: Vec<Package>,
    selection: names::Selection,
    /// Name of everything that decides which packages are installed: the spec's list, and what the repositories offer.
    pub key: String,
}

/// Steps 1 and 2, for a root file system in the folder `root`, which must not exist. `say` is told what the operator
/// should know, such as that there is no ReiserFS.
///
/// # Errors
/// A repository cannot be read, a key or package is missing.
pub fn choose(spec: &ImageSpec, scratch: &Path, root: &Path, say: &dyn Fn(&str)) -> Result<Chosen> {
    let release = names::release(&spec.rootfs.release)?;
    let proc = root.join("proc");
    fs::create_dir(root).map_err(|error| Error::io("create", root, error))?;
    fs::create_dir(&proc).map_err(|error| Error::io("create", &proc, error))?;
    let dnf = Dnf::prepare(
        scratch,
        root,
        spec.source_date,
        release,
        &spec.rootfs.repositories,
    )?;
    let mut usable = Vec::new();
    for repository in &spec.rootfs.repositories {
        say(&format!("repository {}: fetching its index", repository.id));
        match dnf.fetch_index(repository) {
            Ok(()) => usable.push(repository.id.clone()),
            // Only one that is not there may be missed; one that is there and wrong may not.
            Err(error) if repository.optional && error.kind == Kind::Peer => {
                say(&format!("building on without an optional repository: {error}"));
            }
            Err(error) => return Err(error),
        }
    }
    let ids: Vec<&str> = usable.iter().map(String::as_str).collect();
    let mut offers = dnf.offers(&ids)?;
    offers.sort();
    let names: BTreeSet<&str> = offers.iter().map(|package| package.name.as_str()).collect();
    let required = &spec.modules.required;
    let selection = names::select(&spec.rootfs.packages, &release, &names, &ids, required)?;
    for note in &selection.notes {
        say(note);
    }
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    add(&spec.rootfs.release);
    selection.install.iter().for_each(|name| add(name));
    for offer in &offers {
        add(&offer.sha256);
    }
    let key = hasher.finalize().to_hex()[..16].to_owned();
    Ok(Chosen {
        dnf,
        usable,
        offers,
        selection,
        key,
    })
}

/// The other steps, in the folder `root` that [`choose`] was given.
///
/// # Errors
/// A signature is wrong, a module is missing, a program failed.
pub fn build(parts: &Parts<'_>, chosen: &Chosen, root: &Path, say: &dyn Fn(&str)) -> Result<Vec<Package>> {
    let spec = parts.spec;
    let Chosen { dnf, selection, .. } = chosen;
    make_nodes(root)?;
    say(&format!(
        "installing {} packages and what they depend on",
        selection.install.len()
    ));
    dnf.install(&selection.install, &chosen.usable)?;
    let mut packages = with_digests(dnf.installed()?, &chosen.offers)?;
    copy_tree(parts.overlay, root)?;
    for (source, target) in parts.files {
        place(source, &root.join(target), 0o755)?;
    }
    // The family's name of the file that closes mdadm; the overlay brings Debian's.
    write_text(root, "etc/mdadm.conf", "AUTO -all\n")?;
    write_text(root, "etc/master-target/version", &format!("{}\n", spec.version))?;
    for unit in &spec.rootfs.masked_units {
        point(root, &format!("etc/systemd/system/{unit}"), "/dev/null")?;
    }
    finish_kernel(spec, root, selection.reiserfs, say)?;
    if parts.bootable {
        layout::settle(root, &kernel_version(root)?)?;
    }
    dnf.tidy()?;
    tidy::trim_paths(root, spec)?;
    write_text(root, "etc/hostname", "master-target\n")?;
    write_text(root, "etc/machine-id", "")?;
    remove_nodes(root)?;
    tidy::refuse_secrets(root)?;
    packages.sort();
    Ok(packages)
}

/// Adds to each installed package the digest that the index of its repository gives.
fn with_digests(installed: Vec<Package>, offers: &[Package]) -> Result<Vec<Package>> {
    let key = |package: &Package| {
        (
            package.name.clone(),
            package.version.clone(),
            package.architecture.clone(),
        )
    };
    let digests: HashMap<_, _> = offers
        .iter()
        .map(|offer| (key(offer), offer.sha256.as_str()))
        .collect();
    let mut packages = installed;
    for package in &mut packages {
        let Some(sha256) = digests.get(&key(package)) else {
            let text = format!(
                "no index gives the digest of package {} {}",
                package.name, package.version
            );
            return Err(Error::new(Kind::Unexpected, text));
        };
        package.sha256 = (*sha256).to_owned();
    }
    Ok(packages)
}

/// Steps 5 and 6.
fn finish_kernel(spec: &ImageSpec, root: &Path, reiserfs: bool, say: &dyn Fn(&str)) -> Result<()> {
    let version = kernel_version(root)?;
    // Modules of packages beside the kernel, ELRepo's among them, are not in the kernel package's own list.
    in_root(root, spec.source_date, "depmod", &["-a", &version])?;
    if reiserfs {
        let list = root.join("usr/lib/modules").join(&version).join("modules.dep");
        let text = fs::read_to_string(&list).map_err(|error| Error::io("read", &list, error))?;
        if !text.lines().any(|line| {
            let path = line.split(':').next().unwrap_or_default();
            path.rsplit('/')
                .next()
                .is_some_and(|file| file.starts_with("reiserfs.ko"))
        }) {
            let reason = format!("kmod-reiserfs is installed, but brings no module for kernel {version}");
            say(&names::without_reiserfs(&reason));
        }
    }
    tidy::trim_modules(root, spec, &version)?;
    in_root(root, spec.source_date, "depmod", &["-a", &version])?;
    // For initramfs made later, by an update of the kernel, too.
    let drivers = spec.modules.initramfs.join(" ");
    let text = format!(
        "hostonly=\"no\"\nreproducible=\"yes\"\nadd_drivers+=\" {drivers} \"\nadd_dracutmodules+=\" master-target \"\n\
         # A guest's disks are never assembled or activated by the appliance.\n\
         omit_dracutmodules+=\" lvm mdraid multipath dmraid \"\n"
    );
    write_text(root, "etc/dracut.conf.d/master-target.conf", &text)?;
    let image = format!("/boot/initramfs-{version}.img");
    in_root(
        root,
        spec.source_date,
        "dracut",
        &["--force", "--no-hostonly", "--kver", &version, &image],
    )?;
    let made = root.join(image.trim_start_matches('/'));
    match made.metadata() {
        Ok(metadata) if metadata.len() > 0 => Ok(()),
        _ => Err(Error::new(
            Kind::Unexpected,
            format!("dracut ended well, but made no {image}"),
        )),
    }
}

/// Version of the one kernel. A folder without `modules.builtin` holds modules of packages that were built for another
/// kernel, as ELRepo's are; where they fit, links in `weak-updates` of the kernel's own folder lead there.
///
/// # Errors
/// There is none, or there are several.
pub fn kernel_version(root: &Path) -> Result<String> {
    let folder = root.join("usr/lib/modules");
    let mut versions = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(&folder).map_err(|error| Error::io("list", &folder, error))? {
            let path = entry.map_err(|error| Error::io("list", &folder, error))?.path();
            if path.join("modules.builtin").is_file() {
                versions.push(
                    path.file_name()
                        .unwrap_or_default()
                        .to_string_lossy()
                        .into_owned(),
                );
            }
        }
    }
    versions.sort();
    match versions.as_slice() {
        [version] => Ok(version.clone()),
        [] => Err(
            Error::new(Kind::Config, "the packages of the spec bring no kernel")
                .hint("add kernel to rootfs.packages"),
        ),
        several => {
            let text = format!(
                "the packages of the spec bring several kernels: {}",
                several.join(", ")
            );
            Err(Error::new(Kind::Config, text).hint("name one kernel package in rootfs.packages"))
        }
    }
}

fn make_nodes(root: &Path) -> Result<()> {
    let folder = root.join("dev");
    fs::create_dir_all(&folder).map_err(|error| Error::io("create", &folder, error))?;
    for (name, major, minor) in NODES {
        let path = folder.join(name);
        mknod(
            &path,
            SFlag::S_IFCHR,
            Mode::from_bits_truncate(0o666),
            makedev(major, minor),
        )
        .map_err(|error| Error::io("make the device node", &path, error.into()))?;
    }
    Ok(())
}

fn remove_nodes(root: &Path) -> Result<()> {
    for (name, ..) in NODES {
        let path = root.join("dev").join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &path, error));
            }
            _ => {}
        }
    }
    Ok(())
}
