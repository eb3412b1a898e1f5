// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-image iso embed-ks|verify`.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::vmdk::{existing, open_input};
use super::{judge, say, say_json};
use crate::error::{Fault, Result, shown};
use crate::iso::embed::{Readers, embed_kickstart};
use crate::iso::seal;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make an unattended medium by putting a kickstart file on it
    ///
    /// The kickstart file is checked as "mt-installer ks check" does; with
    /// errors in it nothing is written. A medium whose answers hold the hash of
    /// the root password or scripts is readable for its owner only (mode 0600).
    EmbedKs {
        /// Installation medium
        iso: PathBuf,
        /// Kickstart file, or a pipe as <(...) gives; at most 1 MiB
        kickstart: PathBuf,
        /// Medium to make, in a folder that is there
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
            let readers = embed_kickstart(&iso, &kickstart, &out, existing(force))?;
            let who = match readers {
                Readers::All => "",
                Readers::Owner => {
                    "; only its owner may read it, since it holds the hash of the root password, or scripts"
                }
            };
            say(&format!(
                "{}: starts the unattended installation by itself{who}",
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
