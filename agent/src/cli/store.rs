//! `mt-agent retention check` and `rebuild`: stores as they lie on the retention volume. A check only reads, and needs no agent;
//! beside a running one it looks at what that has made durable.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mt_retention::files::FileStorage;
use mt_retention::{
    Finding, ObjectName, OpenOptions, Overlay, Storage, Store, StoreError, check_superblocks,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::offline;
use super::output::{ServiceArgs, print, print_json, time_text};
use super::ownership::become_owner_of;
use super::screen::clean;
use crate::config::Config;
use crate::error::{CliError, ExitCode};
use crate::machines::catalogue::{self, Catalogue};
use crate::machines::error::MachineError;
use crate::machines::folder;
use crate::machines::points::time_of;
use crate::machines::volume::{self, Volume};
use crate::source::report::size_text;
use crate::status::client::{Client, ClientError, escape};
use crate::status::machines::RetentionDoc;
use crate::status::model::SCHEMA;

/// Lines on something that is no terminal come this often.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// How often a store is opened again whose owner changed it at that moment.
const OPEN_TRIES: u32 = 20;

/// Which volume is meant, and who reads the answer.
#[derive(Debug, Clone, Args)]
pub struct VolumeArgs {
    /// Folder of the volume [default: the running agent's, else the configured]
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// Configuration [default: /etc/master-target/agent.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the service is, and who reads the answer.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Arguments of `retention check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Names of machines [default: all on the volume]
    #[arg(value_name = "MACHINE")]
    pub machines: Vec<String>,
    /// Which volume.
    #[command(flatten)]
    pub volume: VolumeArgs,
}

/// Arguments of `retention rebuild`.
#[derive(Debug, Clone, Args)]
pub struct RebuildArgs {
    /// Name of the machine
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// Which volume.
    #[command(flatten)]
    pub volume: VolumeArgs,
}

/// What a check found.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct CheckDoc {
    schema: u32,
    folder: String,
    volume: String,
    machines: Vec<MachineCheck>,
}

/// What a check found in the store of a machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct MachineCheck {
    machine: String,
    /// Why its store cannot be opened at all.
    error: Option<String>,
    segments: u64,
    bytes: u64,
    points: u64,
    /// What is not as it was written.
    findings: Vec<Finding>,
    /// Points that cannot be reached.
    damaged: Vec<DamagedPoint>,
    /// Why the catalogue was not compared with the segments.
    catalogue_unread: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct DamagedPoint {
    point: u64,
    time: jiff::Timestamp,
    name: String,
    why: String,
}

/// The volume that is meant, and the agent when one runs.
pub(super) struct Place {
    volume: Volume,
    client: Option<Client>,
}

impl VolumeArgs {
    pub(super) async fn place(&self) -> Result<Place, CliError> {
        let config = match &self.config {
            Some(path) => Some(Config::load(path)?),
            None => None,
        };
        let socket = match (&self.service.socket, &config) {
            (Some(socket), _) => Some(socket.clone()),
            (None, Some(config)) => Some(config.socket.clone()),
            (None, None) => None,
        };
        let client = Client::new(socket.as_deref());
        let running = match client.get("/v1/retention").await {
            Ok(answer) => Some(client.decode::<RetentionDoc>(answer)?),
            Err(ClientError::NotRunning { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let of_agent = running
            .as_ref()
            .and_then(|doc| doc.folder.as_ref())
            .map(PathBuf::from);
        let folder = match (&self.folder, &of_agent, config) {
            (Some(folder), _, _) => Some(folder.clone()),
            (None, Some(folder), _) => Some(folder.clone()),
            (None, None, Some(config)) => config.retention,
            (None, None, None) => Config::load_default()?.retention,
        };
        let Some(folder) = folder else {
            return Err(
                CliError::new(ExitCode::Config, "no folder is configured for recovery points")
                    .with_hint("set [retention] folder in the configuration, or name one with --folder"),
            );
        };
        let volume = volume::look(&folder)?;
        // An agent that has another volume knows nothing of this one.
        let client = Some(client).filter(|_| of_agent.as_ref() == Some(&folder));
        Ok(Place { volume, client })
    }

    /// Where the agent that is configured keeps its state, running or not.
    fn state_dir(&self) -> Result<PathBuf, CliError> {
        let config = match &self.config {
            Some(path) => Config::load(path)?,
            None => Config::load_default()?,
        };
        Ok(config.state_dir)
    }
}

impl Place {
    pub(super) fn folder_of(&self, machine: &str) -> Result<PathBuf, CliError> {
        let folder = self.volume.machine(machine);
        if folder.is_dir() {
            return Ok(folder);
        }
        let known: Vec<String> = self.volume.machines()?.iter().map(|name| clean(name)).collect();
        let there = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        Err(CliError::new(
            ExitCode::Usage,
            format!(
                "machine {} has no store on the retention volume {}",
                clean(machine),
                self.volume.folder.display()
            ),
        )
        .with_hint(format!("stores are there of: {there}")))
    }
}

/// Reads every byte of stores and says what is damaged, and which points depend on it.
///
/// # Errors
/// When the volume or a store cannot be read. Damage is no error: its exit code is 7.
pub async fn check(args: &CheckArgs) -> Result<ExitCode, CliError> {
    let place = args.volume.place().await?;
    let names = if args.machines.is_empty() {
        place.volume.machines()?
    } else {
        args.machines.clone()
    };
    let mut folders = Vec::new();
    for name in &names {
        folders.push((name.clone(), place.folder_of(name)?));
    }
    let mut document = CheckDoc {
        schema: SCHEMA,
        folder: place.volume.folder.display().to_string(),
        volume: place.volume.id.clone(),
        machines: Vec::new(),
    };
    for (name, folder) in folders {
        let quiet = args.volume.service.json;
        let shown = name.clone();
        let checked = tokio::task::spawn_blocking(move || check_store(&shown, &folder, quiet))
            .await
            .map_err(|error| CliError::new(ExitCode::Unexpected, format!("the check failed: {error}")))??;
        if let Some(client) = &place.client {
            report(client, &name, &checked).await?;
        }
        if !quiet {
            print(&check_text(&checked))?;
        }
        document.machines.push(checked);
    }
    if args.volume.service.json {
        print_json(&serde_json::to_value(&document).unwrap_or_default())?;
    } else if document.machines.is_empty() {
        print("no machine has a store on this volume\n")?;
    }
    let whole = |machine: &MachineCheck| {
        machine.error.is_none() && machine.findings.is_empty() && machine.damaged.is_empty()
    };
    Ok(if document.machines.iter().all(whole) {
        ExitCode::Done
    } else {
        ExitCode::Retention
    })
}

/// Tells the running agent where damage is: it reads that itself, and marks the points.
async fn report(client: &Client, machine: &str, checked: &MachineCheck) -> Result<(), CliError> {
    let mut segments: Vec<u64> = checked
        .findings
        .iter()
        .filter_map(|finding| match ObjectName::parse(&finding.object) {
            Some(ObjectName::Segment(number)) => Some(number),
            _ => None,
        })
        .collect();
    segments.dedup();
    let path = format!("/v1/machines/{}/check", escape(machine));
    for segment in segments {
        match client.post(&path, &json!({ "segments": [segment] })).await {
            // A store whose machine is not paired here any more, or that the agent cannot open, has no points on offer.
            Ok(_) | Err(ClientError::Refused(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

pub(super) fn store_error(machine: &str, source: StoreError) -> CliError {
    MachineError::Store {
        machine: machine.to_owned(),
        source,
    }
    .into()
}

/// Whether the owner of a store may have taken an object away while it was being read.
fn may_have_moved(error: &StoreError) -> bool {
    matches!(error, StoreError::Storage(error)
        if matches!(error.source.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof))
}

/// A store that is looked at, and what opening it found; or why it cannot be opened, which is a finding too.
type Looked = Result<(Store<Overlay<FileStorage>>, mt_retention::Recovered), StoreError>;

fn open_for_looking(machine: &str, folder: &Path) -> Result<Looked, CliError> {
    let mut tries = 0;
    loop {
        let storage = FileStorage::open_read_only(folder).map_err(|source| MachineError::Io {
            attempted: "open",
            path: folder.to_owned(),
            source,
        })?;
        tries += 1;
        match Store::open(Overlay::new(storage), OpenOptions::default()) {
            Err(error) if may_have_moved(&error) && tries < OPEN_TRIES => {}
            Err(error @ StoreError::Storage(_)) => return Err(store_error(machine, error)),
            opened => return Ok(opened),
        }
    }
}

fn check_store(machine: &str, folder: &Path, quiet: bool) -> Result<MachineCheck, CliError> {
    let fail = |source| store_error(machine, source);
    let mut checked = MachineCheck {
        machine: machine.to_owned(),
        ..MachineCheck::default()
    };
    let storage = FileStorage::open_read_only(folder).map_err(|source| MachineError::Io {
        attempted: "open",
        path: folder.to_owned(),
        source,
    })?;
    checked.findings = check_superblocks(&storage).map_err(fail)?;
    let lengths = storage.list().map_err(|error| fail(error.into()))?;
    let (mut store, recovered) = match open_for_looking(machine, folder)? {
        Ok(opened) => opened,
        Err(error) => {
            checked.error = Some(error.to_string());
            return Ok(checked);
        }
    };
    let segments = store.segments();
    let total = lengths
        .iter()
        .filter(|(object, _)| matches!(object, ObjectName::Segment(number) if segments.contains(number)))
        .map(|(_, len)| len)
        .sum();
    let mut progress = Progress::new(machine, total, quiet);
    for segment in segments {
        match store.check_segment(segment) {
            Ok(found) => {
                checked.segments += 1;
                checked.bytes += found.bytes;
                checked.findings.extend(found.findings);
            }
            // Dropped by its owner meanwhile.
            Err(error) if may_have_moved(&error) && !is_there(&storage, segment) => {}
            Err(error) => return Err(fail(error)),
        }
        progress.at(checked.bytes);
    }
    progress.end();
    // Damage that only opening notices, such as a segment that is missing.
    let object = folder.display().to_string();
    for what in recovered.damage {
        if !checked
            .findings
            .iter()
            .any(|finding| what.contains(&finding.object))
        {
            checked.findings.push(Finding {
                object: object.clone(),
                offset: 0,
                what,
            });
        }
    }
    check_catalogue(folder, &store, &mut checked);
    checked.points = u64::try_from(store.points().count()).unwrap_or(u64::MAX);
    checked.damaged = store
        .points()
        .filter_map(|point| {
            let why = store.damage_of(point.epoch)?.to_owned();
            Some(DamagedPoint {
                point: point.epoch.0,
                time: time_of(point.source_time_ms),
                name: point.name.clone(),
                why,
            })
        })
        .collect();
    Ok(checked)
}

fn is_there(storage: &FileStorage, segment: u64) -> bool {
    let wanted = ObjectName::Segment(segment);
    storage
        .list()
        .is_ok_and(|objects| objects.iter().any(|(object, _)| *object == wanted))
}

/// Compares what the catalogue says with what the segments say.
fn check_catalogue<S: Storage>(folder: &Path, store: &Store<S>, checked: &mut MachineCheck) {
    let file = folder.join(catalogue::FILE);
    let mut wrong = |what: &str| {
        checked.findings.push(Finding {
            object: catalogue::FILE.to_owned(),
            offset: 0,
            what: format!("{what}; the agent makes it anew when it opens the store"),
        });
    };
    if !file.exists() {
        checked.catalogue_unread =
            Some("there is none; the agent makes it when it opens the store".to_owned());
        return;
    }
    if folder.join(format!("{}-wal", catalogue::FILE)).exists() {
        checked.catalogue_unread = Some(
            "an agent has it open, or was killed while it had; it is checked at each opening".to_owned(),
        );
        return;
    }
    let Some(known) = Catalogue::look(folder) else {
        wrong("it is damaged, or not of this form");
        return;
    };
    if known.damaged().1 {
        wrong("its notes of damage fail their checksum");
    }
    for segment in store.sealed_segments() {
        let summary = mt_retention::Catalogue::summary(&known, segment);
        if summary.is_some_and(|summary| !store.is_summary(segment, &summary)) {
            wrong(&format!(
                "its summary of {} is not what the segment says",
                ObjectName::Segment(segment)
            ));
        }
    }
}

fn check_text(checked: &MachineCheck) -> String {
    let mut text = format!(
        "{}: {} in {} segments read, {} points",
        clean(&checked.machine),
        size_text(checked.bytes),
        checked.segments,
        checked.points
    );
    if let Some(error) = &checked.error {
        let _ = writeln!(text, "\n  - cannot be opened: {}", clean(error));
        return text;
    }
    if checked.findings.is_empty() && checked.damaged.is_empty() {
        text.push_str("; whole\n");
        return text;
    }
    text.push_str("; damaged\n");
    for finding in &checked.findings {
        let _ = writeln!(text, "  - {}", clean(&finding.to_string()));
    }
    if checked.damaged.is_empty() {
        text.push_str("  all points can be reached\n");
        return text;
    }
    text.push_str("  these points cannot be reached, and all others can:\n");
    for point in &checked.damaged {
        let _ = writeln!(
            text,
            "  {:>8}  {}  {}",
            point.point,
            time_text(point.time),
            clean(&point.name)
        );
    }
    text
}

/// Tells how far reading a store is.
struct Progress {
    bar: Option<ProgressBar>,
    machine: String,
    total: u64,
    last_line: Option<Instant>,
}

impl Progress {
    fn new(machine: &str, total: u64, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = (terminal && !quiet).then(|| {
            let style = ProgressStyle::with_template(
                "{msg} {wide_bar} {bytes:>10} of {total_bytes}  {binary_bytes_per_sec:>12}  {eta:>4} left",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar =
                ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style);
            bar.set_message(clean(machine));
            bar
        });
        Self {
            bar,
            machine: clean(machine),
            total,
            last_line: (!terminal && !quiet).then(Instant::now),
        }
    }

    fn at(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        }
        if let Some(last) = &mut self.last_line
            && last.elapsed() >= LINE_INTERVAL
        {
            *last = Instant::now();
            let _ = writeln!(
                io::stderr(),
                "{}: {} of {} read",
                self.machine,
                size_text(bytes),
                size_text(self.total)
            );
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Makes the catalogue of a store anew from its segments: by the agent when one runs, else here, where superblocks that
/// are both lost are made anew, too.
///
/// # Errors
/// When the store cannot be opened or written.
pub async fn rebuild(args: &RebuildArgs) -> Result<ExitCode, CliError> {
    let place = args.volume.place().await?;
    let machine = &args.machine;
    let folder = place.folder_of(machine)?;
    let mut damaged = 0;
    if let Some(client) = &place.client {
        client
            .post(&format!("/v1/machines/{}/rebuild", escape(machine)), &json!({}))
            .await?;
    } else {
        let name = machine.clone();
        let quiet = args.volume.service.json;
        let (who, state) = (offline::who(), args.volume.state_dir()?);
        let what = format!("retention rebuild {machine}, in {}", folder.display());
        let rebuilt = tokio::task::spawn_blocking(move || rebuild_here(&name, &folder, quiet))
            .await
            .map_err(|error| CliError::new(ExitCode::Unexpected, format!("it failed: {error}")))?;
        let result = match &rebuilt {
            Ok(damaged) => format!("done: {damaged} damaged segments"),
            Err(error) => format!("failed: {}", error.message),
        };
        // The volume may be a copy on another machine, which has no state of an agent.
        offline::note(&state, &who, &what, &result);
        damaged = rebuilt?;
    }
    if args.volume.service.json {
        print_json(&json!({ "schema": SCHEMA, "machine": machine, "damaged_segments": damaged }))?;
    } else {
        let mut text = format!(
            "{}: the catalogue was made anew from the segments\n",
            clean(machine)
        );
        if damaged > 0 {
            let _ = writeln!(
                text,
                "  - {damaged} segments are damaged; \"mt-agent retention check\" says what depends on them"
            );
        }
        print(&text)?;
    }
    Ok(if damaged > 0 {
        ExitCode::Retention
    } else {
        ExitCode::Done
    })
}

/// Makes the catalogue anew, reads every segment, and notes damage in it. Returns how many segments are damaged.
fn rebuild_here(machine: &str, path: &Path, quiet: bool) -> Result<u64, CliError> {
    let io = |attempted, source| MachineError::Io {
        attempted,
        path: path.to_owned(),
        source,
    };
    let fail = |source| store_error(machine, source);
    become_owner_of(path).map_err(|source| io("go on as the owner of", source))?;
    let mut storage = FileStorage::open(path).map_err(|source| io("open", source))?;
    mt_retention::restore_superblocks(&mut storage).map_err(fail)?;
    catalogue::remove(path).map_err(|error| crate::machines::registry::catalogue_error(path, error))?;
    let mut opened = folder::open(machine, path, storage, OpenOptions::default()).map_err(fail)?;
    if opened.catalogue.is_none() {
        return Err(io(
            "write the catalogue in",
            std::io::Error::other("see the line above"),
        )
        .into());
    }
    let segments = opened.store.segments();
    let mut progress = Progress::new(machine, opened.store.status().used, quiet);
    let (mut damaged, mut bytes) = (0, 0);
    for segment in segments {
        let found =
            folder::check(machine, &mut opened.store, opened.catalogue.as_ref(), segment).map_err(fail)?;
        damaged += u64::from(!found.findings.is_empty());
        bytes += found.bytes;
        progress.at(bytes);
    }
    progress.end();
    Ok(damaged)
}
