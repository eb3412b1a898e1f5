// SPDX-License-Identifier: MIT OR Apache-2.0
//! Starts the installation medium in virtual machines and reads the serial console.
//!
//! `MT_ISO` names the medium: `scripts/test` builds one for all tests. Without hardware virtualisation a start takes a
//! minute or two, so each machine here shows as much as it can.
//!
//! The machines look like VMware's: PVSCSI, VMXNET3 and its manufacturer in SMBIOS. A disk with known bytes is
//! attached to each, and must be the same afterwards: a medium that only shows a screen writes nowhere.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;
#[path = "common/vm.rs"]
mod vm;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::text;
use vm::{Firmware, Restart, Vm, scratch};

const FIRST_SCREEN: &str = "Press Enter to restart.";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    BiosCd,
    BiosDisk,
    UefiCd,
    SecureBootCd,
}

/// The medium all tests share; where there is none, or a program is missing, the skip is noted.
fn medium(programs: &[&str]) -> Option<PathBuf> {
    let Some(path) = std::env::var_os("MT_ISO") else {
        common::skip_here("MT_ISO names no installation medium; scripts/test builds one");
        return None;
    };
    let there = common::require(&[&["qemu-system-x86_64"], programs].concat());
    there.then(|| PathBuf::from(path))
}

/// A machine with the medium and a guest's disk.
struct Machine {
    vm: Vm,
    folder: tempfile::TempDir,
}

impl Machine {
    fn start(iso: &Path, start: Start, restart: Restart, extra: &[&str]) -> Self {
        let folder = scratch();
        let disk = folder.path().join("disk.img");
        fs::write(&disk, b"a guest's disk").unwrap();
        fs::File::options()
            .write(true)
            .open(&disk)
            .unwrap()
            .set_len(256 << 20)
            .unwrap();
        let (disk, iso) = (disk.display(), iso.display());
        let (firmware, medium) = match start {
            Start::BiosCd => (
                Firmware::Bios,
                format!("-boot d -drive file={iso},if=ide,media=cdrom,readonly=on"),
            ),
            Start::BiosDisk => (
                Firmware::Bios,
                format!(
                    "-device ahci,id=a0 -device ide-hd,drive=i0,bus=a0.0,bootindex=0 \
                     -drive file={iso},if=none,id=i0,format=raw,snapshot=on"
                ),
            ),
            Start::UefiCd | Start::SecureBootCd => (
                if start == Start::UefiCd {
                    Firmware::Uefi
                } else {
                    Firmware::SecureBoot
                },
                format!(
                    "-device ide-cd,drive=i0,bootindex=0 -drive file={iso},if=none,id=i0,media=cdrom,readonly=on"
                ),
            ),
        };
        let mut more: Vec<String> = medium.split(' ').map(str::to_owned).collect();
        more.extend(["-device", "pvscsi,id=s0", "-drive"].map(str::to_owned));
        more.push(format!("file={disk},if=none,id=d0,format=raw"));
        more.push("-device".to_owned());
        more.push(
            "scsi-hd,drive=d0,bus=s0.0,wwn=0x6000c29000000001,vendor=VMware,product=Virtual disk".to_owned(),
        );
        more.extend(extra.iter().map(|word| (*word).to_owned()));
        let vm = Vm::start(folder.path(), firmware, restart, &more);
        Self { vm, folder }
    }

    /// Waits for the boot menu and presses an entry's letter.
    fn choose(&mut self, letter: &str) {
        // A key that comes early waits in the serial port.
        self.vm.wait_for("Check this medium");
        self.vm.press(letter);
    }

    /// Waits for the first screen, and returns it.
    fn first_screen(&mut self) -> String {
        let all = self.vm.wait_for(FIRST_SCREEN);
        all[all.find("- installer").expect("the first screen's heading")..].to_owned()
    }

    fn disk_is_untouched(&self) {
        let mut disk = fs::File::open(self.folder.path().join("disk.img")).unwrap();
        let mut buffer = vec![0u8; 1 << 20];
        disk.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer[..14], b"a guest's disk");
        assert!(buffer[14..].iter().all(|byte| *byte == 0));
        while let Ok(count @ 1..) = disk.read(&mut buffer) {
            assert!(
                buffer[..count].iter().all(|byte| *byte == 0),
                "the guest's disk was written to"
            );
        }
    }
}

fn assert_first_screen(screen: &str, firmware: &str) {
    assert!(screen.contains(&format!("firmware  {firmware}\r\n")), "{screen}");
    assert!(screen.contains("mode      install\r\n"), "{screen}");
    assert!(screen.contains("payload   good, SHA-256 "), "{screen}");
    assert!(screen.contains("answers   none\r\n"), "{screen}");
}

#[test]
fn vm_bios_cd_passes_its_media_check_and_reaches_the_first_screen() {
    let Some(iso) = medium(&[]) else {
        return;
    };
    let mut machine = Machine::start(&iso, Start::BiosCd, Restart::Runs, &[]);
    machine.choose("m");
    machine.vm.wait_for("The medium is good");
    machine.vm.wait_for(FIRST_SCREEN);
    machine.vm.press("\r");
    machine.choose("i");
    let screen = machine.first_screen();
    assert_first_screen(&screen, "BIOS");
    machine.disk_is_untouched();
}

#[test]
fn vm_uefi_cd_reaches_the_first_screen() {
    let Some(iso) = medium(&[]) else {
        return;
    };
    let mut machine = Machine::start(&iso, Start::UefiCd, Restart::Ends, &[]);
    let screen = machine.first_screen();
    assert_first_screen(&screen, "UEFI");
    machine.vm.press("\r");
    machine.vm.wait_for_end();
    machine.disk_is_untouched();
}

#[test]
fn vm_secure_boot_cd_reaches_the_first_screen() {
    let Some(iso) = medium(&[]) else {
        return;
    };
    let mut machine = Machine::start(&iso, Start::SecureBootCd, Restart::Ends, &[]);
    let screen = machine.first_screen();
    assert_first_screen(&screen, "UEFI, Secure Boot on");
    machine.disk_is_untouched();
}

/// The medium as a disk, as written to a USB stick; and what the rescue shell is for.
#[test]
fn vm_bios_disk_gives_a_rescue_shell_that_has_the_drivers() {
    let Some(iso) = medium(&[]) else {
        return;
    };
    let mut machine = Machine::start(&iso, Start::BiosDisk, Restart::Ends, &[]);
    machine.choose("r");
    machine.vm.wait_for("Press Enter for maintenance");
    machine.vm.press("\r");
    machine.vm.wait_for("# ");
    // Assembled by the shell, so that the echo of the command is not taken for its result.
    machine.vm.press("modprobe reiserfs && modprobe xfs && modprobe mptspi && grep -c -e reiserfs -e xfs /proc/filesystems | sed s/^/kinds=/\r");
    machine.vm.wait_for("kinds=2");
    machine.vm.press("cat /sys/block/sd?/device/wwid; basename $(readlink /sys/class/net/e*/device/driver) | sed s/^/nic=/\r");
    machine.vm.wait_for("naa.6000c29000000001");
    machine.vm.wait_for("nic=vmxnet3");
    machine.vm.press("truncate -s 64M /tmp/r && mkreiserfs -q -ff /tmp/r >/dev/null 2>&1 && mount -o loop /tmp/r /mnt && stat -f -c fs=%T /mnt\r");
    machine.vm.wait_for("fs=reiserfs");
    machine.disk_is_untouched();
}

#[test]
fn vm_a_damaged_medium_is_told_and_never_started() {
    let Some(iso) = medium(&[]) else {
        return;
    };
    let folder = scratch();
    let damaged = folder.path().join("damaged.iso");
    damage_payload(&iso, &damaged);
    let mut machine = Machine::start(&damaged, Start::BiosCd, Restart::Runs, &[]);
    machine.choose("m");
    let said = machine.vm.wait_for(FIRST_SCREEN);
    assert!(said.contains("The medium is DAMAGED"), "{said}");
    assert!(said.contains("mt/payload.squashfs: FAILED"), "{said}");
    assert!(!said.contains("The medium is good"), "{said}");
    machine.vm.press("\r");
    machine.choose("i");
    let said = machine.vm.wait_for(FIRST_SCREEN);
    assert!(
        said.contains("The medium is DAMAGED: its payload has SHA-256"),
        "{said}"
    );
    assert!(!said.contains("- installer"), "{said}");
    machine.disk_is_untouched();
}

#[test]
fn vm_answers_are_found_on_a_volume_labelled_oemdrv() {
    let Some(iso) = medium(&["xorriso"]) else {
        return;
    };
    let folder = scratch();
    let (answers, volume) = (folder.path().join("ks.cfg"), folder.path().join("oemdrv.iso"));
    fs::write(&answers, "lang en_US\ntimezone UTC\nreboot\n").unwrap();
    let mut arguments: Vec<&Path> = "-as mkisofs -quiet -V OEMDRV -o"
        .split(' ')
        .map(Path::new)
        .collect();
    arguments.extend([volume.as_path(), answers.as_path()]);
    let made = common::run("xorriso", &arguments);
    assert!(made.status.success(), "{}", text(&made));
    let drive = format!("file={},if=ide,index=3,media=cdrom,readonly=on", volume.display());
    let mut machine = Machine::start(&iso, Start::BiosCd, Restart::Ends, &["-drive", &drive]);
    machine.choose("u");
    let screen = machine.first_screen();
    assert!(screen.contains("mode      unattended\r\n"), "{screen}");
    assert!(
        screen.contains("answers   3 lines from OEMDRV:/ks.cfg (/dev/sr"),
        "{screen}"
    );
    // The disk is too small for the appliance: told, and nothing is written.
    assert!(screen.contains("The installation failed: "), "{screen}");
    machine.disk_is_untouched();
}

#[test]
fn vm_answers_are_fetched_from_the_address_in_inst_ks() {
    let Some(iso) = medium(&["python3", "xorriso"]) else {
        return;
    };
    let folder = scratch();
    fs::write(folder.path().join("a.ks"), "lang en_US\n").unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut server = Command::new("python3")
        .args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string()])
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The medium's own kernel, started by the firmware with the line of its menu and the address: what somebody types
    // into the menu's editor comes to the same.
    let part = |name: &str| folder.path().join(name);
    for (on_medium, name) in [
        ("/boot/vmlinuz", "vmlinuz"),
        ("/boot/initrd.img", "initrd.img"),
        ("/boot/grub/grub.cfg", "grub.cfg"),
    ] {
        let to = part(name);
        let words = [
            "-osirrox".as_ref(),
            "on".as_ref(),
            "-indev".as_ref(),
            iso.as_path(),
            "-extract".as_ref(),
            on_medium.as_ref(),
            to.as_path(),
        ];
        let extracted = common::run("xorriso", &words);
        assert!(extracted.status.success(), "{}", text(&extracted));
    }
    let menu = fs::read_to_string(part("grub.cfg")).unwrap();
    let line = menu
        .lines()
        .find_map(|line| line.trim().strip_prefix("linux /boot/vmlinuz "))
        .unwrap();
    let line = format!("{line} inst.ks=http://10.0.2.2:{port}/a.ks");
    let (kernel, initrd) = (part("vmlinuz"), part("initrd.img"));
    let words = [
        "-kernel",
        kernel.to_str().unwrap(),
        "-initrd",
        initrd.to_str().unwrap(),
        "-append",
        &line,
    ];
    let mut machine = Machine::start(&iso, Start::BiosCd, Restart::Ends, &words);
    let screen = machine.first_screen();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(
        screen.contains(&format!("answers   1 lines from http://10.0.2.2:{port}/a.ks\r\n")),
        "{screen}"
    );
}

/// Copies a medium and flips one bit in the middle of its largest file, the payload.
fn damage_payload(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
    let mut file = fs::File::options().read(true).write(true).open(to).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0u8; 1];
    file.seek(SeekFrom::Start(middle)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(middle)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}
