// SPDX-License-Identifier: MIT OR Apache-2.0
//! One entry for each parser of bytes that come from outside: from the network, the local socket, disks, files that people
//! or hypervisors hand over, and the retention volume.
//!
//! Each takes any bytes and must neither panic, nor hang, nor take memory out of proportion. Where more can be said of the
//! result, the entry asserts it: what decodes encodes to the same again, what is accepted is within its bounds, and a store
//! that was damaged gives an error and never a wrong answer.
//!
//! Two runners use them: `tests/fuzz` with libFuzzer, which finds its way by coverage and needs a nightly compiler, and
//! `tests/fuzz.rs` of this crate on any compiler, with the corpora of `tests/fuzz/corpus` and random changes of them.

mod agent;
mod disks;
mod image;
mod installer;
mod retention;

pub use retention::{Patch, patches, retention_parts};

/// An entry, and how it is run.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name: of the corpus's folder, and of the program for libFuzzer.
    pub name: &'static str,
    /// The entry.
    pub run: fn(&[u8]),
    /// Longest input that is made up, bytes. Longer ones say nothing new.
    pub len_max: usize,
}

const fn target(name: &'static str, run: fn(&[u8]), len_max: usize) -> Target {
    Target { name, run, len_max }
}

/// Every entry.
pub const TARGETS: &[Target] = &[
    // What strangers and registered machines send.
    target("wire_hello", mt_wire::fuzz::hello, 128),
    target("wire_message", mt_wire::fuzz::message, 8 << 10),
    target("wire_frames", mt_wire::fuzz::frames, 16 << 10),
    target("registration_messages", registration_messages, 8 << 10),
    target("registration_server", mt_identity::fuzz::server, 8 << 10),
    target("registration_client", mt_identity::fuzz::client, 8 << 10),
    target("certificates", mt_identity::fuzz::certificates, 4 << 10),
    target("identity_texts", mt_identity::fuzz::texts, 1 << 10),
    target("identity_files", mt_identity::fuzz::stored, 8 << 10),
    target("nbd_client", agent::nbd_client, 16 << 10),
    // What people, commands and processes of this machine send.
    target("socket_request", mt_agent::status::fuzz::request, 80 << 10),
    target("socket_answer", mt_agent::status::fuzz::answer, 16 << 10),
    target("broker", agent::broker, 16 << 10),
    target("agent_config", agent::config, 8 << 10),
    target("agent_texts", agent::texts, 1 << 10),
    // What disks and the kernel say.
    target("scsi_answers", disks::scsi_answers, 4 << 10),
    target("disk_content", disks::content, 16 << 10),
    target("mount_tables", disks::mount_tables, 8 << 10),
    target("retention_parts", mt_retention::fuzz::parts, 8 << 10),
    target("retention_store", retention::store, 2 << 10),
    target("retention_forged", retention::forged, 2 << 10),
    // What an installation is told.
    target("kickstart", installer::kickstart, 8 << 10),
    target("ovf_environment", installer::ovf_environment, 8 << 10),
    target("guestinfo", installer::guestinfo, 4 << 10),
    target("console_keys", installer::console_keys, 1 << 10),
    // What the build host is given.
    target("vmdk", image::vmdk, 128 << 10),
    target("ova", image::ova, 128 << 10),
    target("ovf", image::ovf, 16 << 10),
    target("ova_manifest", image::manifest, 8 << 10),
    target("vmx", image::vmx, 8 << 10),
    target("image_spec", image::spec, 16 << 10),
];

/// The entry of this name.
#[must_use]
pub fn find(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}

/// For a program of libFuzzer, which is one line: the entry of this name.
///
/// # Panics
/// When there is none.
pub fn run(name: &str, bytes: &[u8]) {
    let target = find(name).unwrap_or_else(|| panic!("there is no entry {name:?}"));
    (target.run)(bytes);
}

fn registration_messages(bytes: &[u8]) {
    mt_identity::fuzz::messages(bytes);
    mt_identity::fuzz::sealed_parts(bytes);
    // Behind the size of the pieces and the header of a message is the form of what is sealed.
    mt_identity::fuzz::sealed_parts(bytes.get(9..).unwrap_or_default());
}
