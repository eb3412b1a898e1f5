// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-installer scsi-ids`: whether every SCSI disk shows an ID.

use std::path::Path;

use super::{say, say_json};
use crate::error::{Error, Kind, Result};
use crate::scsi_ids::{self, Report, Verdict};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let report = scsi_ids::gather(Path::new("/"))?;
    if arguments.json {
        #[derive(serde::Serialize)]
        struct Document<'a> {
            verdict: Verdict,
            #[serde(flatten)]
            report: &'a Report,
        }
        say_json(&Document {
            verdict: report.verdict(),
            report: &report,
        })?;
    } else {
        say(report.screen().trim_end())?;
    }
    match report.verdict() {
        Verdict::Refused => Err(
            Error::new(Kind::Disk, "disks of this virtual machine cannot be told apart")
                .hint("power it off and set disk.EnableUUID=TRUE, then start it again"),
        ),
        Verdict::Good | Verdict::Warning => Ok(()),
    }
}
