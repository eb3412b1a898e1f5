//! The edge: a Unix socket on which exports are served until it is dropped.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::Export;
use super::connection::{Action, Connection, Errno, Offer};

/// Most connections of one socket. Each may hold one request of [`super::connection::REQUEST_BYTES_MAX`] twice.
const CONNECTIONS_MAX: usize = 8;

/// What is read from a client at once, bytes.
const READ_BYTES: usize = 256 * 1024;

/// Exports that are served. Dropping it closes the socket, ends its connections and removes its file.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    accept: JoinHandle<()>,
}

impl Server {
    /// Serves named exports on a new socket at `path` that only its owner may open.
    ///
    /// # Errors
    /// When the socket cannot be made: the path is too long, or something is there.
    pub fn start(path: &Path, exports: Vec<(String, Arc<dyn Export>)>) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        // Between binding and this nobody is told the path; the folder keeps others out as well.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let exports = Arc::new(exports);
        let accept = tokio::spawn(accept(listener, exports));
        Ok(Self {
            path: path.to_owned(),
            accept,
        })
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accept.abort();
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!("cannot remove the socket {}: {error}", self.path.display());
        }
    }
}

async fn accept(listener: UnixListener, exports: Arc<Vec<(String, Arc<dyn Export>)>>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Aborted with this task: connections live no longer than their server.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (Ok((stream, _)), Ok(place)) = (accepted, Arc::clone(&places).try_acquire_owned()) else {
            continue;
        };
        let exports = Arc::clone(&exports);
        connections.spawn(async move {
            if let Err(error) = converse(stream, &exports).await {
                tracing::debug!("an NBD client has gone: {error}");
            }
            drop(place);
        });
    }
}

async fn converse(mut stream: UnixStream, exports: &[(String, Arc<dyn Export>)]) -> io::Result<()> {
    let offers = exports
        .iter()
        .map(|(name, export)| Offer {
            name: name.clone(),
            size: export.size(),
            writable: export.writable(),
        })
        .collect();
    let (mut connection, greeting) = Connection::new(offers);
    stream.write_all(&greeting).await?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        for action in connection.push(&buffer[..count]) {
            match action {
                Action::Send(bytes) => stream.write_all(&bytes).await?,
                Action::Close => return stream.shutdown().await,
                Action::Read {
                    export,
                    cookie,
                    offset,
                    len,
                } => {
                    let from = Arc::clone(&exports[export].1);
                    let reply = blocking(cookie, move || {
                        let mut content = vec![0; len as usize];
                        from.read(offset, &mut content)?;
                        Ok(content)
                    })
                    .await;
                    stream.write_all(&reply).await?;
                }
                Action::Write {
                    export,
                    cookie,
                    offset,
                    content,
                } => {
                    let into = Arc::clone(&exports[export].1);
                    let reply = blocking(cookie, move || {
                        into.write(offset, &content)?;
                        Ok(Vec::new())
                    })
                    .await;
                    stream.write_all(&reply).await?;
                }
            }
        }
    }
}

/// Runs what waits for disks where it may wait, and makes the answer.
async fn blocking(cookie: u64, work: impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static) -> Vec<u8> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(content)) => Connection::done(cookie, Ok(&content)),
        Ok(Err(error)) => {
            tracing::warn!("an export cannot be read or written: {error}");
            let errno = match error.kind() {
                io::ErrorKind::StorageFull => Errno::NoSpace,
                _ => Errno::Io,
            };
            Connection::done(cookie, Err(errno))
        }
        Err(_) => Connection::done(cookie, Err(Errno::Io)),
    }
}
