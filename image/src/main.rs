// SPDX-License-Identifier: MIT OR Apache-2.0
//! Entry point of `mt-image`.

use std::process::ExitCode;

fn main() -> ExitCode {
    mt_image::cli::run()
}
