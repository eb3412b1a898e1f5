// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-installer boot`.

use std::path::Path;

use clap::Subcommand;

use super::say;
use crate::boot::bind;
use crate::command::require_root;
use crate::error::Result;
use crate::renew::renew;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Record the SCSI ID of the disk this system was started from, so that a
    /// copy of it is never taken for it
    Bind,
    /// Give the disk of an image names of its own, at its first start
    Renew,
}

pub fn run(verb: &Verb) -> Result<()> {
    match verb {
        Verb::Renew => {
            require_root("renaming the system's disk")?;
            if renew(Path::new("/"))? {
                say("disk, partitions and file systems have names of their own now")
            } else {
                say("nothing to do: they have names of their own")
            }
        }
        Verb::Bind => {
            require_root("recording the system's disk")?;
            match bind(Path::new("/"))? {
                Some(id) => say(&format!("the system is bound to disk {id}")),
                None => say("nothing to do: the system's disk is recorded, or has no SCSI ID"),
            }
        }
    }
}
