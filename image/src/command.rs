// SPDX-License-Identifier: MIT OR Apache-2.0
//! The only place that starts programs, and the list of those that are started.
//!
//! Programs that build a root file system run contained: in a mount and a process namespace of their own, tied to the
//! life of this process. When this process dies, by whatever signal, they die with all they have started, and the
//! mounts they made are gone. Nothing is ever handed to a shell.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Kind, Result, shown};

/// Lines of a failed program's output that are shown.
const TAIL_LINES: usize = 12;

/// Programs, and the Debian package each comes from.
const PACKAGES: &[(&str, &str)] = &[
    ("apt-config", "apt"),
    ("apt-get", "apt"),
    ("createrepo_c", "createrepo-c"),
    ("debugfs", "e2fsprogs"),
    ("dnf", "dnf"),
    ("e2fsck", "e2fsprogs"),
    ("mcopy", "mtools"),
    ("mkfs.vfat", "dosfstools"),
    ("mksquashfs", "squashfs-tools"),
    ("mke2fs", "e2fsprogs"),
    ("mmd", "mtools"),
    ("mmdebstrap", "mmdebstrap"),
    ("rpm", "rpm"),
    ("setpriv", "util-linux"),
    ("sfdisk", "fdisk"),
    ("unshare", "util-linux"),
    ("xorriso", "xorriso"),
];

/// Whether a program may outlive this process.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Containment {
    /// Short and without side effects of its own.
    None,
    /// Killed with this process; what it starts itself is not.
    Tied,
    /// In namespaces of its own, killed with this process with all it has started.
    Contained,
    /// The same, and within a root file system.
    Within(PathBuf),
}

/// A program about to be started.
#[derive(Debug)]
pub struct Program {
    name: &'static str,
    /// Where it lies, unless it is to be searched.
    path: Option<PathBuf>,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
    folder: Option<PathBuf>,
    containment: Containment,
}

impl Program {
    /// Names a program; it must be in the list.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            path: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            folder: None,
            containment: Containment::None,
        }
    }

    /// Takes it from a path: one of this project's own programs.
    #[must_use]
    pub fn at(mut self, path: &Path) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// Runs it tied to the life of this process, which needs no privilege.
    #[must_use]
    pub fn tied(mut self) -> Self {
        self.containment = Containment::Tied;
        self
    }

    /// Runs it contained.
    #[must_use]
    pub fn contained(mut self) -> Self {
        self.containment = Containment::Contained;
        self
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

    /// Runs it in a folder.
    #[must_use]
    pub fn folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    fn command(&self) -> Command {
        let program = self
            .path
            .as_deref()
            .map_or(OsStr::new(self.name), Path::as_os_str);
        let mut command = match &self.containment {
            Containment::None => Command::new(program),
            _ => {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL", "--"]);
                command
            }
        };
        if matches!(self.containment, Containment::Contained | Containment::Within(_)) {
            // The kernel kills unshare with us, unshare's child with unshare, and the process namespace with that.
            command.args(["unshare", "--mount", "--propagation", "slave"]);
            command.args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc"]);
            if let Containment::Within(root) = &self.containment {
                // Changed before /proc is mounted: depmod and update-initramfs look there.
                command.arg("--root").arg(root);
            }
            command.arg("--");
        }
        if self.containment != Containment::None {
            command.arg(program);
        }
        command.args(&self.arguments).stdin(Stdio::null()).env_clear();
        command
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("LC_ALL", "C.UTF-8");
        command.env("TZ", "UTC").env("HOME", "/root");
        for name in ["http_proxy", "https_proxy", "no_proxy", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
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
        let output = self.command().output().map_err(|error| {
            Error::new(Kind::Unexpected, format!("cannot start {}: {error}", self.name)).hint(self.remedy())
        })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
        Err(self.explain(
            &said,
            &format!("{} failed ({}):\n  {tail}", self.name, output.status),
        ))
    }

    /// Sorts a failure by who has to act.
    fn explain(&self, said: &str, message: &str) -> Error {
        let any = |needles: &[&str]| needles.iter().any(|needle| said.contains(needle));
        if let Some(error) = self.no_space(said) {
            return error;
        }
        let network = [
            "Could not resolve",
            "Temporary failure resolving",
            "Could not connect",
            "Failed to fetch",
            "Connection failed",
            "Connection refused",
            "Failed to download metadata for repo",
            "Cannot download repomd.xml",
            "Unable to connect",
        ];
        if any(&[
            "Unable to locate package",
            "has no installation candidate",
            "No match for argument",
            "Unable to find a match",
        ]) {
            return Error::new(Kind::Config, message)
                .hint("a package of the spec is in none of its suites or repositories");
        }
        if any(&[
            "Hash Sum mismatch",
            "BADSIG",
            "NO_PUBKEY",
            "GPG check FAILED",
            "is not signed",
            "Public key for",
            "EXPKEYSIG",
        ]) {
            return Error::new(Kind::Peer, message)
                .hint("the mirror's data does not fit to its signatures; nothing of it was used");
        }
        if any(&network) {
            return Error::new(Kind::Peer, message)
                .hint("the mirror cannot be reached: check the network, the proxy and the spec's addresses");
        }
        Error::new(Kind::Unexpected, message)
    }

    /// The error of a program that ran out of space: what it says of that, and nothing of what followed from it.
    fn no_space(&self, said: &str) -> Option<Error> {
        let telling: [&[&str]; 2] = [
            &["No space left on device"],
            // dnf counts before it begins, and rpm says it again; xorriso looks at the file system before it writes.
            &[
                "more space needed on the",
                "Disk Requirements",
                "exceeds free space on media",
            ],
        ];
        let lines_with = |words: &&[&str]| -> Vec<&str> {
            let tells = |line: &&str| words.iter().any(|words| line.contains(words));
            said.lines().map(str::trim).filter(tells).take(2).collect()
        };
        let lines = telling
            .iter()
            .map(lines_with)
            .find(|lines| !lines.is_empty())
            .unwrap_or_default();
        if lines.is_empty() {
            return None;
        }
        let text = format!("{} ran out of space: {}", self.name, lines.join("; "));
        Some(Error::new(Kind::Unexpected, text).no_space_left())
    }

    fn remedy(&self) -> String {
        format!("install it: apt-get install {}", package_of(self.name))
    }
}

/// The Debian package of a program; most bear its name.
fn package_of(program: &str) -> &str {
    PACKAGES
        .iter()
        .find(|(name, _)| *name == program)
        .map_or(program, |(_, package)| package)
}

/// Checks that programs are there before anything is begun.
///
/// # Errors
/// Names all that are missing, with the packages to install.
pub fn require(programs: &[&'static str]) -> Result<()> {
    let folders = [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ];
    let missing: Vec<&str> = programs
        .iter()
        .filter(|program| {
            !folders
                .iter()
                .any(|folder| Path::new(folder).join(program).is_file())
        })
        .copied()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|name| package_of(name)).collect();
    packages.dedup();
    Err(Error::new(
        Kind::Unexpected,
        format!("programs are missing on this build host: {}", missing.join(", ")),
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
    .hint("run it with sudo; checks, inspections and plan need no privilege"))
}

/// Runs a program of a root file system within it.
///
/// # Errors
/// As [`Program::run`].
pub fn in_root(root: &Path, source_date: u64, name: &'static str, arguments: &[&str]) -> Result<Vec<u8>> {
    if !root.is_absolute() {
        return Err(Error::new(
            Kind::Unexpected,
            format!("{} is no absolute path", shown(root)),
        ));
    }
    let mut program = Program::new(name);
    program.containment = Containment::Within(root.to_owned());
    program
        .args(arguments)
        .env("SOURCE_DATE_EPOCH", source_date.to_string())
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_ran_out_of_space_is_quoted_in_no_more_than_that() {
        let said = "xorriso 1.5.4 : RockRidge filesystem manipulator, libburnia project.\n\
                    Drive current: -outdev 'stdio:/x'\n\
                    xorriso : UPDATE : 10 files added\n\
                    xorriso : FAILURE : Image size 171223s exceeds free space on media 20s\n\
                    xorriso : NOTE : -return_with SORRY 32 triggered by problem severity FAILURE\n";
        let error = Program::new("xorriso").explain(said, "xorriso failed");
        assert!(error.is_no_space());
        assert_eq!(
            error.to_string(),
            "xorriso ran out of space: xorriso : FAILURE : Image size 171223s exceeds free space on media 20s"
        );
        let hint = error.next_step().unwrap();
        assert!(hint.contains("free space") && !hint.contains("--"), "{hint}");
        let said = format!("{said}libburn : FATAL : Write error : No space left on device\n");
        let error = Program::new("xorriso").explain(&said, "xorriso failed");
        assert_eq!(
            error.to_string(),
            "xorriso ran out of space: libburn : FATAL : Write error : No space left on device"
        );
        let other = Program::new("xorriso").explain("xorriso : FAILURE : other", "xorriso failed");
        assert!(!other.is_no_space());
    }
}
