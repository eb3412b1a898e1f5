// SPDX-License-Identifier: MIT OR Apache-2.0
//! The image that `scripts/test` built for all tests of virtual machines, built once more: the same bytes have to come out,
//! from another folder and under another name. What is left of that second build then serves to run out of space.
//!
//! `MT_ISO` and `MT_OVA` name the first build's files, `MT_PROGRAMS` the folder with the programs it was made of.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::text;

struct Lab {
    folder: tempfile::TempDir,
    programs: PathBuf,
}

impl Lab {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `mt-image build` into the folder `out`; `before` starts it.
    fn command(&self, before: &[&str], out: &Path) -> Command {
        let spec = Path::new(env!("CARGO_MANIFEST_DIR")).join("specs/debian.toml");
        let mut words: Vec<PathBuf> = before.iter().map(PathBuf::from).collect();
        words.extend([env!("CARGO_BIN_EXE_mt-image"), "build", "--keep-stage", "--spec"].map(PathBuf::from));
        words.push(spec);
        for (option, value) in [
            ("--agent", self.programs.join("mt-agent")),
            ("--installer", self.programs.join("mt-installer")),
            ("--crates", self.programs.join("crates.json")),
            ("--work", self.path("its work")),
            ("--out", out.to_owned()),
        ] {
            words.extend([PathBuf::from(option), value]);
        }
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }

    /// The same with a file system of 64 MiB as the folder for the artefacts; what it holds in the end is told on
    /// standard error.
    fn build_into_little_space(&self, more: &[&str]) -> Output {
        let out = self.path("small");
        fs::create_dir_all(&out).unwrap();
        // In a mount namespace of its own, so that the file system goes with the process.
        let script = "mount -t tmpfs -o size=64m tmpfs \"$0\" && \"$@\"; code=$?; echo \"left: $(ls -A \"$0\")\" >&2; exit $code";
        let before = ["unshare", "--mount", "sh", "-c", script, out.to_str().unwrap()];
        self.command(&before, &out).args(more).output().unwrap()
    }
}

#[test]
fn vm_a_second_build_elsewhere_gives_the_same_bytes() {
    let given = ["MT_ISO", "MT_OVA", "MT_PROGRAMS"].map(std::env::var_os);
    let [Some(iso), Some(ova), Some(programs)] = given else {
        common::skip_here("needs the image of scripts/test: MT_ISO, MT_OVA and MT_PROGRAMS");
        return;
    };
    let lab = Lab {
        folder: tempfile::Builder::new()
            .prefix("mt second build-")
            .tempdir_in("/var/tmp")
            .unwrap(),
        programs: programs.into(),
    };
    let out = lab.path("with a\nnewline");
    let output = lab.command(&[], &out).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let first = Path::new(&iso).parent().unwrap();
    let mut compared = Vec::new();
    for entry in fs::read_dir(&out).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(
            same(&path, &first.join(&name)),
            "{name} differs from the first build's"
        );
        compared.push(name);
    }
    for name in [&iso, &ova].map(|path| Path::new(path).file_name().unwrap().to_str().unwrap()) {
        assert!(
            compared.iter().any(|done| done == name),
            "{name} is not among {compared:?}"
        );
    }

    let output = lab.build_into_little_space(&["--iso"]);
    assert_out_of_space(&output);
    let disk = lab.path("disk.raw");
    common::sample_disk(&disk, 1_500);
    let output = lab.build_into_little_space(&["--ova", "--disk", disk.to_str().unwrap()]);
    assert_out_of_space(&output);
}

fn assert_out_of_space(output: &Output) {
    assert_eq!(output.status.code(), Some(1), "{}", text(output));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("No space left on device") && said.contains("hint: free"),
        "{said}"
    );
    assert!(said.ends_with("left: \n"), "something was left behind: {said}");
}

fn same(one: &Path, two: &Path) -> bool {
    let compare = common::run("cmp", &[one, two]);
    println!("{}", text(&compare));
    compare.status.success()
}
