// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-image vmx check|enable-uuid`.

use std::path::PathBuf;

use clap::Subcommand;

use super::{say, say_json};
use crate::error::{Error, Kind, Result, shown};
use crate::vmx::{self, EnableUuid};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Tell whether a virtual machine shows SCSI IDs (disk.EnableUUID)
    Check {
        /// Configuration file of the virtual machine
        vmx: PathBuf,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Set disk.EnableUUID; the virtual machine must be off
    EnableUuid {
        /// Configuration file of the virtual machine
        vmx: PathBuf,
    },
}

pub fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Check { vmx, json } => {
            let found = vmx::load(&vmx)?.enable_uuid();
            if json {
                say_json(&serde_json::json!({
                    "vmx": shown(&vmx),
                    "enable_uuid": found == EnableUuid::On,
                    "found": found.to_string(),
                }))?;
            }
            match found {
                EnableUuid::On if json => Ok(()),
                EnableUuid::On => say(&format!("{}: disk.EnableUUID is set", shown(&vmx))),
                found => Err(Error::new(
                    Kind::Faults,
                    format!("{}: disk.EnableUUID is {found}", shown(&vmx)),
                )
                .hint(format!(
                    "power the virtual machine off, then run \"mt-image vmx enable-uuid {}\"",
                    shown(&vmx)
                ))),
            }
        }
        Verb::EnableUuid { vmx } => {
            if vmx::enable_uuid(&vmx)? {
                say(&format!("{}: disk.EnableUUID is set now", shown(&vmx)))
            } else {
                say(&format!(
                    "{}: disk.EnableUUID was set already, nothing was changed",
                    shown(&vmx)
                ))
            }
        }
    }
}
