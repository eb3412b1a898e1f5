//! Which points are kept: pure, from points and a time to decisions.
//!
//! Ages go by the time at which this machine received a point. A source cannot make its points look old, and a clock that
//! was set back only makes points look younger than they are: a point from the future has age 0 and is kept.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::storage::Storage;
use crate::store::Store;
use crate::types::{EpochNumber, Point};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
/// A segment that is live by less than this is copied together with others when space is needed.
const LIVE_PERCENT: u64 = 75;
/// The same while nobody waits for space.
pub const LIVE_PERCENT_IDLE: u64 = LIVE_PERCENT / 2;

/// What to do when space is short and only the newest point is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// Takes the last point off the offer and goes on replicating: there is nothing to roll back to until a new point is
    /// made, and status says so.
    GoOnWithoutRollback,
    /// Holds the source back.
    Stop,
}

/// Which points of a machine are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// All points are kept for so long, milliseconds.
    pub keep_all_ms: i64,
    /// Then the newest of each hour, up to this age.
    pub keep_hourly_ms: i64,
    /// Then the newest of each day, up to this age; older ones are dropped.
    pub keep_daily_ms: i64,
    /// No point younger than this is dropped, whoever asks and however full the store is: a source that was taken over must
    /// not be able to push out the points from before.
    pub minimum_age_ms: i64,
    /// When only the newest point is left.
    pub when_full: WhenFull,
}

impl Default for Policy {
    /// All for 2 hours, hourly for a day, daily for 30 days; nothing younger than an hour is dropped.
    fn default() -> Self {
        Self {
            keep_all_ms: 2 * HOUR_MS,
            keep_hourly_ms: DAY_MS,
            keep_daily_ms: 30 * DAY_MS,
            minimum_age_ms: HOUR_MS,
            when_full: WhenFull::GoOnWithoutRollback,
        }
    }
}

fn age(point: &Point, now_ms: i64) -> i64 {
    now_ms.saturating_sub(point.received_time_ms).max(0)
}

/// The points that this policy no longer keeps. Points are in the order of their epochs; the newest, pinned ones and those
/// younger than the minimum age are never among them.
pub fn to_thin<'a>(
    points: impl DoubleEndedIterator<Item = &'a Point>,
    now_ms: i64,
    policy: &Policy,
) -> Vec<EpochNumber> {
    let mut taken: BTreeSet<(i64, i64)> = BTreeSet::new();
    let mut dropped = Vec::new();
    for (back, point) in points.rev().enumerate() {
        let age = age(point, now_ms);
        let slot = |length: i64| (length, point.received_time_ms.div_euclid(length));
        let kept = if age <= policy.keep_all_ms {
            // It stands for its hour and day too, so that no second one is kept beside it.
            taken.insert(slot(HOUR_MS));
            taken.insert(slot(DAY_MS));
            true
        } else if age <= policy.keep_hourly_ms {
            taken.insert(slot(DAY_MS));
            taken.insert(slot(HOUR_MS))
        } else if age <= policy.keep_daily_ms {
            taken.insert(slot(DAY_MS))
        } else {
            false
        };
        if !kept && back > 0 && !point.pinned && age >= policy.minimum_age_ms {
            dropped.push(point.epoch);
        }
    }
    dropped.reverse();
    dropped
}

/// Why an operator may not delete a point now, and what to do instead; `None` when he may.
#[must_use]
pub fn refusal_to_delete(
    point: &Point,
    is_newest: bool,
    now_ms: i64,
    policy: &Policy,
) -> Option<(String, &'static str)> {
    let age = age(point, now_ms);
    if point.pinned {
        let why = format!("recovery point {} is pinned", point.epoch);
        Some((why, "\"mt-agent points pin --release\" lets go of it"))
    } else if is_newest {
        let why = format!("recovery point {} is the newest", point.epoch);
        Some((why, "it can be deleted when there is a newer one"))
    } else if age < policy.minimum_age_ms {
        let why = format!(
            "recovery point {} is {} s old, and none younger than {} s is deleted",
            point.epoch,
            age / 1000,
            policy.minimum_age_ms / 1000
        );
        Some((
            why,
            "wait, or lower the age: \"mt-agent policy MACHINE --minimum-age TIME\"",
        ))
    } else {
        None
    }
}

/// What can be done about a full store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomDecision {
    /// Drop this point, the oldest that may be.
    Drop(EpochNumber),
    /// Take the newest point, the only one that is left, off the offer.
    GoOnWithoutRollback(EpochNumber),
    /// Nothing may be dropped: hold the source back.
    Stop,
}

/// Decides what makes room.
pub fn to_make_room<'a>(
    points: impl DoubleEndedIterator<Item = &'a Point>,
    now_ms: i64,
    policy: &Policy,
) -> RoomDecision {
    let points: Vec<&Point> = points.collect();
    let may_go = |point: &&&Point| !point.pinned && age(point, now_ms) >= policy.minimum_age_ms;
    let Some((newest, older)) = points.split_last() else {
        return RoomDecision::Stop;
    };
    if let Some(oldest) = older.iter().find(may_go) {
        return RoomDecision::Drop(oldest.epoch);
    }
    let only_the_newest = older.is_empty() && !newest.pinned;
    if only_the_newest && policy.when_full == WhenFull::GoOnWithoutRollback {
        RoomDecision::GoOnWithoutRollback(newest.epoch)
    } else {
        RoomDecision::Stop
    }
}

/// How full a store is, in the words of its alarms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fullness {
    /// Under 80 %.
    Normal,
    /// From 80 %.
    Warning,
    /// From 95 %.
    Alarm,
}

/// How full a store is; one without a limit is never full.
#[must_use]
pub fn fullness(used: u64, capacity: u64) -> Fullness {
    let percent = u128::from(used) * 100 / u128::from(capacity.max(1));
    match percent {
        _ if capacity == 0 => Fullness::Normal,
        95.. => Fullness::Alarm,
        80.. => Fullness::Warning,
        _ => Fullness::Normal,
    }
}

/// Seconds until a store is full at the rate of the last `over_ms`; `None` when it does not grow.
#[must_use]
pub fn seconds_to_full(used: u64, capacity: u64, grown: u64, over_ms: u64) -> Option<u64> {
    if grown == 0 || capacity == 0 {
        return None;
    }
    let left = u128::from(capacity.saturating_sub(used));
    let seconds = left * u128::from(over_ms) / u128::from(grown) / 1000;
    Some(u64::try_from(seconds).unwrap_or(u64::MAX))
}

/// What [`Store::make_room`] came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoomMade {
    /// Points that were dropped for it.
    pub dropped: Vec<EpochNumber>,
    /// Bytes that came back.
    pub freed: u64,
    /// The last point was taken off the offer: until the next one there is nothing to roll back to.
    pub without_rollback: bool,
    /// Nothing more may be dropped.
    pub stopped: bool,
}

/// What one step of making room came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomStep {
    /// There is room: the call that found the store full may be repeated.
    Room,
    /// Go on: so many bytes came back.
    Freed(u64),
    /// Go on: this point was taken off the offer.
    Dropped(EpochNumber),
    /// Nothing more may be dropped.
    Stopped,
}

impl<S: Storage> Store<S> {
    /// Drops what the policy no longer keeps, and gets its space back.
    ///
    /// # Errors
    /// When the store fails.
    pub fn thin(&mut self, now_ms: i64, policy: &Policy) -> Result<Vec<EpochNumber>, StoreError> {
        let dropped = self.thin_points(now_ms, policy)?;
        self.reclaim(LIVE_PERCENT_IDLE)?;
        Ok(dropped)
    }

    /// Takes what the policy no longer keeps off the offer. Its space comes back with [`Store::reclaim_step`].
    ///
    /// # Errors
    /// When the store fails.
    pub fn thin_points(&mut self, now_ms: i64, policy: &Policy) -> Result<Vec<EpochNumber>, StoreError> {
        let mut dropped = to_thin(self.points(), now_ms, policy);
        dropped.retain(|epoch| !self.is_needed(*epoch));
        self.drop_points(&dropped)?;
        Ok(dropped)
    }

    /// Makes room in a store that said [`StoreError::Full`]: first by copying sparse segments together, then by dropping
    /// points, oldest first, one after the other until something came back. The call that found the store full may be
    /// repeated afterwards, unless [`RoomMade::stopped`].
    ///
    /// # Errors
    /// When the store fails.
    pub fn make_room(&mut self, now_ms: i64, policy: &Policy) -> Result<RoomMade, StoreError> {
        let mut made = RoomMade::default();
        self.begin_room();
        loop {
            match self.make_room_step(now_ms, policy)? {
                RoomStep::Freed(bytes) => made.freed += bytes,
                RoomStep::Dropped(epoch) => made.dropped.push(epoch),
                step @ (RoomStep::Room | RoomStep::Stopped) => {
                    made.stopped = step == RoomStep::Stopped;
                    made.without_rollback = self.points().next().is_none();
                    return Ok(made);
                }
            }
        }
    }

    /// Begins to make room in steps: see [`Store::make_room_step`].
    pub fn begin_room(&mut self) {
        self.examined.clear();
    }

    /// One bounded step of [`Store::make_room`]: between two of them everything else may happen.
    ///
    /// # Errors
    /// When the store fails.
    pub fn make_room_step(&mut self, now_ms: i64, policy: &Policy) -> Result<RoomStep, StoreError> {
        if self.log.has_some_room()? {
            return Ok(RoomStep::Room);
        }
        let step = self.reclaim_step(LIVE_PERCENT)?;
        if !step.complete {
            return Ok(RoomStep::Freed(step.freed));
        }
        // What is in use stays as if it were pinned; the next one goes instead.
        let points: Vec<Point> = self
            .points()
            .map(|point| Point {
                pinned: point.pinned || self.is_needed(point.epoch),
                ..point.clone()
            })
            .collect();
        match to_make_room(points.iter(), now_ms, policy) {
            RoomDecision::Drop(epoch) | RoomDecision::GoOnWithoutRollback(epoch) => {
                self.drop_points(&[epoch])?;
                Ok(RoomStep::Dropped(epoch))
            }
            RoomDecision::Stop => Ok(RoomStep::Stopped),
        }
    }

    /// Deletes a point on an operator's word. Its space comes back with [`Store::reclaim_step`].
    ///
    /// # Errors
    /// When the policy, a pin or a roll holds it, or the store fails.
    pub fn delete_point(
        &mut self,
        epoch: EpochNumber,
        now_ms: i64,
        policy: &Policy,
    ) -> Result<(), StoreError> {
        let is_newest = self
            .points()
            .next_back()
            .is_some_and(|newest| newest.epoch == epoch);
        if let Some((why, hint)) = refusal_to_delete(self.point(epoch)?, is_newest, now_ms, policy) {
            return Err(StoreError::refused(why, hint));
        }
        self.drop_points(&[epoch])
    }

    fn is_needed(&self, epoch: EpochNumber) -> bool {
        self.is_held(epoch) || self.open.as_ref().is_some_and(|open| open.needs(epoch))
    }
}

#[cfg(test)]
mod tests;
