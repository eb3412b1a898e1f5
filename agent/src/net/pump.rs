//! Moves frames between a socket and a session.
//!
//! Two tasks a connection. The reader puts payloads straight into pooled, aligned buffers, from which they go to the
//! disk: one copy between socket and disk. It stops reading when no buffer is free, which is all the back-pressure
//! there is. The writer never copies a payload either; it sends it from the buffer it was read into.
//!
//! A session never waits for the writer: both directions could be full at once, and two sessions that wait for each
//! other would never end. What can be queued is bounded by the buffers instead.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mt_wire::limits::FRAME_HEADER_SIZE;
use mt_wire::{FrameHeader, Message, WireError, frame};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc::{Sender, UnboundedReceiver};
use tokio::time::{Instant, timeout};

use super::rate::TokenBucket;
use crate::io::buffers::{BufferPool, PooledBuf};

/// A peer that says nothing for this long is gone: three pings were due.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A side that has nothing to say pings this often.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);

/// How long a frame may take from its first byte to its last: a full one at 12 KiB a second.
const FRAME_TIME_MAX: Duration = Duration::from_secs(90);

/// Frames without payload are collected up to this many bytes before they are sent.
const BATCH_BYTES: usize = 32 * 1024;

/// The stream of the pair. Version 1 of the protocol opens one pair a connection.
const PAIR_STREAM: u16 = 1;

/// Bytes that crossed the socket, both directions, everything included.
#[derive(Debug, Default)]
pub struct WireBytes {
    /// Received.
    pub received: AtomicU64,
    /// Sent.
    pub sent: AtomicU64,
}

/// What arrives.
#[derive(Debug)]
pub struct Incoming {
    /// The message.
    pub message: Message,
    /// Its payload.
    pub payload: Option<PooledBuf>,
}

/// What is to be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// The message.
    pub message: Message,
    /// The buffer that holds its payload, and the pieces of it that are the payload.
    pub payload: Option<(Arc<PooledBuf>, Vec<Range<usize>>)>,
}

/// Why no more frames come.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The peer ended the connection.
    #[error("peer closed the connection{}", if *.inside_frame { " in the middle of a frame" } else { "" })]
    Closed {
        /// Whether part of a frame had arrived.
        inside_frame: bool,
    },
    /// Nothing came for [`SILENCE_MAX`], or a frame was not completed in time.
    #[error("peer was silent{}", if *.inside_frame { " in the middle of a frame" } else { "" })]
    Silent {
        /// Whether part of a frame had arrived.
        inside_frame: bool,
    },
    /// The connection failed.
    #[error("connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// What arrived is not the protocol.
    #[error("{0}")]
    Wire(#[from] WireError),
}

/// Reads frames until the connection ends; the last thing sent is why.
pub async fn read_frames<R: AsyncRead + Unpin>(
    socket: R,
    frames: Sender<Result<Incoming, PumpError>>,
    buffers: BufferPool,
    bytes: Arc<WireBytes>,
) {
    let mut socket = BufReader::with_capacity(64 * 1024, socket);
    let mut body = Vec::new();
    let mut sequence = 1;
    loop {
        let read = read_frame(&mut socket, &mut body, sequence, &buffers, &bytes).await;
        sequence += 1;
        let over = read.is_err();
        let gone = match read {
            Ok(None) => false,
            Ok(Some(incoming)) => frames.send(Ok(incoming)).await.is_err(),
            Err(error) => frames.send(Err(error)).await.is_err(),
        };
        if over || gone {
            return;
        }
    }
}

async fn read_frame<R: AsyncRead + Unpin>(
    socket: &mut R,
    body: &mut Vec<u8>,
    sequence: u64,
    buffers: &BufferPool,
    bytes: &WireBytes,
) -> Result<Option<Incoming>, PumpError> {
    let mut header = [0; FRAME_HEADER_SIZE];
    // The first byte tells an orderly end from a cut, and silence between frames from silence inside one.
    read_in(SILENCE_MAX, socket, &mut header[..1], false).await?;
    read_in(SILENCE_MAX, socket, &mut header[1..], true).await?;
    let header = FrameHeader::decode(&header, sequence)?;
    // Not to be taken for the pair's: what a later version opens there is another disk.
    if header.stream > PAIR_STREAM {
        return Err(PumpError::Wire(WireError::Unknown {
            field: "stream",
            found: u64::from(header.stream),
        }));
    }
    body.resize(header.body_len, 0);
    read_in(FRAME_TIME_MAX, socket, body, true).await?;
    let message = header.message(body)?;
    let mut payload = None;
    if header.payload_len > 0 {
        let mut buffer = buffers.take(header.payload_len).await;
        read_in(FRAME_TIME_MAX, socket, &mut buffer, true).await?;
        payload = Some(buffer);
    }
    let len = FRAME_HEADER_SIZE + header.body_len + header.payload_len;
    bytes.received.fetch_add(len as u64, Ordering::Relaxed);
    Ok(message.map(|message| Incoming { message, payload }))
}

async fn read_in<R: AsyncRead + Unpin>(
    limit: Duration,
    socket: &mut R,
    into: &mut [u8],
    inside_frame: bool,
) -> Result<(), PumpError> {
    match timeout(limit, socket.read_exact(into)).await {
        Err(_) => Err(PumpError::Silent { inside_frame }),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(PumpError::Closed { inside_frame })
        }
        Ok(Err(error)) => Err(PumpError::Io(error)),
        Ok(Ok(_)) => Ok(()),
    }
}

/// Sends frames until there are no more senders, then shuts the sending side down. `sent` is called after a payload
/// has left, so that its buffer can be used again.
///
/// # Errors
/// When the connection fails.
pub async fn write_frames<W: AsyncWrite + Unpin>(
    mut socket: W,
    mut frames: UnboundedReceiver<Outgoing>,
    bytes: Arc<WireBytes>,
    mut limit: Option<TokenBucket>,
    sent: impl Fn(),
) -> std::io::Result<()> {
    let started = Instant::now();
    let mut sequence = 1;
    let mut batch = Vec::with_capacity(BATCH_BYTES);
    loop {
        let next = match timeout(PING_INTERVAL, frames.recv()).await {
            Ok(Some(next)) => next,
            Ok(None) => break,
            Err(_) => Outgoing {
                message: Message::Ping { token: sequence },
                payload: None,
            },
        };
        let mut payload = append(&mut batch, next, &mut sequence);
        while payload.is_none() && batch.len() < BATCH_BYTES {
            let Ok(next) = frames.try_recv() else { break };
            payload = append(&mut batch, next, &mut sequence);
        }
        let mut slices = vec![batch.as_slice()];
        if let Some((buffer, pieces)) = &payload {
            slices.extend(pieces.iter().map(|piece| &buffer[piece.clone()]));
        }
        send_slices(&mut socket, &slices, limit.as_mut(), started, &bytes.sent).await?;
        batch.clear();
        if payload.take().is_some() {
            sent();
        }
    }
    socket.shutdown().await
}

type Payload = (Arc<PooledBuf>, Vec<Range<usize>>);

fn append(batch: &mut Vec<u8>, outgoing: Outgoing, sequence: &mut u64) -> Option<Payload> {
    batch.extend_from_slice(&frame::encode(&outgoing.message, PAIR_STREAM, *sequence));
    *sequence += 1;
    outgoing.payload
}

async fn send_slices<W: AsyncWrite + Unpin>(
    socket: &mut W,
    slices: &[&[u8]],
    limit: Option<&mut TokenBucket>,
    started: Instant,
    bytes: &AtomicU64,
) -> std::io::Result<()> {
    if let Some(bucket) = limit {
        let piece_len = bucket.piece().max(1);
        for piece in slices.iter().flat_map(|slice| slice.chunks(piece_len)) {
            let wait = bucket.take(piece.len(), started.elapsed());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            socket.write_all(piece).await?;
            bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        return Ok(());
    }
    let mut slices: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        let written = socket.write_vectored(rest).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        bytes.fetch_add(written as u64, Ordering::Relaxed);
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}
