// SPDX-License-Identifier: MIT OR Apache-2.0
//! Entry point of `mt-installer`.

use std::process::ExitCode;

fn main() -> ExitCode {
    mt_installer::cli::run()
}
