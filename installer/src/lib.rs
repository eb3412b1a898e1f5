// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts the master target on a disk: of a virtual machine that was started from the ISO, or of the OVA on a build host.
//!
//! Pure modules think (`kickstart`, `plan`, ...), thin edges act (`execute`, `command`, ...).

pub mod cli;
pub mod custom_change;
pub mod error;
pub mod medium;
pub mod screen;
