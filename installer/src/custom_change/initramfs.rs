// SPDX-License-Identifier: MIT OR Apache-2.0
//! The initramfs carries copies of the files that were changed, so it is made anew: on the running system only. Whoever
//! changes another root directory makes its initramfs with the boot loader.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Error, Kind, Result};

/// Programs that make it, each with its arguments, in Debian and in EL.
const MAKERS: &[(&str, &[&str])] = &[
    ("usr/sbin/update-initramfs", &["-u", "-k", "all"]),
    ("usr/bin/dracut", &["--force", "--regenerate-all"]),
];

/// Makes the initramfs of every kernel anew, where `root` is that of the running system and there is a program for it.
pub(super) fn renew(root: &Path, running: bool, say: &mut dyn FnMut(&str)) -> Result<()> {
    if !running {
        return Ok(());
    }
    let Some((program, arguments)) = MAKERS.iter().find(|(program, _)| root.join(program).exists()) else {
        say("initramfs: there is none to be made anew");
        return Ok(());
    };
    let program = root.join(program);
    say("initramfs: making it anew with what was changed");
    let ended = Command::new(&program)
        .args(*arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(|error| Error::io("start", &program, error))?;
    if ended.success() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Unexpected,
        format!("{} failed ({ended})", program.display()),
    )
    .hint("read what it said above; is there space in /boot?"))
}
