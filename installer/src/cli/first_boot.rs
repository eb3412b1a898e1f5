// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-installer first-boot`: settings given at deployment.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::custom_change::now;
use super::{say, say_json};
use crate::error::{Error, Kind, Result, printable};
use crate::first_boot::{self, Report, State, settings, source};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Apply the settings given at deployment, once
    Apply,
    /// Say whether settings were given, from where, and what was applied
    Status {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Check an OVF environment before it is used
    Check {
        /// The document, such as ovf-env.xml
        file: PathBuf,
    },
}

pub fn run(verb: Verb) -> Result<()> {
    let root = Path::new("/");
    match verb {
        Verb::Apply => apply(root),
        Verb::Status { json } => {
            let report = first_boot::report(root)?;
            if json {
                #[derive(serde::Serialize)]
                struct Document {
                    report: Option<Report>,
                }
                return say_json(&Document { report });
            }
            match report {
                Some(report) => show(&report),
                None => say("the first boot has not looked for settings yet"),
            }
        }
        Verb::Check { file } => {
            let given = source::from_file(&file)?;
            let zone_exists = |zone: &str| Path::new("/usr/share/zoneinfo").join(zone).is_file();
            let read = settings::read(&given.properties, &zone_exists);
            let mut faults: Vec<String> = read
                .err()
                .into_iter()
                .flatten()
                .map(|fault| fault.to_string())
                .collect();
            let missed = given.properties.keys().filter_map(|key| {
                let meant = settings::misspelt(key)?;
                Some(format!("{key}: nothing reads it; did you mean {meant}?"))
            });
            faults.extend(missed);
            if faults.is_empty() {
                let known = |key: &&&str| {
                    given
                        .properties
                        .contains_key(&format!("{}{key}", settings::PREFIX))
                };
                let names: Vec<&str> = settings::KEYS.iter().filter(known).copied().collect();
                let what = if names.is_empty() {
                    "no property in it is the master target's".to_owned()
                } else {
                    names.join(", ")
                };
                return say(&format!("{}: good: {what}", given.sources.join(", ")));
            }
            for fault in &faults {
                say(&printable(fault))?;
            }
            Err(Error::new(
                Kind::Faults,
                format!("{} properties cannot be used", faults.len()),
            )
            .hint("one fault refuses all settings: correct them in the deployment"))
        }
    }
}

fn apply(root: &Path) -> Result<()> {
    if let Some(report) = first_boot::report(root)?
        && report.state == State::Applied
    {
        return say(&format!(
            "the settings were applied on {}; nothing was changed",
            report.date
        ));
    }
    let report = match source::ask() {
        Ok(given) => first_boot::apply(root, &given, &now())?,
        Err(fault) => first_boot::refuse(root, &fault, &now())?,
    };
    first_boot::make_live(&report, &mut |text| crate::tell_line!("{text}"));
    show(&report)?;
    if report.state == State::Refused {
        return Err(Error::new(
            Kind::Config,
            "settings given at deployment cannot be used; none was applied",
        )
        .hint("correct the properties while the machine is off, or give the settings on the console"));
    }
    Ok(())
}

fn show(report: &Report) -> Result<()> {
    let from = report.sources.join(", ");
    match report.state {
        State::Applied => say(&format!(
            "settings from {} applied on {}: {}",
            printable(&from),
            report.date,
            report.applied.join(", ")
        )),
        State::NoneGiven => say("no settings were given at deployment"),
        State::Refused => {
            say("settings given at deployment cannot be used; none was applied:")?;
            report
                .faults
                .iter()
                .try_for_each(|fault| say(&format!("  {}", printable(fault))))
        }
    }
}
