//! The local socket: HTTP and JSON over a Unix socket, as Docker and Podman have it.
//!
//! | module | does | I/O |
//! |---|---|---|
//! | [`model`] | the documents, as they are sent | no |
//! | [`view`] | makes documents of what the hub and the state know | no |
//! | [`access`] | who may read, who may change | reads the group database |
//! | [`socket`] | takes the path of the socket, and gives it back | yes |
//! | [`server`] | accepts clients within limits | yes |
//! | [`routes`] | what can be asked | no |
//! | [`pairing`] | makes and removes pairs | disks |
//! | [`machines`] | machines, recovery points and failover | disks |
//! | [`stores`] | checking a store, and its catalogue | retention volume |
//! | [`log`] | the audit log, for reading | no |
//! | `audit` | writes down every change that root asks for | no |
//! | [`metrics`] | the same numbers for Prometheus | no |
//! | [`client`] | the other end, for the command line | yes |
//!
//! Nothing here writes a disk, and no answer holds a secret.

pub mod access;
mod audit;
pub mod client;
#[doc(hidden)]
pub mod fuzz;
pub mod identity;
pub mod log;
pub mod machines;
pub mod metrics;
pub mod model;
pub mod pairing;
pub mod routes;
pub mod server;
pub mod socket;
pub mod stores;
pub mod view;
