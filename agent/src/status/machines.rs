//! Machines, their recovery points and their failover on the local socket: documents and what answers them.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use jiff::{SignedDuration, Timestamp};
use mt_retention::{Origin, StoreError};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::model::{ErrorDoc, SCHEMA};
use super::routes::{ApiError, Service, blocking, read_json};
use crate::failover::table;
use crate::machines::error::MachineError;
use crate::machines::exports::Exported;
use crate::machines::failover::Answer;
use crate::machines::lag::lag_seconds;
use crate::machines::machine::FileStore;
use crate::machines::points::{Wanted, in_words_of_store, time_of};
use crate::machines::volume;
use crate::model::Job;
use crate::state::machines::{MachineRecord, Policy};

type Shared = State<Arc<Service>>;

/// Longest time that a policy, or the keeping of an undo, may have, seconds: ten years.
const SPAN_MAX: u64 = 3650 * 86_400;
/// Least space of a store, bytes: its smallest segments are of 1 MiB, and it needs eight.
const SPACE_MIN: u64 = 8 << 20;

/// The retention volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RetentionDoc {
    /// Version of this document.
    pub schema: u32,
    /// Its folder; none where no recovery points are kept.
    pub folder: Option<String>,
    /// Its identity, once it was set up and as long as it is there.
    pub id: Option<String>,
    /// What is wrong with it.
    pub problem: Option<String>,
    /// Size of its file system, bytes.
    pub total: u64,
    /// What can still be written, bytes.
    pub free: u64,
    /// Seconds until it is full at the pace of `forecast_over`; none while it does not grow or too little is known.
    #[serde(default)]
    pub seconds_to_full: Option<u64>,
    /// Seconds that the forecast rests on; none before there is one.
    #[serde(default)]
    pub forecast_over: Option<u64>,
    /// Whether this request set it up.
    #[serde(default)]
    pub made: bool,
}

/// All machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachinesDoc {
    /// Version of this document.
    pub schema: u32,
    /// By name.
    pub machines: Vec<MachineDoc>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineDoc {
    /// Name.
    pub machine: String,
    /// Its disks.
    pub disks: Vec<String>,
    /// Generation of its pairs.
    pub generation: u64,
    /// Where its failover is.
    pub failover: table::State,
    /// The point of the failover.
    pub to: Option<u64>,
    /// The newest point before the failover.
    pub before: Option<u64>,
    /// Why the last step failed.
    pub failure: Option<String>,
    /// Until when a committed failover can be undone.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub undo_until: Option<Timestamp>,
    /// Machines that share points have the same.
    pub group: Option<String>,
    /// Which points are kept.
    pub policy: Policy,
    /// What it is busy with.
    pub busy: Option<String>,
    /// Its retention store, while its disks are held.
    pub store: Option<StoreDoc>,
}

/// The retention store of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StoreDoc {
    /// Identity.
    pub id: String,
    /// The newest complete epoch: what was acknowledged.
    pub committed: u64,
    /// The newest epoch that is on the disks and flushed.
    pub applied: u64,
    /// Bytes of complete epochs that are not on the disks yet.
    pub lag_bytes: u64,
    /// For how long the oldest of them has been waiting, seconds.
    #[serde(default)]
    pub lag_seconds: u64,
    /// Points on offer.
    pub points: u64,
    /// Bytes taken on the volume.
    pub used: u64,
    /// Bytes that may be taken; 0 for as many as the volume has.
    pub capacity: u64,
    /// Segments of the log.
    pub segments: u64,
    /// Points that cannot be reached.
    #[serde(default)]
    pub points_damaged: u64,
    /// Damage that was found.
    pub damage: Vec<String>,
    /// Why nothing is acknowledged any more.
    pub stopped: Option<String>,
}

/// The recovery points of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PointsDoc {
    /// Version of this document.
    pub schema: u32,
    /// The machine.
    pub machine: String,
    /// Oldest first.
    pub points: Vec<PointDoc>,
}

/// A recovery point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PointDoc {
    /// Its number: that of the epoch it ends.
    pub point: u64,
    /// When it was, by the source's clock.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// When it was received, by the appliance's clock.
    #[schema(value_type = String, format = DateTime)]
    pub received: Timestamp,
    /// crash, file-system or application.
    pub consistency: String,
    /// initial, source, roll or mark.
    pub origin: String,
    /// The point whose content it has, when it was made by a roll.
    pub rolled_to: Option<u64>,
    /// Name; may be empty.
    pub name: String,
    /// Tags, `KEY=VALUE`.
    pub tags: Vec<String>,
    /// Bytes that its epoch changed.
    pub changed_bytes: u64,
    /// Kept whatever the policy says.
    pub pinned: bool,
    /// Why it cannot be reached; none for one that can.
    pub damaged: Option<String>,
}

/// Asks for the retention volume to be set up.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InitRequest {}

/// Names a point: a number, a time, a name, `latest` or `before-failback`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToRequest {
    /// The point.
    pub to: String,
}

/// Pins a point, or lets go of it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    /// Whether it is kept whatever the policy says.
    pub pinned: bool,
}

/// Asks for a point to be served over NBD.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// The point.
    pub point: String,
    /// Whether writes are taken, and thrown away at the end.
    #[serde(default)]
    pub writable: bool,
}

/// Makes a failover final.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CommitRequest {
    /// For how long it can be undone, seconds; 72 hours unless told otherwise. Said again it counts anew from then.
    #[serde(default)]
    pub keep_undo: Option<u64>,
}

/// Changes what is set for a machine; what is left out stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SettingsRequest {
    /// Which points are kept.
    pub policy: Option<Policy>,
    /// The group; an empty name takes the machine out of its group.
    pub group: Option<String>,
}

/// Exports that are served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExportsDoc {
    /// Version of this document.
    pub schema: u32,
    /// By number.
    pub exports: Vec<ExportDoc>,
}

/// A point that is served over NBD.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExportDoc {
    /// Its number.
    pub id: u64,
    /// The machine.
    pub machine: String,
    /// The point.
    pub point: u64,
    /// Whether writes are taken, and thrown away at the end.
    pub writable: bool,
    /// The Unix socket.
    pub socket: String,
    /// Names of the exports on it: the disks.
    pub disks: Vec<String>,
}

/// What an act came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ActDoc {
    /// Version of this document.
    pub schema: u32,
    /// The machine.
    pub machine: String,
    /// Where its failover is now.
    pub failover: table::State,
    /// Whether it was so, or under way, already.
    pub already: bool,
    /// The job that carries it out.
    pub job: Option<Job>,
    /// Until when a committed failover can be undone.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(default)]
    pub undo_until: Option<Timestamp>,
}

impl From<MachineError> for ApiError {
    fn from(error: MachineError) -> Self {
        Self::of_machine(error.code(), &error)
    }
}

fn export_doc(exported: Exported) -> ExportDoc {
    ExportDoc {
        id: exported.id,
        machine: exported.machine,
        point: exported.point,
        writable: exported.writable,
        socket: exported.socket.display().to_string(),
        disks: exported.disks,
    }
}

pub(super) fn retention_doc(service: &Service, made: bool) -> RetentionDoc {
    let machines = &service.target.machines;
    let folder = machines.retention();
    let (id, problem) = match machines.volume() {
        Ok(volume) => (volume.map(|volume| volume.id), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let space = folder.and_then(|folder| volume::space(folder).ok());
    let forecast = space.and_then(|space| machines.forecast().to_full(space.total));
    RetentionDoc {
        schema: SCHEMA,
        folder: folder.map(|folder| folder.display().to_string()),
        id,
        problem,
        total: space.map_or(0, |space| space.total),
        free: space.map_or(0, |space| space.free),
        seconds_to_full: forecast.and_then(|forecast| forecast.seconds),
        forecast_over: forecast.map(|forecast| forecast.over),
        made,
    }
}

/// The retention volume.
#[utoipa::path(get, path = "/v1/retention", responses(
    (status = 200, body = RetentionDoc), (status = 403, body = ErrorDoc), (status = 500, body = ErrorDoc)))]
pub async fn retention(State(service): Shared) -> Result<Json<RetentionDoc>, ApiError> {
    Ok(Json(
        blocking(move || Ok::<_, MachineError>(retention_doc(&service, false))).await?,
    ))
}

/// Sets the retention volume up; one that is set up already is success. A folder that holds something is refused.
#[utoipa::path(post, path = "/v1/retention", request_body = InitRequest, responses(
    (status = 200, body = RetentionDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
    (status = 409, body = ErrorDoc), (status = 500, body = ErrorDoc)))]
pub async fn init_retention(State(service): Shared, body: Body) -> Result<Json<RetentionDoc>, ApiError> {
    let InitRequest {} = read_json(body).await?;
    let answer = blocking(move || {
        let machines = &service.target.machines;
        let folder = machines.retention().ok_or_else(|| {
            MachineError::refused(
                "no-retention-folder",
                "no folder is configured for recovery points",
                "set [retention] folder in the configuration and start the agent anew",
            )
        })?;
        let (_, made) = volume::init(folder, machines.hub().state())?;
        Ok::<_, MachineError>(retention_doc(&service, made))
    });
    Ok(Json(answer.await?))
}

/// All machines: where their failover is, and how their retention store is.
#[utoipa::path(get, path = "/v1/machines", responses(
    (status = 200, body = MachinesDoc), (status = 403, body = ErrorDoc), (status = 500, body = ErrorDoc)))]
pub async fn machines(State(service): Shared) -> Result<Json<MachinesDoc>, ApiError> {
    let machines = blocking(move || machine_docs(&service)).await?;
    Ok(Json(MachinesDoc {
        schema: SCHEMA,
        machines,
    }))
}

pub(super) fn machine_docs(service: &Service) -> Result<Vec<MachineDoc>, MachineError> {
    let machines = &service.target.machines;
    let state = machines.hub().state();
    let mut docs: Vec<MachineDoc> = Vec::new();
    for pair in state.pairs()? {
        let name = &pair.name.machine;
        if let Some(doc) = docs.last_mut().filter(|doc| doc.machine == *name) {
            doc.disks.push(pair.name.disk.clone());
            doc.generation = doc.generation.max(pair.generation);
            continue;
        }
        let record = state.machine(name)?;
        let open = machines.get(name);
        let (busy, store) = open.map_or((None, None), |machine| {
            let inner = machine.lock();
            (
                inner.busy.map(str::to_owned),
                inner
                    .store
                    .as_ref()
                    .map(|store| store_doc(store, inner.failed.as_ref().map(|stopped| stopped.why.clone()))),
            )
        });
        docs.push(MachineDoc {
            machine: name.clone(),
            disks: vec![pair.name.disk.clone()],
            generation: pair.generation,
            failover: record.failover,
            to: record.to,
            before: record.before,
            failure: record.failure,
            undo_until: record.undo_until,
            group: record.group,
            policy: record.policy,
            busy,
            store,
        });
    }
    Ok(docs)
}

fn store_doc(store: &FileStore, failed: Option<String>) -> StoreDoc {
    let status = store.status();
    StoreDoc {
        id: crate::machines::registry::hex(&status.uuid),
        committed: status.committed.0,
        applied: status.applied.0,
        lag_bytes: status.lag_bytes,
        lag_seconds: lag_seconds(store, Timestamp::now()),
        points: status.points,
        used: status.used,
        capacity: status.capacity,
        segments: status.segments,
        points_damaged: store
            .points()
            .filter(|point| store.damage_of(point.epoch).is_some())
            .count() as u64,
        damage: status.damage,
        stopped: failed.or(status.latched),
    }
}

/// The recovery points of a machine.
#[utoipa::path(get, path = "/v1/machines/{machine}/points", params(("machine" = String, Path)), responses(
    (status = 200, body = PointsDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
    (status = 409, body = ErrorDoc), (status = 500, body = ErrorDoc)))]
pub async fn points(State(service): Shared, Path(name): Path<String>) -> Result<Json<PointsDoc>, ApiError> {
    let points = blocking({
        let name = name.clone();
        move || service.target.machines.look(&name, |store| Ok(point_docs(store)))
    })
    .await?;
    Ok(Json(PointsDoc {
        schema: SCHEMA,
        machine: name,
        points,
    }))
}

fn point_docs(store: &FileStore) -> Vec<PointDoc> {
    store
        .points()
        .map(|point| PointDoc {
            point: point.epoch.0,
            time: time_of(point.source_time_ms),
            received: time_of(point.received_time_ms),
            consistency: match point.consistency {
                mt_retention::Consistency::Crash => "crash",
                mt_retention::Consistency::FileSystem => "file-system",
                mt_retention::Consistency::Application => "application",
            }
            .to_owned(),
            origin: match point.origin {
                Origin::Initial => "initial",
                Origin::Source => "source",
                Origin::Roll { .. } => "roll",
                Origin::Mark => "mark",
            }
            .to_owned(),
            rolled_to: match point.origin {
                Origin::Roll { to } => Some(to.0),
                _ => None,
            },
            name: point.name.clone(),
            tags: point.tags.clone(),
            changed_bytes: point.changed_bytes,
            pinned: point.pinned,
            damaged: store.damage_of(point.epoch).map(str::to_owned),
        })
        .collect()
}

/// Pins a point, or lets go of it.
#[utoipa::path(post, path = "/v1/machines/{machine}/points/{point}", request_body = PinRequest,
    params(("machine" = String, Path), ("point" = String, Path)), responses(
    (status = 200, body = PointsDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
    (status = 409, body = ErrorDoc), (status = 500, body = ErrorDoc)))]
pub async fn pin_point(
    State(service): Shared,
    Path((name, point)): Path<(String, String)>,
    body: Body,
) -> Result<Json<PointsDoc>, ApiError> {
    let PinRequest { pinned } = read_json(body).await?;
    let hub = service.target.hub.clone();
    let machine = name.clone();
    change_point(service, name, point, move |store, epoch, _| {
        let needed = hub
            .state()
            .machine(&machine)
            .is_ok_and(|record| record.pinned.contains(&epoch.0));
        if needed && !pinned {
            return Err(StoreError::Refused {
                what: format!("a failover of machine {machine} needs point {epoch}: it was pinned by that"),
                hint: "it is let go of when the failover is cancelled, undone, or can no longer be undone",
            });
        }
        store.set_pinned(epoch, pinned)
    })
    .await
}

/// Deletes a point. The newest, a pinned one, and one that is younger than the minimum age of the policy stay.
#[utoipa::path(delete, path = "/v1/machines/{machine}/points/{point}",
    params(("machine" = String, Path), ("point" = String, Path)), responses(
    (status = 200, body = PointsDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
    (status = 409, body = ErrorDoc), (status = 500, body = ErrorDoc)))]
pub async fn delete_point(
    State(service): Shared,
    Path((name, point)): Path<(String, String)>,
) -> Result<Json<PointsDoc>, ApiError> {
    change_point(service, name, point, |store, epoch, policy| {
        // A source that was taken over must not be able to have the points from before deleted early: the minimum age holds for
        // everybody.
        store.delete_point(
            epoch,
            Timestamp::now().as_millisecond(),
            &in_words_of_store(policy),
        )
    })
    .await
}

async fn change_point(
    service: Arc<Service>,
    name: String,
    point: String,
    work: impl FnOnce(&mut FileStore, mt_retention::EpochNumber, &Policy) -> Result<(), StoreError>
    + Send
    + 'static,
) -> Result<Json<PointsDoc>, ApiError> {
    let points = blocking({
        let name = name.clone();
        move || {
            let machines = &service.target.machines;
            let policy = machines.hub().state().machine(&name)?.policy;
            let points = machines.with_store(&name, |store| {
                let epoch = Wanted::parse(&point).find(&name, store.points(), Timestamp::now())?;
                work(store, epoch, &policy).map_err(|source| MachineError::Store {
                    machine: name.clone(),
                    source,
                })?;
                Ok(point_docs(store))
            })?;
            if let Some(machine) = machines.get(&name) {
                machine.reclaim()?;
            }
            Ok::<_, MachineError>(points)
        }
    })
    .await?;
    Ok(Json(PointsDoc {
        schema: SCHEMA,
        machine: name,
        points,
    }))
}

/// Serves all disks of a machine as they were at a point, over NBD on a Unix socket.
#[utoipa::path(post, path = "/v1/machines/{machine}/exports", request_body = ExportRequest,
    params(("machine" = String, Path)), responses(
    (status = 200, body = ExportsDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
    (status = 409, body = ErrorDoc), (status = 500, body = ErrorDoc)))]
pub async fn add_export(
    State(service): Shared,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<ExportsDoc>, ApiError> {
    let request: ExportRequest = read_json(body).await?;
    let exported = blocking(move || {
        let machine = service.target.machines.open(&name)?;
        let epoch = machine.find_point(&Wanted::parse(&request.point))?;
        service.target.exports.add(&machine, epoch, request.writable)
    })
    .await?;
    Ok(Json(ExportsDoc {
        schema: SCHEMA,
        exports: vec![export_doc(exported)],
    }))
}

/// What is exported.
#[utoipa::path(get, path = "/v1/exports", responses(
    (status = 200, body = ExportsDoc), (status = 403, body = ErrorDoc)))]
pub async fn exports(State(service): Shared) -> Json<ExportsDoc> {
    Json(ExportsDoc {
        schema: SCHEMA,
        exports: service.target.exports.all().into_iter().map(export_doc).collect(),
    })
}

/// Ends an export. One that is not there is success.
#[utoipa::path(delete, path = "/v1/exports/{id}", params(("id" = u64, Path)), responses(
    (status = 200, body = ExportsDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc)))]
pub async fn remove_export(State(service): Shared, Path(id): Path<u64>) -> Json<ExportsDoc> {
    service.target.exports.remove(id);
    exports(State(service)).await
}

fn act_doc(name: &str, answer: Answer, now: MachineRecord) -> ActDoc {
    let (already, job, record) = match answer {
        Answer::Job(job) => (false, Some(job), now),
        Answer::Done(record) => (false, None, record),
        Answer::Already(record) => (true, None, record),
    };
    ActDoc {
        schema: SCHEMA,
        machine: name.to_owned(),
        failover: record.failover,
        already,
        job,
        undo_until: record.undo_until,
    }
}

async fn act(
    service: Arc<Service>,
    name: String,
    work: impl FnOnce(&Service, &str) -> Result<Answer, MachineError> + Send + 'static,
) -> Result<Json<ActDoc>, ApiError> {
    let doc = blocking(move || {
        let answer = work(&service, &name)?;
        let now = service.target.machines.hub().state().machine(&name)?;
        Ok::<_, MachineError>(act_doc(&name, answer, now))
    });
    Ok(Json(doc.await?))
}

/// Brings the disks of a machine to a point, by a job.
#[utoipa::path(post, path = "/v1/machines/{machine}/roll", request_body = ToRequest,
    params(("machine" = String, Path)), responses(
    (status = 200, body = ActDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
    (status = 409, body = ErrorDoc), (status = 500, body = ErrorDoc)))]
pub async fn roll(
    State(service): Shared,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<ActDoc>, ApiError> {
    let ToRequest { to } = read_json(body).await?;
    act(service, name, move |service, name| {
        if service.target.exports.uses(name) {
            tracing::info!(
                machine = name,
                "a roll begins while points of the machine are exported"
            );
        }
        service.target.failovers.roll(name, &Wanted::parse(&to))
    })
    .await
}

/// Fails a machine over to a point, by a job. The same request again is success.
#[utoipa::path(post, path = "/v1/machines/{machine}/failover", request_body = ToRequest,
    params(("machine" = String, Path)), responses(
    (status = 200, body = ActDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
    (status = 409, body = ErrorDoc), (status = 500, body = ErrorDoc)))]
pub async fn failover(
    State(service): Shared,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<ActDoc>, ApiError> {
    let ToRequest { to } = read_json(body).await?;
    act(service, name, move |service, name| {
        service.target.failovers.failover(name, &Wanted::parse(&to))
    })
    .await
}

/// Makes a failover final.
#[utoipa::path(post, path = "/v1/machines/{machine}/commit", request_body = CommitRequest,
    params(("machine" = String, Path)), responses(
    (status = 200, body = ActDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
    (status = 409, body = ErrorDoc), (status = 500, body = ErrorDoc)))]
pub async fn commit(
    State(service): Shared,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<ActDoc>, ApiError> {
    let CommitRequest { keep_undo } = read_json(body).await?;
    if keep_undo.is_some_and(|seconds| seconds > SPAN_MAX) {
        return Err(too_long("the time for which it can be undone").into());
    }
    let keep = keep_undo.map(|seconds| SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX)));
    act(service, name, move |service, name| {
        service.target.failovers.commit(name, keep)
    })
    .await
}

/// Takes a failover back and goes on replicating, by a job.
#[utoipa::path(post, path = "/v1/machines/{machine}/cancel", params(("machine" = String, Path)), responses(
    (status = 200, body = ActDoc), (status = 403, body = ErrorDoc), (status = 409, body = ErrorDoc),
    (status = 500, body = ErrorDoc)))]
pub async fn cancel(State(service): Shared, Path(name): Path<String>) -> Result<Json<ActDoc>, ApiError> {
    act(service, name, |service, name| {
        service.target.failovers.cancel(name)
    })
    .await
}

/// Puts the disks back as they were before failback, by a job.
#[utoipa::path(post, path = "/v1/machines/{machine}/undo", params(("machine" = String, Path)), responses(
    (status = 200, body = ActDoc), (status = 403, body = ErrorDoc), (status = 409, body = ErrorDoc),
    (status = 500, body = ErrorDoc)))]
pub async fn undo(State(service): Shared, Path(name): Path<String>) -> Result<Json<ActDoc>, ApiError> {
    act(service, name, |service, name| service.target.failovers.undo(name)).await
}

/// Begins anew after a failover that is final or failed: a new generation, without the points of before, by a job.
#[utoipa::path(post, path = "/v1/machines/{machine}/reprotect", params(("machine" = String, Path)), responses(
    (status = 200, body = ActDoc), (status = 403, body = ErrorDoc), (status = 409, body = ErrorDoc),
    (status = 500, body = ErrorDoc)))]
pub async fn reprotect(State(service): Shared, Path(name): Path<String>) -> Result<Json<ActDoc>, ApiError> {
    act(service, name, |service, name| {
        service.target.failovers.reprotect(name)
    })
    .await
}

fn too_long(what: &str) -> MachineError {
    MachineError::refused(
        "too-long",
        format!("{what} is longer than {} days", SPAN_MAX / 86_400),
        "points are for coming home, not for an archive: give a shorter time",
    )
}

/// What no policy can mean.
fn check_policy(policy: &Policy) -> Result<(), MachineError> {
    for (what, seconds) in [
        ("the time for which every point is kept", policy.all_for),
        ("the time for which one point an hour is kept", policy.hourly_for),
        ("the time for which one point a day is kept", policy.daily_for),
        ("the minimum age", policy.minimum_age),
        ("the time after which an epoch is late", policy.late_after),
    ] {
        if seconds > SPAN_MAX {
            return Err(too_long(what));
        }
    }
    if policy.space > 0 && policy.space < SPACE_MIN {
        return Err(MachineError::refused(
            "too-little-space",
            format!(
                "a retention store cannot work with {} bytes: it needs {SPACE_MIN}",
                policy.space
            ),
            "give it more, or 0 for as much as the volume has",
        ));
    }
    Ok(())
}

/// Changes the policy or the group of a machine.
#[utoipa::path(post, path = "/v1/machines/{machine}/settings", request_body = SettingsRequest,
    params(("machine" = String, Path)), responses(
    (status = 200, body = MachinesDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
    (status = 409, body = ErrorDoc), (status = 500, body = ErrorDoc)))]
pub async fn settings(
    State(service): Shared,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<MachinesDoc>, ApiError> {
    let request: SettingsRequest = read_json(body).await?;
    let machines = blocking(move || {
        let machines = &service.target.machines;
        machines.pairs_of(&name)?;
        if let Some(policy) = &request.policy {
            check_policy(policy)?;
        }
        let changed = machines.hub().state().change_machine(&name, |record| {
            if let Some(policy) = request.policy {
                record.policy = policy;
            }
            if let Some(group) = &request.group {
                record.group = Some(group.clone()).filter(|group| !group.is_empty());
            }
            Ok::<_, std::convert::Infallible>(record.policy)
        })?;
        let Ok(policy) = changed;
        if let Some(machine) = machines.get(&name) {
            let mut inner = machine.lock();
            inner.policy = policy;
            inner.is_full = false;
            if let Some(store) = &mut inner.store {
                store.set_capacity(policy.space);
            }
            drop(inner);
            machine.notify();
        }
        machine_docs(&service).map(|docs| docs.into_iter().filter(|doc| doc.machine == name).collect())
    })
    .await?;
    Ok(Json(MachinesDoc {
        schema: SCHEMA,
        machines,
    }))
}

/// Drops the retention store of a machine with all of its points, so that the next epoch begins a new one.
#[utoipa::path(post, path = "/v1/machines/{machine}/reset", params(("machine" = String, Path)), responses(
    (status = 200, body = ActDoc), (status = 403, body = ErrorDoc), (status = 409, body = ErrorDoc),
    (status = 500, body = ErrorDoc)))]
pub async fn reset(State(service): Shared, Path(name): Path<String>) -> Result<Json<ActDoc>, ApiError> {
    act(service, name, |service, name| {
        let machines = &service.target.machines;
        // The store of a machine whose pairs were removed can be dropped as well.
        if machines.hub().state().machine(name)?.store.is_none() {
            machines.pairs_of(name)?;
        }
        machines.reset(name)?;
        Ok(Answer::Done(service.target.machines.hub().state().machine(name)?))
    })
    .await
}
