// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-image ova build|inspect|verify`.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::vmdk::{default_threads, existing, open_input, padding};
use super::{judge, say, say_json, say_line};
use crate::build::ova::{OvaOptions, OvaOutcome, build};
use crate::error::{Error, Kind, Result, counted, shown};
use crate::input::{self, Accept, KEY_MAX};
use crate::manifest::Signer;
use crate::ova::read::{OvaReport, read};
use crate::publish::refuse_same;
use crate::spec::{self, Firmware, Manifest};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make an OVA from a raw disk
    Build {
        /// Image spec that describes the virtual machine
        #[arg(long)]
        spec: PathBuf,
        /// Raw disk: a file or a block device
        #[arg(long)]
        disk: PathBuf,
        /// OVA to make
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        options: BuildOptions,
        /// Replace the file if it exists
        #[arg(long)]
        force: bool,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what an OVA holds; with faults the exit code is that of verify
    Inspect {
        /// File to read, of any maker
        ova: PathBuf,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Check an OVA and explain every fault
    Verify {
        /// File to read, of any maker
        ova: PathBuf,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
}

/// What every way to make an OVA can be told.
#[derive(Debug, clap::Args)]
pub struct BuildOptions {
    /// Version instead of the spec's
    #[arg(long)]
    pub version: Option<String>,
    /// Firmware instead of the spec's
    #[arg(long)]
    pub firmware: Option<Firmware>,
    /// Hardware version instead of the spec's
    #[arg(long)]
    pub vmx: Option<u32>,
    /// Digest of the manifest; sha1 for ESXi 5.5 and 6.0
    #[arg(long, default_value = "sha256")]
    pub manifest: Manifest,
    /// RSA key (PEM) to sign the manifest with
    #[arg(long, requires = "sign_certificate")]
    pub sign_key: Option<PathBuf>,
    /// Certificate (PEM) of that key
    #[arg(long, requires = "sign_key")]
    pub sign_certificate: Option<PathBuf>,
    /// Compression level, 1 (fast) to 9 (small)
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=9))]
    pub level: u32,
}

impl BuildOptions {
    /// Reads the spec and applies what the command line says otherwise.
    pub fn apply(&self, path: &Path) -> Result<spec::ImageSpec> {
        let mut spec = spec::load(path)?;
        if let Some(version) = &self.version {
            spec::check_version(version).map_err(|text| {
                let hint = "the version becomes part of file names: give one such as 1.2.3";
                Error::new(Kind::Usage, format!("--version: {text}")).hint(hint)
            })?;
            spec.version.clone_from(version);
        }
        if let Some(vmx) = self.vmx {
            spec.hardware.vmx = vmx;
        }
        if let Some(firmware) = self.firmware {
            spec.hardware.firmware = firmware;
        }
        spec::recheck_hardware(&spec).map_err(|text| {
            let hint = "give --vmx and --firmware that fit each other and the spec";
            Error::new(Kind::Usage, text).hint(hint)
        })?;
        Ok(spec)
    }

    /// Reads key and certificate.
    pub fn signer(&self) -> Result<Option<Signer>> {
        let (Some(key), Some(certificate)) = (&self.sign_key, &self.sign_certificate) else {
            return Ok(None);
        };
        let slurp = |what: &str, path: &Path| input::read(what, path, KEY_MAX, Accept::FileOrPipe);
        Signer::new(&slurp("key", key)?, &slurp("certificate", certificate)?).map(Some)
    }

    /// The builder's options.
    pub fn ova_options(&self, force: bool) -> Result<OvaOptions> {
        Ok(OvaOptions {
            manifest: self.manifest,
            signer: self.signer()?,
            level: self.level,
            threads: default_threads(),
            existing: existing(force),
        })
    }
}

pub fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Build {
            spec,
            disk,
            out,
            options,
            force,
            json,
        } => {
            let signing = [&options.sign_key, &options.sign_certificate]
                .into_iter()
                .flatten();
            for input in signing.chain([&spec]) {
                refuse_same(input, &out)?;
            }
            let spec = options.apply(&spec)?;
            let outcome = build(&spec, &disk, &out, &options.ova_options(force)?)?;
            if json {
                say_json(&outcome)
            } else {
                say_outcome(&out, &outcome)
            }
        }
        Verb::Inspect { ova, json } => {
            let report = examine(&ova)?;
            if json {
                say_json(&report)?;
            } else {
                inspect(&ova, &report)?;
            }
            judge(&shown(&ova), &report.faults)
        }
        Verb::Verify { ova, json } => {
            let report = examine(&ova)?;
            if json {
                say_json(&report)?;
            } else if report.faults.is_empty() {
                say(&format!("{}: good; {}", shown(&ova), assurance(&report)))?;
            } else {
                report
                    .faults
                    .iter()
                    .try_for_each(|fault| say(&fault.to_string()))?;
            }
            if !json {
                report
                    .warnings
                    .iter()
                    .try_for_each(|warning| say(&format!("warning: {warning}")))?;
            }
            judge(&shown(&ova), &report.faults)
        }
    }
}

/// Tells what was built.
pub fn say_outcome(out: &Path, outcome: &OvaOutcome) -> Result<()> {
    say(&format!(
        "{}: {} bytes, disk of {} bytes{} in {}",
        shown(out),
        outcome.size,
        outcome.capacity - outcome.padding_bytes,
        padding(outcome.padding_bytes),
        counted(outcome.grains, "grain")
    ))
}

fn examine(ova: &Path) -> Result<OvaReport> {
    let (file, _) = open_input(ova)?;
    read(std::io::BufReader::with_capacity(1 << 20, file)).map_err(|error| Error::io("read", ova, error))
}

fn assurance(report: &OvaReport) -> String {
    let manifest = if report.manifest_verified {
        "all digests of the manifest are right"
    } else {
        "there is no manifest"
    };
    let signature = if report.signature_verified {
        "the signature fits"
    } else {
        "it is not signed"
    };
    let uuid = match report.enable_uuid.as_deref() {
        Some(value) if value.eq_ignore_ascii_case("true") => "disk.EnableUUID is set",
        _ => "disk.EnableUUID is NOT set, so its disks will show no SCSI IDs",
    };
    format!("{manifest}, {signature}, {uuid}")
}

fn inspect(path: &Path, report: &OvaReport) -> Result<()> {
    say_line(&format!("file      {}", shown(path)))?;
    for member in &report.members {
        let capacity = member
            .capacity
            .map(|capacity| format!(", disk of {capacity} bytes"))
            .unwrap_or_default();
        say_line(&format!(
            "member    {} ({} bytes{capacity})",
            member.name, member.size
        ))?;
    }
    if let Some(ovf) = &report.ovf {
        say_line(&format!("machine   {}", ovf.name))?;
        say_line(&format!("product   {}", ovf.product.join(", ")))?;
        say_line(&format!(
            "hardware  {}, guest {}",
            ovf.families.join(" "),
            ovf.guest_os
        ))?;
        for item in &ovf.items {
            let details = [
                Some(&item.sub_type),
                item.connection.as_ref(),
                item.host_resource.as_ref(),
            ];
            let details: Vec<_> = details
                .into_iter()
                .flatten()
                .filter(|text| !text.is_empty())
                .map(String::as_str)
                .collect();
            say_line(format!("  {:<4} {} {}", item.id, item.name, details.join(" ")).trim_end())?;
        }
        for (key, value) in ovf.extra_config.iter().chain(&ovf.config) {
            say_line(&format!("setting   {key} = {value}"))?;
        }
        say_line(&format!("transport {}", ovf.transport))?;
        say_line(&format!("asks for  {}", ovf.properties.join(" ")))?;
    }
    say_line(&format!(
        "verdict   {}; {}",
        assurance(report),
        counted(report.faults.len() as u64, "fault")
    ))?;
    report
        .faults
        .iter()
        .try_for_each(|fault| say_line(&format!("  {fault}")))?;
    report
        .warnings
        .iter()
        .try_for_each(|warning| say_line(&format!("  warning: {warning}")))
}
