// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-image build`: from a spec to ISO, package manifest, SBOM and SHA256SUMS.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::stage::{self, Inputs, Stage};
use crate::command;
use crate::error::{Error, Kind, Result, shown};
use crate::iso::{self, IsoParts, sha256_of};
use crate::publish::{Existing, Unpublished, refuse_existing};
use crate::rootfs::debian;
use crate::sbom::{Lock, spdx};
use crate::work::WorkFolder;

/// What to build, and where.
#[derive(Debug, Clone)]
pub struct Request {
    /// What goes in.
    pub inputs: Inputs,
    /// Folder for the artefacts.
    pub out: PathBuf,
    /// Folder for the stage and everything temporary.
    pub work: PathBuf,
    /// Lock file to hold the packages against.
    pub lock: Option<PathBuf>,
    /// What to do with artefacts of the same names.
    pub existing: Existing,
    /// Keep the stage after a build that went well.
    pub keep_stage: bool,
}

impl Request {
    fn artefact(&self, ending: &str) -> PathBuf {
        let spec = &self.inputs.spec;
        self.out.join(format!("{}-{}{ending}", spec.name, spec.version))
    }

    /// What will be done, step by step.
    #[must_use]
    pub fn plan(&self) -> Vec<String> {
        let spec = &self.inputs.spec;
        let from: Vec<&str> = spec.rootfs.sources.iter().map(String::as_str).collect();
        let given = |path: &Option<PathBuf>| path.as_deref().map_or_else(|| "left out".to_owned(), shown);
        vec![
            format!(
                "install {} packages of {} and what they depend on",
                spec.rootfs.packages.len(),
                spec.rootfs.release
            ),
            format!("  from {}", from.join("; ")),
            format!(
                "add own files from {}",
                self.inputs
                    .overlay()
                    .map_or_else(|error| error.to_string(), |path| shown(&path))
            ),
            format!("add the agent: {}", given(&self.inputs.agent)),
            format!("add the installer: {}", given(&self.inputs.installer)),
            format!(
                "leave out {} module folders and {} paths",
                spec.modules.drop.len(),
                spec.trim.paths.len()
            ),
            format!(
                "prove that {} kernel modules are there and no secret is",
                spec.modules.required.len()
            ),
            format!("hold the packages against the lock file: {}", given(&self.lock)),
            format!(
                "write {} (at most {} MiB)",
                shown(&self.artefact(".iso")),
                spec.sizes.iso_mib_max
            ),
            format!(
                "write {} and {}",
                shown(&self.artefact(".packages.json")),
                shown(&self.artefact(".spdx.json"))
            ),
            format!("write {}", shown(&self.out.join("SHA256SUMS"))),
        ]
    }
}

/// Makes or finds the stage, after all checks that need no time.
///
/// # Errors
/// See [`stage::prepare`].
pub fn prepare(request: &Request, say: &dyn Fn(&str)) -> Result<Stage> {
    command::require_root("building an image")?;
    command::require(&[debian::PROGRAMS, stage::PROGRAMS, iso::PROGRAMS].concat())?;
    stage::prepare(&request.inputs, &request.work, say)
}

/// Builds everything.
///
/// # Errors
/// Nothing half-made is left under a final name; a finished stage is kept for the next try.
pub fn build(request: &Request, say: &dyn Fn(&str)) -> Result<Vec<PathBuf>> {
    let spec = &request.inputs.spec;
    let artefacts = [".iso", ".packages.json", ".spdx.json"].map(|ending| request.artefact(ending));
    for path in &artefacts {
        refuse_existing(path, request.existing)?;
    }
    let stage = prepare(request, say)?;
    if let Some(lock) = &request.lock {
        hold_against(lock, &stage)?;
    }
    fs::create_dir_all(&request.out).map_err(|error| Error::io("create", &request.out, error))?;
    let scratch = WorkFolder::create(&request.out)?;
    say("ISO: writing");
    let parts = IsoParts {
        stage: &stage.path,
        scratch: scratch.path(),
        version: &spec.version,
        source_date: spec.source_date,
    };
    let made = iso::build(&parts)?;
    let size = made
        .metadata()
        .map_err(|error| Error::io("examine", &made, error))?
        .len();
    if size > spec.sizes.iso_mib_max << 20 {
        let text = format!(
            "the ISO has {} MiB, sizes.iso_mib_max allows {}",
            size.div_ceil(1 << 20),
            spec.sizes.iso_mib_max
        );
        return Err(Error::new(Kind::Config, text).hint("trim more, or raise the bound in the spec"));
    }
    iso::publish(&made, &artefacts[0], request.existing)?;
    write_json(&artefacts[1], &stage.packages, request.existing)?;
    write_json(
        &artefacts[2],
        &spdx(spec, &rfc3339(spec.source_date), &stage.packages),
        request.existing,
    )?;
    write_sums(&request.out, &artefacts)?;
    if !request.keep_stage {
        stage::forget(&request.work)?;
    }
    Ok(artefacts.to_vec())
}

/// Writes the lock file of a build's packages.
///
/// # Errors
/// As [`build`].
pub fn lock(request: &Request, target: &Path, say: &dyn Fn(&str)) -> Result<usize> {
    let stage = prepare(request, say)?;
    let lock = Lock {
        schema: 1,
        packages: stage.packages,
    };
    let text = toml::to_string(&lock)
        .map_err(|error| Error::new(Kind::Unexpected, format!("cannot render the lock file: {error}")))?;
    let file = Unpublished::create(target, Existing::Replace)?;
    (&mut file.file())
        .write_all(text.as_bytes())
        .map_err(|error| Error::io("write", target, error))?;
    file.publish()?;
    Ok(lock.packages.len())
}

fn hold_against(path: &Path, stage: &Stage) -> Result<()> {
    let text = fs::read_to_string(path).map_err(|error| Error::io("read the lock file", path, error))?;
    let lock: Lock = toml::from_str(&text).map_err(|error| {
        Error::new(
            Kind::Config,
            format!("lock file {}: {}", shown(path), error.message()),
        )
    })?;
    let found = lock.differences(&stage.packages);
    if found.is_empty() {
        return Ok(());
    }
    let more = if found.len() > 10 {
        format!("\n  and {} more", found.len() - 10)
    } else {
        String::new()
    };
    let first: Vec<&str> = found.iter().take(10).map(String::as_str).collect();
    Err(Error::new(
        Kind::Config,
        format!(
            "the packages differ from {}:\n  {}{more}",
            shown(path),
            first.join("\n  ")
        ),
    )
    .hint("renew the lock file with mt-image lock, and look at what changed"))
}

fn write_json<T: serde::Serialize>(path: &Path, value: &T, existing: Existing) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::new(Kind::Unexpected, format!("cannot render JSON: {error}")))?;
    text.push(b'\n');
    let file = Unpublished::create(path, existing)?;
    (&mut file.file())
        .write_all(&text)
        .map_err(|error| Error::io("write", path, error))?;
    file.publish()
}

/// Digests of all artefacts of the folder that this build or an earlier one listed.
fn write_sums(out: &Path, artefacts: &[PathBuf]) -> Result<()> {
    let path = out.join("SHA256SUMS");
    let mut lines: Vec<(String, String)> = match fs::read_to_string(&path) {
        Ok(text) => text
            .lines()
            .filter_map(|line| line.split_once("  "))
            .map(|(sum, name)| (name.to_owned(), sum.to_owned()))
            .filter(|(name, _)| out.join(name).is_file())
            .collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Error::io("read", &path, error)),
    };
    for artefact in artefacts {
        let name = artefact
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        lines.retain(|(known, _)| *known != name);
        lines.push((name, sha256_of(artefact)?));
    }
    lines.sort();
    let text: String = lines
        .iter()
        .map(|(name, sum)| format!("{sum}  {name}\n"))
        .collect();
    let file = Unpublished::create(&path, Existing::Replace)?;
    (&mut file.file())
        .write_all(text.as_bytes())
        .map_err(|error| Error::io("write", &path, error))?;
    file.publish()
}

fn rfc3339(seconds: u64) -> String {
    let date = iso::iso_date(seconds);
    let part = |from: usize, to: usize| date.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4),
        part(4, 6),
        part(6, 8),
        part(8, 10),
        part(10, 12),
        part(12, 14)
    )
}
