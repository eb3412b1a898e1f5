// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mt-image rootfs`: the root file system alone, in a folder.

use std::fs;
use std::path::PathBuf;

use super::build::progress;
use super::{say, say_json};
use crate::build::check;
use crate::command;
use crate::error::{Error, Kind, Result, counted, shown};
use crate::publish::{folder_of, refuse_no_folder_for};
use crate::rootfs::el;
use crate::spec::{self, Base};
use crate::work::WorkFolder;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Image spec of base el
    #[arg(long)]
    spec: PathBuf,
    /// Folder to make, in a folder that is there; it must not exist
    #[arg(long)]
    out: PathBuf,
    /// Print the packages as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let spec = spec::load(&arguments.spec)?;
    if spec.rootfs.base != Base::El {
        let text = format!("{} is of base debian", shown(&arguments.spec));
        return Err(Error::new(Kind::Usage, text).hint("build makes the root file system of a debian image"));
    }
    if arguments.out.symlink_metadata().is_ok() {
        let text = format!("{} exists", shown(&arguments.out));
        return Err(Error::new(Kind::Refused, text).hint("remove it, or name another folder with --out"));
    }
    refuse_no_folder_for(&arguments.out)?;
    let overlay = check::overlay(&arguments.spec, &spec.rootfs.overlay)?.folder;
    command::require_root("installing packages")?;
    command::require(el::PROGRAMS)?;
    // Beside the target, so that a rename brings it there.
    let work = WorkFolder::create(folder_of(&arguments.out))?;
    let root = work.path().join("root");
    let parts = el::Parts {
        spec: &spec,
        overlay: &overlay,
        files: &[],
        bootable: false,
    };
    let chosen = el::choose(&spec, work.path(), &root, &progress)?;
    let packages = el::build(&parts, &chosen, &root, &progress)?;
    fs::rename(&root, &arguments.out)
        .map_err(|error| Error::io("publish the root file system as", &arguments.out, error))?;
    if arguments.json {
        #[derive(serde::Serialize)]
        struct Made {
            packages: Vec<crate::rootfs::Package>,
        }
        return say_json(&Made { packages });
    }
    let count = counted(packages.len() as u64, "package");
    say(&format!("{}: {count}", shown(&arguments.out)))
}
