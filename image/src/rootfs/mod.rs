// SPDX-License-Identifier: MIT OR Apache-2.0
//! Root file systems: from packages of a distribution to a folder that is ready to be packed.

pub mod debian;
pub mod el;
pub mod mirror;
pub mod tidy;

/// A package that is in the root file system.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Architecture.
    pub architecture: String,
    /// Version.
    pub version: String,
    /// SHA-256 of the package file, as the signed index of its repository gives it; empty where it gives none.
    pub sha256: String,
}
