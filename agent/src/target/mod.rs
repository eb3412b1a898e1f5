//! The appliance's side: finds the paired disk, receives what differs, and writes it straight to the disk.

pub mod app;
mod machine_session;
pub mod opening;
pub mod registry;
pub mod report;
pub mod scsi_ids;
pub mod service;
mod session;
