// SPDX-License-Identifier: MIT OR Apache-2.0
//! Skipping in the open, as `scripts/test` reads it: a skip is written to `MT_SKIP_LOG`, and where `MT_PROMISED=1` says
//! that the machine was set up for the test, it is a failure.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::io::Write;

/// Notes that a test does not run here, and why.
pub fn skip(test: &str, reason: &str) {
    println!("SKIPPED {test}: {reason}");
    if let Some(path) = std::env::var_os("MT_SKIP_LOG") {
        let mut log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        log.write_all(format!("{test}: {reason}\n").as_bytes()).unwrap();
    }
    assert!(
        std::env::var_os("MT_PROMISED").is_none_or(|value| value != "1"),
        "{test} was promised here and cannot run: {reason}"
    );
}
