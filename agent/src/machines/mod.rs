//! Machines on the target: their open disks, their retention store, and what is done with both.
//!
//! A [`machine::Machine`] is open from the first epoch of its source, or the first act of the operator, until its disks
//! are released, its pair is removed, or the agent ends. While it is open it holds all of its disks exclusively. Its
//! *applier*, a thread of its own, brings complete epochs from the log to the disks.
//!
//! One lock a machine guards its store; it is held for one bounded step at a time. A second one, the *fence*, is held for
//! reading by whoever writes for a source, and for writing by whoever raises the generation: when raising returns, no late
//! write of an older session is under way and none can begin.

pub mod catalogue;
pub mod disk;
pub mod dropping;
pub mod error;
pub mod exports;
pub mod failover;
pub mod folder;
pub mod forecast;
pub mod house;
pub mod ingest;
pub mod jobs;
pub mod lag;
pub mod machine;
pub mod points;
pub mod registry;
pub mod revive;
pub mod roll;
pub mod room;
pub mod stopped;
pub mod volume;
