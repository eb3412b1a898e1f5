//! Threads that may block on a disk, a few for each session.
//!
//! Each session has its own, so that a disk which hangs holds up its own pair and no other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::UnboundedSender;

/// A piece of work and where its answer goes.
type Job = Box<dyn FnOnce() + Send>;

/// A handful of threads with one queue. The queue is not bounded here: what is submitted is bounded by the buffers
/// that the work needs. When this is dropped the threads end after what is queued.
#[derive(Debug, Clone)]
pub struct DiskThreads {
    queue: Sender<Job>,
}

/// Why there are no threads.
#[derive(Debug, thiserror::Error)]
#[error("cannot start a thread for disk I/O")]
pub struct SpawnError(#[from] std::io::Error);

impl DiskThreads {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(name: &str, count: usize) -> Result<Self, SpawnError> {
        let (queue, jobs) = channel::<Job>();
        let jobs = Arc::new(Mutex::new(jobs));
        for index in 0..count {
            let jobs = Arc::clone(&jobs);
            std::thread::Builder::new()
                .name(format!("{name}-{index}"))
                .spawn(move || work(&jobs))?;
        }
        Ok(Self { queue })
    }

    /// Runs `job` on one of the threads and sends its answer. When the job panics, `on_panic` is sent instead: a
    /// session that waits for an answer which never comes would hold its disk for ever.
    pub fn submit<E: Send + 'static>(
        &self,
        answers: &UnboundedSender<E>,
        on_panic: impl FnOnce() -> E + Send + 'static,
        job: impl FnOnce() -> E + Send + 'static,
    ) {
        let answers = answers.clone();
        let job: Job = Box::new(move || {
            let answer = catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|_| on_panic());
            // Nobody waits any more when the session has ended.
            let _ = answers.send(answer);
        });
        // The threads live as long as the queue.
        let _ = self.queue.send(job);
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_job_is_answered_also_one_that_panics() {
        let threads = DiskThreads::start("test", 2).unwrap();
        let (answers, mut received) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..20 {
            threads.submit(
                &answers,
                move || -number,
                move || if number == 7 { panic!("as planned") } else { number },
            );
        }
        let mut sum = 0;
        for _ in 0..20 {
            sum += received.recv().await.unwrap();
        }
        assert_eq!(sum, (0..20).sum::<i32>() - 14);
    }
}
