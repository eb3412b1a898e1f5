// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-image spec check`.

use std::path::PathBuf;

use clap::Subcommand;

use super::say;
use crate::error::{Result, shown};
use crate::spec;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Read an image spec and say what is wrong with it
    Check {
        /// File to read
        spec: PathBuf,
    },
}

pub fn run(verb: Verb) -> Result<()> {
    let Verb::Check { spec: path } = verb;
    let spec = spec::load(&path)?;
    say(&format!(
        "{}: good; {} {}, {} packages",
        shown(&path),
        spec.name,
        spec.version,
        spec.rootfs.packages.len()
    ))
}
