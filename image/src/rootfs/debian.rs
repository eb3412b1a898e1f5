// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian by mmdebstrap: packages, own files, module list, initramfs.
//!
//! Order matters: 1. packages, kept as a tar file so that a build that failed later does not fetch them again; 2. own files and the initramfs's list of modules; 3. modules go, `depmod`; 4. the
//! initramfs is made of what is left; 5. the package list is taken; 6. files go, among them the package indexes; 7. the
//! absence of secrets is proved.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::mirror::HostApt;
use super::{Package, tidy};
use crate::command::{Program, in_root};
use crate::error::{Error, Kind, Result};
use crate::spec::ImageSpec;

/// Programs of the build host that are needed.
pub const PROGRAMS: &[&str] = &["apt-get", "apt-config", "mmdebstrap", "setpriv", "tar", "unshare"];

/// What a Debian root file system is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The spec.
    pub spec: &'a ImageSpec,
    /// Folder with own files.
    pub overlay: &'a Path,
    /// Programs, each with its path in the image.
    pub files: &'a [(&'a Path, &'a str)],
}

/// Name of everything that decides which packages are installed: the spec's list, and the release files of the suites
/// as they are now. Says early that a mirror cannot be reached.
///
/// # Errors
/// See there.
pub fn base_key(spec: &ImageSpec, host: &HostApt, scratch: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(env!("CARGO_PKG_VERSION").as_bytes());
    add(&spec.source_date.to_le_bytes());
    add(spec.rootfs.release.as_bytes());
    for package in &spec.rootfs.packages {
        add(package.as_bytes());
    }
    for source in &spec.rootfs.sources {
        add(source.as_bytes());
        add(&host.release_file(source, scratch)?);
    }
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}

/// Installs the packages into a new tar file `base`.
///
/// # Errors
/// A mirror cannot be reached, a package is missing, there is no space.
pub fn install(spec: &ImageSpec, host: &HostApt, scratch: &Path, base: &Path) -> Result<()> {
    // Not quiet: what apt says is shown when it fails, and only then.
    let mut mmdebstrap = Program::new("mmdebstrap")
        .args(["--variant=minbase", "--mode=root", "--format=tar"])
        .args([
            "--aptopt=APT::Install-Recommends \"false\"",
            "--aptopt=Acquire::Languages \"none\"",
            // Nobody needs this file system after a power loss.
            "--dpkgopt=force-unsafe-io",
        ])
        // The indexes are needed for the digests of the packages; they go with the trimming.
        .args(["--skip=cleanup/apt/lists"])
        .arg(format!("--include={}", spec.rootfs.packages.join(",")))
        .arg(&spec.rootfs.release)
        .arg(base)
        .args(spec.rootfs.sources.iter().map(|source| host.resolve(source)))
        .env("SOURCE_DATE_EPOCH", spec.source_date.to_string())
        .env("TMPDIR", scratch)
        // The kernel's package would make an initramfs that is thrown away below.
        .env("INITRD", "No")
        .contained();
    for (variable, proxy) in &host.proxies {
        mmdebstrap = mmdebstrap.env(variable, proxy);
    }
    mmdebstrap.run().map(drop)
}

/// Makes the root file system in the folder `root`, which must not exist, of the packages in the tar file `base`.
///
/// # Errors
/// A module or file is missing, a program failed.
pub fn build(parts: &Parts<'_>, base: &Path, root: &Path) -> Result<Vec<Package>> {
    let Parts { spec, overlay, files } = *parts;
    fs::create_dir(root).map_err(|error| Error::io("create", root, error))?;
    Program::new("tar")
        .args([
            "--extract",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "--directory",
        ])
        .arg(root)
        .arg("--file")
        .arg(base)
        .contained()
        .run()?;
    let conf = root.join("etc/dpkg/dpkg.cfg.d/99mmdebstrap");
    fs::remove_file(&conf).map_err(|error| Error::io("remove", &conf, error))?;
    write_text(
        root,
        "etc/apt/sources.list",
        &(spec.rootfs.sources.join("\n") + "\n"),
    )?;
    copy_tree(overlay, root)?;
    for (source, target) in files {
        place(source, &root.join(target), 0o755)?;
    }
    write_text(
        root,
        INITRAMFS_MODULES,
        &(spec.modules.initramfs.join("\n") + "\n"),
    )?;
    write_text(root, "etc/master-target/version", &format!("{}\n", spec.version))?;
    remove_hooks(spec, root)?;
    let version = tidy::kernel_version(root)?;
    tidy::trim_modules(root, spec, &version)?;
    in_root(root, spec.source_date, "depmod", &["-a", &version])?;
    in_root(
        root,
        spec.source_date,
        "update-initramfs",
        &["-c", "-k", &version],
    )?;
    crash_initramfs(root, &version)?;
    for unit in &spec.rootfs.masked_units {
        point(root, &format!("etc/systemd/system/{unit}"), "/dev/null")?;
    }
    let packages = packages(root)?;
    tidy::trim_paths(root, spec)?;
    if root.join("usr/lib/systemd/systemd-resolved").is_file() {
        point(root, "etc/resolv.conf", RESOLVED)?;
    }
    write_text(root, "etc/hostname", "master-target\n")?;
    write_text(root, "etc/machine-id", "")?;
    tidy::refuse_secrets(root)?;
    Ok(packages)
}

/// Modules that the initramfs has, for the overlay's hook. In `etc/initramfs-tools/modules` each would be loaded at every
/// start, whether the machine has such a device or not.
const INITRAMFS_MODULES: &str = "etc/initramfs-tools/mt-modules";

/// Name servers as systemd-resolved knows them, of DHCP too. Not its stub, which would have to listen.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Gives the crash kernel the system's own initramfs, which is small and has the disk drivers of every host that is
/// supported. kdump-tools (1.8, `kdump-config load`) would make one at the first start otherwise, before everything else
/// and for minutes. It makes a new one when its `sysctl.conf` is no longer the one noted, or with a new kernel.
fn crash_initramfs(root: &Path, version: &str) -> Result<()> {
    let settings = root.join("etc/kdump/sysctl.conf");
    if !settings.is_file() {
        return Ok(());
    }
    place(
        &settings,
        &root.join(format!("var/lib/kdump/latest_sysctls-{version}")),
        0o644,
    )?;
    point(
        root,
        &format!("var/lib/kdump/initrd.img-{version}"),
        &format!("/boot/initrd.img-{version}"),
    )
}

/// Takes hooks and scripts of initramfs-tools away, before the initramfs is made.
fn remove_hooks(spec: &ImageSpec, root: &Path) -> Result<()> {
    let base = root.join("usr/share/initramfs-tools");
    let scripts = [
        "init-top",
        "init-premount",
        "local-top",
        "local-block",
        "local-premount",
        "local-bottom",
        "init-bottom",
    ];
    let folders = scripts
        .iter()
        .map(|name| base.join("scripts").join(name))
        .chain([base.join("hooks")]);
    for folder in folders {
        for name in &spec.rootfs.initramfs_without {
            let path = folder.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &path, error));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Makes a symbolic link, in place of whatever has the name. Done by hand: systemctl refuses to mask what a package has
/// linked already.
pub(super) fn point(root: &Path, name: &str, to: &str) -> Result<()> {
    let path = root.join(name);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("remove", &path, error));
        }
        _ => {}
    }
    std::os::unix::fs::symlink(to, &path).map_err(|error| Error::io("link", &path, error))
}

pub(super) fn write_text(root: &Path, name: &str, text: &str) -> Result<()> {
    let path = root.join(name);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    }
    fs::write(&path, text).map_err(|error| Error::io("write", &path, error))
}

/// Copies a file with a mode.
pub(super) fn place(source: &Path, target: &Path, mode: u32) -> Result<()> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    }
    fs::copy(source, target).map_err(|error| Error::io("copy", source, error))?;
    fs::set_permissions(target, fs::Permissions::from_mode(mode))
        .map_err(|error| Error::io("set the mode of", target, error))
}

/// Copies a tree of files; what is executable in the source is executable in the image, owner is root.
pub(super) fn copy_tree(source: &Path, target: &Path) -> Result<()> {
    let entries = fs::read_dir(source).map_err(|error| Error::io("list", source, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("list", source, error))?;
        let (from, to) = (entry.path(), target.join(entry.file_name()));
        let metadata = entry
            .metadata()
            .map_err(|error| Error::io("examine", &from, error))?;
        if metadata.is_dir() {
            fs::create_dir_all(&to).map_err(|error| Error::io("create", &to, error))?;
            copy_tree(&from, &to)?;
        } else {
            place(
                &from,
                &to,
                if metadata.permissions().mode() & 0o100 == 0 {
                    0o644
                } else {
                    0o755
                },
            )?;
        }
    }
    Ok(())
}

/// The installed packages with the digests that the signed indexes give.
fn packages(root: &Path) -> Result<Vec<Package>> {
    let lists = root.join("var/lib/apt/lists");
    let mut digests = HashMap::new();
    for entry in fs::read_dir(&lists).map_err(|error| Error::io("list", &lists, error))? {
        let path = entry.map_err(|error| Error::io("list", &lists, error))?.path();
        if path.to_string_lossy().ends_with("_Packages") {
            let text = fs::read_to_string(&path).map_err(|error| Error::io("read", &path, error))?;
            index_digests(&text, &mut digests);
        }
    }
    let status = root.join("var/lib/dpkg/status");
    let text = fs::read_to_string(&status).map_err(|error| Error::io("read", &status, error))?;
    let mut packages: Vec<Package> = paragraphs(&text)
        .filter(|paragraph| {
            paragraph
                .get("Status")
                .is_some_and(|status| status.ends_with(" installed"))
        })
        .map(|paragraph| {
            let field = |name: &str| paragraph.get(name).copied().unwrap_or_default().to_owned();
            let key = (field("Package"), field("Version"), field("Architecture"));
            let sha256 = digests.get(&key).cloned().unwrap_or_default();
            Package {
                name: key.0,
                version: key.1,
                architecture: key.2,
                sha256,
            }
        })
        .collect();
    packages.sort();
    match packages.iter().find(|package| package.sha256.is_empty()) {
        Some(package) => Err(Error::new(
            Kind::Unexpected,
            format!(
                "no index gives the digest of package {} {}",
                package.name, package.version
            ),
        )),
        None => Ok(packages),
    }
}

type Key = (String, String, String);

fn index_digests(text: &str, digests: &mut HashMap<Key, String>) {
    for paragraph in paragraphs(text) {
        let field = |name: &str| paragraph.get(name).copied().unwrap_or_default().to_owned();
        digests.insert(
            (field("Package"), field("Version"), field("Architecture")),
            field("SHA256"),
        );
    }
}

/// Paragraphs of a Debian control file, without continuation lines.
fn paragraphs(text: &str) -> impl Iterator<Item = HashMap<&str, &str>> {
    text.split("\n\n").map(|paragraph| {
        let lines = paragraph.lines().filter(|line| !line.starts_with([' ', '\t']));
        lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name, value.trim()))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_get_the_digests_of_their_index() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| write_text(root.path(), name, text).unwrap();
        write(
            "var/lib/dpkg/status",
            "Package: b\nStatus: install ok installed\nVersion: 2\nArchitecture: all\n\n\
             Package: a\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n\n",
        );
        write(
            "var/lib/apt/lists/x_Packages",
            "Package: b\nVersion: 1\nArchitecture: all\nSHA256: 11\n",
        );
        let error = packages(root.path()).unwrap_err();
        assert!(error.to_string().contains("package b 2"), "{error}");
        write(
            "var/lib/apt/lists/y_Packages",
            "Package: b\nDescription: x\n SHA256: no\nVersion: 2\nArchitecture: all\nSHA256: 22\n",
        );
        let found = packages(root.path()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].sha256.as_str()), ("b", "22"));
    }
}
