// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line: noun, then verb. Results go to standard output, everything else to standard error.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{Error, Fault, Kind, Result, counted, line_shown, lines_shown};

mod agent_tarball;
mod build;
mod iso;
mod ova;
mod rootfs;
mod spec;
mod sums;
mod vmdk;
mod vmx;

pub(crate) use vmdk::{open_input, write_error};

/// Version of every JSON document this program prints.
pub const JSON_SCHEMA: u32 = 1;

#[derive(Debug, Parser)]
#[command(
    name = "mt-image",
    version,
    about = "Builds the master target's ISO and OVA, and checks such files of any maker",
    after_help = "Exit codes: 0 done, 1 unexpected, 2 usage, 3 config, 5 refused for safety,\n\
                  6 mirror or peer, 9 a checked file has faults.",
    max_term_width = 80
)]
struct Arguments {
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Build ISO and OVA from a spec
    Build(build::Arguments),
    /// Print what build would do, and what would stop it
    Plan(build::PlanArguments),
    /// Renew the lock file of a spec's packages
    Lock(build::Arguments),
    /// Install the packages of an el spec into a folder
    Rootfs(rootfs::Arguments),
    /// Make the agent's tarball, for machines that bring their own system
    AgentTarball(agent_tarball::Arguments),
    /// Installation media
    #[command(subcommand)]
    Iso(iso::Verb),
    /// Wait for the end of a build and remove its work folder
    #[command(hide = true)]
    Janitor {
        /// The folder
        folder: std::path::PathBuf,
    },
    /// Virtual disk files (streamOptimized VMDK)
    #[command(subcommand)]
    Vmdk(vmdk::Verb),
    /// Appliance files (OVA)
    #[command(subcommand)]
    Ova(ova::Verb),
    /// Image specs
    #[command(subcommand)]
    Spec(spec::Verb),
    /// Lists of digests (SHA256SUMS) and their signatures
    #[command(subcommand)]
    Sums(sums::Verb),
    /// Configuration files of virtual machines (.vmx)
    #[command(subcommand)]
    Vmx(vmx::Verb),
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
        Noun::Build(arguments) => build::build(arguments),
        Noun::Plan(arguments) => build::plan(arguments),
        Noun::Lock(arguments) => build::lock(arguments),
        Noun::Rootfs(arguments) => rootfs::run(&arguments),
        Noun::AgentTarball(arguments) => agent_tarball::run(arguments),
        Noun::Iso(verb) => iso::run(verb),
        Noun::Janitor { folder } => crate::work::janitor(&folder),
        Noun::Vmdk(verb) => vmdk::run(verb),
        Noun::Ova(verb) => ova::run(verb),
        Noun::Spec(verb) => spec::run(verb),
        Noun::Sums(verb) => sums::run(verb),
        Noun::Vmx(verb) => vmx::run(verb),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            mt_installer::tell_line!("mt-image: {}", lines_shown(&error.to_string()));
            if let Some(hint) = error.next_step() {
                mt_installer::tell_line!("hint: {}", lines_shown(hint));
            }
            ExitCode::from(error.kind.exit_code())
        }
    }
}

/// Prints a text, and takes a closed pipe (`| head`) as the reader's wish.
fn say(text: &str) -> Result<()> {
    print(&lines_shown(text))
}

/// Prints what a file of somebody's says as one line, so that it cannot look like lines of ours.
fn say_line(text: &str) -> Result<()> {
    print(&line_shown(text))
}

fn print(text: &str) -> Result<()> {
    use std::io::Write;
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::new(
            Kind::Unexpected,
            format!("cannot print the result: {error}"),
        )),
        _ => Ok(()),
    }
}

fn say_json<T: serde::Serialize>(value: &T) -> Result<()> {
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
    // JSON itself escapes what is below space only; in its strings any character may be written this way.
    let safe: String = text
        .chars()
        .map(|c| match c {
            '\u{7f}'..='\u{9f}' => format!("\\u{:04x}", u32::from(c)),
            _ => c.to_string(),
        })
        .collect();
    print(&safe)
}

/// Ends a check: faults on standard output, and the exit code that says there were some.
fn judge(what: &str, faults: &[Fault]) -> Result<()> {
    if faults.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Faults,
        format!("{what} has {}", counted(faults.len() as u64, "fault")),
    )
    .hint("take the file from its maker again, or build it anew; --json lists the faults for programs"))
}
