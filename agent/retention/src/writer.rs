//! Large writes that are under way while their owner goes on gathering: handed to a few threads that all stores of the
//! process share, and waited for before anything relies on them.
//!
//! The threads and their buffers are bounded, so that sixteen stores take no more memory than one. An error of such a write
//! is kept for ever: every later flush fails with it, so that nothing can be acknowledged that was lost.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::storage::{ObjectName, StorageError, StorageOp};
use crate::types::BLOCK_SIZE;

/// Bytes of a buffer: a record of 1 MiB with its head.
pub(crate) const TRANSFER_BYTES: usize = (1 << 20) + (64 << 10);
/// Threads that write. More add nothing: the log is one sequential stream for each store.
const THREADS: usize = 3;
/// Buffers of all threads.
const BUFFERS: usize = 6;

/// Memory whose used part begins where direct I/O wants it, without `unsafe`: the spare block in front is skipped.
#[derive(Debug)]
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    pub(crate) fn new() -> Self {
        let bytes = vec![0; TRANSFER_BYTES + BLOCK_SIZE];
        let start = bytes.as_ptr().align_offset(BLOCK_SIZE);
        // The allocator may refuse to tell; then transfers fall back to what the kernel says about them.
        let start = if start <= BLOCK_SIZE { start } else { 0 };
        Self { bytes, start }
    }

    pub(crate) fn part(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + len]
    }
}

/// A write and whom it belongs to.
struct Job {
    file: Arc<File>,
    object: ObjectName,
    offset: u64,
    buffer: Aligned,
    len: usize,
    of: Arc<UnderWay>,
}

/// What is under way for one storage.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    count: usize,
    failed: Option<(ObjectName, u64, io::ErrorKind, String)>,
}

impl UnderWay {
    /// Waits until nothing is under way.
    pub(crate) fn wait(&self) {
        drop(self.settled());
    }

    /// Waits until nothing is under way.
    ///
    /// # Errors
    /// When any write has failed, now or ever before.
    pub(crate) fn settle(&self) -> Result<(), StorageError> {
        match &self.settled().failed {
            None => Ok(()),
            Some((object, offset, kind, text)) => Err(StorageError {
                op: StorageOp::Write,
                object: *object,
                offset: *offset,
                source: io::Error::new(*kind, text.clone()),
            }),
        }
    }

    fn settled(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        while state.count > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    fn done(&self, object: ObjectName, offset: u64, result: io::Result<()>) {
        let mut state = lock(&self.state);
        state.count -= 1;
        if let Err(error) = result {
            state
                .failed
                .get_or_insert_with(|| (object, offset, error.kind(), error.to_string()));
        }
        drop(state);
        self.changed.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The threads, and buffers that nobody uses.
struct Pool {
    jobs: Sender<Job>,
    free: Mutex<Free>,
    returned: Condvar,
}

#[derive(Default)]
struct Free {
    buffers: Vec<Aligned>,
    made: usize,
}

/// `None` where the system gives no thread: then writes are made by whoever asks for them.
fn pool() -> Option<&'static Pool> {
    static POOL: OnceLock<Option<Pool>> = OnceLock::new();
    POOL.get_or_init(|| {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..THREADS {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new()
                .name("log-writer".to_owned())
                .spawn(move || work(&queue))
                .ok()?;
        }
        Some(Pool {
            jobs,
            free: Mutex::default(),
            returned: Condvar::new(),
        })
    })
    .as_ref()
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let Ok(mut job) = lock(queue).recv() else { return };
        let result = job.file.write_all_at(job.buffer.part(job.len), job.offset);
        // The buffer first: whoever waits for the write may want it next.
        if let Some(pool) = pool() {
            pool.give_back(job.buffer);
        }
        job.of.done(job.object, job.offset, result);
    }
}

impl Pool {
    fn buffer(&self) -> Aligned {
        let mut free = lock(&self.free);
        loop {
            if let Some(buffer) = free.buffers.pop() {
                return buffer;
            }
            if free.made < BUFFERS {
                free.made += 1;
                return Aligned::new();
            }
            free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, buffer: Aligned) {
        lock(&self.free).buffers.push(buffer);
        self.returned.notify_one();
    }
}

/// Writes the parts, one after the other, at `offset`. What is large may still be under way when it returns.
///
/// # Errors
/// When a write that was not handed to a thread fails.
pub(crate) fn write(
    of: &Arc<UnderWay>,
    own: &mut Aligned,
    file: &Arc<File>,
    object: ObjectName,
    offset: u64,
    parts: &[&[u8]],
) -> io::Result<()> {
    let mut left: usize = parts.iter().map(|part| part.len()).sum();
    let mut parts = parts.iter().copied().filter(|part| !part.is_empty());
    let mut rest: &[u8] = &[];
    let mut at = offset;
    while left > 0 {
        let len = left.min(TRANSFER_BYTES);
        // A small write is made here: it would wait longer for a thread than for the disk.
        let pool = pool().filter(|_| len > TRANSFER_BYTES / 4);
        let mut taken = pool.map(Pool::buffer);
        let mut to = taken.as_mut().unwrap_or(own).part(len);
        while !to.is_empty() {
            if rest.is_empty() {
                rest = parts.next().unwrap_or_default();
            }
            let take = rest.len().min(to.len());
            let (now, later) = to.split_at_mut(take);
            now.copy_from_slice(&rest[..take]);
            (rest, to) = (&rest[take..], later);
        }
        match pool.zip(taken) {
            None => file.write_all_at(own.part(len), at)?,
            Some((pool, buffer)) => {
                lock(&of.state).count += 1;
                let job = Job {
                    file: Arc::clone(file),
                    object,
                    offset: at,
                    buffer,
                    len,
                    of: Arc::clone(of),
                };
                if pool.jobs.send(job).is_err() {
                    of.done(
                        object,
                        at,
                        Err(io::Error::other("the threads that write the log have ended")),
                    );
                }
            }
        }
        at += crate::codec::u64_of(len);
        left -= len;
    }
    Ok(())
}

const _: () = assert!(TRANSFER_BYTES.is_multiple_of(BLOCK_SIZE));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_any_size_arrive_and_an_error_is_never_forgotten() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let file = Arc::new(File::options().read(true).write(true).open(path.path()).unwrap());
        let of = Arc::new(UnderWay::default());
        let mut own = Aligned::new();
        let parts: Vec<Vec<u8>> = [
            (1, 4096),
            (2, 0),
            (3, 3 * TRANSFER_BYTES),
            (4, 4096),
            (5, 700 * 1024),
        ]
        .map(|(byte, len)| vec![byte; len])
        .to_vec();
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let object = ObjectName::Segment(1);
        for round in 0..4 {
            let offset = (round * 64) << 20;
            write(&of, &mut own, &file, object, offset, &slices).unwrap();
            of.settle().unwrap();
            let mut found = vec![0; parts.concat().len()];
            file.read_exact_at(&mut found, offset).unwrap();
            assert!(found == parts.concat());
        }
        let read_only = Arc::new(File::open(path.path()).unwrap());
        write(&of, &mut own, &read_only, object, 0, &slices[..1]).unwrap_err();
        // One transfer: of several under way at a time any may be the first to fail.
        write(&of, &mut own, &read_only, object, 8192, &[&parts[4]]).unwrap();
        of.wait();
        for _ in 0..2 {
            let error = of.settle().unwrap_err();
            assert_eq!(
                (error.op, error.object, error.offset),
                (StorageOp::Write, object, 8192)
            );
        }
    }
}
