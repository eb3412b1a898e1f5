//! Epochs, without I/O: the two state machines of a session that brings machines to new instants.
//!
//! A session opens a machine with all of its disks, and goes from epoch to epoch. Inside an epoch the disks are gone over
//! one after the other by the exchange of [`crate::seeding`], compared with the newest state the target holds; or, where
//! the source has tracked what changed, content is sent without comparing. Nothing of an epoch is seen before it ends:
//!
//! 1. everything that was sent has been taken by the store, and the totals of both sides agree,
//! 2. the store commits the epoch of all disks at once, durably,
//! 3. `EpochDurable` goes to the source.
//!
//! A crash before 2 leaves the state before the epoch, a crash after it the state after it; a source that was cut in
//! between finds out by comparing, which costs reading and no data.

pub mod source;
pub mod target;

#[cfg(test)]
mod every_message;
#[cfg(test)]
mod tests;
