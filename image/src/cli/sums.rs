// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-image sums sign|verify`.

use std::path::PathBuf;

use clap::Subcommand;

use super::vmdk::existing;
use super::{judge, say, say_json};
use crate::error::{Fault, Result, shown};
use crate::sums;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Sign a list of digests with a key of minisign
    ///
    /// The signature lies beside the list, with .minisig at the end of its
    /// name. Users check it with: minisign -Vm SHA256SUMS -p KEY.pub
    Sign {
        /// The list, such as dist/SHA256SUMS
        list: PathBuf,
        /// Secret key as "minisign -G" makes it
        #[arg(long)]
        key: PathBuf,
        /// File or pipe with the key's password, where it has one
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Replace a signature that is there
        #[arg(long)]
        force: bool,
    },
    /// Check the signature of a list, and the files that it names
    Verify {
        /// The list, with its signature and the files beside it
        list: PathBuf,
        /// The maker's public key: a file, or the line in it
        #[arg(long, value_name = "FILE|KEY")]
        public_key: String,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
}

pub fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Sign {
            list,
            key,
            password_file,
            force,
        } => {
            let key = sums::secret_key(&key, password_file.as_deref())?;
            let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
            let made = sums::sign(&list, &key, now, existing(force))?;
            say(&shown(&made))
        }
        Verb::Verify {
            list,
            public_key,
            json,
        } => {
            #[derive(serde::Serialize)]
            struct Report {
                faults: Vec<Fault>,
            }
            let report = Report {
                faults: sums::verify(&list, &sums::public_key(&public_key)?)?,
            };
            if json {
                say_json(&report)?;
            } else if report.faults.is_empty() {
                say(&format!(
                    "{}: signed by the owner of this key, and every file in it is as it was signed for",
                    shown(&list)
                ))?;
            } else {
                report
                    .faults
                    .iter()
                    .try_for_each(|fault| say(&fault.to_string()))?;
            }
            judge(&shown(&list), &report.faults)
        }
    }
}
