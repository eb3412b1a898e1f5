//! The other end of the local socket, for the command line.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::model::ErrorDoc;
use crate::config::DEFAULT_SOCKET;
use crate::error::{ExitCode, Explain};

/// Environment variable that names the socket.
pub const SOCKET_VARIABLE: &str = "MT_AGENT_SOCKET";

/// How long connecting may take: the agent is here, or it is not.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// How long an answer may take. Pairing asks every disk, and a disk that fails answers after its kernel timeout, 30 s.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(90);
/// How long the stream of events may be silent: three signs of life were due.
const SILENCE_MAX: Duration = Duration::from_secs(50);
/// Largest answer that is taken, bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest line of the stream of events that is taken, bytes.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody serves the socket.
    #[error("cannot reach the agent: nobody serves {path}")]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The mode of the socket keeps us out.
    #[error("cannot reach the agent: this user may not connect to {path}")]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// The connection failed.
    #[error("cannot talk to the agent on {path}: {found}")]
    Failed {
        /// The socket.
        path: PathBuf,
        /// What happened.
        found: String,
    },
    /// The agent refuses.
    #[error("{}", .0.error)]
    Refused(ErrorDoc),
}

impl Explain for ClientError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotRunning { .. } => Some(format!(
                "start the target with \"mt-agent target\", or name its socket with --socket or {SOCKET_VARIABLE}"
            )),
            Self::Forbidden { .. } => Some(
                "run it as root, or add the user to the group of the socket ([agent] socket_group)"
                    .to_owned(),
            ),
            Self::Failed { .. } => Some("see the log of the agent".to_owned()),
            Self::Refused(error) => error.hint.clone(),
        }
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::NotRunning { .. } | Self::Failed { .. } => ExitCode::Peer,
            Self::Forbidden { .. } => ExitCode::Refused,
            Self::Refused(error) => ExitCode::from_number(error.exit_code),
        }
    }
}

/// Talks to an agent.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of the socket that was asked for, else of the one in `MT_AGENT_SOCKET`, else of the default.
    pub fn new(asked: Option<&Path>) -> Self {
        let path = match (asked, std::env::var_os(SOCKET_VARIABLE)) {
            (Some(path), _) => path.to_owned(),
            (None, Some(path)) if !path.is_empty() => path.into(),
            _ => DEFAULT_SOCKET.into(),
        };
        Self { path }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.path
    }

    /// Reads a document.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.ask(Method::GET, path, None).await
    }

    /// Asks for a change.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// Asks for something to be removed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete(&self, path: &str) -> Result<Value, ClientError> {
        self.ask(Method::DELETE, path, None).await
    }

    /// Begins to read events.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn events(&self) -> Result<Events, ClientError> {
        let answer = timeout(ANSWER_TIME_MAX, self.send(Method::GET, "/v1/events", None)).await;
        let response = answer.map_err(|_| self.too_slow())??;
        if response.status().is_success() {
            return Ok(self.events_of(response));
        }
        Err(self.refusal(self.collect(response).await?))
    }

    /// The events of an answer that has begun.
    pub(super) fn events_of(&self, response: Response<Incoming>) -> Events {
        Events {
            client: self.clone(),
            body: response.into_body(),
            lines: Lines::default(),
        }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let work = async {
            let response = self.send(method, path, body).await?;
            let good = response.status().is_success();
            let document = self.collect(response).await?;
            if good {
                Ok(document)
            } else {
                Err(self.refusal(document))
            }
        };
        timeout(ANSWER_TIME_MAX, work)
            .await
            .map_err(|_| self.too_slow())?
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, ClientError> {
        let connected = timeout(CONNECT_TIME_MAX, UnixStream::connect(&self.path)).await;
        let stream = connected.map_err(|_| self.too_slow())?.map_err(|error| {
            let path = self.path.clone();
            match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::NotRunning { path },
                ErrorKind::PermissionDenied => ClientError::Forbidden { path },
                _ => self.failed(error),
            }
        })?;
        self.send_on(stream, method, path, body).await
    }

    /// As [`Self::send`], on a connection that is there.
    pub(super) async fn send_on<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, ClientError> {
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.failed(error))?;
        // It ends with the answer, or when `sender` and the answer are dropped.
        tokio::spawn(connection);
        let text = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(ACCEPT, "application/json, text/event-stream")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(text))
            .map_err(|error| self.failed(error))?;
        sender
            .send_request(request)
            .await
            .map_err(|error| self.failed(error))
    }

    pub(super) async fn collect(&self, response: Response<Incoming>) -> Result<Value, ClientError> {
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await;
        let bytes = body.map_err(|error| self.failed(error))?.to_bytes();
        serde_json::from_slice(&bytes)
            .map_err(|error| self.failed(format!("its answer is not JSON: {error}")))
    }

    pub(super) fn refusal(&self, document: Value) -> ClientError {
        match serde_json::from_value(document) {
            Ok(error) => ClientError::Refused(error),
            Err(error) => self.failed(format!("it refused in words that are not understood: {error}")),
        }
    }

    /// Decodes a document of the agent.
    ///
    /// # Errors
    /// When it has another shape: the agent is of another version.
    pub fn decode<T: serde::de::DeserializeOwned>(&self, document: Value) -> Result<T, ClientError> {
        serde_json::from_value(document).map_err(|error| {
            self.failed(format!(
                "its answer is not understood: {error}; is it of another version?"
            ))
        })
    }

    fn failed(&self, found: impl ToString) -> ClientError {
        ClientError::Failed {
            path: self.path.clone(),
            found: found.to_string(),
        }
    }

    fn too_slow(&self) -> ClientError {
        self.failed("it did not answer in time")
    }
}

/// Events, as they come.
#[derive(Debug)]
pub struct Events {
    client: Client,
    body: Incoming,
    lines: Lines,
}

impl Events {
    /// Waits for the next event; `None` when the agent has ended the stream.
    ///
    /// # Errors
    /// When the connection fails, or nothing came for longer than a sign of life was due.
    pub async fn next(&mut self) -> Result<Option<Value>, ClientError> {
        loop {
            if let Some(data) = self.lines.event() {
                let event = serde_json::from_str(&data);
                return event
                    .map(Some)
                    .map_err(|error| self.client.failed(format!("an event is not JSON: {error}")));
            }
            let frame = timeout(SILENCE_MAX, self.body.frame())
                .await
                .map_err(|_| self.client.too_slow())?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(self.client.failed(error)),
                Some(Ok(frame)) => {
                    let data = frame.data_ref().map(Bytes::as_ref).unwrap_or_default();
                    self.lines
                        .push(data)
                        .map_err(|()| self.client.failed("an event is too long"))?;
                }
            }
        }
    }
}

/// Takes server-sent events apart (WHATWG HTML, 9.2.6), as far as our own server sends them.
#[derive(Debug, Default)]
struct Lines {
    buffer: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() > LINE_BYTES_MAX {
            Err(())
        } else {
            Ok(())
        }
    }

    /// The data of the next complete event that has some; comments and signs of life have none.
    fn event(&mut self) -> Option<String> {
        loop {
            let end = self.buffer.windows(2).position(|pair| pair == b"\n\n")?;
            let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let text = String::from_utf8_lossy(&block);
            let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
            let data: Vec<&str> = data.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
            if !data.is_empty() {
                return Some(data.join("\n"));
            }
        }
    }
}

/// A part of a path, with everything escaped that means something there (RFC 3986, 2.3).
pub fn escape(part: &str) -> String {
    part.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_whole_however_they_arrive() {
        let sent = b": sign of life\n\nid: 1\ndata: {\"a\":1}\n\n:\n\ndata:x\ndata: y\n\ndata: cut";
        for step in 1..sent.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for piece in sent.chunks(step) {
                lines.push(piece).unwrap();
                found.extend(std::iter::from_fn(|| lines.event()));
            }
            assert_eq!(found, ["{\"a\":1}", "x\ny"], "in pieces of {step}");
        }
        let mut endless = Lines::default();
        assert!((0..=16).any(|_| endless.push(&[b'x'; LINE_BYTES_MAX / 16]).is_err()));
    }

    #[test]
    fn names_survive_the_path() {
        assert_eq!(escape("scsi0:1"), "scsi0%3A1");
        assert_eq!(escape("a?b#c%d"), "a%3Fb%23c%25d");
        assert_eq!(escape("db01-x.y_z~"), "db01-x.y_z~");
    }
}
