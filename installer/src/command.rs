// SPDX-License-Identifier: MIT OR Apache-2.0
//! The only place that starts programs, and the list of those that are started.
//!
//! A program dies with this process, by whatever signal that dies: `setpriv` asks the kernel for it. What runs inside
//! the new root file system gets a mount and a process namespace of its own, so that nothing it started is left over.
//! Nothing is ever handed to a shell.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Kind, Result, printable};

/// Lines of a failed program's output that are shown.
const TAIL_LINES: usize = 12;

/// Programs that are started on this machine, and the Debian package each comes from.
pub const PACKAGES: &[(&str, &str)] = &[
    ("debugfs", "e2fsprogs"),
    ("losetup", "mount"),
    ("mcopy", "mtools"),
    ("mkfs.vfat", "dosfstools"),
    ("mke2fs", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkswap", "util-linux"),
    ("mmd", "mtools"),
    ("mount", "mount"),
    ("setpriv", "util-linux"),
    ("swaplabel", "util-linux"),
    ("sfdisk", "fdisk"),
    ("systemctl", "systemd"),
    ("tar", "tar"),
    ("tune2fs", "e2fsprogs"),
    ("umount", "mount"),
    ("unshare", "util-linux"),
    ("unsquashfs", "squashfs-tools"),
];
/// Where they are looked for.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// A program about to be started.
#[derive(Debug)]
pub struct Program {
    name: String,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
    folder: Option<PathBuf>,
    within: Option<PathBuf>,
    input: Option<Vec<u8>>,
}

impl Program {
    /// Names a program of this machine; it must be in the list.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        debug_assert!(PACKAGES.iter().any(|(known, _)| *known == name), "{name}");
        Self::named(name)
    }

    /// Names a program of the root file system `root`, which is run inside it.
    #[must_use]
    pub fn within(root: &Path, name: &str) -> Self {
        Self {
            within: Some(root.to_owned()),
            ..Self::named(name)
        }
    }

    fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            folder: None,
            within: None,
            input: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments
            .extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name, value.as_ref().to_owned()));
        self
    }

    /// Runs it in a folder of this machine.
    #[must_use]
    pub fn folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// Gives it something to read.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        if let Some(root) = &self.within {
            // The kernel kills unshare with us, unshare's child with unshare, and the process namespace with that.
            command.args(["unshare", "--mount", "--propagation", "slave"]);
            command.args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc"]);
            command.arg("--root").arg(root).args(["--wd", "/", "--"]);
        }
        command.arg(&self.name).args(&self.arguments).env_clear();
        command
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .env("HOME", "/root");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }

    /// Runs the program and returns its standard output.
    ///
    /// # Errors
    /// It cannot be started, or ends with another code than 0; the end of what it said is in the error.
    pub fn run(&self) -> Result<Vec<u8>> {
        let cannot = |error: std::io::Error| {
            Error::new(Kind::Unexpected, format!("cannot run {}: {error}", self.name))
        };
        let mut command = self.command();
        let stdin = if self.input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        };
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(cannot)?;
        let pipe = child.stdin.take();
        let output = std::thread::scope(|scope| {
            if let (Some(mut pipe), Some(input)) = (pipe, &self.input) {
                // A program that ends without reading everything says why itself.
                scope.spawn(move || pipe.write_all(input));
            }
            child.wait_with_output()
        })
        .map_err(cannot)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<String> = said
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(printable)
            .collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
        let error = Error::new(
            Kind::Unexpected,
            format!("{} failed ({}):\n  {tail}", self.name, output.status),
        );
        Err(if said.contains("No space left on device") {
            error.hint("a file system is full: free space in the work folder, or give a larger disk")
        } else {
            error
        })
    }
}

/// Checks that programs are there before anything is begun.
///
/// # Errors
/// Names all that are missing, with the packages to install.
pub fn require(programs: &[&'static str]) -> Result<()> {
    let is_there = |name: &str| {
        FOLDERS
            .iter()
            .any(|folder| Path::new(folder).join(name).is_file())
    };
    let missing: Vec<&str> = programs.iter().copied().filter(|name| !is_there(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = PACKAGES
        .iter()
        .filter(|(name, _)| missing.contains(name))
        .map(|(_, package)| *package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    Err(Error::new(
        Kind::Unexpected,
        format!("programs are missing on this machine: {}", missing.join(", ")),
    )
    .hint(format!("apt-get install {}", packages.join(" "))))
}

/// Refuses unless the process is root.
///
/// # Errors
/// See there.
pub fn require_root(what: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Refused,
        format!(
            "{what} needs root, this process has user ID {}",
            nix::unistd::geteuid()
        ),
    )
    .hint("run it with sudo; ks check and plan --image need no privilege"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_what_the_program_said() {
        let error = Program::new("tar").arg("--no-such-option").run().unwrap_err();
        assert!(error.to_string().contains("tar failed"), "{error}");
        assert!(error.to_string().contains("no-such-option"), "{error}");
    }

    #[test]
    fn a_program_reads_what_it_is_given() {
        let said = Program::new("setpriv")
            .args(["cat"])
            .input("x".repeat(1 << 20))
            .run()
            .unwrap();
        assert_eq!(said.len(), 1 << 20);
    }
}
