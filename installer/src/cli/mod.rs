// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line: one file per noun. Results go to standard output, everything else to standard error.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{Error, Kind, Result};

mod apply;
mod ask;
mod boot;
mod console;
mod custom_change;
mod first_boot;
mod ks;
mod scsi_ids;
mod selftest;
mod start;

/// Version of every JSON document this program prints.
pub const JSON_SCHEMA: u32 = 1;

#[derive(Debug, Parser)]
#[command(
    name = "mt-installer",
    version,
    about = "Installs the master target",
    after_help = "Exit codes: 0 done, 1 unexpected, 2 usage, 3 answers, 4 disk missing or in\n\
                  doubt, 5 refused for safety, 8 partly done, 9 a check found faults.",
    max_term_width = 80
)]
struct Arguments {
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Make a Debian or EL system a master target, once
    #[command(subcommand)]
    CustomChange(custom_change::Verb),
    /// Show the screen of the installed appliance on this console
    Console(console::Arguments),
    /// Ask on this console what an installation has to know, and save it
    Ask(ask::Arguments),
    /// Answers in kickstart syntax
    #[command(subcommand)]
    Ks(ks::Verb),
    /// Print what apply would do
    Plan(apply::What),
    /// Install
    Apply(apply::ApplyArguments),
    /// What starts the installed system
    #[command(subcommand)]
    Boot(boot::Verb),
    /// Settings given at deployment: OVF environment, guestinfo, CD
    #[command(subcommand)]
    FirstBoot(first_boot::Verb),
    /// Tell whether every SCSI disk shows an ID (disk.EnableUUID)
    ScsiIds(scsi_ids::Arguments),
    /// Try the file systems of the machines that come home, on scratch files
    Selftest(selftest::Arguments),
    /// Show the first screen of the installation medium and wait for Enter
    Start,
}

/// Runs the program with the process's arguments.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Printing can only fail when nobody is there to read it.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() {
                Kind::Usage.exit_code()
            } else {
                0
            });
        }
    };
    let done = match arguments.noun {
        Noun::CustomChange(verb) => custom_change::run(verb),
        Noun::Console(arguments) => console::run(&arguments),
        Noun::Ask(arguments) => ask::run(&arguments),
        Noun::Ks(verb) => ks::run(&verb),
        Noun::Plan(what) => apply::show(&what),
        Noun::Apply(arguments) => apply::run(&arguments),
        Noun::Boot(verb) => boot::run(&verb),
        Noun::FirstBoot(verb) => first_boot::run(verb),
        Noun::ScsiIds(arguments) => scsi_ids::run(&arguments),
        Noun::Selftest(arguments) => selftest::run(&arguments),
        Noun::Start => start::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::tell_line!("mt-installer: {error}");
            if let Some(hint) = error.next_step() {
                crate::tell_line!("hint: {hint}");
            }
            ExitCode::from(error.kind.exit_code())
        }
    }
}

/// Prints a line, and takes a closed pipe (`| head`) as the reader's wish.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn say(text: &str) -> Result<()> {
    use std::io::Write;
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::new(
            Kind::Unexpected,
            format!("cannot print the result: {error}"),
        )),
        _ => Ok(()),
    }
}

/// Prints a document with its `schema`.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn say_json<T: serde::Serialize>(value: &T) -> Result<()> {
    #[derive(serde::Serialize)]
    struct Document<'a, T> {
        schema: u32,
        #[serde(flatten)]
        value: &'a T,
    }
    let text = serde_json::to_string_pretty(&Document {
        schema: JSON_SCHEMA,
        value,
    })
    .map_err(|error| Error::new(Kind::Unexpected, format!("cannot render JSON: {error}")))?;
    say(&text)
}
