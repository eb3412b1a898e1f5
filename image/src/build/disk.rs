// SPDX-License-Identifier: MIT OR Apache-2.0
//! The disk of the OVA: the installer puts the appliance onto an image file, by the steps it takes on a machine's disk.
//!
//! Its answers are the installer's defaults. What differs from site to site comes at the first start, from the OVF
//! environment.

use std::path::{Path, PathBuf};

use super::image::Request;
use super::stage::Stage;
use crate::command::Program;
use crate::error::Result;

/// Makes the raw disk in the scratch folder and answers with its path.
///
/// # Errors
/// The installer failed; what it said is in the error.
pub fn install(request: &Request, stage: &Stage, scratch: &Path) -> Result<PathBuf> {
    let spec = &request.inputs.spec;
    let raw = scratch.join("disk.raw");
    Program::new("mt-installer")
        .at(&request.inputs.installer)
        .args(["apply", "--image"])
        .arg(&raw)
        .args(["--size", &(spec.sizes.disk_gib << 30).to_string()])
        .args(["--memory", &spec.hardware.memory_mib.to_string()])
        .arg("--payload")
        .arg(stage.path.join("payload.squashfs"))
        .arg("--agent-tarball")
        .arg(&stage.agent_tarball)
        .args(["--source-date", &spec.source_date.to_string()])
        .arg("--work")
        .arg(scratch)
        .arg("--state")
        .arg(scratch.join("installation.json"))
        .contained()
        .run()?;
    Ok(raw)
}
