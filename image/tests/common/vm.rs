// SPDX-License-Identifier: MIT OR Apache-2.0
//! Virtual machines that look like VMware's: PVSCSI, VMXNET3 and its manufacturer in SMBIOS; driven over the serial line.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "test code; how long things took is wanted in the log"
)]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const OVMF: &str = "/usr/share/OVMF";
/// A start takes 40 to 120 s under emulation, and a few times that where the host is busy; more means that it hangs.
const PATIENCE: Duration = Duration::from_secs(900);

/// A folder for a machine's files, where there is room.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("mt-vm-")
        .tempdir_in("/var/tmp")
        .unwrap()
}

/// What starts the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    Bios,
    Uefi,
    /// Enforced, with Microsoft's keys.
    SecureBoot,
}

/// What happens when the machine restarts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// It does.
    Runs,
    /// It ends.
    Ends,
}

/// A machine that runs; killed when dropped.
pub struct Vm {
    child: Child,
    keys: ChildStdin,
    console: Arc<Mutex<Vec<u8>>>,
    read: usize,
    began: Instant,
}

impl Vm {
    /// Starts a machine with more devices than every machine has; `folder` is for its variables and its log.
    pub fn start(folder: &Path, firmware: Firmware, restart: Restart, more: &[String]) -> Self {
        // Ends with the test, also where the test is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command.args("-accel tcg,thread=multi -m 1536 -smp 2 -display none -vga std -nodefaults".split(' '));
        if restart == Restart::Ends {
            command.arg("-no-reboot");
        }
        command.args("-monitor none -netdev user,id=n0 -device vmxnet3,netdev=n0,romfile=".split(' '));
        command.args([
            "-smbios",
            "type=1,manufacturer=VMware,, Inc.,product=VMware Virtual Platform",
        ]);
        match firmware {
            Firmware::Bios => {
                command.args("-machine pc".split(' '));
            }
            Firmware::Uefi | Firmware::SecureBoot => {
                // With Microsoft's keys the firmware enforces Secure Boot; without any keys it starts anything.
                let (code, variables) = match firmware {
                    Firmware::SecureBoot => ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"),
                    _ => ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
                };
                let own = folder.join("vars.fd");
                fs::copy(Path::new(OVMF).join(variables), &own).unwrap();
                command.args(
                    "-machine q35,smm=on -global driver=cfi.pflash01,property=secure,value=on".split(' '),
                );
                command.args([
                    "-drive",
                    &format!("if=pflash,unit=0,format=raw,readonly=on,file={OVMF}/{code}"),
                ]);
                command.args([
                    "-drive",
                    &format!("if=pflash,unit=1,format=raw,file={}", own.display()),
                ]);
            }
        }
        command
            .args("-chardev stdio,id=c0,signal=off -serial chardev:c0".split(' '))
            .args(more);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (keys, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut menu = Menu {
            keys: fs::File::from(keys.as_fd().try_clone_to_owned().unwrap()),
            said: Vec::new(),
        };
        let console = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&console);
        // For whoever watches a test that hangs.
        let mut log = fs::File::create(folder.join("console.log")).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0u8; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                log.write_all(&buffer[..count]).unwrap();
                menu.look_at(&buffer[..count]);
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

    /// Waits for a text on the console behind what was read before; returns everything up to it.
    pub fn wait_for(&mut self, wanted: &str) -> String {
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

    /// Types on the serial line.
    pub fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Logs in as root, who may have no password.
    pub fn log_in(&mut self, host: &str, password: Option<&str>) {
        self.wait_for("Enter log in");
        self.press("\r");
        self.wait_for(&format!("{host} login: "));
        self.press("root\r");
        if let Some(password) = password {
            self.wait_for("Password: ");
            self.press(&format!("{password}\r"));
        }
        self.wait_for("# ");
    }

    /// Runs a command in the shell on the console and returns what it printed.
    pub fn shell(&mut self, command: &str) -> String {
        // Put together by the shell, so that the echo of the line is not taken for its end.
        self.press(&format!("echo be''gin; {command}; echo e''nd\r"));
        self.wait_for("begin\r\n");
        let said = self.wait_for("end\r\n");
        // Programs that see a terminal clear lines on it.
        said.trim_end_matches("end\r\n")
            .replace('\r', "")
            .replace("\x1b[K", "")
    }

    /// What of systemd's units has failed, each with the end of its journal; empty when all is well.
    pub fn failed_units(&mut self) -> String {
        self.shell(
            "systemctl list-units --failed --no-legend --plain --no-pager | while read -r unit rest; do echo $unit; \
             journalctl --boot --no-pager --output cat --unit $unit | tail -n 20; done",
        )
    }

    /// Waits until the machine has ended.
    pub fn wait_for_end(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the machine does not end");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Starts the first entry of an appliance's own boot menu as soon as it is there. A medium's menu is the test's.
struct Menu {
    keys: fs::File,
    said: Vec<u8>,
}

impl Menu {
    fn look_at(&mut self, said: &[u8]) {
        self.said.extend_from_slice(said);
        let has = |wanted: &[u8]| self.said.windows(wanted.len()).any(|window| window == wanted);
        if has(b"The kernel before the last update") && has(b"executed automatically") {
            self.said.clear();
            // Nobody reads it any more when the machine ends just now.
            let _ = self.keys.write_all(b"\r");
        } else if self.said.len() > 16_384 {
            self.said.drain(..8_192);
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
