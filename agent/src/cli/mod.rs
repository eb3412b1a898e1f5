//! The command line: one file per noun.

pub mod disks;
pub mod source;
