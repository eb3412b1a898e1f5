//! The agent of the master target.

pub mod io;
pub mod net;
pub mod seeding;
