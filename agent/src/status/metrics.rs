//! What status says, for Prometheus: OpenMetrics text, made anew for each scrape.

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::machines::{MachineDoc, RetentionDoc};
use super::model::{PairDoc, PairPhase, SeverityDoc, StatusDoc};

/// Content type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Number = Gauge<u64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPair {
    pair: String,
    scsi_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPhase {
    pair: String,
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSeverity {
    severity: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDisks {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOutcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfMachine {
    machine: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAlarm {
    id: String,
    subject: String,
    severity: &'static str,
}

/// The text of a scrape.
///
/// # Errors
/// None that was ever seen; the encoder writes to memory.
pub fn text(
    status: &StatusDoc,
    retention: &RetentionDoc,
    machines: &[MachineDoc],
) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("mt_agent");
    let build = Info::new(vec![("version", status.agent.version.clone())]);
    registry.register("build", "Version of the agent", build);
    number(
        &mut registry,
        "lab",
        "1 while lab disks stand in for SCSI disks",
        u64::from(status.lab),
    );
    let started = u64::try_from(status.agent.started.as_second()).unwrap_or(0);
    number(
        &mut registry,
        "start_time_seconds",
        "When the agent was started, seconds since 1970",
        started,
    );

    let alarms = Family::<OfSeverity, Number>::default();
    for (severity, word) in [
        (SeverityDoc::Critical, "critical"),
        (SeverityDoc::Warning, "warning"),
        (SeverityDoc::Notice, "notice"),
    ] {
        let count = status
            .alarms
            .iter()
            .filter(|alarm| alarm.severity == severity)
            .count();
        alarms
            .get_or_create(&OfSeverity { severity: word })
            .set(count as u64);
    }
    registry.register("alarms", "Alarms that are raised", alarms);
    let alarm = Family::<OfAlarm, Number>::default();
    for raised in &status.alarms {
        alarm
            .get_or_create(&OfAlarm {
                id: raised.id.clone(),
                subject: raised.subject.clone(),
                severity: match raised.severity {
                    SeverityDoc::Critical => "critical",
                    SeverityDoc::Warning => "warning",
                    SeverityDoc::Notice => "notice",
                },
            })
            .set(1);
    }
    registry.register("alarm", "1 for each alarm that is raised", alarm);

    let disks = Family::<OfDisks, Number>::default();
    let summary = &status.disks;
    for (state, count) in [
        ("paired", summary.paired),
        ("free", summary.free),
        ("not_usable", summary.not_usable),
    ] {
        disks.get_or_create(&OfDisks { state }).set(count as u64);
    }
    registry.register("disks", "Disks of this machine", disks);

    number(
        &mut registry,
        "jobs_running",
        "Jobs that run",
        status.jobs_running.len() as u64,
    );
    let jobs = Family::<OfOutcome, Counter>::default();
    jobs.get_or_create(&OfOutcome { outcome: "done" })
        .inc_by(status.totals.jobs_done);
    jobs.get_or_create(&OfOutcome { outcome: "failed" })
        .inc_by(status.totals.jobs_failed);
    registry.register("jobs_ended", "Jobs that ended since the agent was started", jobs);

    let totals = &status.totals;
    total(
        &mut registry,
        "written",
        "Content written to target disks",
        totals.bytes_written,
    );
    total(
        &mut registry,
        "zeroed",
        "Made zero on target disks",
        totals.bytes_zeroed,
    );
    total(
        &mut registry,
        "on_wire",
        "Received from and sent to sources",
        totals.bytes_on_wire,
    );
    pairs(&mut registry, &status.pairs);
    stores(&mut registry, retention, machines);

    let mut out = String::new();
    encode(&mut out, &registry)?;
    Ok(out)
}

fn number(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Number::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn total(registry: &mut Registry, name: &str, help: &str, bytes: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(bytes);
    registry.register_with_unit(name, help, Unit::Bytes, counter);
}

fn pairs(registry: &mut Registry, pairs: &[PairDoc]) {
    let family = Family::<OfPair, Number>::default;
    let (size, applied, durable, lag, rate, refused) =
        (family(), family(), family(), family(), family(), family());
    let phases = Family::<OfPhase, Number>::default();
    for pair in pairs {
        let labels = OfPair {
            pair: pair.pair.clone(),
            scsi_id: pair.scsi_id.to_string(),
        };
        size.get_or_create(&labels)
            .set(pair.protected_size.unwrap_or(pair.size));
        durable
            .get_or_create(&labels)
            .set(pair.seeding.as_ref().map_or(0, |seeding| seeding.durable));
        let session = pair.session.as_ref();
        rate.get_or_create(&labels)
            .set(session.map_or(0, |session| session.rate));
        if let Some(session) = session.filter(|_| pair.phase == PairPhase::Seeding) {
            applied.get_or_create(&labels).set(session.applied);
            lag.get_or_create(&labels).set(session.lag);
        }
        refused
            .get_or_create(&labels)
            .set(u64::from(pair.disk_problem.is_some()));
        phases
            .get_or_create(&OfPhase {
                pair: pair.pair.clone(),
                phase: phase_word(pair.phase),
            })
            .set(1);
    }
    let mut bytes = |name, help, family| registry.register_with_unit(name, help, Unit::Bytes, family);
    bytes(
        "pair_size",
        "Size of the protected disk, or of the target disk before it is known",
        size,
    );
    bytes("pair_applied", "Settled by the session that seeds it", applied);
    bytes(
        "pair_durable",
        "Durable and acknowledged of the newest seeding",
        durable,
    );
    bytes("pair_lag", "Settled and not yet durable", lag);
    registry.register(
        "pair_bytes_per_second",
        "Gone over by its session, bytes a second",
        rate,
    );
    registry.register(
        "pair_disk_refused",
        "1 while the target disk would be refused",
        refused,
    );
    registry.register("pair_phase", "1 for the phase the pair is in", phases);
}

/// The retention volume, and the store of each machine whose disks are held.
fn stores(registry: &mut Registry, retention: &RetentionDoc, machines: &[MachineDoc]) {
    if retention.folder.is_some() {
        for (name, help, bytes) in [
            (
                "retention_volume_size",
                "Size of the retention volume",
                retention.total,
            ),
            (
                "retention_volume_free",
                "Free space of the retention volume",
                retention.free,
            ),
        ] {
            let gauge = Number::default();
            gauge.set(bytes);
            registry.register_with_unit(name, help, Unit::Bytes, gauge);
        }
    }
    let family = Family::<OfMachine, Number>::default;
    let (used, capacity, lag, lag_seconds) = (family(), family(), family(), family());
    let (points, damaged, committed, applied, stopped) = (family(), family(), family(), family(), family());
    for (machine, store) in machines.iter().filter_map(|m| m.store.as_ref().map(|s| (m, s))) {
        let labels = OfMachine {
            machine: machine.machine.clone(),
        };
        for (family, value) in [
            (&used, store.used),
            (&capacity, store.capacity),
            (&lag, store.lag_bytes),
            (&lag_seconds, store.lag_seconds),
            (&points, store.points),
            (&damaged, store.points_damaged),
            (&committed, store.committed),
            (&applied, store.applied),
            (&stopped, u64::from(store.stopped.is_some())),
        ] {
            family.get_or_create(&labels).set(value);
        }
    }
    for (name, help, family) in [
        ("retention_used", "Taken by the store of the machine", used),
        (
            "retention_capacity",
            "What the store may take; 0 for as much as the volume has",
            capacity,
        ),
        (
            "retention_lag",
            "Complete epochs that are not on the disks yet",
            lag,
        ),
    ] {
        registry.register_with_unit(name, help, Unit::Bytes, family);
    }
    for (name, help, family) in [
        ("retention_points", "Recovery points on offer", points),
        (
            "retention_points_damaged",
            "Recovery points that cannot be reached",
            damaged,
        ),
        (
            "retention_committed_epoch",
            "The newest complete epoch",
            committed,
        ),
        (
            "retention_applied_epoch",
            "The newest epoch that is on the disks",
            applied,
        ),
        (
            "retention_lag_seconds",
            "For how long the oldest epoch that is not on the disks has been waiting",
            lag_seconds,
        ),
        (
            "retention_stopped",
            "1 while nothing more is acknowledged for the machine",
            stopped,
        ),
    ] {
        registry.register(name, help, family);
    }
}

/// The phase as JSON has it.
pub fn phase_word(phase: PairPhase) -> &'static str {
    match phase {
        PairPhase::Waiting => "waiting",
        PairPhase::Seeding => "seeding",
        PairPhase::Verifying => "verifying",
        PairPhase::Interrupted => "interrupted",
        PairPhase::Seeded => "seeded",
        PairPhase::ResyncNeeded => "resync-needed",
    }
}
