//! The harness of the suites in `tests/tests`: real binaries, real disks, and peers that misbehave on purpose.
//!
//! The name of a suite says what it needs:
//!
//! | suite | needs | disks are |
//! |---|---|---|
//! | `process_*` | nothing | files |
//! | `loop_*` | root, loop devices | loop devices, and block devices that fail |
//! | `vm_*` | QEMU | PVSCSI disks of a guest |
//!
//! A suite whose needs are not met says so with [`skip`], which `scripts/test` counts; where a tier was promised, a
//! skip is a failure. With `KEEP_WRECK=1` scratch folders stay for study.
//!
//! Everything here panics when the machine fails it: a test that cannot set its scene has failed.

pub mod agent;
pub mod data;
pub mod disks;
pub mod faulty;
pub mod guest;
pub mod lab;
pub mod measure;
pub mod members;
pub mod packages;
pub mod peer;
pub mod proxy;
pub mod scratch;
pub mod skip;
pub mod stores;
pub mod strangers;
