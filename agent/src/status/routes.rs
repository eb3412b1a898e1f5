//! What can be asked on the local socket.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt};
use utoipa::OpenApi;

use super::access::{Access, Peer};
use super::model::{
    ErrorDoc, EventDoc, JobDoc, JobsDoc, MissedDoc, PairAddedDoc, PairRemovedDoc, PairRequest, PairsDoc,
    SCHEMA, StatusDoc,
};
use super::pairing::{Pairing, PairingError, state_code};
use super::{audit, identity, log, machines, metrics, stores, view};
use crate::cli::disks::DisksDocument;
use crate::config::Config;
use crate::disks::inventory::InventoryError;
use crate::error::{ExitCode, Explain};
use crate::model::JobId;
use crate::state::StateError;
use crate::state::audit::shown;
use crate::target::app::Target;

/// Largest body of a request, bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// How long a body may take.
pub const BODY_TIME_MAX: Duration = Duration::from_secs(5);
/// Most readers of events at a time: they stay, and must leave places for those who only ask.
pub const EVENT_READERS_MAX: usize = 16;
/// A line that says nothing is sent this often, so that a reader that is gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Longest path of a refused request in the journal, characters.
const REFUSED_PATH_MAX: usize = 200;

/// What the routes know.
pub struct Service {
    pub(super) target: Target,
    pub(super) config: Arc<Config>,
    pairing: Pairing,
    host: String,
    event_readers: Arc<Semaphore>,
}

impl Service {
    /// The service of a target that is up.
    pub fn new(target: Target, config: Arc<Config>) -> Self {
        let host = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok());
        Self {
            pairing: Pairing::new(target.clone()),
            target,
            config,
            host: host.unwrap_or_else(|| "unknown".to_owned()),
            event_readers: Arc::new(Semaphore::new(EVENT_READERS_MAX)),
        }
    }
}

type Shared = State<Arc<Service>>;

/// The description of everything below, for programs.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "Local socket of mt-agent",
        description = "HTTP over a Unix socket. Root may do everything, members of the socket's group may read. \
                       One request a connection."
    ),
    paths(
        status,
        disks,
        pairs,
        add_pair,
        remove_pair,
        jobs,
        job,
        machines::retention,
        machines::init_retention,
        machines::machines,
        machines::points,
        machines::pin_point,
        machines::delete_point,
        machines::add_export,
        machines::exports,
        machines::remove_export,
        machines::roll,
        machines::failover,
        machines::commit,
        machines::cancel,
        machines::undo,
        machines::reprotect,
        machines::settings,
        machines::reset,
        identity::identity,
        identity::show_passphrase,
        identity::rotate_passphrase,
        identity::registration,
        identity::export,
        identity::registry,
        identity::decide,
        log::audit,
        log::add_note,
        stores::check,
        stores::rebuild,
        events,
        metrics_text,
        openapi_json
    ),
    components(schemas(MissedDoc))
)]
struct Description;

/// The OpenAPI document, with a line break at its end.
pub fn openapi() -> String {
    let mut text = Description::openapi()
        .to_pretty_json()
        .expect("a document made of derived types is JSON");
    text.push('\n');
    text
}

/// All routes. Who asks is an [`Access`] in the extensions of the request.
pub fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/disks", get(disks))
        .route("/v1/pairs", get(pairs).post(add_pair))
        .route("/v1/pairs/{machine}/{disk}", delete(remove_pair))
        .route("/v1/jobs", get(jobs))
        .route("/v1/jobs/{id}", get(job))
        .route(
            "/v1/retention",
            get(machines::retention).post(machines::init_retention),
        )
        .route("/v1/machines", get(machines::machines))
        .route("/v1/machines/{machine}/points", get(machines::points))
        .route(
            "/v1/machines/{machine}/points/{point}",
            post(machines::pin_point).delete(machines::delete_point),
        )
        .route("/v1/machines/{machine}/exports", post(machines::add_export))
        .route("/v1/exports", get(machines::exports))
        .route("/v1/exports/{id}", delete(machines::remove_export))
        .route("/v1/machines/{machine}/roll", post(machines::roll))
        .route("/v1/machines/{machine}/failover", post(machines::failover))
        .route("/v1/machines/{machine}/commit", post(machines::commit))
        .route("/v1/machines/{machine}/cancel", post(machines::cancel))
        .route("/v1/machines/{machine}/undo", post(machines::undo))
        .route("/v1/machines/{machine}/reprotect", post(machines::reprotect))
        .route("/v1/machines/{machine}/settings", post(machines::settings))
        .route("/v1/machines/{machine}/reset", post(machines::reset))
        .route("/v1/identity", get(identity::identity))
        .route("/v1/identity/passphrase", post(identity::rotate_passphrase))
        .route("/v1/identity/passphrase/show", post(identity::show_passphrase))
        .route("/v1/identity/registration", post(identity::registration))
        .route("/v1/identity/export", post(identity::export))
        .route("/v1/registry", get(identity::registry))
        .route("/v1/registry/{id}", post(identity::decide))
        .route("/v1/audit", get(log::audit).post(log::add_note))
        .route("/v1/machines/{machine}/check", post(stores::check))
        .route("/v1/machines/{machine}/rebuild", post(stores::rebuild))
        .route("/v1/events", get(events))
        .route("/v1/openapi.json", get(openapi_json))
        .route("/metrics", get(metrics_text))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(from_fn_with_state(Arc::clone(&service), check_access))
        .with_state(service)
}

/// An error on its way to the client.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    hint: Option<String>,
    exit_code: ExitCode,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, exit_code: ExitCode, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            hint: None,
            exit_code,
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn explained(status: StatusCode, code: &'static str, error: &dyn Explain) -> Self {
        Self {
            status,
            code,
            message: error.to_string(),
            hint: error.hint(),
            exit_code: error.exit_code(),
        }
    }

    pub(super) fn of_machine(code: &'static str, error: &dyn Explain) -> Self {
        let status = match error.exit_code() {
            ExitCode::Usage => StatusCode::BAD_REQUEST,
            ExitCode::Refused | ExitCode::DiskMissing => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::explained(status, code, error)
    }

    pub(super) fn refused(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, ExitCode::Refused, message)
    }

    pub(super) fn with_hint(self, hint: impl Into<String>) -> Self {
        self.hint(hint)
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", ExitCode::Usage, message)
    }

    fn document(&self) -> ErrorDoc {
        ErrorDoc {
            schema: SCHEMA,
            error: self.message.clone(),
            hint: self.hint.clone(),
            code: self.code.to_owned(),
            exit_code: self.exit_code as u8,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.document())).into_response();
        response.extensions_mut().insert(audit::Refused {
            code: self.code,
            message: self.message,
        });
        response
    }
}

impl From<StateError> for ApiError {
    fn from(error: StateError) -> Self {
        let conflict = error.exit_code() == ExitCode::Refused;
        let status = if conflict {
            StatusCode::CONFLICT
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        Self::explained(status, state_code(&error), &error)
    }
}

impl From<InventoryError> for ApiError {
    fn from(error: InventoryError) -> Self {
        Self::explained(StatusCode::INTERNAL_SERVER_ERROR, "disks-unreadable", &error)
    }
}

impl From<PairingError> for ApiError {
    fn from(error: PairingError) -> Self {
        let status = match error.exit_code() {
            ExitCode::Usage => StatusCode::BAD_REQUEST,
            ExitCode::Refused | ExitCode::DiskMissing => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::explained(status, error.code(), &error)
    }
}

/// Runs what waits for disks or the state where it may wait.
pub(super) async fn blocking<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ApiError>
where
    T: Send + 'static,
    E: Into<ApiError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(Into::into),
        Err(error) => {
            tracing::error!("a request ended by a fault of ours: {error}");
            Err(bug())
        }
    }
}

fn bug() -> ApiError {
    let message = "the agent failed on this request; its log says where";
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "bug",
        ExitCode::Unexpected,
        message,
    )
}

/// Decides by the method, before any route, so that a new route cannot forget to ask.
///
/// Every change that root asks for is in the audit log with what came of it. What others ask for is refused here and is in the
/// journal only: they could push out of the log what operators did.
async fn check_access(
    State(service): Shared,
    Extension(access): Extension<Access>,
    peer: Option<Extension<Peer>>,
    request: Request,
    next: Next,
) -> Response {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    let peer = peer.map(|Extension(peer)| peer);
    if changes && access == Access::Change {
        let answer = audit::run(service.target.hub.clone(), peer, request, next).await;
        return answer.unwrap_or_else(|| bug().into_response());
    }
    let (uid, may, remedy) = match access {
        Access::Change => return next.run(request).await,
        Access::Read { .. } if !changes => return next.run(request).await,
        Access::Read { uid } => (uid, "change anything", "run it as root, for example with sudo"),
        Access::Nothing { uid } => (
            uid,
            "read status",
            "run it as root, or add the user to the group of the socket ([agent] socket_group)",
        ),
    };
    if changes {
        let path = shown(request.uri().path(), REFUSED_PATH_MAX);
        tracing::warn!(target: "audit", who = audit::who(peer), what = format!("{} {path}", request.method()), "audit: refused");
    }
    let message = format!("user {uid} may not {may} here; nothing was changed");
    ApiError::new(StatusCode::FORBIDDEN, "forbidden", ExitCode::Refused, message)
        .hint(remedy)
        .into_response()
}

async fn unknown_path(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(80).collect();
    ApiError::new(
        StatusCode::NOT_FOUND,
        "not-found",
        ExitCode::Usage,
        format!("there is nothing at {path}"),
    )
    .hint("GET /v1/openapi.json lists what there is")
}

async fn unknown_method(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(80).collect();
    let message = format!("{path} does not take {}", request.method());
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        ExitCode::Usage,
        message,
    )
    .hint("GET /v1/openapi.json lists what there is")
}

/// What is happening and what is wrong.
#[utoipa::path(get, path = "/v1/status", responses(
    (status = 200, body = StatusDoc), (status = 403, body = ErrorDoc), (status = 500, body = ErrorDoc)))]
async fn status(State(service): Shared) -> Result<Json<StatusDoc>, ApiError> {
    Ok(Json(status_doc(service).await?))
}

async fn status_doc(service: Arc<Service>) -> Result<StatusDoc, ApiError> {
    blocking(move || {
        view::status(
            &service.target.hub,
            &service.config,
            &service.host,
            Timestamp::now(),
        )
    })
    .await
}

/// The disks of this machine, as they were when something last changed.
#[utoipa::path(get, path = "/v1/disks", responses(
    (status = 200, body = inline(DisksDocument<'static>)), (status = 403, body = ErrorDoc),
    (status = 500, body = ErrorDoc)))]
async fn disks(State(service): Shared) -> Result<Response, ApiError> {
    let inventory = match service.target.hub.snapshot().inventory {
        Some(inventory) => inventory,
        None => blocking(move || service.target.disks.gather().map(Arc::new)).await?,
    };
    Ok(Json(DisksDocument::new(&inventory)).into_response())
}

/// All pairs.
#[utoipa::path(get, path = "/v1/pairs", responses(
    (status = 200, body = PairsDoc), (status = 403, body = ErrorDoc), (status = 500, body = ErrorDoc)))]
async fn pairs(State(service): Shared) -> Result<Json<PairsDoc>, ApiError> {
    let lab = service.config.lab;
    let pairs = blocking(move || view::pairs(&service.target.hub)).await?;
    Ok(Json(PairsDoc {
        schema: SCHEMA,
        lab,
        pairs,
    }))
}

/// Pairs a protected disk with a target disk. A pair that is there already with this disk is success.
///
/// A disk that holds something is refused with what is on it, unless `overwrite` names its own SCSI ID.
#[utoipa::path(post, path = "/v1/pairs", request_body = PairRequest, responses(
    (status = 200, description = "It was there already", body = PairAddedDoc), (status = 201, body = PairAddedDoc),
    (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
    (status = 409, description = "Refused; nothing was changed", body = ErrorDoc),
    (status = 413, body = ErrorDoc), (status = 500, body = ErrorDoc)))]
async fn add_pair(State(service): Shared, body: Body) -> Result<Response, ApiError> {
    let request: PairRequest = read_json(body).await?;
    let pairing = service.pairing.clone();
    let done = blocking(move || pairing.add(&request, Timestamp::now())).await?;
    let status = if done.added {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(done)).into_response())
}

/// Removes a pair. Its disk is not touched. A pair that is not there is success.
#[utoipa::path(delete, path = "/v1/pairs/{machine}/{disk}",
    params(("machine" = String, Path, description = "Name of the protected machine"),
           ("disk" = String, Path, description = "Name of the protected disk")),
    responses((status = 200, body = PairRemovedDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
        (status = 409, description = "A source is writing it; nothing was changed", body = ErrorDoc),
        (status = 500, body = ErrorDoc)))]
async fn remove_pair(
    State(service): Shared,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<PairRemovedDoc>, ApiError> {
    let Path((machine, disk)) = path.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let pairing = service.pairing.clone();
    Ok(Json(
        blocking(move || pairing.remove(&machine, &disk, Timestamp::now())).await?,
    ))
}

/// Jobs, newest first.
#[utoipa::path(get, path = "/v1/jobs", responses(
    (status = 200, body = JobsDoc), (status = 403, body = ErrorDoc), (status = 500, body = ErrorDoc)))]
async fn jobs(State(service): Shared) -> Result<Json<JobsDoc>, ApiError> {
    let jobs = blocking(move || view::jobs(&service.target.hub)).await?;
    Ok(Json(JobsDoc { schema: SCHEMA, jobs }))
}

/// One job.
#[utoipa::path(get, path = "/v1/jobs/{id}", params(("id" = i64, Path, description = "Number of the job")),
    responses((status = 200, body = JobDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
        (status = 404, body = ErrorDoc), (status = 500, body = ErrorDoc)))]
async fn job(State(service): Shared, id: Result<Path<i64>, PathRejection>) -> Result<Json<JobDoc>, ApiError> {
    let Path(id) = id.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let job = blocking(move || view::job(&service.target.hub, JobId(id)))
        .await?
        .ok_or_else(|| {
            let message = format!("there is no job {id}");
            let error = ApiError::new(StatusCode::NOT_FOUND, "not-found", ExitCode::Usage, message);
            error.hint("\"mt-agent jobs list\" lists them; the oldest are dropped when there are many")
        })?;
    Ok(Json(JobDoc { schema: SCHEMA, job }))
}

/// What happens from now on, as server-sent events. A reader that is too slow is told how many it missed.
#[utoipa::path(get, path = "/v1/events", responses(
    (status = 200, content_type = "text/event-stream", description = "An `EventDoc` each; `MissedDoc` for lost ones",
        body = EventDoc),
    (status = 403, body = ErrorDoc), (status = 503, body = ErrorDoc)))]
async fn events(State(service): Shared) -> Result<Response, ApiError> {
    let place = Arc::clone(&service.event_readers)
        .try_acquire_owned()
        .map_err(|_| {
            let message = format!("{EVENT_READERS_MAX} clients read events already");
            ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                ExitCode::Unexpected,
                message,
            )
            .hint("end one of them")
        })?;
    let stream = event_stream(BroadcastStream::new(service.target.hub.subscribe()), place);
    Ok(Sse::new(stream)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response())
}

fn event_stream(
    events: BroadcastStream<crate::hub::HubEvent>,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    events.map(move |event| {
        // Held as long as the stream lives.
        let _place = &place;
        let sent = match event {
            Ok(event) => {
                let id = event.sequence.to_string();
                Event::default().id(id).json_data(EventDoc {
                    schema: SCHEMA,
                    event,
                })
            }
            Err(BroadcastStreamRecvError::Lagged(missed)) => Event::default().json_data(MissedDoc {
                schema: SCHEMA,
                event: "missed".to_owned(),
                missed,
            }),
        };
        Ok(sent.unwrap_or_else(|error| {
            tracing::error!("cannot encode an event: {error}");
            Event::default().comment("an event could not be encoded")
        }))
    })
}

/// What status says in numbers, as OpenMetrics text.
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, content_type = "application/openmetrics-text", body = String), (status = 403, body = ErrorDoc),
    (status = 500, body = ErrorDoc)))]
async fn metrics_text(State(service): Shared) -> Result<Response, ApiError> {
    let status = status_doc(Arc::clone(&service)).await?;
    let (retention, machines) = blocking(move || {
        let retention = machines::retention_doc(&service, false);
        Ok::<_, crate::machines::error::MachineError>((retention, machines::machine_docs(&service)?))
    })
    .await?;
    let text = metrics::text(&status, &retention, &machines).map_err(|error| {
        let message = format!("cannot write the metrics: {error}");
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "bug",
            ExitCode::Unexpected,
            message,
        )
    })?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, content_type = "application/json", body = String)))]
async fn openapi_json() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi()).into_response()
}

/// Decodes the body of a request. Nesting is bounded by the decoder (128 levels).
pub(super) async fn read_json<T: serde::de::DeserializeOwned>(body: Body) -> Result<T, ApiError> {
    let bytes = read_body(body).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        ApiError::bad_request(format!("the request is not the JSON that belongs here: {error}"))
    })
}

/// Reads a body within its limits.
pub(super) async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    let read = tokio::time::timeout(BODY_TIME_MAX, to_bytes(body, BODY_BYTES_MAX)).await;
    match read {
        Err(_) => {
            let message = format!(
                "the request was not complete within {} s",
                BODY_TIME_MAX.as_secs()
            );
            Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "too-slow",
                ExitCode::Usage,
                message,
            ))
        }
        Ok(Err(error)) if is_too_large(&error) => {
            let message = format!("the request is larger than {BODY_BYTES_MAX} bytes");
            Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                ExitCode::Usage,
                message,
            ))
        }
        Ok(Err(error)) => Err(ApiError::bad_request(format!("cannot read the request: {error}"))),
        Ok(Ok(bytes)) => Ok(bytes),
    }
}

fn is_too_large(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}
