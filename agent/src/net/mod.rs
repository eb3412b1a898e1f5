//! The edge between a socket and the protocol.

pub mod door;
pub mod hello;
pub mod pump;
pub mod rate;
pub mod tls;
