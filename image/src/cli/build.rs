// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-image build|plan|lock`.

use std::path::PathBuf;

use super::ova::BuildOptions;
use super::vmdk::existing;
use super::{say, say_json, say_line};
use crate::build::check;
use crate::build::image::{self, DiskFrom, Pinned, Request};
use crate::build::stage::Inputs;
use crate::error::{Error, Kind, Result, counted, lines_shown, shown};

/// What the three verbs share.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Image spec
    #[arg(long)]
    spec: PathBuf,
    /// Make the ISO [default: ISO and OVA]
    #[arg(long)]
    iso: bool,
    /// Make the OVA [default: ISO and OVA]
    #[arg(long)]
    ova: bool,
    /// Folder for the artefacts, made where it is missing
    #[arg(long, default_value = "dist")]
    out: PathBuf,
    /// Folder for what is temporary, made where it is missing
    #[arg(long, default_value = "work")]
    work: PathBuf,
    /// The agent's program [default: mt-agent beside this program]
    #[arg(long)]
    agent: Option<PathBuf>,
    /// The installer's program [default: mt-installer beside this program]
    #[arg(long)]
    installer: Option<PathBuf>,
    /// Raw disk for the OVA instead of one made by the installer
    #[arg(long)]
    disk: Option<PathBuf>,
    /// What cargo metadata prints, for the crates in the bill of materials
    #[arg(long)]
    crates: Option<PathBuf>,
    /// Lock file to hold the packages against [default: the spec's, .lock.toml]
    #[arg(long)]
    lock: Option<PathBuf>,
    /// Fail where the packages differ from the lock file, instead of a warning
    #[arg(long)]
    locked: bool,
    /// Keep the root file system for further builds
    #[arg(long)]
    keep_stage: bool,
    /// Replace artefacts of the same names
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    options: BuildOptions,
}

impl Arguments {
    /// The lock file: the one named, or the one that belongs to the spec.
    fn lock_path(&self) -> PathBuf {
        self.lock
            .clone()
            .unwrap_or_else(|| self.spec.with_extension("lock.toml"))
    }

    fn request(self) -> Result<Request> {
        let spec = self.options.apply(&self.spec)?;
        let lock_path = self.lock_path();
        let named = self.lock.is_some() || self.locked;
        let pinned = (named || lock_path.is_file()).then_some(Pinned {
            path: lock_path,
            strict: self.locked,
        });
        let both = self.iso == self.ova;
        let installer = program(self.installer, "mt-installer")?;
        let disk = match self.disk {
            Some(path) => DiskFrom::File(path),
            None => DiskFrom::Installer,
        };
        Ok(Request {
            inputs: Inputs {
                spec,
                spec_path: self.spec,
                agent: program(self.agent, "mt-agent")?,
                installer,
            },
            out: self.out,
            work: self.work,
            crates: self.crates,
            pinned,
            iso: self.iso || both,
            ova: (self.ova || both).then_some(disk),
            ova_options: self.options.ova_options(self.force)?,
            existing: existing(self.force),
            keep_stage: self.keep_stage,
        })
    }
}

/// A program of this project: the one named, or the one beside this program, as cargo and `scripts/build` leave them.
fn program(named: Option<PathBuf>, name: &str) -> Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path);
    }
    let own = std::env::current_exe().map_err(|error| {
        let text = format!("cannot find this program's file: {error}");
        Error::new(Kind::Unexpected, text)
    })?;
    Ok(own.with_file_name(name))
}

pub fn progress(text: &str) {
    mt_installer::tell_line!("{}", lines_shown(text));
}

pub fn build(arguments: Arguments) -> Result<()> {
    let made = image::build(&arguments.request()?, &progress)?;
    made.iter().try_for_each(|path| say(&shown(path)))
}

/// Arguments of `plan`: those of `build`, and how to print it.
#[derive(Debug, clap::Args)]
pub struct PlanArguments {
    #[command(flatten)]
    build: Arguments,
    /// Print the steps as JSON
    #[arg(long)]
    json: bool,
}

pub fn plan(arguments: PlanArguments) -> Result<()> {
    let request = arguments.build.request()?;
    let steps = request.plan();
    if arguments.json {
        let faults: Vec<String> = check::faults(&request).iter().map(Error::to_string).collect();
        say_json(&serde_json::json!({ "steps": steps, "faults": faults }))?;
    } else {
        steps.iter().try_for_each(|step| say_line(step))?;
    }
    request.refusal().map_or(Ok(()), Err)
}

pub fn lock(arguments: Arguments) -> Result<()> {
    let target = arguments.lock_path();
    let mut request = arguments.request()?;
    request.keep_stage = true;
    let count = image::lock(&request, &target, &progress)?;
    say(&format!(
        "{}: {}",
        shown(&target),
        counted(count as u64, "package")
    ))
}
