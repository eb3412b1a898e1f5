//! The freeze as a state machine: events in, actions out. It opens nothing and reads no clock.
//!
//! File systems are frozen in levels: those that lie in files of others first, since a freeze writes what is dirty, and what
//! is written below must not be frozen yet. Within a level all at once. From the first freeze on a limit runs; when it
//! ends, when the agent asks, when the agent is gone, or when one file system cannot be frozen, everything is thawed, in
//! the opposite order. A freeze that is still waiting then is thawed when it comes back: the kernel knows no way to take
//! it back.
//!
//! The invariant, which the tests check for random orders of events: the machine ends only when nothing of what it has
//! frozen is frozen still.

use std::time::Duration;

/// A file system, by its place in the list that was given.
pub type Index = usize;

/// Time since the guard was started.
pub type Instant = Duration;

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Begin.
    Begin,
    /// A freeze has succeeded.
    Frozen(Index),
    /// A freeze has failed, with this errno.
    Refused(Index, i32),
    /// A file system was thawed, or was found not to be frozen any more.
    Thawed(Index),
    /// A thaw has failed, with this errno.
    ThawFailed(Index, i32),
    /// The agent wants it thawed.
    Asked,
    /// The agent has closed its side: it has ended or was killed.
    Gone,
    /// Nothing; time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Freeze it, without waiting for the end here.
    Freeze(Index),
    /// Thaw it.
    Thaw(Index),
    /// Tell the agent that everything is frozen.
    TellFrozen,
    /// Tell the agent why it is thawed and how long nothing could be written, and end.
    End(Cause, Duration),
}

/// Why it was thawed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The agent asked, in time.
    Asked,
    /// The agent is gone.
    Gone,
    /// The limit was reached.
    Late,
    /// One file system could not be frozen, with this errno.
    Refused(Index, i32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// Asked to freeze, and no answer yet.
    Freezing,
    Frozen,
    /// Asked to thaw.
    Thawing,
    /// A thaw has failed and is tried again at this time.
    Again(Instant),
    /// Could not be frozen; somebody else may have, and then it is not ours to thaw.
    Refused,
}

/// Pause before a thaw that has failed is tried again.
const AGAIN: Duration = Duration::from_millis(10);

/// A freeze of several file systems.
#[derive(Debug, Clone)]
pub struct Freeze {
    levels: Vec<Vec<Index>>,
    states: Vec<State>,
    limit: Duration,
    began: Option<Instant>,
    told: bool,
    cause: Option<Cause>,
    ended: bool,
}

impl Freeze {
    /// Of as many file systems as `levels` names, the first level first. `None` unless the levels hold each index from 0 on
    /// once.
    #[must_use]
    pub fn new(levels: Vec<Vec<Index>>, limit: Duration) -> Option<Self> {
        let mut all: Vec<Index> = levels.iter().flatten().copied().collect();
        all.sort_unstable();
        let fits = !all.is_empty() && all.iter().enumerate().all(|(place, index)| place == *index);
        let states = vec![State::Running; all.len()];
        fits.then_some(Self {
            levels,
            states,
            limit,
            began: None,
            told: false,
            cause: None,
            ended: false,
        })
    }

    /// When a [`Event::Tick`] is due, if nothing else happens before.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let again = self.states.iter().filter_map(|state| match state {
            State::Again(at) => Some(*at),
            _ => None,
        });
        let limit = self
            .began
            .filter(|_| self.cause.is_none())
            .map(|began| began + self.limit);
        again.chain(limit).min()
    }

    /// Whether it has ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Takes in what has happened at `now`.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Begin => self.began = self.began.or(Some(now)),
            Event::Frozen(index) => self.set(index, State::Frozen),
            Event::Refused(index, errno) => {
                self.set(index, State::Refused);
                self.release(Cause::Refused(index, errno));
            }
            Event::Thawed(index) => self.set(index, State::Running),
            Event::ThawFailed(index, _) => self.set(index, State::Again(now + AGAIN)),
            Event::Asked => self.release(Cause::Asked),
            Event::Gone => self.release(Cause::Gone),
            Event::Tick => {}
        }
        // Asked for at the moment of the limit is late: what was read behind it may have been read thawed.
        if self.began.is_some_and(|began| now >= began + self.limit) && !self.ended {
            match self.cause {
                None => self.release(Cause::Late),
                Some(Cause::Asked) if matches!(event, Event::Asked) => self.cause = Some(Cause::Late),
                Some(_) => {}
            }
        }
        if self.cause.is_some() {
            self.thaw(now, &mut actions)
        } else {
            self.freeze(&mut actions)
        }
        actions
    }

    fn set(&mut self, index: Index, state: State) {
        if let Some(place) = self.states.get_mut(index) {
            *place = state;
        }
    }

    fn release(&mut self, cause: Cause) {
        self.cause = self.cause.or(Some(cause));
    }

    fn freeze(&mut self, actions: &mut Vec<Action>) {
        if self.began.is_none() {
            return;
        }
        for level in &self.levels {
            let mut whole = true;
            for index in level {
                let Some(state) = self.states.get_mut(*index) else {
                    continue;
                };
                if *state == State::Running {
                    *state = State::Freezing;
                    actions.push(Action::Freeze(*index));
                }
                whole &= *state == State::Frozen;
            }
            if !whole {
                return;
            }
        }
        if !self.told {
            self.told = true;
            actions.push(Action::TellFrozen);
        }
    }

    fn thaw(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for index in self.levels.iter().rev().flatten() {
            let Some(state) = self.states.get_mut(*index) else {
                continue;
            };
            let due = match state {
                State::Frozen => true,
                State::Again(at) => *at <= now,
                _ => false,
            };
            if due {
                *state = State::Thawing;
                actions.push(Action::Thaw(*index));
            }
        }
        let still = |state: &State| !matches!(state, State::Running | State::Refused);
        if self.ended || self.states.iter().any(still) {
            return;
        }
        if let Some(cause) = self.cause {
            self.ended = true;
            let paused = self
                .began
                .map_or(Duration::ZERO, |began| now.saturating_sub(began));
            actions.push(Action::End(cause, paused));
        }
    }
}

#[cfg(test)]
mod tests;
