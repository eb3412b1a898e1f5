//! The service: listens for sources, follows hot-plug, and ends in order.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mt_identity::MachineId;
use mt_identity::tls::peer_of;
use mt_wire::ErrorCode;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::opening::Opener;
use super::session::Session;
use crate::error::{ExitCode, Explain};
use crate::identity::caller::Caller;
use crate::identity::keeper::Keeper;
use crate::net::door::{Door, Guest, ShownOut};
use crate::net::hello::{HelloError, welcome};
use crate::net::tls::{Secure, Stream, accept, explain_io, trust};

/// Most sessions at a time. Each holds at most 48 MiB of buffers, and only once
/// it has opened a pair.
const SESSIONS_MAX: usize = 64;

/// Of those, how many of one machine: one that was taken over must not keep the others out.
pub const SESSIONS_PER_MACHINE: usize = 16;

/// How long sessions may take to end when the service is stopped.
const STOP_TIME: Duration = Duration::from_secs(10);

/// Wait after an accept that failed because the system is short of something.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(200);

/// Why the service cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A port cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The key in the configuration.
        key: &'static str,
        /// The address from the configuration.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
}

impl Explain for ServeError {
    fn hint(&self) -> Option<String> {
        let Self::Listen { key, source, .. } = self;
        Some(match source.kind() {
            std::io::ErrorKind::AddrInUse => format!(
                "another program uses the port (see \"ss --listening --tcp --processes\"); stop it or change [target] {key}"
            ),
            std::io::ErrorKind::PermissionDenied => format!(
                "ports below 1024 are for root or CAP_NET_BIND_SERVICE; run it so, or set [target] {key} to a higher port"
            ),
            _ => format!("check [target] {key} in the configuration"),
        })
    }

    fn exit_code(&self) -> ExitCode {
        let Self::Listen { source, .. } = self;
        match source.kind() {
            // Starting again does not mend it. An address that is not there yet comes with the network.
            std::io::ErrorKind::AddrInUse | std::io::ErrorKind::PermissionDenied => ExitCode::Config,
            _ => ExitCode::Unexpected,
        }
    }
}

/// Opens a port; `key` is what the configuration calls it.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn listen(address: SocketAddr, key: &'static str) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen { key, address, source })
}

/// Whom the data port takes.
#[derive(Clone)]
pub enum Access {
    /// Machines of the registry, over mutual TLS.
    Registered(Keeper, Door),
    /// Whoever connects: a laboratory on loopback.
    Plain,
}

/// Serves sources until `stop` becomes true. `hot_plug` changes with every hot-plug event.
pub async fn serve(
    listener: TcpListener,
    access: Access,
    opener: Opener,
    hot_plug: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
) {
    let mut stopping = stop.clone();
    let mut sessions = JoinSet::new();
    let count = Arc::new(AtomicUsize::new(0));
    let machines = PerMachine::default();
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
        let guest = match &access {
            Access::Plain if count.load(Ordering::Relaxed) >= 2 * SESSIONS_MAX => {
                // Not even an answer: whoever does this is not asking.
                continue;
            }
            Access::Plain => None,
            Access::Registered(keeper, door) => match door.admit(peer.ip()) {
                Ok(guest) => Some((guest, keeper.clone())),
                Err(error) => {
                    tracing::debug!(%peer, "data port: {error}");
                    continue;
                }
            },
        };
        let (mut opener, hot_plug, stop) = (opener.clone(), hot_plug.clone(), stop.clone());
        let places = (Arc::clone(&count), machines.clone());
        sessions.spawn(async move {
            let admitted = match guest {
                None => admit_plain(stream, &places.0).await,
                Some((guest, keeper)) => admit(stream, peer, guest, keeper, &places).await,
            };
            match admitted {
                Ok(admitted) => {
                    opener.caller = admitted.caller;
                    match Session::start(admitted.stream, peer, admitted.version, opener) {
                        Ok(session) => session.run(hot_plug, stop).await,
                        Err(error) => tracing::error!(%peer, "no session: {error}"),
                    }
                    drop(admitted.places);
                }
                Err(error) => tracing::warn!(%peer, "no session: {error}"),
            }
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

/// A connection on which a session may begin.
struct Admitted {
    stream: Stream,
    version: u16,
    caller: Option<Caller>,
    /// Its places among all sessions, and among those of its machine.
    places: Vec<Place>,
}

/// Why a connection came to nothing.
#[derive(Debug, thiserror::Error)]
enum NotAdmitted {
    #[error("{0}")]
    Socket(#[from] std::io::Error),
    #[error("{0}")]
    Tls(String),
    #[error("{0}")]
    ShownOut(#[from] ShownOut),
    #[error("{0}")]
    Denied(String),
    #[error("{0}")]
    Hello(#[from] HelloError),
}

async fn admit_plain(mut socket: TcpStream, count: &Arc<AtomicUsize>) -> Result<Admitted, NotAdmitted> {
    let place = Place::take(count);
    let refuse = (place.number > SESSIONS_MAX).then_some(ErrorCode::TooManySessions);
    socket.set_nodelay(true)?;
    let (_, version) = welcome(&mut socket, refuse).await?;
    Ok(Admitted {
        stream: Stream::Plain(socket),
        version,
        caller: None,
        places: vec![place],
    })
}

/// TLS, the registry, the hello: all of it within the time and the bytes that a stranger has.
async fn admit(
    socket: TcpStream,
    peer: SocketAddr,
    mut guest: Guest,
    keeper: Keeper,
    (count, machines): &(Arc<AtomicUsize>, PerMachine),
) -> Result<Admitted, NotAdmitted> {
    socket.set_nodelay(true)?;
    let handshake = guest.handshake();
    let work = async {
        let mut stream = accept(socket, keeper.data_port()).await.map_err(|error| {
            NotAdmitted::Tls(explain_io(&error).map_or_else(|| error.to_string(), |(text, _)| text))
        })?;
        handshake.done();
        let Secure::Server(server) = &stream else {
            return Err(NotAdmitted::Tls("the connection is not a server's".to_owned()));
        };
        let leaf = peer_of(server.get_ref().1).map_err(|error| NotAdmitted::Tls(error.to_string()))?;
        // The registry writes to the state when a renewed key is used for the first time.
        let asked = tokio::task::spawn_blocking(move || Caller::admit(keeper, &leaf, peer.to_string())).await;
        let caller = match asked {
            Ok(Ok(caller)) => caller,
            Ok(Err(denial)) => {
                // In TLS 1.3 the handshake is over for the peer: it is told where it asks for its session.
                let code = ErrorCode::from_number(denial.code().number());
                let _ = welcome(&mut stream, Some(code)).await;
                return Err(NotAdmitted::Denied(denial.to_string()));
            }
            Err(error) => return Err(NotAdmitted::Denied(error.to_string())),
        };
        // Only now: strangers must not take places from those who are known.
        let (of_all, of_machine) = (Place::take(count), Place::take(&machines.count_of(caller.id())));
        let many = of_all.number > SESSIONS_MAX || of_machine.number > SESSIONS_PER_MACHINE;
        let refuse = many.then_some(ErrorCode::TooManySessions);
        let (_, version) = welcome(&mut stream, refuse).await?;
        trust(&mut stream);
        Ok(Admitted {
            stream: Stream::Secure(Box::new(stream)),
            version,
            caller: Some(caller),
            places: vec![of_all, of_machine],
        })
    };
    guest.within(work).await?
}

/// How many sessions each machine has.
#[derive(Debug, Clone, Default)]
struct PerMachine {
    counts: Arc<Mutex<HashMap<MachineId, Arc<AtomicUsize>>>>,
}

impl PerMachine {
    fn count_of(&self, machine: MachineId) -> Arc<AtomicUsize> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        // Machines that have none any more are not kept: they come and go over the years of a service.
        counts.retain(|id, count| *id == machine || Arc::strong_count(count) > 1);
        Arc::clone(counts.entry(machine).or_default())
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
