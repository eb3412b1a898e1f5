// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-image vmdk write|inspect|check|extract`.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Subcommand;

use super::{judge, say, say_json};
use crate::error::{Error, Kind, Result, counted, shown};
use crate::publish::{Existing, Unpublished, refuse_same};
use crate::vmdk::descriptor::TOOLS_VERSION_UNKNOWN;
use crate::vmdk::reader::{self, Discard, GrainTaker, Layout, ReadError, VmdkReport};
use crate::vmdk::writer::{self, WriteError, WriteOptions};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Write a raw disk as a VMDK for an OVA
    Write {
        /// Raw disk: a file or a block device, of a multiple of 512 bytes
        raw: PathBuf,
        /// File to make
        vmdk: PathBuf,
        /// Compression level, 1 (fast) to 9 (small)
        #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=9))]
        level: u32,
        /// Compressing threads [default: one per core]
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
        threads: Option<u16>,
        /// Version of the open-vm-tools in the disk as ddb.toolsVersion
        #[arg(long, default_value_t = TOOLS_VERSION_UNKNOWN)]
        tools_version: u32,
        /// Replace the file if it exists
        #[arg(long)]
        force: bool,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what a VMDK is; with faults the exit code is that of check
    Inspect {
        /// File to read
        vmdk: PathBuf,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Read a VMDK as strictly as ESXi and name every fault
    Check {
        /// File to read, of any maker
        vmdk: PathBuf,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the disk in a VMDK to a sparse raw file
    Extract {
        /// File to read
        vmdk: PathBuf,
        /// Raw file to make
        raw: PathBuf,
        /// Replace the file if it exists
        #[arg(long)]
        force: bool,
    },
}

pub fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Write {
            raw,
            vmdk,
            level,
            threads,
            tools_version,
            force,
            json,
        } => {
            let options = WriteOptions {
                level,
                threads: threads.map_or_else(default_threads, usize::from),
                extent_name: extent_name(&vmdk),
                tools_version,
            };
            write(&raw, &vmdk, &options, existing(force), json)
        }
        Verb::Inspect { vmdk, json } => {
            let report = examine(&vmdk)?;
            if json {
                say_json(&report)?;
            } else {
                inspect(&vmdk, &report)?;
            }
            judge(&shown(&vmdk), &report.faults)
        }
        Verb::Check { vmdk, json } => {
            let report = examine(&vmdk)?;
            if json {
                say_json(&report)?;
            } else if report.faults.is_empty() {
                say(&format!(
                    "{}: good, {}, ends with the end-of-stream marker",
                    shown(&vmdk),
                    counted(report.grains, "grain")
                ))?;
            } else {
                report
                    .faults
                    .iter()
                    .try_for_each(|fault| say(&fault.to_string()))?;
            }
            judge(&shown(&vmdk), &report.faults)
        }
        Verb::Extract { vmdk, raw, force } => extract(&vmdk, &raw, existing(force)),
    }
}

/// What `--force` means.
pub fn existing(force: bool) -> Existing {
    if force { Existing::Replace } else { Existing::Keep }
}

/// One compressing thread per core.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The file's own name where a descriptor can hold it.
fn extent_name(vmdk: &Path) -> String {
    let name = vmdk
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let bad = |c: char| c == '"' || c.is_control();
    if name.is_empty() || name.len() > 1024 || name.contains(bad) {
        "disk.vmdk".to_owned()
    } else {
        name
    }
}

fn write(raw: &Path, vmdk: &Path, options: &WriteOptions, existing: Existing, json: bool) -> Result<()> {
    let (input, size) = open_input(raw)?;
    refuse_same(raw, vmdk)?;
    let output = Unpublished::create(vmdk, existing)?;
    output.restrict_as(raw)?;
    let started = Instant::now();
    let mut progress = Progress::new(size);
    let summary = writer::write(&input, size, output.file(), options, &mut |done| {
        progress.show(done)
    })
    .map_err(|error| write_error(error, raw, vmdk))?;
    progress.end();
    output.publish()?;
    if json {
        return say_json(&serde_json::json!({
            "vmdk": vmdk.to_string_lossy(),
            "capacity": summary.capacity_sectors * 512,
            "grains": summary.grains,
            "padding_bytes": summary.padding_bytes,
            "file_size": summary.file_size,
            "skipped_bytes": summary.skipped_bytes,
            "content_id": summary.content_id.to_string(),
        }));
    }
    say(&format!(
        "{}: {} bytes from a disk of {} bytes{}, {}, {:.1} s",
        shown(vmdk),
        summary.file_size,
        size,
        padding(summary.padding_bytes),
        counted(summary.grains, "grain"),
        started.elapsed().as_secs_f64()
    ))
}

/// Tells that a disk became larger than it was.
pub fn padding(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        _ => format!(" (and {bytes} bytes of zeros, since a VMDK has whole grains of 64 KiB only)"),
    }
}

/// Sorts a writer's error by who has to act.
pub fn write_error(error: WriteError, raw: &Path, vmdk: &Path) -> Error {
    match error {
        WriteError::Read { source, .. } => Error::io("read", raw, source),
        WriteError::Write(source) => Error::io("write", vmdk, source),
        WriteError::Unsuitable(text) => {
            Error::new(Kind::Usage, format!("cannot write {}: {text}", shown(vmdk)))
                .hint("give a raw disk of a size and with options that a VMDK can carry")
        }
    }
}

/// Opens a file or a block device that was named on the command line; returns its size in bytes too.
pub fn open_input(path: &Path) -> Result<(File, u64)> {
    use std::io::{Seek, SeekFrom};
    use std::os::unix::fs::FileTypeExt;
    let wrong = |error| Error::input("open", path, error);
    // Looked at before it is opened: opening a pipe would wait for somebody to write into it.
    let kind = path.metadata().map_err(wrong)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::new(
            Kind::Usage,
            format!("{} is neither a file nor a block device", shown(path)),
        )
        .hint("name the file itself"));
    }
    let mut file = File::open(path).map_err(wrong)?;
    // The metadata of a block device gives 0; its end can be sought.
    let size = file
        .seek(SeekFrom::End(0))
        .and_then(|size| file.rewind().map(|()| size))
        .map_err(|error| Error::io("find the size of", path, error))?;
    Ok((file, size))
}

fn examine(vmdk: &Path) -> Result<VmdkReport> {
    let input = open_file(vmdk)?;
    reader::read(input, &mut Discard).map_err(|error| read_error(error, vmdk, vmdk))
}

fn open_file(path: &Path) -> Result<impl Read> {
    let (file, _) = open_input(path)?;
    Ok(io::BufReader::with_capacity(1 << 20, file))
}

fn read_error(error: ReadError, vmdk: &Path, raw: &Path) -> Error {
    match error {
        ReadError::Read { source, .. } => Error::io("read", vmdk, source),
        ReadError::Take { source, .. } => Error::io("write", raw, source),
    }
}

fn inspect(vmdk: &Path, report: &VmdkReport) -> Result<()> {
    let layout = match report.layout {
        Some(Layout::Front) => "tables in front of the grains",
        Some(Layout::Footer) => "tables among the grains, footer at the end",
        None => "unknown",
    };
    say(&format!(
        "file        {} ({} bytes)",
        shown(vmdk),
        report.file_size
    ))?;
    say(&format!("disk        {} bytes", report.capacity))?;
    say(&format!("layout      {layout}"))?;
    say(&format!(
        "grains      {} of 64 KiB, {} compressed",
        report.grains,
        counted(report.compressed_bytes, "byte")
    ))?;
    say(&format!(
        "content ID  {}",
        if report.content_id_matches {
            "derived from the content"
        } else {
            "arbitrary"
        }
    ))?;
    say(&format!("faults      {}", report.faults.len()))?;
    report
        .faults
        .iter()
        .try_for_each(|fault| say(&format!("  {fault}")))?;
    match &report.descriptor {
        Some(text) => say(&format!("descriptor\n{}", text.trim_end())),
        None => Ok(()),
    }
}

/// A raw file that stays sparse where the VMDK has no grain.
struct RawFile<'a>(&'a File);

impl GrainTaker for RawFile<'_> {
    fn take(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

fn extract(vmdk: &Path, raw: &Path, existing: Existing) -> Result<()> {
    let input = open_file(vmdk)?;
    refuse_same(vmdk, raw)?;
    let output = Unpublished::create(raw, existing)?;
    output.restrict_as(vmdk)?;
    let report =
        reader::read(input, &mut RawFile(output.file())).map_err(|error| read_error(error, vmdk, raw))?;
    if !report.faults.is_empty() {
        report
            .faults
            .iter()
            .for_each(|fault| mt_installer::tell_line!("{fault}"));
        return judge(&shown(vmdk), &report.faults).map_err(|error| error.hint("nothing was extracted"));
    }
    output
        .file()
        .set_len(report.capacity)
        .map_err(|error| Error::io("size", raw, error))?;
    output.publish()?;
    say(&format!(
        "{}: {} bytes, {} with data",
        shown(raw),
        report.capacity,
        counted(report.grains, "grain")
    ))
}

/// Progress on standard error: redrawn on a terminal, a line every few seconds otherwise.
struct Progress {
    total: u64,
    started: Instant,
    shown: Instant,
    terminal: bool,
}

impl Progress {
    fn new(total: u64) -> Self {
        let now = Instant::now();
        Self {
            total,
            started: now,
            shown: now,
            terminal: io::stderr().is_terminal(),
        }
    }

    fn show(&mut self, done: u64) {
        let pause = Duration::from_millis(if self.terminal { 200 } else { 5000 });
        if self.shown.elapsed() < pause {
            return;
        }
        self.shown = Instant::now();
        let (done_mib, total_mib) = (done >> 20, self.total >> 20);
        let seconds = self.started.elapsed().as_secs().max(1);
        let line = format!("{done_mib} of {total_mib} MiB, {} MiB/s", done_mib / seconds);
        if self.terminal {
            mt_installer::tell!("\r{line}    ");
        } else {
            mt_installer::tell_line!("{line}");
        }
    }

    fn end(&self) {
        if self.terminal {
            mt_installer::tell!("\r\x1b[K");
        }
    }
}
