// SPDX-License-Identifier: MIT OR Apache-2.0
//! What starts the appliance: one disk that boots under BIOS, UEFI, and UEFI with Secure Boot.
//!
//! | firmware | path to the kernel |
//! |---|---|
//! | BIOS | boot code in sector 0 -> GRUB in the BIOS boot partition -> menu on `/` |
//! | UEFI | signed shim `EFI/BOOT/BOOTX64.EFI` -> signed GRUB -> `EFI/FOLDER/grub.cfg` -> the same menu on `/` |
//!
//! FOLDER is `debian`, or what the payload says in `/usr/lib/master-target/efi-folder`: each distribution's GRUB has its own.
//!
//! GRUB takes the disk it was itself loaded from and no other: under BIOS its prefix names a partition without a disk,
//! which it completes with the drive the BIOS started; under UEFI it cuts the partition off the device it was loaded
//! from. It never searches for an UUID or a label, which a guest's disk may carry too.
//!
//! The kernel does not know which disk GRUB came from. It is told the SCSI ID of that disk (`mt.disk=`) and the
//! partition's UUID (`mt.root=`); `scripts/local-block/mt-system` in the initramfs finds the one disk with both. An
//! image does not know its SCSI ID before it was started once; [`bind`] records it.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use uuid::Uuid;

use crate::command::Program;
use crate::error::{Error, Kind, Result, shown};
use crate::plan::{Plan, PlannedPartition};
use crate::renew;

/// File of the menu. Not `grub.cfg`: that one belongs to update-grub, which searches by UUID.
pub const MENU: &str = "boot/grub/master-target.cfg";
/// File with the SCSI ID of the system's disk.
pub const DISK_ID: &str = "boot/grub/mt-disk.cfg";
/// Everything GRUB needs under BIOS, so that it loads no module from a disk.
const BIOS_MODULES: &[&str] = &[
    "biosdisk",
    "part_gpt",
    "ext2",
    "normal",
    "configfile",
    "linux",
    "serial",
    "terminal",
    "all_video",
    "echo",
    "test",
    "true",
    "reboot",
    "halt",
    "ls",
    "cat",
    "minicmd",
    "sleep",
    "regexp",
];
/// Sector size of GRUB's structures.
const SECTOR: usize = 512;
/// In boot.img: sector of the core image (8 bytes), and the jump that trusts the BIOS's drive number (2 bytes).
const KERNEL_SECTOR: usize = 0x5c;
const DRIVE_CHECK: usize = 0x66;
/// Boot code ends where the disk signature and the table of the protective MBR begin.
const BOOT_CODE_END: usize = 440;
/// In the core image's first sector: where its rest begins (8 bytes), in sectors.
const BLOCK_LIST: usize = SECTOR - 12;

/// Serial number of a FAT32 volume in its first sector, and where the copy of that sector is.
pub(crate) const FAT_SERIAL: u64 = 0x43;
pub(crate) const FAT_BACKUP: u64 = 6 * 512;

/// Signed files, and what they are called in both folders of the EFI system partition, that of the firmware first.
const ESP_FILES: [(&str, [&str; 2]); 3] = [
    ("usr/lib/shim/shimx64.efi.signed", ["BOOTX64.EFI", "shimx64.efi"]),
    ("usr/lib/shim/mmx64.efi.signed", ["mmx64.efi", "mmx64.efi"]),
    (
        "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
        ["grubx64.efi", "grubx64.efi"],
    ),
];
/// File of the system with the name of the folder in which its signed GRUB looks for its menu, where that is not Debian's.
const EFI_FOLDER: &str = "usr/lib/master-target/efi-folder";

/// What the menu says.
#[derive(Debug, Clone)]
pub struct Menu<'a> {
    /// UUID of the root partition in the partition table.
    pub root: Uuid,
    /// More arguments for the kernel.
    pub arguments: &'a str,
    /// Seconds that the menu waits.
    pub seconds: u32,
    /// Version of the appliance.
    pub version: &'a str,
}

impl Menu<'_> {
    /// Text of the menu.
    #[must_use]
    pub fn text(&self) -> String {
        let Self {
            root,
            arguments,
            seconds,
            version,
        } = self;
        let common = format!(
            "root=/dev/mt-system/root ro rootfstype=ext4 mt.root={root} mt.disk=$mt_disk systemd.gpt_auto=0 \
             no_timer_check crashkernel=2G-:256M console=tty0 console=ttyS0,115200"
        );
        let entry = |title: &str, id: &str, kernel: &str, more: &str| {
            format!(
                "menuentry \"{title}\" --id {id} {{\n    linux /{kernel} {}\n    initrd /{}\n}}\n",
                format!("{common} {more}").trim_end(),
                kernel.replace("vmlinuz", "initrd.img")
            )
        };
        let quiet = format!("quiet loglevel=4 {arguments}");
        [
            "# Made by the installer. update-grub does not touch this file; it would search for UUIDs, which the disk of a\n\
             # guest may carry too.\n",
            "set mt_disk=\nif [ -f $prefix/mt-disk.cfg ]; then\n    source $prefix/mt-disk.cfg\nfi\n",
            "if serial --unit=0 --speed=115200; then\n    terminal_input console serial\n    terminal_output console serial\nfi\n",
            &format!("set timeout={seconds}\nset default=normal\n"),
            &entry(&format!("Master target {version}"), "normal", "vmlinuz", quiet.trim_end()),
            &entry("The kernel before the last update", "old", "vmlinuz.old", arguments),
            &entry("Rescue shell", "rescue", "vmlinuz", "systemd.unit=rescue.target systemd.setenv=SYSTEMD_SULOGIN_FORCE=1"),
        ]
        .concat()
    }
}

/// The line that GRUB reads the SCSI ID from.
#[must_use]
pub fn disk_id_text(scsi_id: Option<&str>) -> String {
    format!("set mt_disk={}\n", scsi_id.unwrap_or_default())
}

/// What GRUB reads on the EFI system partition.
#[must_use]
pub fn esp_config(root_number: u32) -> String {
    format!(
        "# Made by the installer. The disk is the one that this file was read from.\n\
         regexp --set=1:mt_boot_disk '^([^,]*),' $root\n\
         set root=$mt_boot_disk,gpt{root_number}\n\
         set prefix=($root)/boot/grub\n\
         configfile $prefix/master-target.cfg\n"
    )
}

/// Files of the boot loader, made and waiting to be written.
#[derive(Debug)]
pub struct BootFiles {
    /// GRUB for the BIOS boot partition.
    pub core: Vec<u8>,
    /// Boot code of the first sector: 440 bytes.
    pub boot_code: Vec<u8>,
    /// The EFI system partition.
    pub esp: PathBuf,
}

/// Writes the menu into the new root file system, makes sure that it leads to a kernel, and makes GRUB's images.
///
/// # Errors
/// The payload lacks a kernel or a loader, or a program failed.
pub fn prepare(
    root: &Path,
    plan: &Plan,
    menu: &Menu<'_>,
    scsi_id: Option<&str>,
    esp_id: Uuid,
    time: u64,
    scratch: &Path,
) -> Result<BootFiles> {
    let lacks = |what: &str| Error::new(Kind::Unexpected, format!("the plan has no {what}"));
    let role = |role: crate::answers::Role| plan.with_role(&role);
    let bios = role(crate::answers::Role::BiosBoot).ok_or_else(|| lacks("BIOS boot partition"))?;
    let esp = role(crate::answers::Role::Esp).ok_or_else(|| lacks("EFI system partition"))?;
    let system = plan.mounted_at("/").ok_or_else(|| lacks("root partition"))?;
    link_kernel(root)?;
    write(root, MENU, &menu.text())?;
    write(root, DISK_ID, &disk_id_text(scsi_id))?;
    if plan.disk.is_none() {
        write(root, renew::MARK, renew::MARK_TEXT)?;
    }
    Ok(BootFiles {
        core: core_image(root, system.number, bios)?,
        boot_code: boot_code(root, bios)?,
        esp: make_esp(root, system.number, esp, esp_id, time, scratch)?,
    })
}

fn write(root: &Path, name: &str, text: &str) -> Result<()> {
    let path = root.join(name);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    }
    fs::write(&path, text).map_err(|error| Error::io("write", &path, error))
}

/// `/vmlinuz` and `/initrd.img`, which Debian's packages keep at the newest kernel, and those before.
fn link_kernel(root: &Path) -> Result<()> {
    let boot = root.join("boot");
    let mut kernels = Vec::new();
    for entry in fs::read_dir(&boot).map_err(|error| Error::io("list", &boot, error))? {
        let name = entry
            .map_err(|error| Error::io("list", &boot, error))?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if let Some(version) = name.strip_prefix("vmlinuz-") {
            kernels.push(version.to_owned());
        }
    }
    let [version] = kernels.as_slice() else {
        return Err(Error::new(
            Kind::Faults,
            format!("the payload has {} kernels in /boot, expected one", kernels.len()),
        ));
    };
    if !boot.join(format!("initrd.img-{version}")).is_file() {
        return Err(Error::new(
            Kind::Faults,
            format!("the payload has no /boot/initrd.img-{version}"),
        ));
    }
    for name in ["vmlinuz", "initrd.img"] {
        for ending in ["", ".old"] {
            let link = root.join(format!("{name}{ending}"));
            match fs::remove_file(&link) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("replace", &link, error));
                }
                _ => {}
            }
            std::os::unix::fs::symlink(format!("boot/{name}-{version}"), &link)
                .map_err(|error| Error::io("link", &link, error))?;
        }
    }
    Ok(())
}

/// GRUB for the BIOS boot partition, made by the new system's own grub-mkimage.
fn core_image(root: &Path, root_number: u32, place: &PlannedPartition) -> Result<Vec<u8>> {
    let [config, image] = ["tmp/mt-core.cfg", "tmp/mt-core.img"];
    write(root, config, "normal $prefix/master-target.cfg\n")?;
    Program::within(root, "grub-mkimage")
        .args(["-O", "i386-pc", "-p"])
        .arg(format!("(,gpt{root_number})/boot/grub"))
        .args(["-c", &format!("/{config}"), "-o", &format!("/{image}")])
        .args(BIOS_MODULES)
        .run()?;
    let path = root.join(image);
    let mut core = fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
    for name in [config, image] {
        let path = root.join(name);
        fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
    }
    if core.len() < 2 * SECTOR || core.len() as u64 > place.size {
        return Err(Error::new(
            Kind::Faults,
            format!(
                "GRUB for BIOS has {} bytes, the BIOS boot partition {}",
                core.len(),
                place.size
            ),
        ));
    }
    core[BLOCK_LIST..BLOCK_LIST + 8].copy_from_slice(&(sector(place.start) + 1).to_le_bytes());
    Ok(core)
}

/// Boot code that loads the core image from its partition, as grub-bios-setup would write it.
fn boot_code(root: &Path, place: &PlannedPartition) -> Result<Vec<u8>> {
    let path = root.join("usr/lib/grub/i386-pc/boot.img");
    let mut code = fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
    if code.len() != SECTOR {
        return Err(Error::new(
            Kind::Faults,
            format!("{} has {} bytes, expected {SECTOR}", shown(&path), code.len()),
        ));
    }
    code[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&sector(place.start).to_le_bytes());
    // Some BIOSes pass a wrong drive number for hard disks; without the jump GRUB takes only those that can be right.
    code[DRIVE_CHECK..DRIVE_CHECK + 2].copy_from_slice(&[0x90, 0x90]);
    code.truncate(BOOT_CODE_END);
    Ok(code)
}

fn sector(bytes: u64) -> u64 {
    bytes / SECTOR as u64
}

/// Name of the folder below `EFI/` that is the system's own.
fn efi_folder(root: &Path) -> Result<String> {
    let path = root.join(EFI_FOLDER);
    let name = match fs::read_to_string(&path) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "debian".to_owned(),
        Err(error) => return Err(Error::io("read", &path, error)),
    };
    let is_word = |name: &str| {
        name.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if name.is_empty() || name.eq_ignore_ascii_case("BOOT") || !is_word(&name) {
        let text = format!("{} names no folder of a distribution: {name:?}", shown(&path));
        return Err(Error::new(Kind::Faults, text).hint("build the medium anew"));
    }
    Ok(name)
}

/// The EFI system partition as a file, made without the kernel's help.
fn make_esp(
    root: &Path,
    root_number: u32,
    place: &PlannedPartition,
    id: Uuid,
    time: u64,
    scratch: &Path,
) -> Result<PathBuf> {
    let date = time.to_string();
    let image = "esp.img";
    let path = scratch.join(image);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("replace", &path, error));
        }
        _ => {}
    }
    Program::new("mkfs.vfat")
        .folder(scratch)
        .args(["-C", "-F", "32", "--invariant", "-n", "MT-ESP", image])
        .arg((place.size / 1024).to_string())
        .env("SOURCE_DATE_EPOCH", &date)
        .run()?;
    // --invariant fixes the time of the label, which nothing else does, and the serial number along with it.
    let file = fs::File::options()
        .write(true)
        .open(&path)
        .map_err(|error| Error::io("open", &path, error))?;
    for copy in [0, FAT_BACKUP] {
        file.write_all_at(&id.as_bytes()[..4], copy + FAT_SERIAL)
            .map_err(|error| Error::io("write", &path, error))?;
    }
    let own = efi_folder(root)?;
    Program::new("mmd")
        .folder(scratch)
        .args(["-i", image, "::/EFI", "::/EFI/BOOT", &format!("::/EFI/{own}")])
        .env("SOURCE_DATE_EPOCH", &date)
        .run()?;
    let config = scratch.join("esp-grub.cfg");
    fs::write(&config, esp_config(root_number)).map_err(|error| Error::io("write", &config, error))?;
    let mut files = Vec::new();
    for (index, folder) in ["BOOT", &own].into_iter().enumerate() {
        let signed = ESP_FILES.iter();
        files.extend(signed.map(|(from, names)| (root.join(from), format!("EFI/{folder}/{}", names[index]))));
    }
    files.push((config, format!("EFI/{own}/grub.cfg")));
    for (from, to) in files {
        // A copy with the time that mcopy -m then takes over.
        let dated = scratch.join("esp-file");
        fs::copy(&from, &dated).map_err(|error| Error::io("copy", &from, error))?;
        let file = fs::File::options()
            .write(true)
            .open(&dated)
            .map_err(|error| Error::io("open", &dated, error))?;
        file.set_modified(UNIX_EPOCH + Duration::from_secs(time))
            .map_err(|error| Error::io("set the time of", &dated, error))?;
        Program::new("mcopy")
            .folder(scratch)
            .args(["-m", "-i", image, "esp-file"])
            .arg(format!("::/{to}"))
            .env("SOURCE_DATE_EPOCH", &date)
            .run()?;
    }
    Ok(path)
}

/// Records the SCSI ID of the disk that the running system was started from, below `root`. Answers with the ID when it
/// was not recorded before.
///
/// # Errors
/// The system was not started by its own initramfs, or the file cannot be written.
pub fn bind(root: &Path) -> Result<Option<String>> {
    let found = root.join("run/mt-system/scsi-id");
    let id = match fs::read_to_string(&found) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::new(
                Kind::Refused,
                "this system was not started from a disk of the master target",
            )
            .hint("boot bind is for the installed appliance"));
        }
        Err(error) => return Err(Error::io("read", &found, error)),
    };
    if id.is_empty() {
        return Ok(None);
    }
    if !id
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'.')
    {
        return Err(Error::new(
            Kind::Unexpected,
            format!("{} holds no SCSI ID", shown(&found)),
        ));
    }
    let path = root.join(DISK_ID);
    let text = disk_id_text(Some(&id));
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(None);
    }
    // GRUB reads the file by name: it must be the old one or the new one after a power loss.
    crate::state::replace(&path, text.as_bytes())?;
    Ok(Some(id))
}
