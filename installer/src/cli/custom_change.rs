// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-installer custom-change`: the run-once step that makes a system a master target.

use std::path::PathBuf;

use clap::Subcommand;

use super::{say, say_json};
use crate::custom_change::{self, Request, Status, operator};
use crate::error::{Error, Kind, Result};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make the changes, once; a second run is refused
    Apply {
        #[command(flatten)]
        place: Place,
    },
    /// Print what apply would do
    Plan {
        #[command(flatten)]
        place: Place,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether the changes were made, when, and whether they still stand
    Status {
        /// Root directory of the system
        #[arg(long, default_value = "/")]
        root: PathBuf,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
pub struct Place {
    /// Root directory of the system
    #[arg(long, default_value = "/")]
    root: PathBuf,
    /// Folder of the unpacked tarball: programs and custom.d are taken from
    /// there; without it the system has the programs already
    #[arg(long, value_name = "FOLDER")]
    tarball: Option<PathBuf>,
}

impl Place {
    fn request(self) -> Request {
        // Set by the installer: the root is one in the making, seen from inside.
        let installing = std::env::var_os("MT_INSTALLING").is_some();
        Request {
            running: self.root == std::path::Path::new("/") && !installing,
            root: self.root,
            tarball: self.tarball,
            // An image that is made twice of the same files has to come out the same, its date included.
            date: installing.then(source_date).flatten().unwrap_or_else(now),
            steps: operator::Ground::Root,
        }
    }
}

/// The time that things made now are to bear, where the caller names one.
fn source_date() -> Option<String> {
    let seconds = std::env::var("SOURCE_DATE_EPOCH").ok()?.parse().ok()?;
    Some(jiff::Timestamp::from_second(seconds).ok()?.to_string())
}

/// Now, RFC 3339 in UTC, in whole seconds.
pub(super) fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second())
        .unwrap_or(now)
        .to_string()
}

pub fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Apply { place } => {
            if place.root == std::path::Path::new("/") && !nix::unistd::geteuid().is_root() {
                return Err(
                    Error::new(Kind::Refused, "the custom changes need root; nothing was changed")
                        .hint("run it with sudo; plan and status need no privilege"),
                );
            }
            let root = place.root.clone();
            let stamp = custom_change::apply(&place.request(), &mut |text| crate::tell_line!("{text}"))?;
            for skipped in &stamp.skipped {
                crate::tell_line!("left out: {skipped}");
            }
            say(&format!(
                "done: {} changed, {} so already, {} left out; SHA-256 {}",
                stamp.changed.len(),
                stamp.satisfied.len(),
                stamp.skipped.len(),
                stamp.digest
            ))?;
            if root == std::path::Path::new("/") {
                say("Restart the machine: everything takes effect at the next start.")?;
            }
            Ok(())
        }
        Verb::Plan { place, json } => {
            let planned = custom_change::plan(&place.request())?;
            if json {
                #[derive(serde::Serialize)]
                struct Plan {
                    changes: Vec<custom_change::Planned>,
                }
                return say_json(&Plan { changes: planned });
            }
            planned
                .iter()
                .try_for_each(|one| say(&format!("{:16} {}: {}", one.what, one.path, one.outcome)))
        }
        Verb::Status { root, json } => status(&root, json),
    }
}

fn status(root: &std::path::Path, json: bool) -> Result<()> {
    let status = custom_change::status(root)?;
    if json {
        #[derive(serde::Serialize)]
        struct Document<'a> {
            state: &'static str,
            stamp: Option<&'a custom_change::journal::Stamp>,
            differing: &'a [String],
        }
        let (state, stamp, differing): (_, _, &[String]) = match &status {
            Status::NotDone => ("not_done", None, &[]),
            Status::Cut => ("cut", None, &[]),
            Status::Done { stamp, differing } => ("done", Some(stamp), differing),
        };
        say_json(&Document {
            state,
            stamp,
            differing,
        })?;
    }
    let text = match &status {
        Status::NotDone => "the custom changes were never made".to_owned(),
        Status::Cut => {
            "a run was cut; the next \"custom-change apply\" undoes what it did and starts again".to_owned()
        }
        Status::Done { stamp, .. } => format!(
            "the custom changes were made on {} by version {}: {} paths changed; SHA-256 {}",
            stamp.date,
            stamp.version,
            stamp.changed.len(),
            stamp.digest
        ),
    };
    if !json {
        say(&text)?;
    }
    match status {
        Status::Done { differing, .. } if !differing.is_empty() => Err(Error::new(
            Kind::Faults,
            format!("not any more as the step left them: {}", differing.join(", ")),
        )
        .hint("compare them with \"mt-installer custom-change plan\"; an update of a package may have replaced them")),
        _ => Ok(()),
    }
}
