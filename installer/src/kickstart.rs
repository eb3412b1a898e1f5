// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers in kickstart syntax.

use std::path::Path;

use crate::answers::Answers;
use crate::error::{Error, Kind, Result};

/// Reads a file.
///
/// # Errors
/// See there.
pub fn read(path: &Path) -> Result<Answers> {
    Err(Error::new(
        Kind::Config,
        format!("cannot read {}: answers are not read yet", path.display()),
    ))
}
