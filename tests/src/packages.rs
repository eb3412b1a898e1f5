//! A workload as machines have it: packages that `dpkg` installs, upgrades and removes below a mount point.
//!
//! The packages are made of files that this machine's own packages brought, so that nothing is downloaded; they have no scripts,
//! which would run as root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::data::Random;
use crate::disks::{run, text};
use crate::scratch::Scratch;

/// Programs that are needed.
pub const PROGRAMS: [&str; 2] = ["dpkg", "dpkg-deb"];

/// Installed packages whose files are taken; each Debian has them.
const FROM: [&str; 8] = [
    "bash",
    "coreutils",
    "dpkg",
    "findutils",
    "grep",
    "gzip",
    "sed",
    "tar",
];
/// Most bytes of files of one package.
const PACKAGE_BYTES_MAX: u64 = 4 << 20;

/// Packages, each in two versions.
#[derive(Debug)]
pub struct Packages {
    files: Vec<(String, [PathBuf; 2])>,
}

impl Packages {
    /// Makes the packages.
    pub fn new(scratch: &Scratch) -> Self {
        let files = FROM
            .iter()
            .map(|name| {
                let listed = run("dpkg", &["--listfiles", name]);
                let archives = [1, 2].map(|version| build(scratch, name, version, &listed));
                ((*name).to_owned(), archives)
            })
            .collect();
        Self { files }
    }

    /// Prepares a mounted file system: a `dpkg` database with nothing in it.
    pub fn prepare(&self, root: &Path) {
        let database = root.join("var/lib/dpkg");
        for folder in ["info", "updates"] {
            fs::create_dir_all(database.join(folder)).expect("there is room");
        }
        for file in ["status", "available"] {
            fs::write(database.join(file), "").expect("there is room");
        }
    }

    /// Installs, upgrades or removes one package.
    pub fn change(&self, root: &Path, random: &mut Random) {
        let choice = usize::try_from(random.below(self.files.len() as u64)).expect("few packages");
        let (name, archives) = &self.files[choice];
        match random.below(3) {
            0 => dpkg(root, &["--purge", name]),
            one => dpkg(root, &["--install", text(&archives[usize::from(one == 1)])]),
        }
    }
}

fn dpkg(root: &Path, args: &[&str]) {
    let output = Command::new("dpkg")
        .arg(format!("--root={}", text(root)))
        .arg(format!("--log={}", text(&root.join("var/log-of-dpkg"))))
        .args([
            "--force-depends",
            "--force-remove-essential",
            "--force-remove-protected",
            "--force-downgrade",
            "--force-unsafe-io",
        ])
        .args(args)
        .output()
        .expect("dpkg can be started");
    let stderr = String::from_utf8_lossy(&output.stderr);
    // Removing what is not there is no work, and no fault.
    assert!(
        output.status.success() || stderr.contains("no installed package"),
        "dpkg {args:?}: {stderr}"
    );
}

/// Packs files of an installed package; the second version differs in each of them.
fn build(scratch: &Scratch, name: &str, version: u32, listed: &str) -> PathBuf {
    let folder = scratch.join(&format!("{name}-{version}"));
    fs::create_dir_all(folder.join("DEBIAN")).expect("there is room");
    let control = format!(
        "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\n\
         Description: files of {name}\n"
    );
    fs::write(folder.join("DEBIAN/control"), control).expect("there is room");
    let mut taken = 0;
    for path in listed.lines().map(Path::new) {
        let Ok(found) = fs::symlink_metadata(path) else {
            continue;
        };
        if !found.is_file() || found.len() == 0 || taken + found.len() > PACKAGE_BYTES_MAX {
            continue;
        }
        taken += found.len();
        let to = folder.join(path.strip_prefix("/").expect("dpkg lists absolute paths"));
        fs::create_dir_all(to.parent().expect("below the folder")).expect("there is room");
        let mut content = fs::read(path).expect("files of packages can be read");
        content[0] ^= u8::try_from(version).expect("a small number");
        fs::write(to, content).expect("there is room");
    }
    assert!(taken > 0, "package {name} has files");
    let archive = scratch.join(&format!("{name}-{version}.deb"));
    run(
        "dpkg-deb",
        &[
            "--build",
            "--root-owner-group",
            "-Zgzip",
            "-z1",
            text(&folder),
            text(&archive),
        ],
    );
    fs::remove_dir_all(&folder).expect("it was just made");
    archive
}
