// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-image spec check`.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::{say, say_json};
use crate::build::check;
use crate::error::{Error, Result, counted, shown};
use crate::spec::{self, ImageSpec, SpecFault};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Read an image spec and say what is wrong with it
    Check {
        /// File to read
        spec: PathBuf,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
}

pub fn run(verb: Verb) -> Result<()> {
    let Verb::Check { spec: path, json } = verb;
    let text = spec::read(&path)?;
    let (spec, faults) = match spec::parse(&text) {
        Ok(spec) => {
            let faults = around(&path, &text, &spec);
            (Some(spec), faults)
        }
        Err(faults) => (None, faults),
    };
    if json {
        say_json(&serde_json::json!({
            "spec": shown(&path),
            "name": spec.as_ref().map(|spec| &spec.name),
            "version": spec.as_ref().map(|spec| &spec.version),
            "packages": spec.as_ref().map(|spec| spec.rootfs.packages.len()),
            "faults": faults,
        }))?;
    }
    match spec {
        Some(_) if json && faults.is_empty() => Ok(()),
        Some(spec) if faults.is_empty() => say(&format!(
            "{}: good; {} {}, {}",
            shown(&path),
            spec.name,
            spec.version,
            counted(spec.rootfs.packages.len() as u64, "package")
        )),
        _ => Err(spec::error_of(&path, &faults)),
    }
}

/// What is wrong with the files that belong to a spec: its overlay, and the lock file that lies beside it.
fn around(path: &Path, text: &str, spec: &ImageSpec) -> Vec<SpecFault> {
    let lock = path.with_extension("lock.toml");
    let lock = lock.is_file().then(|| check::read_lock(&lock).err()).flatten();
    let overlay = check::overlay(path, &spec.rootfs.overlay).err();
    let fault = |error: Error, line| SpecFault {
        line,
        text: error.to_string(),
        nearest: None,
    };
    let overlay = overlay.map(|error| fault(error, spec::line_of(text, "rootfs.overlay")));
    overlay
        .into_iter()
        .chain(lock.map(|error| fault(error, None)))
        .collect()
}
