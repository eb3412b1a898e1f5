// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-image iso embed-ks|verify`.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::vmdk::{existing, open_input};
use super::{judge, say, say_json};
use crate::error::{Fault, Result, shown};
use crate::iso::embed::embed_kickstart;
use crate::iso::seal;

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
    /// Check that a medium is as it was made, byte for byte
    Verify {
        /// Installation medium
        iso: PathBuf,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
}

pub fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::EmbedKs {
            iso,
            kickstart,
            out,
            force,
        } => {
            embed_kickstart(&iso, &kickstart, &out, existing(force))?;
            say(&format!(
                "{}: starts the unattended installation by itself",
                shown(&out)
            ))
        }
        Verb::Verify { iso, json } => verify(&iso, json),
    }
}

fn verify(iso: &Path, json: bool) -> Result<()> {
    #[derive(serde::Serialize)]
    struct Report {
        size: u64,
        faults: Vec<Fault>,
    }
    let report = Report {
        size: open_input(iso)?.1,
        faults: seal::verify(iso)?,
    };
    if json {
        say_json(&report)?;
    } else if report.faults.is_empty() {
        say(&format!(
            "{}: good, all {} bytes are as they were made",
            shown(iso),
            report.size
        ))?;
    } else {
        report
            .faults
            .iter()
            .try_for_each(|fault| say(&fault.to_string()))?;
    }
    judge(&shown(iso), &report.faults)
}
