// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interview on a pseudo terminal, driven as a person does: wait for the question, type the answer.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;

const PATIENCE: Duration = Duration::from_secs(60);

struct Console {
    child: Child,
    master: File,
    seen: Vec<u8>,
}

impl Console {
    fn start(arguments: &[&str]) -> Self {
        let pty = openpty(None, None).unwrap();
        let slave = |fd: &OwnedFd| fd.try_clone().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_mt-installer"))
            .args(arguments)
            .stdin(slave(&pty.slave))
            .stdout(slave(&pty.slave))
            .stderr(slave(&pty.slave))
            .spawn()
            .unwrap();
        Self {
            child,
            master: File::from(pty.master),
            seen: Vec::new(),
        }
    }

    /// Waits until this text has come since the last wait.
    fn wait_for(&mut self, wanted: &str) {
        use std::os::fd::AsFd;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self
                .seen
                .windows(wanted.len())
                .position(|window| window == wanted.as_bytes())
            {
                self.seen.drain(..at + wanted.len());
                return;
            }
            let said = String::from_utf8_lossy(&self.seen).into_owned();
            assert!(Instant::now() < deadline, "{wanted:?} did not come:\n{said}");
            let mut polled = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            if poll(&mut polled, PollTimeout::from(1000_u16)).unwrap() == 0 {
                continue;
            }
            let mut buffer = [0_u8; 4096];
            let count = self.master.read(&mut buffer).unwrap_or(0);
            assert!(count > 0, "{wanted:?} did not come before the end:\n{said}");
            self.seen.extend_from_slice(&buffer[..count]);
        }
    }

    fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn questions_are_asked_checked_and_can_be_left() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("answers.ks");
    let mut console = Console::start(&["ask", "--save", file.to_str().unwrap()]);
    console.wait_for("Host name (1 of");
    console.press("\x15two words");
    console.wait_for("! \"two words\": a host name has letters");
    console.press("\x15mt1\r");
    console.wait_for("Network (2 of");
    console.press("2\r");
    console.wait_for("Static address (3 of");
    console.press("192.0.2.10/24\r");
    console.wait_for("Default gateway (4 of");
    console.press("192.0.3.1\r");
    console.wait_for("! 192.0.3.1 is not in the net of 192.0.2.10/24");
    console.press("\x15192.0.2.1\r");
    console.wait_for("DNS servers (5 of");
    console.press("\r");
    console.wait_for("Time zone (6 of");
    console.press("\r");
    console.wait_for("Root password (7 of");
    console.press("secret pass\r");
    console.wait_for("Root password, once more");
    console.press("secret pass\r");
    console.wait_for("Disk to install on");
    // Escape goes back all the way, one question at a time, and leaves.
    for question in [
        "once more",
        "Root password (7 of",
        "Time zone",
        "DNS servers",
        "Default gateway",
        "Static address",
        "Network (2 of",
        "Host name (1 of",
    ] {
        console.press("\x1b");
        console.wait_for(question);
    }
    console.press("\x1b");
    console.wait_for("left without answers; nothing was saved");
    assert!(console.child.wait().unwrap().success());
    assert!(!file.exists());
}

#[test]
fn without_a_terminal_it_says_so() {
    let output = Command::new(env!("CARGO_BIN_EXE_mt-installer"))
        .args(["ask", "--save", "/nowhere"])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("standard input is no terminal"));
}
