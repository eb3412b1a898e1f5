//! Making room in a store that is full: as its policy allows, in bounded steps, so that nobody waits long for the lock.

use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;
use mt_retention::StoreError;
use mt_retention::policy::{LIVE_PERCENT_IDLE, RoomStep};

use super::error::MachineError;
use super::machine::{FileStore, Machine};
use super::points::in_words_of_store;

/// Between two steps others get the lock: it goes to whoever asks first, and whoever gives it back asks again at once.
const PAUSE: Duration = Duration::from_micros(200);
/// A call that finds the store full again after so many times that room was made is given up: somebody else takes it.
const TRIES_MAX: u32 = 100;

impl Machine {
    /// Drops sparse segments, then the oldest points that may go, until there is room. Says whether anything came of it.
    pub fn make_room(&self) -> bool {
        let used = |store: &FileStore| store.status().used;
        let before = self.lock().store.as_ref().map_or(0, used);
        let _one_at_a_time = self.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = &mut self.lock().store {
            store.begin_room();
        }
        loop {
            {
                let mut inner = self.lock();
                let policy = in_words_of_store(&inner.policy);
                let Some(store) = &mut inner.store else {
                    return false;
                };
                match store.make_room_step(Timestamp::now().as_millisecond(), &policy) {
                    Ok(RoomStep::Room) => return true,
                    Ok(RoomStep::Freed(_)) => {}
                    Ok(RoomStep::Dropped(point)) => {
                        tracing::warn!(machine = %self.name, "point {point} was dropped to make room");
                    }
                    Ok(RoomStep::Stopped) => return used(store) < before,
                    Err(error) => {
                        let why = crate::target::app::chain(&error);
                        tracing::error!(machine = %self.name, "cannot make room: {why}");
                        return false;
                    }
                }
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Gets back the space of what is not needed any more.
    ///
    /// # Errors
    /// When the store fails.
    pub fn reclaim(&self) -> Result<(), MachineError> {
        loop {
            {
                let mut inner = self.lock();
                let Some(store) = &mut inner.store else {
                    return Ok(());
                };
                let step = store
                    .reclaim_step(LIVE_PERCENT_IDLE)
                    .map_err(|source| self.store_error(source))?;
                if step.complete {
                    return Ok(());
                }
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Runs `work` with the store; where that finds it full, room is made, without the lock, and it runs again.
    ///
    /// # Errors
    /// When there is no store, no room can be made, or `work` fails.
    pub fn with_room<T>(
        &self,
        mut work: impl FnMut(&mut FileStore) -> Result<T, StoreError>,
    ) -> Result<T, MachineError> {
        let mut tries = 0;
        loop {
            match self.with_store(&mut work) {
                Err(MachineError::Store {
                    source: StoreError::Full { .. },
                    ..
                }) if tries < TRIES_MAX && self.make_room() => tries += 1,
                result => return result,
            }
        }
    }
}
