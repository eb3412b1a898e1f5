//! Accepts clients of the local socket, within limits.
//!
//! One request a connection: it keeps the limits simple, and a command asks once. A client has [`REQUEST_TIME_MAX`]
//! for its request, and one that does not read what it asked for is dropped after [`WRITE_TIME_MAX`].

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Gid, Uid};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

use super::access::{self, Access, Peer};
use super::routes::{Service, router};
use super::socket::LocalSocket;
use crate::config::Config;
use crate::error::{CliError, ExitCode};
use crate::hub::{Alarm, Hub, Severity};
use crate::target::app::Target;

/// Most clients at a time that are not root.
pub const CLIENTS_MAX: usize = 32;
/// Places more for root: readers that fill all others must not keep the administrator out.
pub const CLIENTS_ROOT_MAX: usize = 8;
/// How long a client may take to send its request.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a client may leave what is sent to it unread.
pub const WRITE_TIME_MAX: Duration = Duration::from_secs(10);
/// Largest head of a request, bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most header lines of a request.
const HEADERS_MAX: usize = 64;
/// Wait after an accept that failed because the system is short of something.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(200);

/// Raised while the group of the socket does not exist.
pub const ALARM_GROUP: &str = "socket-group-missing";

const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n\
    {\"schema\":1,\"error\":\"the agent serves as many clients as it can\",\"hint\":\"try again in a moment\",\
    \"code\":\"busy\",\"exit_code\":1}";

/// Serves the local socket of a target that is up, until `stop` becomes true.
///
/// # Errors
/// When the socket cannot be had.
pub async fn serve(config: Arc<Config>, target: Target, stop: watch::Receiver<bool>) -> Result<(), CliError> {
    let group = socket_group(&config.socket_group, &target.hub);
    let socket = LocalSocket::bind(&config.socket, group)?;
    let listener = socket
        .listener()
        .and_then(UnixListener::from_std)
        .map_err(|error| {
            let path = config.socket.display();
            CliError::new(
                ExitCode::Unexpected,
                format!("cannot listen on the local socket {path}: {error}"),
            )
        })?;
    tracing::info!("local socket {}", socket.path().display());
    let own = config.lab.then(Uid::effective);
    let router = router(Arc::new(Service::new(target, config)));
    accept(listener, router, (group, own), stop).await;
    Ok(())
}

/// The group, or an alarm that it is missing: then only root can read, which is the safe side.
fn socket_group(name: &str, hub: &Hub) -> Option<Gid> {
    let text = match access::group(name) {
        Ok(Some(group)) => return Some(group),
        Ok(None) => format!("there is no group {name}: only root may read status"),
        Err(error) => format!("cannot look up group {name}: {error}; only root may read status"),
    };
    tracing::warn!("{text}");
    hub.raise(Alarm {
        id: ALARM_GROUP.to_owned(),
        subject: "agent".to_owned(),
        severity: Severity::Notice,
        text,
        hint: format!("add it with \"groupadd --system {name}\" and restart, or set [agent] socket_group"),
        since: Timestamp::now(),
    });
    None
}

/// The group that may read, and the user beside root that may change.
type Known = (Option<Gid>, Option<Uid>);

async fn accept(listener: UnixListener, router: Router, known: Known, mut stop: watch::Receiver<bool>) {
    let places = Places {
        all: Arc::new(Semaphore::new(CLIENTS_MAX)),
        root: Arc::new(Semaphore::new(CLIENTS_ROOT_MAX)),
    };
    let mut clients = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = clients.join_next() => {
                if let Err(error) = ended {
                    tracing::error!("a client of the local socket ended by a fault of ours: {error}");
                }
                continue;
            }
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot accept a client of the local socket: {error}");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let Some(peer) = peer_of(&stream) else { continue };
        let Some(place) = places.take(peer.uid) else {
            // Best effort: a socket that was just opened has room for it.
            let _ = stream.try_write(TOO_MANY);
            continue;
        };
        clients.spawn(converse(stream, router.clone(), peer, known, place));
    }
}

async fn converse(
    stream: UnixStream,
    router: Router,
    peer: Peer,
    (group, own): Known,
    place: OwnedSemaphorePermit,
) {
    let access = tokio::task::spawn_blocking(move || access::of(peer, group, own)).await;
    let access = access.unwrap_or(Access::Nothing { uid: peer.uid });
    let service = TowerToHyperService::new(router.layer(Extension(access)).layer(Extension(peer)));
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIME_MAX));
    let conversation = rules()
        .serve_connection(TokioIo::new(Box::pin(stream)), service)
        .await;
    if let Err(error) = conversation {
        tracing::debug!(
            uid = peer.uid.as_raw(),
            "a client of the local socket was dropped: {error}"
        );
    }
    drop(place);
}

/// What a request may be, before anything is asked about it.
pub(super) fn rules() -> http1::Builder {
    let mut rules = http1::Builder::new();
    rules
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(REQUEST_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    rules
}

/// The kernel's word on who connected.
fn peer_of(stream: &UnixStream) -> Option<Peer> {
    let credentials = getsockopt(&stream.as_fd(), PeerCredentials);
    match credentials {
        Ok(found) => Some(Peer {
            uid: Uid::from_raw(found.uid()),
            gid: Gid::from_raw(found.gid()),
            pid: Some(found.pid()).filter(|pid| *pid > 0),
        }),
        Err(error) => {
            tracing::warn!("cannot tell who connected to the local socket: {error}");
            None
        }
    }
}

struct Places {
    all: Arc<Semaphore>,
    root: Arc<Semaphore>,
}

impl Places {
    fn take(&self, uid: Uid) -> Option<OwnedSemaphorePermit> {
        let common = Arc::clone(&self.all).try_acquire_owned().ok();
        common.or_else(|| {
            uid.is_root()
                .then(|| Arc::clone(&self.root).try_acquire_owned().ok())
                .flatten()
        })
    }
}
