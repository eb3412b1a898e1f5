// SPDX-License-Identifier: MIT OR Apache-2.0
//! The agent's tarball as people use it: unpacked by tar, its step run on a root directory.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Once;

use common::{mt_image, mt_image_ok, text};

/// The installer beside the program under test, as it is now: tests of this crate do not build it by themselves.
fn installer() -> PathBuf {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "mt-installer"])
            .status();
        assert!(built.unwrap().success(), "mt-installer is built");
    });
    Path::new(env!("CARGO_BIN_EXE_mt-image")).with_file_name("mt-installer")
}

fn build(out: &Path, more: &[&str]) -> Output {
    let installer = installer();
    let installer = installer.to_str().unwrap();
    // Any program stands in for the agent, which this crate does not build.
    let arguments = [
        "agent-tarball",
        "--agent",
        "/bin/true",
        "--installer",
        installer,
        "--version",
        "1.2.3",
        "--source-date",
        "1700000000",
        "--out",
        out.to_str().unwrap(),
    ];
    mt_image(&[&arguments[..], more].concat())
}

fn unpacked(folder: &Path) -> PathBuf {
    let made = build(folder, &[]);
    assert!(made.status.success(), "{}", text(&made));
    let tarball = folder.join("master-target-agent-1.2.3.tar.gz");
    assert_eq!(
        String::from_utf8_lossy(&made.stdout).trim(),
        tarball.to_str().unwrap()
    );
    let done = Command::new("tar")
        .arg("-zxf")
        .arg(&tarball)
        .arg("-C")
        .arg(folder)
        .status();
    assert!(done.unwrap().success());
    folder.join("master-target-agent-1.2.3")
}

/// A root directory with nothing but what the step cannot do without.
fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    fs::write(root.path().join("etc/group"), "root:x:0:\n").unwrap();
    fs::write(root.path().join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    root
}

fn apply(folder: &Path, root: &Path) -> Output {
    Command::new(folder.join("mt-installer"))
        .args(["custom-change", "apply", "--root"])
        .arg(root)
        .arg("--tarball")
        .arg(folder)
        .output()
        .unwrap()
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    unpacked(one.path());
    unpacked(other.path());
    let read = |folder: &Path| fs::read(folder.join("master-target-agent-1.2.3.tar.gz")).unwrap();
    assert!(read(one.path()) == read(other.path()));
    let refused = build(one.path(), &[]);
    assert_eq!(refused.status.code(), Some(5), "{}", text(&refused));
    assert!(build(one.path(), &["--force"]).status.success());
    let folder = tempfile::tempdir().unwrap();
    let none = mt_image(&[
        "agent-tarball",
        "--agent",
        "/etc/passwd",
        "--installer",
        "/bin/true",
        "--out",
        folder.path().to_str().unwrap(),
    ]);
    assert_eq!(none.status.code(), Some(2));
    assert!(
        text(&none).contains("/etc/passwd is no Linux program"),
        "{}",
        text(&none)
    );
    assert!(mt_image_ok(&["agent-tarball", "--help"]).contains("--source-date"));
}

#[test]
fn it_holds_what_the_step_puts_in_place() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = unpacked(scratch.path());
    for name in ["ApplyCustomChanges.sh", "mt-agent", "mt-installer"] {
        let mode = fs::metadata(folder.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "{name}");
    }
    let checked = Command::new("sha256sum")
        .args(["--check", "--quiet", "SHA256SUMS"])
        .current_dir(&folder)
        .status();
    assert!(checked.unwrap().success());
    let root = root();
    let done = apply(&folder, root.path());
    assert!(done.status.success(), "{}", text(&done));
    let mut compared = 0;
    let mut pending = vec![folder.join("system")];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let inner = path.strip_prefix(folder.join("system")).unwrap();
            let put = root.path().join(inner);
            assert_eq!(
                fs::read(&path).unwrap(),
                fs::read(&put).unwrap(),
                "{}",
                inner.display()
            );
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(&path), mode(&put), "{}", inner.display());
            compared += 1;
        }
    }
    assert!(compared >= 18, "{compared} files were compared");
    assert_eq!(
        fs::read(root.path().join("usr/bin/mt-agent")).unwrap(),
        fs::read("/bin/true").unwrap()
    );
    // Run twice: refused with the date of the first.
    let again = apply(&folder, root.path());
    assert_eq!(again.status.code(), Some(5), "{}", text(&again));
    assert!(
        text(&again).contains("the custom changes were made on 20"),
        "{}",
        text(&again)
    );
}

#[test]
fn a_damaged_or_incomplete_folder_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = unpacked(scratch.path());
    fs::remove_file(folder.join("mt-agent")).unwrap();
    let root = root();
    let refused = apply(&folder, root.path());
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(
        text(&refused).contains("unpack the whole tarball"),
        "{}",
        text(&refused)
    );
    assert!(!root.path().join("etc/udev").exists());
    // The script refuses it too, before it runs anything: as root by the digests, otherwise by the user.
    let refused = Command::new(folder.join("ApplyCustomChanges.sh"))
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(5), "{}", text(&refused));
    assert!(
        text(&refused).contains("nothing was changed"),
        "{}",
        text(&refused)
    );
}
