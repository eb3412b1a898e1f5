// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-image build`: from a spec to ISO, OVA, package manifest, SBOM and SHA256SUMS.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::ova::{self, OvaOptions};
use super::stage::{self, Inputs, Stage};
use super::{check, disk};
use crate::agent_tarball;
use crate::command;
use crate::error::{Error, Kind, Result, counted, shown};
use crate::input::{self, Accept, LIST_MAX};
use crate::iso::{self, IsoParts, sha256_of};
use crate::publish::{Existing, Unpublished};
use crate::rootfs::{debian, el};
use crate::sbom::{Lock, cyclonedx, spdx};
use crate::spec::Base;
use crate::work::WorkFolder;

/// What to build, and where.
#[derive(Debug)]
pub struct Request {
    /// What goes in.
    pub inputs: Inputs,
    /// Folder for the artefacts.
    pub out: PathBuf,
    /// Folder for the stage and everything temporary.
    pub work: PathBuf,
    /// What cargo says of the workspace that the programs were built in.
    pub crates: Option<PathBuf>,
    /// Lock file to hold the packages against.
    pub pinned: Option<Pinned>,
    /// Make the ISO.
    pub iso: bool,
    /// Make the OVA, of this disk.
    pub ova: Option<DiskFrom>,
    /// How the OVA is made.
    pub ova_options: OvaOptions,
    /// What to do with artefacts of the same names.
    pub existing: Existing,
    /// Keep the stage after a build that went well.
    pub keep_stage: bool,
}

/// A lock file, and what follows where the packages differ from it.
#[derive(Debug, Clone)]
pub struct Pinned {
    /// The file.
    pub path: PathBuf,
    /// Fail, instead of a warning.
    pub strict: bool,
}

/// Where the disk of the OVA comes from.
#[derive(Debug, Clone)]
pub enum DiskFrom {
    /// The installer makes it.
    Installer,
    /// A raw disk that is there.
    File(PathBuf),
}

impl Request {
    fn artefact(&self, ending: &str) -> PathBuf {
        let spec = &self.inputs.spec;
        self.out.join(format!("{}-{}{ending}", spec.name, spec.version))
    }

    /// Why this cannot be built, as far as that can be known without beginning.
    #[must_use]
    pub fn refusal(&self) -> Option<Error> {
        let what = format!("the build of {}", shown(&self.inputs.spec_path));
        Error::of_all(&what, check::faults(self))
    }

    /// Every file that the build puts under its final name.
    pub(super) fn artefacts(&self) -> Artefacts {
        Artefacts {
            iso: self.iso.then(|| self.artefact(".iso")),
            ova: self.ova.is_some().then(|| self.artefact(".ova")),
            packages: self.artefact(".packages.json"),
            spdx: self.artefact(".spdx.json"),
            cyclonedx: self.artefact(".cdx.json"),
            agent_tarball: self.out.join(agent_tarball::file_name(&self.inputs.spec.version)),
        }
    }

    /// What will be done, step by step.
    #[must_use]
    pub fn plan(&self) -> Vec<String> {
        let spec = &self.inputs.spec;
        let artefacts = self.artefacts();
        let repositories = spec.rootfs.repositories.iter().map(|one| one.baseurl.as_str());
        let sources = spec.rootfs.sources.iter().map(String::as_str);
        let from: Vec<&str> = sources.chain(repositories).collect();
        let release = match spec.rootfs.base {
            Base::Debian => format!("Debian {}", spec.rootfs.release),
            Base::El => format!("the CentOS family's release {}", spec.rootfs.release),
        };
        let mut steps = vec![
            format!(
                "install {} of {release} and what they depend on",
                counted(spec.rootfs.packages.len() as u64, "package")
            ),
            format!("  from {}", from.join("; ")),
            match &self.pinned {
                Some(Pinned { path, strict: true }) => {
                    format!("refuse packages that differ from {}", shown(path))
                }
                Some(Pinned { path, .. }) => format!("name packages that differ from {}", shown(path)),
                None => "take whichever versions the mirror has: there is no lock file".to_owned(),
            },
            format!(
                "add own files from {}",
                self.inputs
                    .overlay()
                    .map_or_else(|error| error.to_string(), |overlay| shown(&overlay.folder))
            ),
            format!("add the agent: {}", shown(&self.inputs.agent)),
            format!("add the installer: {}", shown(&self.inputs.installer)),
            format!(
                "leave out {} module folders and {} paths",
                spec.modules.drop.len(),
                spec.trim.paths.len()
            ),
            format!(
                "prove that {} kernel modules are there and no secret is",
                spec.modules.required.len()
            ),
        ];
        if let Some(iso) = &artefacts.iso {
            steps.push(format!(
                "write {} (at most {} MiB)",
                shown(iso),
                spec.sizes.iso_mib_max
            ));
        }
        if let (Some(ova), Some(disk)) = (&artefacts.ova, &self.ova) {
            steps.push(match disk {
                DiskFrom::Installer => {
                    format!("install the appliance onto a disk of {} GiB", spec.sizes.disk_gib)
                }
                DiskFrom::File(path) => format!("take the disk {}", shown(path)),
            });
            steps.push(format!(
                "write {} (at most {} MiB)",
                shown(ova),
                spec.sizes.ova_mib_max
            ));
        }
        steps.push(format!("write {}", shown(&artefacts.agent_tarball)));
        steps.push(format!(
            "write {}, {} and {}",
            shown(&artefacts.packages),
            shown(&artefacts.spdx),
            shown(&artefacts.cyclonedx)
        ));
        steps.push(format!("write {}", shown(&self.out.join("SHA256SUMS"))));
        steps
    }
}

/// Final names of what a build makes.
#[derive(Debug)]
pub(super) struct Artefacts {
    iso: Option<PathBuf>,
    ova: Option<PathBuf>,
    packages: PathBuf,
    spdx: PathBuf,
    cyclonedx: PathBuf,
    agent_tarball: PathBuf,
}

impl Artefacts {
    pub(super) fn all(&self) -> Vec<PathBuf> {
        let images = self.iso.iter().chain(&self.ova);
        images
            .chain([&self.packages, &self.spdx, &self.cyclonedx, &self.agent_tarball])
            .cloned()
            .collect()
    }
}

/// Makes or finds the stage, after all checks that need no time.
///
/// # Errors
/// See [`stage::prepare`].
pub fn prepare(request: &Request, say: &dyn Fn(&str)) -> Result<Stage> {
    command::require_root("building an image")?;
    let base = match request.inputs.spec.rootfs.base {
        Base::Debian => debian::PROGRAMS,
        Base::El => el::PROGRAMS,
    };
    command::require(&[base, stage::PROGRAMS, iso::PROGRAMS].concat())?;
    stage::prepare(&request.inputs, &request.work, say)
}

/// Builds everything.
///
/// # Errors
/// Nothing half-made is left under a final name; a finished stage is kept for the next try.
pub fn build(request: &Request, say: &dyn Fn(&str)) -> Result<Vec<PathBuf>> {
    let spec = &request.inputs.spec;
    if let Some(error) = request.refusal() {
        return Err(error);
    }
    let artefacts = request.artefacts();
    let all = artefacts.all();
    let crates = match &request.crates {
        Some(path) => check::read_crates(path)?,
        None => Vec::new(),
    };
    let stage = prepare(request, say)?;
    if let Some(pinned) = &request.pinned {
        hold_against(pinned, &stage, say)?;
    }
    fs::create_dir_all(&request.out).map_err(|error| Error::io("create", &request.out, error))?;
    if let Some(target) = &artefacts.iso {
        build_iso(request, &stage, target, say)?;
    }
    if let (Some(target), Some(disk)) = (&artefacts.ova, &request.ova) {
        build_ova(request, &stage, disk, target, say)?;
    }
    write_json(&artefacts.packages, &stage.packages, request.existing)?;
    copy(&stage.agent_tarball, &artefacts.agent_tarball, request.existing)?;
    let created = rfc3339(spec.source_date);
    write_json(
        &artefacts.spdx,
        &spdx(spec, &created, &stage.packages),
        request.existing,
    )?;
    write_json(
        &artefacts.cyclonedx,
        &cyclonedx::render(spec, &created, &stage.packages, &crates),
        request.existing,
    )?;
    write_sums(&request.out, &all)?;
    if !request.keep_stage {
        stage::forget(&request.work)?;
    }
    Ok(all)
}

fn build_iso(request: &Request, stage: &Stage, target: &Path, say: &dyn Fn(&str)) -> Result<()> {
    let spec = &request.inputs.spec;
    say("ISO: writing");
    let scratch = WorkFolder::create(&request.out)?;
    let made = iso::build(&IsoParts {
        stage: &stage.path,
        agent_tarball: &stage.agent_tarball,
        scratch: scratch.path(),
        version: &spec.version,
        source_date: spec.source_date,
    })?;
    let size = made
        .metadata()
        .map_err(|error| Error::io("examine", &made, error))?
        .len();
    refuse_large("ISO", size, "iso_mib_max", spec.sizes.iso_mib_max)?;
    iso::publish(&made, target, request.existing)
}

fn build_ova(
    request: &Request,
    stage: &Stage,
    from: &DiskFrom,
    target: &Path,
    say: &dyn Fn(&str),
) -> Result<()> {
    // The disk takes as much space as the root file system unpacked, and goes with this folder.
    let scratch = WorkFolder::create(&request.work)?;
    let disk = match from {
        DiskFrom::File(path) => path.clone(),
        DiskFrom::Installer => {
            say("OVA: installing the appliance onto its disk");
            disk::install(request, stage, scratch.path())?
        }
    };
    say("OVA: compressing the disk");
    ova::build(&request.inputs.spec, &disk, target, &request.ova_options).map(drop)
}

/// Writes the lock file of a build's packages.
///
/// # Errors
/// As [`build`].
pub fn lock(request: &Request, target: &Path, say: &dyn Fn(&str)) -> Result<usize> {
    let what = format!("the lock file of {}", shown(&request.inputs.spec_path));
    if let Some(error) = Error::of_all(&what, check::faults_of_lock(request, target)) {
        return Err(error);
    }
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

fn hold_against(pinned: &Pinned, stage: &Stage, say: &dyn Fn(&str)) -> Result<()> {
    let path = &pinned.path;
    let lock = check::read_lock(path)?;
    let found = lock.differences(&stage.packages);
    if found.is_empty() {
        say(&format!(
            "packages: all {} as in {}",
            lock.packages.len(),
            shown(path)
        ));
        return Ok(());
    }
    // The mirror of a stable release keeps only the newest of each package, so an older one cannot be asked for.
    let text = format!(
        "the packages are not those of {}: the mirror has moved on, or the spec was changed; {}:\n  {}",
        shown(path),
        counted(found.len() as u64, "difference"),
        found.join("\n  ")
    );
    let hint = "look at what changed, then renew the lock file with mt-image lock --spec SPEC";
    if pinned.strict {
        return Err(Error::new(Kind::Config, text).hint(hint));
    }
    say(&format!(
        "warning: {text}\nhint: {hint}; --locked makes this an error"
    ));
    Ok(())
}

/// Refuses an artefact that outgrew the bound of its spec.
pub(super) fn refuse_large(what: &str, size: u64, key: &str, mib_max: u64) -> Result<()> {
    if size <= mib_max << 20 {
        return Ok(());
    }
    let text = format!(
        "the {what} has {} MiB, sizes.{key} allows {mib_max}",
        size.div_ceil(1 << 20)
    );
    Err(Error::new(Kind::Config, text).hint("trim more, or raise the bound in the spec"))
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

/// Copies a file of the stage to its final name.
fn copy(from: &Path, to: &Path, existing: Existing) -> Result<()> {
    let mut source = fs::File::open(from).map_err(|error| Error::io("open", from, error))?;
    let file = Unpublished::create(to, existing)?;
    std::io::copy(&mut source, &mut file.file()).map_err(|error| Error::io("write", to, error))?;
    file.publish()
}

/// Digests of all artefacts of the folder that this build or an earlier one listed.
fn write_sums(out: &Path, artefacts: &[PathBuf]) -> Result<()> {
    let path = out.join("SHA256SUMS");
    let mut lines: Vec<(String, String)> = match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        _ => input::read_text("list of digests", &path, LIST_MAX, Accept::File)?
            .lines()
            .filter_map(|line| line.split_once("  "))
            .map(|(sum, name)| (name.to_owned(), sum.to_owned()))
            .filter(|(name, _)| out.join(name).is_file())
            .collect(),
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
