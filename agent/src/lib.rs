//! The agent of the master target: one binary with roles. ARCHITECTURE.md beside this crate says how the parts fit.

pub mod broker;
pub mod cli;
pub mod config;
pub mod disks;
pub mod epochs;
pub mod error;
pub mod failover;
pub mod hub;
pub mod identity;
pub mod io;
pub mod logging;
pub mod machines;
pub mod model;
pub mod nbd;
pub mod net;
pub mod random;
pub mod seeding;
pub mod source;
pub mod state;
pub mod status;
pub mod target;
