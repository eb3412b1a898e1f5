// SPDX-License-Identifier: MIT OR Apache-2.0
//! Judges what is left out of an image: modules of the kernel, and files.
//!
//! What nobody can know before the packages are there is left to the build, which proves that required modules exist.

use super::is_package;
use super::judge::Judge;
use super::raw::{Modules, Trim};

/// Where the kernel has modules that appliances need, below `/lib/modules/VERSION/kernel`.
const MODULE_FOLDERS: &[(&str, &str)] = &[
    ("ahci", "drivers/ata"),
    ("ata_piix", "drivers/ata"),
    ("btrfs", "fs/btrfs"),
    ("dm_mod", "drivers/md"),
    ("e1000", "drivers/net/ethernet/intel/e1000"),
    ("e1000e", "drivers/net/ethernet/intel/e1000e"),
    ("ehci_pci", "drivers/usb/host"),
    ("ext4", "fs/ext4"),
    ("isofs", "fs/isofs"),
    ("loop", "drivers/block"),
    ("mptsas", "drivers/message/fusion"),
    ("mptscsih", "drivers/message/fusion"),
    ("mptspi", "drivers/message/fusion"),
    ("nls_ascii", "fs/nls"),
    ("nls_cp437", "fs/nls"),
    ("nvme", "drivers/nvme/host"),
    ("overlay", "fs/overlayfs"),
    ("reiserfs", "fs/reiserfs"),
    ("sd_mod", "drivers/scsi"),
    ("sg", "drivers/scsi"),
    ("squashfs", "fs/squashfs"),
    ("sr_mod", "drivers/scsi"),
    ("uas", "drivers/usb/storage"),
    ("uhci_hcd", "drivers/usb/host"),
    ("usb_storage", "drivers/usb/storage"),
    ("vfat", "fs/fat"),
    ("virtio_blk", "drivers/block"),
    ("virtio_net", "drivers/net"),
    ("virtio_pci", "drivers/virtio"),
    ("virtio_scsi", "drivers/scsi"),
    ("vmw_balloon", "drivers/misc"),
    ("vmw_pvscsi", "drivers/scsi"),
    ("vmw_vmci", "drivers/misc/vmw_vmci"),
    ("vmxnet3", "drivers/net/vmxnet3"),
    ("xfs", "fs/xfs"),
    ("xhci_pci", "drivers/usb/host"),
];

/// Files without which no image starts, is installed or listed; `0` stands for any version. Folders that are links into
/// `/usr` are named as well.
const NEEDED: &[&str] = &[
    "/bin/sh",
    "/boot/efi/EFI/centos/shimx64.efi",
    "/boot/initrd.img-0",
    "/boot/vmlinuz-0",
    "/etc/group",
    "/etc/passwd",
    "/etc/shadow",
    "/lib/modules/0/kernel/fs",
    "/lib/systemd/systemd",
    "/lib64/ld-linux-x86-64.so.2",
    "/sbin/init",
    "/usr/bin/sh",
    "/usr/lib/grub/i386-pc/boot_hybrid.img",
    "/usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed",
    "/usr/lib/modules/0/kernel/fs",
    "/usr/lib/modules/0/modules.dep",
    "/usr/lib/shim/mmx64.efi.signed",
    "/usr/lib/shim/shimx64.efi.signed",
    "/usr/lib/systemd/system/sysinit.target",
    "/usr/lib/systemd/systemd",
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib64/ld-linux-x86-64.so.2",
    "/usr/sbin/init",
    "/usr/sbin/mt-installer",
    "/var/lib/dpkg/status",
];

/// Judges the lists of kernel modules.
pub fn modules(judge: &mut Judge, modules: &Modules) {
    for (list, names) in [("required", &modules.required), ("initramfs", &modules.initramfs)] {
        for (index, name) in names.iter().enumerate() {
            judge.ensure(is_package(name), format!("modules.{list}.{index}"), || {
                format!("{name:?} is no module name")
            });
        }
    }
    for (index, name) in modules.initramfs.iter().enumerate() {
        judge.ensure(
            modules.required.contains(name),
            format!("modules.initramfs.{index}"),
            || format!("{name} is not among modules.required, so it could be trimmed"),
        );
    }
    for (list, folders) in [("drop", &modules.drop), ("keep", &modules.keep)] {
        for (index, folder) in folders.iter().enumerate() {
            judge.ensure(
                folder.split('/').all(is_step),
                format!("modules.{list}.{index}"),
                || {
                    format!(
                        "{folder:?} is no folder below /lib/modules/VERSION/kernel: expected such as \"drivers/media\""
                    )
                },
            );
        }
    }
    let within = |inner: &str, folder: &str| {
        let rest = inner.strip_prefix(folder);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    for (index, folder) in modules.drop.iter().enumerate() {
        let needed = modules.required.iter().find_map(|name| {
            let plain = name.replace('-', "_");
            let (_, place) = MODULE_FOLDERS.iter().find(|(known, _)| *known == plain)?;
            let kept = modules.keep.iter().any(|keep| within(place, keep));
            (within(place, folder) && !kept).then_some((name, place))
        });
        if let Some((name, place)) = needed {
            judge.fault(
                format!("modules.drop.{index}"),
                format!(
                    "{folder} holds {name}, which modules.required names: keep {place} with modules.keep"
                ),
            );
        }
    }
}

/// A step of a path that leads on: neither empty nor one that stays or goes back.
fn is_step(part: &str) -> bool {
    !part.is_empty() && part != "." && part != ".." && !part.contains('\0')
}

/// Judges the paths that are left out.
pub fn trim(judge: &mut Judge, trim: &Trim) {
    for (index, path) in trim.paths.iter().enumerate() {
        let place = format!("trim.paths.{index}");
        let steps = path.strip_prefix('/').unwrap_or_default();
        let folder = steps.rsplit_once('/').map_or("", |(folder, _)| folder);
        if !steps.split('/').all(is_step) {
            judge.fault(
                place,
                format!("{path:?} is no absolute path within the root file system"),
            );
        } else if steps.matches('*').count() > 1 || folder.contains('*') {
            judge.fault(
                place,
                format!("{path:?} matches nothing: one \"*\" may stand in the last part only"),
            );
        } else if let Some(needed) = NEEDED.iter().find(|needed| takes(path, needed)) {
            judge.fault(
                place,
                format!("{path:?} would take away {needed}, without which no image starts or is made"),
            );
        }
    }
}

/// Whether a pattern names a path or a folder above it.
fn takes(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    pattern.len() <= path.len()
        && pattern
            .iter()
            .zip(&path)
            .all(|(wanted, found)| match wanted.split_once('*') {
                Some((start, end)) => {
                    found.len() >= start.len() + end.len() && found.starts_with(start) && found.ends_with(end)
                }
                None => wanted == found,
            })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of_trim(path: &str) -> usize {
        let mut judge = Judge::default();
        let paths = vec![path.to_owned()];
        trim(&mut judge, &Trim { paths });
        judge.into_faults().len()
    }

    #[test]
    fn what_an_image_starts_from_is_not_trimmed() {
        for path in [
            "/",
            "//",
            "/.",
            "/..",
            "/boot",
            "/boot/",
            "/boot/*",
            "/boot/vmlinuz*",
            "/usr",
            "/usr/lib",
            "/usr/lib/*",
            "/bin",
            "/lib64",
            "/etc",
            "/e*",
            "/usr/lib/shim",
            "/usr/lib/grub/i386-pc",
            "/usr/lib/modules",
            "/usr/*/systemd",
            "/usr/**",
            "boot",
            "",
            "/usr/../boot",
        ] {
            assert_eq!(faults_of_trim(path), 1, "{path}");
        }
        for path in [
            "/usr/share/doc",
            "/boot/System.map-*",
            "/etc/passwd-",
            "/opt",
            "/usr/lib/python3*",
        ] {
            assert_eq!(faults_of_trim(path), 0, "{path}");
        }
    }

    fn faults_of_modules(drop: &[&str], keep: &[&str]) -> Vec<String> {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let lists = Modules {
            required: own(&["xfs", "usb-storage", "unheard-of"]),
            initramfs: own(&["xfs"]),
            drop: own(drop),
            keep: own(keep),
        };
        let mut judge = Judge::default();
        modules(&mut judge, &lists);
        judge.into_faults().into_iter().map(|(place, _)| place).collect()
    }

    #[test]
    fn folders_of_required_modules_are_not_dropped_unless_they_are_kept() {
        assert_eq!(faults_of_modules(&["fs"], &[]), ["modules.drop.0"]);
        assert_eq!(faults_of_modules(&["sound", "fs/xfs"], &[]), ["modules.drop.1"]);
        assert_eq!(faults_of_modules(&["drivers/usb"], &[]), ["modules.drop.0"]);
        assert!(faults_of_modules(&["fs", "drivers/usb"], &["fs/xfs", "drivers/usb/storage"]).is_empty());
        assert!(faults_of_modules(&["fs/xfsx", "fs/ext2"], &[]).is_empty());
    }

    #[test]
    fn folders_that_are_none_are_refused() {
        for folder in ["", ".", "..", "/", "/fs", "fs/", "fs//xfs", "a/./b", "a/../b"] {
            assert_eq!(faults_of_modules(&[folder], &[]), ["modules.drop.0"], "{folder}");
            assert_eq!(faults_of_modules(&[], &[folder]), ["modules.keep.0"], "{folder}");
        }
    }
}
