// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-installer start`: what the installation medium shows on each console.

use std::io::{Read, Write};
use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::unattended::{self, Outcome};
use crate::{medium, screen};

pub fn run() -> Result<()> {
    let facts = medium::gather(Path::new("/"));
    let version = env!("CARGO_PKG_VERSION");
    if facts.mode != "unattended" {
        return wait_for_enter(&screen::render(version, &facts));
    }
    match unattended::run(&facts, &screen::header(version, &facts))? {
        Outcome::Installed(end) => unattended::end_machine(end),
        Outcome::Failed => wait_for_enter("Press Enter to restart.\n"),
    }
}

fn wait_for_enter(text: &str) -> Result<()> {
    let mut console = std::io::stdout().lock();
    console
        .write_all(text.as_bytes())
        .and_then(|()| console.flush())
        .map_err(|error| Error::new(Kind::Unexpected, format!("cannot write to the console: {error}")))?;
    // A console that went away is no reason to restart the machine: only Enter is.
    match std::io::stdin().read(&mut [0u8; 1]) {
        Ok(1) => Ok(()),
        Ok(_) => Err(Error::new(
            Kind::Unexpected,
            "the console was closed before Enter was pressed",
        )),
        Err(error) => Err(Error::new(
            Kind::Unexpected,
            format!("cannot read from the console: {error}"),
        )),
    }
}
