//! The edges of `mt-identity`: files, ports, and the operator's hand.
//!
//! `keeper` holds who the appliance is and whom it knows, and makes every change durable before it is true. `control`
//! serves the control port. `caller` is who speaks on a connection of the data port. `membership` is the other side: a
//! machine that registers, renews and connects.

pub mod caller;
pub mod clock;
pub mod control;
pub mod file;
pub mod keeper;
pub mod membership;
