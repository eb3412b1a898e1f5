// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can go wrong before and during a build: each fault has its exit code and hint, and leaves nothing behind.
//!
//! Most need root, and a mirror that can be reached.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::text;

const PROGRAMS: &[&str] = &[
    "mmdebstrap",
    "mksquashfs",
    "xorriso",
    "mkfs.vfat",
    "mcopy",
    "apt-get",
];

/// A folder with a changed spec, its work folder and its output folder.
struct Lab(tempfile::TempDir);

impl Lab {
    fn new(change: impl Fn(String) -> String) -> Self {
        let lab = Self(
            tempfile::Builder::new()
                .prefix("mt-build faults-")
                .tempdir_in("/var/tmp")
                .unwrap(),
        );
        let specs = Path::new(env!("CARGO_MANIFEST_DIR")).join("specs");
        let overlay = format!("overlay = {:?}", specs.join("../overlay").to_str().unwrap());
        let spec = fs::read_to_string(specs.join("debian.toml")).unwrap();
        let spec = change(spec.replace("overlay = \"../overlay\"", &overlay));
        fs::write(lab.path("spec.toml"), spec).unwrap();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, program: &str, before: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(before);
        if program != env!("CARGO_BIN_EXE_mt-image") {
            command.arg(env!("CARGO_BIN_EXE_mt-image"));
        }
        command.arg("build").arg("--spec").arg(self.path("spec.toml"));
        // Stands for the programs of the appliance, which play no part in these faults.
        let stand_in = env!("CARGO_BIN_EXE_mt-image");
        command.args(["--iso", "--agent", stand_in, "--installer", stand_in]);
        command
            .arg("--out")
            .arg(self.path("out"))
            .arg("--work")
            .arg(self.path("work"));
        command
    }

    fn build(&self) -> Output {
        self.command(env!("CARGO_BIN_EXE_mt-image"), &[])
            .output()
            .unwrap()
    }

    /// Names left in the work and output folders.
    fn left(&self) -> Vec<String> {
        let folders = [self.path("work"), self.path("out")];
        let entries = folders
            .iter()
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flatten();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// Processes that name this lab on their command line, other than this one, and mounts below it.
    fn traces(&self) -> Vec<String> {
        let name = self.0.path().to_str().unwrap().to_owned();
        let mut traces = Vec::new();
        for entry in fs::read_dir("/proc").unwrap() {
            let path = entry.unwrap().path();
            if let Ok(cmdline) = fs::read(path.join("cmdline")) {
                let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
                if cmdline.contains(&name) {
                    traces.push(cmdline);
                }
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        // Mount points are shown with octal escapes for spaces.
        traces.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&name.replace(' ', "\\040")))
                .map(str::to_owned),
        );
        traces
    }
}

/// Whether a test can run here; the skip is noted when not.
fn can_build(programs: &[&str]) -> bool {
    common::require_root() && common::require(programs)
}

fn expect(output: &Output, code: i32, said: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{}", text(output));
    let errors = String::from_utf8_lossy(&output.stderr);
    for part in said {
        assert!(errors.contains(part), "{part:?} is not in {errors}");
    }
}

#[test]
fn without_root_nothing_is_begun() {
    if !can_build(&["setpriv"]) {
        return;
    }
    let lab = Lab::new(|spec| spec);
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(lab.0.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let as_nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let output = lab.command("setpriv", &as_nobody).output().unwrap();
    expect(
        &output,
        5,
        &[
            "building an image needs root, this process has user ID 65534",
            "hint: run it with sudo",
        ],
    );
    assert!(lab.left().is_empty());
}

#[test]
fn an_existing_medium_is_kept() {
    let lab = Lab::new(|spec| spec);
    fs::create_dir(lab.path("out")).unwrap();
    fs::write(lab.path("out/master-target-0.1.0.iso"), "precious").unwrap();
    expect(
        &lab.build(),
        5,
        &[
            "master-target-0.1.0.iso exists already; nothing was written",
            "--force",
        ],
    );
    assert_eq!(
        fs::read(lab.path("out/master-target-0.1.0.iso")).unwrap(),
        b"precious"
    );
    assert!(!lab.path("work").exists());
}

#[test]
fn a_mirror_that_cannot_be_reached_is_told_at_once() {
    if !can_build(PROGRAMS) {
        return;
    }
    let lab = Lab::new(|spec| spec.replace("http://deb.debian.org/", "http://127.0.0.1:9/"));
    expect(
        &lab.build(),
        6,
        &["127.0.0.1:9", "hint: the mirror cannot be reached"],
    );
    assert!(lab.left().is_empty(), "{:?}", lab.left());
}

#[test]
fn a_missing_overlay_is_told() {
    if !can_build(PROGRAMS) {
        return;
    }
    let lab = Lab::new(|spec| {
        spec.replace("http://deb.debian.org/", "http://127.0.0.1:9/")
            .replace("/overlay\"", "/none\"")
    });
    let output = lab.build();
    expect(&output, 3, &["rootfs.overlay of the spec names", "hint: "]);
    assert!(lab.left().is_empty(), "{:?}", lab.left());
}

#[test]
fn a_package_that_no_suite_has_is_named() {
    if !can_build(PROGRAMS) {
        return;
    }
    let lab = Lab::new(|spec| spec.replace("\"less\",", "\"less\", \"mt-no-such-package\","));
    expect(
        &lab.build(),
        3,
        &[
            "mt-no-such-package",
            "hint: a package of the spec is in none of its suites",
        ],
    );
    assert!(lab.left().is_empty(), "{:?}", lab.left());
}

#[test]
fn a_mirror_signed_by_somebody_else_is_refused() {
    let keyring = "/usr/share/keyrings/debian-archive-removed-keys.gpg";
    if !can_build(PROGRAMS) {
        return;
    }
    assert!(
        Path::new(keyring).is_file(),
        "debian-archive-keyring is installed"
    );
    let lab = Lab::new(|spec| spec.replace("\"deb http", &format!("\"deb [signed-by={keyring}] http")));
    let output = lab.build();
    expect(
        &output,
        6,
        &["hint: the mirror's data does not fit to its signatures"],
    );
    assert!(lab.left().is_empty(), "{:?}", lab.left());
}

#[test]
fn programs_that_are_not_there_are_named() {
    if !can_build(PROGRAMS) {
        return;
    }
    let lab = Lab::new(|spec| spec);
    let spec = lab.path("spec.toml");
    let output = common::mt_image(&[
        "build",
        "--spec",
        spec.to_str().unwrap(),
        "--agent",
        "/no such agent",
        "--work",
        lab.path("work").to_str().unwrap(),
        "--out",
        lab.path("out").to_str().unwrap(),
    ]);
    expect(
        &output,
        2,
        &["the agent's program /no such agent is no file", "--agent"],
    );
    assert!(lab.left().is_empty(), "{:?}", lab.left());
}

#[test]
fn a_full_work_folder_is_told() {
    if !can_build(PROGRAMS) {
        return;
    }
    let lab = Lab::new(|spec| spec);
    fs::create_dir(lab.path("work")).unwrap();
    // Within a mount namespace of its own, so that the small file system goes with the process.
    let script = "mount -t tmpfs -o size=64m tmpfs \"$0\" && \"$@\"; code=$?; ls -A \"$0\" >&2; exit $code";
    let work = lab.path("work");
    let output = lab
        .command(
            "unshare",
            &["--mount", "sh", "-c", script, work.to_str().unwrap()],
        )
        .output()
        .unwrap();
    expect(
        &output,
        1,
        &[
            "No space left on device",
            "hint: free space, or name other folders",
        ],
    );
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !errors.contains("\nmt-image-work-") && !errors.contains("\nbase-"),
        "left behind: {errors}"
    );
}

#[test]
fn a_killed_build_leaves_no_process_mount_or_file() {
    if !can_build(PROGRAMS) {
        return;
    }
    for signal in [
        nix::sys::signal::Signal::SIGKILL,
        nix::sys::signal::Signal::SIGTERM,
    ] {
        let lab = Lab::new(|spec| spec);
        let mut child = lab
            .command(env!("CARGO_BIN_EXE_mt-image"), &[])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Deep in the work: mmdebstrap has unpacked something and has mounts in its namespace.
        let deadline = Instant::now() + Duration::from_secs(240);
        let mut deep = false;
        while !deep {
            assert!(
                Instant::now() < deadline && child.try_wait().unwrap().is_none(),
                "the build did not get far"
            );
            std::thread::sleep(Duration::from_millis(200));
            let scratch = fs::read_dir(lab.path("work")).into_iter().flatten().flatten();
            deep = scratch
                .flat_map(|entry| fs::read_dir(entry.path()).into_iter().flatten().flatten())
                .any(|chroot| {
                    chroot.path().join("proc/self").exists() || chroot.path().join("usr/bin/dpkg").exists()
                });
        }
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        child.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !(lab.left().is_empty() && lab.traces().is_empty()) {
            assert!(
                Instant::now() < deadline,
                "left: {:?} {:?}",
                lab.left(),
                lab.traces()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
