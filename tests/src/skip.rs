//! Skipping in the open: a test that cannot run here says why, and where the tier was promised it fails.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Where skips are written, one line each; `scripts/test` reads it.
const LOG: &str = "MT_SKIP_LOG";

/// Set to `1` where skipping is a failure: on a CI machine that was set up for the tier.
const PROMISED: &str = "MT_PROMISED";

/// Notes that a test does not run here.
///
/// # Panics
/// When the tier was promised.
pub fn skip(test: &str, reason: &str) {
    println!("SKIPPED {test}: {reason}");
    if let Some(path) = std::env::var_os(LOG) {
        let line = format!("{test}: {reason}\n");
        std::fs::File::options()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut log| log.write_all(line.as_bytes()))
            .expect("the log of skips can be written");
    }
    assert!(
        std::env::var_os(PROMISED).is_none_or(|value| value != "1"),
        "{test} was promised here and cannot run: {reason}"
    );
}

/// The path of a program, also where `/usr/sbin` is not searched.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// Whether `test` can have root, loop devices and these programs; notes the skip when not.
pub fn can_use_loop(test: &str, programs: &[&str]) -> bool {
    if !nix::unistd::geteuid().is_root() {
        skip(test, "needs root to attach loop devices");
        return false;
    }
    if !Path::new("/dev/loop-control").exists() {
        skip(test, "this kernel has no loop devices");
        return false;
    }
    can_use(test, programs)
}

/// Whether `test` can have these programs; notes the skip when not.
pub fn can_use(test: &str, programs: &[&str]) -> bool {
    match programs.iter().find(|program| find_program(program).is_none()) {
        Some(program) => {
            skip(test, &format!("there is no {program}"));
            false
        }
        None => true,
    }
}

/// Ends the test here, and says so, unless it can have what it needs.
///
/// `needs!(loop "nbdkit", "nbdfuse")` asks for root and loop devices too, `needs!("qemu-img")` for programs only.
#[macro_export]
macro_rules! needs {
    (loop $(, $program:literal)*) => {
        if !$crate::skip::can_use_loop($crate::test_name!(), &[$($program),*]) {
            return;
        }
    };
    ($($program:literal),+) => {
        if !$crate::skip::can_use($crate::test_name!(), &[$($program),+]) {
            return;
        }
    };
}

/// The name of the test function this stands in.
#[macro_export]
macro_rules! test_name {
    () => {{
        fn here() {}
        std::any::type_name_of_val(&here).trim_end_matches("::here")
    }};
}
