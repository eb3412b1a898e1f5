//! The service: listens for sources, follows hot-plug, and ends in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mt_wire::ErrorCode;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::opening::Opener;
use super::session::Session;
use crate::error::{ExitCode, Explain};
use crate::net::hello::welcome;

/// Most connections at a time, those before their hello included. Each holds at most 48 MiB of buffers, and only once
/// it has opened a pair.
const SESSIONS_MAX: usize = 64;

/// How long sessions may take to end when the service is stopped.
const STOP_TIME: Duration = Duration::from_secs(10);

/// Wait after an accept that failed because the system is short of something.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(200);

/// Why the service cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data port cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address from the configuration.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// The data port would be open to the network.
    #[error(
        "will not listen on {0}: connections are neither encrypted nor authenticated yet, so only loopback is allowed"
    )]
    NotLoopback(SocketAddr),
}

impl Explain for ServeError {
    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
                    "another program uses the port (see \"ss --listening --tcp --processes\"); stop it or change [target] listen"
                }
                Self::Listen { .. } => "check [target] listen in the configuration",
                Self::NotLoopback(_) => {
                    "set [target] listen to 127.0.0.1 or [::1]; reach it from elsewhere through a tunnel, such as ssh -L"
                }
            }
            .to_owned(),
        )
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Listen { .. } => ExitCode::Unexpected,
            Self::NotLoopback(_) => ExitCode::Config,
        }
    }
}

/// Opens the data port.
///
/// # Errors
/// When the address is not loopback, or cannot be listened on.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    if !address.ip().is_loopback() {
        return Err(ServeError::NotLoopback(address));
    }
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen { address, source })
}

/// Serves sources until `stop` becomes true. `hot_plug` changes with every hot-plug event.
pub async fn serve(
    listener: TcpListener,
    opener: Opener,
    hot_plug: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
) {
    let mut stopping = stop.clone();
    let mut sessions = JoinSet::new();
    let count = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = sessions.join_next() => {
                if let Err(error) = ended {
                    tracing::error!("a session ended by a fault of ours: {error}");
                }
                continue;
            }
            _ = stopping.wait_for(|stop| *stop) => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let place = Place::take(&count);
        let refuse = (place.number > SESSIONS_MAX).then_some(ErrorCode::TooManySessions);
        if place.number > 2 * SESSIONS_MAX {
            // Not even an answer: whoever does this is not asking.
            continue;
        }
        let (opener, hot_plug, stop) = (opener.clone(), hot_plug.clone(), stop.clone());
        sessions.spawn(async move {
            converse(stream, peer, refuse, opener, hot_plug, stop).await;
            drop(place);
        });
    }
    drop(listener);
    let ended = timeout(STOP_TIME, async { while sessions.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        tracing::warn!(
            "{} sessions did not end within {} s; what they had acknowledged is durable",
            sessions.len(),
            STOP_TIME.as_secs()
        );
    }
}

async fn converse(
    mut stream: TcpStream,
    peer: SocketAddr,
    refuse: Option<ErrorCode>,
    opener: Opener,
    hot_plug: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, "cannot set TCP_NODELAY: {error}");
    }
    let version = match welcome(&mut stream, refuse).await {
        Ok((_, version)) => version,
        Err(error) => {
            tracing::warn!(%peer, "no session: {error}");
            return;
        }
    };
    match Session::start(stream, peer, version, opener) {
        Ok(session) => session.run(hot_plug, stop).await,
        Err(error) => tracing::error!(%peer, "no session: {error}"),
    }
}

/// A place among the sessions, given back when it is dropped.
struct Place {
    count: Arc<AtomicUsize>,
    number: usize,
}

impl Place {
    fn take(count: &Arc<AtomicUsize>) -> Self {
        let number = count.fetch_add(1, Ordering::Relaxed) + 1;
        Self {
            count: Arc::clone(count),
            number,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}
