//! The machines that the appliance knows, what may become of them, and what each of their keys may do.
//!
//! ```text
//!             | register,      | register,       |             |            |           |          |
//!             | same key       | another key     | approve     | decline    | revoke    | renew    | remove
//! ------------+----------------+-----------------+-------------+------------+-----------+----------+---------
//! absent      | pending        | pending         | -           | -          | -         | -        | -
//! pending     | pending        | pending         | active      | -          | revoked   | -        | absent
//! active      | active         | contested       | active      | -          | revoked   | active   | -
//! contested   | contested      | contested       | active      | active     | revoked   | contested| -
//! revoked     | -              | -               | -           | -          | revoked   | -        | absent
//! ```
//!
//! *Contested*: an active machine whose id has registered again with another key. The old key stays in force until the
//! operator approves the new one, since either of the two may be the thief. Approving names the key, so that what is
//! approved is what was looked at. A revoked machine is removed before it can come back, and its keys are known until
//! then. An active machine is revoked before it is removed.
//!
//! A renewal adds the *next* key beside the current one; the first connection with it makes it the current one.
//!
//! # How callers hold it
//!
//! Nothing here is durable. Every act answers with a [`Change`]; it is stored first, then given to
//! [`Registry::commit`]. After a commit every open session is asked about again ([`Registry::must_end`]).

mod decide;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use jiff::Timestamp;

pub use decide::{Denial, Pair, authorise};

use crate::code::Code;
use crate::id::{Fingerprint, MachineId, MachineName, Role};

/// Most machines in the registry: far more than one appliance brings home.
pub const MACHINES_MAX: usize = 1024;
/// Most of them that may wait for approval: who has the passphrase can make them, and the operator reads them.
pub const PENDING_MAX: usize = 128;

/// What the appliance has decided about a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It waits for the operator.
    Pending,
    /// It may connect.
    Active,
    /// It may not, ever.
    Revoked,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Active, Self::Revoked];

    /// The number in files.
    pub fn number(self) -> u8 {
        match self {
            Self::Pending => 1,
            Self::Active => 2,
            Self::Revoked => 3,
        }
    }

    /// The state with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.number() == number)
    }

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Revoked => "revoked",
        }
    }
}

/// A machine that registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Which.
    pub id: MachineId,
    /// What it calls itself; not unique.
    pub name: MachineName,
    /// What it is.
    pub role: Role,
    /// What was decided about it.
    pub state: State,
    /// Its key.
    pub key: Fingerprint,
    /// The key that it renewed to and has not used yet.
    pub next: Option<Fingerprint>,
    /// Another key that registered under its id and waits for approval.
    pub candidate: Option<Fingerprint>,
    /// When it first registered.
    pub registered: Timestamp,
    /// When its state, or which keys it has, last changed.
    pub changed: Timestamp,
    /// Until when the newest certificate signed for it is valid.
    pub not_after: Timestamp,
    /// How often the operator has approved one of its keys. Sessions from before a newer approval end.
    pub approvals: u32,
}

/// What is kept of an open connection, to ask [`Registry::must_end`] about. Not its key: a renewal changes that and
/// must not cut a session off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Session {
    /// The machine.
    pub id: MachineId,
    /// Its count of approvals when it was admitted.
    pub approvals: u32,
}

impl Machine {
    fn phase(&self) -> Phase {
        match (self.state, self.candidate) {
            (State::Pending, _) => Phase::Pending,
            (State::Active, None) => Phase::Active,
            (State::Active, Some(_)) => Phase::Contested,
            (State::Revoked, _) => Phase::Revoked,
        }
    }

    /// What to keep of a connection of this machine.
    pub fn session(&self) -> Session {
        Session {
            id: self.id,
            approvals: self.approvals,
        }
    }

    /// Whether this key of its may connect.
    pub fn is_in_force(&self, key: Fingerprint) -> bool {
        self.state == State::Active && (self.key == key || self.next == Some(key))
    }

    fn keys(&self) -> impl Iterator<Item = Fingerprint> {
        [Some(self.key), self.next, self.candidate].into_iter().flatten()
    }
}

/// The rows of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Absent,
    Pending,
    Active,
    Contested,
    Revoked,
}

/// The columns of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    RegisterSame,
    RegisterOther,
    Approve,
    Decline,
    Revoke,
    Renew,
    Remove,
}

/// The table in the module's text.
fn next_phase(phase: Phase, act: Act) -> Option<Phase> {
    match (phase, act) {
        (Phase::Absent | Phase::Pending, Act::RegisterSame | Act::RegisterOther) => Some(Phase::Pending),
        (Phase::Active, Act::RegisterSame) => Some(Phase::Active),
        (Phase::Contested, Act::RegisterSame) => Some(Phase::Contested),
        (Phase::Active | Phase::Contested, Act::RegisterOther) => Some(Phase::Contested),
        (Phase::Pending | Phase::Active | Phase::Contested, Act::Approve) => Some(Phase::Active),
        (Phase::Contested, Act::Decline) => Some(Phase::Active),
        (Phase::Pending | Phase::Active | Phase::Contested | Phase::Revoked, Act::Revoke) => {
            Some(Phase::Revoked)
        }
        (Phase::Active, Act::Renew) => Some(Phase::Active),
        (Phase::Contested, Act::Renew) => Some(Phase::Contested),
        (Phase::Pending | Phase::Revoked, Act::Remove) => Some(Phase::Absent),
        (Phase::Absent, Act::Approve | Act::Decline | Act::Revoke | Act::Renew | Act::Remove)
        | (Phase::Pending, Act::Decline | Act::Renew)
        | (Phase::Active, Act::Decline | Act::Remove)
        | (Phase::Contested, Act::Remove)
        | (
            Phase::Revoked,
            Act::RegisterSame | Act::RegisterOther | Act::Approve | Act::Decline | Act::Renew,
        ) => None,
    }
}

/// Why an act was refused. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// No such machine.
    #[error("no machine {id} is registered")]
    Unknown {
        /// The id.
        id: MachineId,
    },
    /// The registry is full.
    #[error("the registry has {count} machines{}, it takes no more", if *.pending { " that wait for approval" } else { "" })]
    Full {
        /// How many it has.
        count: usize,
        /// Whether those that wait are too many, or all together.
        pending: bool,
    },
    /// The machine is registered in another role.
    #[error("machine {id} is registered as {registered}, not as {asked}")]
    RoleConflict {
        /// The machine.
        id: MachineId,
        /// As registered.
        registered: Role,
        /// As asked for.
        asked: Role,
    },
    /// Another machine has the key.
    #[error("the key {key} belongs to machine {owner}")]
    KeyInUse {
        /// The key.
        key: Fingerprint,
        /// Whose it is.
        owner: MachineId,
    },
    /// The machine was revoked.
    #[error("machine {id} was revoked")]
    Revoked {
        /// The machine.
        id: MachineId,
    },
    /// The key that is to be approved or declined does not wait for it.
    #[error("the key {key} of machine {id} does not wait for approval")]
    NotWaiting {
        /// The machine.
        id: MachineId,
        /// The key.
        key: Fingerprint,
    },
    /// An act that is not possible in the machine's state.
    #[error("machine {id} is {state}: it cannot be {act}")]
    NotNow {
        /// The machine.
        id: MachineId,
        /// Its state.
        state: &'static str,
        /// What was wanted.
        act: &'static str,
    },
    /// Rows of the state that contradict each other.
    #[error("the stored registry contradicts itself: {what} (machine {id})")]
    Contradiction {
        /// The machine.
        id: MachineId,
        /// What is wrong.
        what: &'static str,
    },
}

impl RegistryError {
    /// What to tell the peer when it was he who asked.
    pub fn code(&self) -> Code {
        match self {
            Self::Unknown { .. } | Self::NotWaiting { .. } => Code::KeyUnknown,
            Self::Full { .. } => Code::RegistryFull,
            Self::RoleConflict { .. } => Code::RoleConflict,
            Self::KeyInUse { .. } => Code::KeyInUse,
            Self::Revoked { .. } => Code::Revoked,
            Self::NotNow { .. } => Code::ApprovalPending,
            Self::Contradiction { .. } => Code::Internal,
        }
    }

    /// What to do next, for the operator.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unknown { .. } | Self::NotWaiting { .. } => "run \"mt-agent machines list\"",
            Self::NotNow { .. } => {
                "run \"mt-agent machines list\"; an active machine is revoked before it is removed"
            }
            other => other.code().hint(),
        }
    }
}

/// What an act does, to be stored and then committed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a change is stored, then committed"]
pub struct Change {
    /// The machine.
    pub id: MachineId,
    /// As it is from now on; `None` when it is gone.
    pub after: Option<Machine>,
    /// For the log: what happened, in words.
    pub what: &'static str,
    /// Whether the act came too late by the certificate's dates and was allowed all the same.
    pub after_expiry: bool,
}

/// The machines.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    machines: HashMap<MachineId, Machine>,
    /// Whose each key is: current, next and candidate keys, of revoked machines too.
    owners: HashMap<Fingerprint, MachineId>,
}

impl Registry {
    /// The registry of these rows.
    ///
    /// # Errors
    /// When they are too many or contradict each other.
    pub fn from_machines(rows: impl IntoIterator<Item = Machine>) -> Result<Self, RegistryError> {
        let mut registry = Self::default();
        for machine in rows {
            let id = machine.id;
            let wrong = |what| RegistryError::Contradiction { id, what };
            if registry.machines.len() == MACHINES_MAX {
                return Err(RegistryError::Full {
                    count: MACHINES_MAX,
                    pending: false,
                });
            }
            if machine.role == Role::Server {
                return Err(wrong("a machine has the role of the appliance"));
            }
            if machine.state == State::Pending && (machine.candidate.is_some() || machine.next.is_some()) {
                return Err(wrong("a machine that waits for approval has a second key"));
            }
            for key in machine.keys() {
                if registry.owners.insert(key, id).is_some() {
                    return Err(wrong("a key is there twice"));
                }
            }
            if registry.machines.insert(id, machine).is_some() {
                return Err(wrong("an id is there twice"));
            }
        }
        Ok(registry)
    }

    /// All machines, in no order.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.machines.values()
    }

    /// The machine with this id.
    pub fn machine(&self, id: MachineId) -> Option<&Machine> {
        self.machines.get(&id)
    }

    /// The machine that has this key, current, next or waiting.
    pub fn owner(&self, key: Fingerprint) -> Option<&Machine> {
        self.owners.get(&key).and_then(|id| self.machines.get(id))
    }

    /// The machines of this name, which may be several.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Machine> {
        self.machines()
            .filter(move |machine| machine.name.as_str() == name)
    }

    /// Someone who knows the passphrase registers. `not_after` is that of the certificate signed for him.
    ///
    /// # Errors
    /// When the id or key may not register, or the registry is full.
    pub fn register(
        &self,
        id: MachineId,
        name: &MachineName,
        role: Role,
        key: Fingerprint,
        not_after: Timestamp,
        now: Timestamp,
    ) -> Result<Change, RegistryError> {
        if let Some(owner) = self.owners.get(&key).copied().filter(|owner| *owner != id) {
            return Err(RegistryError::KeyInUse { key, owner });
        }
        let Some(machine) = self.machines.get(&id) else {
            self.check_room()?;
            let machine = Machine {
                id,
                name: name.clone(),
                role,
                state: State::Pending,
                key,
                next: None,
                candidate: None,
                registered: now,
                changed: now,
                not_after,
                approvals: 0,
            };
            return Ok(change(machine, "registered, waits for approval"));
        };
        let same = machine.key == key || machine.next == Some(key);
        let act = if same {
            Act::RegisterSame
        } else {
            Act::RegisterOther
        };
        let phase = step(machine, act)?;
        if machine.role != role {
            return Err(RegistryError::RoleConflict {
                id,
                registered: machine.role,
                asked: role,
            });
        }
        let mut after = machine.clone();
        if same {
            // Once it is approved, its name is what the operator knows it by.
            if phase == Phase::Pending {
                after.name = name.clone();
            }
            after.not_after = after.not_after.max(not_after);
            return Ok(change(after, "registered again with its key"));
        }
        after.changed = now;
        if phase == Phase::Pending {
            // Nobody has vouched for the first key, so the newer one takes its place.
            after.key = key;
            after.name = name.clone();
            after.not_after = not_after;
            return Ok(change(
                after,
                "registered again with another key, waits for approval",
            ));
        }
        after.candidate = Some(key);
        Ok(change(
            after,
            "another key registered under its id and waits for approval",
        ))
    }

    /// The operator approves this key of this machine: its first, or one that would replace it.
    ///
    /// # Errors
    /// When that key does not wait for it.
    pub fn approve(&self, id: MachineId, key: Fingerprint, now: Timestamp) -> Result<Change, RegistryError> {
        let machine = self.known(id)?;
        let was = machine.phase();
        step(machine, Act::Approve)?;
        let mut after = machine.clone();
        match was {
            Phase::Pending if machine.key == key => {
                after.state = State::Active;
                after.changed = now;
                after.approvals = after.approvals.saturating_add(1);
                Ok(change(after, "approved"))
            }
            Phase::Contested if machine.candidate == Some(key) => {
                after.key = key;
                after.next = None;
                after.candidate = None;
                after.changed = now;
                after.approvals = after.approvals.saturating_add(1);
                Ok(change(after, "approved with another key"))
            }
            // Said twice, or said of the key that is in force: already so.
            Phase::Active | Phase::Contested if machine.key == key => Ok(change(after, "already approved")),
            _ => Err(RegistryError::NotWaiting { id, key }),
        }
    }

    /// The operator declines the key that waits; the one in force stays.
    ///
    /// # Errors
    /// When that key does not wait.
    pub fn decline(&self, id: MachineId, key: Fingerprint, now: Timestamp) -> Result<Change, RegistryError> {
        let machine = self.known(id)?;
        step(machine, Act::Decline)?;
        if machine.candidate != Some(key) {
            return Err(RegistryError::NotWaiting { id, key });
        }
        let mut after = machine.clone();
        after.candidate = None;
        after.changed = now;
        Ok(change(after, "the other key was declined"))
    }

    /// The operator revokes a machine: its sessions end and none of its keys is admitted again.
    ///
    /// # Errors
    /// When there is none.
    pub fn revoke(&self, id: MachineId, now: Timestamp) -> Result<Change, RegistryError> {
        let machine = self.known(id)?;
        let was = machine.phase();
        step(machine, Act::Revoke)?;
        let mut after = machine.clone();
        if was == Phase::Revoked {
            return Ok(change(after, "already revoked"));
        }
        // All its keys stay known, so that each of them is told why and none comes back under another id.
        after.state = State::Revoked;
        after.changed = now;
        Ok(change(after, "revoked"))
    }

    /// The operator removes a machine that waits or was revoked. It may register again, as a new one.
    ///
    /// # Errors
    /// When there is none, or it is active.
    pub fn remove(&self, id: MachineId) -> Result<Change, RegistryError> {
        let machine = self.known(id)?;
        step(machine, Act::Remove)?;
        Ok(Change {
            id,
            after: None,
            what: "removed",
            after_expiry: false,
        })
    }

    /// A machine with one of its keys in force renews to `next`. Works after its certificate has run out: the registry
    /// knows the key, and that is what counts. `not_after` is that of the new certificate.
    ///
    /// # Errors
    /// When the key is not one in force, or the next one is taken.
    pub fn renew(
        &self,
        peer: &crate::leaf::Leaf,
        next: Fingerprint,
        not_after: Timestamp,
        now: Timestamp,
    ) -> Result<Change, RegistryError> {
        let machine = self
            .owner(peer.key)
            .ok_or(RegistryError::Unknown { id: peer.id })?;
        let id = machine.id;
        step(machine, Act::Renew)?;
        if machine.candidate == Some(peer.key) || peer.id != id {
            return Err(RegistryError::NotNow {
                id,
                state: "known by another key, and this one waits for approval",
                act: "renewed",
            });
        }
        if let Some(owner) = self.owners.get(&next).copied() {
            let again = owner == id && machine.next == Some(next);
            if !again {
                return Err(RegistryError::KeyInUse { key: next, owner });
            }
        }
        let mut after = machine.clone();
        // Whoever renews with the next key has used it: it is the current one now.
        after.key = peer.key;
        after.next = Some(next);
        after.not_after = not_after;
        after.changed = now;
        let after_expiry = matches!(peer.validity(now), crate::leaf::Validity::Expired { .. });
        let what = if after_expiry {
            "certificate renewed after it had run out"
        } else {
            "certificate renewed"
        };
        Ok(Change {
            after_expiry,
            ..change(after, what)
        })
    }

    /// A machine was admitted with this key: when it is the one renewed to, it takes the place of the old one. `None`
    /// when nothing changes.
    pub fn used(&self, key: Fingerprint, now: Timestamp) -> Option<Change> {
        let machine = self.owner(key)?;
        if machine.state != State::Active || machine.next != Some(key) {
            return None;
        }
        let mut after = machine.clone();
        after.key = key;
        after.next = None;
        after.changed = now;
        Some(change(after, "uses its renewed key"))
    }

    /// Makes a change true, once it is stored.
    pub fn commit(&mut self, change: Change) {
        if let Some(before) = self.machines.remove(&change.id) {
            for key in before.keys() {
                self.owners.remove(&key);
            }
        }
        if let Some(after) = change.after {
            for key in after.keys() {
                self.owners.insert(key, after.id);
            }
            self.machines.insert(after.id, after);
        }
    }

    fn known(&self, id: MachineId) -> Result<&Machine, RegistryError> {
        self.machines.get(&id).ok_or(RegistryError::Unknown { id })
    }

    fn check_room(&self) -> Result<(), RegistryError> {
        let pending = self
            .machines()
            .filter(|machine| machine.state == State::Pending)
            .count();
        if pending >= PENDING_MAX {
            return Err(RegistryError::Full {
                count: pending,
                pending: true,
            });
        }
        if self.machines.len() >= MACHINES_MAX {
            return Err(RegistryError::Full {
                count: self.machines.len(),
                pending: false,
            });
        }
        Ok(())
    }
}

fn change(after: Machine, what: &'static str) -> Change {
    Change {
        id: after.id,
        after: Some(after),
        what,
        after_expiry: false,
    }
}

/// One step in the table, or why there is none.
fn step(machine: &Machine, act: Act) -> Result<Phase, RegistryError> {
    let id = machine.id;
    next_phase(machine.phase(), act).ok_or(match (machine.state, act) {
        (State::Revoked, _) => RegistryError::Revoked { id },
        (state, act) => RegistryError::NotNow {
            id,
            state: state.word(),
            act: match act {
                Act::RegisterSame | Act::RegisterOther => "registered",
                Act::Approve => "approved",
                Act::Decline => "declined a key",
                Act::Revoke => "revoked",
                Act::Renew => "renewed",
                Act::Remove => "removed",
            },
        },
    })
}
