// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-image agent-tarball`.

use std::path::PathBuf;

use super::say;
use super::vmdk::existing;
use crate::agent_tarball::{self, Request};
use crate::error::{Error, Kind, Result, shown};
use crate::spec;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The agent's program
    #[arg(long)]
    agent: PathBuf,
    /// The installer's program
    #[arg(long)]
    installer: PathBuf,
    /// Folder for the tarball, made where it is missing
    #[arg(long, default_value = "dist")]
    out: PathBuf,
    /// Version in its name, instead of this program's
    #[arg(long)]
    version: Option<String>,
    /// Time of every file in it, seconds since 1970: 1980 to 2106
    #[arg(long, default_value_t = 1_767_225_600, value_parser = clap::value_parser!(u64).range(spec::SOURCE_DATES))]
    source_date: u64,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

pub fn run(arguments: Arguments) -> Result<()> {
    let version = arguments
        .version
        .unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned());
    spec::check_version(&version).map_err(|text| Error::new(Kind::Usage, format!("--version: {text}")))?;
    let made = agent_tarball::build(&Request {
        agent: arguments.agent,
        installer: arguments.installer,
        out: arguments.out,
        version,
        source_date: arguments.source_date,
        existing: existing(arguments.force),
    })?;
    say(&shown(&made))
}
