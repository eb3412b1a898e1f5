// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-installer ks`.

use std::path::PathBuf;

use clap::Subcommand;

use super::{say, say_json};
use crate::error::{Result, shown};
use crate::kickstart;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Check a kickstart file
    Check {
        /// The file
        file: PathBuf,
        /// Print the answers as JSON
        #[arg(long)]
        json: bool,
    },
}

pub fn run(verb: &Verb) -> Result<()> {
    let Verb::Check { file, json } = verb;
    let answers = kickstart::read(file)?;
    if *json {
        say_json(&answers)
    } else {
        say(&format!("{}: every line is understood", shown(file)))
    }
}
