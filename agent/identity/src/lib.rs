//! Who a machine is: passphrase, certificates, registration, registry, and the TLS that carries them. No I/O.
//!
//! Nothing here opens a socket or a file, spawns, or reads a clock: bytes, time and what the state holds come in as
//! values, and what is to be sent, stored or ended goes out as values. The edges of `mt-agent` do the rest.
//!
//! # How a machine becomes a peer
//!
//! ```text
//! appliance, first boot    store::Identity::create, kept in one file; passphrase and CA fingerprint are shown once
//! machine                  member::Member::create, kept in one file
//!                          tls::registration_client  (any server, or one under the CA with a given fingerprint)
//!                          registration::Client      (OPAQUE over that channel, then the certificate request)
//! appliance, control port  limits::Admission -> tls::control_server -> control::Control
//!                          (window, rate limit, registration::Server, Registry::register, Ca::sign)
//! operator                 Registry::approve, decline, revoke, remove
//! machine                  Member::client -> data port; after 60 days renewal::request on the control port
//! appliance, data port     limits::Admission -> tls::data_server -> tls::peer_of -> Registry::admit,
//!                          registry::authorise for each stream, Registry::must_end after each change
//! ```
//!
//! # What holds
//!
//! * Knowing the passphrase registers a machine. It approves none and pairs no disk.
//! * The passphrase itself is neither stored nor sent; a party in the middle gets nothing to try words against.
//! * A certificate alone admits nobody: the registry is asked on every connection and every stream.
//! * Whatever a peer sends is bounded before it is read, and no input panics.
//! * Types that hold secrets wipe them when dropped and print nothing of them.

#![forbid(unsafe_code)]

pub mod backup;
pub mod ca;
pub mod code;
mod codec;
pub mod control;
mod envelope;
pub mod fuzz;
pub mod id;
pub mod leaf;
pub mod limits;
pub mod member;
pub mod opaque;
pub mod passphrase;
pub mod registration;
pub mod registry;
pub mod renewal;
pub mod store;
#[cfg(test)]
mod testing;
pub mod tls;

pub use ca::{Ca, LeafKey};
pub use code::Code;
pub use id::{Fingerprint, MachineId, MachineName, Role};
pub use leaf::Leaf;
pub use passphrase::Passphrase;
pub use registry::Registry;
