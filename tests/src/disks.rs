//! Loop devices, mounts, and canaries: disks beside the one that is written, which must not change by a bit.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::data::{Fill, MIB, digest, fill};
use crate::scratch::Scratch;
use crate::skip::find_program;

/// Runs a program and answers its standard output without the last line end.
///
/// # Panics
/// When it fails.
pub fn run(program: &str, args: &[&str]) -> String {
    let path = find_program(program).unwrap_or_else(|| panic!("there is no {program}"));
    let output = Command::new(path)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// A loop device, detached when dropped.
#[derive(Debug)]
pub struct Loop {
    path: PathBuf,
}

impl Loop {
    /// Attaches `file` to a free loop device, with options of `losetup` in front.
    pub fn attach(file: &Path, options: &[&str]) -> Self {
        let mut args = vec!["--find", "--show"];
        args.extend_from_slice(options);
        args.push(text(file));
        Self {
            path: PathBuf::from(run("losetup", &args)),
        }
    }

    /// `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `/dev/loopN` as text.
    pub fn text(&self) -> &str {
        text(&self.path)
    }

    /// Takes the backing file away while the device may be in use.
    pub fn detach_now(&self) {
        run("losetup", &["--detach", self.text()]);
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Some(losetup) = find_program("losetup") {
            let _ = Command::new(losetup).arg("--detach").arg(&self.path).output();
        }
    }
}

/// A mounted file system, unmounted when dropped.
#[derive(Debug)]
pub struct Mount {
    at: PathBuf,
}

impl Mount {
    /// Runs `mount` with `args` and the mount point, which is made.
    pub fn new(at: PathBuf, args: &[&str]) -> Self {
        std::fs::create_dir_all(&at).expect("the mount point can be made");
        let mut words = args.to_vec();
        words.push(text(&at));
        run("mount", &words);
        Self { at }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(umount) = find_program("umount") {
            let _ = Command::new(umount).arg("--lazy").arg(&self.at).output();
        }
    }
}

/// Disks that nobody may write to.
#[derive(Debug)]
pub struct Canaries {
    disks: Vec<(PathBuf, u64, blake3::Hash)>,
}

impl Canaries {
    /// Makes `count` files full of random bytes in the scratch folder.
    pub fn new(scratch: &Scratch, count: u64) -> Self {
        let size = 4 * MIB;
        let disks = (0..count)
            .map(|number| {
                let path = scratch.sparse(&format!("canary-{number}.img"), size);
                fill(&path, size, Fill::Random, 0xca_a417 + number);
                let before = digest(&path, size);
                (path, size, before)
            })
            .collect();
        Self { disks }
    }

    /// Watches a disk that is there already.
    pub fn watch(&mut self, path: &Path, size: u64) {
        self.disks.push((path.to_owned(), size, digest(path, size)));
    }

    /// Paths of the disks.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.disks.iter().map(|(path, _, _)| path.as_path())
    }

    /// Fails when one of them changed.
    pub fn assert_untouched(&self) {
        for (path, size, before) in &self.disks {
            assert_eq!(
                digest(path, *size),
                *before,
                "{} was written to, and nobody was allowed to",
                path.display()
            );
        }
    }
}

/// A path of the tests' own as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}
