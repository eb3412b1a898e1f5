// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds the bootable ISO and the OVA of the master target, and judges such files of any maker.

pub mod agent_tarball;
pub mod build;
pub mod cli;
pub mod command;
pub mod error;
pub mod input;
pub mod iso;
pub mod manifest;
pub mod ova;
pub mod ovf;
pub mod publish;
pub mod rootfs;
pub mod sbom;
pub mod spec;
pub mod sums;
pub mod vmdk;
pub mod vmx;
pub mod work;
