//! What has to be looked after while nobody asks: half epochs whose source is gone, and the room of the retention volume.

use jiff::Timestamp;

use super::machine::Inner;
use super::points::in_words_of_store;
use super::registry::Machines;
use super::volume;
use crate::hub::{Alarm, Severity};

/// Raised when the retention volume fills up.
pub const ALARM_SPACE: &str = "retention-space";
/// Raised when the retention volume is not what it should be.
pub const ALARM_VOLUME: &str = "retention-volume";
/// Raised when a recovery point cannot be reached.
pub const ALARM_POINT: &str = "point-damaged";

/// Percent of the volume at which a warning and a critical alarm are raised.
const WARN_PERCENT: u64 = 80;
const CRITICAL_PERCENT: u64 = 95;

/// Looks after everything once. Blocks on the volume.
pub fn keep(machines: &Machines, now: Timestamp) {
    for machine in machines.all() {
        machine.drop_stale_epoch();
        let damage: Vec<String> = {
            let mut inner = machine.lock();
            thin(&machine.name, &mut inner, now);
            inner.store.as_ref().map_or_else(Vec::new, |store| {
                store
                    .points()
                    .filter_map(|point| {
                        store
                            .damage_of(point.epoch)
                            .map(|why| format!("point {}: {why}", point.epoch))
                    })
                    .collect()
            })
        };
        match damage.first() {
            None => machines.hub().clear(ALARM_POINT, &machine.name, now),
            Some(first) => machines.hub().raise(Alarm {
                id: ALARM_POINT.to_owned(),
                subject: machine.name.clone(),
                severity: Severity::Critical,
                text: format!("{} recovery points cannot be reached; {first}", damage.len()),
                hint: "\"mt-agent points list\" shows which; all others can be used".to_owned(),
                since: now,
            }),
        }
    }
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

/// Drops the points that the policy no longer keeps, where the machine is at rest.
fn thin(name: &str, inner: &mut Inner, now: Timestamp) {
    if inner.busy.is_some() || inner.failed.is_some() || inner.epoch.is_some() {
        return;
    }
    let policy = in_words_of_store(&inner.policy);
    let Some(store) = &mut inner.store else { return };
    match store.thin(now.as_millisecond(), &policy) {
        Ok(dropped) => {
            for point in dropped {
                tracing::info!(machine = name, "point {point} is no longer kept by the policy");
            }
        }
        Err(error) => tracing::warn!(machine = name, "cannot thin the points: {error}"),
    }
}
