// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the CentOS family calls things, release by release, and what it does not have. Pure.
//!
//! A spec may name packages as Debian does, so that both specs can be read side by side; [`select`] turns the names into
//! the family's own, and holds them against what the repositories offer.

use std::collections::BTreeSet;

use crate::error::{Error, Kind, Result};

/// A release that can be installed from a Debian host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// Its number.
    pub number: u32,
    /// Where its rpm keeps the database of installed packages.
    pub database: &'static str,
    /// Why it has no ReiserFS, where it has none.
    pub without_reiserfs: Option<&'static str>,
}

/// Finds a release by its number.
///
/// # Errors
/// It is not known, or too old for the rpm of the build host.
pub fn release(number: &str) -> Result<Release> {
    match number {
        "9" => Ok(Release {
            number: 9,
            database: "/var/lib/rpm",
            without_reiserfs: None,
        }),
        "10" => Ok(Release {
            number: 10,
            database: "/usr/lib/sysimage/rpm",
            without_reiserfs: Some("ELRepo makes no kmod-reiserfs for release 10"),
        }),
        // Their rpm reads Berkeley DB only, and rpm 4.18 of the build host writes SQLite only.
        "6" | "7" | "8" => Err(Error::new(
            Kind::Config,
            format!(
                "release {number} of the CentOS family cannot be installed from here: its rpm cannot read the package \
                 database that this host's rpm writes"
            ),
        )
        .hint("use rootfs.release 9 or 10")),
        _ => Err(Error::new(
            Kind::Config,
            format!("rootfs.release is {number:?}: of the CentOS family 9 and 10 are known"),
        )
        .hint("give the number of the major release alone, such as \"9\"")),
    }
}

/// Packages that make up ReiserFS; both are ELRepo's.
const REISERFS: [&str; 2] = ["kmod-reiserfs", "reiserfs-utils"];

/// Debian's names and the family's, where they differ.
const NAMES: &[(&str, &str)] = &[
    ("cryptsetup-bin", "cryptsetup"),
    ("dbus", "dbus-broker"),
    ("fdisk", "util-linux"),
    ("grub-efi-amd64-bin", "grub2-efi-x64-modules"),
    ("grub-efi-amd64-signed", "grub2-efi-x64"),
    ("grub-pc-bin", "grub2-pc-modules"),
    ("grub2-common", "grub2-tools"),
    ("initramfs-tools", "dracut"),
    ("iproute2", "iproute"),
    ("iputils-ping", "iputils"),
    ("linux-image-amd64", "kernel"),
    ("live-boot", "dracut-live"),
    ("multipath-tools", "device-mapper-multipath"),
    ("reiserfsprogs", "reiserfs-utils"),
    ("sg3-utils", "sg3_utils"),
    ("shim-signed", "shim-x64"),
    ("systemd-sysv", "systemd"),
    ("udev", "systemd-udev"),
    ("vim-tiny", "vim-minimal"),
];

/// What the family does not have, and why.
const NOTHING: &[(&str, &str)] = &[
    ("btrfs-progs", "the family's kernels have no btrfs"),
    ("busybox", "the initramfs is dracut's, which brings what it needs"),
];

/// The family's name of a package, or why there is none.
///
/// # Errors
/// The reason, for the operator.
pub fn translate<'a>(name: &'a str, release: &Release) -> std::result::Result<&'a str, &'static str> {
    // kdump became a package of its own with release 10, and makedumpfile moved out of kexec-tools then.
    match (name, release.number) {
        ("kdump-tools", 10) => return Ok("kdump-utils"),
        ("kdump-tools" | "makedumpfile", 9) => return Ok("kexec-tools"),
        _ => {}
    }
    if let Some((_, reason)) = NOTHING.iter().find(|(debian, _)| *debian == name) {
        return Err(reason);
    }
    let known = NAMES.iter().find(|(debian, _)| *debian == name);
    Ok(known.map_or(name, |(_, family)| family))
}

/// What to install, and what the operator should know of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Packages, in the order of the spec, each once.
    pub install: Vec<String>,
    /// One sentence each.
    pub notes: Vec<String>,
    /// Whether ReiserFS's module is among the packages.
    pub reiserfs: bool,
}

/// Chooses the packages.
///
/// `offered` are the names that the repositories offer, `repositories` the repositories' names for messages, and
/// `required_modules` those that the spec insists on.
///
/// # Errors
/// A package is offered by none of the repositories; or the spec requires the module reiserfs, which cannot be had.
pub fn select(
    wanted: &[String],
    release: &Release,
    offered: &BTreeSet<&str>,
    repositories: &[&str],
    required_modules: &[String],
) -> Result<Selection> {
    let mut selection = Selection::default();
    let (mut missing, mut wants_reiserfs) = (Vec::new(), false);
    for name in wanted {
        let family = match translate(name, release) {
            Ok(family) => family,
            Err(reason) => {
                selection.notes.push(format!("{name} is left out: {reason}"));
                continue;
            }
        };
        if REISERFS.contains(&family) {
            wants_reiserfs = true;
        } else if !offered.contains(family) {
            missing.push(if family == name {
                name.clone()
            } else {
                format!("{family} (for {name})")
            });
        } else if !selection.install.iter().any(|known| known == family) {
            selection.install.push(family.to_owned());
        }
    }
    if !missing.is_empty() {
        let text = format!(
            "the image spec asks for {}, which none of its repositories offers ({})",
            missing.join(", "),
            repositories.join(", ")
        );
        return Err(Error::new(Kind::Config, text)
            .hint("correct rootfs.packages, or add the repository that has it to rootfs.repositories"));
    }
    let requires_reiserfs = required_modules.iter().any(|module| module == "reiserfs");
    if wants_reiserfs || requires_reiserfs {
        match reiserfs(release, offered) {
            Ok(()) => {
                selection.install.extend(REISERFS.map(str::to_owned));
                selection.reiserfs = true;
            }
            Err(reason) if requires_reiserfs => {
                return Err(Error::new(
                    Kind::Config,
                    format!("modules.required names reiserfs, which is not to be had: {reason}"),
                )
                .hint("take it out of modules.required, or build the debian image"));
            }
            Err(reason) => selection.notes.push(without_reiserfs(&reason)),
        }
    }
    Ok(selection)
}

/// What an image without ReiserFS means to its user.
#[must_use]
pub fn without_reiserfs(reason: &str) -> String {
    format!(
        "ReiserFS is not available in this image: {reason}; machines with ReiserFS come home to the debian image"
    )
}

fn reiserfs(release: &Release, offered: &BTreeSet<&str>) -> std::result::Result<(), String> {
    if let Some(reason) = release.without_reiserfs {
        return Err(reason.to_owned());
    }
    let missing: Vec<&str> = REISERFS
        .into_iter()
        .filter(|name| !offered.contains(name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "no repository that could be read offers {} (ELRepo makes them for release {})",
        missing.join(" and "),
        release.number
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn choose(wanted: &str, number: &str, offered: &str, required: &str) -> Result<Selection> {
        let offered = words(offered);
        let offered: BTreeSet<&str> = offered.iter().map(String::as_str).collect();
        select(
            &words(wanted),
            &release(number).unwrap(),
            &offered,
            &["baseos", "elrepo"],
            &words(required),
        )
    }

    #[test]
    fn debian_names_become_the_family_s() {
        let found = choose(
            "linux-image-amd64 sg3-utils kdump-tools kexec-tools makedumpfile btrfs-progs rsync",
            "9",
            "kernel sg3_utils kexec-tools rsync",
            "",
        )
        .unwrap();
        assert_eq!(found.install, ["kernel", "sg3_utils", "kexec-tools", "rsync"]);
        assert_eq!(found.notes.len(), 1);
        assert!(found.notes[0].contains("no btrfs"), "{:?}", found.notes);
        let ten = choose("kdump-tools makedumpfile", "10", "kdump-utils makedumpfile", "").unwrap();
        assert_eq!(ten.install, ["kdump-utils", "makedumpfile"]);
    }

    #[test]
    fn a_package_that_nobody_offers_is_named() {
        let error = choose("rsync no-such sg3-utils", "9", "rsync", "").unwrap_err();
        assert_eq!(error.kind, Kind::Config);
        let said = error.to_string();
        assert!(
            said.contains("no-such") && said.contains("sg3_utils (for sg3-utils)") && said.contains("baseos"),
            "{said}"
        );
    }

    #[test]
    fn reiserfs_is_taken_where_it_exists_and_missed_aloud() {
        let wanted = "rsync kmod-reiserfs reiserfsprogs";
        let found = choose(wanted, "9", "rsync kmod-reiserfs reiserfs-utils", "reiserfs").unwrap();
        assert!(found.reiserfs && found.notes.is_empty());
        assert_eq!(found.install, ["rsync", "kmod-reiserfs", "reiserfs-utils"]);

        let found = choose(wanted, "9", "rsync", "").unwrap();
        assert!(!found.reiserfs);
        assert!(
            found.notes[0].contains("ReiserFS is not available") && found.notes[0].contains("kmod-reiserfs"),
            "{:?}",
            found.notes
        );
        let found = choose(wanted, "10", "rsync kmod-reiserfs reiserfs-utils", "").unwrap();
        assert_eq!(found.install, ["rsync"]);
        assert!(
            found.notes[0].contains("no kmod-reiserfs for release 10"),
            "{:?}",
            found.notes
        );
        let error = choose("rsync", "10", "rsync", "reiserfs").unwrap_err();
        assert!(
            error.to_string().contains("modules.required names reiserfs"),
            "{error}"
        );
    }

    #[test]
    fn unknown_releases_are_refused() {
        assert!(release("8").unwrap_err().to_string().contains("package database"));
        assert!(release("9-stream").is_err() && release("").is_err());
    }
}
