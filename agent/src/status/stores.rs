//! What the socket says and does about a machine's store as such: checking segments, and its catalogue.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use mt_retention::Finding;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::model::{ErrorDoc, SCHEMA};
use super::routes::{ApiError, Service, blocking, read_json};
use crate::machines::error::MachineError;

type Shared = State<Arc<Service>>;

/// Which segments to read.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    /// Numbers of segments; one that is not in the log any more is whole.
    pub segments: Vec<u64>,
}

/// What was found in segments of a store.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SegmentsDoc {
    /// Version of this document.
    pub schema: u32,
    /// The machine.
    pub machine: String,
    /// What is not as it was written, in words.
    pub findings: Vec<String>,
}

/// Reads segments from end to end, and marks the points that depend on damage in them.
#[utoipa::path(post, path = "/v1/machines/{machine}/check", request_body = CheckRequest,
    params(("machine" = String, Path)), responses(
    (status = 200, body = SegmentsDoc), (status = 400, body = ErrorDoc), (status = 403, body = ErrorDoc),
    (status = 409, body = ErrorDoc), (status = 500, body = ErrorDoc)))]
pub async fn check(
    State(service): Shared,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<SegmentsDoc>, ApiError> {
    let CheckRequest { segments } = read_json(body).await?;
    let machine = name.clone();
    let findings = blocking(move || {
        let mut findings: Vec<Finding> = Vec::new();
        for segment in segments {
            findings.extend(service.target.machines.check_segment(&name, segment)?.findings);
        }
        Ok::<_, MachineError>(findings)
    })
    .await?;
    Ok(Json(SegmentsDoc {
        schema: SCHEMA,
        machine,
        findings: findings.iter().map(ToString::to_string).collect(),
    }))
}

/// Makes the catalogue of a machine's store anew from its segments.
#[utoipa::path(post, path = "/v1/machines/{machine}/rebuild", params(("machine" = String, Path)), responses(
    (status = 200, body = SegmentsDoc), (status = 403, body = ErrorDoc), (status = 409, body = ErrorDoc),
    (status = 500, body = ErrorDoc)))]
pub async fn rebuild(
    State(service): Shared,
    Path(name): Path<String>,
) -> Result<Json<SegmentsDoc>, ApiError> {
    let machine = name.clone();
    blocking(move || service.target.machines.rebuild_catalogue(&name)).await?;
    Ok(Json(SegmentsDoc {
        schema: SCHEMA,
        machine,
        findings: Vec::new(),
    }))
}
