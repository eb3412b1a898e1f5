//! The agent of the master target.

pub mod config;
pub mod disks;
pub mod error;
pub mod hub;
pub mod io;
pub mod model;
pub mod net;
pub mod random;
pub mod seeding;
pub mod source;
pub mod state;
