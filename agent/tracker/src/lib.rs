//! Change tracking of a machine's disks by programs in the kernel (eBPF), believed only while it can be proved complete.
//!
//! | module | does |
//! |---|---|
//! | [`preflight`] | decides whether a tracker can run here, and what to do where it cannot |
//! | [`stack`] | finds the whole disks below a device, and tells which cannot be tracked |
//! | [`tracker`] | loads the programs and takes their marks, or those of a dead agent: the edge |
//! | [`chunks`] | sets of changed chunks |
//! | [`kernel`] | what the kernel counts by itself |
//! | [`proof`] | decides whether the marks can be believed |
//! | [`record`] | the durable form of a set, byte by byte |
//! | [`continuity`] | decides whether a durable set may be gone on with |
//!
//! A disk that cannot be tracked, or whose marks cannot be believed, is compared by digests: nothing here ever answers
//! "probably". What the programs do and why stands in `src/bpf/tracker.bpf.c`.
//!
//! What is needed of the kernel: 5.10 with BTF. From 5.12 on marks are single bits and the kernel counts skipped programs.
//! Programs written in 5.10 find the queue first among their arguments, and the disk at the request until 5.16; both are
//! looked up in the kernel's types and not guessed from its version. Commands that are sent past the block layer (SG_IO)
//! and carry data to the disk raise a doubt; such without data (FORMAT UNIT, SANITIZE) look like harmless ones and do not.

pub mod chunks;
pub mod continuity;
pub mod kernel;
pub(crate) mod layout;
pub mod preflight;
pub mod proof;
pub mod record;
pub mod stack;
pub mod tracker;

pub use layout::Counters;
