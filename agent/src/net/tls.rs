//! Connections that may be TLS, and the bounds on a peer before it has shown who it is. The only file that knows
//! `tokio-rustls`; what is spoken and who is trusted comes from `mt-identity`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use mt_identity::limits::UNAUTHENTICATED_BYTES;
use mt_identity::tls::{explain, server_name};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf, split};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// A TCP connection of which only so many bytes are read as long as nobody has authenticated on it.
#[derive(Debug)]
pub struct Metered {
    socket: TcpStream,
    left: Option<usize>,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, buf))?;
        let count = buf.filled().len() - before;
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(count).ok_or_else(|| {
                let text = format!("more than {UNAUTHENTICATED_BYTES} bytes came before authentication");
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// Bytes that one call reads from a socket under TLS. rustls itself asks for 4 KiB at a time, which is four calls and four
/// attempts to decrypt for each record of 16 KiB.
const READ_BYTES: usize = 64 * 1024;

/// TLS on a metered connection.
pub type Secure = TlsStream<BufReader<Metered>>;

/// A connection to a peer.
#[derive(Debug)]
pub enum Stream {
    /// Without TLS: only in a laboratory, and only on loopback.
    Plain(TcpStream),
    /// With TLS.
    Secure(Box<Secure>),
}

/// The receiving half of a connection.
pub type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
/// The sending half of a connection.
pub type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

impl Stream {
    /// Both halves, for a task each.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Self::Plain(socket) => {
                let (read, write) = socket.into_split();
                (Box::new(read), Box::new(write))
            }
            Self::Secure(stream) => {
                let (read, write) = split(*stream);
                (Box::new(read), Box::new(write))
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Secure(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Secure(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Secure(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Secure(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}

/// Does the handshake of whoever connected. At most [`UNAUTHENTICATED_BYTES`] are read of him until [`trust`].
///
/// # Errors
/// When there is no handshake.
pub async fn accept(socket: TcpStream, config: Arc<ServerConfig>) -> io::Result<Secure> {
    let metered = Metered {
        socket,
        left: Some(UNAUTHENTICATED_BYTES),
    };
    TlsAcceptor::from(config)
        .accept(BufReader::with_capacity(READ_BYTES, metered))
        .await
        .map(TlsStream::Server)
}

/// Takes the bound away from a peer that has authenticated.
pub fn trust(stream: &mut Secure) {
    stream.get_mut().0.get_mut().left = None;
}

/// Does the handshake with a server.
///
/// # Errors
/// When there is no handshake; [`explain_io`] says why in words.
pub async fn connect(socket: TcpStream, config: Arc<ClientConfig>) -> io::Result<Secure> {
    let metered = Metered { socket, left: None };
    let socket = BufReader::with_capacity(READ_BYTES, metered);
    let connected = TlsConnector::from(config).connect(server_name(), socket).await;
    connected.map(TlsStream::Client)
}

/// What a failure of TLS says to people, with a hint; `None` when the connection below it failed.
pub fn explain_io(error: &io::Error) -> Option<(String, &'static str)> {
    error.get_ref()?.downcast_ref::<rustls::Error>().map(explain)
}
