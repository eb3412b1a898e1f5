// SPDX-License-Identifier: MIT OR Apache-2.0
//! Brings a root file system of the CentOS family to the names under which the medium's builder and the installer look for
//! things, which are Debian's.
//!
//! | Debian's name | the family's | how |
//! |---|---|---|
//! | `/boot/vmlinuz-VERSION` | `/usr/lib/modules/VERSION/vmlinuz` | copied, where the kernel's scriptlet did not |
//! | `/boot/initrd.img-VERSION` | `/boot/initramfs-VERSION.img` | linked |
//! | `/usr/lib/shim/shimx64.efi.signed`, `mmx64...` | `/boot/efi/EFI/FOLDER/shimx64.efi`, `mmx64...` | copied |
//! | `/usr/lib/grub/x86_64-efi-signed/{grub,gcd}x64.efi.signed` | `/boot/efi/EFI/FOLDER/{grub,gcd}x64.efi` | copied |
//! | `/usr/bin/grub-mkimage` | `/usr/bin/grub2-mkimage` | linked |
//! | `ssh.service`, `chrony.service` | `sshd.service`, `chronyd.service` | copied; the family's are masked |
//!
//! The loaders are copied, not linked: on the installed appliance its EFI system partition is mounted over `/boot/efi`.
//! FOLDER is where the signed GRUB looks for its menu; the installer reads it from `EFI_FOLDER`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::rootfs::debian::{place, point, write_text};

/// File that names the folder below `EFI/` of the family's loaders.
const EFI_FOLDER: &str = "usr/lib/master-target/efi-folder";
/// Loaders, the packages that bring them, and Debian's names.
const LOADERS: [(&str, &str, &str); 4] = [
    ("shimx64.efi", "shim-x64", "usr/lib/shim/shimx64.efi.signed"),
    ("mmx64.efi", "shim-x64", "usr/lib/shim/mmx64.efi.signed"),
    (
        "grubx64.efi",
        "grub2-efi-x64",
        "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
    ),
    (
        "gcdx64.efi",
        "grub2-efi-x64-cdboot",
        "usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed",
    ),
];
/// GRUB's files for BIOS, which bear the same names in both families.
const BIOS: [&str; 3] = ["boot.img", "boot_hybrid.img", "cdboot.img"];
/// Units: the family's name, Debian's, and whether it starts by itself.
const UNITS: [(&str, &str, bool); 2] = [
    ("sshd.service", "ssh.service", false),
    ("chronyd.service", "chrony.service", true),
];

fn lacks(what: &str, package: &str) -> Error {
    Error::new(Kind::Config, format!("the packages of the spec bring no {what}"))
        .hint(format!("add {package} to rootfs.packages"))
}

/// Makes the names. The initramfs of the kernel `version` is there.
///
/// # Errors
/// A kernel or a loader is missing: names it, and the package that has it.
pub fn settle(root: &Path, version: &str) -> Result<()> {
    kernel(root, version)?;
    loaders(root)?;
    let folder = root.join("usr/lib/grub/i386-pc");
    if let Some(name) = BIOS.iter().find(|name| !folder.join(name).is_file()) {
        return Err(lacks(&format!("usr/lib/grub/i386-pc/{name}"), "grub2-pc-modules"));
    }
    let make_image = root.join("usr/bin/grub-mkimage");
    if !make_image.exists() {
        if !root.join("usr/bin/grub2-mkimage").is_file() {
            return Err(lacks("grub2-mkimage", "grub2-tools and grub2-tools-extra"));
        }
        link("grub2-mkimage", &make_image)?;
    }
    for (theirs, name, enabled) in UNITS {
        let own = root.join("usr/lib/systemd/system").join(theirs);
        if !own.is_file() {
            continue;
        }
        place(&own, &own.with_file_name(name), 0o644)?;
        point(root, &format!("etc/systemd/system/{theirs}"), "/dev/null")?;
        if enabled {
            let wanted = format!("etc/systemd/system/multi-user.target.wants/{name}");
            point(root, &wanted, &format!("/usr/lib/systemd/system/{name}"))?;
        }
    }
    // The files of an image bear no labels, without which an enforcing policy starts nothing.
    if root.join("etc/selinux").is_dir() {
        write_text(
            root,
            "etc/selinux/config",
            "SELINUX=disabled\nSELINUXTYPE=targeted\n",
        )?;
    }
    Ok(())
}

fn kernel(root: &Path, version: &str) -> Result<()> {
    let kernel = root.join(format!("boot/vmlinuz-{version}"));
    if !kernel.is_file() {
        let own = root.join(format!("usr/lib/modules/{version}/vmlinuz"));
        if !own.is_file() {
            return Err(lacks(&format!("kernel image of {version}"), "kernel"));
        }
        place(&own, &kernel, 0o644)?;
    }
    link(
        &format!("initramfs-{version}.img"),
        &root.join(format!("boot/initrd.img-{version}")),
    )
}

fn link(to: &str, path: &Path) -> Result<()> {
    match symlink(to, path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::io("link", path, error))
        }
        _ => Ok(()),
    }
}

fn loaders(root: &Path) -> Result<()> {
    let folders = root.join("boot/efi/EFI");
    let mut found = Vec::new();
    if folders.is_dir() {
        for entry in fs::read_dir(&folders).map_err(|error| Error::io("list", &folders, error))? {
            let path = entry.map_err(|error| Error::io("list", &folders, error))?.path();
            if path.join("shimx64.efi").is_file() {
                found.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
            }
        }
    }
    let [name] = found.as_slice() else {
        if found.is_empty() {
            return Err(lacks("boot/efi/EFI/FOLDER/shimx64.efi", "shim-x64"));
        }
        let text = format!(
            "the packages of the spec bring several signed loaders: {}",
            found.join(", ")
        );
        return Err(Error::new(Kind::Config, text)
            .hint("name repositories of one distribution in rootfs.repositories"));
    };
    for (loader, package, debian) in LOADERS {
        let own = folders.join(name).join(loader);
        if !own.is_file() {
            return Err(lacks(&format!("boot/efi/EFI/{name}/{loader}"), package));
        }
        place(&own, &root.join(debian), 0o644)?;
    }
    write_text(root, EFI_FOLDER, &format!("{name}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, name: &str) {
        write_text(root, name, name).unwrap();
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("boot")).unwrap();
        for (file, says, package) in [
            ("usr/lib/modules/5/vmlinuz", "kernel image of 5", "add kernel "),
            (
                "boot/efi/EFI/centos/shimx64.efi",
                "EFI/FOLDER/shimx64.efi",
                "shim-x64",
            ),
            ("boot/efi/EFI/centos/mmx64.efi", "centos/mmx64.efi", "shim-x64"),
            (
                "boot/efi/EFI/centos/grubx64.efi",
                "centos/grubx64.efi",
                "grub2-efi-x64",
            ),
            (
                "boot/efi/EFI/centos/gcdx64.efi",
                "centos/gcdx64.efi",
                "grub2-efi-x64-cdboot",
            ),
            (
                "usr/lib/grub/i386-pc/boot.img",
                "i386-pc/boot.img",
                "grub2-pc-modules",
            ),
            (
                "usr/lib/grub/i386-pc/boot_hybrid.img",
                "boot_hybrid.img",
                "grub2-pc-modules",
            ),
            (
                "usr/lib/grub/i386-pc/cdboot.img",
                "cdboot.img",
                "grub2-pc-modules",
            ),
            ("usr/bin/grub2-mkimage", "grub2-mkimage", "grub2-tools"),
        ] {
            let error = settle(root, "5").unwrap_err();
            assert_eq!(error.kind, Kind::Config);
            assert!(error.to_string().contains(says), "{file}: {error}");
            assert!(error.next_step().unwrap().contains(package), "{file}");
            put(root, file);
        }
        put(root, "usr/lib/systemd/system/chronyd.service");
        settle(root, "5").unwrap();
        settle(root, "5").unwrap();
        assert_eq!(fs::read_to_string(root.join(EFI_FOLDER)).unwrap(), "centos\n");
        let copied = fs::read_to_string(root.join("usr/lib/shim/shimx64.efi.signed")).unwrap();
        assert_eq!(copied, "boot/efi/EFI/centos/shimx64.efi");
        let masked = fs::read_link(root.join("etc/systemd/system/chronyd.service")).unwrap();
        assert_eq!(masked, Path::new("/dev/null"));
        assert!(
            root.join("etc/systemd/system/multi-user.target.wants/chrony.service")
                .is_symlink()
        );
        put(root, "boot/efi/EFI/rocky/shimx64.efi");
        assert!(
            settle(root, "5")
                .unwrap_err()
                .to_string()
                .contains("several signed loaders")
        );
    }
}
