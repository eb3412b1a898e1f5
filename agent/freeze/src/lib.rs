//! Stops all writing to several file systems together, for a bounded moment.
//!
//! | module | does |
//! |---|---|
//! | [`select`] | finds the file systems on some disks, and their order; pure |
//! | [`machine`] | decides what is frozen and thawed when; pure |
//! | [`guard`] | does it, in a process of its own that outlives the agent |
//! | [`agent`] | starts the guard and asks |
//!
//! The guard's process is the program of the agent itself, started once more with other arguments.

pub mod agent;
pub mod guard;
pub mod machine;
pub mod select;
