//! Reading the audit log on the local socket, and noting in it what root's commands do without the socket.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::model::{ErrorDoc, SCHEMA};
use super::routes::{ApiError, Service, blocking, read_json};

/// Entries of one answer.
const ENTRIES: u32 = 1000;

type Shared = State<Arc<Service>>;

/// Changes that were asked for, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditDoc {
    /// Version of this document.
    pub schema: u32,
    /// The entries.
    pub entries: Vec<AuditEntryDoc>,
    /// How many kept entries are older than these.
    #[serde(default)]
    pub older: u64,
    /// How many entries were kept once and are not any more: a hundred thousand are. The journal has what it keeps.
    #[serde(default)]
    pub gone: u64,
}

/// A change that was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntryDoc {
    /// Number of the entry.
    #[serde(default)]
    pub id: u64,
    /// When it was answered.
    #[schema(value_type = String, format = DateTime)]
    pub time: Timestamp,
    /// Who asked.
    pub who: String,
    /// What for, with what the request said; secrets are left out.
    pub what: String,
    /// What came of it.
    pub result: String,
}

/// Which entries.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// Only entries of lower numbers.
    pub before: Option<u64>,
}

/// Notes what a command of root has done by itself.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoteRequest {
    /// What.
    pub act: String,
    /// What came of it.
    pub result: String,
}

/// What was noted.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct NotedDoc {
    /// Version of this document.
    pub schema: u32,
}

/// The newest thousand changes that were asked for.
#[utoipa::path(get, path = "/v1/audit", params(AuditQuery), responses(
    (status = 200, body = AuditDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
    (status = 500, body = ErrorDoc)))]
pub async fn audit(
    State(service): Shared,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Json<AuditDoc>, ApiError> {
    let Query(AuditQuery { before }) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let page = blocking(move || service.target.hub.state().audit(before, ENTRIES)).await?;
    Ok(Json(AuditDoc {
        schema: SCHEMA,
        entries: page
            .entries
            .into_iter()
            .map(|(id, entry)| AuditEntryDoc {
                id,
                time: entry.time,
                who: entry.who,
                what: entry.what,
                result: entry.result,
            })
            .collect(),
        older: page.older,
        gone: page.gone,
    }))
}

/// Notes in the audit log what a command does without this socket, such as formatting a disk.
///
/// The entry is the one that every changing request makes; there is nothing else to do.
#[utoipa::path(post, path = "/v1/audit", request_body = NoteRequest, responses(
    (status = 200, body = NotedDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc)))]
pub async fn add_note(body: Body) -> Result<Json<NotedDoc>, ApiError> {
    let NoteRequest { act: _, result: _ } = read_json(body).await?;
    Ok(Json(NotedDoc { schema: SCHEMA }))
}
