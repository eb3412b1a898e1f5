// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-image spec check`.

use std::path::PathBuf;

use clap::Subcommand;

use super::{say, say_json};
use crate::error::{Result, shown};
use crate::spec;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Read an image spec and say what is wrong with it
    Check {
        /// File to read
        spec: PathBuf,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
}

pub fn run(verb: Verb) -> Result<()> {
    let Verb::Check { spec: path, json } = verb;
    let spec = spec::load(&path)?;
    if json {
        return say_json(&serde_json::json!({
            "spec": shown(&path),
            "name": spec.name,
            "version": spec.version,
            "packages": spec.rootfs.packages.len(),
        }));
    }
    say(&format!(
        "{}: good; {} {}, {} packages",
        shown(&path),
        spec.name,
        spec.version,
        spec.rootfs.packages.len()
    ))
}
