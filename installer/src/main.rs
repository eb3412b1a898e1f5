// SPDX-License-Identifier: MIT OR Apache-2.0
//! Entry point of `mt-installer`.

mod facts;
mod screen;

use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "mt-installer",
    version,
    about = "Installs the master target",
    max_term_width = 80
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the first screen of the installation medium and wait for Enter
    Start,
}

fn main() -> ExitCode {
    let Verb::Start = Arguments::parse().verb;
    let text = screen::render(env!("CARGO_PKG_VERSION"), &facts::gather(Path::new("/")));
    let mut console = std::io::stdout().lock();
    if let Err(error) = console.write_all(text.as_bytes()).and_then(|()| console.flush()) {
        eprintln!("mt-installer: cannot write to the console: {error}");
        return ExitCode::FAILURE;
    }
    // A console that went away is no reason to restart the machine: only Enter is.
    match std::io::stdin().read(&mut [0u8; 1]) {
        Ok(1) => ExitCode::SUCCESS,
        Ok(_) => {
            eprintln!("mt-installer: the console was closed before Enter was pressed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("mt-installer: cannot read from the console: {error}");
            ExitCode::FAILURE
        }
    }
}
