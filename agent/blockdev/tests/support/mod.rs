//! Loop devices and mounts of the tests' own, taken down again when dropped.
#![allow(dead_code, reason = "every test binary uses its own part of this")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether the tests that need root can run; prints why not.
pub fn root_or_skip(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("{test}: skipped, it needs root to attach loop devices");
        return false;
    }
    if !Path::new("/dev/loop-control").exists() {
        println!("{test}: skipped, this kernel has no loop devices");
        return false;
    }
    true
}

/// Whether a program is there; prints that the test is skipped when not.
pub fn program_or_skip(test: &str, program: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path)
            .chain([PathBuf::from("/sbin"), PathBuf::from("/usr/sbin")])
            .any(|dir| dir.join(program).exists())
    });
    if !found {
        println!("{test}: skipped, there is no {program}");
    }
    found
}

/// Runs a program and returns its standard output; fails the test when it fails.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap_or_else(|err| panic!("cannot start {program}: {err}"));
    assert!(
        output.status.success(),
        "{program} {args:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("programs print text")
}

/// A scratch folder on a real file system.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("disks-")
        .tempdir_in("/var/tmp")
        .expect("/var/tmp is writable")
}

/// A file of `size` bytes, all hole.
pub fn image(dir: &Path, name: &str, size: u64) -> PathBuf {
    let path = dir.join(name);
    std::fs::File::create(&path)
        .and_then(|file| file.set_len(size))
        .expect("scratch has room");
    path
}

/// A loop device, detached when dropped.
pub struct Loop {
    /// `/dev/loopN`
    pub path: PathBuf,
}

impl Loop {
    /// Attaches `image` to a free loop device.
    pub fn attach(image: &Path, options: &[&str]) -> Self {
        let mut args = vec!["--find", "--show"];
        args.extend_from_slice(options);
        args.push(image.to_str().expect("test paths are text"));
        Self {
            path: PathBuf::from(run("losetup", &args).trim()),
        }
    }

    /// The path as text.
    pub fn text(&self) -> &str {
        self.path.to_str().expect("loop paths are text")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("/usr/sbin/losetup")
            .arg("--detach")
            .arg(&self.path)
            .status();
    }
}

/// A mounted file system, unmounted when dropped.
pub struct Mount {
    /// The mount point.
    pub at: PathBuf,
}

impl Mount {
    /// Mounts `device` on `at`, which is created.
    pub fn new(device: &str, at: &Path, options: &[&str]) -> Self {
        std::fs::create_dir_all(at).expect("scratch has room");
        let mut args = options.to_vec();
        args.extend_from_slice(&[device, at.to_str().expect("test paths are text")]);
        run("mount", &args);
        Self { at: at.to_owned() }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("/usr/bin/umount").arg(&self.at).status();
    }
}
