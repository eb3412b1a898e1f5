//! The audit log of the local socket: what root asked for, with what the request said, and what came of it.
//!
//! A field of a request is written down only where [`SHOWN`] names it. So no passphrase gets into the log, not even one in a
//! field whose name was mistyped; a test keeps the list complete.

use std::fmt::Write as _;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::Value;

use super::access::Peer;
use super::routes::read_body;
use crate::hub::Hub;
use crate::identity::keeper::note;
use crate::state::audit::shown;

/// Fields of requests that are written down.
const SHOWN: [&str; 23] = [
    "act",
    "all_for",
    "daily_for",
    "disk",
    "group",
    "hourly_for",
    "keep_undo",
    "key",
    "late_after",
    "machine",
    "minimum_age",
    "overwrite",
    "pinned",
    "point",
    "policy",
    "result",
    "scsi_id",
    "seconds",
    "space",
    "speaks_for",
    "to",
    "verb",
    "writable",
];
/// Fields that are written down by their number only, as they can be long.
const COUNTED: [&str; 1] = ["segments"];
/// Longest path of a request that is written down, characters.
const PATH_MAX: usize = 400;
/// Longest name of a field that is no field of ours, characters.
const NAME_MAX: usize = 40;
/// In the place of what is not written down.
const HIDDEN: &str = "(not shown)";

/// Why a request was refused, on its way out with the answer.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    /// Code of the answer.
    pub code: &'static str,
    /// Its words.
    pub message: String,
}

/// Runs a request that changes something, and adds it to the log.
///
/// In a task of its own: a client that hangs up must not keep what it asked for out of the log.
pub(super) async fn run(hub: Hub, peer: Option<Peer>, request: Request, next: Next) -> Option<Response> {
    let work = tokio::spawn(async move {
        let who = who(peer);
        let (parts, body) = request.into_parts();
        let (what, response) = match read_body(body).await {
            Ok(bytes) => {
                let what = asked(&parts.method, parts.uri.path(), &bytes);
                // Before it is done: a fault of ours in between leaves this line in the journal.
                tracing::info!(target: "audit", who, what, "audit: asked for");
                let request = Request::from_parts(parts, Body::from(bytes));
                (what, next.run(request).await)
            }
            Err(error) => {
                let what = asked(&parts.method, parts.uri.path(), &[]);
                (what, axum::response::IntoResponse::into_response(error))
            }
        };
        let result = result(response.status(), response.extensions().get());
        let noted = tokio::task::spawn_blocking(move || note(&hub, &who, &what, &result)).await;
        if let Err(error) = noted {
            tracing::error!("the audit log was not written by a fault of ours: {error}");
        }
        response
    });
    work.await
        .inspect_err(|error| tracing::error!("a request ended by a fault of ours: {error}"))
        .ok()
}

/// Who asks, in words.
pub(super) fn who(peer: Option<Peer>) -> String {
    match peer {
        Some(Peer {
            uid, pid: Some(pid), ..
        }) => format!("user {uid} (process {pid})"),
        Some(Peer { uid, .. }) => format!("user {uid}"),
        None => "local".to_owned(),
    }
}

/// What is asked for, in one line without secrets.
fn asked(method: &Method, path: &str, body: &[u8]) -> String {
    let mut what = format!("{method} {}", shown(path, PATH_MAX));
    if body.is_empty() {
        return what;
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) if fields.is_empty() => {}
        Ok(value @ Value::Object(_)) => {
            let _ = write!(what, " {}", without_secrets(value));
        }
        _ => {
            let _ = write!(what, " ({} bytes that are no request)", body.len());
        }
    }
    what
}

fn without_secrets(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| {
                let value = match name.as_str() {
                    name if SHOWN.contains(&name) => without_secrets(value),
                    name if COUNTED.contains(&name) => value
                        .as_array()
                        .map_or_else(|| HIDDEN.into(), |entries| entries.len().into()),
                    _ => HIDDEN.into(),
                };
                (shown(&name, NAME_MAX), value)
            })
            .collect(),
        Value::Array(entries) => entries.into_iter().map(without_secrets).collect(),
        other => other,
    }
}

fn result(status: StatusCode, refused: Option<&Refused>) -> String {
    let word = match status {
        status if status.is_success() => "done",
        status if status.is_client_error() => "refused",
        _ => "failed",
    };
    match refused {
        None => format!("{word} ({})", status.as_u16()),
        // It can repeat what the request said, passphrases that stand where none belongs included.
        Some(Refused {
            code: code @ "bad-request",
            ..
        }) => format!("{word} ({} {code})", status.as_u16()),
        Some(Refused { code, message }) => format!("{word} ({} {code}): {message}", status.as_u16()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &[u8]) -> String {
        asked(&Method::POST, "/v1/x", body)
    }

    #[test]
    fn what_a_request_says_is_written_down_without_secrets() {
        let rows: [(&[u8], &str); 9] = [
            (b"", "POST /v1/x"),
            (b"{}", "POST /v1/x"),
            (
                br#"{"machine":"db01","overwrite":"naa.1"}"#,
                r#"POST /v1/x {"machine":"db01","overwrite":"naa.1"}"#,
            ),
            (
                br#"{"policy":{"space":7,"note":"s3cret"}}"#,
                r#"POST /v1/x {"policy":{"note":"(not shown)","space":7}}"#,
            ),
            (
                br#"{"passphrase":"s3cret"}"#,
                r#"POST /v1/x {"passphrase":"(not shown)"}"#,
            ),
            (
                br#"{"passphrse":["s3cret"]}"#,
                r#"POST /v1/x {"passphrse":"(not shown)"}"#,
            ),
            (br#""s3cret""#, "POST /v1/x (8 bytes that are no request)"),
            (br#"{"segments":[1,2,3]}"#, r#"POST /v1/x {"segments":3}"#),
            (b"\xff\xfe", "POST /v1/x (2 bytes that are no request)"),
        ];
        for (body, expected) in rows {
            assert_eq!(of(body), expected);
        }
    }

    #[test]
    fn results_say_why_and_never_repeat_a_request_that_is_none() {
        let refused = |code| Refused {
            code,
            message: "invalid type: string \"s3cret\"".to_owned(),
        };
        assert_eq!(result(StatusCode::CREATED, None), "done (201)");
        assert_eq!(
            result(StatusCode::BAD_REQUEST, Some(&refused("bad-request"))),
            "refused (400 bad-request)"
        );
        assert_eq!(
            result(
                StatusCode::CONFLICT,
                Some(&Refused {
                    code: "disk-taken",
                    message: "it is taken".to_owned()
                })
            ),
            "refused (409 disk-taken): it is taken"
        );
        assert!(result(StatusCode::INTERNAL_SERVER_ERROR, None).starts_with("failed"));
    }

    /// Every field of every request is one that is written down or one that must not be; a new one has to be decided on.
    #[test]
    fn every_field_of_every_request_is_decided_on() {
        let document: Value = serde_json::from_str(&crate::status::routes::openapi()).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let mut fields = Vec::new();
        for (name, schema) in schemas {
            if (name.ends_with("Request") || name == "Policy")
                && let Some(properties) = schema["properties"].as_object()
            {
                fields.extend(properties.keys().cloned());
            }
        }
        assert!(fields.len() > 20, "{fields:?}");
        let secret = ["passphrase"];
        for field in &fields {
            let field = field.as_str();
            assert!(
                SHOWN.contains(&field) || COUNTED.contains(&field) || secret.contains(&field),
                "\"{field}\" of a request: may it be in the audit log?"
            );
        }
        for name in SHOWN {
            assert!(!secret.contains(&name));
            assert!(
                fields.iter().any(|field| field == name),
                "no request has \"{name}\""
            );
        }
    }
}
