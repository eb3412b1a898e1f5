//! Machines whose target disk failed, or was missing when the agent started: opened anew when the disk is there again.
//!
//! An error of a disk stops the machine: what the disk took, and whether a flush that failed made any of it durable, nobody
//! knows. Nothing is lost by that, since all that is newer than the last flush that succeeded is in the log. Opening the machine
//! anew does the four steps of opening a disk, so that no other disk is taken for it, and writes all of that once more.
//!
//! Who gives a command tries it at once. Without anybody it is tried every few seconds, and ever more seldom where the disk
//! fails again and again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::MachineError;
use super::failover::Failovers;
use crate::failover::table::State;

/// Between the first two tries; it doubles with each.
const WAIT_MIN: Duration = Duration::from_secs(5);
/// Longest time between two tries.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// The machines that are to be opened anew. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Fallen {
    machines: Arc<Mutex<HashMap<String, Next>>>,
}

/// When the next try is.
#[derive(Debug)]
struct Next {
    at: Instant,
    wait: Duration,
    /// What the last try came to, so that it is said once.
    said: String,
}

impl Fallen {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Next>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This machine is to be opened anew.
    pub(super) fn note(&self, name: &str) {
        self.lock().entry(name.to_owned()).or_insert_with(|| Next {
            at: Instant::now(),
            wait: WAIT_MIN,
            said: String::new(),
        });
    }

    /// Names of those whose time has come; the time of each is put off.
    fn due(&self, now: Instant) -> Vec<String> {
        let mut machines = self.lock();
        let due = machines.iter_mut().filter(|(_, next)| next.at <= now);
        due.map(|(name, next)| {
            next.at = now + next.wait;
            next.wait = (next.wait * 2).min(WAIT_MAX);
            name.clone()
        })
        .collect()
    }

    /// Whether this was not said before.
    fn is_news(&self, name: &str, text: &str) -> bool {
        match self.lock().get_mut(name) {
            Some(next) if next.said != text => {
                text.clone_into(&mut next.said);
                true
            }
            _ => false,
        }
    }
}

impl Failovers {
    /// Lets go of a machine that a failure of a disk has stopped, so that it can be opened anew. Who calls it has the machine's
    /// job, or the machine would be let go of under somebody's hands.
    ///
    /// # Errors
    /// When somebody still holds it after 45 seconds.
    pub(super) fn revive(&self, name: &str) -> Result<(), MachineError> {
        let stopped = |machine: Arc<super::machine::Machine>| machine.is_stopped_by_disk();
        if !self.machines.get(name).is_some_and(stopped) {
            return Ok(());
        }
        self.fallen.note(name);
        // What is looked at is read from the disk that failed, and holds the machine.
        self.exports.end_all_of(name);
        self.machines.let_go(name)
    }

    /// Opens those machines anew whose disk failed, as far as they can be: their sources, and a roll that was under way, go on
    /// without anybody. Blocks on disks.
    pub fn revive_all(&self) {
        for machine in self.machines.all() {
            if machine.is_stopped_by_disk() {
                self.fallen.note(&machine.name);
            }
        }
        self.fallen.lock().retain(|name, _| {
            let record = self.machines.hub().state().machine(name);
            // A failover that failed is its operator's, who repeats it or takes it back.
            let replicates = record.is_ok_and(|record| record.failover == State::Replicating);
            let healthy = self.machines.get(name).is_some_and(|machine| {
                let inner = machine.lock();
                let in_step = |store: &super::machine::FileStore| store.applied() == store.committed();
                inner.failed.is_none() && inner.store.as_ref().is_none_or(in_step)
            });
            replicates && !healthy && self.machines.pairs_of(name).is_ok()
        });
        for name in self.fallen.due(Instant::now()) {
            let Some(_claim) = self.jobs.claim_aside(&name) else {
                continue;
            };
            match self.revive(&name).and_then(|()| self.machines.open(&name)) {
                Ok(_) => tracing::info!(machine = name, "opened anew, its target disks are there again"),
                Err(error) if self.fallen.is_news(&name, &error.to_string()) => {
                    tracing::warn!(machine = name, "cannot be opened anew: {error}");
                }
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_become_seldom_and_are_not_told_twice() {
        let fallen = Fallen::default();
        fallen.note("db01");
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..9 {
            assert_eq!(fallen.due(now), ["db01"]);
            let at = fallen.lock()["db01"].at;
            assert_eq!(fallen.due(at - Duration::from_millis(1)), [""; 0]);
            waits.push((at - now).as_secs());
            now = at;
            fallen.note("db01");
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert!(fallen.is_news("db01", "not attached"));
        assert!(!fallen.is_news("db01", "not attached"));
        assert!(fallen.is_news("db01", "has another size"));
        assert!(!fallen.is_news("db02", "not fallen"));
    }
}
