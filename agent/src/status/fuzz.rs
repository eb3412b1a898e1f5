//! Entries for a fuzzer: what comes to the local socket, and what a command gets from it, each from the first byte of the
//! conversation to its end. Nothing of the system is touched.

use std::cell::RefCell;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use hyper::Method;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::runtime::{Builder, Runtime};

use super::client::Client;
use super::model::{ErrorDoc, JobsDoc, PairAddedDoc, PairRequest, PairsDoc, StatusDoc};
use super::routes::{ApiError, read_json};
use super::{identity, machines, server, stores};
use crate::machines::points::Wanted;

/// Room for what goes either way; more waits, as on a socket.
const ROOM: usize = 1 << 20;

thread_local! {
    static RUNTIME: RefCell<Option<Runtime>> = const { RefCell::new(None) };
}

/// Runs a conversation on a runtime of this thread, so that what it takes of memory and time is this thread's.
fn run<T>(work: impl Future<Output = T>) -> T {
    RUNTIME.with_borrow_mut(|runtime| {
        let runtime = runtime.get_or_insert_with(|| {
            let built = Builder::new_current_thread().enable_time().build();
            built.expect("a runtime of one thread without I/O")
        });
        runtime.block_on(work)
    })
}

/// What a client sends: a request, decoded as the route of its path decodes it. Whatever it is, it is answered by a refusal
/// or what it asked for, and never by a fault of ours.
pub fn request(bytes: &[u8]) {
    let answer = answer_to(bytes);
    if !answer.is_empty() {
        // Of version 1.1, or of 1.0 where that was spoken.
        let status = answer.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5));
        assert!(
            status.is_some_and(|status| !status.starts_with(b"5")),
            "{status:?} is no answer, or a fault of ours"
        );
    }
}

fn answer_to(bytes: &[u8]) -> Vec<u8> {
    run(async {
        let (client, agent) = duplex(ROOM);
        let service = TowerToHyperService::new(Router::new().fallback(decode));
        let (mut read, mut write) = tokio::io::split(client);
        let serve = async move {
            // What was said ends with the input. A client would wait for the answer, and the agent for what is missing.
            let mut rules = server::rules();
            rules.half_close(true);
            let _ = rules.serve_connection(TokioIo::new(agent), service).await;
        };
        let talk = async {
            let _ = write.write_all(bytes).await;
            let _ = write.shutdown().await;
            let mut answer = Vec::new();
            let _ = read.read_to_end(&mut answer).await;
            answer
        };
        tokio::join!(serve, talk).1
    })
}

/// What an agent sends to a command: an answer, or a stream of events.
pub fn answer(bytes: &[u8]) {
    run(async {
        let client = Client::new(Some(std::path::Path::new("/fuzz")));
        for stream_of_events in [false, true] {
            let sent = client
                .send_on(peer(bytes).await, Method::GET, "/v1/status", None)
                .await;
            let Ok(response) = sent else { continue };
            if stream_of_events {
                let mut events = client.events_of(response);
                while let Ok(Some(_)) = events.next().await {}
                continue;
            }
            let good = response.status().is_success();
            let Ok(document) = client.collect(response).await else {
                continue;
            };
            if !good {
                let _ = client.refusal(document);
                continue;
            }
            let _ = client.decode::<StatusDoc>(document.clone());
            let _ = client.decode::<PairsDoc>(document.clone());
            let _ = client.decode::<PairAddedDoc>(document.clone());
            let _ = client.decode::<JobsDoc>(document.clone());
            let _ = client.decode::<machines::ExportsDoc>(document.clone());
            let _ = client.decode::<stores::SegmentsDoc>(document.clone());
            let _ = client.decode::<identity::BackupDoc>(document.clone());
            let _ = client.decode::<ErrorDoc>(document);
        }
    });
}

/// The end of a connection at whose other end these bytes were said, and then nothing more.
async fn peer(bytes: &[u8]) -> DuplexStream {
    let (ours, mut theirs) = duplex(ROOM);
    let _ = theirs.write_all(bytes).await;
    let _ = theirs.shutdown().await;
    // It still takes what is said to it.
    tokio::spawn(async move { tokio::io::copy(&mut theirs, &mut tokio::io::sink()).await });
    ours
}

async fn decode(request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let body = request.into_body();
    match path.as_str() {
        "/pairs" => read::<PairRequest>(body).await,
        "/passphrase" => read::<identity::PassphraseRequest>(body).await,
        "/registration" => read::<identity::RegistrationRequest>(body).await,
        "/export" => read::<identity::BackupRequest>(body).await,
        "/decide" => read::<identity::DecideRequest>(body).await,
        "/check" => read::<stores::CheckRequest>(body).await,
        "/retention" => read::<machines::InitRequest>(body).await,
        "/exports" => read::<machines::ExportRequest>(body).await,
        "/points" => read::<machines::PinRequest>(body).await,
        "/commit" => read::<machines::CommitRequest>(body).await,
        "/settings" => read::<machines::SettingsRequest>(body).await,
        _ => match read_json::<machines::ToRequest>(body).await {
            Ok(request) => {
                let _ = Wanted::parse(&request.to);
                ().into_response()
            }
            Err(error) => error.into_response(),
        },
    }
}

async fn read<T: DeserializeOwned>(body: Body) -> Response {
    let read: Result<T, ApiError> = read_json(body).await;
    read.map(|_| ()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry that answers nothing would find nothing.
    #[test]
    fn requests_come_through_to_the_decoders() {
        for (path, body, status) in [
            ("/pairs", r#"{"machine":"a","disk":"b","scsi_id":"c"}"#, "200"),
            ("/check", r#"{"segments":[1,2,3]}"#, "200"),
            ("/roll", r#"{"to":"latest"}"#, "200"),
            ("/roll", r#"{"to":1}"#, "400"),
            ("/check", &"[".repeat(1000), "400"),
            ("/check", &" ".repeat(70_000), "413"),
        ] {
            let request = format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let answer = String::from_utf8(answer_to(request.as_bytes())).unwrap();
            assert_eq!(answer.get(9..12), Some(status), "{path}: {answer}");
        }
        let long = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(70_000));
        let answer = String::from_utf8(answer_to(long.as_bytes())).unwrap();
        assert_eq!(answer.get(9..12), Some("431"), "{answer}");
    }
}
