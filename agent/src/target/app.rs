//! The target as a whole: state, disks, local socket and data port, brought up in order and taken down in order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::sleep;

use super::opening::Opener;
use super::registry::PairsInUse;
use super::report::forget_mark;
use super::scsi_ids;
use super::service::{Access, listen, serve};
use crate::disks::access::DiskAccess;
use crate::disks::facts::{DiskFacts, Inventory, InventoryDiff};
use crate::disks::gate::{Purpose, admit};
use crate::disks::watch::{Watch, WatchTimes};
use crate::error::{CliError, ExitCode, Explain as _};
use crate::hub::{Alarm, Hub, Severity};
use crate::identity::control;
use crate::identity::keeper::Keeper;
use crate::machines::exports::Exports;
use crate::machines::failover::Failovers;
use crate::machines::jobs::Jobs;
use crate::machines::lag::StoreSettings;
use crate::machines::registry::Machines;
use crate::model::Pair;
use crate::net::door::Door;
use crate::state::State;
use crate::status::view::paired_disk;

/// Raised while the disk of a pair is not attached, or attached twice.
pub const ALARM_DISK: &str = "pair-disk-missing";

/// Raised while the disk of a pair is there and may not be written: mounted, read-only, or no longer the disk it was.
pub const ALARM_REFUSED: &str = "pair-disk-refused";

/// Wait after a look at the disks that failed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How often the machines are looked after.
const KEEP_HOUSE: Duration = Duration::from_secs(5);
/// Time for closing the machines at the end.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// How often it is asked whether the certificate of the own ports has to be renewed.
const RENEW_OWN: Duration = Duration::from_secs(3600);

/// What a target needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of the state.
    pub state_dir: PathBuf,
    /// The data port.
    pub listen: SocketAddr,
    /// The control port; none in a laboratory whose data port takes whoever connects.
    pub control: Option<SocketAddr>,
    /// The way to the disks.
    pub disks: DiskAccess,
    /// How many stand-ins for SCSI disks the configuration has.
    pub lab_disks: usize,
    /// Folder of the retention volume; none where no points are kept.
    pub retention: Option<PathBuf>,
    /// How its stores are to be held.
    pub stores: StoreSettings,
}

/// A target that is up: its parts, for the local socket.
#[derive(Clone)]
pub struct Target {
    /// State and status.
    pub hub: Hub,
    /// Which pairs have a session.
    pub pairs: PairsInUse,
    /// The way to the disks.
    pub disks: DiskAccess,
    /// The machines that are open.
    pub machines: Machines,
    /// The hand on failovers and rolls.
    pub failovers: Failovers,
    /// Points that are exported.
    pub exports: Exports,
    /// Who the appliance is and whom it knows; none in a laboratory whose data port takes whoever connects.
    pub keeper: Option<Keeper>,
}

impl Target {
    /// The parts of a target with these settings; no machine is open.
    pub fn new(hub: Hub, settings: &Settings, keeper: Option<Keeper>) -> Self {
        let machines = Machines::new(
            hub.clone(),
            settings.disks.clone(),
            settings.retention.clone(),
            settings.stores,
        );
        let exports = Exports::new(settings.state_dir.join("exports"));
        Self {
            hub,
            pairs: PairsInUse::default(),
            keeper,
            disks: settings.disks.clone(),
            failovers: Failovers::new(machines.clone(), Jobs::default(), exports.clone()),
            exports,
            machines,
        }
    }
}

/// Runs a target until `stop` becomes true. `serve_socket` is given the target once it is up, and runs beside it.
///
/// # Errors
/// When the state, the disks, or the data port cannot be had.
pub async fn run<S>(
    settings: &Settings,
    stop: watch::Receiver<bool>,
    serve_socket: impl FnOnce(Target, watch::Receiver<bool>) -> S,
) -> Result<(), CliError>
where
    S: Future<Output = Result<(), CliError>>,
{
    let state = State::open(&settings.state_dir)?;
    let hub = Hub::new(state, Timestamp::now());
    // The port before the disks: an agent that is started twice should say so at once.
    let listener = listen(settings.listen, "listen").await?;
    let control = match settings.control {
        Some(address) => Some(listen(address, "control").await?),
        None => None,
    };
    let watched = Watch::start(settings.disks.clone(), WatchTimes::default())
        .await
        .map_err(|error| {
            CliError::new(
                ExitCode::DiskMissing,
                format!("cannot look at the disks: {}", chain(&error)),
            )
            .with_hint("run as root, with /sys and /proc mounted")
        })?;
    take_inventory(&hub, watched.inventory(), &InventoryDiff::default());
    super::report::remember_differences(&hub, Timestamp::now());
    let keeper = match &control {
        Some(_) => Some(Keeper::open(hub.clone(), &settings.state_dir, Timestamp::now())?),
        None => None,
    };
    let target = Target::new(hub.clone(), settings, keeper.clone());
    let machines = target.machines.clone();
    let (hot_plug, hot_plugged) = watch::channel(0);
    let opener = Opener {
        hub: hub.clone(),
        pairs: target.pairs.clone(),
        disks: settings.disks.clone(),
        machines: machines.clone(),
        caller: None,
        shared: super::session::shared_buffers(),
    };
    if settings.lab_disks > 0 {
        tracing::warn!(
            "lab: {} disks of the configuration stand in for SCSI disks",
            settings.lab_disks
        );
    }
    let access = match (keeper, control) {
        (Some(keeper), Some(control)) => {
            let door = Door::new();
            let address = control
                .local_addr()
                .map_or_else(|_| String::new(), |address| address.to_string());
            tracing::info!(
                "target listens on {} (mutual TLS), machines register on {address}",
                settings.listen
            );
            tokio::spawn(control::serve(
                control,
                keeper.clone(),
                door.clone(),
                stop.clone(),
            ));
            tokio::spawn(renew_own(keeper.clone(), stop.clone()));
            Access::Registered(keeper, door)
        }
        _ => {
            tracing::warn!(
                "lab: target listens on {} WITHOUT TLS and takes whoever connects",
                settings.listen
            );
            Access::Plain
        }
    };
    let failovers = target.failovers.clone();
    // Opening a store reads it; nobody has to wait for that who only asks for status.
    tokio::task::spawn_blocking(move || failovers.resume_all());
    tokio::spawn(keep_house(machines.clone(), stop.clone()));
    tokio::spawn(keep_reviving(target.failovers.clone(), stop.clone()));
    let service = serve(listener, access, opener, hot_plugged, stop.clone());
    let socket = serve_socket(target, stop);
    let follow = follow_disks(watched, hub, hot_plug);
    tokio::pin!(service, socket, follow);
    let mut socket_ended = false;
    loop {
        tokio::select! {
            () = &mut service => break,
            result = &mut socket, if !socket_ended => {
                // A target without its socket cannot be told anything: better to end and be started again.
                result?;
                socket_ended = true;
            }
            () = &mut follow => {}
        }
    }
    // What only spares time at the next start is not waited for when the retention volume hangs.
    let closed = tokio::task::spawn_blocking(move || machines.close_all());
    if tokio::time::timeout(CLOSE_TIME, closed).await.is_err() {
        tracing::warn!(
            "the machines could not be closed within {} s",
            CLOSE_TIME.as_secs()
        );
    }
    Ok(())
}

/// Renews the certificate of the own ports when that is due.
async fn renew_own(keeper: Keeper, mut stop: watch::Receiver<bool>) {
    let mut tick = tokio::time::interval(RENEW_OWN);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let keeper = keeper.clone();
        match tokio::task::spawn_blocking(move || keeper.renew_own(Timestamp::now())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!("cannot renew the certificate of the own ports: {error}"),
            Err(error) => tracing::error!("renewing the own certificate ended by a fault of ours: {error}"),
        }
    }
}

/// Looks after the open machines every few seconds: half epochs whose source is gone, and the room of the retention volume.
async fn keep_house(machines: Machines, mut stop: watch::Receiver<bool>) {
    let mut tick = tokio::time::interval(KEEP_HOUSE);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let machines = machines.clone();
        let done =
            tokio::task::spawn_blocking(move || crate::machines::house::keep(&machines, Timestamp::now()))
                .await;
        if let Err(error) = done {
            tracing::error!("looking after the machines ended by a fault of ours: {error}");
        }
    }
}

/// Opens machines anew whose disks are there again. Beside the housekeeping: letting go of one may have to wait for its session.
async fn keep_reviving(failovers: Failovers, mut stop: watch::Receiver<bool>) {
    let mut tick = tokio::time::interval(KEEP_HOUSE);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let failovers = failovers.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || failovers.revive_all()).await {
            tracing::error!("opening machines anew ended by a fault of ours: {error}");
        }
    }
}

/// Looks at the disks whenever something changes, for ever.
async fn follow_disks(mut watched: Watch, hub: Hub, hot_plug: watch::Sender<u64>) {
    loop {
        match watched.changed().await {
            Ok(change) => {
                take_inventory(&hub, &change.inventory, &change.diff);
                hot_plug.send_modify(|count| *count += 1);
            }
            Err(error) => {
                tracing::error!("cannot look at the disks: {}", chain(&error));
                sleep(LOOK_AGAIN).await;
            }
        }
    }
}

fn take_inventory(hub: &Hub, inventory: &Inventory, diff: &InventoryDiff) {
    let now = Timestamp::now();
    let mut changes = Vec::new();
    for (what, disks) in [("attached", &diff.added), ("removed", &diff.removed)] {
        for disk in disks {
            changes.push(format!("{what}: {}", name(disk)));
        }
    }
    for (_, disk) in &diff.changed {
        changes.push(format!("changed: {}", name(disk)));
    }
    for change in &changes {
        tracing::info!("disk {change}");
    }
    hub.set_inventory(Arc::new(inventory.clone()), changes, now);
    check_paired_disks(hub, inventory, now);
    scsi_ids::check(hub, inventory, scsi_ids::is_vmware(), now);
}

/// Raises and clears the alarms of pairs whose disk is not there once, or would be refused.
pub fn check_paired_disks(hub: &Hub, inventory: &Inventory, now: Timestamp) {
    let pairs = match hub.state().pairs() {
        Ok(pairs) => pairs,
        Err(error) => {
            tracing::error!("cannot read the pairs: {error}");
            return;
        }
    };
    for pair in pairs {
        let subject = pair.name.to_string();
        let found: Vec<&str> = inventory
            .with_id(pair.scsi_id)
            .map(|disk| disk.kernel_name.as_str())
            .collect();
        let (text, hint) = match found.as_slice() {
            [_] => {
                hub.clear(ALARM_DISK, &subject, now);
                check_admitted(hub, inventory, &pair, now);
                continue;
            }
            [] => {
                forget_mark(hub, pair.id);
                (
                    format!("target disk {} is not attached", pair.scsi_id),
                    "attach it to the appliance; if it is, check disk.EnableUUID with \"mt-agent disks list\"",
                )
            }
            several => (
                format!(
                    "target disk {} is attached {} times ({})",
                    pair.scsi_id,
                    several.len(),
                    several.join(", ")
                ),
                "detach all but one, then run \"mt-agent disks list\"",
            ),
        };
        hub.clear(ALARM_REFUSED, &subject, now);
        hub.raise(Alarm {
            id: ALARM_DISK.to_owned(),
            subject,
            severity: Severity::Critical,
            text,
            hint: hint.to_owned(),
            since: now,
        });
    }
}

/// Raises or clears the alarm of a pair whose disk the gate would refuse: whoever only looks at the status learns before the
/// next send that it will not work.
fn check_admitted(hub: &Hub, inventory: &Inventory, pair: &Pair, now: Timestamp) {
    let subject = pair.name.to_string();
    match admit(&paired_disk(pair), inventory, Purpose::Write) {
        Ok(_) => hub.clear(ALARM_REFUSED, &subject, now),
        Err(refusal) => hub.raise(Alarm {
            id: ALARM_REFUSED.to_owned(),
            subject,
            severity: Severity::Critical,
            text: refusal.to_string(),
            hint: refusal.hint().unwrap_or_default(),
            since: now,
        }),
    }
}

fn name(disk: &DiskFacts) -> String {
    match disk.identity.scsi_id() {
        Some(scsi_id) => format!("{scsi_id} ({})", disk.kernel_name),
        None => format!("{} without SCSI ID", disk.kernel_name),
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disks::facts::testing::{disk, id};
    use crate::model::{NewPair, SeedingMark};

    fn now() -> Timestamp {
        "2026-03-02T10:14:07Z".parse().unwrap()
    }

    #[test]
    fn a_disk_that_may_not_be_written_raises_an_alarm_until_it_may() {
        let folder = tempfile::tempdir().unwrap();
        let hub = Hub::new(State::open(folder.path()).unwrap(), now());
        let new = NewPair {
            name: "db01/scsi0:1".parse().unwrap(),
            scsi_id: id(1),
            size: 20 << 30,
            logical_block_size: 512,
            overwrite: false,
        };
        hub.state().add_pair(&new, now()).unwrap();
        let look = |disks: Vec<DiskFacts>| {
            let inventory = Inventory {
                disks,
                warnings: Vec::new(),
            };
            check_paired_disks(&hub, &inventory, now());
            hub.snapshot().alarms
        };
        assert_eq!(look(vec![disk("sdb", 1)]), Vec::new());
        let mut protected = disk("sdb", 1);
        protected.read_only = true;
        let alarms = look(vec![protected]);
        assert_eq!(alarms.len(), 1);
        let alarm = &alarms[0];
        assert_eq!(
            (alarm.id.as_str(), alarm.subject.as_str(), alarm.severity),
            (ALARM_REFUSED, "db01/scsi0:1", Severity::Critical)
        );
        assert!(
            alarm.text.contains("read-only") && !alarm.hint.is_empty(),
            "{alarm:?}"
        );
        let alarms = look(Vec::new());
        assert_eq!(alarms.len(), 1, "one alarm for one disk: {alarms:?}");
        assert_eq!(alarms[0].id, ALARM_DISK);
        assert_eq!(look(vec![disk("sdb", 1)]), Vec::new());
    }

    /// A seeding is cut in the middle, the disk is detached, and comes back. Whoever had it meanwhile may have written
    /// to it below the mark: a seeding that goes on from there leaves that in the copy and calls it complete.
    #[test]
    fn a_disk_that_was_away_is_compared_from_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let hub = Hub::new(State::open(folder.path()).unwrap(), now());
        let new = NewPair {
            name: "db01/scsi0:1".parse().unwrap(),
            scsi_id: id(1),
            size: 20 << 30,
            logical_block_size: 512,
            overwrite: false,
        };
        let pair = hub.state().add_pair(&new, now()).unwrap().id;
        let inventory = |disks: Vec<DiskFacts>| Inventory {
            disks,
            warnings: Vec::new(),
        };
        let (there, away) = (inventory(vec![disk("sdb", 1)]), inventory(Vec::new()));
        let twice = inventory(vec![disk("sdb", 1), disk("sdc", 1)]);
        let mark = || hub.state().seeding(pair).unwrap().unwrap();

        hub.state()
            .begin_seeding(pair, [7; 16], 10 << 30, "here")
            .unwrap();
        hub.state().store_mark(pair, [7; 16], 4 << 30).unwrap();
        let cut = SeedingMark {
            seeding_id: [7; 16],
            durable: 4 << 30,
            size: 10 << 30,
            complete: false,
            instance: "here".to_owned(),
        };
        check_paired_disks(&hub, &there, now());
        check_paired_disks(&hub, &twice, now());
        assert_eq!(mark(), cut, "the disk itself was there all the time");

        check_paired_disks(&hub, &away, now());
        check_paired_disks(&hub, &there, now());
        let doubted = mark();
        assert_eq!((doubted.durable, doubted.complete), (0, false));
        assert_ne!(doubted.seeding_id, [7; 16], "the source's mark is not taken up");
        hub.state().store_mark(pair, [7; 16], 5 << 30).unwrap();
        assert_eq!(mark(), doubted, "nor is one that was still on its way");

        // What came to its end is not gone on with anyway, and stays known as complete.
        hub.state()
            .begin_seeding(pair, [8; 16], 10 << 30, "here")
            .unwrap();
        hub.state().complete_seeding(pair, [8; 16]).unwrap();
        check_paired_disks(&hub, &away, now());
        assert!(mark().complete);
    }
}
