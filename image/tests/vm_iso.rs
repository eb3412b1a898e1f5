// SPDX-License-Identifier: MIT OR Apache-2.0
//! Starts the installation medium in virtual machines and reads the serial console.
//!
//! `MT_ISO` names the medium: `scripts/test` builds one for all tests. Without hardware virtualisation a start takes a
//! minute or two, so each machine here shows as much as it can.
//!
//! The machines look like VMware's: PVSCSI, VMXNET3 and its manufacturer in SMBIOS. A disk with known bytes is
//! attached to each, and must be the same afterwards: a medium that only shows a screen writes nowhere.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "test code; how long things took is wanted in the log"
)]

mod common;
#[path = "common/skip.rs"]
mod skip;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{mt_image, mt_image_ok, text};

const FIRST_SCREEN: &str = "Press Enter to restart.";
const OVMF: &str = "/usr/share/OVMF";
/// A start takes 40 to 120 s under emulation, and many times that where the host is busy; more means that it hangs.
const PATIENCE: Duration = Duration::from_secs(1800);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    BiosCd,
    BiosDisk,
    UefiCd,
    SecureBootCd,
}

/// The medium all tests share; where there is none, or a program is missing, the skip is noted.
fn medium(test: &str, programs: &[&str]) -> Option<PathBuf> {
    let Some(path) = std::env::var_os("MT_ISO") else {
        skip::skip(
            test,
            "MT_ISO names no installation medium; scripts/test builds one",
        );
        return None;
    };
    if !common::require(&[&["qemu-system-x86_64"], programs].concat()) {
        skip::skip(test, "programs are missing");
        return None;
    }
    Some(PathBuf::from(path))
}

/// What happens when the machine restarts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Restart {
    /// It does.
    Runs,
    /// It ends.
    Ends,
}

struct Vm {
    child: Child,
    keys: ChildStdin,
    console: Arc<Mutex<Vec<u8>>>,
    read: usize,
    folder: tempfile::TempDir,
    began: Instant,
}

impl Vm {
    fn start(iso: &Path, start: Start, restart: Restart, extra: &[&str]) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("mt-vm-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let disk = folder.path().join("disk.img");
        fs::write(&disk, b"a guest's disk").unwrap();
        fs::File::options()
            .write(true)
            .open(&disk)
            .unwrap()
            .set_len(256 << 20)
            .unwrap();
        let mut command = Command::new("qemu-system-x86_64");
        command.args("-accel tcg,thread=multi -m 1536 -smp 2 -display none -vga std -nodefaults".split(' '));
        if restart == Restart::Ends {
            command.arg("-no-reboot");
        }
        command.args(
            "-monitor none -netdev user,id=n0 -device vmxnet3,netdev=n0 -device pvscsi,id=s0".split(' '),
        );
        command.args(
            [
                "-smbios",
                "type=1,manufacturer=VMware\\, Inc.,product=VMware Virtual Platform",
            ]
            .map(|a| a.replace("\\,", ",,")),
        );
        command
            .arg("-drive")
            .arg(format!("file={},if=none,id=d0,format=raw", disk.display()));
        command.args([
            "-device",
            "scsi-hd,drive=d0,bus=s0.0,wwn=0x6000c29000000001,vendor=VMware,product=Virtual disk",
        ]);
        let iso = iso.display();
        match start {
            Start::BiosCd => {
                command.args("-machine pc -boot d -drive".split(' '));
                command.arg(format!("file={iso},if=ide,media=cdrom,readonly=on"));
            }
            Start::BiosDisk => {
                command.args(
                    "-machine pc -device ahci,id=a0 -device ide-hd,drive=i0,bus=a0.0,bootindex=0 -drive"
                        .split(' '),
                );
                command.arg(format!("file={iso},if=none,id=i0,format=raw,snapshot=on"));
            }
            Start::UefiCd | Start::SecureBootCd => {
                // With Microsoft's keys the firmware enforces Secure Boot; without any keys it starts anything.
                let (code, variables) = match start {
                    Start::SecureBootCd => ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"),
                    _ => ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
                };
                let own = folder.path().join("vars.fd");
                fs::copy(Path::new(OVMF).join(variables), &own).unwrap();
                command.args(
                    "-machine q35,smm=on -global driver=cfi.pflash01,property=secure,value=on -drive"
                        .split(' '),
                );
                command.arg(format!(
                    "if=pflash,unit=0,format=raw,readonly=on,file={OVMF}/{code}"
                ));
                command
                    .arg("-drive")
                    .arg(format!("if=pflash,unit=1,format=raw,file={}", own.display()));
                command.args("-device ide-cd,drive=i0,bootindex=0 -drive".split(' '));
                command.arg(format!("file={iso},if=none,id=i0,media=cdrom,readonly=on"));
            }
        }
        command
            .args("-chardev stdio,id=c0,signal=off -serial chardev:c0".split(' '))
            .args(extra);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (keys, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let console = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&console);
        std::thread::spawn(move || {
            let mut buffer = [0u8; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                sink.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self {
            child,
            keys,
            console,
            read: 0,
            folder,
            began: Instant::now(),
        }
    }

    /// Waits for a text on the console behind what was read before; returns everything up to it.
    fn wait_for(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.console.lock().unwrap()[self.read..].to_vec();
            if let Some(at) = seen
                .windows(wanted.len())
                .position(|window| window == wanted.as_bytes())
            {
                self.read += at + wanted.len();
                eprintln!("{wanted:?} after {} s", self.began.elapsed().as_secs());
                return String::from_utf8_lossy(&seen[..at + wanted.len()]).into_owned();
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{wanted:?} did not come ({ended:?}); the console says:\n{}",
                String::from_utf8_lossy(&seen)
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Waits for the boot menu and presses an entry's letter.
    fn choose(&mut self, letter: &str) {
        // A key that comes early waits in the serial port.
        self.wait_for("Check this medium");
        self.press(letter);
    }

    /// Waits for the first screen, and returns it.
    fn first_screen(&mut self) -> String {
        let all = self.wait_for(FIRST_SCREEN);
        all[all.find("- installer").expect("the first screen's heading")..].to_owned()
    }

    /// Waits until the machine has restarted, which ends it here.
    fn wait_for_end(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the machine does not restart");
            std::thread::sleep(Duration::from_millis(100));
        }
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

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn assert_first_screen(screen: &str, firmware: &str) {
    assert!(screen.contains(&format!("firmware  {firmware}\r\n")), "{screen}");
    assert!(screen.contains("mode      install\r\n"), "{screen}");
    assert!(screen.contains("payload   good, SHA-256 "), "{screen}");
    assert!(screen.contains("answers   none\r\n"), "{screen}");
}

fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("mt-vm-")
        .tempdir_in("/var/tmp")
        .unwrap()
}

#[test]
fn vm_bios_cd_passes_its_media_check_and_reaches_the_first_screen() {
    let Some(iso) = medium(
        "vm_bios_cd_passes_its_media_check_and_reaches_the_first_screen",
        &[],
    ) else {
        return;
    };
    let mut vm = Vm::start(&iso, Start::BiosCd, Restart::Runs, &[]);
    vm.choose("c");
    vm.wait_for("The medium is good");
    vm.wait_for(FIRST_SCREEN);
    vm.press("\r");
    let screen = vm.first_screen();
    assert_first_screen(&screen, "BIOS");
    vm.disk_is_untouched();
}

#[test]
fn vm_uefi_cd_reaches_the_first_screen() {
    let Some(iso) = medium("vm_uefi_cd_reaches_the_first_screen", &[]) else {
        return;
    };
    let mut vm = Vm::start(&iso, Start::UefiCd, Restart::Ends, &[]);
    let screen = vm.first_screen();
    assert_first_screen(&screen, "UEFI");
    vm.press("\r");
    vm.wait_for_end();
    vm.disk_is_untouched();
}

#[test]
fn vm_secure_boot_cd_reaches_the_first_screen() {
    let Some(iso) = medium("vm_secure_boot_cd_reaches_the_first_screen", &[]) else {
        return;
    };
    let mut vm = Vm::start(&iso, Start::SecureBootCd, Restart::Ends, &[]);
    let screen = vm.first_screen();
    assert_first_screen(&screen, "UEFI, Secure Boot on");
    vm.disk_is_untouched();
}

/// The medium as a disk, as written to a USB stick; and what the rescue shell is for.
#[test]
fn vm_bios_disk_gives_a_rescue_shell_that_has_the_drivers() {
    let Some(iso) = medium("vm_bios_disk_gives_a_rescue_shell_that_has_the_drivers", &[]) else {
        return;
    };
    let mut vm = Vm::start(&iso, Start::BiosDisk, Restart::Ends, &[]);
    vm.choose("r");
    vm.wait_for("Press Enter for maintenance");
    vm.press("\r");
    vm.wait_for("# ");
    // Assembled by the shell, so that the echo of the command is not taken for its result.
    vm.press("modprobe reiserfs && modprobe xfs && modprobe mptspi && grep -c -e reiserfs -e xfs /proc/filesystems | sed s/^/kinds=/\r");
    vm.wait_for("kinds=2");
    vm.press("cat /sys/block/sd?/device/wwid; basename $(readlink /sys/class/net/e*/device/driver) | sed s/^/nic=/\r");
    vm.wait_for("naa.6000c29000000001");
    vm.wait_for("nic=vmxnet3");
    vm.press("truncate -s 64M /tmp/r && mkreiserfs -q -ff /tmp/r >/dev/null 2>&1 && mount -o loop /tmp/r /mnt && stat -f -c fs=%T /mnt\r");
    vm.wait_for("fs=reiserfs");
    vm.disk_is_untouched();
}

#[test]
fn vm_a_damaged_medium_is_told_and_never_started() {
    let Some(iso) = medium("vm_a_damaged_medium_is_told_and_never_started", &[]) else {
        return;
    };
    let folder = scratch();
    let damaged = folder.path().join("damaged.iso");
    damage_payload(&iso, &damaged);
    let mut vm = Vm::start(&damaged, Start::BiosCd, Restart::Runs, &[]);
    vm.choose("c");
    let said = vm.wait_for(FIRST_SCREEN);
    assert!(said.contains("The medium is DAMAGED"), "{said}");
    assert!(said.contains("mt/payload.squashfs: FAILED"), "{said}");
    assert!(!said.contains("The medium is good"), "{said}");
    vm.press("\r");
    // The second start takes the default entry: to install.
    vm.choose("i");
    let said = vm.wait_for(FIRST_SCREEN);
    assert!(
        said.contains("The medium is DAMAGED: its payload has SHA-256"),
        "{said}"
    );
    assert!(!said.contains("- installer"), "{said}");
    vm.disk_is_untouched();
}

#[test]
fn vm_answers_are_found_on_a_volume_labelled_oemdrv() {
    let test = "vm_answers_are_found_on_a_volume_labelled_oemdrv";
    let Some(iso) = medium(test, &["xorriso"]) else {
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
    let mut vm = Vm::start(&iso, Start::BiosCd, Restart::Ends, &["-drive", &drive]);
    vm.choose("u");
    let screen = vm.first_screen();
    assert!(screen.contains("mode      unattended\r\n"), "{screen}");
    assert!(
        screen.contains("answers   3 lines from OEMDRV:/ks.cfg (/dev/sr"),
        "{screen}"
    );
}

#[test]
fn vm_an_unattended_medium_starts_by_itself_with_its_answers() {
    let test = "vm_an_unattended_medium_starts_by_itself_with_its_answers";
    let Some(iso) = medium(test, &["xorriso"]) else {
        return;
    };
    let folder = scratch();
    let (answers, made) = (
        folder.path().join("my answers.ks"),
        folder.path().join("unattended.iso"),
    );
    fs::write(&answers, "lang en_US\nreboot\n").unwrap();
    let arguments = [
        "iso",
        "embed-ks",
        iso.to_str().unwrap(),
        answers.to_str().unwrap(),
        "--out",
        made.to_str().unwrap(),
    ];
    mt_image_ok(&arguments);
    let again = mt_image(&arguments);
    assert_eq!(again.status.code(), Some(5), "{}", text(&again));
    let mut vm = Vm::start(&made, Start::SecureBootCd, Restart::Ends, &[]);
    let screen = vm.first_screen();
    assert!(screen.contains("firmware  UEFI, Secure Boot on\r\n"), "{screen}");
    assert!(screen.contains("mode      unattended\r\n"), "{screen}");
    assert!(
        screen.contains("answers   2 lines from cdrom:/mt/inst.ks\r\n"),
        "{screen}"
    );
}

#[test]
fn vm_answers_are_fetched_from_the_address_in_inst_ks() {
    let test = "vm_answers_are_fetched_from_the_address_in_inst_ks";
    let Some(iso) = medium(test, &["python3"]) else {
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
    let mut vm = Vm::start(&iso, Start::BiosCd, Restart::Ends, &[]);
    vm.wait_for("Check this medium");
    // The menu's editor: down to the line of the kernel, to its end, add the argument, start.
    vm.press("e");
    vm.wait_for("Minimum Emacs-like");
    vm.press("\x0e\x05");
    vm.press(&format!(" inst.ks=http://10.0.2.2:{port}/a.ks"));
    vm.wait_for("/a.ks");
    vm.press("\x18");
    let screen = vm.first_screen();
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
