//! What strangers may cost: tries, connections, bytes and time before they have shown who they are.
//!
//! Time is a [`Duration`] on any clock that only goes forward; the edges pass it in. An address is an IPv4 address or
//! the /64 of an IPv6 address, since one host has all of those.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Failures a minute from one address.
pub const FAILURES_PER_ADDRESS: usize = 5;
/// Failures a minute from all addresses together.
pub const FAILURES_IN_ALL: usize = 30;
/// Of those, how many may come from addresses that have failed before. The rest is kept for addresses that have not, so
/// that a few that try for ever do not keep others out.
pub const FAILURES_OF_KNOWN: usize = 20;
/// Longest wait after failures, however many there were: nobody is ever locked out for good.
pub const WAIT_MAX: Duration = Duration::from_secs(60);
/// When an address that has been quiet is forgotten. One that keeps asking is not: it would pass for one that has not
/// failed before.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(15 * 60);
/// Most addresses that are remembered; the one that was quiet for longest gives way.
pub const ADDRESSES_MAX: usize = 4096;

/// Connections at a time that have not shown who they are.
pub const CONNECTIONS_MAX: usize = 64;
/// Of those, how many from one address.
pub const CONNECTIONS_PER_ADDRESS: usize = 8;
/// How long a connection may be without its TLS handshake before others of its address take its place, when that has all of its
/// connections. A handshake takes some round trips and no human.
pub const SILENT_TIME: Duration = Duration::from_secs(1);
/// How long such a connection may take, TLS and registration together but for the work of our own side.
pub const UNAUTHENTICATED_TIME: Duration = Duration::from_secs(10);
/// How many bytes such a connection may send, TLS included.
pub const UNAUTHENTICATED_BYTES: usize = 16 * 1024;

/// How long machines may register after the appliance was made or the operator opened it.
pub const REGISTRATION_OPEN_FOR: SignedDuration = SignedDuration::from_hours(24);

const MINUTE: Duration = Duration::from_secs(60);

/// What counts as one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            v4 => v4,
        })
    }
}

/// Too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many failed tries, the next is possible in {} s", self.seconds())]
pub struct Wait {
    /// For how long to wait.
    pub left: Duration,
}

impl Wait {
    /// Whole seconds, rounded up, as [`crate::registration::Refusal`] carries them.
    pub fn seconds(self) -> u16 {
        let up = u64::from(self.left.subsec_nanos() > 0);
        u16::try_from(self.left.as_secs() + up).unwrap_or(u16::MAX)
    }
}

/// One try under way. It counts as failed from the start, so that tries in parallel are no way around the limit; give
/// it to [`RateLimiter::succeeded`] when the passphrase was right, drop it otherwise.
#[derive(Debug)]
#[must_use = "a try that succeeded is told to the limiter"]
pub struct Attempt {
    origin: Origin,
    at: Duration,
}

#[derive(Debug, Default)]
struct Tries {
    /// Failures within the last minute.
    recent: VecDeque<Duration>,
    /// Failures one after the other.
    streak: u32,
    /// The last of them.
    last: Duration,
    /// When it last asked, whatever the answer.
    asked: Duration,
}

/// Limits guesses at the passphrase.
#[derive(Debug, Default)]
pub struct RateLimiter {
    origins: HashMap<Origin, Tries>,
    recent: VecDeque<Duration>,
    /// When those that were quiet were last looked for.
    tidied: Duration,
}

impl RateLimiter {
    /// Begins a try; asked when the first message of a registration is complete, before it is answered.
    ///
    /// # Errors
    /// When it is too early. Asking costs nothing: it makes no wait longer.
    pub fn begin(&mut self, address: IpAddr, now: Duration) -> Result<Attempt, Wait> {
        let origin = Origin::from(address);
        self.forget(now);
        let mut ready = Duration::ZERO;
        let mut known = false;
        if let Some(tries) = self.origins.get_mut(&origin) {
            tries.asked = now;
            drop_before(&mut tries.recent, now);
            known = tries.streak > 0;
            // 1, 2, 4, ... seconds after as many failures.
            let doublings = tries.streak.saturating_sub(1).min(6);
            let delay = Duration::from_secs(1 << doublings).min(WAIT_MAX);
            if known {
                ready = ready.max(tries.last + delay);
            }
            ready = ready.max(frees_at(&tries.recent, FAILURES_PER_ADDRESS));
        }
        let in_all = if known { FAILURES_OF_KNOWN } else { FAILURES_IN_ALL };
        ready = ready.max(frees_at(&self.recent, in_all));
        if let Some(left) = ready.checked_sub(now).filter(|left| !left.is_zero()) {
            return Err(Wait { left });
        }
        self.make_room(origin);
        let tries = self.origins.entry(origin).or_default();
        tries.recent.push_back(now);
        tries.streak = tries.streak.saturating_add(1);
        tries.last = now;
        tries.asked = now;
        self.recent.push_back(now);
        Ok(Attempt { origin, at: now })
    }

    /// The passphrase was right: the try does not count, and the address begins anew.
    pub fn succeeded(&mut self, attempt: Attempt) {
        remove_one(&mut self.recent, attempt.at);
        if let Some(tries) = self.origins.get_mut(&attempt.origin) {
            remove_one(&mut tries.recent, attempt.at);
            tries.streak = 0;
        }
    }

    /// How many addresses are remembered.
    pub fn remembered(&self) -> usize {
        self.origins.len()
    }

    fn make_room(&mut self, newcomer: Origin) {
        if self.origins.len() < ADDRESSES_MAX || self.origins.contains_key(&newcomer) {
            return;
        }
        let quietest = self.origins.iter().min_by_key(|(_, tries)| tries.asked);
        if let Some(origin) = quietest.map(|(origin, _)| *origin) {
            self.origins.remove(&origin);
        }
    }

    fn forget(&mut self, now: Duration) {
        drop_before(&mut self.recent, now);
        if now.saturating_sub(self.tidied) >= MINUTE {
            self.tidied = now;
            self.origins
                .retain(|_, tries| now.saturating_sub(tries.asked) < FORGOTTEN_AFTER);
        }
    }
}

/// When so many failures a minute allow another.
fn frees_at(recent: &VecDeque<Duration>, max: usize) -> Duration {
    match recent.len().checked_sub(max) {
        Some(index) => recent
            .get(index)
            .map_or(Duration::ZERO, |oldest| *oldest + MINUTE),
        None => Duration::ZERO,
    }
}

fn drop_before(recent: &mut VecDeque<Duration>, now: Duration) {
    while recent.front().is_some_and(|at| *at + MINUTE <= now) {
        recent.pop_front();
    }
}

fn remove_one(recent: &mut VecDeque<Duration>, at: Duration) {
    if let Some(index) = recent.iter().position(|entry| *entry == at) {
        recent.remove(index);
    }
}

/// A connection that has not shown who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u64);

/// Why such a connection is not taken, or must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unwelcome {
    /// Its address has as many as it may.
    #[error("the address has {CONNECTIONS_PER_ADDRESS} connections that have not authenticated")]
    TooManyFromAddress,
    /// It sent more than it may.
    #[error("more than {UNAUTHENTICATED_BYTES} bytes came before authentication")]
    TooManyBytes,
}

/// A connection was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// Its place.
    pub slot: Slot,
    /// The connection to close for it, when all places were taken.
    pub evicted: Option<Slot>,
}

#[derive(Debug)]
struct Stranger {
    origin: Origin,
    came: Duration,
    deadline: Duration,
    bytes: usize,
    shaken: bool,
}

/// Bounds connections that have not shown who they are: number, time and bytes. When all places are taken the oldest
/// of the address that has most makes room, so that idle connections cannot keep others out. When an address has all of its
/// own, the oldest that is silent makes room, so that they cannot keep out others behind the same address either.
#[derive(Debug, Default)]
pub struct Admission {
    strangers: BTreeMap<Slot, Stranger>,
    next: u64,
}

impl Admission {
    /// A connection came.
    ///
    /// # Errors
    /// When its address has too many already.
    pub fn admit(&mut self, address: IpAddr, now: Duration) -> Result<Admitted, Unwelcome> {
        let origin = Origin::from(address);
        let mut counts: HashMap<Origin, usize> = HashMap::new();
        for stranger in self.strangers.values() {
            *counts.entry(stranger.origin).or_default() += 1;
        }
        let of_address = counts.get(&origin).copied().unwrap_or(0);
        let mut evicted = None;
        if of_address >= CONNECTIONS_PER_ADDRESS {
            let silent = |stranger: &Stranger| {
                stranger.origin == origin && !stranger.shaken && stranger.came + SILENT_TIME <= now
            };
            evicted = self.oldest(silent);
            if evicted.is_none() {
                return Err(Unwelcome::TooManyFromAddress);
            }
        } else if self.strangers.len() >= CONNECTIONS_MAX {
            let most = counts.values().copied().max();
            evicted = self.oldest(|stranger| counts.get(&stranger.origin).copied() == most);
        }
        if let Some(slot) = evicted {
            self.strangers.remove(&slot);
        }
        let slot = Slot(self.next);
        self.next += 1;
        let stranger = Stranger {
            origin,
            came: now,
            deadline: now + UNAUTHENTICATED_TIME,
            bytes: 0,
            shaken: false,
        };
        self.strangers.insert(slot, stranger);
        Ok(Admitted { slot, evicted })
    }

    /// The one that came first of those that are meant.
    fn oldest(&self, meant: impl Fn(&Stranger) -> bool) -> Option<Slot> {
        // Slots are in the order of arrival.
        let found = self.strangers.iter().find(|(_, stranger)| meant(stranger));
        found.map(|(slot, _)| *slot)
    }

    /// Its TLS handshake is over: it is at work, and makes no room for others of its address.
    pub fn shaken(&mut self, slot: Slot) {
        if let Some(stranger) = self.strangers.get_mut(&slot) {
            stranger.shaken = true;
        }
    }

    /// Bytes came on it. For a connection that has authenticated, was evicted or is gone there is nothing to count.
    ///
    /// # Errors
    /// When they are more than it may send; it is to be closed.
    pub fn received(&mut self, slot: Slot, bytes: usize) -> Result<(), Unwelcome> {
        if let Some(stranger) = self.strangers.get_mut(&slot) {
            stranger.bytes = stranger.bytes.saturating_add(bytes);
            if stranger.bytes > UNAUTHENTICATED_BYTES {
                return Err(Unwelcome::TooManyBytes);
            }
        }
        Ok(())
    }

    /// It has authenticated, or it is gone.
    pub fn release(&mut self, slot: Slot) {
        self.strangers.remove(&slot);
    }

    /// When the next one's time is over.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.strangers.values().map(|stranger| stranger.deadline).min()
    }

    /// Those whose time is over; they are to be closed and are no longer counted.
    pub fn take_overdue(&mut self, now: Duration) -> Vec<Slot> {
        let overdue: Vec<_> = self
            .strangers
            .iter()
            .filter(|(_, stranger)| stranger.deadline <= now)
            .map(|(slot, _)| *slot)
            .collect();
        for slot in &overdue {
            self.strangers.remove(slot);
        }
        overdue
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.strangers.len()
    }
}

/// The time in which machines may register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    until: Option<Timestamp>,
}

impl Window {
    /// Open from now on, for the usual time or for another.
    pub fn open(now: Timestamp, time: Option<SignedDuration>) -> Self {
        let time = time.unwrap_or(REGISTRATION_OPEN_FOR);
        Self {
            until: Some(now.checked_add(time).unwrap_or(Timestamp::MAX)),
        }
    }

    /// Closed.
    pub fn closed() -> Self {
        Self::default()
    }

    /// Open until then; for what the state holds.
    pub fn until(until: Option<Timestamp>) -> Self {
        Self { until }
    }

    /// Until when it is open; `None` when it was closed.
    pub fn end(self) -> Option<Timestamp> {
        self.until
    }

    /// Whether machines may register now.
    pub fn is_open(self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests;
