// SPDX-License-Identifier: MIT OR Apache-2.0
//! The self-test on this machine's own kernel: what it has is good, and what it lacks is named with the remedy.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::process::Command;

use common::{can_install, scratch};

#[test]
fn loop_selftest_proves_what_the_kernel_has() {
    if !can_install("loop_selftest_proves_what_the_kernel_has") {
        return;
    }
    let folder = scratch();
    let output = Command::new(env!("CARGO_BIN_EXE_mt-installer"))
        .args(["selftest", "--json", "--scratch"])
        .arg(folder.path())
        .output()
        .unwrap();
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let kinds = said["file_systems"].as_array().unwrap();
    assert_eq!(kinds.len(), 6, "{said:#}");
    for kind in kinds {
        if kind["good"] == true {
            let steps: Vec<&str> = kind["steps"]
                .as_array()
                .unwrap()
                .iter()
                .map(|step| step.as_str().unwrap())
                .collect();
            assert_eq!(
                steps,
                [
                    "tools",
                    "make",
                    "mount",
                    "write",
                    "unmount",
                    "check",
                    "mount again",
                    "compare",
                    "unmount",
                    "check"
                ]
            );
        } else {
            assert!(kind["hint"].is_string(), "{kind:#}");
        }
    }
    let ext4 = kinds.iter().find(|kind| kind["name"] == "ext4").unwrap();
    assert_eq!(
        ext4["good"], true,
        "every machine that builds this has ext4: {ext4:#}"
    );
    assert_eq!(
        output.status.code(),
        Some(if kinds.iter().all(|kind| kind["good"] == true) {
            0
        } else {
            9
        })
    );
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        0,
        "nothing is left"
    );
}
