// SPDX-License-Identifier: MIT OR Apache-2.0
//! The installation medium: one ISO that starts as CD and as disk under BIOS, and as CD under UEFI with Secure Boot.
//!
//! Everything that runs before the kernel comes from the distribution's signed packages in the root file system itself:
//! shim, GRUB, and GRUB's modules for BIOS. The signed GRUB looks for `/.disk/info` to find its medium and then for
//! `/boot/grub/grub.cfg`.
//!
//! | path on the medium | what |
//! |---|---|
//! | `/boot/vmlinuz`, `/boot/initrd.img` | kernel and initramfs |
//! | `/boot/grub/` | menu, modules for BIOS, El Torito image |
//! | `/mt/payload.squashfs` | the root file system, run live and unpacked by the installer |
//! | `/mt/payload.sha256` | its digest, also in the menu: what identifies the medium |
//! | `/mt/master-target-agent-VERSION.tar.gz` | the agent, unpacked by the installer |
//! | `/mt/SHA256SUMS` | digests of everything else, for the media check |
//! | `/mt/inst.ks` | answers, put in by `iso embed-ks` |
//!
//! Outside of all files lies the [`seal`], a digest of the medium as a whole.

pub mod embed;
pub mod seal;

use std::fs;
use std::path::{Path, PathBuf};

use crate::command::Program;
use crate::error::{Error, Result};
use crate::manifest::{Algorithm, Digester};
use crate::publish::Existing;

/// Programs of the build host that are needed.
pub const PROGRAMS: &[&str] = &["setpriv", "xorriso", "mkfs.vfat", "mmd", "mcopy"];
/// Volume label of the medium.
pub const LABEL: &str = "MASTER_TARGET";
// Names within the scratch folder, in which the programs run: some take part of a path for something else, such as
// mtools what follows "@@", and the scratch folder's own path is the operator's choice.
const TREE: &str = "tree";
const ESP: &str = "esp.img";
const HYBRID: &str = "hybrid.img";
const MADE: &str = "made.iso";
const ESP_KIB: u64 = 10_240;
/// What the CentOS family's signed GRUB reads beside itself. Debian's does not: it was built to look for the medium.
const ESP_MENU: &str = "search --no-floppy --file --set=root /mt/payload.sha256\n\
                        set prefix=($root)/boot/grub\n\
                        configfile $prefix/grub.cfg\n";
const ESP_TYPE: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";

/// What a medium is made of.
#[derive(Debug, Clone, Copy)]
pub struct IsoParts<'a> {
    /// Folder with `vmlinuz`, `initrd.img`, `payload.squashfs`, `payload.sha256`, and `boot/` with shim, GRUB and its
    /// modules.
    pub stage: &'a Path,
    /// The agent's tarball.
    pub agent_tarball: &'a Path,
    /// Scratch folder.
    pub scratch: &'a Path,
    /// Version shown in the menu.
    pub version: &'a str,
    /// Time of all files, in seconds since 1970.
    pub source_date: u64,
}

/// Digest of a file in hex.
///
/// # Errors
/// It cannot be read.
pub fn sha256_of(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).map_err(|error| Error::io("open", path, error))?;
    let mut digester = Digester::default();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut buffer).map_err(|error| Error::io("read", path, error))? {
            0 => return Ok(digester.finish().by(Algorithm::Sha256).to_owned()),
            count => digester.update(&buffer[..count]),
        }
    }
}

/// Makes the medium in the scratch folder and answers with its path.
///
/// # Errors
/// A program failed, or there is no space.
pub fn build(parts: &IsoParts<'_>) -> Result<PathBuf> {
    let tree = parts.scratch.join(TREE);
    let grub = tree.join("boot/grub");
    for folder in [tree.join(".disk"), tree.join("mt"), grub.clone()] {
        fs::create_dir_all(&folder).map_err(|error| Error::io("create", &folder, error))?;
    }
    let boot = parts.stage.join("boot");
    let copies = [
        (parts.stage.join("vmlinuz"), tree.join("boot/vmlinuz")),
        (parts.stage.join("initrd.img"), tree.join("boot/initrd.img")),
        (
            parts.stage.join("payload.squashfs"),
            tree.join("mt/payload.squashfs"),
        ),
        (
            parts.agent_tarball.to_owned(),
            tree.join("mt")
                .join(parts.agent_tarball.file_name().unwrap_or_default()),
        ),
        (boot.join("eltorito.img"), grub.join("eltorito.img")),
    ];
    for (from, to) in &copies {
        // Linked where that is possible: the payload is large.
        if fs::hard_link(from, to).is_err() {
            fs::copy(from, to).map_err(|error| Error::io("copy", from, error))?;
        }
    }
    // xorriso writes into this file (boot information), so it must not be the stage's own.
    fs::remove_file(grub.join("eltorito.img")).map_err(|error| Error::io("replace", &grub, error))?;
    fs::copy(boot.join("eltorito.img"), grub.join("eltorito.img"))
        .map_err(|error| Error::io("copy", &boot, error))?;
    copy_folder(&boot.join("i386-pc"), &grub.join("i386-pc"))?;
    let payload = sha256_of(&tree.join("mt/payload.squashfs"))?;
    let write = |name: &str, text: &str| {
        let path = tree.join(name);
        fs::write(&path, text).map_err(|error| Error::io("write", &path, error))
    };
    write("mt/payload.sha256", &format!("{payload}\n"))?;
    write(".disk/info", &format!("Master target {}\n", parts.version))?;
    write("boot/grub/grub.cfg", &menu(parts.version, &payload))?;
    // Everything but what is changed later: the loader by xorriso, which writes its own place into it.
    let mut names = Vec::new();
    list(&tree, "", &mut names)?;
    let mut sums = String::new();
    for name in names.iter().filter(|name| *name != "boot/grub/eltorito.img") {
        sums += &format!("{}  {name}\n", sha256_of(&tree.join(name))?);
    }
    write("mt/SHA256SUMS", &sums)?;
    make_esp(&boot, parts.scratch, parts.source_date)?;
    let hybrid = parts.scratch.join(HYBRID);
    fs::copy(boot.join("boot_hybrid.img"), &hybrid).map_err(|error| Error::io("copy", &boot, error))?;
    let date = iso_date(parts.source_date);
    Program::new("xorriso")
        .folder(parts.scratch)
        .args(["-as", "mkisofs", "-quiet", "-r", "-V", LABEL, "-o", MADE])
        .args([
            &format!("--modification-date={date}"),
            "--set_all_file_dates",
            &date,
        ])
        .args([
            "-b",
            "boot/grub/eltorito.img",
            "-no-emul-boot",
            "-boot-load-size",
            "4",
            "-boot-info-table",
        ])
        .args(["--grub2-boot-info", "--grub2-mbr", HYBRID])
        .args(["-partition_offset", "16", "-append_partition", "2", ESP_TYPE, ESP])
        .args([
            "-appended_part_as_gpt",
            "-eltorito-alt-boot",
            "-e",
            "--interval:appended_partition_2:all::",
            "-no-emul-boot",
        ])
        .arg(TREE)
        .env("SOURCE_DATE_EPOCH", parts.source_date.to_string())
        .tied()
        .run()?;
    let made = parts.scratch.join(MADE);
    seal::apply(&made)?;
    Ok(made)
}

/// Names of all files below a folder, sorted.
fn list(tree: &Path, inner: &str, names: &mut Vec<String>) -> Result<()> {
    let folder = tree.join(inner);
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).map_err(|error| Error::io("list", &folder, error))? {
        let entry = entry.map_err(|error| Error::io("list", &folder, error))?;
        found.push((
            entry.file_name().to_string_lossy().into_owned(),
            entry.path().is_dir(),
        ));
    }
    found.sort();
    for (name, is_folder) in found {
        let path = if inner.is_empty() {
            name
        } else {
            format!("{inner}/{name}")
        };
        if is_folder {
            list(tree, &path, names)?;
        } else {
            names.push(path);
        }
    }
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(|error| Error::io("create", to, error))?;
    for entry in fs::read_dir(from).map_err(|error| Error::io("list", from, error))? {
        let entry = entry.map_err(|error| Error::io("list", from, error))?;
        fs::copy(entry.path(), to.join(entry.file_name()))
            .map_err(|error| Error::io("copy", &entry.path(), error))?;
    }
    Ok(())
}

/// The EFI system partition: shim under the name that firmware starts, GRUB and the key manager beside it.
fn make_esp(boot: &Path, scratch: &Path, source_date: u64) -> Result<()> {
    let date = source_date.to_string();
    Program::new("mkfs.vfat")
        .folder(scratch)
        .args(["-C", "-i", "4d544553", "--invariant", "-n", "MTESP", ESP])
        .arg(ESP_KIB.to_string())
        .env("SOURCE_DATE_EPOCH", &date)
        .run()?;
    Program::new("mmd")
        .folder(scratch)
        .args(["-i", ESP, "::/EFI", "::/EFI/BOOT"])
        .env("SOURCE_DATE_EPOCH", &date)
        .run()?;
    let menu = scratch.join("esp-grub.cfg");
    fs::write(&menu, ESP_MENU).map_err(|error| Error::io("write", &menu, error))?;
    for (from, to) in [
        (boot.join("shimx64.efi.signed"), "BOOTX64.EFI"),
        (boot.join("gcdx64.efi.signed"), "grubx64.efi"),
        (boot.join("mmx64.efi.signed"), "mmx64.efi"),
        (menu, "grub.cfg"),
    ] {
        // A copy with the build's own time, which mcopy -m then takes over.
        let dated = scratch.join(to);
        fs::copy(&from, &dated).map_err(|error| Error::io("copy", &from, error))?;
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(source_date);
        let file = fs::File::options()
            .write(true)
            .open(&dated)
            .map_err(|error| Error::io("open", &dated, error))?;
        file.set_modified(time)
            .map_err(|error| Error::io("set the time of", &dated, error))?;
        Program::new("mcopy")
            .folder(scratch)
            .args(["-m", "-i", ESP, to])
            .arg(format!("::/EFI/BOOT/{to}"))
            .env("SOURCE_DATE_EPOCH", &date)
            .run()?;
    }
    Ok(())
}

/// The boot menu. Answers on the medium make the unattended entry the default.
fn menu(version: &str, payload: &str) -> String {
    // no_timer_check: on a busy host the timer of a virtual machine may be late, which the kernel takes for broken.
    let common = format!(
        "boot=mtlive mt.label={LABEL} mt.payload={payload} systemd.gpt_auto=0 no_timer_check systemd.mask=kdump-tools.service quiet loglevel=3 console=tty0 console=ttyS0,115200"
    );
    // A letter starts an entry too: some consoles pass no arrow keys. GRUB itself takes "c" and "e".
    let entry = |title: &str, id: &str, key: char, arguments: &str| {
        format!(
            "menuentry \"{title}\" --id {id} --hotkey={key} {{\n    linux /boot/vmlinuz {common} {arguments}\n    initrd /boot/initrd.img\n}}\n"
        )
    };
    [
        "# The serial console beside the screen; without a serial port the second half does nothing.\n",
        "if serial --unit=0 --speed=115200; then\n    terminal_input console serial\n    terminal_output console serial\nfi\n",
        "set timeout=10\nset default=install\nif [ -f /mt/inst.ks ]; then\n    set default=unattended\nfi\n",
        &entry(&format!("Install the master target {version}"), "install", 'i', "systemd.unit=mt-live.target mt.mode=install"),
        &entry("Install unattended (inst.ks=, the medium, or a volume labelled OEMDRV)", "unattended", 'u', "systemd.unit=mt-live.target mt.mode=unattended"),
        &entry("Rescue shell", "rescue", 'r', "mt.mode=rescue systemd.unit=rescue.target systemd.setenv=SYSTEMD_SULOGIN_FORCE=1"),
        &entry("Check this medium", "check", 'm', "mt.mode=check"),
    ]
    .concat()
}

/// Seconds since 1970 as `YYYYMMDDhhmmsscc`, which is what ISO 9660 has.
pub(crate) fn iso_date(seconds: u64) -> String {
    // Days to date by the usual calculation with years that begin in March (proleptic Gregorian calendar).
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}{month:02}{day:02}{:02}{:02}{:02}00",
        rest / 3_600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Gives a finished file its final name.
///
/// # Errors
/// Syncing or renaming failed, or the name was taken meanwhile.
pub fn publish(made: &Path, target: &Path, existing: Existing) -> Result<()> {
    let file = fs::File::open(made).map_err(|error| Error::io("open", made, error))?;
    file.sync_all()
        .map_err(|error| Error::io("write out", made, error))?;
    let done = match existing {
        // A link fails where a rename would replace.
        Existing::Keep => fs::hard_link(made, target),
        Existing::Replace => fs::rename(made, target),
    };
    done.map_err(|error| Error::io("name the new file", target, error))?;
    let folder = crate::publish::folder_of(target);
    let folder_file = fs::File::open(folder).map_err(|error| Error::io("open", folder, error))?;
    folder_file
        .sync_all()
        .map_err(|error| Error::io("write out", folder, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_iso_9660() {
        assert_eq!(iso_date(0), "1970010100000000");
        assert_eq!(iso_date(951_782_400), "2000022900000000");
        assert_eq!(iso_date(1_767_225_600), "2026010100000000");
        assert_eq!(iso_date(1_767_225_599), "2025123123595900");
    }

    #[test]
    fn every_entry_of_the_menu_names_the_payload() {
        let text = menu("1.2", &"ab".repeat(32));
        assert_eq!(text.matches("menuentry ").count(), 4);
        assert_eq!(
            text.matches(&format!("mt.payload={}", "ab".repeat(32))).count(),
            4
        );
        assert_eq!(text.matches("console=ttyS0,115200").count(), 4);
        let mut keys: Vec<&str> = text
            .split("--hotkey=")
            .skip(1)
            .filter_map(|rest| rest.get(..1))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 4, "each entry has a key of its own");
        assert!(!keys.contains(&"c") && !keys.contains(&"e"), "these are GRUB's");
    }
}
