//! The protected machine's side: reads a disk and sends what differs.
//!
//! So far the source is *cold*: an image, a snapshot or a device that nobody writes to. That nobody did is checked, not
//! assumed.

mod core;
pub mod error;
pub mod image;
pub mod marks;
pub mod report;
pub mod send;
mod session;

pub use error::SourceError;
