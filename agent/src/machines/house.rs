//! What has to be looked after while nobody asks: half epochs whose source is gone, points that are no longer kept, room, and
//! every alarm of it.

use jiff::Timestamp;
use mt_retention::policy::{Fullness, RoomDecision, to_make_room};
use mt_retention::{Origin, StoreError};

use super::lag::lag_seconds;
use super::machine::{ALARM_FULL, FileStore, Machine};
use super::points::{in_words_of_store, time_of};
use super::registry::Machines;
use super::volume;
use crate::cli::output::{seconds_between, span_text, time_text};
use crate::failover::table::State;
use crate::hub::{Alarm, Severity};

/// Raised when the retention volume fills up.
pub const ALARM_SPACE: &str = "retention-space";
/// Raised when the retention volume is not what it should be.
pub const ALARM_VOLUME: &str = "retention-volume";
/// Raised when a recovery point cannot be reached.
pub const ALARM_POINT: &str = "point-damaged";
/// Raised when the newest epoch of a machine is older than its policy allows.
pub const ALARM_LATE: &str = "epoch-late";

/// Raised when the disks of a machine may hold a part of an epoch and its store is gone.
pub const ALARM_DOUBT: &str = "disks-in-doubt";
/// Raised when the disks of a machine are further behind than they may be.
pub const ALARM_LAG: &str = "disks-behind";

/// Percent of the volume at which a warning and a critical alarm are raised.
const WARN_PERCENT: u64 = 80;
const CRITICAL_PERCENT: u64 = 95;

/// Looks after everything once. Blocks on the volume.
pub fn keep(machines: &Machines, now: Timestamp) {
    let records = machines.hub().state().machines().unwrap_or_default();
    // Nobody waits for an epoch of a machine whose source is fenced; its disks may have been let go of, and with them the machine.
    let fenced = |name: &str| {
        let record = records.iter().find(|(of, _)| of == name);
        record.is_some_and(|(_, record)| !record.failover.takes_epochs())
    };
    for (name, _) in records.iter().filter(|(name, _)| fenced(name)) {
        machines.hub().clear(ALARM_LATE, name, now);
    }
    for machine in machines.all() {
        machine.drop_stale_epoch();
        machine.keep_catalogue();
        machine.note_committed();
        thin(&machine, now);
        let hub = machines.hub();
        for (id, alarm) in [
            (ALARM_POINT, damaged_points(&machine, now)),
            (ALARM_SPACE, filled(&machine, now)),
            (ALARM_LATE, late(&machine, now).filter(|_| !fenced(&machine.name))),
            (ALARM_LAG, behind(&machine, now)),
        ] {
            match alarm {
                None => hub.clear(id, &machine.name, now),
                Some(alarm) => hub.raise(alarm),
            }
        }
        look_for_room(&machine, now);
    }
    tell_doubts(machines, now);
    end_undo(machines, now);
    let Some(folder) = machines.retention() else {
        return;
    };
    let subject = folder.display().to_string();
    let hub = machines.hub();
    if let Err(error) = machines.volume() {
        use crate::error::Explain;
        hub.raise(Alarm {
            id: ALARM_VOLUME.to_owned(),
            subject,
            severity: Severity::Critical,
            text: error.to_string(),
            hint: error.hint().unwrap_or_default(),
            since: now,
        });
        return;
    }
    hub.clear(ALARM_VOLUME, &subject, now);
    let Ok(space) = volume::space(folder) else { return };
    machines
        .forecast()
        .note(now, space.total.saturating_sub(space.free));
    let used = space.percent_used();
    if used < WARN_PERCENT {
        hub.clear(ALARM_SPACE, &subject, now);
        return;
    }
    let critical = used >= CRITICAL_PERCENT;
    hub.raise(Alarm {
        id: ALARM_SPACE.to_owned(),
        subject,
        severity: if critical { Severity::Critical } else { Severity::Warning },
        text: format!("the retention volume is more than {} % full", if critical { CRITICAL_PERCENT } else { WARN_PERCENT }),
        hint: "grow it, delete recovery points, or keep them for less time: \"mt-agent policy\"; when it is full the oldest \
               points go first"
            .to_owned(),
        since: now,
    });
}

/// Drops the points that the policy no longer keeps, where the machine is at rest, and gets space back, step by step.
fn thin(machine: &Machine, now: Timestamp) {
    {
        let mut inner = machine.lock();
        if inner.busy.is_some() || inner.failed.is_some() || inner.epoch.is_some() {
            return;
        }
        let policy = in_words_of_store(&inner.policy);
        let Some(store) = &mut inner.store else { return };
        match store.thin_points(now.as_millisecond(), &policy) {
            Ok(dropped) => {
                for point in dropped {
                    tracing::info!(machine = %machine.name, "point {point} is no longer kept by the policy");
                }
            }
            Err(error) => tracing::warn!(machine = %machine.name, "cannot thin the points: {error}"),
        }
    }
    if let Err(error) = machine.reclaim() {
        tracing::warn!("cannot get space back: {error}");
    }
}

fn damaged_points(machine: &Machine, now: Timestamp) -> Option<Alarm> {
    let inner = machine.lock();
    let store = inner.store.as_ref()?;
    let damage: Vec<String> = store
        .points()
        .filter_map(|point| {
            store
                .damage_of(point.epoch)
                .map(|why| format!("point {}: {why}", point.epoch))
        })
        .collect();
    Some(Alarm {
        id: ALARM_POINT.to_owned(),
        subject: machine.name.clone(),
        severity: Severity::Critical,
        text: format!(
            "{} cannot be reached; {}",
            match damage.len() {
                1 => "a recovery point".to_owned(),
                count => format!("{count} recovery points"),
            },
            damage.first()?
        ),
        hint: "\"mt-agent points list\" shows which; all others can be used".to_owned(),
        since: now,
    })
}

/// How full a store with a limit of its own is.
fn filled(machine: &Machine, now: Timestamp) -> Option<Alarm> {
    let fullness = machine.lock().store.as_ref()?.fullness();
    let (severity, percent) = match fullness {
        Fullness::Normal => return None,
        Fullness::Warning => (Severity::Warning, WARN_PERCENT),
        Fullness::Alarm => (Severity::Critical, CRITICAL_PERCENT),
    };
    Some(Alarm {
        id: ALARM_SPACE.to_owned(),
        subject: machine.name.clone(),
        severity,
        text: format!(
            "the retention store of machine {} is more than {percent} % full",
            machine.name
        ),
        hint: "give it more with \"mt-agent policy --space\", delete recovery points, or keep them for less time; when it is \
               full the oldest points go first"
            .to_owned(),
        since: now,
    })
}

/// Whether the newest epoch of the source is older than the machine's policy allows.
fn late(machine: &Machine, now: Timestamp) -> Option<Alarm> {
    let inner = machine.lock();
    let allowed = inner.policy.late_after;
    let newest = inner
        .store
        .as_ref()?
        .points()
        .rev()
        .find(|point| point.origin == Origin::Source)?;
    let newest = time_of(newest.received_time_ms);
    let age = seconds_between(newest, now);
    (allowed > 0 && age > allowed).then(|| Alarm {
        id: ALARM_LATE.to_owned(),
        subject: machine.name.clone(),
        severity: Severity::Warning,
        // Without the age, so that the words stay the same while it grows.
        text: format!(
            "the newest epoch of machine {} is of {}, and one is wanted every {}",
            machine.name,
            time_text(newest),
            span_text(allowed)
        ),
        hint: "see whether its source still sends, and whether the target refuses it: \"mt-agent jobs list\""
            .to_owned(),
        since: now,
    })
}

/// Whether the disks are further behind than they may be: then what a source sends waits for them.
fn behind(machine: &Machine, now: Timestamp) -> Option<Alarm> {
    let inner = machine.lock();
    let store = inner.store.as_ref()?;
    let allowed = machine.settings.lag_seconds;
    // A failover needs the disks at the newest epoch, so this is what it would wait for.
    let applied = store.applied();
    (store.lag_bytes() > 0 && lag_seconds(store, now) > allowed).then(|| Alarm {
        id: ALARM_LAG.to_owned(),
        subject: machine.name.clone(),
        severity: Severity::Warning,
        text: format!(
            "the disks of machine {} hold epoch {applied}, and the next one has been waiting for more than {}; what its source \
             sends waits too",
            machine.name,
            span_text(allowed)
        ),
        hint: "nothing is lost: the epoch is in the log; see how busy the target disks and the retention volume are, or allow \
               more with [retention] lag_seconds"
            .to_owned(),
        since: now,
    })
}

/// Tells of a store that can take nothing more, also after a restart, and that it can again.
fn look_for_room(machine: &Machine, now: Timestamp) {
    let has_room = |machine: &Machine| {
        let mut inner = machine.lock();
        inner.store.as_mut().is_none_or(|store| {
            // A store that is latched has an alarm of its own.
            store.has_room().unwrap_or(true)
        })
    };
    // Points that may go do so when the room is wanted.
    let may_drop = |machine: &Machine| {
        let inner = machine.lock();
        let policy = in_words_of_store(&inner.policy);
        let decision = inner
            .store
            .as_ref()
            .map(|store| to_make_room(store.points(), now.as_millisecond(), &policy));
        matches!(decision, Some(RoomDecision::Drop(_)))
    };
    if has_room(machine) || may_drop(machine) {
        machine.lock().is_full = false;
        machine.hub.clear(ALARM_FULL, &machine.name, now);
        return;
    }
    if machine.lock().is_full {
        return;
    }
    // It is content with a small segment. Less than a whole one is an alarm as before a restart, when that was the rule too.
    machine.make_room();
    if has_room(machine) {
        return;
    }
    let mut inner = machine.lock();
    let status = inner.store.as_ref().map(FileStore::status);
    if let Some(status) = status {
        let error = StoreError::Full {
            used: status.used,
            capacity: status.capacity,
        };
        machine.raise_full(&mut inner, &error);
    }
}

/// Tells of machines whose disks may hold a part of an epoch, also while they are not open.
fn tell_doubts(machines: &Machines, now: Timestamp) {
    let hub = machines.hub();
    for (name, record) in hub.state().machines().unwrap_or_default() {
        match record.in_doubt {
            None => hub.clear(ALARM_DOUBT, &name, now),
            Some(why) => hub.raise(Alarm {
                id: ALARM_DOUBT.to_owned(),
                severity: Severity::Critical,
                text: format!(
                    "the disks of machine {name} may hold a part of an epoch, of no one instant: {why}"
                ),
                hint: "send an epoch, which compares all of them; until then it is not failed over"
                    .to_owned(),
                subject: name,
                since: now,
            }),
        }
    }
}

/// What is kept to undo a committed failover goes when its time is over, and its space comes back.
fn end_undo(machines: &Machines, now: Timestamp) {
    let records = machines.hub().state().machines().unwrap_or_default();
    for (name, record) in records {
        let over = record.undo_until.is_some_and(|until| until < now);
        if record.failover != State::Committed || !over || record.undo_ended {
            continue;
        }
        match machines.end_undo(&name, &record, now) {
            Ok(()) => tracing::info!(
                machine = name,
                "the failover can no longer be undone; its space is free"
            ),
            Err(error) => tracing::warn!("cannot free what was kept to undo a failover: {error}"),
        }
    }
}
