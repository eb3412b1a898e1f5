//! Kernel and initramfs of the guest, with the agent under test in it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::agent;
use crate::disks::{run, text};
use crate::scratch::Scratch;
use crate::skip::{can_use, find_program, skip};

/// Programs that a guest needs on this machine.
const PROGRAMS: [&str; 4] = ["qemu-system-x86_64", "setpriv", "cpio", "ldd"];

/// Whether `test` can have a guest; notes the skip when not. The first call on a machine makes it, which takes a
/// minute and fetches a kernel.
pub fn can_boot(test: &str) -> bool {
    if !can_use(test, &PROGRAMS) {
        return false;
    }
    match made_by("make-guest") {
        Ok(_) => true,
        Err(why) => {
            skip(test, &why);
            false
        }
    }
}

/// What a script in `scripts/lib` made, at the first call on a machine or earlier: a path. Or why it cannot be had here:
/// something that has to come from elsewhere does not come (exit code 3).
///
/// # Errors
/// The reason to skip.
///
/// # Panics
/// When the script fails.
pub fn made_by(script: &str) -> Result<PathBuf, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../scripts/lib")
        .join(script);
    let output = Command::new(&path)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot start {}: {error}", path.display()));
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end())),
        Some(3) => Err(said.lines().rev().take(2).collect::<Vec<_>>().join("; ")),
        _ => panic!("{script}: {}\n{said}", output.status),
    }
}

/// Kernel and initramfs: the guest's own archive with the agent and its libraries behind it, since the kernel unpacks
/// one archive after the other.
pub(super) fn kernel_and_initramfs(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let folder = made_by("make-guest").expect("whoever boots has asked whether that can be");
    let initramfs = scratch.join("initramfs");
    if !initramfs.exists() {
        let mut archive = std::fs::read(folder.join("initramfs")).expect("the guest was made");
        archive.extend_from_slice(&agent_archive(scratch));
        std::fs::write(&initramfs, archive).expect("scratch has room");
    }
    (folder.join("vmlinuz"), initramfs)
}

fn agent_archive(scratch: &Scratch) -> Vec<u8> {
    let stage = scratch.join("initramfs.d");
    let (programs, libraries) = (stage.join("usr/bin"), stage.join("usr/lib/x86_64-linux-gnu"));
    for folder in [&programs, &libraries] {
        std::fs::create_dir_all(folder).expect("scratch has room");
    }
    let agent = agent::binary();
    if find_program("strip").is_some() {
        // Debug information would fill the guest's memory.
        run("strip", &["-o", text(&programs.join("mt-agent")), text(&agent)]);
    } else {
        std::fs::copy(&agent, programs.join("mt-agent")).expect("scratch has room");
    }
    let mut names = vec!["usr/bin/mt-agent".to_owned()];
    for line in run("ldd", &[text(&agent)]).lines() {
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        if let Some(path) = path.map(Path::new)
            && let Some(name) = path.file_name().and_then(|name| name.to_str())
            && !name.starts_with("ld-linux")
        {
            std::fs::copy(path, libraries.join(name)).expect("scratch has room");
            names.push(format!("usr/lib/x86_64-linux-gnu/{name}"));
        }
    }
    let mut cpio = Command::new(find_program("cpio").expect("cpio is there"))
        .args(["--create", "--format=newc", "--quiet", "--owner=0:0"])
        .current_dir(&stage)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("cpio starts");
    let mut input = cpio.stdin.take().expect("its input is a pipe");
    input
        .write_all(names.join("\n").as_bytes())
        .expect("cpio reads its list");
    drop(input);
    let output = cpio.wait_with_output().expect("cpio ends");
    assert!(output.status.success(), "cpio: {}", output.status);
    output.stdout
}
