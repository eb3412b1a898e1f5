//! Recovery points: which are on offer, pinned, held, damaged, and how they go.

use std::collections::BTreeSet;

use super::Store;
use crate::error::StoreError;
use crate::log::Purpose;
use crate::meta::PointChanges;
use crate::record::Kind;
use crate::storage::Storage;
use crate::types::{EpochNumber, Origin, POINT_NAME_BYTES_MAX, POINT_TAGS_MAX, Point, PointSpec};

impl<S: Storage> Store<S> {
    /// Points on offer, oldest first.
    pub fn points(&self) -> impl DoubleEndedIterator<Item = &Point> {
        self.state.points.values()
    }

    /// Why a point cannot be reached; `None` for one that can.
    pub fn damage_of(&self, epoch: EpochNumber) -> Option<&str> {
        let known = self.unreachable.get(&epoch).or(self.log.doubt.as_ref());
        known.map(String::as_str)
    }

    /// Keeps a point whatever the policy says, or lets go of it.
    ///
    /// # Errors
    /// When there is no such point, or the storage fails.
    pub fn set_pinned(&mut self, epoch: EpochNumber, pinned: bool) -> Result<(), StoreError> {
        let point = self.point(epoch)?;
        if point.pinned == pinned {
            return Ok(());
        }
        let mut changes = PointChanges::default();
        if pinned {
            changes.pinned.push(epoch);
        } else {
            changes.released.push(epoch);
        }
        self.change_points(&changes)
    }

    /// Holds a point for somebody who looks at it: until [`Store::release`], or until the store is opened again, nothing
    /// drops it. Other than a pin it is not written down, so that who looked and died leaves nothing behind.
    ///
    /// # Errors
    /// When the point is not on offer, or cannot be reached.
    pub fn hold(&mut self, epoch: EpochNumber) -> Result<(), StoreError> {
        self.reachable(epoch)?;
        *self.held.entry(epoch).or_default() += 1;
        Ok(())
    }

    /// Takes one [`Store::hold`] back.
    pub fn release(&mut self, epoch: EpochNumber) {
        if let Some(count) = self.held.get_mut(&epoch) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(&epoch);
            }
        }
    }

    /// Whether somebody looks at a point.
    pub fn is_held(&self, epoch: EpochNumber) -> bool {
        self.held.contains_key(&epoch)
    }

    /// Takes points off the offer. What only they needed becomes free for [`Store::reclaim`].
    ///
    /// # Errors
    /// When one of them is not on offer, is pinned or held, or is being rolled to; or the storage fails. Then none is
    /// dropped.
    pub fn drop_points(&mut self, epochs: &[EpochNumber]) -> Result<(), StoreError> {
        let mut dropped = BTreeSet::new();
        for epoch in epochs {
            if self.point(*epoch)?.pinned {
                return Err(StoreError::refused(
                    format!("recovery point {epoch} is pinned"),
                    "release it first",
                ));
            }
            if self.is_held(*epoch) {
                return Err(StoreError::refused(
                    format!("recovery point {epoch} is being looked at"),
                    "end its export first",
                ));
            }
            if self.open.as_ref().is_some_and(|open| open.needs(*epoch)) {
                return Err(StoreError::refused(
                    format!("recovery point {epoch} is being rolled to, or is the way back from it"),
                    "wait for the roll to end, or cancel it",
                ));
            }
            dropped.insert(*epoch);
        }
        if dropped.is_empty() {
            return Ok(());
        }
        self.change_points(&PointChanges {
            dropped: dropped.into_iter().collect(),
            ..PointChanges::default()
        })
    }

    fn change_points(&mut self, changes: &PointChanges) -> Result<(), StoreError> {
        let body = changes.encode();
        let append = |store: &mut Self| {
            let (purpose, kind) = (Purpose::Bookkeeping, Kind::Points);
            store
                .log
                .append_meta(&mut store.state, purpose, kind, EpochNumber(0), &body)
        };
        if let Err(StoreError::Full { .. }) = append(self) {
            // What is dead altogether makes room without a copy.
            self.begin_room();
            self.reclaim(0)?;
            append(self)?;
        }
        self.log.sync()?;
        changes.apply(&mut self.state.points);
        self.examined.clear();
        self.drop_bookkeeping()?;
        for epoch in &changes.dropped {
            self.unreachable.remove(epoch);
        }
        Ok(())
    }

    /// A point on offer.
    ///
    /// # Errors
    /// When there is none.
    pub fn point(&self, epoch: EpochNumber) -> Result<&Point, StoreError> {
        self.state.points.get(&epoch).ok_or(StoreError::UnknownPoint {
            epoch,
            newest: self.state.points.keys().next_back().copied(),
        })
    }

    /// A point on offer that can be reached.
    pub(crate) fn reachable(&self, epoch: EpochNumber) -> Result<&Point, StoreError> {
        let point = self.point(epoch)?;
        match self.damage_of(epoch) {
            None => Ok(point),
            Some(why) => Err(StoreError::PointDamaged {
                epoch,
                why: why.to_owned(),
            }),
        }
    }
}

/// The point at the end of an epoch.
pub(crate) fn new_point(
    spec: PointSpec,
    epoch: EpochNumber,
    origin: Origin,
    changed_bytes: u64,
) -> Result<Point, StoreError> {
    let too_long = |text: &String| text.len() > POINT_NAME_BYTES_MAX;
    if too_long(&spec.name) || spec.tags.len() > POINT_TAGS_MAX || spec.tags.iter().any(too_long) {
        return Err(StoreError::refused(
            format!(
                "a point's name and tags have at most {POINT_NAME_BYTES_MAX} bytes each, and there are at most \
                 {POINT_TAGS_MAX} tags"
            ),
            "choose shorter ones",
        ));
    }
    Ok(Point {
        epoch,
        consistency: spec.consistency,
        origin,
        source_time_ms: spec.source_time_ms,
        received_time_ms: spec.received_time_ms,
        name: spec.name,
        tags: spec.tags,
        pinned: false,
        changed_bytes,
    })
}
