// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the tests against other programs share.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "test code; each test binary uses its part"
)]

pub mod skip;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Tells whether all programs are there; notes the skip of the running test when not.
pub fn require(programs: &[&str]) -> bool {
    let missing: Vec<&&str> = programs
        .iter()
        .filter(|program| which(program).is_none())
        .collect();
    if missing.is_empty() {
        return true;
    }
    skip_here(&format!("programs are missing: {missing:?}"));
    false
}

/// Tells whether this process is root; notes the skip of the running test when not.
pub fn require_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip_here("needs root");
    }
    root
}

/// Notes that the running test does not run here, and why.
pub fn skip_here(reason: &str) {
    // The test harness names its threads after the tests; with one thread only, it runs them in its own.
    let thread = std::thread::current();
    skip::skip(thread.name().unwrap_or("a test"), reason);
}

fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// Runs a program and returns what it said.
pub fn run(program: &str, arguments: &[&Path]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Runs `mt-image`.
pub fn mt_image(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mt-image"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs `mt-image` and expects success; returns standard output.
pub fn mt_image_ok(arguments: &[&str]) -> String {
    let output = mt_image(arguments);
    assert!(
        output.status.success(),
        "mt-image {arguments:?}: {}",
        text(&output)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Both outputs and the exit code, for messages.
pub fn text(output: &Output) -> String {
    format!(
        "{:?}\n{}{}",
        output.status.code(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A raw disk of `mib` MiB with data of several kinds and holes between.
pub fn sample_disk(path: &Path, mib: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(mib << 20).unwrap();
    let mut state = 0x1234_5678_9abc_def1u64;
    for step in 0..mib {
        let at = (step << 20) + (step % 7) * 4096;
        if step % 3 == 0 {
            let mut noise = Vec::with_capacity(100_000);
            while noise.len() < 100_000 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                noise.write_all(&state.to_le_bytes()).unwrap();
            }
            file.write_all_at(&noise, at).unwrap();
        } else if step % 3 == 1 {
            let line = format!("block {step}: text that compresses well, as configuration files do\n");
            file.write_all_at(line.repeat(2_000).as_bytes(), at).unwrap();
        }
    }
}
