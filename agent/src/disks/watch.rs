//! Tells when disks come, go or change.
//!
//! Three legs: udev's events (the kernel's where no udevd runs) say that something happened, the table of mounts says
//! that it changed (proc(5): `poll` of `/proc/self/mountinfo`), and a slow look finds what neither told, since the
//! netlink socket drops events when it is full and a device that is made read-only tells nobody. Either way the facts are
//! gathered anew and compared: an event is a reason to look, never a fact.
//!
//! Attaching sixty disks makes hundreds of events within seconds. They are let settle: the look comes when
//! it has been quiet for a moment, and at the latest after a bounded time, so that a disk that flaps for ever
//! cannot keep the others from being seen.

use std::io;
use std::time::{Duration, Instant};

use mt_blockdev::mounts::MountEvents;
use mt_blockdev::udev::{EventSource, Monitor};
use tokio::io::unix::AsyncFd;

use super::access::DiskAccess;
use super::facts::{Inventory, InventoryDiff};
use super::inventory::InventoryError;

/// How events settle and how often is looked without one.
#[derive(Debug, Clone, Copy)]
pub struct WatchTimes {
    /// Quiet time after the last event before looking.
    pub settle: Duration,
    /// Longest time from the first event to the look.
    pub settle_max: Duration,
    /// Time from one look to the next when there is no event.
    pub poll: Duration,
}

impl Default for WatchTimes {
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(300),
            settle_max: Duration::from_secs(3),
            poll: Duration::from_secs(60),
        }
    }
}

/// Why watching failed.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The facts could not be gathered.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// Events cannot be received.
    #[error("cannot receive events of disks")]
    Events(#[source] io::Error),
    /// The thread that gathers the facts ended without an answer.
    #[error("the look at the disks was cut off")]
    Interrupted,
}

/// When the next look is due. Pure: the time comes in.
#[derive(Debug, Clone)]
struct Schedule {
    times: WatchTimes,
    looked: Instant,
    /// First and last event since the last look.
    events: Option<(Instant, Instant)>,
}

impl Schedule {
    fn new(times: WatchTimes, now: Instant) -> Self {
        Self {
            times,
            looked: now,
            events: None,
        }
    }

    fn event(&mut self, now: Instant) {
        let first = self.events.map_or(now, |(first, _)| first);
        self.events = Some((first, now));
    }

    fn due(&self) -> Instant {
        let poll = self.looked + self.times.poll;
        match self.events {
            None => poll,
            Some((first, last)) => (last + self.times.settle)
                .min(first + self.times.settle_max)
                .min(poll),
        }
    }

    fn looked(&mut self, now: Instant) {
        self.looked = now;
        self.events = None;
    }
}

/// What a look found.
#[derive(Debug)]
pub struct Change {
    /// What is different from the look before.
    pub diff: InventoryDiff,
    /// All disks now.
    pub inventory: Inventory,
}

/// A running watch.
#[derive(Debug)]
pub struct Watch {
    monitor: AsyncFd<Monitor>,
    mounts: MountEvents,
    disks: DiskAccess,
    schedule: Schedule,
    last: Inventory,
}

impl Watch {
    /// Subscribes to events, then takes the first inventory: in this order, so that nothing falls between.
    ///
    /// To be called inside a tokio runtime with I/O and time enabled.
    ///
    /// # Errors
    /// [`WatchError`] when there are no events to be had or the machine cannot be read.
    pub async fn start(disks: DiskAccess, times: WatchTimes) -> Result<Self, WatchError> {
        let monitor = Monitor::open(EventSource::detect()).map_err(WatchError::Events)?;
        let monitor = monitor.into_async().map_err(WatchError::Events)?;
        let mounts = MountEvents::open().map_err(WatchError::Events)?;
        let schedule = Schedule::new(times, Instant::now());
        let last = look(disks.clone()).await?;
        Ok(Self {
            monitor,
            mounts,
            disks,
            schedule,
            last,
        })
    }

    /// The inventory of the last look.
    #[must_use]
    pub fn inventory(&self) -> &Inventory {
        &self.last
    }

    /// Where events come from.
    #[must_use]
    pub fn source(&self) -> EventSource {
        self.monitor.get_ref().source()
    }

    /// Waits until a look finds something different from the one before.
    ///
    /// Cancel safe: what was received before is remembered, and a look that was cut off is taken again.
    ///
    /// # Errors
    /// [`WatchError`]; the watch stays usable, and the next call tries again.
    pub async fn changed(&mut self) -> Result<Change, WatchError> {
        loop {
            let due = tokio::time::Instant::from_std(self.schedule.due());
            tokio::select! {
                ready = self.monitor.readable_mut() => {
                    let mut ready = ready.map_err(WatchError::Events)?;
                    let mut any = false;
                    while ready.get_inner_mut().next_event().is_some() {
                        any = true;
                    }
                    ready.clear_ready();
                    if any {
                        self.schedule.event(Instant::now());
                    }
                }
                changed = self.mounts.changed() => {
                    changed.map_err(WatchError::Events)?;
                    self.schedule.event(Instant::now());
                }
                () = tokio::time::sleep_until(due) => {
                    let inventory = look(self.disks.clone()).await;
                    self.schedule.looked(Instant::now());
                    let inventory = inventory?;
                    let diff = InventoryDiff::between(&self.last, &inventory);
                    self.last = inventory.clone();
                    if !diff.is_empty() {
                        return Ok(Change { diff, inventory });
                    }
                }
            }
        }
    }
}

/// Gathers the facts on a thread that may block: sixty disks take their time.
async fn look(disks: DiskAccess) -> Result<Inventory, WatchError> {
    let gathered = tokio::task::spawn_blocking(move || disks.gather()).await;
    Ok(gathered.map_err(|_| WatchError::Interrupted)??)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: WatchTimes = WatchTimes {
        settle: Duration::from_millis(300),
        settle_max: Duration::from_secs(3),
        poll: Duration::from_secs(60),
    };

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn without_events_a_look_is_due_after_the_poll_time() {
        let start = Instant::now();
        let mut schedule = Schedule::new(TIMES, start);
        assert_eq!(schedule.due(), start + ms(60_000));
        schedule.looked(start + ms(60_000));
        assert_eq!(schedule.due(), start + ms(120_000));
    }

    #[test]
    fn an_event_makes_a_look_due_after_the_quiet_time() {
        let start = Instant::now();
        let mut schedule = Schedule::new(TIMES, start);
        schedule.event(start + ms(1000));
        assert_eq!(schedule.due(), start + ms(1300));
        schedule.event(start + ms(1200));
        assert_eq!(
            schedule.due(),
            start + ms(1500),
            "each event starts the quiet time again"
        );
        schedule.looked(start + ms(1500));
        assert_eq!(schedule.due(), start + ms(61_500));
    }

    #[test]
    fn a_storm_cannot_put_the_look_off_for_ever() {
        let start = Instant::now();
        let mut schedule = Schedule::new(TIMES, start);
        for tick in 0..100 {
            schedule.event(start + ms(tick * 100));
        }
        assert_eq!(schedule.due(), start + ms(3000));
        let mut schedule = Schedule::new(TIMES, start);
        schedule.event(start + ms(59_900));
        assert_eq!(
            schedule.due(),
            start + ms(60_000),
            "an event does not put off the slow look"
        );
    }
}
