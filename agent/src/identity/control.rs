//! The control port: machines register and renew their certificates.

use std::net::SocketAddr;
use std::time::Duration;

use mt_identity::control::Control;
use mt_identity::tls::control_peer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::keeper::{Answer, Keeper};
use crate::net::door::{Door, Guest, Handshake};
use crate::net::tls::{Secure, accept, explain_io};

/// Bytes that are read at once. A whole registration has about 3 KiB.
const READ_BYTES: usize = 4096;
/// Wait after an accept that failed because the system is short of something.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(200);
/// Most connections at a time, those that linger after an answer included.
const CONNECTIONS_MAX: usize = 256;

/// Serves machines until `stop` becomes true.
pub async fn serve(listener: TcpListener, keeper: Keeper, door: Door, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!("a connection to the control port ended by a fault of ours: {error}");
                }
                continue;
            }
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("cannot accept a connection to the control port: {error}");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        if connections.len() >= CONNECTIONS_MAX {
            continue;
        }
        match door.admit(peer.ip()) {
            Ok(guest) => {
                connections.spawn(converse(socket, peer, keeper.clone(), guest));
            }
            Err(error) => tracing::debug!(%peer, "control port: {error}"),
        }
    }
}

async fn converse(socket: TcpStream, peer: SocketAddr, keeper: Keeper, mut guest: Guest) {
    let handshake = guest.handshake();
    let ended = guest.within(conversation(socket, peer, keeper, handshake)).await;
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::info!(%peer, "control port: {error}"),
        Err(error) => tracing::info!(%peer, "control port: {error}"),
    }
}

async fn conversation(
    socket: TcpStream,
    peer: SocketAddr,
    keeper: Keeper,
    handshake: Handshake,
) -> Result<(), String> {
    let (config, credentials) = keeper.control_port();
    let mut stream = accept(socket, config).await.map_err(in_words)?;
    handshake.done();
    let Secure::Server(server) = &stream else {
        return Err("the connection is not a server's".to_owned());
    };
    let who = control_peer(server.get_ref().1, &credentials).map_err(|error| error.to_string())?;
    let mut control = Control::new(who, peer.ip());
    let mut bytes = vec![0; READ_BYTES];
    loop {
        let count = stream.read(&mut bytes).await.map_err(in_words)?;
        if count == 0 {
            return Err("the peer closed the connection before it was answered".to_owned());
        }
        let (keeper, came) = (keeper.clone(), bytes[..count].to_vec());
        // Curves, signatures and the state: nothing for the threads that serve sockets.
        let work = tokio::task::spawn_blocking(move || {
            let answer = keeper.receive(&mut control, &came, &peer.to_string());
            (control, answer)
        });
        let (back, answer) = work.await.map_err(|error| error.to_string())?;
        control = back;
        match answer {
            Answer::More => {}
            Answer::Send(bytes) => send(&mut stream, &bytes).await?,
            Answer::Last(bytes) => {
                if let Some(bytes) = bytes {
                    send(&mut stream, &bytes).await?;
                }
                return stream.shutdown().await.map_err(in_words);
            }
        }
    }
}

async fn send(stream: &mut Secure, bytes: &[u8]) -> Result<(), String> {
    stream.write_all(bytes).await.map_err(in_words)?;
    stream.flush().await.map_err(in_words)
}

fn in_words(error: std::io::Error) -> String {
    match explain_io(&error) {
        Some((text, _)) => text,
        None => error.to_string(),
    }
}
