//! The agent of the master target.

pub mod seeding;
