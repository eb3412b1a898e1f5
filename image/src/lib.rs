// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds the bootable ISO and the OVA of the master target, and judges such files of any maker.

pub mod build;
pub mod cli;
pub mod error;
pub mod manifest;
pub mod ova;
pub mod ovf;
pub mod publish;
pub mod spec;
pub mod vmdk;
pub mod vmx;
