//! A target disk as the retention store sees it.

use std::io;
use std::sync::Arc;

use mt_blockdev::buffer::AlignedBuf;
use mt_blockdev::device::{BlockDevice, DeviceError};
use mt_retention::TargetDisk;

use crate::disks::open::OpenDisk;
use crate::model::PairId;

/// Requests that are under way at once.
const IN_FLIGHT: usize = 16;

/// Pieces for which a thread of their own does not pay.
const PIECES_MIN: usize = 8;

/// Longest run of neighbours that is written with one request, bytes.
const RUN_BYTES_MAX: usize = 64 << 10;

/// One open disk of a machine.
#[derive(Debug, Clone)]
pub struct MachineDisk {
    /// The pair.
    pub pair: PairId,
    /// Name of the protected disk.
    pub name: String,
    /// SCSI ID of the target disk.
    pub scsi_id: String,
    /// Size of the protected disk, bytes. The target disk may be larger; what is behind is never touched.
    pub size: u64,
    /// Logical block size, bytes.
    pub logical_block_size: u32,
    /// The disk, held exclusively.
    pub disk: Arc<OpenDisk>,
}

impl MachineDisk {
    /// The open device.
    pub fn device(&self) -> &BlockDevice {
        &self.disk.device
    }
}

impl TargetDisk for MachineDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.device().read_exact_at(buf, offset).map_err(told)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.device().write_all_at(data, offset).map_err(told)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.device().zero_range(offset, len).map(drop).map_err(told)
    }

    fn flush(&self) -> io::Result<()> {
        self.device().flush().map_err(told)
    }

    fn write_many(&self, pieces: &[(u64, &[u8])]) -> io::Result<()> {
        in_parallel(pieces.len(), |take| self.write_runs(&pieces[take]))
    }

    fn read_many(&self, pieces: &mut [(u64, &mut [u8])]) -> io::Result<()> {
        let share = share(pieces.len());
        if share >= pieces.len() {
            return pieces
                .iter_mut()
                .try_for_each(|(offset, buf)| self.read(*offset, buf));
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = pieces
                .chunks_mut(share)
                .map(|own| {
                    scope.spawn(|| {
                        own.iter_mut()
                            .try_for_each(|(offset, buf)| self.read(*offset, buf))
                    })
                })
                .collect();
            threads.into_iter().try_for_each(joined)
        })
    }
}

impl MachineDisk {
    /// Writes pieces, ascending; neighbours in one piece.
    fn write_runs(&self, pieces: &[(u64, &[u8])]) -> io::Result<()> {
        let mut buffer: Option<AlignedBuf> = None;
        let mut at = 0;
        while let Some((start, first)) = pieces.get(at) {
            let mut len = first.len();
            let mut next = at + 1;
            while let Some((offset, piece)) = pieces.get(next)
                && *offset == start + len as u64
                && len + piece.len() <= RUN_BYTES_MAX
            {
                len += piece.len();
                next += 1;
            }
            if len > RUN_BYTES_MAX {
                self.write(*start, first)?;
            } else {
                let buffer = buffer.get_or_insert_with(|| AlignedBuf::zeroed(RUN_BYTES_MAX));
                let mut filled = 0;
                for (_, piece) in &pieces[at..next] {
                    buffer[filled..filled + piece.len()].copy_from_slice(piece);
                    filled += piece.len();
                }
                self.write(*start, &buffer[..filled])?;
            }
            at = next;
        }
        Ok(())
    }
}

/// How many pieces each thread is given.
fn share(pieces: usize) -> usize {
    pieces.div_ceil(IN_FLIGHT).max(PIECES_MIN)
}

/// Runs `work` over shares of `0..pieces` at once: scattered requests wait for the disk, and it likes many.
fn in_parallel(
    pieces: usize,
    work: impl Fn(std::ops::Range<usize>) -> io::Result<()> + Sync,
) -> io::Result<()> {
    let share = share(pieces);
    if share >= pieces {
        return work(0..pieces);
    }
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..pieces)
            .step_by(share)
            .map(|from| scope.spawn(move || work(from..pieces.min(from + share))))
            .collect();
        threads.into_iter().try_for_each(joined)
    })
}

fn joined(thread: std::thread::ScopedJoinHandle<'_, io::Result<()>>) -> io::Result<()> {
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("a thread that wrote or read ended unexpectedly")))
}

fn told(error: DeviceError) -> io::Error {
    io::Error::other(format!("{error}: {}", error.io_error()))
}
