// SPDX-License-Identifier: MIT OR Apache-2.0
//! A folder in which packages are made and signed, with a keyring of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::text;

pub fn p(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

pub struct Workshop(pub tempfile::TempDir);

impl Workshop {
    pub fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a program that has to do well; its keyring is the folder `home`.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> Output {
        let output = Command::new(program)
            .args(arguments)
            .env("HOME", self.at("home"))
            .env("GNUPGHOME", self.at("home"))
            .env("LC_ALL", "C.UTF-8")
            // Debian's kernel would have an initramfs made that is not wanted.
            .env("INITRD", "No")
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            text(&output)
        );
        output
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        // The agent that gpg started ends; there is nobody to tell when it does not.
        let _ = Command::new("gpgconf")
            .args(["--kill", "all"])
            .env("GNUPGHOME", self.at("home"))
            .output();
    }
}
