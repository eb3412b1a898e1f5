// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-installer selftest`: whether the guests' file systems work here.

use std::path::PathBuf;

use super::{say, say_json};
use crate::error::{Error, Kind, Result};
use crate::selftest::{self, Outcome};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    /// Folder for the scratch file, with 400 MiB free
    #[arg(long, default_value = "/var/tmp", value_name = "FOLDER")]
    scratch: PathBuf,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let outcomes = selftest::run(&arguments.scratch, &mut |text| crate::tell_line!("{text}"))?;
    if arguments.json {
        #[derive(serde::Serialize)]
        struct Document<'a> {
            file_systems: &'a [Outcome],
        }
        say_json(&Document {
            file_systems: &outcomes,
        })?;
    } else {
        for outcome in &outcomes {
            match &outcome.fault {
                None => say(&format!("{:9} good", outcome.name))?,
                Some(fault) => {
                    let step = outcome.steps.last().unwrap_or(&"");
                    say(&format!("{:9} FAULT at \"{step}\": {fault}", outcome.name))?;
                    if let Some(hint) = &outcome.hint {
                        say(&format!("          {hint}"))?;
                    }
                }
            }
        }
    }
    let bad: Vec<&str> = outcomes
        .iter()
        .filter(|outcome| !outcome.good)
        .map(|outcome| outcome.name)
        .collect();
    if bad.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Faults,
        format!("not usable on this system: {}", bad.join(", ")),
    )
    .hint("machines with these file systems come home all the same, block by block; only fix-ups inside them fail"))
}
