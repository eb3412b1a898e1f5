// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-image iso embed-ks`.

use std::path::PathBuf;

use clap::Subcommand;

use super::say;
use super::vmdk::existing;
use crate::error::{Result, shown};
use crate::iso::embed_kickstart;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make an unattended medium by putting a kickstart file on it
    EmbedKs {
        /// Installation medium
        iso: PathBuf,
        /// Kickstart file
        kickstart: PathBuf,
        /// Medium to make
        #[arg(long)]
        out: PathBuf,
        /// Replace the file if it exists
        #[arg(long)]
        force: bool,
    },
}

pub fn run(verb: Verb) -> Result<()> {
    let Verb::EmbedKs {
        iso,
        kickstart,
        out,
        force,
    } = verb;
    embed_kickstart(&iso, &kickstart, &out, existing(force))?;
    say(&format!(
        "{}: starts the unattended installation by itself",
        shown(&out)
    ))
}
