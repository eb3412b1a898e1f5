// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is accepted here is valid for pykickstart, which the CentOS family's own installer uses.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

/// ksvalidator: on the search path, or where `scripts/test` keeps it.
fn ksvalidator() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let work = std::env::var_os("MT_WORK").unwrap_or_else(|| "/var/tmp/master-target".into());
    std::env::split_paths(&path)
        .chain([Path::new(&work).join("tools/pykickstart/bin")])
        .map(|folder| folder.join("ksvalidator"))
        .find(|path| path.is_file())
}

#[test]
fn accepted_files_are_valid_for_pykickstart() {
    let Some(program) = ksvalidator() else {
        common::skip(
            "accepted_files_are_valid_for_pykickstart",
            "there is no ksvalidator",
        );
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let example = folder.path().join("example.ks");
    std::fs::write(&example, include_str!("fixtures/example.ks")).unwrap();
    let answers = mt_installer::kickstart::read(&example).unwrap();
    let written = folder.path().join("written.ks");
    std::fs::write(&written, mt_installer::kickstart::render(&answers)).unwrap();
    let defaults = folder.path().join("defaults.ks");
    let text = mt_installer::kickstart::render(&mt_installer::answers::Answers::default());
    std::fs::write(&defaults, text).unwrap();
    for path in [example, written, defaults] {
        for version in ["RHEL9", "RHEL10"] {
            let output = Command::new(&program)
                .args(["--version", version])
                .arg(&path)
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{version} {}: {}",
                path.display(),
                common::text(&output)
            );
        }
    }
}
