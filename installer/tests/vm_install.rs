// SPDX-License-Identifier: MIT OR Apache-2.0
//! Installs from the medium onto the disk of a virtual machine, without questions, and starts what was installed.
//!
//! `MT_ISO` names the medium: `scripts/test` builds one for all tests. The machines look like VMware's: PVSCSI or LSI SAS,
//! VMXNET3, SCSI IDs from VPD page 0x83.
//!
//! At the start from the disk a copy of it is attached before it on the bus, with the same UUIDs and labels and another
//! SCSI ID, as the VMDK of a clone would have. The kernel calls the copy `sda`. The system must come up on its own disk,
//! and no byte of the copy may change.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "test code; how long things took is wanted in the log"
)]

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{done, medium, run, scratch, text};

const OVMF: &str = "/usr/share/OVMF";
/// More than any step takes on a busy host under emulation; reaching it means that the machine hangs.
const PATIENCE: Duration = Duration::from_secs(900);
const SIZE: u64 = 8 << 30;
const PASSWORD: &str = "correct horse";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Firmware {
    Bios,
    SecureBoot,
}

struct DiskOf<'a> {
    image: &'a Path,
    wwn: u64,
    boots: bool,
    /// On the machine's SATA controller instead of its SCSI controller.
    sata: bool,
}

struct Machine {
    child: Child,
    keys: ChildStdin,
    console: Arc<Mutex<Vec<u8>>>,
    read: usize,
    began: Instant,
}

impl Machine {
    fn start(
        firmware: Firmware,
        controller: &str,
        iso: Option<&Path>,
        disks: &[DiskOf<'_>],
        folder: &Path,
    ) -> Self {
        let mut command = Command::new("qemu-system-x86_64");
        let words = |command: &mut Command, text: &str| {
            command.args(text.split(' '));
        };
        words(
            &mut command,
            "-accel tcg,thread=multi -m 2048 -smp 2 -display none -vga std -nodefaults -no-reboot -monitor none",
        );
        words(&mut command, "-netdev user,id=n0 -device vmxnet3,netdev=n0");
        command.args(["-device", &format!("{controller},id=s0")]);
        for (number, disk) in disks.iter().enumerate() {
            command.arg("-drive").arg(format!(
                "file={},if=none,id=d{number},format=raw",
                disk.image.display()
            ));
            let place = if disk.sata {
                format!("ide-hd,drive=d{number},bus=ide.{number}")
            } else {
                format!(
                    "scsi-hd,drive=d{number},bus=s0.0,scsi-id={number},vendor=VMware,product=Virtual disk"
                )
            };
            let order = if disk.boots { ",bootindex=1" } else { "" };
            command
                .arg("-device")
                .arg(format!("{place},wwn={:#x}{order}", disk.wwn));
        }
        match firmware {
            Firmware::Bios => words(&mut command, "-machine pc"),
            Firmware::SecureBoot => {
                let own = folder.join("vars.fd");
                if !own.exists() {
                    fs::copy(Path::new(OVMF).join("OVMF_VARS_4M.ms.fd"), &own).unwrap();
                }
                words(
                    &mut command,
                    "-machine q35,smm=on -global driver=cfi.pflash01,property=secure,value=on",
                );
                command.arg("-drive").arg(format!(
                    "if=pflash,unit=0,format=raw,readonly=on,file={OVMF}/OVMF_CODE_4M.secboot.fd"
                ));
                command
                    .arg("-drive")
                    .arg(format!("if=pflash,unit=1,format=raw,file={}", own.display()));
            }
        }
        if let Some(iso) = iso {
            command.arg("-drive").arg(format!(
                "file={},if=none,id=cd,media=cdrom,readonly=on",
                iso.display()
            ));
            words(&mut command, "-device ide-cd,drive=cd,bootindex=0");
        }
        words(&mut command, "-chardev stdio,id=c0,signal=off -serial chardev:c0");
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
            began: Instant::now(),
        }
    }

    /// Waits for a text behind what was read before; returns everything up to it.
    fn wait_for(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.console.lock().unwrap()[self.read..].to_vec();
            let found = seen
                .windows(wanted.len())
                .position(|window| window == wanted.as_bytes());
            if let Some(at) = found {
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

    fn wait_for_end(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the machine does not end");
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!("ended after {} s", self.began.elapsed().as_secs());
    }

    fn type_line(&mut self, line: &str) {
        self.keys.write_all(line.as_bytes()).unwrap();
        self.keys.write_all(b"\r").unwrap();
        self.keys.flush().unwrap();
    }

    fn log_in(&mut self, host: &str) {
        self.wait_for("Enter log in");
        self.type_line("");
        self.wait_for(&format!("{host} login: "));
        self.type_line("root");
        self.wait_for("Password: ");
        self.type_line(PASSWORD);
        self.wait_for("# ");
    }

    /// Runs a command in the shell on the console and returns what it printed.
    fn shell(&mut self, command: &str) -> String {
        // Put together by the shell, so that the echo of the line is not taken for its end.
        self.type_line(&format!("echo be''gin; {command}; echo e''nd"));
        self.wait_for("begin\r\n");
        self.wait_for("end\r\n").trim_end_matches("end\r\n").to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A medium that installs by itself.
fn unattended(medium: &Path, folder: &Path) -> PathBuf {
    let hash = done("openssl", &["passwd", "-6", "-salt", "saltsalt", PASSWORD]);
    let answers = folder.join("answers.ks");
    let text_of = format!(
        "lang en_US.UTF-8\nkeyboard us\ntimezone UTC --utc\nrootpw --iscrypted {}\nnetwork --device=link --bootproto=dhcp\n\
         network --hostname=mt01.example.com\nzerombr\nclearpart --all --initlabel\n\
         bootloader --location=mbr --timeout=1 --append=\"systemd.mask=kdump-tools.service\"\npoweroff\n",
        hash.trim()
    );
    fs::write(&answers, text_of).unwrap();
    let made = folder.join("unattended.iso");
    let program = Path::new(env!("CARGO_BIN_EXE_mt-installer")).with_file_name("mt-image");
    let output = Command::new(&program)
        .args(["iso", "embed-ks"])
        .args([medium, &answers])
        .arg("--out")
        .arg(&made)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    made
}

fn installs_and_starts(test: &str, firmware: Firmware, controller: &str) {
    const OWN: u64 = 0x5000_c290_0000_0001;
    const COPY: u64 = 0x5000_c290_0000_0002;
    // Debian's OVMF has no driver for VMware's controllers: it finds no disk behind them to start from. ESXi's firmware does.
    let starts_from_sata = firmware == Firmware::SecureBoot;
    let Some(medium) = medium(test, &["qemu-system-x86_64", "xorriso", "openssl"]) else {
        return;
    };
    let folder = scratch();
    let iso = unattended(&medium, folder.path());
    let disk = folder.path().join("disk.img");
    fs::File::create(&disk).unwrap().set_len(SIZE).unwrap();
    let own = |sata| DiskOf {
        image: &disk,
        wwn: OWN,
        boots: true,
        sata,
    };
    let mut machine = Machine::start(firmware, controller, Some(&iso), &[own(false)], folder.path());
    let said = machine.wait_for("The master target is installed.");
    assert!(said.contains("nothing: the disk is empty"), "{said}");
    machine.wait_for_end();
    drop(machine);

    let [copy, before] = ["copy.img", "before.img"].map(|name| folder.path().join(name));
    for to in [&copy, &before] {
        done(
            "cp",
            &["--sparse=always", disk.to_str().unwrap(), to.to_str().unwrap()],
        );
    }
    let first = DiskOf {
        image: &copy,
        wwn: COPY,
        boots: false,
        sata: false,
    };
    let disks = [first, own(starts_from_sata)];
    let mut machine = Machine::start(firmware, controller, None, &disks, folder.path());
    machine.log_in("mt01");
    let wwid = machine.shell("cat /sys/block/$(cat /run/mt-system/disk)/device/wwid");
    assert_eq!(
        wwid.trim(),
        "naa.5000c29000000001",
        "the system is on its own disk"
    );
    let root = machine.shell("lsblk --noheadings --output PKNAME $(findmnt --noheadings --output SOURCE /) | head -1; cat /run/mt-system/disk");
    let lines: Vec<&str> = root.split_whitespace().collect();
    assert!(
        lines.len() == 2 && lines[0] == lines[1],
        "/ is on that disk: {root}"
    );
    if !starts_from_sata {
        // Which of the two is called sda is chance: the kernel probes them at once. Their places on the bus are not.
        let place =
            machine.shell("basename $(readlink --canonicalize /sys/block/$(cat /run/mt-system/disk)/device)");
        assert!(
            place.trim().ends_with(":1:0"),
            "the copy comes first on the bus: {place}"
        );
    }
    // Mounts that the start does not wait for may come behind the login.
    machine.shell("systemctl is-system-running --wait");
    let mounts = machine.shell("findmnt --noheadings --output SOURCE /var/crash; findmnt --noheadings --output SOURCE /home; cut -d' ' -f1 /proc/swaps");
    for number in [4, 5, 6] {
        assert!(mounts.contains(&format!("/dev/{}{number}", lines[0])), "{mounts}");
    }
    let list = machine.shell("mt-agent disks list");
    for id in ["naa.5000c29000000001", "naa.5000c29000000002"] {
        assert!(list.contains(id), "{id} is not in {list}");
    }
    let state =
        machine.shell("systemctl is-active master-target.service; systemctl is-active mt-bind.service");
    assert!(state.starts_with("active\r\n"), "the agent: {state}");
    machine.type_line("poweroff");
    machine.wait_for_end();
    drop(machine);
    let same = run("cmp", &[copy.to_str().unwrap(), before.to_str().unwrap()]);
    assert!(same.status.success(), "the copy was changed: {}", text(&same));
}

#[test]
fn vm_unattended_on_lsi_under_bios() {
    installs_and_starts("vm_unattended_on_lsi_under_bios", Firmware::Bios, "mptsas1068");
}

#[test]
fn long_unattended_on_pvscsi_under_secure_boot() {
    installs_and_starts(
        "long_unattended_on_pvscsi_under_secure_boot",
        Firmware::SecureBoot,
        "pvscsi",
    );
}
