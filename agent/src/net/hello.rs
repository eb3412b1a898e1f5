//! The exchange of the frozen hello messages on a connection.

use std::time::Duration;

use mt_identity::Code;
use mt_wire::limits::HELLO_SIZE;
use mt_wire::version::{VERSION_MAX, VERSION_MIN, negotiate};
use mt_wire::{ErrorCode, Hello, HelloReply, Role, WireError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// How long a peer may take for its hello. Nothing is parsed and no memory is held before it.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The peer said nothing, or not enough, in [`HELLO_TIMEOUT`].
    #[error("peer sent no complete hello within {} s", HELLO_TIMEOUT.as_secs())]
    Silent,
    /// The peer went away.
    #[error("peer closed the connection during the hello")]
    Closed,
    /// The connection failed.
    #[error("connection failed during the hello: {0}")]
    Io(std::io::Error),
    /// What the peer sent is not a hello.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// No protocol version in common.
    #[error(
        "peer offers protocol versions {peer_min} to {peer_max}, this agent speaks {VERSION_MIN} to {VERSION_MAX}; session \
         refused before any write"
    )]
    Version {
        /// Oldest version of the peer.
        peer_min: u16,
        /// Newest version of the peer.
        peer_max: u16,
    },
    /// The peer refused.
    #[error("peer refused the session: {}", words(*.0))]
    Refused(ErrorCode),
    /// The peer accepted something that was not offered.
    #[error("peer chose protocol version {0}, which was not offered")]
    ChoseUnknown(u16),
    /// The peer is not what it should be.
    #[error("peer is a {0:?}, not a source or relay")]
    Role(Role),
}

/// The words for a code that comes without a text: those about who the peer is are the same on every port.
fn words(code: ErrorCode) -> String {
    match Code::from_number(code.number()) {
        Code::Other(_) => code.word().to_owned(),
        known => known.to_string(),
    }
}

/// Greets a target, waits for its answer, and gives the version that both speak.
///
/// # Errors
/// When the target cannot be understood, refuses, or speaks no common version.
pub async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    session_id: [u8; 16],
) -> Result<u16, HelloError> {
    let hello = Hello {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        role: Role::Source,
        features: 0,
        session_id,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    stream.write_all(&hello.encode()).await.map_err(HelloError::Io)?;
    let reply = HelloReply::decode(&read_hello(stream).await?)?;
    match reply.outcome {
        Ok(version) if (VERSION_MIN..=VERSION_MAX).contains(&version) => Ok(version),
        Ok(version) => Err(HelloError::ChoseUnknown(version)),
        Err(ErrorCode::VersionUnsupported) => Err(HelloError::Version {
            peer_min: reply.version_min,
            peer_max: reply.version_max,
        }),
        Err(code) => Err(HelloError::Refused(code)),
    }
}

/// Waits for the hello of whoever connected, answers it, and gives the version that both speak. With `refuse` it is answered by that code.
///
/// # Errors
/// When the peer cannot be understood or was refused; it has been told where it speaks the protocol.
pub async fn welcome<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    refuse: Option<ErrorCode>,
) -> Result<(Hello, u16), HelloError> {
    let hello = Hello::decode(&read_hello(stream).await?)?;
    let version = negotiate(hello.version_min, hello.version_max);
    let outcome = match (refuse, version) {
        (Some(code), _) => Err(code),
        (None, Some(version)) => Ok(version.number()),
        (None, None) => Err(ErrorCode::VersionUnsupported),
    };
    let reply = HelloReply {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        outcome,
        features: 0,
        session_id: hello.session_id,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    stream.write_all(&reply.encode()).await.map_err(HelloError::Io)?;
    match outcome {
        Ok(_) if hello.role == Role::Target => Err(HelloError::Role(hello.role)),
        Ok(version) => Ok((hello, version)),
        Err(ErrorCode::VersionUnsupported) => Err(HelloError::Version {
            peer_min: hello.version_min,
            peer_max: hello.version_max,
        }),
        Err(code) => Err(HelloError::Refused(code)),
    }
}

async fn read_hello<S: AsyncRead + Unpin>(stream: &mut S) -> Result<[u8; HELLO_SIZE], HelloError> {
    let mut bytes = [0; HELLO_SIZE];
    match timeout(HELLO_TIMEOUT, stream.read_exact(&mut bytes)).await {
        Err(_) => Err(HelloError::Silent),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(HelloError::Closed),
        Ok(Err(error)) => Err(HelloError::Io(error)),
        Ok(Ok(_)) => Ok(bytes),
    }
}
