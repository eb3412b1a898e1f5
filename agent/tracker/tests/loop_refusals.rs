//! What is said where no tracker can run: this test starts itself as somebody who may not, and where something is missing.

mod support;

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use mt_tracker::tracker::{Options, Tracker};

const INSIDE: &str = "MT_TRACKER_REFUSED";

/// Not a test by itself: tells the test that started it why there is no tracker.
#[test]
fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    match Tracker::start(&Options::default()) {
        Ok(_) => println!("SAID started"),
        Err(error) => println!("SAID {error}; {}", error.hint()),
    }
}

fn said(command: &mut Command) -> Option<String> {
    let output = command
        .args(["--exact", "inside", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.split_once("SAID "))?;
    Some(line.1.to_owned())
}

fn root_or_skip(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        support::skip(test, "needs root, to become somebody else");
    }
    root
}

#[test]
fn without_privilege_it_says_so_and_what_happens_instead() {
    if !root_or_skip("without_privilege_it_says_so_and_what_happens_instead") {
        return;
    }
    // The file itself may be where nobody else can reach it.
    let copy = tempfile::Builder::new()
        .prefix("mt-tracker-")
        .tempdir_in("/var/tmp")
        .unwrap();
    std::fs::set_permissions(copy.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = copy.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let said =
        said(Command::new(&program).uid(65_534).gid(65_534).current_dir("/")).expect("it says something");
    assert!(
        said.contains("CAP_BPF") && said.contains("as root") && said.contains("digests"),
        "{said}"
    );
}

#[test]
fn without_types_it_says_so_and_what_happens_instead() {
    if !root_or_skip("without_types_it_says_so_and_what_happens_instead") {
        return;
    }
    let mut command = Command::new("unshare");
    // Hidden from this process only.
    command.args([
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"",
        "sh",
    ]);
    command.arg(std::env::current_exe().unwrap());
    let said = said(&mut command).expect("it says something");
    assert!(
        said.contains("BTF") && said.contains("CONFIG_DEBUG_INFO_BTF") && said.contains("digests"),
        "{said}"
    );
}
