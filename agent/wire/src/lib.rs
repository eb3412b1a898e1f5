//! The replication protocol, without I/O.
