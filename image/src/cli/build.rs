// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-image build|plan|lock`.

use std::path::PathBuf;

use super::say;
use super::vmdk::existing;
use crate::build::image::{self, Request};
use crate::build::stage::Inputs;
use crate::error::{Error, Kind, Result, shown};
use crate::spec;

/// What the three verbs share.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Image spec
    #[arg(long)]
    spec: PathBuf,
    /// Folder for the artefacts
    #[arg(long, default_value = "dist")]
    out: PathBuf,
    /// Folder for what is temporary
    #[arg(long, default_value = "work")]
    work: PathBuf,
    /// Version instead of the spec's
    #[arg(long)]
    version: Option<String>,
    /// The agent's program, to be put into the image
    #[arg(long)]
    agent: Option<PathBuf>,
    /// The installer's program, to be put into the image
    #[arg(long)]
    installer: Option<PathBuf>,
    /// Lock file to hold the packages against
    #[arg(long)]
    lock: Option<PathBuf>,
    /// Keep the root file system for further builds
    #[arg(long)]
    keep_stage: bool,
    /// Replace artefacts of the same names
    #[arg(long)]
    force: bool,
}

impl Arguments {
    fn request(self) -> Result<Request> {
        let mut spec = spec::load(&self.spec)?;
        if let Some(version) = self.version {
            spec::check_version(&version)
                .map_err(|text| Error::new(Kind::Usage, format!("--version: {text}")))?;
            spec.version = version;
        }
        let inputs = Inputs {
            spec,
            spec_path: self.spec,
            agent: self.agent,
            installer: self.installer,
        };
        Ok(Request {
            inputs,
            out: self.out,
            work: self.work,
            lock: self.lock,
            existing: existing(self.force),
            keep_stage: self.keep_stage,
        })
    }
}

fn progress(text: &str) {
    eprintln!("{text}");
}

pub fn build(arguments: Arguments) -> Result<()> {
    let made = image::build(&arguments.request()?, &progress)?;
    made.iter().try_for_each(|path| say(&shown(path)))
}

pub fn plan(arguments: Arguments) -> Result<()> {
    arguments.request()?.plan().iter().try_for_each(|step| say(step))
}

pub fn lock(arguments: Arguments) -> Result<()> {
    let target = arguments
        .lock
        .clone()
        .unwrap_or_else(|| arguments.spec.with_extension("lock"));
    let mut request = arguments.request()?;
    request.keep_stage = true;
    let count = image::lock(&request, &target, &progress)?;
    say(&format!("{}: {count} packages", shown(&target)))
}
