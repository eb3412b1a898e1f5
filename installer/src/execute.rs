// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does what a plan says, step by step. What makes the disk bootable is written last.
//!
//! | step | what a crash after it leaves |
//! |---|---|
//! | wipe | first sector and partition tables are zeros: nothing starts this disk |
//! | file systems, system, loaders | the same, with data that nothing refers to |
//! | backup partition table | the same: firmware looks for a table only behind a protective first sector |
//! | partition table | the same |
//! | first sector | everything, durable |
//!
//! The first sector holds the boot code for BIOS and the protective MBR, without which neither UEFI nor GRUB nor Linux
//! looks at the partition table behind it. It is one sector, so it is written as a whole or not at all, and everything
//! else is durable before.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::answers::{Answers, FileSystem, Role};
use crate::boot::{self, BootFiles, Menu};
use crate::command::{self, Program};
use crate::configure;
use crate::error::{Error, Kind, Result};
use crate::filesystem::{self, Ext4Place};
use crate::identity::Names;
use crate::payload::Payload;
use crate::plan::{MIB, Plan, PlannedPartition, Step};
use crate::state::StateFile;
use crate::target::{Loop, Target, detach_left_over};

/// Programs that are needed.
pub const PROGRAMS: &[&str] = &[
    "debugfs",
    "losetup",
    "mcopy",
    "mke2fs",
    "mkfs.vfat",
    "mkswap",
    "mmd",
    "setpriv",
    "sfdisk",
    "tar",
    "unshare",
    "unsquashfs",
];
/// A sector.
const SECTOR: u64 = 512;
/// Sectors of the partition table at each end: header and 128 entries.
const TABLE_SECTORS: u64 = 33;
/// Bytes that are overwritten at both ends of a partition before anything is made on it.
const WIPE: u64 = MIB;

/// What is happening.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A step begins; steps are counted from 1.
    Begin {
        /// Its number.
        number: usize,
        /// How many there are.
        count: usize,
        /// The step.
        step: Step,
    },
    /// Bytes of the step that are done.
    Bytes {
        /// Done.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// Something worth knowing.
    Note(&'a str),
    /// All is done.
    Done,
}

/// An installation about to be done.
#[derive(Debug)]
pub struct Job<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The answers it was made from.
    pub answers: &'a Answers,
    /// The system.
    pub payload: &'a Payload,
    /// The agent's files.
    pub agent_tarball: Option<&'a Path>,
    /// The disk or the new image file.
    pub target: &'a Path,
    /// Names of disk, partitions and file systems.
    pub names: Names,
    /// Time of what is made, where it must not be now.
    pub time: Option<u64>,
    /// Folder for what is temporary.
    pub work: &'a Path,
    /// Where the progress is recorded.
    pub state: &'a StateFile,
}

/// Does all of it.
///
/// # Errors
/// The disk does not boot then, and the same command starts again from the beginning.
pub fn execute(job: &Job<'_>, observer: &mut dyn FnMut(Event<'_>)) -> Result<()> {
    command::require(PROGRAMS)?;
    let mut run = Run::begin(job, observer)?;
    let count = job.plan.steps.len();
    let mut begun = false;
    for (index, step) in job.plan.steps.iter().enumerate() {
        observer(Event::Begin {
            number: index + 1,
            count,
            step: *step,
        });
        job.state.record(job.target, step.name(), false)?;
        cut_point(step.name(), "before");
        begun |= *step == Step::Wipe;
        run.step(*step, observer).map_err(|error| {
            if begun && run.target.is_some() {
                error.partly()
            } else {
                error
            }
        })?;
        cut_point(step.name(), "after");
    }
    job.state.record(job.target, Step::FirstSector.name(), true)?;
    observer(Event::Done);
    Ok(())
}

/// Ends the process as a power loss would, where a test asks for it. Not in release builds.
pub(crate) fn cut_point(step: &str, place: &str) {
    if cfg!(debug_assertions)
        && std::env::var("MT_INSTALLER_CUT").is_ok_and(|at| at == format!("{step}.{place}"))
    {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}

/// What the steps hand on to each other.
struct Run<'a> {
    job: &'a Job<'a>,
    time: u64,
    scratch: tempfile::TempDir,
    root: PathBuf,
    target: Option<Target>,
    system: Option<Mounted>,
    boot: Option<BootFiles>,
    table: Option<Table>,
}

/// The root file system of a disk, mounted on a loop device.
struct Mounted {
    place: PathBuf,
    device: Option<Loop>,
}

impl Mounted {
    fn close(mut self) -> Result<()> {
        umount2(&self.place, MntFlags::empty())
            .map_err(|error| Error::io("unmount", &self.place, error.into()))?;
        match self.device.take() {
            Some(device) => device.detach(),
            None => Ok(()),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.device.is_some() {
            // On the way out of an error already: that one is told.
            let _ = umount2(&self.place, MntFlags::MNT_DETACH);
        }
    }
}

/// The bytes of the partition table.
struct Table {
    first_sector: Vec<u8>,
    primary: Vec<u8>,
    backup: Vec<u8>,
}

impl<'a> Run<'a> {
    fn begin(job: &'a Job<'a>, observer: &mut dyn FnMut(Event<'_>)) -> Result<Self> {
        if let Some(state) = job.state.unfinished()? {
            observer(Event::Note(&format!(
                "an earlier run on {} was cut at step {}: starting again from the beginning",
                state.target, state.step
            )));
        }
        fs::create_dir_all(job.work).map_err(|error| Error::io("create", job.work, error))?;
        let scratch = tempfile::Builder::new()
            .prefix("mt-install-")
            .tempdir_in(job.work)
            .map_err(|error| Error::io("create a folder in", job.work, error))?;
        let root = scratch.path().join("root");
        fs::create_dir(&root).map_err(|error| Error::io("create", &root, error))?;
        let time = job.time.unwrap_or_else(|| {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs())
        });
        Ok(Self {
            job,
            time,
            scratch,
            root,
            target: None,
            system: None,
            boot: None,
            table: None,
        })
    }

    /// The target, opened at the first step that writes.
    fn target(&mut self) -> Result<&Target> {
        if self.target.is_none() {
            let path = self.job.target;
            if self.job.plan.disk.is_some() {
                detach_left_over(path)?;
                private_mounts()?;
            }
            let target = Target::open(path)?;
            if target.size() != self.job.plan.size {
                return Err(Error::new(
                    Kind::Disk,
                    format!(
                        "{} has {} bytes, the plan is for {}; nothing was written",
                        path.display(),
                        target.size(),
                        self.job.plan.size
                    ),
                )
                .hint("the disk changed since it was looked at: start again"));
            }
            self.target = Some(target);
        }
        self.target
            .as_ref()
            .ok_or_else(|| Error::new(Kind::Unexpected, "the target is not open"))
    }

    fn partition(&self, role: &Role) -> Result<&'a PlannedPartition> {
        self.job
            .plan
            .with_role(role)
            .ok_or_else(|| Error::new(Kind::Unexpected, format!("the plan has no {}", role.name())))
    }

    fn step(&mut self, step: Step, observer: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let job = self.job;
        let mut note = |text: String| observer(Event::Note(&text));
        match step {
            Step::CheckPayload => job
                .payload
                .check(&mut |done, total| observer(Event::Bytes { done, total })),
            Step::ScriptsBefore => configure::scripts(&job.answers.scripts, true, &self.root, &mut note),
            Step::Wipe => self.wipe(),
            Step::MakeFileSystems => self.make_file_systems(),
            Step::Unpack => job.payload.unpack(&self.root),
            Step::Configure => configure::configure(&self.root, job.answers, job.plan),
            Step::CustomChange => match job.agent_tarball {
                Some(tarball) => configure::custom_change(&self.root, tarball, job.time),
                None => Ok(()),
            },
            Step::ScriptsAfter => configure::scripts(&job.answers.scripts, false, &self.root, &mut note),
            Step::BootFiles => self.boot_files(),
            Step::CloseFileSystems => self.close_file_systems(),
            Step::BootPartitions => self.boot_partitions(observer),
            Step::BackupTable => {
                let table = self.make_table()?;
                let at = job.plan.size - TABLE_SECTORS * SECTOR;
                self.table = Some(table);
                self.write_table(|table| &table.backup, at)
            }
            Step::PrimaryTable => self.write_table(|table| &table.primary, SECTOR),
            Step::FirstSector => self.write_table(|table| &table.first_sector, 0),
        }
    }

    fn wipe(&mut self) -> Result<()> {
        let partitions = &self.job.plan.partitions;
        let size = self.job.plan.size;
        let target = self.target()?;
        // The first sector alone: without it the rest means nothing to any firmware.
        target.zero(0, SECTOR)?;
        target.flush()?;
        cut_point("wipe", "first");
        target.zero(0, MIB)?;
        target.zero(size - MIB, MIB)?;
        for partition in partitions {
            let len = WIPE.min(partition.size);
            target.zero(partition.start, len)?;
            target.zero(partition.start + partition.size - len, len)?;
        }
        target.flush()
    }

    fn make_file_systems(&mut self) -> Result<()> {
        let job = self.job;
        let scratch = self.scratch.path().to_owned();
        let time = self.time;
        let target = self.target()?;
        let is_image = target.is_image();
        let path = target.path().to_owned();
        for partition in &job.plan.partitions {
            match partition.fs {
                FileSystem::Swap => {
                    let header = filesystem::swap_header(partition, &job.names, &scratch)?;
                    self.target()?.write(&header, partition.start)?;
                }
                // Of an image it is made at the end, with everything in it.
                FileSystem::Ext4 if is_image && partition.role == Role::Mount("/".to_owned()) => {}
                FileSystem::Ext4 if is_image => {
                    let place = Ext4Place::Image {
                        path: &path,
                        time,
                        tree: None,
                    };
                    filesystem::make_ext4(partition, &job.names, place)?;
                }
                FileSystem::Ext4 => {
                    let device = Loop::attach(&path, partition.start, partition.size)?;
                    filesystem::make_ext4(partition, &job.names, Ext4Place::Device(device.path()))?;
                    device.detach()?;
                }
                FileSystem::Vfat | FileSystem::None => {}
            }
            cut_point("make_file_systems", &format!("part{}", partition.number));
        }
        self.target()?.flush()?;
        if !is_image {
            let system = self.partition(&Role::Mount("/".to_owned()))?;
            let device = Loop::attach(&path, system.start, system.size)?;
            mount(
                Some(device.path()),
                &self.root,
                Some("ext4"),
                MsFlags::empty(),
                None::<&str>,
            )
            .map_err(|error| Error::io("mount the new system on", &self.root, error.into()))?;
            self.system = Some(Mounted {
                place: self.root.clone(),
                device: Some(device),
            });
        }
        Ok(())
    }

    fn boot_files(&mut self) -> Result<()> {
        let job = self.job;
        let version = fs::read_to_string(self.root.join("etc/master-target/version")).unwrap_or_default();
        let menu = Menu {
            root: self.partition_uuid(self.partition(&Role::Mount("/".to_owned()))?),
            arguments: &job.answers.kernel_arguments,
            seconds: job.answers.menu_seconds.unwrap_or(5),
            version: version.trim(),
        };
        let scsi_id = job.plan.disk.as_ref().and_then(|disk| disk.scsi_id.as_deref());
        let made = boot::prepare(
            &self.root,
            job.plan,
            &menu,
            scsi_id,
            job.names.of("esp volume"),
            self.time,
            self.scratch.path(),
        )?;
        self.boot = Some(made);
        Ok(())
    }

    fn close_file_systems(&mut self) -> Result<()> {
        if let Some(system) = self.system.take() {
            system.close()?;
        } else {
            let partition = self.partition(&Role::Mount("/".to_owned()))?;
            let place = Ext4Place::Image {
                path: self.job.target,
                time: self.time,
                tree: Some(&self.root),
            };
            filesystem::make_ext4(partition, &self.job.names, place)?;
        }
        self.target()?.flush()
    }

    fn boot_partitions(&mut self, observer: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let boot = self
            .boot
            .take()
            .ok_or_else(|| Error::new(Kind::Unexpected, "the boot files were not made"))?;
        let [bios, esp] = [self.partition(&Role::BiosBoot)?, self.partition(&Role::Esp)?];
        let target = self.target()?;
        let mut core = boot.core.clone();
        core.resize(core.len().next_multiple_of(4096), 0);
        target.write(&core, bios.start)?;
        cut_point("boot_partitions", "core");
        copy(target, &boot.esp, esp, observer)?;
        target.flush()?;
        self.boot = Some(boot);
        Ok(())
    }

    /// What a partition is called in the partition table.
    fn partition_uuid(&self, partition: &PlannedPartition) -> uuid::Uuid {
        self.job.names.of(&format!(
            "partition {} {}",
            partition.number,
            partition.role.name()
        ))
    }

    /// Makes the partition table with sfdisk on a file of the disk's size, and takes its bytes from there: nothing of
    /// it reaches the disk before its turn, and the kernel has no partitions to follow.
    fn make_table(&self) -> Result<Table> {
        let plan = self.job.plan;
        let path = self.scratch.path().join("table");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|error| Error::io("create", &path, error))?;
        file.set_len(plan.size)
            .map_err(|error| Error::io("create", &path, error))?;
        let mut script = format!(
            "label: gpt\nlabel-id: {}\nunit: sectors\nsector-size: 512\n",
            self.job.names.of("disk")
        );
        for partition in &plan.partitions {
            let kind = match (&partition.role, partition.fs) {
                (Role::BiosBoot, _) => "21686148-6449-6E6F-744E-656564454649",
                (Role::Esp, _) => "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
                (Role::Swap, _) => "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F",
                (Role::Mount(_), _) => "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
            };
            script += &format!(
                "start={}, size={}, type={kind}, uuid={}, name=\"{}\"\n",
                partition.start / SECTOR,
                partition.size / SECTOR,
                self.partition_uuid(partition),
                filesystem::label(partition)
            );
        }
        Program::new("sfdisk")
            .args(["--quiet", "--no-reread", "--no-tell-kernel"])
            .arg(&path)
            .input(script)
            .run()?;
        let read = |at: u64, sectors: u64| -> Result<Vec<u8>> {
            let len = usize::try_from(sectors * SECTOR)
                .map_err(|_| Error::new(Kind::Unexpected, "a partition table of that size"))?;
            let mut bytes = vec![0u8; len];
            file.read_exact_at(&mut bytes, at)
                .map_err(|error| Error::io("read", &path, error))?;
            Ok(bytes)
        };
        let mut first_sector = read(0, 1)?;
        if let Some(boot) = &self.boot {
            first_sector[..boot.boot_code.len()].copy_from_slice(&boot.boot_code);
        }
        Ok(Table {
            first_sector,
            primary: read(SECTOR, TABLE_SECTORS)?,
            backup: read(plan.size - TABLE_SECTORS * SECTOR, TABLE_SECTORS)?,
        })
    }

    fn write_table(&mut self, part: impl Fn(&Table) -> &Vec<u8>, at: u64) -> Result<()> {
        let table = self
            .table
            .take()
            .ok_or_else(|| Error::new(Kind::Unexpected, "the partition table was not made"))?;
        let target = self.target()?;
        target.write(part(&table), at)?;
        target.flush()?;
        self.table = Some(table);
        Ok(())
    }
}

/// Copies a file into a partition.
fn copy(
    target: &Target,
    from: &Path,
    partition: &PlannedPartition,
    observer: &mut dyn FnMut(Event<'_>),
) -> Result<()> {
    let mut file = File::open(from).map_err(|error| Error::io("open", from, error))?;
    let mut buffer = vec![0u8; usize::try_from(MIB).unwrap_or(1 << 20)];
    let mut done = 0;
    while done < partition.size {
        let count = file
            .read(&mut buffer)
            .map_err(|error| Error::io("read", from, error))?;
        if count == 0 {
            break;
        }
        target.write(&buffer[..count], partition.start + done)?;
        done += count as u64;
        observer(Event::Bytes {
            done,
            total: partition.size,
        });
    }
    Ok(())
}

/// Takes this process out of the machine's mounts, so that what it mounts goes when it goes, also by `kill -9`.
fn private_mounts() -> Result<()> {
    let failed = |error: nix::errno::Errno| {
        Error::new(
            Kind::Unexpected,
            format!("cannot make a mount namespace of its own: {error}"),
        )
        .hint("run as root")
    };
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(failed)?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .map_err(failed)
}
