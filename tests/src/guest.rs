//! A whole machine with real SCSI disks, in QEMU: what is decided by SCSI identity cannot be tried on loop devices.
//!
//! The guest (made by `scripts/lib/make-guest`) is Debian's kernel with udev, LVM, md, the agent under test, and a loop
//! that carries out commands that come over a virtio port. Its console goes to `console.log` in the scratch folder, and
//! the last lines of it into the message of whatever fails. It is emulated, so that it runs wherever QEMU does.
//!
//! | module | what |
//! |---|---|
//! | [`machine`] | what a machine is made of: controllers, disks; its start |
//! | [`qmp`] | QEMU's monitor: disks plugged in and pulled out |
//! | [`appliance`] | the target service in the guest, and sources beside it |
//! | `files` | kernel and initramfs, the agent under test in it |

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::Value;

pub mod appliance;
mod files;
pub mod machine;
pub mod qmp;

pub use files::{can_boot, made_by};
pub use machine::Machine;
use qmp::Qmp;

/// Longest that a guest may take to boot or to carry out one command. Emulation is slow, a busy machine slower.
const PATIENCE: Duration = Duration::from_secs(240);

/// Lines of the console that a failure shows.
const CONSOLE_LINES: usize = 40;

/// What a command in the guest said.
#[derive(Debug)]
pub struct Said {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    script: String,
}

impl Said {
    /// Fails unless the command was done (exit code 0).
    #[track_caller]
    pub fn expect_done(self) -> Self {
        assert_eq!(self.code, 0, "{self}");
        self
    }

    /// Fails unless the command ended with this exit code and with every one of these texts in what it said.
    #[track_caller]
    pub fn expect_error(self, code: i32, texts: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self}");
        for text in texts {
            let said = self.stdout.contains(text) || self.stderr.contains(text);
            assert!(said, "\"{text}\" is not in what it said\n{self}");
        }
        assert!(!self.stderr.contains("panicked"), "it panicked\n{self}");
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON: {error}\n{self}"))
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "exit code {} of\n{}\n--- stdout\n{}\n--- stderr\n{}",
            self.code, self.script, self.stdout, self.stderr
        )
    }
}

/// A running guest; killed when dropped.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    commands: BufReader<UnixStream>,
    qmp: Qmp,
    console: PathBuf,
}

impl Guest {
    /// Runs a shell script in the guest and waits for its end.
    ///
    /// # Panics
    /// When the guest does not answer in time, or dies; its console is shown.
    #[track_caller]
    pub fn run(&mut self, script: &str) -> Said {
        self.write(script);
        let line = self.line();
        let numbers: Vec<usize> = line
            .split_whitespace()
            .map(|word| {
                word.parse()
                    .unwrap_or_else(|_| self.give_up(&format!("it said {line:?}")))
            })
            .collect();
        let [code, out, err] = numbers[..] else {
            self.give_up(&format!("it said {line:?}"));
        };
        Said {
            code: i32::try_from(code).expect("exit codes are below 256"),
            stdout: self.text(out),
            stderr: self.text(err),
            script: script.to_owned(),
        }
    }

    /// Runs a script that has to succeed; answers its standard output without the last line end.
    #[track_caller]
    pub fn done(&mut self, script: &str) -> String {
        self.run(script).expect_done().stdout.trim_end().to_owned()
    }

    /// Runs a script until it succeeds; answers how long that took.
    ///
    /// # Panics
    /// When it does not within `patience`.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, patience: Duration, script: &str) -> Duration {
        let begin = Instant::now();
        loop {
            let said = self.run(script);
            if said.code == 0 {
                return begin.elapsed();
            }
            if begin.elapsed() > patience {
                self.give_up(&format!("waited in vain for {what}: {said}"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// QEMU's monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// The console so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Ends it in good order: everything that was written is in the images.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn power_off(mut self) {
        self.write("sync; poweroff -f");
        let begin = Instant::now();
        while self
            .child
            .try_wait()
            .expect("a child can be waited for")
            .is_none()
        {
            if begin.elapsed() > PATIENCE {
                self.give_up("it did not power off");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn write(&mut self, script: &str) {
        let bytes = format!("{}\n{script}", script.len());
        if let Err(error) = self.commands.get_mut().write_all(bytes.as_bytes()) {
            self.give_up(&format!("it takes no command: {error}"));
        }
    }

    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.commands.read_line(&mut line);
        if !matches!(read, Ok(1..)) {
            self.give_up(&format!("it fell silent ({read:?})"));
        }
        line.trim_end().to_owned()
    }

    #[track_caller]
    fn text(&mut self, len: usize) -> String {
        let mut bytes = vec![0; len];
        if let Err(error) = self.commands.read_exact(&mut bytes) {
            self.give_up(&format!("it fell silent: {error}"));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[track_caller]
    fn give_up(&self, what: &str) -> ! {
        panic!("the guest: {what}\n--- its console\n{}", tail(&self.console))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a console or a log.
pub fn tail(path: &Path) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
}
